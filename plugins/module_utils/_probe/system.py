# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The operating system: what it is, which Pythons it has, how it started."""

from __future__ import annotations

import os
import re
import shlex
import time
from typing import Any

from .host import KIB, Host

_LATEST = 253402300799.0  # seconds; the end of the year 9999
_PYTHON = re.compile(r"python(3\.\d+)$")
_FAMILIES = (("debian", "debian"), ("ubuntu", "debian"), ("rhel", "redhat"), ("fedora", "redhat"), ("suse", "suse"))


def identity(host: Host) -> dict[str, Any]:
    """Return {id, version_id, codename, family} of the host."""
    return os_release(host.text("/etc/os-release") or "")


def os_release(text: str) -> dict[str, Any]:
    """Return {id, version_id, codename, family} from os-release(5)."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            try:
                values[name] = "".join(shlex.split(value))
            except ValueError:  # a quote that is not closed
                values[name] = value.strip("'\"")
    name = values.get("ID", "linux")
    like = f"{name} {values.get('ID_LIKE', '')}"
    return {
        "id": name,
        "version_id": values.get("VERSION_ID"),
        "codename": values.get("VERSION_CODENAME"),
        "family": next((family for word, family in _FAMILIES if word in like), name),
    }


def pythons(host: Host) -> dict[str, str]:
    """Return the interpreters that the system installed, by version; /usr/bin comes first."""
    found: dict[str, str] = {}
    for folder in ("/usr/bin", "/usr/local/bin"):
        for name in host.names(folder):
            match = _PYTHON.match(name)
            if match and host.runnable(f"{folder}/{name}"):
                found.setdefault(match.group(1), f"{folder}/{name}")
    return found


def init(host: Host) -> str | None:
    """Return the name of the service manager."""
    if host.is_dir("/run/systemd/system"):
        return "systemd"
    return (host.text("/proc/1/comm", KIB) or "").strip() or None


def boot_id(host: Host) -> str | None:
    """Return the kernel's id of this boot."""
    return (host.text("/proc/sys/kernel/random/boot_id", KIB) or "").strip() or None


def booted_at(host: Host) -> float | None:
    """Return when this boot began, by today's clock, in seconds since 1970."""
    uptime = host.text("/proc/uptime", KIB)
    return time.time() - float(uptime.split()[0]) if uptime else None


def utc(seconds: float) -> str:
    """Spell a time as documents do."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(max(seconds, 0), _LATEST)))


def glibc() -> str | None:
    """Return the version of the GNU C library, None on another one."""
    try:
        name, _space, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except ValueError:
        return None
    return version if name == "glibc" else None
