# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Driver packages, apt sources and pins, read from the package managers' own files."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from typing import Any, Iterator, Sequence

from . import rpm
from .host import KIB, MIB, Host, Unreadable, reason

_DPKG = "/var/lib/dpkg/status"
_DPKG_LIMIT = 64 * MIB
_LISTS = "/var/lib/apt/lists"
_NVIDIA_ORIGIN = re.compile(r"^Origin:\s*NVIDIA\s*$", re.MULTILINE)
_INDEX_VERSION = re.compile(rb"\nVersion: ([^\n]+)")
_UPDATES = "/var/lib/dpkg/updates"
_RPM_FOLDERS = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
_PROGRAMS = {"apt": ("/usr/bin/apt-get",), "dnf": ("/usr/bin/dnf", "/usr/bin/dnf5", "/usr/bin/microdnf")}
_DATABASES = {"apt": (_DPKG,), "dnf": _RPM_FOLDERS}
_USUAL = {"debian": "apt", "redhat": "dnf"}

# The names of the driver's packages in Debian, Ubuntu, RHEL, Fedora, RPM Fusion, SUSE and NVIDIA's own repositories.
_DRIVER = (
    r"(?:nvidia-|libnvidia-|libcuda1$|libcudadebugger1$|cuda-drivers|cuda-compat|cuda-keyring$|firmware-nvidia-"
    r"|linux-(?:modules|objects|signatures)-nvidia|xserver-xorg-video-nvidia|lib(?:gl1|glx|egl|gles|gl)-nvidia"
    r"|libnvcuvid1$|libnvoptix1$|libxnvctrl0$|a?kmod-nvidia|xorg-x11-(?:drv-)?nvidia|dnf-plugin-nvidia$|nvlsm$)"
)
# Not parts of a driver, though the name begins like one: container tools, toolkits, profilers.
_OTHER = re.compile(
    r"(?:lib)?nvidia-(?:container|docker|cuda-(?:toolkit|dev|gdb|doc|samples)|cudnn|nsight|profiler|visual-profiler"
    r"|texture-tools|gds|fs|ml-dev|egl-(?:wayland|gbm|x)|vaapi)"
)
_DRIVER_PACKAGE = re.compile(_DRIVER)
# Begins with a literal, which makes the search ten times as fast as one that is anchored with ^; feed it with a line end first.
_STANZA = re.compile(rb"\nPackage: (" + _DRIVER.replace("$", r"(?=\n)").encode() + rb"[^\n]*)(?=\n)")

# The state of a package that is neither installed nor gone, or has to be installed again.
_UNFINISHED = re.compile(rb"\nStatus: (?![^ \n]+ ok (?:installed|config-files|not-installed)\n)([^\n]*)")

# Whose version is the driver's, the most telling first; helpers such as nvidia-settings have numbers of their own.
_CORE = re.compile(
    r"libcuda1$|libnvidia-compute|nvidia-driver-cuda-libs|nvidia-driver-libs|nvidia-driver|cuda-drivers|nvidia-open"
    r"|nvidia-kernel|nvidia-dkms|kmod-nvidia|xorg-x11-drv-nvidia"
)
_MODULE_PACKAGE = re.compile(
    r"nvidia-(?:open-)?kernel-(?:open-)?(?:dkms|source)|nvidia-dkms|a?kmod-nvidia|linux-modules-nvidia"
)
_UPSTREAM = re.compile(r"(?:\d+:)?(\d{2,4}\.\d+(?:\.\d+)?)")
_PINNED = re.compile(r"nvidia|cuda", re.IGNORECASE)
_OPTION = re.compile(r"([a-z-]+)\s*=\s*(\S+)")
_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+:(?:\[[^\]]*\]\S*|\S+))\s+(\S+)((?:\s+\S+)*)\s*$")
_NO = ("no", "false", "without", "off", "disable", "0")  # apt's own list, apt-pkg/contrib/strutl.cc
_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")


def is_driver_package(name: str) -> bool:
    """Whether a package is a part of an NVIDIA driver, or steers which driver is installed."""
    return bool(_DRIVER_PACKAGE.match(name)) and not _OTHER.match(name)


@dataclass
class Inventory:
    """What the package database says: the driver's packages, and what an interrupted transaction left, in words for people."""

    packages: list[dict[str, Any]] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)


def manager(host: Host, family: str | None) -> str | None:
    """Return apt or dnf: what the distribution uses, whichever other database is there too; else what is there; or None."""
    usual = _USUAL.get(family or "")
    if usual:
        return usual if any(host.lstat(path) for path in (*_PROGRAMS[usual], *_DATABASES[usual])) else None
    return next((name for name, paths in _PROGRAMS.items() if any(host.exists(path) for path in paths)), None)


def inventory(host: Host, name: str | None, unknown: list[dict[str, str]]) -> Inventory:
    """Read the database of this package manager; without one (SUSE), that which is there."""
    if name == "dnf" or (name is None and host.lstat(_DPKG) is None):
        if not any(host.is_dir(folder) for folder in _RPM_FOLDERS):
            return Inventory()
        locks = rpm.locks(host) if rpm.locks_count(host) else []
        found = rpm_packages(rpm.installed(host, is_driver_package), locks)
        return Inventory(found, [*rpm.duplicates(found), *_dnf_interrupted(host, unknown)])
    if host.lstat(_DPKG) is None:
        return Inventory()
    status = host.read_bytes(_DPKG, _DPKG_LIMIT)
    # dpkg keeps what it changed last in files of their own until it merges them: after a kill these hold the truth.
    updates = [host.read_bytes(f"{_UPDATES}/{name}", MIB) for name in host.names(_UPDATES) if name.isdecimal()]
    found = dpkg_packages(status, updates)
    if any(package["source"] != "nvidia" for package in found):
        published = nvidia_publishes(host)
        for package in found:
            if (package["name"], package["version"]) in published:
                package["source"] = "nvidia"
    return Inventory(found, dpkg_interrupted(status, updates))


def _dnf_interrupted(host: Host, unknown: list[dict[str, str]]) -> list[str]:
    """Name dnf's last transaction where it was killed and had to do with the driver."""
    try:
        left = rpm.unfinished(host)
    except (OSError, ValueError, Unreadable) as error:
        unknown.append({"what": "driver.interrupted", "why": reason(error)})
        return []
    names = [name for name in left[1] if is_driver_package(name)] if left else []
    return [f"dnf transaction {left[0]} was interrupted: {', '.join(names)}"] if left and names else []


def dpkg_packages(status: bytes, updates: Sequence[bytes] = ()) -> list[dict[str, Any]]:
    """Parse dpkg's status file and what is to be merged into it. Only stanzas of driver packages are looked at."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for text in (status, *updates):
        for package in _driver_stanzas(b"\n" + text):
            found[package["name"], package["architecture"]] = package
    return [package for _key, package in sorted(found.items()) if package["state"] != "not-installed"]


def _driver_stanzas(text: bytes) -> Iterator[dict[str, Any]]:
    for match in _STANZA.finditer(text):
        name = match.group(1).decode("utf-8", "replace")
        end = text.find(b"\n\n", match.end())
        stanza = text[match.end() : end if end >= 0 else None].decode("utf-8", "replace")
        fields = _fields(stanza.splitlines())
        words = fields.get("status", "").split()
        if not _OTHER.match(name) and len(words) == 3:
            yield {
                "name": name,
                "version": fields.get("version"),
                "architecture": fields.get("architecture", ""),
                "source": "nvidia" if fields.get("section") == "NVIDIA" else origin(fields.get("maintainer", "")),
                "held": words[0] == "hold",
                "state": words[2],
            }


def dpkg_interrupted(status: bytes, updates: Sequence[bytes] = ()) -> list[str]:
    """Name what ``dpkg --audit`` would: every package, the driver's or not, that is neither installed nor gone."""
    unfinished = _unfinished(status)
    for text in updates:
        for name in re.findall(rb"^Package: ([^\n]+)$", text, re.MULTILINE):
            unfinished.pop(name.decode("utf-8", "replace"), None)
        unfinished.update(_unfinished(text))
    found = [f"{name} is {state}" for name, state in sorted(unfinished.items())]
    if updates:
        found.append(f"dpkg was interrupted: {len(updates)} changes in {_UPDATES} wait to be merged")
    return found


def _unfinished(text: bytes) -> dict[str, str]:
    """Names and states; fast, for a status file has megabytes and usually nothing of this."""
    found = {}
    text = b"\n" + text
    for match in _UNFINISHED.finditer(text):
        start = max(text.rfind(b"\n\n", 0, match.start() + 1), 0)
        name = re.search(rb"\nPackage: ([^\n]+)", text[start : match.start() + 1])
        words = match.group(1).decode("utf-8", "replace").split()
        if name and len(words) == 3:
            again = " and has to be installed again" if words[1] == "reinstreq" else ""
            found[name.group(1).decode("utf-8", "replace")] = words[2] + again
    return found


def nvidia_publishes(host: Host) -> set[tuple[str, str]]:
    """Return (name, version) of the driver packages in the lists of repositories whose origin is NVIDIA.

    NVIDIA's packages are built from the packaging of Debian and Ubuntu, so a stanza alone may name their maintainers.
    """
    found: set[tuple[str, str]] = set()
    names = host.names(_LISTS)
    for release in names:
        prefix, _bar, kind = release.rpartition("_")
        if kind not in ("InRelease", "Release") or not _NVIDIA_ORIGIN.search(host.head(f"{_LISTS}/{release}", 4 * KIB)):
            continue
        for name in names:
            if name.startswith(prefix) and name.endswith("_Packages"):
                found.update(_published(host.read_bytes(f"{_LISTS}/{name}", _DPKG_LIMIT)))
    return found


def _published(index: bytes) -> Iterator[tuple[str, str]]:
    """Name and version of the driver packages in a Packages file."""
    index = b"\n" + index
    for match in _STANZA.finditer(index):
        end = index.find(b"\n\n", match.end())
        version = _INDEX_VERSION.search(index, match.end(), end if end >= 0 else len(index))
        if version:
            yield match.group(1).decode("utf-8", "replace"), version.group(1).decode("utf-8", "replace")


def rpm_packages(found: Sequence[dict[str, str]], locks: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Describe what rpm knows of the driver's packages; a version lock holds a package as apt's hold does."""
    described = [
        {
            "name": package["name"],
            "version": package["version"],
            "architecture": package["architecture"],
            "source": origin(package["vendor"]),
            "held": rpm.locked(package, locks),
            "state": "installed",
        }
        for package in found
    ]
    return sorted(described, key=lambda package: (package["name"], package["architecture"], package["version"]))


def origin(maintainer: str) -> str:
    """Tell NVIDIA's own packages from the distribution's, by maintainer or vendor."""
    words = maintainer.lower()
    if "nvidia.com" in words or words.startswith("nvidia"):
        return "nvidia"
    return (
        "distro"
        if re.search(r"debian|ubuntu|canonical|red hat|centos|fedora|rocky|alma|oracle|suse|rpm ?fusion", words)
        else "unknown"
    )


def summary(packages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return {version, source, flavor} of the installed driver, as far as package names and versions tell."""
    here = [package for package in packages if package["state"] != "config-files"]
    core = sorted(
        (package for package in here if _CORE.match(package["name"]) and "pinning" not in package["name"]),
        key=lambda package: (
            not package["name"].startswith(("libcuda1", "libnvidia-compute", "nvidia-driver-cuda-libs"))
        ),
    )
    versions = [match.group(1) for match in (_UPSTREAM.match(package["version"] or "") for package in core) if match]
    sources = [package["source"] for package in core if package["source"] != "unknown"]
    modules = [package["name"] for package in here if _MODULE_PACKAGE.match(package["name"])]
    flavors = {"open" if "open" in name else "proprietary" for name in modules}
    return {
        "version": versions[0] if versions else None,
        "source": sources[0] if sources else None,
        "flavor": flavors.pop() if len(flavors) == 1 else None,
    }


def apt_sources(host: Host, unknown: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return every binary package source that apt uses."""
    files = ["/etc/apt/sources.list"]
    files += [
        f"/etc/apt/sources.list.d/{name}"
        for name in host.names("/etc/apt/sources.list.d")
        if name.endswith((".list", ".sources"))
    ]
    found = []
    for path in files:
        try:
            text = host.text(path)
        except OSError as error:
            unknown.append({"what": f"os.apt.sources[{path}]", "why": str(error.strerror)})
            continue
        parse = deb822_sources if path.endswith(".sources") else one_line_sources
        found += [{"file": path, **source} for source in parse(text or "")]
    return found


def one_line_sources(text: str) -> Iterator[dict[str, Any]]:
    """Parse the one-line style of sources.list(5)."""
    for line in text.splitlines():
        match = _ONE_LINE.match(line.partition("#")[0].strip())
        if match:
            options, uri, suite, components = match.groups()
            yield {
                "uris": [_CREDENTIALS.sub("", uri)],
                "suites": [suite],
                "components": components.split(),
                "signed_by": dict(_OPTION.findall(options or "")).get("signed-by"),
            }


def deb822_sources(text: str) -> Iterator[dict[str, Any]]:
    """Parse the deb822 style of sources.list(5)."""
    for fields in _stanzas(text):
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in _NO:
            continue
        signed_by = fields.get("signed-by", "")
        yield {
            "uris": [_CREDENTIALS.sub("", uri) for uri in fields.get("uris", "").split()],
            "suites": fields.get("suites", "").split(),
            "components": fields.get("components", "").split(),
            "signed_by": "inline" if "BEGIN PGP" in signed_by else " ".join(signed_by.split()) or None,
        }


def pins(host: Host) -> list[dict[str, Any]]:
    """Return the pins and version locks that concern the driver."""
    files = ["/etc/apt/preferences"]
    files += [
        f"/etc/apt/preferences.d/{name}"
        for name in host.names("/etc/apt/preferences.d")
        if name.endswith(".pref") or "." not in name
    ]
    found = []
    for path in files:
        for pin in preferences(host.text(path) or ""):
            found.append({"file": path, **pin, "from_package": _owner(host, path)})
    return found + [lock for lock in rpm.locks(host) if _PINNED.search(lock["pin"]) or _PINNED.search(lock["packages"])]


def preferences(text: str) -> Iterator[dict[str, Any]]:
    """Parse apt_preferences(5); only records that name NVIDIA or CUDA concern the driver."""
    for fields in _stanzas(text):
        pin = " ".join(fields.get("pin", "").split())
        packages = " ".join(fields.get("package", "").split())
        if not pin or not _PINNED.search(f"{packages} {pin}"):
            continue
        priority = fields.get("pin-priority", "").strip()
        kind, _space, value = pin.partition(" ")
        yield {
            "packages": packages,
            "version": value.strip() if kind.lower() == "version" else None,
            "pin": pin,
            "priority": int(priority) if re.match(r"-?\d+$", priority) else None,
        }


def _owner(host: Host, path: str) -> str | None:
    """Return the package that ships a preferences file; only pinning packages and keyrings are looked through."""
    folder = "/var/lib/dpkg/info"
    names = host.names(folder)
    for pattern in ("nvidia-*pin*.list", "cuda-*.list"):
        for name in fnmatch.filter(names, pattern):
            if path in (host.text(f"{folder}/{name}") or "").split("\n"):
                return name[: -len(".list")].partition(":")[0]
    return None


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Split a deb822 text into records; comment lines do not end one."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if line.strip():
            lines.append(line)
        elif lines:
            yield _fields(lines)
            lines = []


def _fields(lines: list[str]) -> dict[str, str]:
    """Return the fields of one record by lower-case name; folded lines are joined with line ends."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t"):
            if name:
                fields[name] += "\n" + line.strip()
            continue
        name, _colon, value = line.partition(":")
        name = name.strip().lower()
        fields[name] = value.strip()
    return fields
