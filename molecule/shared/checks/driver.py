# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVIDIA driver of a host, as dpkg and apt, or rpm and dnf, and modinfo and systemctl see it."""

from __future__ import annotations

import json
import re
from typing import Any

from testinfra.host import Host

JOURNAL = "/var/lib/gpufleet/driver.json"
SOURCES = "/etc/apt/sources.list.d/gpufleet-nvidia.sources"
KEY = "/etc/apt/keyrings/gpufleet-nvidia.asc"
BLOCK_LIST = "/etc/modprobe.d/gpufleet-nouveau.conf"
ARCHIVE_SOURCES = "/etc/apt/sources.list.d/gpufleet-archive.sources"
PREFERENCES = "/etc/apt/preferences.d/gpufleet-nvidia"
REPOSITORY, RPM_KEY = "/etc/yum.repos.d/gpufleet-nvidia.repo", "/etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia"
OURS = (SOURCES, ARCHIVE_SOURCES, KEY, PREFERENCES, REPOSITORY, RPM_KEY, BLOCK_LIST, "/var/lib/gpufleet")
# What brings the modules: NVIDIA's packages for Debian, Debian's own, Enterprise Linux, Ubuntu, Ubuntu's compiled ones.
KERNEL_PACKAGES = {
    "open": re.compile(
        r"nvidia-kernel-open-dkms|nvidia-open-kernel-dkms|kmod-nvidia-open-dkms|nvidia-dkms-(\d+-)?open"
        r"|linux-modules-nvidia-\d+-open-.*"
    ),
    "proprietary": re.compile(
        r"nvidia-kernel-dkms|kmod-nvidia-latest-dkms|nvidia-dkms(-\d+)?|linux-modules-nvidia-\d+-(?!open-).*"
    ),
}
DRIVER = re.compile(
    r"(lib)?nvidia-|libcuda|cuda-|firmware-nvidia|xserver-xorg-video-nvidia|kmod-nvidia|xorg-x11-nvidia"
    r"|linux-(modules|objects|signatures)-nvidia|libxnvctrl"
)
# What has a version of its own, or no driver in it.
OTHER_VERSIONS = re.compile(
    r"nvidia-driver-pinning|nvidia-container|libnvidia-container|cuda-keyring|dnf-plugin-nvidia|linux-.*-nvidia|nvidia-support"
    r"|nvidia-installer-cleanup|nvidia-kernel-common$|nvidia-modprobe|nvidia-prime|nvidia-settings|nvidia-xconfig|libxnvctrl"
)


def output(host: Host, command: str, *arguments: str) -> str:
    """Return what a command prints; it must succeed."""
    result = host.run(command, *arguments)
    assert result.rc == 0, f"{result.command}: rc {result.rc}: {result.stderr}"
    return result.stdout.strip()


def has_rpm(host: Host) -> bool:
    """Whether the host's packages are rpm's."""
    return host.file("/etc/redhat-release").exists


def packages(host: Host) -> dict[str, str]:
    """Return name -> version of every NVIDIA package; anything half-done fails."""
    if has_rpm(host):
        lines = output(host, "rpm -qa --qf '%{NAME}\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\n'").splitlines()
        rows = [line.split("\t") for line in lines]
        names = [name for name, _version in rows if DRIVER.match(name)]
        assert len(names) == len(set(names)), f"installed twice: {sorted(names)}"
        return {name: version for name, version in rows if name in names}
    text = output(host, "dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\t${Version}\t${Source}\n'")
    found = {}
    for line in text.splitlines():
        status, name, version, source = line.split("\t")
        if status[1] in "nc":
            continue
        if DRIVER.match(name):
            assert status.strip() in ("ii", "hi"), f"{name} {version} is {status!r}"
            found[name] = version
        elif "nvidia" in source:
            found[name] = version
    return found


def upstream(version: str) -> str:
    """NVIDIA's own version out of a package's."""
    return version.rpartition(":")[2].partition("-")[0]


def is_consistent(host: Host) -> None:
    """Nothing is half-installed, half-configured, installed twice or broken."""
    if has_rpm(host):
        output(host, "dnf -q -C check")
        return
    assert output(host, "dpkg --audit") == ""
    output(host, "apt-get check -qq")


def installed(host: Host, branch: str, flavor: str) -> str:
    """The whole set is at one version of the branch, with the right kernel package. Returns that version."""
    is_consistent(host)
    found = packages(host)
    versions = {upstream(version) for name, version in found.items() if not OTHER_VERSIONS.match(name)}
    assert len(versions) == 1, f"mixed versions: {found}"
    version = versions.pop()
    assert version.split(".")[0] == branch
    for kind, names in KERNEL_PACKAGES.items():
        assert any(map(names.fullmatch, found)) == (kind == flavor), f"modules should be {flavor}: {sorted(found)}"
    return version


def module_of(host: Host, kernel: str) -> dict[str, str]:
    """Return what modinfo says of the nvidia module file of a kernel; {} without one."""
    path = host.run("find %s -name %s", f"/lib/modules/{kernel}", "nvidia*.ko*").stdout.split()
    names = [name for name in path if re.search(r"/nvidia(-current)?(-open)?\.ko(\.\w+)?$", name)]
    if not names:
        return {}
    assert len(names) == 1, f"several nvidia modules for {kernel}: {names}"
    return {field: output(host, "modinfo -F %s %s", field, names[0]) for field in ("version", "license", "vermagic")}


def modules(host: Host, kernels: list[str], version: str, flavor: str) -> None:
    """Every kernel has a module file of this version, flavor and kernel."""
    for kernel in kernels:
        module = module_of(host, kernel)
        assert module, f"no nvidia module for {kernel}"
        assert module["version"] == version
        assert module["license"] == {"open": "Dual MIT/GPL", "proprietary": "NVIDIA"}[flavor]
        assert module["vermagic"].split()[0] == kernel


def loaded(host: Host, version: str, flavor: str) -> None:
    """The driver that answers is this one, and it has the GPUs."""
    text = output(host, "cat /proc/driver/nvidia/version")
    assert version in text.split()
    assert ("Open Kernel Module" in text) == (flavor == "open")
    assert output(host, "cat /sys/module/nvidia/version") == version
    assert host.file("/sys/module/nvidia_uvm").is_directory
    assert host.run("ls /proc/driver/nvidia/gpus").stdout.split()


def persistence_daemon(host: Host) -> None:
    """The daemon runs now and after a reboot."""
    assert output(host, "systemctl is-enabled nvidia-persistenced.service") == "enabled"
    assert output(host, "systemctl is-active nvidia-persistenced.service") == "active"


def pinned(host: Host, branch: str) -> None:
    """Every package of the driver is kept at exactly its version, and an upgrade of everything leaves it alone."""
    kept = {name: version for name, version in packages(host).items() if not OTHER_VERSIONS.match(name)}
    assert {upstream(version).split(".")[0] for version in kept.values()} == {branch}
    touched = planned_by_an_upgrade(host)
    assert {name: change for name, change in touched.items() if name in kept} == {}
    if has_rpm(host):
        locked = output(host, "dnf -q -C versionlock list")
        for name, version in kept.items():
            assert re.search(
                rf"^{re.escape(name)}-(0:)?{re.escape(version.removeprefix('0:'))}\.", locked, re.MULTILINE
            ), name
        return
    held = set(output(host, "apt-mark showhold").split())
    assert set(kept) <= held, f"not on hold: {set(kept) - held}"
    for name, version in kept.items():
        policy = output(host, "apt-cache policy %s", name)
        assert f"Candidate: {version}\n" in policy, policy
        assert re.search(rf"{re.escape(version)} 1001\b", policy), policy
    assert (host.file(PREFERENCES).user, host.file(PREFERENCES).mode) == ("root", 0o644)


def planned_by_an_upgrade(host: Host) -> dict[str, str]:
    """What the package manager would do to packages if everything were upgraded now: name -> its own line."""
    if has_rpm(host):
        text = host.run("LC_ALL=C dnf upgrade --assumeno").stdout
        return {line.split()[0]: line for line in text.splitlines() if re.match(r" \S+ +\S+ +\S+ +\S+ +\S+", line)}
    text = output(host, "LC_ALL=C apt-get -s full-upgrade")
    return {line.split()[1]: line for line in text.splitlines() if line.startswith(("Inst ", "Remv "))}


def repository_is_signed(host: Host) -> None:
    """The repository is trusted through its own key alone."""
    if has_rpm(host):
        described = host.file(REPOSITORY).content_string
        assert re.search(r"^gpgcheck\s*=\s*1$", described, re.MULTILINE)
        assert re.search(rf"^gpgkey\s*=\s*file://{re.escape(RPM_KEY)}$", described, re.MULTILINE)
        paths = (REPOSITORY, RPM_KEY)
    else:
        described = host.file(SOURCES).content_string
        assert re.search(rf"^Signed-By: {re.escape(KEY)}$", described, re.MULTILINE)
        assert "trusted" not in described.lower()
        assert not host.file("/etc/apt/trusted.gpg").exists
        paths = (SOURCES, KEY)
    assert "BEGIN PGP PUBLIC KEY BLOCK" in host.file(paths[1]).content_string
    for path in paths:
        assert (host.file(path).user, host.file(path).mode) == ("root", 0o644)


def nouveau_is_blocked(host: Host) -> None:
    """modprobe reads the block list, and each initramfs was rebuilt after it was written."""
    settings = output(host, "modprobe --showconfig").splitlines()
    for module in ("nouveau", "nova_core"):
        assert f"blacklist {module}" in settings
    assert not host.file("/sys/module/nouveau").exists
    images = output(host, "find /boot -regex '.*/\\(initrd.img-.*\\|initramfs-.*.img\\)' -not -name '*.new'").split()
    assert images
    written = host.file(BLOCK_LIST).mtime
    assert host.file(BLOCK_LIST).mode == 0o644
    for image in images:
        assert host.file(image).mtime >= written, f"{image} is older than {BLOCK_LIST}"


def journal(host: Host) -> dict[str, Any]:
    """Return the journal of the driver."""
    assert (host.file(JOURNAL).user, host.file(JOURNAL).mode) == ("root", 0o644)
    return json.loads(host.file(JOURNAL).content_string)


def untouched(host: Host) -> None:
    """No package, no file and no module of a driver is there: a fresh host, or one whose driver was removed."""
    is_consistent(host)
    assert packages(host) == {}
    assert [path for path in OURS if host.file(path).exists] == []
    if has_rpm(host):
        assert "nvidia" not in output(host, "dnf -q -C versionlock list")
        assert not re.search(r"nvidia-driver +\S+ +\[e\]", host.run("dnf -q -C module list --enabled").stdout)
    else:
        assert "NVIDIA" not in output(host, "apt-cache policy")
        assert output(host, "apt-mark showhold") == ""
    assert not host.file("/sys/module/nvidia").exists
    assert host.run("find /lib/modules -name 'nvidia*.ko*'").stdout == ""
