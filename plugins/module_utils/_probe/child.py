# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Child processes that can crash, hang or never die without harm to the caller.

A driver that hangs holds whoever calls it, in the kernel, where no signal reaches. So NVML and libcuda are asked in a
forked child with its own session, nothing inherited but one pipe, and a time limit after which the whole group is killed
and, if even that does not end it, left behind and said so. A fork without exec costs about 1 ms; the caller is single-threaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import time
from typing import Any, Callable, Sequence

_GRACE = 0.5  # seconds that a killed child gets to disappear
_ANSWER_LIMIT = 4 * 1024 * 1024
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38  # linux/prctl.h
_CAP_SYS_MODULE, _CAP_MKNOD = 16, 27  # linux/capability.h
_CAPABILITY_VERSION_3 = 0x20080522


class NoAnswer(Exception):
    """A child gave no usable answer; the text says why, for people. ``status``: that of a command which ended by itself."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Child:
    """A process in its own session whose answer comes through one pipe."""

    def __init__(self, pid: int, pipe: int, time_limit: float, limit: int) -> None:
        self.pid = pid
        self._pipe = pipe
        self._time_limit = time_limit
        self._deadline = time.monotonic() + time_limit
        self._limit = limit

    def output(self) -> bytes:
        """Return all that the process wrote before it ended with status 0."""
        data = self._read(b"")[0]
        status = self._wait(max(self._deadline - time.monotonic(), _GRACE))
        if status is None:
            raise NoAnswer(self._kill())
        if status != 0:
            raise NoAnswer(f"the command {_ending(status)}", os.WEXITSTATUS(status) if os.WIFEXITED(status) else None)
        return data

    def answer(self) -> Any:
        """Return the JSON line of a forked child, without waiting for the process to be gone."""
        data, complete = self._read(b"\n")
        if not complete:
            status = self._wait(_GRACE)
            raise NoAnswer(self._kill() if status is None else f"the child process {_ending(status)} without an answer")
        self._end()
        message = json.loads(data)
        if "error" in message:
            raise NoAnswer(message["error"])
        return message["answer"]

    def _read(self, end: bytes) -> tuple[bytes, bool]:
        """Read until ``end``, end of file, the size limit or the deadline; the latter two kill and raise."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        data = bytearray()
        # The caller may come late for an answer that is long there: what is in the pipe by then still counts.
        last = max(self._deadline, time.monotonic() + _GRACE)
        try:
            while True:
                remaining = self._deadline - time.monotonic()
                ready = poll.poll(max(remaining, 0) * 1000)
                if time.monotonic() > (last if ready else self._deadline):
                    raise NoAnswer(self._kill())
                if not ready:
                    continue
                chunk = os.read(self._pipe, 65536)
                data += chunk
                if end and chunk.endswith(end):
                    return bytes(data), True
                if not chunk:
                    return bytes(data), False
                if len(data) > self._limit:
                    self._end()
                    raise NoAnswer(f"the answer is larger than {self._limit} bytes")
        finally:
            os.close(self._pipe)

    def _wait(self, seconds: float) -> int | None:
        """Return the wait status, or None when the process is still there after ``seconds``."""
        until = time.monotonic() + seconds
        pause = 0.0005
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid:
                return status
            if time.monotonic() >= until:
                return None
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def _end(self) -> None:
        """Kill the whole group and collect the child if it is gone already."""
        for kill in (os.killpg, os.kill):
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        self._wait(0)

    def _kill(self) -> str:
        """End a child that ran out of time; say what became of it."""
        self._end()
        text = f"no answer within {self._time_limit:g} s"
        if self._wait(_GRACE) is not None:
            return f"{text}; the child process was killed"
        return (
            f"{text}, and the child process {self.pid} cannot be killed ({_kernel_state(self.pid)}):"
            " the driver holds it in the kernel, and only a reboot ends that"
        )


class _Capabilities(ctypes.Structure):
    """struct __user_cap_header_struct and the data that follows it in capget(2) and capset(2)."""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int), ("sets", ctypes.c_uint32 * 6)]


def start(function: Callable[[], Any], time_limit: float, confined: bool = False) -> Child:
    """Fork a child that calls ``function`` and answers with its JSON-able value.

    A confined child, and what it executes, can neither load kernel modules nor make device nodes, root or not: NVML does
    both on its own (through nvidia-modprobe) where they are missing, and an observation must not change what it observes.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_child(function, writer, parent, confined)
    os.close(writer)
    return Child(pid, reader, time_limit, _ANSWER_LIMIT)


def spawn(argv: Sequence[str], time_limit: float, limit: int) -> Child:
    """Start a program with an empty standard input, no standard error and its output in a pipe."""
    reader, writer = os.pipe()
    try:
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
            ],
            setsid=True,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return Child(pid, reader, time_limit, limit)


def _be_child(function: Callable[[], Any], pipe: int, parent: int, confined: bool) -> None:
    """Run in the fork; never returns."""
    status = 1
    try:
        os.setsid()
        _let_go(pipe, parent)
        if confined:
            _confine()
        try:
            message = {"answer": function()}
        except Exception as error:  # whatever it is, the parent must hear of it
            message = {"error": str(error) or type(error).__name__}
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(pipe, data) :]
        status = 0
    finally:
        os._exit(status)


def _let_go(pipe: int, parent: int) -> None:
    """Keep nothing of the parent's but the pipe, leave no core file, and end with the parent."""
    import resource  # pylint: disable=import-outside-toplevel  # only the child needs it

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != pipe:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the folder's own descriptor, closed already
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _confine() -> None:
    """Give up what changing the kernel takes; where the kernel refuses even that, there was nothing to give up."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # nvidia-modprobe is a set-user-id program
    header = _Capabilities(version=_CAPABILITY_VERSION_3)
    data = ctypes.byref(header, _Capabilities.sets.offset)
    if libc.capget(ctypes.byref(header), data) != 0:
        return
    for capability in (_CAP_SYS_MODULE, _CAP_MKNOD):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        for number in range(3):  # effective, permitted, inheritable; both capabilities are among the first 32
            header.sets[number] &= ~(1 << capability)
    libc.capset(ctypes.byref(header), data)


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"was killed by signal {number}"
    return f"ended with status {os.WEXITSTATUS(status)}"


def _kernel_state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return f"state {file.read().rpartition(')')[2].split()[0]}"
    except (OSError, IndexError):
        return "state unknown"
