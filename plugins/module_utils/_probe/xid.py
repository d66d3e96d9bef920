# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The driver's Xid messages of this boot and the last 30 days. Runs in a child process only.

This boot's come from the kernel's ring buffer, which forgets its oldest lines, and with the earlier ones from the journal,
which may have stopped. What both have counts once: the kernel's own time stamp tells.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from typing import Any, Iterable, Iterator, NamedTuple

from . import child, sysfs, system
from .host import ABSENT, MIB, Host, Unreadable, reason
from .xid_catalogue import describe

KMSG = "/dev/kmsg"
_KMSG_DEVICE = os.makedev(1, 11)
_KMSG_LIMIT, _KMSG_SECONDS = 16 * MIB, 1.0  # a kernel may log faster than we read
_RECORD = 16 * 1024  # more than the longest record; a shorter read is refused
_JOURNALS = ("/var/log/journal", "/run/log/journal")
_JOURNAL_NOTHING = 1  # the status of journalctl --grep that finds nothing
_JOURNAL_COMMAND = (
    *("journalctl", "--quiet", "--system", "--since=-30days", "--grep=^NVRM: Xid", "--lines=5000", "--output=json"),
    "--output-fields=MESSAGE,_BOOT_ID,_SOURCE_MONOTONIC_TIMESTAMP,_SOURCE_BOOTTIME_TIMESTAMP",
    "_TRANSPORT=kernel",
)
_MOST = 100  # entries of the result
_LONGEST = 300  # characters of a message

# NVRM: Xid (PCI:0000:01:00): 31, pid=812, name=python, Ch 00000008, ...     (a part of a GPU: (PCI:0000:01:00 GPU-I:03))
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2})[^)]{0,40}\): (\d{1,5}), ?(.*)",
    re.IGNORECASE | re.DOTALL,
)
_WHO = re.compile(r"pid='?(<unknown>|\d{1,10})'?, (?:name=(.{0,40}?), )?(.*)", re.DOTALL)
_KMSG_RECORD = re.compile(r"\d+,\d+,(\d{1,18}),[^;]{0,100};(NVRM: Xid.*)")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


class Line(NamedTuple):
    """One Xid message as a log has it."""

    boot: str  # the boot's id, without hyphens
    clock: int  # microseconds since that boot, as the kernel stamped it
    at: float  # seconds since 1970
    address: str
    number: int
    text: str


def read(host: Host, time_limit: float) -> dict[str, Any]:
    """Return {events, unknown}; ``events`` is None where no log can be read. The journal gets half of the time."""
    boot = (system.boot_id(host) or "").replace("-", "")
    unknown: list[dict[str, str]] = []
    found: dict[tuple[Any, ...], Line] = {}
    readable = False
    for source, lines_of in (
        ("the journal", lambda: _journal(host, time_limit / 2)),
        (KMSG, lambda: _kmsg(host, boot)),
    ):
        try:
            lines = lines_of()
        except (Unreadable, child.NoAnswer, OSError) as error:
            unknown.append({"what": "health.xid", "why": f"{source}: {reason(error)}"})
            continue
        readable = readable or lines is not None
        for line in lines or ():
            found.setdefault((line.boot, line.clock, line.address, line.number), line)
    if not readable and not unknown:
        unknown.append({"what": "health.xid", "why": f"there is neither {KMSG} nor a journal"})
    return {"events": events(found.values(), boot) if readable else None, "unknown": unknown}


def _journal(host: Host, time_limit: float) -> Iterable[Line] | None:
    if not any(host.names(folder) for folder in _JOURNALS):
        return None
    if host.uid != 0:
        raise Unreadable("only root may read it")
    try:
        return journal_lines(host.run(_JOURNAL_COMMAND, time_limit))
    except child.NoAnswer as error:
        if error.status != _JOURNAL_NOTHING:
            raise
        # Its status where it cannot search at all is the same.
        if "-PCRE2" in host.run(("journalctl", "--version"), time_limit):
            raise Unreadable("journalctl was built without PCRE2 and cannot search") from None
        return ()


def _kmsg(host: Host, boot: str) -> Iterable[Line] | None:
    data = _ring_buffer(host)
    booted_at = system.booted_at(host)
    if data is None or booted_at is None:
        return None
    return kmsg_lines(data.decode("utf-8", "replace"), boot, booted_at)


def _ring_buffer(host: Host) -> bytes | None:
    """Return what the kernel's ring buffer holds, or None where there is none to read."""
    try:
        descriptor = os.open(host.at(KMSG), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise
    data = bytearray()
    until = time.monotonic() + _KMSG_SECONDS
    try:
        state = os.fstat(descriptor)
        real = stat.S_ISCHR(state.st_mode) and state.st_rdev == _KMSG_DEVICE
        if not real and not (host.root and stat.S_ISREG(state.st_mode)):
            return None  # some containers have the console or /dev/null in its place
        while len(data) < _KMSG_LIMIT and time.monotonic() < until:
            try:
                record = os.read(descriptor, _RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # the kernel needed the space of what would have been next
            if not record:
                break
            data += record
    finally:
        os.close(descriptor)
    return bytes(data)


def kmsg_lines(text: str, boot: str, booted_at: float) -> Iterator[Line]:
    """Parse records of /dev/kmsg; what a record says beside its message begins with a space, on lines of its own."""
    for record in text.split("\n"):
        match = _KMSG_RECORD.match(record)
        if match:
            clock = int(match.group(1))
            message = _ESCAPED.sub(lambda found: chr(int(found.group(1), 16)), match.group(2))
            yield from _line(message, boot, clock, booted_at + clock / 1e6)


def journal_lines(text: str) -> Iterator[Line]:
    """Parse what journalctl writes as JSON, an entry a line; a message that is no text is a list of bytes, or null."""
    for entry in text.split("\n"):
        try:
            row = json.loads(entry)
            message = row["MESSAGE"]
            if isinstance(message, list):
                message = bytes(message).decode("utf-8", "replace")
            clock = int(row.get("_SOURCE_BOOTTIME_TIMESTAMP") or row["_SOURCE_MONOTONIC_TIMESTAMP"])
            yield from _line(message, str(row["_BOOT_ID"]), clock, int(row["__REALTIME_TIMESTAMP"]) / 1e6)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue  # no entry, or one without what is needed


def _line(message: str, boot: str, clock: int, at: float) -> Iterator[Line]:
    match = _XID.match(message)
    address = match and sysfs.pci_address(f"{match.group(1)}.0")
    if match and address:
        yield Line(boot, clock, at, address, int(match.group(2)), match.group(3))


def events(lines: Iterable[Line], boot: str) -> list[dict[str, Any]]:
    """Count the messages of a boot with one GPU and number as one event; the newest last."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in sorted(lines, key=lambda one: (one.at, one.clock)):
        event = found.setdefault((line.boot, line.address, line.number), {})
        if not event:
            who = _WHO.match(line.text)
            pid, name, text = who.groups() if who else (None, None, line.text)
            known = describe(line.number)
            event.update(
                at=system.utc(line.at),
                this_boot=line.boot == boot,
                pci_address=line.address,
                number=line.number,
                title=known.title,
                action=known.action,
                severity=known.severity,
                process=_process(pid, name),
                text=_clean(text),
                count=0,
            )
        event["last_at"] = system.utc(line.at)
        event["count"] += 1
    return sorted(found.values(), key=lambda event: (event["this_boot"], event["last_at"]))[-_MOST:]


def _process(pid: str | None, name: str | None) -> str | None:
    if pid is None or not pid.isdecimal():
        return None
    return f"{_clean(name)} ({pid})" if name else f"process {pid}"


def _clean(text: str) -> str:
    """One line that does nothing to a terminal: programs choose their names, and so what the driver says of them."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST]).strip()
