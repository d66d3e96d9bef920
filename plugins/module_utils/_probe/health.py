# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Disk, clock and package manager locks: what stops an installation before it starts."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from typing import Any

from .._release import mounts
from .host import ABSENT, KIB, MIB, Host

# Locked with fcntl(2) by apt, dpkg, rpm; the file itself stays.
_LOCKED_FILES = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
    "/usr/lib/sysimage/rpm/.rpm.lock",
    "/var/lib/rpm/.rpm.lock",
    "/run/dnf/rpmtransaction.lock",
)
# Present while held, with the holder's process id inside (dnf, zypper).
_PID_FILES = (
    "/var/cache/dnf/metadata_lock.pid",
    "/var/cache/dnf/download_lock.pid",
    "/var/lib/dnf/rpmdb_lock.pid",
    "/run/zypp.pid",
)
# Locked with flock(2) by the role while it changes drivers; that goes on when its connection is lost.
_OWN_LOCK = "/run/gpufleet-driver.lock"
_TRANSACTION_LOCKS = (
    _OWN_LOCK,
    "/var/lib/dpkg/",
    "/usr/lib/sysimage/rpm/",
    "/var/lib/rpm/",
    "/run/dnf/",
    "/var/lib/dnf/",
    "/run/zypp.pid",
)
# struct flock on 64-bit Linux: type, whence, start, length, process id
_FLOCK = "hhqqi"
_SYNCHRONIZED_BELOW = 16_000_000  # microseconds of adjtimex(2)'s maxerror; the same limit as systemd-timedated's


class _Timex(ctypes.Structure):
    """The first fields of struct timex on 64-bit Linux; the rest is room for the kernel to write."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 512),
    ]


def disk(host: Host, root: str) -> dict[str, dict[str, Any]]:
    """Return what is free where ``root`` is, or will be, on which kind of file system that is, and whether nothing can be written there."""
    path = root
    while not host.exists(path) and path not in ("/", ""):
        path = os.path.dirname(path)
    state = os.statvfs(host.at(path or "/"))
    kind = mounts.kind_of(host.resolve(path or "/"), host.text(mounts.PATH, MIB) or "")
    free = {"free_mib": state.f_bavail * state.f_frsize // MIB, "free_inodes": state.f_favail}
    return {root: {**free, "file_system": kind, "read_only": bool(state.f_flag & os.ST_RDONLY)}}


def clock_synchronized(host: Host) -> bool | None:
    """Return whether the clock follows a time source, as timedatectl would say it."""
    if host.exists("/run/systemd/timesync/synchronized"):
        return True
    if host.root:
        return None  # a made-up tree has no kernel to ask
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "adjtimex")
    return timex.maxerror < _SYNCHRONIZED_BELOW


def locks(host: Host, unknown: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the locks that keep packages from being changed, with their holders: the package managers' and our own."""
    found = package_locks(host, unknown)
    own = _flock_holder(host, _OWN_LOCK)
    if own is not None:
        found.append({"path": _OWN_LOCK, "holder": _holder(host, own)})
    return found


def package_locks(host: Host, unknown: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the package managers' locks that are held, with their holders; never waits and never takes one."""
    found = []
    for path in _LOCKED_FILES:
        try:
            if host.resolve(path) != path and host.resolve(path) in _LOCKED_FILES:
                continue  # rpm's old folder is a link to the new one
            pid = _lock_holder(host, path)
        except OSError as error:
            if error.errno not in ABSENT:
                unknown.append({"what": f"health.locks[{path}]", "why": str(error)})
            continue
        if pid is not None:
            found.append({"path": path, "holder": _holder(host, pid)})
    for path in _PID_FILES:
        text = (host.text(path, KIB) or "").strip()
        if text.isdecimal() and host.exists(f"/proc/{text}"):
            found.append({"path": path, "holder": _holder(host, int(text))})
    return found


def _flock_holder(host: Host, path: str) -> int | None:
    """Return the process that holds a file with flock(2), as proc_locks(5) says it, or None; asking would mean taking it."""
    state = host.lstat(path)
    if state is None:
        return None
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    for line in (host.text("/proc/locks", MIB) or "").splitlines():
        words = (
            line.split()
        )  # number, FLOCK, ADVISORY, WRITE, process, device:inode, start, end; waiters have -> after the number
        if len(words) == 8 and words[1] == "FLOCK" and words[5] == device:
            return int(words[4]) if words[4].isdecimal() else 0
    return None


def _lock_holder(host: Host, path: str) -> int | None:
    """Return the process that holds a file's lock (0: one that cannot be seen from here), or None."""
    with host.open(path) as file:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return None if answer[0] == fcntl.F_UNLCK else max(answer[-1], 0)


def _holder(host: Host, pid: int) -> str:
    command = (host.text(f"/proc/{pid}/comm", KIB) or "").strip() if pid else ""
    return f"{command} (process {pid})" if command else f"process {pid}" if pid else "a process of another container"


def changing_packages(held: list[dict[str, Any]]) -> str | None:
    """Return who changes packages right now, or None; a lock of the lists or the download folder changes none."""
    return next((lock["holder"] for lock in held if lock["path"].startswith(_TRANSACTION_LOCKS)), None)
