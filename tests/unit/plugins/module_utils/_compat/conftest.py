# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts to plan: fresh ones, ones with a driver, and ones on which a plan was carried out."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import MANAGED_BLOCK_MARKER
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.change import digest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import Transaction
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import stamp
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.startup import (
    command_file,
    environment_files,
)

Observation = dict[str, Any]

OBSERVED_AT = "2026-11-22T19:00:00Z"

SYSTEMS = {
    "debian12": ("debian", "12", "x86_64"),
    "debian13": ("debian", "13", "x86_64"),
    "debian13-arm": ("debian", "13", "aarch64"),
    "ubuntu2204": ("ubuntu", "22.04", "x86_64"),
    "ubuntu2404": ("ubuntu", "24.04", "x86_64"),
    "ubuntu2404-arm": ("ubuntu", "24.04", "aarch64"),
    "ubuntu2604": ("ubuntu", "26.04", "x86_64"),
    "rocky9": ("rocky", "9.4", "x86_64"),
    "rhel9": ("rhel", "9.4", "x86_64"),
    "alma9-arm": ("almalinux", "9.4", "aarch64"),
    "rhel10": ("rhel", "10.0", "x86_64"),
    "alma10": ("almalinux", "10.0", "x86_64"),
    "arch": ("arch", "", "x86_64"),
}
KERNEL = "6.12.107+deb13-amd64"
OLD_KERNEL = "6.12.94+deb13-amd64"
KERNELS = {
    "debian": (KERNEL, OLD_KERNEL),
    "ubuntu2204": ("5.15.0-119-generic", "5.15.0-118-generic"),
    "ubuntu2404": ("6.17.0-40-generic", "6.8.0-51-generic"),
    "ubuntu2604": ("7.0.0-34-generic", "7.0.0-30-generic"),
    "el9": ("5.14.0-611.el9.x86_64", "5.14.0-570.el9.x86_64"),
    "el10": ("6.12.0-124.el10.x86_64", "6.12.0-55.el10.x86_64"),
}
CODENAMES = {
    "debian12": "bookworm",
    "debian13": "trixie",
    "ubuntu2204": "jammy",
    "ubuntu2404": "noble",
    "ubuntu2604": "resolute",
}


def kernels_of(system: str) -> tuple[str, str]:
    """The two kernels of a system's observation, the running one first."""
    os_id, version, _arch = SYSTEMS[system]
    key = (
        os_id
        if os_id == "debian"
        else system.partition("-")[0]
        if os_id == "ubuntu"
        else f"el{version.partition('.')[0]}"
    )
    return KERNELS[key]


def _archive(system: str) -> dict[str, Any]:
    """What describes a distribution's own archive, as gpu_info sees it."""
    os_id, _version, _arch = SYSTEMS[system]
    if os_id not in ("debian", "ubuntu"):
        ids = ("baseos", "appstream", *(() if os_id == "rhel" else ("extras",)))
        rows = [{"file": f"/etc/yum.repos.d/{os_id}.repo", "id": name, "urls": [f"http://archive.example/{name}"], "enabled": True,
                 "gpgcheck": True, "keys": []} for name in ids]  # fmt: skip
        return {"package_manager": "dnf", "apt": None,
                "dnf": {"repositories": rows, "streams": {"nvidia-driver": None}, "versionlock": True, "excludes": []}}  # fmt: skip
    name = CODENAMES[system.partition("-")[0]]
    components = {
        "debian": ["main", "contrib", "non-free", "non-free-firmware"],
        "ubuntu": ["main", "restricted", "universe"],
    }
    source = {
        "file": f"/etc/apt/sources.list.d/{os_id}.sources",
        "uris": [f"http://archive.example/{os_id}"],
        "suites": [name, f"{name}-updates"],
        "components": components[os_id],
        "signed_by": f"/usr/share/keyrings/{os_id}-archive-keyring.gpg",
    }
    return {"package_manager": "apt", "apt": {"sources": [source]}, "dnf": None}


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
        running, older = kernels_of(system)
        observation["os"].update(
            codename=CODENAMES.get(system.partition("-")[0]),
            family="debian" if SYSTEMS[system][0] in ("debian", "ubuntu") else "redhat",
            kernel=running,
            kernels=[
                {"release": running, "running": True, "default": True, "headers": True},
                {"release": older, "running": False, "default": False, "headers": True},
            ],
            secure_boot=False,
            virtualization=None,
            init="systemd",
            uid=0,
            pythons={"3.11": "/usr/bin/python3.11"} if system == "debian12" else {"3.13": "/usr/bin/python3.13"},
            graphical=False,
            machine_owner_key=None,
            sessions=[],
            inhibitors=[],
            disk_passphrase=False,
            boot_id="1f3f0bd4-5f1f-4c9b-8a52-0ff25cb5d1ad",
            initramfs="update-initramfs",
            **_archive(system),
        )
        observation.update(
            schema=1,
            observed_at=OBSERVED_AT,
            driver={
                "loaded_version": None,
                "loaded_flavor": None,
                "userspace_version": None,
                "branch": None,
                "flavor": None,
                "source": None,
                "packages": [],
                "pins": [],
                "modules_by_kernel": {running: None, older: None},
                "nouveau_in_initramfs": {running: False, older: False},
                "interrupted": [],
                "device_nodes": {"/dev/nvidiactl": True, "/dev/nvidia-uvm": True},
                "virtual": {},
                "staged": None,
                "journal": None,
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
            "processes": [],
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
            if kind == "driver.repair":
                driver["interrupted"] = []
                for one in driver["packages"]:
                    one["state"] = "installed"
            elif kind == "driver.repository":
                files[data["path"]] = _file(data["content"])
                if data["key_path"]:
                    files[data["key_path"]] = _file(data["key_content"])
                    if not data["key_content"]:
                        files[data["key_path"]]["sha256"] = KEY_DIGESTS[data["key_file"]]
            elif kind == "driver.headers":
                for kernel in seen["os"]["kernels"]:
                    named = {f"linux-headers-{kernel['release']}", f"kernel-devel-{kernel['release']}"}
                    kernel["headers"] = kernel["headers"] or bool(named & set(data["packages"]))
                if "epel-release" in data["packages"]:
                    seen["os"]["dnf"]["repositories"].append({"id": "epel", "enabled": True, "urls": []})
            elif kind == "driver.stage":
                driver["staged"] = {
                    "branch": plan["driver"]["branch"],
                    "flavor": plan["driver"]["flavor"],
                    "packages": digest(Transaction(tuple(data["packages"]), tuple(data["remove"]))),
                }
            elif kind == "driver.keys":
                seen["os"]["machine_owner_key"] = {"path": "/var/lib/dkms/mok.pub", "enrolled": False, "pending": True}
            elif kind == "driver.packages":
                source = plan["driver"]["source"]
                number = f"{version}-1" if seen["os"]["family"] == "debian" else f"3:{version}-1.el9"
                kept = [one for one in driver["packages"] if one["name"] not in (*data["remove"], *data["packages"])]
                driver["packages"] = kept + [
                    _package(name, "6.17.0-40.40" if name.startswith("linux-modules") else number, source)
                    for name in data["packages"]
                ]
                driver.update(
                    userspace_version=version,
                    branch=int(data["version"].partition(".")[0]),
                    flavor=plan["driver"]["flavor"],
                    source=source,
                    staged=None,
                )
            elif kind == "driver.modules":
                for release in data["kernels"]:
                    driver["modules_by_kernel"][release] = {"version": version, "flavor": data["flavor"], "path": "x"}
            elif kind == "driver.nouveau":
                files[data["path"]] = _file(data["content"])
                driver["nouveau_in_initramfs"] = dict.fromkeys(driver["nouveau_in_initramfs"], False)
            elif kind == "driver.freeze":
                _freeze(seen, plan)
            elif kind == "driver.nodes":
                driver["device_nodes"] = dict.fromkeys(driver["device_nodes"], True)
            elif kind == "driver.remove":
                driver["packages"] = [one for one in driver["packages"] if one["name"] not in data["packages"]]
                driver.update(
                    userspace_version=None, branch=None, flavor=None, source=None, loaded_version=None, pins=[]
                )
                for path in data["paths"]:
                    files[path] = None
            elif kind in ("driver.load", "driver.reboot"):
                driver.update(
                    loaded_version=driver["userspace_version"], loaded_flavor=driver["flavor"], mismatch=False
                )
                driver.update(nouveau_loaded=False)
                if kind == "driver.reboot":
                    seen["os"]["boot_id"] = "another boot"
            elif kind == "driver.persistence":
                driver["persistence"] = {"unit": data["unit"], "present": True, "enabled": True, "active": True}
            elif kind == "torch.python":
                version = action["id"].partition(":")[2]
                seen["os"].setdefault("pythons", {})[version] = f"/usr/bin/python{version}"
            elif kind == "torch.build":
                _build(seen, plan, data["environment"])
            elif kind == "torch.clean":
                next(one for one in seen["environments"] if one["name"] == data["environment"])["leftovers"] = []
            elif kind == "runtime.file":
                files[data["path"]] = _file(data["content"], data["mode"]) if data["state"] == "present" else None
            elif kind == "runtime.block":
                seen["runtime"]["etc_environment"]["block"] = data["block"] or None
                assert data["marker"] == MANAGED_BLOCK_MARKER
            elif kind == "proof.run":
                _prove(seen, plan, data["environment"])
        return seen

    return do


def _prove(seen: Observation, plan: dict[str, Any], name: str) -> None:
    """Leave what cuda_verify writes: where a driver is loaded, the GPUs pass at the level that was asked for."""
    entry = next(environment for environment in plan["environments"] if environment["name"] == name)
    environment = next(row for row in seen["environments"] if row["name"] == name)
    driver, level = seen["driver"], plan["proof"]["level"]
    for number, gpu in enumerate(seen["gpus"]):
        gpu["uuid"] = f"GPU-{number}" if driver["loaded_version"] else None
        gpu.setdefault("health", {"mig": "not_applicable", "compute_mode": "default"})
    variables = seen["files"].get(f"{entry['root']}/{name}/runtime.env") or {}
    now = {
        "release": environment["current"],
        "release_digest": environment["stamp_digest"],
        "variables": variables.get("sha256"),
        "driver": driver["loaded_version"],
        "flavor": driver["loaded_flavor"],
        "userspace": driver["userspace_version"],
        "boot_id": seen["os"]["boot_id"],
        "sm": entry["proof"]["sm"],
        "wish": stamp.wish(entry["proof"]),
        "burn_seconds": 60,
        "gpus": [{**gpu, **stamp.settings(gpu["health"])} for gpu in seen["gpus"]],
        "at": seen["observed_at"],
    }
    rows = [
        {**gpu, "name": "a GPU", "verdict": "passed", "checks": []}
        for gpu in seen["gpus"]
        if plan["proof"]["gpus"] is None or gpu["pci_address"] in plan["proof"]["gpus"]
    ]
    gpus = rows if driver["loaded_version"] and level != "static" else []
    environment["verdict"] = stamp.document(
        {
            "name": name,
            "verdict": "passed" if gpus or level == "static" else "not_run",
            "level": level,
            "proven": level if gpus else "static",
            "reason": "",
            "remedy": "",
            "torch": {"version": entry["spec"]["torch"]},
            "checks": [],
            "gpus": gpus,
        },
        now,
    )


def _freeze(seen: Observation, plan: dict[str, Any]) -> None:
    """Pin and hold all that is installed at its version, and write the holds down."""
    driver = seen["driver"]
    frozen = [one for one in driver["packages"] if not one["name"].startswith(("linux-modules", "cuda-keyring"))]
    mine = "/etc/apt/preferences.d/gpufleet-nvidia"
    driver["pins"] = [pin for pin in driver["pins"] if pin["file"] != mine]
    for one in frozen:
        one["held"] = True
        if seen["os"]["family"] == "debian":
            row = {
                "file": mine,
                "packages": one["name"],
                "version": one["version"],
                "priority": 1001,
                "from_package": None,
            }
            driver["pins"].append(row)
    if seen["os"]["family"] == "debian":
        seen["files"][mine] = _file("pins")
    if plan["driver"]["pin"]["kind"] == "module_stream":
        seen["os"]["dnf"]["streams"]["nvidia-driver"] = plan["driver"]["pin"]["packages"].partition(":")[2]
    driver["journal"] = {"holds": [one["name"] for one in frozen], "gpus": seen["gpus"]}


def _build(seen: Observation, plan: dict[str, Any], name: str) -> None:
    entry = next(environment for environment in plan["environments"] if environment["name"] == name)
    release = entry["release_base"]
    release_stamp = {
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
            "leftovers": [],
            "interpreter_ok": True,
            "owner": entry["owner"],
            "group": entry["group"],
            "torch": {"version": entry["spec"]["torch"]},
            "integrity": {"status": "ok", "missing": 0, "changed": 0, "added": 0, "examples": []},
            "stamp": release_stamp,
            "stamp_digest": hashlib.sha256(str(release_stamp).encode()).hexdigest(),
            "verdict": None,
        }
    )
    written = dict(environment_files(entry["root"], name))
    written["/usr/local/bin/gpu-env"] = command_file(entry["root"])
    for path, (mode, content) in written.items():
        seen["files"][path] = _file(content, f"{mode:04o}")
