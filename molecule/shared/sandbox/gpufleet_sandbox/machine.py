# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that carries the sandbox: packages, mirrors, certificates. Registry names come from here only."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .settings import SandboxError
from .shell import run, say, step

# What has to be there for which program.
PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "gpg": "gnupg",
    "gcc": "gcc",
    "ssh": "openssh-client",
    "dpkg-deb": "dpkg",
    "openssl": "openssl",
    "rpmbuild": "rpm",
    "createrepo_c": "createrepo-c",
}
FILES = {
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}


def install_requirements() -> None:
    """Install with apt what the sandbox needs and the machine lacks."""
    if os.geteuid() != 0:
        raise SandboxError("the sandbox makes containers and file systems: run it as root.")
    if not shutil.which("apt-get"):
        raise SandboxError("the sandbox is built with Debian's tools: run it on Debian 12.")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    missing += [package for file, package in FILES.items() if not os.path.exists(file)]
    if not missing:
        return
    install_packages(*missing)


def install_packages(*names: str) -> None:
    """Install Debian packages on this machine."""
    with step(f"installing {' '.join(names)} on this machine"):
        apt = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq")
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(*apt, "update", env=quiet)
        run(*apt, "install", "--yes", "--no-install-recommends", *names, env=quiet)


@dataclass(frozen=True)
class AptSource:
    """One place that apt is configured to read."""

    uri: str
    suite: str


def apt_sources(files: list[tuple[str, str]]) -> list[AptSource]:
    """Every source in the (name, text) of apt's configuration files, in both formats."""
    found = []
    for name, text in files:
        if name.endswith(".sources"):
            for stanza in re.split(r"\n\s*\n", text):
                stanza = re.sub(r"^#.*\n?", "", stanza, flags=re.MULTILINE)
                fields = {
                    key.lower(): " ".join(value.split())
                    for key, value in re.findall(r"^([A-Za-z-]+):((?:.*(?:\n[ \t].*)*))", stanza, re.MULTILINE)
                }
                if fields.get("enabled", "yes").lower() == "no" or "deb" not in fields.get("types", "").split():
                    continue
                found += [
                    AptSource(uri.rstrip("/"), suite)
                    for uri in fields.get("uris", "").split()
                    for suite in fields.get("suites", "").split()
                ]
        elif name.endswith(".list"):
            for match in re.finditer(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
                found.append(AptSource(match[1].rstrip("/"), match[2]))
    return found


@dataclass(frozen=True)
class Mirrors:
    """Where this machine gets Debian from."""

    main: str
    security: str | None

    def lines(self, suite: str) -> list[str]:
        """sources.list lines for a Debian release."""
        lines = [f"deb {self.main} {name} main contrib" for name in (suite, f"{suite}-updates")]
        if self.security:
            lines.append(f"deb {self.security} {suite}-security main contrib")
        return lines


def debian_mirrors(sources: list[AptSource], codename: str) -> Mirrors:
    """Pick Debian's mirrors out of what apt is configured to read."""
    main = next((source.uri for source in sources if source.suite == codename), None)
    if main is None:
        raise SandboxError(
            f"apt on this machine has no source for {codename}: the sandbox takes Debian's mirror from there."
        )
    security = next((source.uri for source in sources if source.suite == f"{codename}-security"), None)
    return Mirrors(main, security)


def this_machines_mirrors() -> Mirrors:
    """The mirrors that this machine's apt is configured to use."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    if release.get("ID") != "debian":
        raise SandboxError(
            f"this machine is {release.get('PRETTY_NAME', 'not Debian')}: the sandbox is built on Debian 12."
        )
    names = ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]
    files = [(name, Path(name).read_text(errors="replace")) for name in names if os.path.isfile(name)]
    return debian_mirrors(apt_sources(files), release["VERSION_CODENAME"])


def apt_proxy() -> str | None:
    """The proxy that this machine's apt uses, if any."""
    match = re.search(r"='(.*)'", run("apt-config", "shell", "PROXY", "Acquire::http::Proxy"))
    return match[1] if match else None


def local_certificates() -> list[Path]:
    """Certificate authorities that only this machine knows."""
    return sorted(Path("/usr/local/share/ca-certificates").glob("**/*.crt"))


def digest(*parts: str | bytes) -> str:
    """A short name for exactly this content."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()[:12]


INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")


def allow_inotify(new_hosts: int, limit: Path = INOTIFY_LIMIT) -> None:
    """Let the kernel hand out the inotify instances that more hosts need: without, systemd and udev do not come up, and say nothing.

    A host with systemd holds six, and about ten while somebody works on it. The limit is one for all of root's processes, those in
    containers too; raising it costs nothing until instances are used, and lasts until the next boot.
    """
    used = sum(1 for name in glob.iglob("/proc/[0-9]*/fd/*") if _is_inotify(name))
    needed = used + 12 * new_hosts
    allowed = int(limit.read_text())
    if not new_hosts or needed <= allowed:
        return
    wanted = max(1024, needed)
    try:
        limit.write_text(f"{wanted}\n")
    except OSError as error:
        raise SandboxError(
            f"{new_hosts} more hosts need {needed} inotify instances, {limit} allows {allowed} and cannot be changed"
            f" ({error.strerror}). Remedy: end other fleets, or sysctl fs.inotify.max_user_instances={wanted}."
        ) from error
    say(f"raised fs.inotify.max_user_instances from {allowed} to {wanted}, until this machine boots again")


def _is_inotify(descriptor: str) -> bool:
    try:
        return os.readlink(descriptor) == "anon_inode:inotify"
    except OSError:
        return False
