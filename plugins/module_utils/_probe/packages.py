# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Driver packages, apt sources and pins, read from the package managers' own files."""

from __future__ import annotations

import fnmatch
import re
from typing import Any, Iterator

from .host import KIB, MIB, Host

_DPKG = "/var/lib/dpkg/status"
_DPKG_LIMIT = 64 * MIB
_LISTS = "/var/lib/apt/lists"
_NVIDIA_ORIGIN = re.compile(r"^Origin:\s*NVIDIA\s*$", re.MULTILINE)
_INDEX_VERSION = re.compile(rb"\nVersion: ([^\n]+)")
_RPM_FOLDERS = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
_RPM_LIMIT = 20.0

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


def installed(host: Host) -> list[dict[str, Any]]:
    """Return the host's driver packages, by name."""
    if host.exists(_DPKG):
        found = dpkg_packages(host.read_bytes(_DPKG, _DPKG_LIMIT))
        if any(package["source"] != "nvidia" for package in found):
            published = nvidia_publishes(host)
            for package in found:
                if (package["name"], package["version"]) in published:
                    package["source"] = "nvidia"
        return found
    if any(host.is_dir(folder) for folder in _RPM_FOLDERS):
        form = "%{NAME}\\t%{EPOCHNUM}\\t%{VERSION}-%{RELEASE}\\t%{VENDOR} %{PACKAGER}\\n"
        return rpm_packages(host.run(["rpm", "-qa", "--queryformat", form, "*nvidia*", "*cuda*", "nvlsm"], _RPM_LIMIT))
    return []


def dpkg_packages(status: bytes) -> list[dict[str, Any]]:
    """Parse dpkg's status file. Only stanzas of driver packages are looked at: the file has megabytes."""
    found = []
    status = b"\n" + status
    for match in _STANZA.finditer(status):
        name = match.group(1).decode("utf-8", "replace")
        end = status.find(b"\n\n", match.end())
        stanza = status[match.end() : end if end >= 0 else None].decode("utf-8", "replace")
        fields = _fields(stanza.splitlines())
        words = fields.get("status", "").split()
        if _OTHER.match(name) or len(words) != 3 or words[2] == "not-installed":
            continue
        found.append(
            {
                "name": name,
                "version": fields.get("version"),
                "source": "nvidia" if fields.get("section") == "NVIDIA" else origin(fields.get("maintainer", "")),
                "held": words[0] == "hold",
                "state": words[2],
            }
        )
    return sorted(found, key=lambda package: package["name"])


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


def rpm_packages(text: str) -> list[dict[str, Any]]:
    """Parse the output of rpm -qa: name, epoch, version-release and vendor, separated by tabs."""
    found = []
    for line in text.splitlines():
        columns = line.split("\t")
        if len(columns) != 4 or not is_driver_package(columns[0]):
            continue
        name, epoch, version, vendor = columns
        found.append(
            {
                "name": name,
                "version": version if epoch in ("0", "(none)") else f"{epoch}:{version}",
                "source": origin(vendor),
                "held": False,
                "state": "installed",
            }
        )
    return sorted(found, key=lambda package: package["name"])


def origin(maintainer: str) -> str:
    """Tell NVIDIA's own packages from the distribution's, by maintainer or vendor."""
    words = maintainer.lower()
    if "nvidia.com" in words or words.startswith("nvidia"):
        return "nvidia"
    return (
        "distro"
        if re.search(r"debian|ubuntu|canonical|red hat|fedora|rocky|alma|suse|rpm ?fusion", words)
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
    lock = "/etc/dnf/plugins/versionlock.list"
    for line in (host.text(lock) or "").splitlines():
        if _PINNED.search(line) and not line.lstrip().startswith("#"):
            found.append(
                {
                    "file": lock,
                    "packages": line.strip(),
                    "version": None,
                    "pin": None,
                    "priority": None,
                    "from_package": None,
                }
            )
    return found


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
