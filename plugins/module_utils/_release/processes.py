# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: run a program as another account with a time limit, end it whole, and see who uses a directory."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import pwd
import signal
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.child import NoAnswer, start

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TAIL = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Account:
    """An account that a child runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def of(cls, name: str) -> Account:
        """Look an account up by name; raises KeyError."""
        entry = pwd.getpwnam(name)
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)


class Ended(t.NamedTuple):
    """How a child ended. ``output`` is the end of what it wrote on stdout and stderr."""

    returncode: int
    output: str
    timed_out: bool


def run_as(
    account: Account,
    argv: t.Sequence[str],
    *,
    environment: dict[str, str],
    directory: str,
    time_limit: float,
    groups: t.Sequence[int] = (),
    text: str = "",
) -> Ended:
    """Run ``argv`` as ``account`` and end everything that it started. Raises OSError where it cannot be started.

    The child has its own session, ends with this process, and writes into a file, so that a grandchild which keeps the file
    open cannot hold this process. ``text`` is its standard input.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getpid()

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
        given.write(text.encode("utf-8"))
        given.seek(0)
        child = subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn
            list(argv),
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
            user=account.uid,
            group=account.gid,
            extra_groups=list(groups),
            umask=0o022,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        timed_out = False
        try:
            child.wait(timeout=max(time_limit, 0.1))
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _signal_group(child)
            end_descendants(account.uid)
        end = output.seek(0, os.SEEK_END)
        output.seek(max(0, end - _TAIL))
        written = output.read().decode("utf-8", "replace")
    return Ended(child.returncode if child.returncode is not None else -signal.SIGKILL, written, timed_out)


def _signal_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group may be gone already
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # in uninterruptible sleep: it holds nothing of ours
        child.wait(timeout=10)


def end_descendants(uid: int, patience: float = 10.0) -> None:
    """Kill what runs as ``uid`` below this process; being the subreaper, it sees also those that left their session."""
    deadline = time.monotonic() + patience
    while True:
        left = [pid for pid in _descendants(os.getpid()) if _uid(pid) == uid]
        if not left or time.monotonic() > deadline:
            return
        for pid in left:
            _kill(pid)
            _reap(pid)
        time.sleep(0.01)


def _descendants(ancestor: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid in pids():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(pid)
    found: list[int] = []
    pending = [ancestor]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def pids() -> list[int]:
    """All processes that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
        os.kill(pid, signal.SIGKILL)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # it may not be a direct child (yet)
        os.waitpid(pid, os.WNOHANG)


class User(t.NamedTuple):
    """A process that uses a directory."""

    pid: int
    uid: int
    command: str


def users_of(directories: t.Sequence[str], time_limit: float = 20.0) -> dict[str, list[User]] | None:
    """Which processes run from, stand in, map or hold open something below each of ``directories``.

    None where that cannot be said in time: reading /proc of a process in uninterruptible sleep can block, which is why a
    child does it.
    """
    if not directories:
        return {}
    places = [os.path.realpath(directory) for directory in directories]
    try:
        found = start(lambda: _users_of(places), time_limit).answer()
    except NoAnswer:
        return None
    return {directory: [User(*user) for user in users] for directory, users in zip(directories, found)}


def end(users: t.Iterable[User], uid: int) -> None:
    """Kill those of ``users`` that run as ``uid``."""
    for user in users:
        if user.uid == uid:
            _kill(user.pid)


def _users_of(directories: list[str]) -> list[list[User]]:
    found: list[list[User]] = [[] for _directory in directories]
    prefixes = [directory + "/" for directory in directories]
    own = {os.getpid(), os.getppid()}
    for pid in pids():
        if pid in own:
            continue
        places = _places(pid)
        for index, prefix in enumerate(prefixes):
            if any((place + "/").startswith(prefix) for place in places):
                found[index].append(User(pid, _uid(pid), _command(pid)))
    return found


def _places(pid: int) -> set[str]:
    places = set()
    base = f"/proc/{pid}"
    links = [f"{base}/exe", f"{base}/cwd", f"{base}/root"]
    gone = contextlib.suppress(OSError)  # the process may end meanwhile; suppress() may be used again and again
    with gone:
        links += [f"{base}/fd/{number}" for number in os.listdir(f"{base}/fd")]
    for link in links:
        with gone:
            places.add(os.readlink(link))
    with gone, open(f"{base}/maps", encoding="utf-8", errors="surrogateescape") as file:
        places.update(line[line.index("/") :].rstrip("\n") for line in file if "/" in line)
    with gone, open(f"{base}/cmdline", "rb") as file:
        places.update(os.fsdecode(word) for word in file.read().split(b"\0")[:2] if word.startswith(b"/"))
    return places


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return "?"
    return os.fsdecode(b" ".join(words).strip())[:80] or "?"
