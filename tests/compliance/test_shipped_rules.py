# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every shipped rule: what breaks it, and what is healthy though it looks otherwise."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import healthy
import pytest
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import evaluate, policies

SHIPPED = Path(__file__).resolve().parents[2] / "roles/gpu_compliance/files/policies"
NOW = datetime.datetime.fromisoformat(healthy.NOW)
RULES = {rule.id: rule for rule in policies.load([SHIPPED], {}, "tuning")}
NOT_APPLICABLE = "not_applicable"

Change = tuple[str, Any]
"""A place of the observation, or below plan:, and what stands there."""

_ECC = "gpus.0.health.ecc"
_XID = {
    "at": "2026-11-23T10:00:00Z",
    "last_at": "2026-11-23T10:00:00Z",
    "count": 1,
    "this_boot": True,
    "pci_address": healthy.GPU,
    "number": 48,
    "title": "double bit ECC error",
    "action": "reset",
    "severity": "critical",
    "process": None,
    "text": "NVRM: Xid",
}
_MISSING = {
    "pci_address": "0000:21:00.0",
    "uuid": "GPU-2",
    "name": "NVIDIA GeForce RTX 3090",
    "since": "2026-11-23T10:00:00Z",
    "since_what": "xid",
    "text": "It fell off the bus.",
}
_OLD_KERNEL = {"release": "6.8.0-31-generic", "running": False, "default": False, "headers": False}
_STALE = {"id": "proof.run:base", "step": "proof", "what": "prove base", "why": "the driver is another one", "data": {}}
_DNF = {
    "file": "/etc/yum.repos.d/cuda-rhel9.repo",
    "id": "cuda-rhel9-x86_64",
    "enabled": True,
    "keys": [],
    "urls": ["https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64"],
}
_NO_PIN: list[Change] = [("driver.pins", [])]
_BREAKING = {"where": "/etc/environment", "name": "CUDA_VISIBLE_DEVICES", "value": "", "why": "hides GPUs"}


def _action(identity: str, step: str) -> dict[str, Any]:
    return {"id": identity, "step": step, "what": "change it", "why": "it differs", "disruptive": False, "data": {}}


BREAKS: dict[str, list[Change]] = {
    "driver.loaded": [("driver.loaded_version", None)],
    "driver.floor": [("driver.loaded_version", "570.124.06")],
    "driver.flavor": [("driver.loaded_flavor", "proprietary")],
    "driver.consistent": [("driver.userspace_version", "580.105.08")],
    "driver.nouveau": [("driver.nouveau_loaded", True)],
    "driver.module": [
        ("os.kernels.1", _OLD_KERNEL),
        ("driver.modules_by_kernel.6.8.0-31-generic", None),
        ("driver.nouveau_in_initramfs.6.8.0-31-generic", False),
    ],
    "driver.signed": [("os.secure_boot", True), (f"driver.modules_by_kernel.{healthy.KERNEL}.signer", None)],
    "driver.nouveau_at_boot": [(f"driver.nouveau_in_initramfs.{healthy.KERNEL}", None)],
    "driver.nodes": [("driver.device_nodes./dev/nvidia-uvm", False)],
    "driver.key_enrolled": [
        ("os.secure_boot", True),
        ("os.machine_owner_key", {"path": "/var/lib/dkms/mok.pub", "enrolled": False, "pending": True}),
    ],
    "driver.interrupted": [("driver.interrupted", ["nvidia-kernel-dkms is half-configured"])],
    "driver.packages": [("driver.packages.0.state", "half-configured")],
    "driver.source": [("driver.source", "runfile")],
    "driver.one_source": [("driver.packages.0.source", "distro")],
    "driver.pinned": _NO_PIN,
    "driver.branch_supported": [("driver.branch", 565)],
    "driver.branch_eol": [("driver.branch", 580), ("now", "2028-07-01T00:00:00Z")],
    "driver.reboot": [("driver.reboot_required", True)],
    "driver.persistence": [("driver.persistence.active", False)],
    "driver.headers": [("os.kernels.0.headers", False)],
    "gpu.missing": [("health.missing_gpus", [_MISSING])],
    "gpu.present": [("gpus.0.lost", "its configuration space reads 0xffff")],
    "gpu.known": [("gpus.0.sm", None)],
    "gpu.bound": [("gpus.0.kernel_driver", "vfio-pci")],
    "gpu.answers": [("gpus.0.source", "pci")],
    "gpu.ecc_errors": [(f"{_ECC}.uncorrected_volatile", 2)],
    "gpu.ecc_history": [(f"{_ECC}.uncorrected_total", 2)],
    "gpu.ecc_enabled": [(f"{_ECC}.enabled", False)],
    "gpu.sram": [(f"{_ECC}.sram_threshold_exceeded", True)],
    "gpu.rows_failed": [("gpus.0.health.remapped_rows.failure", True)],
    "gpu.rows_pending": [("gpus.0.health.remapped_rows.pending", True)],
    "gpu.pages_pending": [("gpus.0.health.retired_pages.pending", True)],
    "gpu.recovery": [("gpus.0.health.recovery_action", "gpu_reset")],
    "gpu.xid": [("health.xid", [_XID])],
    "gpu.xid_programs": [("health.xid", [{**_XID, "number": 13, "action": "restart_app"}])],
    "gpu.xid_history": [("health.xid", [{**_XID, "this_boot": False, "action": "inspect"}])],
    "gpu.slowdown": [("gpus.0.health.throttle", ["sw_power_cap", "hw_thermal_slowdown"])],
    "gpu.thermal": [("gpus.0.health.throttle", ["sw_thermal_slowdown"])],
    "gpu.temperature": [("gpus.0.health.temperature_c", 93)],
    "gpu.power_limit": [("gpus.0.health.power.limit_w", 150.0)],
    "gpu.link_width": [("gpus.0.pcie.width", 4)],
    "gpu.compute_mode": [("gpus.0.health.compute_mode", "prohibited")],
    "gpu.shared": [("gpus.0.health.compute_mode", "exclusive_process")],
    "gpu.mig": [("gpus.0.health.mig", {"enabled": True, "pending": True, "instances": []})],
    "gpu.bar1": [("gpus.0.health.bar1_mib", 256)],
    "gpu.persistence": [("gpus.0.persistence_mode", False)],
    "environment.present": [("environments", [])],
    "environment.serves": [("environments.0.releases.0.stamped", False)],
    "environment.interpreter": [("environments.0.interpreter_ok", False)],
    "environment.intact": [("environments.0.integrity.changed", 1)],
    "environment.torch": [("environments.0.torch.version", "2.9.1+cpu")],
    "environment.index": [("environments.0.torch.distribution_version", "2.9.1")],
    "environment.gpu_code": [("environments.0.torch.arch_flags", ["sm_80", "sm_90", "compute_90"])],
    "environment.companions": [("environments.0.companions.torchaudio", "2.11.0")],
    "environment.lock": [("environments.0.stamp.spec.lock", "0" * 64)],
    "environment.driver_api": [("driver.cuda_api", "12.4")],
    "environment.leftovers": [("environments.0.leftovers", ["2.8.0-cu128-00000000"])],
    "environment.foreign": [("foreign", [{"kind": "user", "path": "/x", "what": "torch 2.6", "torch": None}])],
    "proof.enough": [("plan:environments.0.stamped", None), ("plan:actions", [_STALE])],
    "proof.covered": [
        ("plan:environments.0.stamped.verdict", "not_run"),
        ("plan:environments.0.stamped.reason", "a process computes"),
    ],
    "proof.age": [("plan:environments.0.stamped.proven_at", "2026-11-01T00:00:00Z")],
    "runtime.tokenizers_pam": [("runtime.etc_environment.values.TOKENIZERS_PARALLELISM", "true")],
    "runtime.tokenizers_profile": [("runtime.profile_d.values", {})],
    "runtime.tokenizers_user_services": [("runtime.environment_d.values.TOKENIZERS_PARALLELISM", "1")],
    "runtime.tokenizers_services": [("runtime.system_conf_d.values.TOKENIZERS_PARALLELISM", "on")],
    "runtime.breaking": [("runtime.breaking", [_BREAKING])],
    "runtime.breaking_processes": [("runtime.breaking", [{**_BREAKING, "where": "process 7 (python3)"}])],
    "plan.feasible": [("plan:feasible", False)],
    "plan.driver": [("plan:actions", [_action("driver.packages", "driver")])],
    "plan.environments": [("plan:actions", [_action("torch.build:base", "torch")])],
    "plan.upkeep": [("plan:actions", [_action("torch.takeaway:base", "torch")])],
    "plan.runtime": [("plan:actions", [_action("runtime.file:/x", "runtime")])],
    "plan.pending": [("plan:pending", [{"what": "reboot", "why": "not allowed", "remedy": "allow it"}])],
    "plan.warnings": [("plan:warnings", ["The link is slow."])],
    "host.observed": [("unknown", [{"what": "health.xid", "why": "no rights"}])],
    "host.glibc": [("os.glibc", "2.27")],
    "host.disk": [("health.disk./opt/gpufleet/envs.free_mib", 900)],
    "host.inodes": [("health.disk./opt/gpufleet/envs.free_inodes", 12)],
    "host.writable": [("health.disk./opt/gpufleet/envs.read_only", True)],
    "host.clock": [("health.clock_synchronized", False)],
    "host.repository_keys": [("os.apt.sources.0.signed_by", None)],
}


def state_with(changes: list[Change]) -> dict[str, Any]:
    """The healthy host with some changes."""
    state = healthy.state()
    for place, value in changes:
        within, _colon, path = place.rpartition(":")
        put(state["planned"][within or "observation"], path, value)
    return state


def put(where: Any, path: str, value: Any) -> None:
    """Set what lies at a path. Keys may hold dots: the longest that is there counts."""
    keys: list[Any] = []
    words = path.split(".")
    while words:
        fitting = [n for n in range(len(words), 0, -1) if isinstance(where, dict) and ".".join(words[:n]) in where]
        taken = fitting[0] if fitting else len(words) if isinstance(where, dict) else 1
        key: Any = ".".join(words[:taken])
        key = int(key) if isinstance(where, list) else key
        words = words[taken:]
        keys.append(key)
        if words:
            where = where[key]
    if isinstance(where, list) and keys[-1] == len(where):
        where.append(value)
    else:
        where[keys[-1]] = value


def statuses(state: dict[str, Any], now: datetime.datetime = NOW) -> dict[str, str]:
    report = evaluate.assess(list(RULES.values()), [], {"h": state}, now, None, "high", "0")
    return {rule: result["status"] for rule, result in report["hosts"][0]["results"].items()}


def not_met(found: dict[str, str]) -> dict[str, str]:
    return {rule: status for rule, status in found.items() if status not in ("passed", "not_applicable")}


def test_every_shipped_rule_has_something_that_breaks_it():
    assert sorted(BREAKS) == sorted(RULES)


@pytest.mark.parametrize("rule", sorted(BREAKS))
def test_what_breaks_a_rule_fails_it_and_makes_nothing_unknown(rule):
    changes = dict(BREAKS[rule])
    now = datetime.datetime.fromisoformat(changes.pop("now", healthy.NOW))
    found = not_met(statuses(state_with(list(changes.items())), now))
    assert found[rule] == "failed"
    if rule not in (
        "driver.loaded",
        "driver.branch_eol",
    ):  # without a driver, and in two years, more than that is wrong
        assert "error" not in found.values()


@pytest.mark.parametrize("rule", sorted(BREAKS))
def test_only_rules_that_count_keep_a_host_from_being_ready(rule):
    changes = dict(BREAKS[rule])
    changes.pop("now", None)
    report = evaluate.assess(list(RULES.values()), [], {"h": state_with(list(changes.items()))}, NOW, None, "high", "0")
    host = report["hosts"][0]
    counts = [
        each
        for each, result in host["results"].items()
        if result["status"] in ("failed", "error", "not_run") and RULES[each].severity in ("critical", "high")
    ]
    assert (host["outcome"] == "ready") == (not counts)


def _second(gpu: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(gpu), "pci_address": "0000:21:00.0", "uuid": "GPU-2"}


def two_gpus() -> dict[str, Any]:
    state = healthy.state()
    for where in (state["planned"]["observation"]["gpus"], state["planned"]["plan"]["gpus"]):
        where.append(_second(where[0]))
    return state


_CUDA_REPOSITORY = {
    "file": "/etc/yum.repos.d/cuda.repo",
    "id": "cuda",
    "urls": ["https://developer.download.nvidia.com/compute/cuda/repos/rhel10/x86_64/"],
    "enabled": True,
    "gpgcheck": True,
    "keys": ["file:///etc/pki/rpm-gpg/RPM-GPG-KEY-nvidia"],
}
_GEFORCE: list[Change] = [
    (_ECC, NOT_APPLICABLE),
    ("gpus.0.health.retired_pages", NOT_APPLICABLE),
    ("gpus.0.health.remapped_rows", NOT_APPLICABLE),
    ("gpus.0.health.recovery_action", NOT_APPLICABLE),
    ("gpus.0.health.mig", NOT_APPLICABLE),
]
_WSL: list[Change] = [
    ("os.virtualization", "wsl"),
    ("os.kernels", []),
    ("gpus.0.kernel_driver", None),
    ("driver.source", "wsl"),
    ("driver.loaded_flavor", None),
    ("driver.packages", []),
    ("driver.pins", []),
    ("driver.modules_by_kernel", {}),
    (
        "driver.persistence",
        {"unit": "nvidia-persistenced.service", "present": False, "enabled": False, "active": False},
    ),
]
_MIG = {"enabled": True, "pending": True, "instances": [{"uuid": "MIG-1", "name": "1g.10gb", "memory_mib": 9728}]}

HEALTHY: dict[str, dict[str, Any]] = {
    "as it is": healthy.state(),
    "two GPUs": two_gpus(),
    "a card without ECC, spare rows and MIG": state_with(_GEFORCE),
    "a driver that is too old to know recovery actions": state_with(
        [
            ("gpus.0.health.recovery_action", None),
            *((f"driver.{key}", "560.35.03") for key in ("loaded_version", "userspace_version")),
            (f"driver.modules_by_kernel.{healthy.KERNEL}.version", "560.35.03"),
            ("plan:gpus.0.minimum_driver", "525.60.13"),
        ]
    ),
    "an idle link at low speed": state_with([("gpus.0.pcie.speed_gts", 2.5), ("gpus.0.health.throttle", ["gpu_idle"])]),
    "a laptop with half of the lanes": state_with(
        [
            ("gpus.0.name", "NVIDIA GeForce RTX 5090 Laptop GPU"),
            ("gpus.0.pcie.width", 8),
            ("gpus.0.health.power", NOT_APPLICABLE),
        ]
    ),
    "clocks that nobody has to care about": state_with([("gpus.0.health.throttle", ["reliability", "board_limit"])]),
    "no environment is asked for": state_with(
        [("environments", []), ("plan:environments", []), ("plan:gpus.0.runs_on", None)]
    ),
    "a torch that is newer than the knowledge base": state_with(
        [("plan:environments.0.spec.companions", {}), ("environments.0.companions", {})]
    ),
    "a key inside the source": state_with([("os.apt.sources.0.signed_by", "inline")]),
    "a repository of dnf's that is switched off": state_with(
        [
            ("os.apt", None),
            ("os.dnf", {"repositories": [{**_DNF, "enabled": False, "gpgcheck": False}, {**_DNF, "gpgcheck": True}]}),
        ]
    ),
    "btrfs, which counts no inodes": state_with(
        [
            (f"health.disk./opt/gpufleet/envs.{key}", value)
            for key, value in (("free_inodes", 0), ("file_system", "btrfs"))
        ]
    ),
    "MIG instances": state_with([("gpus.0.health.mig", _MIG)]),
    "Windows' driver": state_with(_WSL),
    "a container, which boots no kernel": state_with(
        [("os.virtualization", "container"), ("os.kernels", []), ("driver.modules_by_kernel", {})]
    ),
    "Secure Boot with a signed module": state_with(
        [("os.secure_boot", True), (f"driver.modules_by_kernel.{healthy.KERNEL}.signer", "DKMS module signing key")]
    ),
    "no pin, but packages on hold": state_with([*_NO_PIN, ("driver.packages.0.held", True)]),
    "dnf's version lock": state_with(
        [
            ("os.apt", None),
            ("os.dnf", {"repositories": [_CUDA_REPOSITORY]}),
            (
                "driver.pins",
                [
                    {
                        "file": "/etc/dnf/versionlock.toml",
                        "packages": "nvidia-driver",
                        "version": "3:580.95.05-1.el10",
                        "pin": "nvidia-driver evr = 3:580.95.05-1.el10",
                        "priority": None,
                        "from_package": None,
                    }
                ],
            ),
        ]
    ),
    "a GPU of a virtual machine, left out": state_with(
        [
            (
                "gpus.1",
                {
                    **_second(healthy.state()["planned"]["observation"]["gpus"][0]),
                    "kernel_driver": "vfio-pci",
                    "source": "pci",
                    "health": None,
                    "persistence_mode": None,
                },
            )
        ]
    ),
    "variables for environments alone": state_with(
        [
            ("plan:runtime.scope", "environment"),
            ("runtime.etc_environment.values", {}),
            ("runtime.profile_d.values", {}),
            ("runtime.environment_d.values", {}),
            ("runtime.system_conf_d.values", {}),
        ]
    ),
    "an environment that nobody asks for": state_with(
        [("environments.1", {"name": "old", "path": "/opt/gpufleet/envs/old", "current": None, "torch": None})]
    ),
}


@pytest.mark.parametrize("name", list(HEALTHY))
def test_a_healthy_host_meets_every_rule(name):
    serious = {
        rule: status for rule, status in not_met(statuses(HEALTHY[name])).items() if RULES[rule].severity != "low"
    }
    if name == "a driver that is too old to know recovery actions":
        serious.pop("driver.branch_supported", None)
    assert serious == {}


def test_a_repository_of_dnfs_whose_packages_nobody_has_to_sign_is_found():
    state = state_with([("os.apt", None), ("os.dnf", {"repositories": [{**_DNF, "gpgcheck": False}]})])
    assert not_met(statuses(state)) == {"host.repository_keys": "failed"}


def test_while_somebody_changes_packages_nobody_says_that_a_change_was_interrupted():
    lock = {"path": "/var/lib/dpkg/lock-frontend", "holder": "unattended-upgr (process 812)"}
    assert not_met(statuses(state_with([("driver.interrupted", None), ("health.locks", [lock])]))) == {
        "driver.interrupted": "not_run"
    }
    assert not_met(statuses(state_with([("driver.interrupted", None)]))) == {"driver.interrupted": "error"}


def test_kernels_that_could_not_be_read_are_not_taken_for_a_host_that_boots_none():
    note = {"what": "os.kernels", "why": "Input/output error"}
    found = not_met(statuses(state_with([("os.kernels", []), ("unknown", [note])])))
    assert found["driver.module"] == "error"


def test_a_host_without_gpus_is_never_ready():
    refusal = {"code": "no_gpu", "gpu": None, "reason": "no NVIDIA GPU", "remedy": "install one"}
    state = state_with([("gpus", []), ("plan:gpus", []), ("plan:feasible", False), ("plan:refusals", [refusal])])
    assert not_met(statuses(state))["plan.feasible"] == "failed"


def test_this_runs_own_proof_says_more_than_the_stamp():
    failed = {
        "name": "base",
        "verdict": "failed",
        "proven": "static",
        "proven_at": None,
        "reason": "wrong numbers",
        "remedy": "x",
    }
    state = {**healthy.state(), "proof": {"changed": False, "environments": [{**failed, "stamped": False}]}}
    assert not_met(statuses(state))["proof.enough"] == "failed"
