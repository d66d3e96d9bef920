# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Run a system program to its end, with a time limit, and keep what it said.

Programs run in a session of their own, so that a lost connection interrupts none of them, and write into a file, so that a
daemon which they start cannot hold us by keeping a pipe open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import typing as t

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NOT_THERE = 127
"""Status of a program that is not installed, as the shell has it."""
_TAIL = 4 * 1024 * 1024
_GRACE = 10.0  # seconds that a program gets to stop by itself, and again to disappear


class Done(t.NamedTuple):
    """How a program ended. ``output`` is what it wrote on stdout and stderr, at most the last 4 MiB."""

    status: int
    output: str
    timed_out: bool = False

    @property
    def last_words(self) -> str:
        """The last line that holds anything: where programs say why they failed."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "it said nothing")


class Run(t.Protocol):
    """What runs programs; tests hand in their own."""

    def __call__(
        self,
        argv: t.Sequence[str],
        time_limit: float,
        environment: t.Mapping[str, str] | None = None,
        text: str = "",
    ) -> Done:
        """Run ``argv`` with ``text`` as its standard input; a program that is not installed has status 127."""


def run(
    argv: t.Sequence[str],
    time_limit: float,
    environment: t.Mapping[str, str] | None = None,
    text: str = "",
) -> Done:
    """Run a program in a clean environment; one that takes too long is ended with all that it started."""
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        return Done(NOT_THERE, f"{argv[0]} is not installed")
    # What a program is told may be a password: it stays in memory.
    with tempfile.TemporaryFile() as output, open(os.memfd_create("input"), "w+b") as given:
        given.write(text.encode("utf-8"))
        given.seek(0)
        child = subprocess.Popen(
            [program, *argv[1:]],
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(environment or {})},
            start_new_session=True,
        )
        timed_out = False
        try:
            child.wait(timeout=max(time_limit, 0.1))
        except subprocess.TimeoutExpired:
            timed_out = True
            _end(child)
        except BaseException:
            _end(child)
            raise
        end = output.seek(0, os.SEEK_END)
        output.seek(max(0, end - _TAIL))
        written = output.read().decode("utf-8", "replace")
    return Done(child.returncode if child.returncode is not None else -signal.SIGKILL, written, timed_out)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a program's whole session: first it may clean up, then it has to go."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group may be gone already
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):  # in uninterruptible sleep: it holds nothing of ours
            child.wait(timeout=_GRACE)
