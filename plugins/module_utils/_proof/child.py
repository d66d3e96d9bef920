# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to gpufleet.workstation: run a script of ours in a foreign Python so that it can harm nothing and hang nothing.

The script runs as an unprivileged account, in its own session, in a private directory, with a clean environment. Its
records come over a pipe of their own. At its limit it is killed with everything it started; one that cannot be killed
is reported and left, never waited for. Standard library only, Python 3.9, Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import resource
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any, Callable, NamedTuple, Sequence

from .._release.model import BUILD_ACCOUNT

KILL_PATIENCE = 5.0  # seconds a process killed by SIGKILL gets to disappear
KEPT_OUTPUT = 8192  # bytes kept of the beginning and of the end of stdout and stderr
KEPT_RECORDS = 1 << 20
_TEXTS = ("event", "id", "gpu", "status", "code")  # what a record of ours has as text, or not at all
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 1, 36, 37
LIBC = ctypes.CDLL(None)


class AccountError(Exception):
    """No account that the script may run as."""


class Account(NamedTuple):
    """Who the script runs as; `switch` tells whether that is somebody else than we are."""

    name: str
    uid: int
    gid: int
    groups: list[int]
    switch: bool


def choose_account(user: str | None) -> Account:
    """The account that runs an environment's Python. Never root: root's part goes to `gpufleet`, else to `nobody`."""
    current = os.geteuid()
    if current != 0:
        entry = pwd.getpwuid(current)
        if user not in (None, "", entry.pw_name):
            raise AccountError(f"running as '{entry.pw_name}', so the proof cannot run as '{user}'")
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, [], switch=False)
    candidates = [user] if user not in (None, "", "root") else [BUILD_ACCOUNT, "nobody"]
    for name in candidates:
        try:
            entry = pwd.getpwnam(str(name))
        except KeyError:
            continue
        if entry.pw_uid != 0:
            groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, switch=True)
    if candidates == [user]:
        raise AccountError(f"there is no unprivileged account '{user}' on this host")
    raise AccountError(f"neither '{BUILD_ACCOUNT}' nor 'nobody' is an unprivileged account of this host")


class Step(NamedTuple):
    """Something that a script has begun."""

    name: str
    gpu: str | None


class Captured:
    """The beginning and the end of a stream, however long it is."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = KEPT_OUTPUT - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if len(self._tail) > 2 * KEPT_OUTPUT:
            self._dropped += len(self._tail) - KEPT_OUTPUT
            del self._tail[:-KEPT_OUTPUT]

    def text(self) -> str:
        middle = b"\n[... %d bytes left out ...]\n" % self._dropped if self._dropped else b""
        return (bytes(self._head) + middle + bytes(self._tail)).decode(errors="replace")


class Child:
    """One script in one foreign interpreter.

    `limit_of` says how many seconds after one of its records the step that the record begins must have ended, if there
    is such a limit. The step ends with the record of its check, and the last one with the process.
    """

    def __init__(self, deadline: float, limit_of: Callable[[dict[str, Any]], float | None] | None = None) -> None:
        self.deadline = deadline
        self.overdue: Step | None = None  # what was still running at its own limit
        self.records: list[dict[str, Any]] = []
        self.garbage: str | None = None  # what came over the record pipe and is no record
        self.start_error: str | None = None
        self.timed_out = False
        self.unkillable = False
        self.done = False
        self.output = Captured()
        self._limit_of = limit_of
        self._killed = 0.0  # when; 0: not yet
        self._steps: dict[Step, float] = {}  # what runs, and until when it may
        self._buffer = bytearray()
        self._received = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: int | None = None
        self._streams: dict[int, Callable[[bytes], None]] = {}

    @property
    def returncode(self) -> int | None:
        return self._process.returncode if self._process else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def ended(self) -> bool:
        """Whether the script came to its own end, as its last record says."""
        return bool(self.records) and self.records[-1].get("event") == "end"

    def signal_name(self) -> str | None:
        """The signal that ended the process on its own, not ours."""
        number = -(self.returncode or 0)
        if self.timed_out or number <= 0:
            return None
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"

    def start(
        self, python: Sequence[str], source: str, request: dict[str, Any], account: Account, directory: str
    ) -> None:
        """Start `python` on `source`. Failure to start is kept in start_error."""
        records_read, records_write = os.pipe()
        control_read, self._control = os.pipe()
        output_read, output_write = os.pipe()
        arguments = [*python, "-", json.dumps(request), str(records_write), str(control_read)]
        identity: dict[str, Any] = {}
        if account.switch:
            identity = {"user": account.uid, "group": account.gid, "extra_groups": account.groups}
        with tempfile.TemporaryFile() as script:  # a file, not a pipe: nobody waits for a child that does not read
            script.write(source.encode())
            script.seek(0)
            try:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=script,
                    stdout=output_write,
                    stderr=subprocess.STDOUT,
                    pass_fds=(records_write, control_read),
                    cwd=directory,
                    env=clean_environment(directory),
                    start_new_session=True,
                    preexec_fn=_prepare,
                    **identity,
                )
            except (OSError, subprocess.SubprocessError) as error:
                self.start_error = str(error)
                self.done = True
        for descriptor in (records_write, control_read, output_write):
            os.close(descriptor)
        if self.start_error is not None:
            for descriptor in (records_read, self._control, output_read):
                os.close(descriptor)
            self._control = None
            return
        for descriptor in (records_read, output_read):
            os.set_blocking(descriptor, False)
        self._streams = {records_read: self._take_records, output_read: self.output.add}

    def tell(self, message: dict[str, Any]) -> None:
        """Send the script one line on its control descriptor; a child that is gone needs none."""
        if self._control is None:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._control, (json.dumps(message) + "\n").encode())
        os.close(self._control)
        self._control = None

    def streams(self) -> list[int]:
        return list(self._streams)

    def read(self, descriptor: int) -> None:
        """Take what is there on one of the child's streams; bounded, so that no flood can keep us."""
        for _chunk in range(16):
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return
            if not data:
                os.close(descriptor)
                del self._streams[descriptor]
                return
            self._streams[descriptor](data)

    def advance(self) -> None:
        """Notice the end of the process, or bring it about at the limit."""
        if self.done or self._process is None:
            return
        # WNOWAIT: while the dead leader is not reaped, its process group's number cannot be somebody else's.
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            self._finish(self._process)
            return
        step = min(self._steps, key=lambda running: self._steps[running], default=None)
        now = time.monotonic()
        if step is not None and now >= self._steps[step]:
            self.overdue = step
        if now >= self.deadline or self.overdue is not None:
            self.timed_out = True
            self._finish(self._process)

    def kill(self) -> None:
        """End the process and all that it started; several that are killed first and waited for afterwards share the patience."""
        if self._process is not None and not self.done:
            self._killed = self._killed or time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        self.kill()
        try:
            process.wait(timeout=max(0.0, self._killed + KILL_PATIENCE - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.unkillable = True
        for descriptor in self.streams():
            self.read(descriptor)
        for descriptor in self.streams():
            os.close(descriptor)
        self._streams = {}
        if self._buffer:
            self.garbage = self._buffer[:200].decode(errors="replace")
        self.tell({})
        self.done = True

    def _take_records(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > KEPT_RECORDS:
            self.garbage = f"more than {KEPT_RECORDS} bytes of records"
            return
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict) and all(
                record.get(key) is None or isinstance(record[key], str) for key in _TEXTS
            ):
                self.records.append(record)
                self._time(record)
            elif self.garbage is None:
                self.garbage = line[:200].decode(errors="replace")

    def _time(self, record: dict[str, Any]) -> None:
        step = Step(str(record.get("id") or record.get("event")), str(record["gpu"]) if record.get("gpu") else None)
        if record.get("event") == "check":
            self._steps.pop(step, None)
        elif self._limit_of is not None:
            limit = self._limit_of(record)
            if limit is not None:
                self._steps.setdefault(step, time.monotonic() + limit)


def clean_environment(directory: str) -> dict[str, str]:
    """Nothing of the caller's: no CUDA_VISIBLE_DEVICES, LD_LIBRARY_PATH or PYTHON*; caches go to the private directory."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": directory,
        "TMPDIR": directory,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def _prepare() -> None:
    """In the child, after the change of account: no core files, and no life longer than ours, should we be killed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Nursery:
    """Private directories and the children in them; on leaving, nothing of either is left behind."""

    def __init__(self, parent: str = "/tmp") -> None:  # noqa: S108 (mkdtemp makes a directory of its own in it)
        # Not TMPDIR: what root's session and Ansible put there, only root can enter.
        self._parent = parent if os.path.isdir(parent) else tempfile.gettempdir()
        self._directories: list[str] = []
        self.children: list[Child] = []
        self._others: set[int] = set()
        self._reaper = 0

    def __enter__(self) -> Nursery:
        # Processes that a script detached from itself become our children when their parent dies, so that we can find
        # them without reading anything of theirs (which can block on a hung process).
        flag = ctypes.c_int()
        LIBC.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
        self._reaper = flag.value
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._others = children_of(os.getpid())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for child in self.children:
            child.deadline = 0.0
            child.kill()
        for child in self.children:
            child.advance()
        self._kill_strays()
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, self._reaper, 0, 0, 0)
        for directory in self._directories:
            remove(directory)

    def directory(self, account: Account) -> str:
        """A new private directory of the account."""
        directory = tempfile.mkdtemp(prefix="gpufleet-proof-", dir=self._parent)
        self._directories.append(directory)
        if account.switch:
            os.chown(directory, account.uid, account.gid)
        return directory

    def start(
        self,
        python: Sequence[str],
        source: str,
        request: dict[str, Any],
        account: Account,
        deadline: float,
        limit_of: Callable[[dict[str, Any]], float | None] | None = None,
        directory: str | None = None,
    ) -> Child:
        """A new child, in a new private directory unless it shares one with others."""
        directory = directory or self.directory(account)
        child = Child(deadline, limit_of)
        child.start(python, source, request, account, directory)
        self.children.append(child)
        return child

    def run_until(self, finished: Callable[[], bool]) -> None:
        """Serve all children until `finished` says so; it must become true when they are done."""
        while not finished():
            with selectors.PollSelector() as selector:
                for child in self.children:
                    for descriptor in child.streams():
                        selector.register(descriptor, selectors.EVENT_READ, child)
                # A child without streams is ending: nothing but the time tells when it has.
                for key, _events in selector.select(timeout=0.02 if selector.get_map() else 0.001):
                    key.data.read(key.fd)
            for child in self.children:
                child.advance()

    def _kill_strays(self) -> None:
        known = self._others | {child.pid for child in self.children if child.pid and child.unkillable}
        limit = time.monotonic() + KILL_PATIENCE
        while time.monotonic() < limit:
            strays = children_of(os.getpid()) - known
            if not strays:
                return
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)


def remove(directory: str) -> None:
    """Delete a directory of a script's; what cannot be deleted stays."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    except RecursionError:  # it nested folders deeper than this Python can follow
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/bin/rm", "-rf", "--one-file-system", "--", directory]
            subprocess.run(command, timeout=KILL_PATIENCE, check=False)


def children_of(parent: int) -> set[int]:
    """The processes whose parent is `parent`."""
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as stream:
                fields = stream.read().rpartition(b")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == parent:
            found.add(int(entry))
    return found
