# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts to plan: fresh ones, ones with a driver, and ones on which a plan was carried out."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import MANAGED_BLOCK_MARKER
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.startup import (
    command_file,
    environment_files,
)

Observation = dict[str, Any]

SYSTEMS = {
    "debian12": ("debian", "12", "x86_64"),
    "debian13": ("debian", "13", "x86_64"),
    "debian13-arm": ("debian", "13", "aarch64"),
    "ubuntu2204": ("ubuntu", "22.04", "x86_64"),
    "ubuntu2404": ("ubuntu", "24.04", "x86_64"),
    "ubuntu2404-arm": ("ubuntu", "24.04", "aarch64"),
    "ubuntu2604": ("ubuntu", "26.04", "x86_64"),
    "rocky9": ("rocky", "9.4", "x86_64"),
    "alma10": ("almalinux", "10.0", "x86_64"),
    "arch": ("arch", "", "x86_64"),
}
KERNEL = "6.12.107+deb13-amd64"
OLD_KERNEL = "6.12.94+deb13-amd64"


def _fresh(*devices: str, system: str = "debian13", **parts: Any) -> Observation:
    os_id, version, arch = SYSTEMS[system]
    gpus = [{"pci_device_id": device, "pci_address": f"0000:{bus:02x}:00.0"} for bus, device in enumerate(devices, 1)]
    return {"os": {"id": os_id, "version_id": version, "arch": arch}, "gpus": gpus, **parts}


@pytest.fixture
def fresh() -> Callable[..., Observation]:
    """Make a partial observation: a system and PCI device ids."""
    return _fresh


@pytest.fixture
def full() -> Callable[..., Observation]:
    """Make an observation as gpu_info makes it, of a Debian host without a driver."""

    def make(*devices: str, system: str = "debian13", **driver: Any) -> Observation:
        observation = _fresh(*devices, system=system)
        observation["os"].update(
            codename={"debian12": "bookworm"}.get(system, "trixie"),
            family="debian",
            kernel=KERNEL,
            kernels=[
                {"release": KERNEL, "running": True, "default": True, "headers": True},
                {"release": OLD_KERNEL, "running": False, "default": False, "headers": True},
            ],
            secure_boot=False,
            virtualization=None,
            init="systemd",
            uid=0,
            pythons={"3.11": "/usr/bin/python3.11"} if system == "debian12" else {"3.13": "/usr/bin/python3.13"},
            graphical=False,
            apt={
                "sources": [
                    {
                        "file": "/etc/apt/sources.list.d/debian.sources",
                        "uris": ["http://archive.example/debian"],
                        "suites": ["trixie", "trixie-updates"],
                        "components": ["main", "contrib", "non-free", "non-free-firmware"],
                        "signed_by": "/usr/share/keyrings/debian-archive-keyring.gpg",
                    }
                ]
            },
        )
        observation.update(
            schema=1,
            driver={
                "loaded_version": None,
                "loaded_flavor": None,
                "userspace_version": None,
                "branch": None,
                "flavor": None,
                "source": None,
                "packages": [],
                "pins": [],
                "modules_by_kernel": {KERNEL: None, OLD_KERNEL: None},
                "nouveau_loaded": False,
                "nova_core_loaded": False,
                "persistence": {
                    "unit": "nvidia-persistenced.service",
                    "present": False,
                    "enabled": False,
                    "active": False,
                },
                "mismatch": None,
                "reboot_required": False,
                "processes": [],
                **driver,
            },
            environments=[],
            runtime={"etc_environment": {"block": None, "values": {}}},
            files={},
            health={
                "disk": {"/opt/gpufleet/envs": {"free_mib": 50000, "free_inodes": 1000000}},
                "clock_synchronized": True,
                "locks": [],
            },
            unknown=[],
        )
        return observation

    return make


def _package(name: str, version: str, source: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "source": source, "held": False, "state": "installed", **more}


@pytest.fixture
def package() -> Callable[..., dict[str, Any]]:
    """Make a package as gpu_info lists it."""
    return _package


@pytest.fixture
def driven() -> Callable[..., dict[str, Any]]:
    """Make the driver part of an observation: a driver that is installed and loaded."""

    def make(version: str, flavor: str = "open", source: str = "nvidia", **more: Any) -> dict[str, Any]:
        module = "nvidia-kernel-open-dkms" if flavor == "open" else "nvidia-kernel-dkms"
        if source == "distro" and flavor == "open":
            module = "nvidia-open-kernel-dkms"
        names = [
            "libcuda1",
            "nvidia-driver-cuda" if source == "nvidia" else "nvidia-smi",
            module,
            "nvidia-persistenced",
        ]
        return {
            "loaded_version": version,
            "loaded_flavor": flavor,
            "userspace_version": version,
            "branch": int(version.partition(".")[0]),
            "flavor": flavor,
            "source": source,
            "packages": [_package(name, f"{version}-1", source) for name in names],
            "modules_by_kernel": {
                release: {"version": version, "flavor": flavor, "path": "nvidia.ko"} for release in (KERNEL, OLD_KERNEL)
            },
            "persistence": {"unit": "nvidia-persistenced.service", "present": True, "enabled": True, "active": True},
            "mismatch": False,
            **more,
        }

    return make


def _file(content: str, mode: str = "0644") -> dict[str, Any]:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"sha256": digest, "mode": mode, "owner": "root", "group": "root", "type": "file"}


KEY_DIGESTS = {
    "02182E60104FCDC26EAE1B8597A5D4CB8793F200.asc": "5b9273fbab97b3ff26557b4f60954153a3df51bd20f300f0c19cbe02aa718255",
    "EB693B3035CD5710E231E123A4B469963BF863CC.asc": "84965153d511e89233e86d62affb72a892014669ed6535bfc66ca560b99847a8",
}


@pytest.fixture
def carry_out() -> Callable[..., Observation]:
    """Do to an observation what the roles do to a host for a plan's actions, from the actions' data alone."""

    def do(observation: Observation, plan: dict[str, Any], version: str = "580.178.04") -> Observation:
        seen = copy.deepcopy(observation)
        driver, files = seen["driver"], seen["files"]
        for action in plan["actions"]:
            data, kind = action["data"], action["id"].split(":")[0]
            if kind == "driver.repository":
                files[data["sources_path"]] = _file(data["sources_content"])
                if data["key_path"]:
                    files[data["key_path"]] = _file(data["key_content"])
                    if not data["key_content"]:
                        files[data["key_path"]]["sha256"] = KEY_DIGESTS[data["key_file"]]
            elif kind == "driver.pin":
                if data["package"]:
                    driver["packages"].append(_package(data["package"], "580-1", "nvidia"))
                else:
                    files[data["preferences_path"]] = _file(data["preferences_content"])
            elif kind == "driver.headers":
                for kernel in seen["os"]["kernels"]:
                    kernel["headers"] = kernel["headers"] or f"linux-headers-{kernel['release']}" in data["packages"]
            elif kind == "driver.packages":
                source = plan["driver"]["source"]
                kept = [one for one in driver["packages"] if one["name"] not in (*data["remove"], *data["packages"])]
                driver["packages"] = kept + [_package(name, f"{version}-1", source) for name in data["packages"]]
                driver.update(
                    userspace_version=version,
                    branch=int(data["version_glob"].partition(".")[0]),
                    flavor=plan["driver"]["flavor"],
                    source=source,
                )
            elif kind == "driver.modules":
                for release in data["kernels"]:
                    driver["modules_by_kernel"][release] = {"version": version, "flavor": data["flavor"], "path": "x"}
            elif kind == "driver.nouveau":
                files[data["path"]] = _file(data["content"])
            elif kind in ("driver.load", "driver.reboot"):
                driver.update(
                    loaded_version=driver["userspace_version"], loaded_flavor=driver["flavor"], mismatch=False
                )
                driver.update(nouveau_loaded=False)
            elif kind == "driver.persistence":
                driver["persistence"] = {"unit": data["unit"], "present": True, "enabled": True, "active": True}
            elif kind == "torch.build":
                _build(seen, plan, data["environment"])
            elif kind == "runtime.file":
                files[data["path"]] = _file(data["content"], data["mode"]) if data["state"] == "present" else None
            elif kind == "runtime.block":
                seen["runtime"]["etc_environment"]["block"] = data["block"] or None
                assert data["marker"] == MANAGED_BLOCK_MARKER
        return seen

    return do


def _build(seen: Observation, plan: dict[str, Any], name: str) -> None:
    entry = next(environment for environment in plan["environments"] if environment["name"] == name)
    release = entry["release_base"]
    stamp = {
        "schema": 1,
        "id": release,
        "spec": entry["spec"],
        "spec_digest": entry["spec_digest"],
        "owner": entry["owner"],
        "group": entry["group"],
        "proof": {"sm": entry["sm"]},
    }
    seen["environments"].append(
        {
            "name": name,
            "current": release,
            "previous": None,
            "releases": [{"id": release, "stamped": True}],
            "interpreter_ok": True,
            "owner": entry["owner"],
            "group": entry["group"],
            "torch": {"version": entry["spec"]["torch"]},
            "integrity": {"status": "ok", "missing": 0, "changed": 0, "added": 0, "examples": []},
            "stamp": stamp,
        }
    )
    written = dict(environment_files(entry["root"], name))
    written["/usr/local/bin/gpu-env"] = command_file(entry["root"])
    for path, (mode, content) in written.items():
        seen["files"][path] = _file(content, f"{mode:04o}")
