# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges what harness.Host.look() found. What a good host is, said once."""

from __future__ import annotations

import re
from typing import Any

from harness import Host

Seen = dict[str, Any]
DRIVER = re.compile(r"nvidia|^libcuda|^libxnvctrl|^cuda-drivers")
NO_DRIVER = re.compile(
    r"nvidia-driver-pinning|nvidia-container|cuda-keyring|nvidia-(support|prime|settings|modprobe)|installer-cleanup"
)
VERSION = re.compile(r"^(?:\d+:)?(\d{3}\.\d+(?:\.\d+)?)")
LICENSES = {"open": "Dual MIT/GPL", "proprietary": "NVIDIA"}


def driver(seen: Seen) -> dict[str, str]:
    """Driver packages that are unpacked on the host: name -> the driver's version."""
    found = {}
    for name, facts in seen["packages"].items():
        version = VERSION.match(facts["version"])
        if DRIVER.match(name) and not NO_DRIVER.match(name) and version and facts["state"][1:2] not in ("n", "c"):
            found[name] = version[1]
    return found


def version_of(seen: Seen) -> str:
    """The one version that all of the driver has."""
    # Debian's archive has the daemon as a source of its own, with a version of its own.
    versions = {version for name, version in driver(seen).items() if name != "nvidia-persistenced"}
    assert len(versions) == 1, f"not one version: {driver(seen)}"
    return versions.pop()


def serves(host: Host, seen: Seen, branch: str, flavor: str, held: bool = True) -> str:
    """The host has a driver of this branch and flavor, whole, for every kernel, loaded, and kept. Returns its version."""
    assert seen["problems"] == []
    half = {name: facts for name, facts in seen["packages"].items() if facts["state"] not in ("ii", "hi", "rc", "hc")}
    assert half == {}
    version = version_of(seen)
    assert version.split(".")[0] == branch, f"{version} is installed"
    assert seen["boots"], "no kernel can boot"
    for kernel in seen["boots"]:
        (module,) = seen["modules"].get(kernel) or [{}]
        assert module, f"no nvidia module for {kernel}"
        assert (module["version"], module["license"]) == (version, LICENSES[flavor]), kernel
        assert module["vermagic"].split()[0] == kernel
    loaded = seen["loaded"]
    assert (loaded["version"], loaded["flavor"]) == (version, flavor)
    assert version in loaded["answers"].split()
    assert loaded["uvm"]
    assert not loaded["nouveau"]
    assert seen["persistence"]["active"] == "active"
    assert seen["persistence"]["enabled"] in ("enabled", "static")  # static: udev starts Ubuntu's
    assert {name for name, facts in seen["initramfs"].items() if not facts["nouveau_blocked"]} == set()
    if held:
        kept(host, seen)
    return version


def kept(host: Host, seen: Seen) -> None:
    """Every package of the driver is held (apt) or locked (dnf) at the version that is installed."""
    if host.rpm:
        text = "\n".join(seen["holds"])
        loose = [
            name
            for name, version in driver(seen).items()
            if not re.search(rf"^{re.escape(name)}-\d.*{version}", text, re.M)
        ]
        assert loose == [], f"not locked: {loose}; the locks are {text}"
    else:
        loose = sorted(set(driver(seen)) - {name.partition(":")[0] for name in seen["holds"]})
        assert loose == [], f"not held: {loose}"


def same_driver(before: Seen, after: Seen) -> None:
    """Nothing of the driver differs: packages, modules, what is loaded."""
    assert after["problems"] == []
    assert driver(after) == driver(before)
    assert after["modules"] == before["modules"]
    assert {**after["loaded"], "boot_id": ""} == {**before["loaded"], "boot_id": ""}


def installed(seen: Seen) -> dict[str, str]:
    """Name -> version of what is installed, whatever it is."""
    return {name: facts["version"] for name, facts in seen["packages"].items() if facts["state"] in ("ii", "hi")}


def untouched(before: Seen, after: Seen) -> None:
    """Not one package, hold or file differs."""
    assert after["problems"] == before["problems"]
    versions = [installed(seen) for seen in (before, after)]
    added = {name: version for name, version in versions[1].items() if versions[0].get(name) != version}
    gone = sorted(set(versions[0]) - set(versions[1]))
    assert (added, gone) == ({}, []), "packages that are new, packages that are gone"
    assert after["holds"] == before["holds"]
    changed = sorted(
        path for path in {*before["files"], *after["files"]} if before["files"].get(path) != after["files"].get(path)
    )
    assert changed == []
    assert after["modules"] == before["modules"]
