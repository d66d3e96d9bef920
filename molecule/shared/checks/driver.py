# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVIDIA driver of a Debian host, as dpkg, apt, modinfo and systemctl see it."""

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
OURS = (SOURCES, ARCHIVE_SOURCES, KEY, "/etc/apt/preferences.d/gpufleet-nvidia", BLOCK_LIST, "/var/lib/gpufleet")
KERNEL_PACKAGES = {"open": "nvidia-kernel-open-dkms", "proprietary": "nvidia-kernel-dkms"}
# What has a version of its own, or no driver in it.
OTHER_VERSIONS = re.compile(r"nvidia-driver-pinning|nvidia-container|libnvidia-container|cuda-keyring")


def output(host: Host, command: str, *arguments: str) -> str:
    """Return what a command prints; it must succeed."""
    result = host.run(command, *arguments)
    assert result.rc == 0, f"{result.command}: rc {result.rc}: {result.stderr}"
    return result.stdout.strip()


def packages(host: Host) -> dict[str, str]:
    """Return name -> version of every NVIDIA package; anything half-done fails."""
    text = output(host, "dpkg-query -W -f '${db:Status-Abbrev}\t${Package}\t${Version}\t${Source}\n'")
    found = {}
    for line in text.splitlines():
        status, name, version, source = line.split("\t")
        if (
            re.match(r"(lib)?nvidia-|libcuda|cuda-|firmware-nvidia|xserver-xorg-video-nvidia", name)
            and status[1] not in "nc"
        ):
            assert status.strip() == "ii", f"{name} {version} is {status!r}"
            found[name] = version
        elif "nvidia" in source and status[1] not in "nc":
            found[name] = version
    return found


def dpkg_is_consistent(host: Host) -> None:
    """Nothing is half-installed, half-configured or broken."""
    assert output(host, "dpkg --audit") == ""
    output(host, "apt-get check -qq")


def installed(host: Host, branch: str, flavor: str) -> str:
    """The whole set is at one version of the branch, with the right kernel package. Returns that version."""
    dpkg_is_consistent(host)
    found = packages(host)
    versions = {version for name, version in found.items() if not OTHER_VERSIONS.match(name)}
    assert len(versions) == 1, f"mixed versions: {found}"
    version = versions.pop().partition("-")[0]
    assert version.split(".")[0] == branch
    wanted, unwanted = (KERNEL_PACKAGES[name] for name in (flavor, "proprietary" if flavor == "open" else "open"))
    assert wanted in found
    assert unwanted not in found
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
    """apt takes the driver from this branch and no upgrade leaves it, also one of everything."""
    for name in ("libcuda1", "nvidia-driver-cuda"):
        policy = output(host, "apt-cache policy %s", name)
        candidate = re.search(r"Candidate: (\S+)", policy)
        assert candidate, policy
        assert candidate[1].split(".")[0] == branch
        assert re.search(rf"{re.escape(candidate[1])} 1000\b", policy), policy
    planned = re.findall(
        r"^Inst (\S*(?:nvidia|cuda)\S*) .*\((\S+)", output(host, "apt-get -s dist-upgrade"), re.MULTILINE
    )
    strays = [item for item in planned if not OTHER_VERSIONS.match(item[0]) and item[1].split(".")[0] != branch]
    assert strays == []


def repository_is_signed(host: Host) -> None:
    """The repository is trusted through its own key alone."""
    sources = host.file(SOURCES).content_string
    assert re.search(rf"^Signed-By: {re.escape(KEY)}$", sources, re.MULTILINE)
    assert "trusted" not in sources.lower()
    assert "BEGIN PGP PUBLIC KEY BLOCK" in host.file(KEY).content_string
    assert not host.file("/etc/apt/trusted.gpg").exists
    for path in (SOURCES, KEY):
        assert (host.file(path).user, host.file(path).mode) == ("root", 0o644)


def nouveau_is_blocked(host: Host) -> None:
    """modprobe reads the block list, and each initramfs was rebuilt after it was written."""
    settings = output(host, "modprobe --showconfig").splitlines()
    for module in ("nouveau", "nova_core"):
        assert f"blacklist {module}" in settings
    assert not host.file("/sys/module/nouveau").exists
    images = output(host, "find /boot -name 'initrd.img-*' -not -name '*.new'").split()
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
    dpkg_is_consistent(host)
    assert packages(host) == {}
    assert [path for path in OURS if host.file(path).exists] == []
    assert "NVIDIA" not in output(host, "apt-cache policy")
    assert not host.file("/sys/module/nvidia").exists
    assert host.run("find /lib/modules -name 'nvidia*.ko*'").stdout == ""
