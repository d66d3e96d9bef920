# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Which of its causes a failure has on this host.

A rule looks at what the proof's processes told beside their checks, and at a few files of the host, and answers with a
code of failures.py and a sentence that names the path, version or process. Rules read only, cost milliseconds, and are
asked only about checks that failed. What a process told may be made up by anything in an environment: it can choose
words of the evidence, never a verdict.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from .._probe import child, driver, proc, sysfs, xid
from .._probe.accounts import group_name, user_name
from .._probe.child import NoAnswer
from .._probe.host import KIB, Host, Unreadable
from . import failures

_MISSING = (errno.ENOENT, errno.ENXIO, errno.ENODEV)
_MODES = {1: "EXCLUSIVE_THREAD", 2: "PROHIBITED", 3: "EXCLUSIVE_PROCESS"}  # nvmlComputeMode_t
_HIDING = "CUDA_VISIBLE_DEVICES"
_LIBCUDA = re.compile(r"libcuda\.so\.(\d+(?:\.\d+)+)$")
_CONFIGURATION = 64 * KIB
_NAMES = 50_000  # of files and folders, looked at for damage
_DAMAGE_SECONDS = 10.0  # for that; it can lie on a file system that does not answer
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_GPU_IS_LOST = 15  # NVML_ERROR_GPU_IS_LOST
_SHOWN = 80  # characters of a value
_LOG_SECONDS = 4.0  # for the kernel log, once a proof that failed


class Found(NamedTuple):
    """A narrower code, or the same again, and the evidence for it."""

    code: str
    sentence: str


@dataclass(frozen=True)
class Seen:
    """What the processes of the proof told beside their checks."""

    nvml: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # by PCI address: compute_mode, mig, instances, processes
    lost: bool = False  # NVML could not reach a GPU that it counts
    libcuda: str | None = None  # the file that was loaded
    nodes: dict[str, int] = field(default_factory=dict)  # how opening a device node ended: 0 or an errno
    variables: dict[str, str] = field(default_factory=dict)  # those that the environment's own start files set
    prefix: str | None = None  # of the environment
    account: str = ""
    missing: Sequence[str] = ()  # addresses of GPUs that CUDA does not show


def seen(records: Sequence[dict[str, Any]], account: str, missing: Sequence[str], prefix: str | None) -> Seen:
    """Collect it from the records; whatever has not the right form counts as not told. `prefix` is the environment's folder."""
    found: dict[str, Any] = {"account": account, "missing": missing, "prefix": prefix}
    for record in records:
        event = record.get("event")
        if event == "nvml":
            gpus = _mapping(record.get("gpus"), dict)
            found["nvml"] = {address: gpus[address] for address in gpus if sysfs.pci_address(address) == address}
            found["lost"] = _GPU_IS_LOST in _numbers(record.get("errors"))
        elif event == "around":
            found["libcuda"] = _path(record.get("libcuda"))
            found["nodes"] = _mapping(record.get("nodes"), int)
        elif event == "torch":
            found["variables"] = _mapping(_mapping(record.get("facts"), dict).get("variables"), str)
    return Seen(**found)


def _path(value: Any) -> str | None:
    return value if isinstance(value, str) and value.startswith("/") and "\0" not in value else None


def _mapping(value: Any, kind: type) -> dict[str, Any]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: about for name, about in pairs if isinstance(name, str) and isinstance(about, kind)}


def _numbers(value: Any) -> list[int]:
    return [number for number in value if isinstance(number, int)] if isinstance(value, list) else []


def narrow(host: Host, told: Seen, checks: Sequence[dict[str, Any]], gpus: Sequence[dict[str, Any]]) -> None:
    """Give every failed check the code of its cause, where the host shows it, and the evidence for it."""
    causes = Causes(host, told)
    for check in checks:
        causes.narrow(check)
    for gpu in gpus:
        for check in gpu["checks"]:
            causes.narrow(check, gpu["pci_address"])


class Causes:
    """The rules, for one host and one proof."""

    def __init__(self, host: Host, told: Seen) -> None:
        self.host = host
        self.seen = told

    def narrow(self, check: dict[str, Any], gpu: str | None = None) -> None:
        """Ask the rules of a failed check, until one knows."""
        if check["status"] != "failed":
            return
        for rule in _RULES.get(check["code"], ()):
            try:
                found = rule(self, check, gpu)
            except (OSError, Unreadable, NoAnswer, ValueError):  # a rule that cannot see explains nothing
                continue
            if found is not None:
                check["code"], check["remedy"] = found.code, failures.remedy(found.code)
                check["evidence"] += f" ({found.sentence})"
                return

    # ---- the driver's library ------------------------------------------------------------------------------------

    def stub(self, check: dict[str, Any], _gpu: str | None) -> Found | None:
        path = self.seen.libcuda
        if path and ("/stubs/" in path or check["code"] == "cuda_34"):
            return Found("cuda_34", f"the libcuda that was loaded is {path}{self._configured(path)}")
        return None

    def other_libcuda(self, check: dict[str, Any], _gpu: str | None) -> Found | None:
        """Another libcuda than the installed driver's, which fits the loaded module."""
        path, loaded = self.seen.libcuda, self._loaded
        version = _LIBCUDA.search(path or "")
        if not (path and version and loaded) or version.group(1) == loaded or self._installed != loaded:
            return None
        code = "cuda_804" if check["code"] == "cuda_804" else "shadowed_driver"
        return Found(code, f"{path} was loaded, the installed driver is {loaded}{self._configured(path)}")

    def compat(self, _check: dict[str, Any], _gpu: str | None) -> Found | None:
        path = self.seen.libcuda
        return Found("cuda_804", f"the libcuda that was loaded is {path}{self._configured(path)}") if path else None

    def versions(self, check: dict[str, Any], _gpu: str | None) -> Found | None:
        """The driver that runs against the one that is installed."""
        loaded, installed = self._loaded, self._installed
        if not loaded:
            return None
        if not installed or installed == loaded:
            return Found(check["code"], f"driver {loaded} is loaded") if check["code"] != "cuda_803" else None
        sentence = f"driver {loaded} is loaded, {installed} is installed"
        newer = [int(part) for part in installed.split(".")] > [int(part) for part in loaded.split(".")]
        return Found("driver_not_loaded_yet" if newer and check["code"] != "cuda_803" else check["code"], sentence)

    @cached_property
    def _loaded(self) -> str | None:
        return proc.nvidia_version(self.host.text("/proc/driver/nvidia/version") or "")[0]

    @cached_property
    def _installed(self) -> str | None:
        return driver.userspace_version(self.host)

    def _configured(self, path: str) -> str:
        """Which file leads the loader to the folder of this library."""
        folder = os.path.dirname(path)
        names = [f"/etc/ld.so.conf.d/{name}" for name in self.host.names("/etc/ld.so.conf.d")]
        for name in ["/etc/ld.so.conf", *names]:
            for line in (self.host.text(name, _CONFIGURATION) or "").splitlines():
                if line.startswith("/") and self.host.resolve(line.strip()) == folder:
                    return f"; {name} names that folder"
        return ""

    # ---- modules and device nodes --------------------------------------------------------------------------------

    def uvm(self, _check: dict[str, Any], _gpu: str | None) -> Found | None:
        if sysfs.module_loaded(self.host, "nvidia") and not sysfs.module_loaded(self.host, "nvidia_uvm"):
            return Found("uvm_not_loaded", "the module nvidia is loaded, nvidia_uvm is not")
        return None

    def nodes(self, _check: dict[str, Any], _gpu: str | None) -> Found | None:
        for path, number in self.seen.nodes.items():
            if number == errno.EACCES:
                return Found("device_permission", f"'{self.seen.account}' may not open {path}{self._mode(path)}")
            if number == errno.EPERM:
                return Found("device_forbidden", f"{path} is there and must not be opened: {os.strerror(number)}")
            if number in _MISSING:
                return Found("device_missing", f"{path}: {os.strerror(number)}")
            if number == errno.EIO:
                return Found("gpu_not_started", f"{path}: {os.strerror(number)}")
        return None

    def _mode(self, path: str) -> str:
        state = self.host.lstat(path)
        if state is None:
            return ""
        return f": it is {user_name(state.st_uid)}'s, group {group_name(state.st_gid)}, mode {stat.S_IMODE(state.st_mode):04o}"

    def suspended(self, _check: dict[str, Any], _gpu: str | None) -> Found | None:
        times = (self.host.text("/sys/power/suspend_stats/success", KIB) or "").strip()
        if times.isdecimal() and int(times):
            return Found("suspended", f"this host slept {int(times)} times since it booted")
        return None

    def fabric_manager(self, _check: dict[str, Any], _gpu: str | None) -> Found | None:
        names = [
            self.host.text(f"/proc/{name}/comm", KIB) or "" for name in self.host.names("/proc") if name.isdecimal()
        ]
        if not names or any(name.startswith("nv-fabricmanage") for name in names):
            return None
        return Found("fabric_manager_stopped", "no process nv-fabricmanager runs")

    # ---- GPUs ----------------------------------------------------------------------------------------------------

    def lost(self, _check: dict[str, Any], gpu: str | None) -> Found | None:
        """A GPU whose PCI configuration reads as ones only, or that NVML or the kernel log gives up."""
        for address in [gpu] if gpu else self._addresses:
            if self._configuration(address) == b"\xff" * 4:
                return Found("gpu_lost", f"{address} does not answer on PCI Express")
            if any(event["number"] == 79 and event["pci_address"] == address for event in self._xids):
                return Found("gpu_lost", f"the kernel log has Xid 79 for {address}: GPU has fallen off the bus")
        if self.seen.lost and not gpu:
            return Found("gpu_lost", "NVML says 'GPU is lost'")
        return None

    def told_by_kernel(self, check: dict[str, Any], gpu: str | None) -> Found | None:
        """The last Xid of this boot; the code stays, for an Xid says what happened and seldom why."""
        events = [event for event in self._xids if gpu in (None, event["pci_address"])]
        if not events or (gpu is None and not check["id"].startswith(("driver.", "torch.devices", "gpus."))):
            return None
        last = events[-1]
        known = f"Xid {last['number']} ({last['title']}) on {last['pci_address']}"
        return Found(check["code"], f"the kernel log has {known} at {last['last_at']}")

    @cached_property
    def _xids(self) -> list[dict[str, Any]]:
        return [event for event in xid.read(self.host, _LOG_SECONDS)["events"] or () if event["this_boot"]]

    @cached_property
    def _addresses(self) -> list[str]:
        return [gpu["pci_address"] for gpu in sysfs.pci_gpus(self.host, []) or ()]

    def _configuration(self, address: str) -> bytes:
        try:
            with self.host.open(f"/sys/bus/pci/devices/{address}/config") as file:
                return file.read(4)
        except (OSError, Unreadable):
            return b""

    def not_served(self, _check: dict[str, Any], _gpu: str | None) -> Found | None:
        """A missing GPU that another kernel driver has, or none; where CUDA shows nothing, it must be so with all of them."""
        gpus = sysfs.pci_gpus(self.host, []) or []
        wanted = [gpu for gpu in gpus if not self.seen.missing or gpu["pci_address"] in self.seen.missing]
        others = [gpu for gpu in wanted if gpu["kernel_driver"] != "nvidia"]
        if not others or (not self.seen.missing and len(others) < len(gpus)):
            return None
        names = [f"{gpu['pci_address']} has the kernel driver {gpu['kernel_driver'] or 'none'}" for gpu in others]
        return Found("gpu_not_served", ", ".join(names))

    def mig(self, _check: dict[str, Any], gpu: str | None) -> Found | None:
        parted = {address: about for address, about in self.seen.nvml.items() if about.get("mig") is True}
        for address in [gpu] if gpu else self.seen.missing or parted:
            if address in parted and not parted[address].get("instances"):
                return Found("mig_empty", f"MIG is on at {address}, and there is no instance")
        if parted:
            return Found("mig_one_instance", f"MIG is on at {', '.join(sorted(parted))}")
        return None

    def compute_mode(self, _check: dict[str, Any], gpu: str | None) -> Found | None:
        for address, about in self.seen.nvml.items():
            mode = next(iter(_numbers([about.get("compute_mode")])), 0)
            if mode in _MODES and gpu in (None, address):
                names = []
                for pid in _numbers(about.get("processes"))[:5]:
                    names.append(f"{(self.host.text(f'/proc/{pid}/comm', KIB) or 'a process').strip()} ({pid})")
                held = f", held by {', '.join(names)}" if names else ""
                return Found("compute_mode", f"{address} is in compute mode {_MODES[mode]}{held}")
        return None

    # ---- the environment -----------------------------------------------------------------------------------------

    def hidden(self, check: dict[str, Any], _gpu: str | None) -> Found | None:
        """Of the environment's own variables the driver's program, which runs without the environment, gets none."""
        value = self.seen.variables.get(_HIDING)
        if value is None or not check["id"].startswith("torch."):
            return None
        where = f"in the environment's own processes{self._sets(_HIDING)}"
        return Found("devices_hidden", f"{_HIDING} is {value[:_SHOWN]!r} {where}")

    def _sets(self, name: str) -> str:
        """Which file gives the variable to every start of this Python."""
        for path in self._start_files():
            try:
                if name in (self.host.text(path, _CONFIGURATION) or ""):
                    return f", set in {path}"
            except (OSError, Unreadable):
                continue
        return ""

    def _start_files(self) -> Iterator[str]:
        prefix = self.seen.prefix
        if prefix:
            yield os.path.normpath(f"{prefix}/../../runtime.env")  # releases/<id> of our own environments
            for folder in self._sites(prefix):
                yield from (f"{folder}/{name}" for name in self.host.names(folder) if name.endswith(".pth"))
                yield f"{folder}/sitecustomize.py"
        yield from (f"/etc/{name}/sitecustomize.py" for name in self.host.names("/etc") if name.startswith("python3"))
        yield "/etc/environment"

    def _sites(self, prefix: str) -> list[str]:
        names = self.host.names(f"{prefix}/lib")
        return [f"{prefix}/lib/{name}/site-packages" for name in names if name.startswith("python3")]

    def damaged(self, check: dict[str, Any], _gpu: str | None) -> Found | None:
        """A library that is cut short kills the process that uses it, mostly by SIGBUS, without a word."""
        other_crash = check["code"] == "crashed" and not re.search(r"SIGBUS|SIGSEGV", check["evidence"])
        if other_crash or not self.seen.prefix or check["id"].startswith(("driver.", "gpu.driver_kernel")):
            return None
        return Found("damaged_library", f"{self._damage} is not whole") if self._damage else None

    @cached_property
    def _damage(self) -> str | None:
        """The first library of the environment that is cut short; None where none is, or where that cannot be told in time."""
        sites = [self.host.at(site) for site in self._sites(str(self.seen.prefix))]
        try:
            found = child.start(lambda: _first_cut_short(sites), _DAMAGE_SECONDS).answer()
        except (NoAnswer, OSError):
            return None
        return found[len(self.host.root) :] if found else None

    def configured_library(self, check: dict[str, Any], _gpu: str | None) -> Found | None:
        path = _path(check["values"].get("path"))
        leads = self._configured(path) if path else ""
        return Found(check["code"], leads.lstrip("; ")) if leads else None


def _first_cut_short(folders: Sequence[str]) -> str | None:
    room = _NAMES
    for top in folders:
        for folder, inner, names in os.walk(top):
            for name in names:
                if ".so" in name and _cut_short(os.path.join(folder, name)):
                    return os.path.join(folder, name)
            room -= len(names) + len(inner)
            if room < 0:
                return None
    return None


def _cut_short(path: str) -> bool:
    """Whether an ELF file ends before its own table of sections does, or has no content at its beginning."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # a link, or closed to us
        return False
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            return False
        head = os.read(descriptor, _ELF_HEADER.size)
    except OSError:
        return True  # the disk does not give it
    finally:
        os.close(descriptor)
    if not head.strip(b"\0"):
        return True
    if head[:6] != b"\x7fELF\x02\x01":
        return False
    if len(head) < _ELF_HEADER.size:
        return True
    fields = _ELF_HEADER.unpack(head)
    sections, size, number = fields[6], fields[11], fields[12]
    return bool(sections + size * number > state.st_size)


Rule = Callable[[Causes, "dict[str, Any]", Any], Any]
_NO_START: tuple[Rule, ...] = (Causes.stub, Causes.other_libcuda, Causes.lost, Causes.uvm, Causes.nodes)
_TOO_OLD: tuple[Rule, ...] = (Causes.stub, Causes.other_libcuda, Causes.versions)
_HARDWARE: tuple[Rule, ...] = (Causes.lost, Causes.told_by_kernel)
_RULES: dict[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("cuda_3", "cuda_304", "cuda_800"), _NO_START),
    "cuda_999": (*_NO_START, Causes.suspended, Causes.told_by_kernel),
    "cuda_34": (Causes.stub,),
    **dict.fromkeys(("cuda_35", "cuda_36", "cuda_222", "cuda_803"), _TOO_OLD),
    "cuda_804": (Causes.other_libcuda, Causes.compat),
    "cuda_802": (Causes.fabric_manager,),
    "cuda_100": (Causes.hidden, Causes.mig, Causes.not_served, *_NO_START, Causes.told_by_kernel),
    "torch_misses_gpu": (Causes.hidden, Causes.mig),
    "gpu_missing": (Causes.lost, Causes.mig, Causes.not_served, Causes.told_by_kernel),
    "cuda_46": (Causes.compute_mode, Causes.lost),
    **dict.fromkeys(("import_failed", "failed"), (Causes.damaged,)),
    "crashed": (Causes.damaged, *_HARDWARE),
    "shadowed_library": (Causes.configured_library,),
    **dict.fromkeys(
        (
            *("wrong_result", "timed_out", "hung", "unkillable", "xid", "ecc_uncorrected"),
            *(
                f"cuda_{number}"
                for number in (101, 205, 206, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718)
            ),
            *("cuda_719", "cuda_909", "cuda_911"),
        ),
        _HARDWARE,
    ),
}
