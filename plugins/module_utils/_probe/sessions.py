# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Who is logged in, and what holds a reboot off, from the files that systemd-logind keeps."""

from __future__ import annotations

import re
import struct

from .host import KIB, MIB, Host, Unreadable

_SESSIONS = "/run/systemd/sessions"
_INHIBITORS = "/run/systemd/inhibit"
_LIMIT = 64 * KIB
_GRAPHICAL = ("x11", "wayland", "mir")
_OWN = re.compile(r"session-([^/\n]+)\.scope")
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|[0-7]{3}|.)")
_PLAIN = {"n": "\n", "t": "\t", "s": " "}
# struct utmp of utmp(5): type, process, line, id, user, host; what follows differs in length between machines.
_UTMP = struct.Struct("<hxxi32s4s32s256s")
_UTMP_SIZES = {"aarch64": 400}
_USER_PROCESS = 7


def sessions(host: Host) -> list[dict[str, str]]:
    """Return {user, kind} of everybody who is logged in, without the session that this observation runs in."""
    if not host.is_dir(_SESSIONS):
        return utmp(host.read_bytes("/run/utmp", MIB), host.machine) if host.exists("/run/utmp") else []
    own = _OWN.findall(host.text("/proc/self/cgroup", _LIMIT) or "")
    found = []
    for name in host.names(_SESSIONS):
        if name in own or name.endswith(".ref") or name.startswith("."):
            continue
        session = properties(host.text(f"{_SESSIONS}/{name}", _LIMIT) or "")
        if session.get("STATE") == "closing" or not session.get("CLASS", "user").startswith("user"):
            continue  # login screens and background services are nobody who works here
        kind = (
            "graphical"
            if session.get("TYPE") in _GRAPHICAL
            else "remote"
            if session.get("REMOTE") == "1"
            else "terminal"
        )
        found.append({"user": session.get("USER") or session.get("UID") or "?", "kind": kind})
    return found


def inhibitors(host: Host) -> list[dict[str, str]]:
    """Return {who, why} of the inhibitors that block a reboot; those that only delay it do not count."""
    found = []
    for name in host.names(_INHIBITORS):
        if name.endswith(".ref") or name.startswith("."):
            continue
        lock = properties(host.text(f"{_INHIBITORS}/{name}", _LIMIT) or "")
        if lock.get("MODE") == "block" and "shutdown" in lock.get("WHAT", "").split(":"):
            found.append({"who": lock.get("WHO") or "?", "why": lock.get("WHY") or "it does not say why"})
    return found


def properties(text: str) -> dict[str, str]:
    """Parse NAME=value lines as systemd writes them, with C escapes in the values."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            if value[:1] == '"' == value[-1:] and len(value) > 1:
                value = value[1:-1]
            found[name] = _ESCAPE.sub(_unescape, value)
    return found


def _unescape(match: re.Match[str]) -> str:
    code = match.group(1)
    if code[0] == "x" and len(code) == 3:
        return chr(int(code[1:], 16))
    return chr(int(code, 8)) if len(code) == 3 else _PLAIN.get(code, code)


def utmp(data: bytes, machine: str = "x86_64") -> list[dict[str, str]]:
    """Parse utmp(5), which hosts without systemd-logind have."""
    size = _UTMP_SIZES.get(machine, 384)
    if len(data) % size:
        raise Unreadable("/run/utmp has another layout than this machine's")
    found = []
    for offset in range(0, len(data), size):
        kind, _process, line, _id, user, origin = _UTMP.unpack_from(data, offset)
        if kind != _USER_PROCESS:
            continue
        where, remote, name = (part.split(b"\0")[0].decode("utf-8", "replace") for part in (line, origin, user))
        graphical = where.startswith(":") or remote.startswith(":")
        found.append({"user": name or "?", "kind": "graphical" if graphical else "remote" if remote else "terminal"})
    return found
