# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: an observation as the planner reads it. A key that is missing means a fresh host."""

from __future__ import annotations

import collections.abc
import hashlib
import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import pci_ids
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import normal_pci_address
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Architecture,
    Distribution,
    Knowledge,
    ManagedFile,
    branch_of,
    sm_of,
    upstream_version,
    version_key,
)

_TEXT, _NUMBER, _FLAG, _ANY = "text", "number", "flag", "any"
_FLAVOR = ("open", "proprietary")
_SOURCE = ("nvidia", "distro", "runfile", "wsl")
_PACKAGE = {"name": _TEXT, "version": _TEXT, "architecture": _TEXT, "source": _TEXT, "held": _FLAG, "state": _TEXT}
_INTEGRITY = {"status": _TEXT, "missing": _NUMBER, "changed": _NUMBER, "added": _NUMBER, "examples": [_TEXT]}
_STAMP = {"spec_digest": _TEXT, "spec": {"*": _ANY}, "owner": _TEXT, "group": _TEXT, "proof": {"sm": [_TEXT]}}
_SHAPE: dict[str, t.Any] = {
    "schema": _ANY,
    "observed_at": _TEXT,
    "os": {
        "id": _TEXT,
        "version_id": _TEXT,
        "codename": _TEXT,
        "arch": _TEXT,
        "kernels": [{"release": _TEXT, "running": _FLAG, "default": _FLAG, "headers": _FLAG}],
        "secure_boot": _FLAG,
        "virtualization": _TEXT,
        "init": _TEXT,
        "boot_id": _TEXT,
        "uid": _NUMBER,
        "pythons": {"*": _TEXT},
        "graphical": _FLAG,
        "apt": {
            "sources": [{"file": _TEXT, "uris": [_TEXT], "suites": [_TEXT], "components": [_TEXT], "signed_by": _TEXT}]
        },
        "package_manager": _TEXT,
        "dnf": {
            "repositories": [
                {"file": _TEXT, "id": _TEXT, "urls": [_TEXT], "enabled": _FLAG, "gpgcheck": _FLAG, "keys": [_TEXT]}
            ],
            "streams": {"*": _TEXT},
            "versionlock": _FLAG,
            "excludes": [{"file": _TEXT, "id": _TEXT, "packages": [_TEXT]}],
        },
        "machine_owner_key": {"path": _TEXT, "enrolled": _FLAG, "pending": _FLAG},
        "inhibitors": [{"who": _TEXT, "why": _TEXT}],
        "disk_passphrase": _FLAG,
    },
    "gpus": [
        {
            "pci_address": _TEXT,
            "pci_device_id": _TEXT,
            "name": _TEXT,
            "uuid": _TEXT,
            "compute_capability": _TEXT,
            "architecture": _TEXT,
            "kernel_driver": _TEXT,
            "health": {
                "ecc": {"uncorrected_volatile": _NUMBER, "sram_threshold_exceeded": _FLAG},
                "remapped_rows": {"pending": _FLAG, "failure": _FLAG},
                "retired_pages": {"pending": _FLAG},
                "recovery_action": _TEXT,
                "mig": _ANY,  # a word where the card has no such thing
                "compute_mode": _TEXT,
            },
        }
    ],
    "driver": {
        "loaded_version": _TEXT,
        "loaded_flavor": _FLAVOR,
        "userspace_version": _TEXT,
        "branch": _NUMBER,
        "flavor": _FLAVOR,
        "source": _SOURCE,
        "packages": [_PACKAGE],
        "pins": [
            {
                "file": _TEXT,
                "packages": _TEXT,
                "version": _TEXT,
                "pin": _TEXT,
                "priority": _NUMBER,
                "from_package": _TEXT,
            }
        ],
        "modules_by_kernel": {"*": {"version": _TEXT, "flavor": _FLAVOR}},
        "nouveau_loaded": _FLAG,
        "nova_core_loaded": _FLAG,
        "persistence": {"unit": _TEXT, "present": _FLAG, "enabled": _FLAG, "active": _FLAG},
        "mismatch": _FLAG,
        "reboot_required": _FLAG,
        "processes": [{"pid": _NUMBER, "command": _TEXT, "kind": _TEXT, "container": _TEXT, "gpus": [_TEXT]}],
        "interrupted": [_TEXT],
        "device_nodes": {"*": _FLAG},
        "nouveau_in_initramfs": {"*": _FLAG},
        "virtual": {"*": _TEXT},
        "staged": {"branch": _NUMBER, "flavor": _TEXT, "packages": _TEXT},
        "journal": {
            "holds": [_TEXT],
            "before": {"under_way": _FLAG},
        },
    },
    "environments": [
        {
            "name": _TEXT,
            "current": _TEXT,
            "releases": [{"id": _TEXT, "stamped": _FLAG}],
            "leftovers": [_TEXT],
            "python": _TEXT,
            "interpreter_ok": _FLAG,
            "owner": _TEXT,
            "group": _TEXT,
            "torch": {"version": _TEXT},
            "integrity": _INTEGRITY,
            "stamp": _STAMP,
            "stamp_digest": _TEXT,
            "verdict": _ANY,
        }
    ],
    "runtime": {
        "etc_environment": {"block": _TEXT, "values": {"*": _TEXT}},
        "breaking": [{"where": _TEXT, "name": _TEXT, "value": _TEXT, "why": _TEXT}],
    },
    "files": {"*": {"sha256": _TEXT, "mode": _TEXT, "owner": _TEXT, "group": _TEXT, "type": _TEXT}},
    "health": {
        "disk": {"*": {"free_mib": _NUMBER, "free_inodes": _NUMBER, "file_system": _TEXT}},
        "clock_synchronized": _FLAG,
        "locks": [{"path": _TEXT, "holder": _TEXT}],
        "missing_gpus": [{"pci_address": _TEXT, "text": _TEXT}],
        "xid": [
            {
                "pci_address": _TEXT,
                "number": _NUMBER,
                "title": _TEXT,
                "action": _TEXT,
                "count": _NUMBER,
                "last_at": _TEXT,
                "this_boot": _FLAG,
            }
        ],
    },
    "foreign": [{"kind": _TEXT, "path": _TEXT, "what": _TEXT, "torch": {"version": _TEXT, "cuda": _TEXT}}],
    "urls": {"*": {"status": _NUMBER, "error": _TEXT}},
    "unknown": [{"what": _TEXT, "why": _TEXT}],
}
"""What the planner reads of an observation. Whatever is of another kind counts as not known."""


def conform(value: t.Any, shape: t.Any) -> t.Any:
    """Reduce a value to a shape; None where it is of another kind. A key that is missing stays missing."""
    if isinstance(shape, dict):
        if not isinstance(value, collections.abc.Mapping):
            return None
        if "*" in shape:
            return {str(key): conform(item, shape["*"]) for key, item in value.items()}
        return {key: conform(value[key], part) for key, part in shape.items() if key in value}
    if isinstance(shape, list):
        if not isinstance(value, (list, tuple)):
            return None
        items = (conform(item, shape[0]) for item in value)
        return [item for item in items if item is not None]
    if shape == _ANY or value is None:
        return value
    if isinstance(shape, tuple):  # one of these words
        return value if isinstance(value, str) and value in shape else None
    if shape == _FLAG:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if shape == _TEXT:
        return value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int) else None


_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_BROKEN_STATES = ("half-configured", "half-installed", "unpacked", "triggers-awaited", "triggers-pending")
# What follows the kernel or a repository and not the driver: it stays free to move.
_NOT_FROZEN = re.compile(
    r"cuda-keyring$|nvidia-driver-pinning-|cuda-compat|linux-(?:modules|objects|signatures)-nvidia"
)
# Driver packages whose version is not the driver's, and what steers or feeds a driver without being part of one.
_NOT_DRIVER = re.compile(
    r"cuda-keyring$|cuda-compat|firmware-nvidia-graphics$|nvidia-driver-pinning-|nvlsm$|dnf-plugin-nvidia$"
)


_COMPILES = re.compile(r"(?<!no-)dkms|nvidia-headless-(?!no-dkms)|akmod-nvidia")


def compiles_modules(name: str) -> bool:
    """Whether a package brings modules as source, which are compiled on the host, or depends on one that does."""
    return bool(_COMPILES.search(name))


@dataclass(frozen=True)
class Gpu:
    """A GPU as far as it is known. `modules`: open, proprietary, both, platform; None: not known."""

    address: str | None
    device_id: str | None
    name: str
    cc: str | None
    architecture: Architecture | None
    architecture_name: str | None
    known: bool
    too_old: bool
    modules: str | None
    first_driver: str | None
    last_branch: int | None
    kernel_driver: str | None

    @property
    def sm(self) -> str | None:
        return sm_of(self.cc) if self.cc else None

    @property
    def label(self) -> str:
        """Name it in a sentence."""
        return f"{self.name} ({self.sm})" if self.sm else self.name


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    source: str
    held: bool
    state: str

    @property
    def present(self) -> bool:
        return self.state == "installed" or self.broken

    @property
    def broken(self) -> bool:
        return self.state in _BROKEN_STATES

    @property
    def is_driver(self) -> bool:
        return not _NOT_DRIVER.match(self.name)

    @property
    def compiles(self) -> bool:
        return compiles_modules(self.name)

    @property
    def to_freeze(self) -> bool:
        """Whether it has to stay at its version through upgrades of the system."""
        return self.present and not _NOT_FROZEN.match(self.name)


@dataclass(frozen=True)
class Installed:
    """The driver that is installed, loaded or not."""

    version: str | None
    branch: int | None
    flavor: str | None
    source: str | None


@dataclass(frozen=True)
class Kernel:
    """A kernel. `module`: the NVIDIA module it would load; `looked_at`: whether that is known at all."""

    release: str
    headers: bool | None
    module: t.Mapping[str, t.Any] | None
    looked_at: bool


class Host:
    """Read access to one observation."""

    def __init__(self, observation: t.Any, knowledge: Knowledge) -> None:
        observation = conform(observation, _SHAPE) or {}
        self.observation: dict[str, t.Any] = observation
        self.os = _mapping(observation.get("os"))
        self.driver = _mapping(observation.get("driver"))
        self.driver_known = bool(self.driver)
        self.gpus_known = isinstance(observation.get("gpus"), list)
        self.os_id = str(self.os.get("id") or "").lower()
        self.os_version = str(self.os.get("version_id") or "")
        self.arch_known = bool(self.os.get("arch"))
        self.arch = _ARCHITECTURES.get(str(self.os.get("arch")), str(self.os.get("arch") or "x86_64"))
        self.distribution: Distribution | None = knowledge.distribution(self.os_id, self.os_version)
        self.wsl = self.os.get("virtualization") == "wsl"
        self.gpus = tuple(_gpu(_mapping(row), knowledge) for row in _list(observation.get("gpus")))
        self.packages = tuple(_package(_mapping(row)) for row in _list(self.driver.get("packages")))
        self.installed = self._installed()
        self.loaded_version: str | None = self.driver.get("loaded_version")
        self.loaded_flavor: str | None = self.driver.get("loaded_flavor")

    @property
    def os_name(self) -> str:
        """Name the system in a sentence."""
        if self.distribution:
            return self.distribution.name
        return f"{self.os_id or 'an unknown system'} {self.os_version}".strip()

    def _installed(self) -> Installed | None:
        driver = self.driver
        core = [package for package in self.packages if package.present and package.is_driver]
        # What is loaded says what is installed only where nobody looked at what is installed.
        version = driver.get("userspace_version", driver.get("loaded_version"))
        if not version and not driver.get("branch") and not core:
            return None
        versions = [
            upstream_version(package.version)
            for package in core
            if re.match(r"libcuda1$|libnvidia-compute|nvidia-driver", package.name)
        ]
        version = version or (versions[0] if versions else None)
        branch = driver.get("branch") or (branch_of(version) if version else None)
        return Installed(
            version=version,
            branch=branch,
            flavor=driver.get("flavor") or driver.get("loaded_flavor"),
            source=driver.get("source"),
        )

    def has_package(self, name: str) -> bool:
        return any(package.name == name and package.state == "installed" for package in self.packages)

    def moving_packages(self) -> list[Package]:
        """The installed packages that move with the driver, because they carry its version."""
        version = self.installed.version if self.installed else None
        return [
            package
            for package in self.packages
            if package.present and package.is_driver and upstream_version(package.version) == version
        ]

    def bootable_kernels(self) -> list[Kernel]:
        """The kernels that can boot next: the running one, the default and one to fall back on."""
        rows = [_mapping(row) for row in _list(self.os.get("kernels"))]
        modules = _mapping(self.driver.get("modules_by_kernel"))
        chosen = [row for row in rows if row.get("running")]
        default = [row for row in rows if row.get("default")] or rows[:1]
        chosen += [row for row in default if row not in chosen]
        chosen += [row for row in rows if row not in chosen][:1]
        return [
            Kernel(
                release=str(row["release"]),
                headers=row.get("headers"),
                module=_mapping(modules.get(row["release"])) or None,
                looked_at=row["release"] in modules,
            )
            for row in rows
            if row in chosen and row.get("release")
        ]

    def future_kernels(self) -> list[str]:
        """Releases of the kernels that can boot next."""
        return [kernel.release for kernel in self.bootable_kernels()]

    def older_kernels(self) -> list[str]:
        """The other kernels that are installed."""
        bootable = {kernel.release for kernel in self.bootable_kernels()}
        rows = [_mapping(row) for row in _list(self.os.get("kernels"))]
        return [str(row.get("release")) for row in rows if row.get("release") not in bootable]

    def processes(self, *kinds: str, elsewhere: t.Sequence[str] = ()) -> list[str]:
        """Name the processes of some kinds that hold a GPU; not those that are known to compute on GPUs ``elsewhere`` alone."""
        rows = [_mapping(row) for row in _list(self.driver.get("processes"))]
        chosen = [
            row
            for row in rows
            if row.get("kind") in kinds and not (row.get("gpus") and set(_list(row["gpus"])) <= set(elsewhere))
        ]
        where = {id(row): f" in container {row['container']}" if row.get("container") else "" for row in chosen}
        return sorted({f"{row.get('command')} ({row.get('pid')}{where[id(row)]})" for row in chosen})

    @property
    def nouveau(self) -> bool:
        """Whether a driver that is not NVIDIA's holds a GPU or could."""
        bound = any(gpu.kernel_driver in ("nouveau", "nova_core") for gpu in self.gpus)
        return bound or bool(self.driver.get("nouveau_loaded") or self.driver.get("nova_core_loaded"))

    def apt_sources(self) -> list[t.Mapping[str, t.Any]]:
        return [_mapping(row) for row in _list(_mapping(self.os.get("apt")).get("sources"))]

    @property
    def apt_sources_known(self) -> bool:
        return isinstance(_mapping(self.os.get("apt")).get("sources"), list)

    @property
    def dnf(self) -> dict[str, t.Any]:
        return _mapping(self.os.get("dnf"))

    def dnf_repositories(self) -> list[t.Mapping[str, t.Any]]:
        """Those that are enabled."""
        rows = [_mapping(row) for row in _list(self.dnf.get("repositories"))]
        return [row for row in rows if row.get("enabled") is not False]

    @property
    def dnf_repositories_known(self) -> bool:
        return isinstance(self.dnf.get("repositories"), list)

    def dnf_excludes(self) -> list[t.Mapping[str, t.Any]]:
        return [_mapping(row) for row in _list(self.dnf.get("excludes"))]

    @property
    def stream(self) -> str | None:
        """The enabled module stream of NVIDIA's driver."""
        return _mapping(self.dnf.get("streams")).get("nvidia-driver")

    def pins(self) -> list[t.Mapping[str, t.Any]]:
        return [_mapping(row) for row in _list(self.driver.get("pins"))]

    @property
    def pins_known(self) -> bool:
        return isinstance(self.driver.get("pins"), list)

    @property
    def journal(self) -> dict[str, t.Any]:
        """What the role wrote down at its last change."""
        return _mapping(self.driver.get("journal"))

    def own_holds(self) -> frozenset[str]:
        """Names of the packages that we hold or lock; every other hold is the user's."""
        return frozenset(_list(self.journal.get("holds")))

    def missing_gpus(self, excluded: t.Sequence[str] = ()) -> list[str]:
        """GPUs that should be here and are not, each in a sentence; not those that are none of our business."""
        rows = [_mapping(row) for row in _list(_mapping(self.observation.get("health")).get("missing_gpus"))]
        return [str(row.get("text")) for row in rows if row.get("pci_address") not in excluded]

    def observed_gpus(self) -> list[t.Mapping[str, t.Any]]:
        """The GPUs as they were observed, with their health."""
        return [_mapping(row) for row in _list(self.observation.get("gpus"))]

    def xid_events(self) -> list[t.Mapping[str, t.Any]]:
        """What the driver logged of its GPUs."""
        return [_mapping(row) for row in _list(_mapping(self.observation.get("health")).get("xid"))]

    def virtual(self, gpu: Gpu) -> str | None:
        """`vgpu`: a share of a GPU; `passthrough`: given away to a guest; None: neither, or not known."""
        return _mapping(self.driver.get("virtual")).get(gpu.address or "")

    @property
    def machine_owner_key(self) -> dict[str, t.Any]:
        return _mapping(self.os.get("machine_owner_key"))

    @property
    def change_under_way(self) -> bool:
        """Whether a change of ours began and did not end."""
        return bool(_mapping(self.journal.get("before")).get("under_way"))

    def inhibitors(self) -> list[str]:
        """Name who holds a reboot off."""
        rows = [_mapping(row) for row in _list(self.os.get("inhibitors"))]
        return [f"{row.get('who')} ({row.get('why')})" for row in rows]

    def interrupted(self) -> list[str]:
        """What package work left half-done, in words."""
        told = [str(text) for text in _list(self.driver.get("interrupted"))]
        broken = [f"{package.name} is {package.state}" for package in self.packages if package.broken]
        return told or broken

    def nouveau_at_boot(self) -> list[str]:
        """Kernels that can boot next and whose initramfs brings nouveau."""
        found = _mapping(self.driver.get("nouveau_in_initramfs"))
        return [release for release in self.future_kernels() if found.get(release)]

    def lacks_node(self, path: str) -> bool:
        return _mapping(self.driver.get("device_nodes")).get(path) is False

    def is_staged(self, branch: int | None, flavor: str | None, digest: str) -> bool:
        """Whether exactly this change is downloaded and tried already."""
        staged = _mapping(self.driver.get("staged"))
        return bool(digest) and (staged.get("branch"), staged.get("flavor"), staged.get("packages")) == (
            branch,
            flavor,
            digest,
        )

    def pythons(self) -> t.Mapping[str, str] | None:
        """The installed interpreters by version; None where that is not known."""
        pythons = self.os.get("pythons")
        return pythons if isinstance(pythons, dict) else None

    def why_no_gpu_runs(self) -> tuple[str, str] | None:
        """Why no program can use a GPU at present, as the proof would find, with what to do; None where nothing is known against it."""
        nodes = _mapping(self.driver.get("device_nodes"))
        of_gpus = [there for path, there in nodes.items() if re.fullmatch(r"/dev/nvidia[0-9]+", path)]
        if not self.loaded_version:
            return "the NVIDIA kernel module is not loaded", "Load the driver (role nvidia_driver), then run again."
        if self.driver.get("mismatch"):
            return "the loaded driver is not the installed one", "Reboot the host, then run again."
        if self.os.get("virtualization") == "container" and of_gpus and not any(of_gpus):
            return "this container has no device node of a GPU", "Give the container the GPUs, then run again."
        return None

    def environment(self, name: str) -> t.Mapping[str, t.Any]:
        rows = [_mapping(row) for row in _list(self.observation.get("environments"))]
        return next((row for row in rows if row.get("name") == name), {})

    def foreign(self) -> list[t.Mapping[str, t.Any]]:
        """What others installed."""
        return [_mapping(row) for row in _list(self.observation.get("foreign"))]

    def file(self, path: str) -> t.Mapping[str, t.Any] | None:
        """What is at a path; None: nothing, or not known."""
        return _mapping(_mapping(self.observation.get("files")).get(path)) or None

    def difference(self, wanted: ManagedFile) -> str | None:
        """How the file on the host differs from a managed one; None: not at all."""
        return self.difference_from(
            wanted.path,
            hashlib.sha256(wanted.content.encode("utf-8")).hexdigest(),
            wanted.mode,
            wanted.owner,
            wanted.group,
        )

    def difference_from(
        self, path: str, sha256: str | None, mode: str = "0644", owner: str = "root", group: str = "root"
    ) -> str | None:
        found = self.file(path)
        if found is None:
            return "it is not there"
        if found.get("type") not in (None, "file"):
            return f"a {found['type']} is in its place"
        if sha256 is not None and found.get("sha256") != sha256:
            return "its content differs"
        for key, value in (("mode", mode), ("owner", owner), ("group", group)):
            if found.get(key) not in (None, value):
                return f"its {key} is {found[key]}, not {value}"
        return None

    def runtime(self, context: str) -> t.Mapping[str, t.Any]:
        return _mapping(_mapping(self.observation.get("runtime")).get(context))

    def breaking(self) -> list[t.Mapping[str, t.Any]]:
        """Variables and library folders that others set and that harm CUDA programs."""
        return [_mapping(row) for row in _list(_mapping(self.observation.get("runtime")).get("breaking"))]

    def free(self, path: str) -> t.Mapping[str, t.Any]:
        """Free space of the file system that holds a path, as far as it is known."""
        disks = _mapping(_mapping(self.observation.get("health")).get("disk"))
        while path and path not in disks:
            path = path.rpartition("/")[0]
        return _mapping(disks.get(path) or disks.get("/"))

    def silence(self, url: str) -> str | None:
        """Why a URL cannot be used from this host; None where it answers, or was not asked."""
        answer = _mapping(_mapping(self.observation.get("urls")).get(url))
        return answer.get("error") or ("it did not answer" if answer and answer.get("status") is None else None)

    @property
    def health(self) -> t.Mapping[str, t.Any]:
        return _mapping(self.observation.get("health"))

    def unknown(self) -> list[str]:
        rows = [_mapping(row) for row in _list(self.observation.get("unknown"))]
        return [f"{row.get('what')} could not be read: {row.get('why')}" for row in rows]


def _mapping(value: t.Any) -> dict[str, t.Any]:
    return value if isinstance(value, dict) else {}


def _list(value: t.Any) -> t.Sequence[t.Any]:
    return value if isinstance(value, list) else ()


def _package(row: t.Mapping[str, t.Any]) -> Package:
    return Package(
        name=str(row.get("name") or ""),
        version=str(row.get("version") or ""),
        source=str(row.get("source") or "unknown"),
        held=bool(row.get("held")),
        state=str(row.get("state") or "installed"),
    )


def _gpu(row: t.Mapping[str, t.Any], knowledge: Knowledge) -> Gpu:
    given = str(row.get("pci_device_id") or "").lower()
    device_id = (given[2:] if given.startswith("0x") else given).rjust(4, "0") if given else None
    listed = pci_ids.lookup(device_id) if device_id else None
    added = knowledge.gpus.get(device_id or "")
    number = int(device_id, 16) if device_id and re.fullmatch(r"[0-9a-f]+", device_id) else None
    # What the driver says of the device beats the table.
    cc = row.get("compute_capability") or (added.cc if added else listed.compute_capability if listed else None)
    cc = cc if cc and re.fullmatch(r"[0-9]+\.[0-9]", str(cc)) else None
    architecture = knowledge.architectures.get(cc) if cc else None
    named = added.name if added else listed.name if listed else ""
    name = str(row.get("name") or named or f"unknown GPU [10de:{device_id or '????'}]")
    model = knowledge.model(device_id, name)
    before_turing = number is not None and number < knowledge.pci["first_turing"]
    modules = architecture.modules if architecture else "proprietary" if before_turing and not cc else "open"
    if model and model.modules:
        modules = model.modules
    oldest, volta = min(knowledge.architectures, key=version_key), knowledge.architectures["7.0"]
    return Gpu(
        address=normal_pci_address(str(row["pci_address"])) or str(row["pci_address"])
        if row.get("pci_address")
        else None,
        device_id=device_id,
        name=name.replace("NVIDIA ", "", 1),
        cc=cc,
        architecture=architecture,
        architecture_name=str(row.get("architecture") or (architecture.name if architecture else "")) or None,
        known=architecture is not None,
        too_old=version_key(cc) < version_key(oldest)
        if cc
        else number is not None and number < knowledge.pci["first_supported"],
        modules=modules,
        first_driver=model.first_driver if model else architecture.first_driver if architecture else None,
        last_branch=architecture.last_branch
        if architecture
        else volta.last_branch
        if before_turing and not cc
        else None,
        kernel_driver=row.get("kernel_driver"),
    )
