# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Put the observation together (docs/architecture.md, "Observation").

The children that ask NVML and libcuda start first and work while this process reads files; their answers come last. Each
part stands alone: one that cannot be read is null and named in ``unknown``, the others are as complete as ever.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, Callable

from .._compat import pci_ids
from . import (
    boot,
    breaking,
    child,
    driver,
    environments,
    expected,
    files,
    foreign,
    health,
    kernels,
    packages,
    proc,
    rpm,
    secure_boot,
    sessions,
    sysfs,
    system,
    web,
    xid,
)
from .host import Host, reason

SCHEMA = 1
_FOREIGN_LIMIT = 5.0  # seconds
_ENVIRONMENTS_LIMIT = 2.0  # seconds
# Any of these means that a driver is there to be asked. Without them NVML would try to load the module, and we only read.
_DRIVER_TRACES = ("/sys/module/nvidia", "/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
_LOG_LIMIT = 4.0  # seconds


@dataclass(frozen=True)
class Request:
    """What to look at."""

    root: str = "/opt/gpufleet/envs"
    environments: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=lambda: ["TOKENIZERS_PARALLELISM"])
    cuda: bool = False
    urls: list[str] = field(default_factory=list)
    time_limit: float = 10.0
    integrity: str = "sizes"


class _Notes:
    """Collects what could not be read."""

    def __init__(self) -> None:
        self.unknown: list[dict[str, str]] = []

    def add(self, what: str, why: str) -> None:
        self.unknown.append({"what": what, "why": why})

    def attempt(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the function's value, or None with a note; a sick host may raise anything from anywhere."""
        try:
            return function(*arguments)
        except Exception as error:
            self.add(what, reason(error))
            return None


def observe(host: Host, request: Request) -> dict[str, Any]:
    """Return the observation. Never raises because of what the host is like."""
    notes = _Notes()
    children = _start(host, request, notes)
    others = _look_for_others(host, request, notes)
    log = _read_log(host, request, notes)
    release = notes.attempt("os", system.identity, host) or dict.fromkeys(("id", "version_id", "codename", "family"))
    manager = notes.attempt("os.package_manager", packages.manager, host, release["family"])
    database = notes.attempt("driver.packages", packages.inventory, host, manager, notes.unknown)
    locks = notes.attempt("health.locks", health.locks, host, notes.unknown)
    seen = {
        "schema": SCHEMA,
        "observed_at": system.utc(time.time()),
        "os": _os(host, release, manager, notes),
        "gpus": notes.attempt("gpus", sysfs.pci_gpus, host, notes.unknown),
        "driver": _driver(host, database, locks or [], notes),
        "environments": notes.attempt(
            "environments",
            environments.observe,
            host,
            request.root,
            request.environments,
            notes.unknown,
            request.integrity == "hashes",
        )
        or [],
        "runtime": notes.attempt("runtime", files.runtime, host, request.variables),
        "files": notes.attempt("files", files.described, host, request.files, notes.unknown) or {},
        "health": {
            "disk": notes.attempt("health.disk", health.disk, host, request.root),
            "clock_synchronized": notes.attempt("health.clock_synchronized", health.clock_synchronized, host),
            "locks": locks,
            "xid": [],
            "missing_gpus": None,
        },
    }
    if request.urls:
        seen["urls"] = notes.attempt("urls", web.answers, request.urls, request.time_limit)
    _finish(host, seen, children, log, notes)
    seen["health"]["missing_gpus"] = notes.attempt("health.missing_gpus", _missing, host, seen)
    if seen["runtime"] is not None:
        seen["runtime"]["breaking"] = notes.attempt("runtime.breaking", _breaking, host, seen, notes)
    found = notes.attempt("foreign", others.answer) if others else None
    seen["foreign"] = found["found"] if found else None
    notes.unknown += found["unknown"] if found else []
    seen["unknown"] = notes.unknown
    return _printable(seen)


def _start(host: Host, request: Request, notes: _Notes) -> dict[str, child.Child]:
    """Start the children that ask the driver, where there is one."""
    if not any(host.exists(path) for path in _DRIVER_TRACES):
        if request.cuda:
            notes.add("driver.libcuda", "no driver is loaded")
        return {}

    def ask_nvml() -> Any:
        from . import nvml

        return nvml.read(host)

    def ask_libcuda() -> Any:
        from . import libcuda

        return libcuda.read(host)

    children = {}
    for name, function in (("libcuda", ask_libcuda), ("nvml", ask_nvml)):
        if name == "nvml" or request.cuda:
            confined = name == "nvml"  # CUDA needs nvidia-uvm, and the user asked for CUDA
            started = notes.attempt(name, child.start, function, request.time_limit, confined)
            if started:
                children[name] = started
    return children


def _look_for_others(host: Host, request: Request, notes: _Notes) -> child.Child | None:
    """Start the child that looks for what others installed; homes may lie on file systems that hang."""
    pid = os.getpid()

    def look() -> Any:
        return foreign.observe(host, request.root, request.environments, pid)

    return notes.attempt("foreign", child.start, look, min(_FOREIGN_LIMIT, request.time_limit))


def _read_log(host: Host, request: Request, notes: _Notes) -> child.Child | None:
    """Start the child that reads the kernel's log, where a driver could have written into it; a log may be long."""
    if not any(host.exists(path) for path in (*_DRIVER_TRACES, driver.JOURNAL, expected.PATH)):
        return None
    limit = min(_LOG_LIMIT, request.time_limit)
    return notes.attempt("health.xid", child.start, lambda: xid.read(host, limit), limit)


def _missing(host: Host, seen: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the GPUs that should be here and are not, or None where it is not known which are here."""
    if seen["gpus"] is None:
        return None
    booted_at = system.booted_at(host)
    return expected.missing(
        expected.read(host, seen["driver"]["journal"]),
        seen["gpus"],
        seen["health"]["xid"] or [],
        system.utc(booted_at) if booted_at is not None else None,
        seen["os"]["boot_id"],
    )


def _os(host: Host, release: dict[str, Any], manager: str | None, notes: _Notes) -> dict[str, Any]:
    running = notes.attempt("os.kernel", kernels.running_kernel, host)
    apt = dnf = None
    if manager != "dnf" and host.is_dir("/etc/apt"):
        sources = notes.attempt("os.apt", packages.apt_sources, host, notes.unknown)
        apt = None if sources is None else {"sources": sources}
    if manager == "dnf":
        dnf = notes.attempt("os.dnf", rpm.dnf, host, release["version_id"], notes.unknown)
    return {
        **release,
        "arch": host.machine,
        "kernel": running,
        "kernels": notes.attempt("os.kernels", kernels.kernels, host) or [],
        "secure_boot": notes.attempt("os.secure_boot", secure_boot.secure_boot, host),
        "machine_owner_key": notes.attempt("os.machine_owner_key", secure_boot.machine_owner_key, host, notes.unknown),
        "virtualization": notes.attempt("os.virtualization", sysfs.virtualization, host),
        "boot_id": notes.attempt("os.boot_id", system.boot_id, host),
        "init": notes.attempt("os.init", system.init, host),
        "uid": host.uid,
        "pythons": notes.attempt("os.pythons", system.pythons, host),
        "graphical": notes.attempt("os.graphical", driver.graphical, host),
        "glibc": notes.attempt("os.glibc", system.glibc),
        "package_manager": manager,
        "apt": apt,
        "dnf": dnf,
        "initramfs": notes.attempt("os.initramfs", boot.initramfs_tool, host, manager),
        "disk_passphrase": notes.attempt("os.disk_passphrase", boot.disk_passphrase, host),
        "sessions": notes.attempt("os.sessions", sessions.sessions, host),
        "inhibitors": notes.attempt("os.inhibitors", sessions.inhibitors, host),
    }


def _breaking(host: Host, seen: dict[str, Any], notes: _Notes) -> list[dict[str, Any]]:
    computing = [process for process in seen["driver"]["processes"] or [] if process["kind"] == "compute"]
    rows = breaking.system_wide(host, notes.unknown)
    if not computing:
        return rows
    # Of a process that hangs in the driver, the kernel may keep who reads its environment waiting.
    asked = child.start(lambda: breaking.of_processes(host, computing), _ENVIRONMENTS_LIMIT)
    return rows + (notes.attempt("runtime.breaking[processes]", asked.answer) or [])


def _driver(
    host: Host, database: packages.Inventory | None, locks: list[dict[str, Any]], notes: _Notes
) -> dict[str, Any]:
    """What files say of the driver; NVML and libcuda add to it in the end."""
    version, flavor = notes.attempt("driver.loaded_version", proc.loaded_driver, host) or (None, None)
    interrupted = database.interrupted if database else None
    busy = health.changing_packages(locks)
    if busy:  # what looks half-done is being done
        interrupted = None
        notes.add("driver.interrupted", f"{busy} changes packages right now")
    userspace = notes.attempt("driver.userspace_version", driver.userspace_version, host)
    return {
        "loaded_version": version,
        "loaded_flavor": flavor,
        "userspace_version": userspace,
        "branch": None,
        "flavor": None,
        "source": None,
        "packages": database.packages if database else None,
        "interrupted": interrupted,
        "pins": notes.attempt("driver.pins", packages.pins, host),
        "modules_by_kernel": {},
        "nouveau_in_initramfs": {},
        "nouveau_loaded": notes.attempt("driver.nouveau_loaded", sysfs.module_loaded, host, "nouveau"),
        "nova_core_loaded": notes.attempt("driver.nova_core_loaded", sysfs.module_loaded, host, "nova_core"),
        "persistence": notes.attempt("driver.persistence", driver.persistence, host),
        "cuda_api": None,
        "libcuda": None,
        "device_nodes": {},
        "virtual": {},
        "mismatch": None,
        "reboot_required": None,
        "processes": [],
        "journal": notes.attempt("driver.journal", driver.journal, host),
        "staged": notes.attempt("driver.staged", driver.staged, host),
        "generations": notes.attempt("driver.generations", driver.generations, host, notes.unknown),
    }


def _finish(
    host: Host, seen: dict[str, Any], children: dict[str, child.Child], log: child.Child | None, notes: _Notes
) -> None:
    """Add what takes longer while the children work, then what they say, and draw the sums."""
    found = seen["driver"]
    releases = [kernel["release"] for kernel in seen["os"]["kernels"]]
    found["modules_by_kernel"] = (
        notes.attempt("driver.modules_by_kernel", kernels.modules_by_kernel, host, releases, notes.unknown) or {}
    )
    found["nouveau_in_initramfs"] = notes.attempt(
        "driver.nouveau_in_initramfs", boot.nouveau_in_initramfs, host, releases
    )
    held = None
    if children:
        own = [os.getpid(), *(process.pid for process in children.values())]
        held = notes.attempt("driver.processes", proc.holders, host, own)
    answers = {name: notes.attempt(name, process.answer) for name, process in children.items()}
    nvml, libcuda = answers.get("nvml"), answers.get("libcuda")
    for what, why in (nvml or {}).get("problems", []):
        notes.add(what, why)
    if log:
        logged = notes.attempt("health.xid", log.answer) or {"events": None, "unknown": []}
        seen["health"]["xid"] = logged["events"]
        notes.unknown += logged["unknown"]
    if seen["gpus"] is not None or nvml or libcuda:
        fell = expected.fell_off(seen["health"]["xid"] or [])
        seen["gpus"] = _gpus(seen["gpus"] or [], nvml, libcuda, fell, notes)
    elif not any(note["what"] == "gpus" for note in notes.unknown):
        notes.add("gpus", "the kernel shows no PCI bus (/sys/bus/pci/devices), and no driver names a GPU")
    if children:
        pids = {pid for gpu in (nvml or {}).get("gpus", []) for pid in gpu["compute_pids"]}
        pids.difference_update(process.pid for process in children.values())
        found["processes"] = (
            None if held is None else notes.attempt("driver.processes", proc.describe, host, held, pids)
        )
        for process in found["processes"] or []:
            process["gpus"] = [
                gpu["pci_address"] for gpu in (nvml or {}).get("gpus", []) if process["pid"] in gpu["compute_pids"]
            ]
    _conclude(host, seen, nvml, libcuda, notes)


def _conclude(host: Host, seen: dict[str, Any], nvml: Any, libcuda: Any, notes: _Notes) -> None:
    """Fill in what follows from several sources."""
    found = seen["driver"]
    if found["loaded_version"] is None and nvml:
        found["loaded_version"] = nvml["driver_version"]  # WSL2: the module is Windows' own
    names = packages.summary(found["packages"] or [])
    wsl = seen["os"]["virtualization"] == "wsl"
    found["userspace_version"] = found["userspace_version"] or (nvml["driver_version"] if wsl and nvml else None)
    version = found["userspace_version"] or names["version"]
    found["branch"] = int(version.partition(".")[0]) if version else None
    modules = [module for module in found["modules_by_kernel"].values() if module and module["flavor"]]
    on_disk = found["modules_by_kernel"].get(seen["os"]["kernel"]) or (modules[0] if modules else None)
    found["flavor"] = (on_disk or {}).get("flavor") or names["flavor"] or (found["loaded_flavor"] if version else None)
    if wsl:
        found["source"] = "wsl" if version else None
    else:
        runfile = bool(version) and notes.attempt("driver.source", driver.is_runfile, host)
        found["source"] = names["source"] or ("runfile" if runfile else None)
    found["device_nodes"] = notes.attempt("driver.device_nodes", driver.device_nodes, host, seen["gpus"] or [])
    modes = {gpu["pci_address"]: gpu.get("virtualization_mode") for gpu in (nvml or {}).get("gpus", [])}
    guest = seen["os"]["virtualization"] not in (None, "container", "wsl")
    found["virtual"] = {
        gpu["pci_address"]: notes.attempt(
            "driver.virtual", driver.virtual, host, gpu, modes.get(gpu["pci_address"]), guest
        )
        for gpu in seen["gpus"] or []
    }
    found["cuda_api"] = (nvml or {}).get("cuda_version") or (libcuda or {}).get("cuda_version")
    if libcuda:
        found["libcuda"] = {key: libcuda[key] for key in ("result", "error")} | {"gpus": len(libcuda["gpus"])}
    loaded, installed = found["loaded_version"], found["userspace_version"]
    found["mismatch"] = loaded != installed if loaded and installed else None
    module_differs = bool(loaded and on_disk and on_disk["version"] not in (None, loaded))
    asked = notes.attempt("driver.reboot_required", driver.reboot_asked_for, host)
    found["reboot_required"] = bool(found["mismatch"] or module_differs or asked)


def _gpus(
    pci: list[dict[str, Any]], nvml: Any, libcuda: Any, fell: dict[str, str], notes: _Notes
) -> list[dict[str, Any]]:
    """Join what PCI, NVML and libcuda say of each GPU, by address."""
    by_nvml = {gpu["pci_address"]: gpu for gpu in (nvml or {}).get("gpus", [])}
    by_cuda = {gpu["pci_address"]: gpu for gpu in (libcuda or {}).get("gpus", [])}
    by_pci = {gpu["pci_address"]: gpu for gpu in pci}
    gpus = []
    for address in sorted({*by_pci, *by_nvml, *by_cuda}):
        on_bus, told, cuda = by_pci.get(address, {}), by_nvml.get(address, {}), by_cuda.get(address, {})
        device = on_bus.get("pci_device_id") or told.get("pci_device_id")
        known = pci_ids.lookup(device) if device else None
        capability = told.get("compute_capability") or cuda.get("compute_capability")
        capability = capability or (known.compute_capability if known else None)
        links = (on_bus.get("pcie") or {}, told.get("pcie") or {})
        state = told.get("health")
        mig = state["mig"] if state else None
        unserved = bool(nvml and not told and on_bus.get("kernel_driver") in (None, "nvidia"))
        lost = None
        if not on_bus.get("answers", True):
            lost = expected.SILENT
        elif told.get("lost") or (unserved and (nvml.get("lost") or address in fell)):
            lost = "the driver says that it is lost"
        gpus.append(
            {
                "pci_address": address,
                "pci_device_id": device,
                "subsystem_id": on_bus.get("subsystem_id") or told.get("subsystem_id"),
                "name": told.get("name") or cuda.get("name") or (known.name if known else None),
                "chip": known.chip if known else None,
                "compute_capability": capability,
                "sm": f"sm_{capability.replace('.', '')}" if capability else None,
                "architecture": pci_ids.ARCHITECTURES.get(capability or ""),
                "uuid": told.get("uuid") or cuda.get("uuid"),
                "memory_mib": told.get("memory_mib") or cuda.get("memory_mib"),
                "persistence_mode": told.get("persistence_mode"),
                "mig": mig["enabled"] if isinstance(mig, dict) else None,
                "pcie": {
                    key: links[0].get(key) or links[1].get(key)
                    for key in ("width", "max_width", "speed_gts", "max_speed_gts")
                },
                "kernel_driver": on_bus.get("kernel_driver"),
                "health": state,
                "lost": lost,
                "source": "nvml" if told else "libcuda" if cuda else "pci",
            }
        )
        if unserved:
            notes.add(
                f"gpus[{address}]",
                "it is on the PCI bus, but the driver does not serve it (NVML does not list it): see dmesg for NVRM and Xid",
            )
    return gpus


def _printable(value: Any) -> Any:
    """Make the value safe for JSON and for people: file names may hold bytes that are no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value
