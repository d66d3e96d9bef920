# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: a build that outlives who asked for it, and how others follow it.

``<root>/.jobs/<name>/`` (root's alone) holds one build: the worker's code, what it is doing, and at the end its result. The worker
(worker.py) is a systemd unit of its own, or a process in a session of its own where there is no systemd. The lock of the root stays what
keeps two runs apart; a job is only started by who holds it. Who follows leaves a file; the last one who has the result removes the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import bundle, store
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import (
    SCHEMA,
    SYSTEM_PATH,
    Layout,
    ReleaseError,
    Request,
    hide_credentials,
)

_START_LIMIT = 60.0
_POLL = 0.03
_LOOK_LIMIT = 0.5
"""Seconds that counting bytes may take; a disk that is slower than this has better things to do."""
_ENTRY = f"""
import os, sys
os.dup2(os.open(os.path.join(sys.argv[1], "log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
from {bundle.PACKAGE}._release import worker
worker.main(sys.argv[1])
"""


class Followed(t.NamedTuple):
    """What came of following a job for a while: its ``result`` or ``failure``, or, while it runs, its ``progress``."""

    result: dict[str, t.Any] | None = None
    failure: dict[str, t.Any] | None = None
    progress: dict[str, t.Any] | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One build, as its files show it."""

    layout: Layout
    status: dict[str, t.Any]

    @property
    def id(self) -> str:
        return str(self.status["job"])

    @property
    def running(self) -> bool:
        """Whether the worker is at work: the very process, which has no result yet."""
        return _is_process(self.status) and self.ended() is None

    def ended(self) -> dict[str, t.Any] | None:
        """What the worker left at its end."""
        found = _read(os.path.join(self.layout.job, "result.json"))
        return found if found is not None and found.get("job") == self.id else None

    def join(self) -> str:
        """Be one of those who wait for the result; returns what to give to follow()."""
        token = secrets.token_hex(8)
        with open(os.path.join(self.layout.job, f"follower.{token}"), "xb"):
            return f"{self.id}.{token}"

    def follow(self, me: str, seconds: float) -> Followed:
        """Wait for the end, at most so many seconds. Raises ReleaseError where the worker ended without a result."""
        begin = time.monotonic()
        size = self._bytes()
        while True:
            running = _is_process(self.status)
            ended = self.ended()
            if ended is not None:
                self._leave(me)
                return Followed(ended.get("result"), ended.get("failure"))
            if not running:
                raise self._died(me)
            passed = time.monotonic() - begin
            if passed >= seconds:
                return Followed(progress=self._progress(size, passed))
            time.sleep(min(_POLL, seconds - passed))

    def at(self) -> dict[str, t.Any]:
        """The status as it is now."""
        return _read(os.path.join(self.layout.job, "status.json")) or self.status

    def who(self) -> str:
        """The worker, for people."""
        status = self.at()
        return f"process {status['pid']}, which builds {status['release']} since {status['began']} and is at the step {status['step']!r}"

    def _progress(self, size_before: int | None, seconds: float) -> dict[str, t.Any]:
        status = self.at()
        size = self._bytes()
        rate = None
        if size is not None and size_before is not None and seconds > 0:
            rate = round(max(0, size - size_before) / seconds)
        return {
            "release": status["release"],
            "step": status["step"],
            "seconds": max(0, round(time.time() - status["began_at"])),
            "bytes_done": None if size is None else min(size, status["bytes_total"]),
            "bytes_total": status["bytes_total"],
            "bytes_total_from": status["bytes_total_from"],
            "rate": rate,
        }

    def _bytes(self) -> int | None:
        """What has come so far, unpacked; None in steps that bring nothing, and where looking takes too long."""
        status = self.at()
        if status["step"] != "install":
            return None
        deadline = time.monotonic() + _LOOK_LIMIT
        release = self.layout.release(status["release"])
        try:
            # An empty cache fills first, and the release shares its files; from a full one the release gets copies.
            return max(_size(release, 0, deadline), _size(self.layout.cache, status["began_at"], deadline))
        except TimeoutError:
            return None

    def _leave(self, me: str) -> None:
        """Have the result; the last one takes the job away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.layout.job, f"follower.{me.rpartition('.')[2]}"))
            if not [name for name in os.listdir(self.layout.job) if name.startswith("follower.")]:
                clear(self.layout)

    def _died(self, me: str) -> ReleaseError:
        said = _tail(self.layout)
        status = self.at()
        self._leave(me)
        return ReleaseError(
            "build",
            f"process {status['pid']}, which built {status['release']}, ended at the step {status['step']!r} without a result{said}:"
            " it was killed, or the host restarted",
            "Run again: what it left is never used, and is removed then.",
        )


def find(layout: Layout) -> Job | None:
    """The job of an environment, whatever became of it."""
    status = _read(os.path.join(layout.job, "status.json"))
    return Job(layout, status) if status is not None and status.get("schema") == SCHEMA else None


def clear(layout: Layout) -> None:
    """Remove the job of an environment, in one step for whoever looks."""
    gone = f"{layout.job}.{secrets.token_hex(4)}~"
    with contextlib.suppress(FileNotFoundError):
        os.rename(layout.job, gone)
        shutil.rmtree(gone)
    with contextlib.suppress(OSError):  # other environments have jobs, or there is none
        os.rmdir(os.path.dirname(layout.job))


def start(request: Request, release_id: str, expected: tuple[int, str], environment: dict[str, str]) -> Job:
    """Start a worker for a request; the caller holds the lock until this returns. Raises ReleaseError and OSError."""
    layout = request.layout
    clear(layout)
    os.makedirs(layout.job, mode=0o700)
    os.chmod(os.path.dirname(layout.job), 0o700)
    job = secrets.token_hex(8)
    program = os.path.join(layout.job, "worker.zip")
    with open(program, "wb") as file:
        file.write(bundle.packed(_ENTRY))
    given = {"job": job, "release": release_id, "expected": expected, "environment": environment}
    store.write_file(
        os.path.join(layout.job, "request.json"),
        json.dumps({**given, "request": dataclasses.asdict(request)}).encode("utf-8"),
        mode=0o600,
    )
    try:
        process = _detach([sys.executable, "-I", "-B", program, layout.job], layout.name)
        return _wait_for(layout, job, process)
    except BaseException:
        clear(layout)
        raise


def _wait_for(layout: Layout, job: str, process: subprocess.Popen[bytes] | None) -> Job:
    deadline = time.monotonic() + _START_LIMIT
    while True:
        dead = process is not None and process.poll() is not None
        found = find(layout)
        if found is not None and found.id == job:
            return found
        if dead or time.monotonic() > deadline or _tail(layout):
            remedy = "Look at the host's memory and processes, then run again."
            raise ReleaseError("start the build", f"its process did not start{_tail(layout)}", remedy)
        time.sleep(0.005)


def _detach(argv: list[str], name: str) -> subprocess.Popen[bytes] | None:
    """Start a program that no end of a session, connection or unit takes along; what it was started as, where that is a child of ours."""
    quiet: dict[str, t.Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.path.isdir("/run/systemd/system"):
        unit = f"gpufleet-build-{name}-{os.getpid()}"
        command = ["systemd-run", "--quiet", "--collect", "--no-ask-password", f"--unit={unit}"]
        command += [f"--description=Build the environment {name} (gpufleet)", "--setenv=LC_ALL=C.UTF-8", "--", *argv]
        with contextlib.suppress(
            OSError, subprocess.SubprocessError
        ):  # a system manager that does not answer: see below
            subprocess.run(command, check=True, timeout=30, **quiet)
            return None
    clean = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(argv, env=clean, cwd="/", start_new_session=True, **quiet)


def identity() -> dict[str, t.Any]:
    """What tells this process from every other one, before and after it."""
    return {"pid": os.getpid(), "ticks": _ticks(os.getpid()), "boot": _boot()}


def _is_process(status: dict[str, t.Any]) -> bool:
    return status["boot"] == _boot() and status["ticks"] is not None and status["ticks"] == _ticks(status["pid"])


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the host did; None where it is no more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _size(directory: str, since: float, deadline: float) -> int:
    """The bytes of the files below a directory that changed since then."""
    total = 0
    pending = [directory]
    while pending:
        if time.monotonic() > deadline:
            raise TimeoutError
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:  # uv moves its directories
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_size if status.st_ctime >= since else 0
    return total


def _read(path: str) -> dict[str, t.Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _tail(layout: Layout) -> str:
    """What the worker's interpreter said, if anything."""
    try:
        with open(os.path.join(layout.job, "log"), encoding="utf-8", errors="replace") as file:
            said = hide_credentials(file.read()[-2000:]).strip()
    except OSError:
        return ""
    return f" ({said})" if said else ""
