# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The seam to a managed host: files below a root, commands, libraries.

Everything that the probe learns comes through a :class:`Host`, so that a test can hand it a made-up tree. Nothing here
writes. Files are opened so that a FIFO, a device or an endless file cannot hold the probe.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Callable, Sequence

from . import child

KIB = 1024
MIB = 1024 * KIB

# What "there is no such thing" looks like: a path that is absent, or a process that ended while it was read.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH})

_PROGRAM_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
_SYMLINKS_FOLLOWED = 40


class Unreadable(Exception):
    """Something could not be read; the text says why, for people."""


def reason(error: BaseException) -> str:
    """Say in one line why reading failed."""
    if isinstance(error, (Unreadable, child.NoAnswer)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        hint = " (root is needed)" if error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0 else ""
        return f"{error.filename}: {error.strerror}{hint}" if error.filename else error.strerror + hint
    return f"{type(error).__name__}: {error}"


def run(argv: Sequence[str], time_limit: float) -> str:
    """Return what a system program prints, at most 4 MiB; raise Unreadable when it fails or takes too long."""
    for folder in _PROGRAM_FOLDERS:
        program = os.path.join(folder, argv[0])
        if os.access(program, os.X_OK):
            break
    else:
        raise Unreadable(f"{argv[0]} is not installed")
    process = child.spawn([program, *argv[1:]], time_limit, 4 * MIB)
    return process.output().decode("utf-8", "replace")


def load_library(names: Sequence[str]) -> Any:
    """Load the first of the shared libraries that can be loaded (only ever called in a child process)."""
    problems = []
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            problems.append(str(error))
    raise Unreadable(problems[0] if problems else "no library was named")


@dataclass(frozen=True)
class Host:
    """One managed host, as the probe sees it."""

    root: str = ""
    machine: str = field(default_factory=lambda: os.uname().machine)
    release: str = field(default_factory=lambda: os.uname().release)
    uid: int = field(default_factory=os.geteuid)
    run: Callable[[Sequence[str], float], str] = run
    load_library: Callable[[Sequence[str]], Any] = load_library

    def resolve(self, path: str) -> str:
        """Follow every symlink of ``path`` inside the root; a loop raises OSError, a missing end does not."""
        if not self.root:
            return os.path.realpath(path)
        seen = 0
        done = "/"
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        while todo:
            part = todo.pop()
            if part == "..":
                done = os.path.dirname(done)
                continue
            step = os.path.join(done, part)
            try:
                target = os.readlink(self.root + step)
            except OSError:
                done = step
                continue
            seen += 1
            if seen > _SYMLINKS_FOLLOWED:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                done = "/"
            todo.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
        return done

    def at(self, path: str) -> str:
        """The real path to open for ``path``: symlinks stay inside the root."""
        return self.root + self.resolve(path) if self.root else path

    def open(self, path: str) -> BinaryIO:
        """Open a regular file for reading; a FIFO or a device can neither hold nor feed the reader."""
        descriptor = os.open(self.at(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unreadable(f"{path} is not a regular file")
            return open(descriptor, "rb", buffering=0)
        except BaseException:
            os.close(descriptor)
            raise

    def read_bytes(self, path: str, limit: int = MIB) -> bytes:
        """Return a file's content; a larger file than ``limit`` raises Unreadable."""
        with self.open(path) as file:
            data = file.read(limit + 1)
            while 0 < len(data) <= limit:  # files in /proc come page by page
                more = file.read(limit + 1 - len(data))
                if not more:
                    break
                data += more
        if len(data) > limit:
            raise Unreadable(f"{path} is larger than {limit // KIB} KiB")
        return data

    def head(self, path: str, size: int) -> str:
        """Return the first bytes of a file as text, in one read."""
        with self.open(path) as file:
            return file.read(size).decode("utf-8", "replace")

    def read(self, path: str, limit: int = MIB) -> str:
        """Return a file's text."""
        return self.read_bytes(path, limit).decode("utf-8", "replace")

    def text(self, path: str, limit: int = MIB) -> str | None:
        """Return a file's text, or None where there is no such file."""
        try:
            return self.read(path, limit)
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a folder; an absent folder is an empty one."""
        try:
            return sorted(os.listdir(self.at(path)))
        except OSError as error:
            if error.errno in ABSENT:
                return []
            raise

    def exists(self, path: str) -> bool:
        """Whether the path exists, symlinks followed."""
        try:
            return os.path.exists(self.at(path))
        except OSError:
            return False

    def is_dir(self, path: str) -> bool:
        """Whether the path is a folder, symlinks followed."""
        try:
            return os.path.isdir(self.at(path))
        except OSError:
            return False

    def link(self, path: str) -> str | None:
        """Return where a symlink points, or None where there is none."""
        try:
            return os.readlink(self._beside(path))
        except OSError:
            return None

    def lstat(self, path: str) -> os.stat_result | None:
        """Return the state of the path itself, or None where it is absent."""
        try:
            return os.lstat(self._beside(path))
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise

    def runnable(self, path: str) -> bool:
        """Whether the path ends at an executable file."""
        try:
            real = self.at(path)
        except OSError:
            return False
        return os.path.isfile(real) and os.access(real, os.X_OK)

    def _beside(self, path: str) -> str:
        """The real path of the entry itself: only the folders before it are resolved."""
        if not self.root:
            return path
        folder, name = os.path.split(path.rstrip("/") or "/")
        return os.path.join(self.at(folder), name)
