# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host on which everything is as it should be, as docs/architecture.md describes its observation and plan: what the corpus breaks."""

from __future__ import annotations

import copy
from typing import Any

NOW = "2026-11-23T12:00:00Z"
GPU, UUID, BOOT = "0000:01:00.0", "GPU-6f1d9a52-7d5c-4c0e-9a53-0d3c1f5b7a10", "5b1f7c1e-61b9-4d0b-8e3d-0a3c1c1f8d11"
DIGEST = "4f" * 32
KERNEL = "6.8.0-87-generic"
RELEASE = "2.9.1-cu128-0a1b2c3d"

_HEALTH: dict[str, Any] = {
    "ecc": {
        "enabled": True,
        "corrected_volatile": 0,
        "uncorrected_volatile": 0,
        "corrected_total": 0,
        "uncorrected_total": 0,
        "sram_threshold_exceeded": False,
    },
    "retired_pages": {"single_bit": 0, "double_bit": 0, "pending": False},
    "remapped_rows": {"corrected": 0, "uncorrected": 0, "pending": False, "failure": False},
    "recovery_action": "none",
    "throttle": [],
    "temperature_c": 41,
    "power": {"limit_w": 300, "default_limit_w": 300, "max_limit_w": 300, "draw_w": 22},
    "compute_mode": "default",
    "bar1_mib": 32768,
    "mig": {"enabled": False, "pending": False, "instances": []},
}

_STAMP: dict[str, Any] = {
    "schema": 1,
    "environment": "base",
    "verdict": "passed",
    "level": "quick",
    "asked": "quick",
    "reason": "",
    "remedy": "",
    "release": RELEASE,
    "release_digest": DIGEST,
    "variables": DIGEST,
    "driver": "580.95.05",
    "flavor": "open",
    "userspace": "580.95.05",
    "boot_id": BOOT,
    "sm": ["sm_120"],
    "gpus": [{"uuid": UUID, "pci_address": GPU, "name": "NVIDIA GeForce RTX 5090", "verdict": "passed"}],
    "proven_at": "2026-11-23T03:00:00Z",
    "torch": "2.9.1+cu128",
    "checks": {"passed": 21, "failed": [], "not_run": []},
}

_SPEC: dict[str, Any] = {
    "name": "base",
    "python": "3.12",
    "torch": "2.9.1+cu128",
    "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"},
    "requirements": [],
    "arch": "x86_64",
    "lock": DIGEST,
    "schema": 1,
}

_VARIABLES = {"TOKENIZERS_PARALLELISM": "false"}

_OBSERVATION: dict[str, Any] = {
    "schema": 1,
    "observed_at": NOW,
    "os": {
        "id": "ubuntu",
        "version_id": "24.04",
        "codename": "noble",
        "family": "debian",
        "arch": "x86_64",
        "kernel": KERNEL,
        "kernels": [{"release": KERNEL, "running": True, "default": True, "headers": True}],
        "secure_boot": False,
        "machine_owner_key": None,
        "virtualization": None,
        "boot_id": BOOT,
        "init": "systemd",
        "uid": 0,
        "graphical": False,
        "glibc": "2.39",
        "pythons": {"3.12": "/usr/bin/python3.12"},
        "apt": {
            "sources": [
                {
                    "file": "/etc/apt/sources.list.d/nvidia.sources",
                    "uris": ["https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/x86_64/"],
                    "suites": ["/"],
                    "components": [],
                    "signed_by": "/usr/share/keyrings/nvidia.gpg",
                }
            ]
        },
    },
    "gpus": [
        {
            "pci_address": GPU,
            "pci_device_id": "2b85",
            "subsystem_id": "10de:2057",
            "name": "NVIDIA GeForce RTX 5090",
            "chip": "GB202",
            "compute_capability": "12.0",
            "sm": "sm_120",
            "architecture": "Blackwell",
            "uuid": UUID,
            "memory_mib": 32607,
            "persistence_mode": True,
            "mig": False,
            "kernel_driver": "nvidia",
            "lost": None,
            "source": "nvml",
            "pcie": {"width": 16, "max_width": 16, "speed_gts": 32.0, "max_speed_gts": 32.0},
            "health": _HEALTH,
        }
    ],
    "driver": {
        "loaded_version": "580.95.05",
        "loaded_flavor": "open",
        "userspace_version": "580.95.05",
        "branch": 580,
        "flavor": "open",
        "source": "nvidia",
        "nouveau_loaded": False,
        "nova_core_loaded": False,
        "nouveau_in_initramfs": {KERNEL: False},
        "interrupted": [],
        "device_nodes": {
            "/dev/nvidiactl": True,
            "/dev/nvidia-uvm": True,
            "/dev/nvidia-uvm-tools": True,
            "/dev/nvidia0": True,
        },
        "cuda_api": "13.0",
        "mismatch": False,
        "reboot_required": False,
        "packages": [
            {
                "name": "nvidia-open",
                "version": "580.95.05-0ubuntu1",
                "source": "nvidia",
                "held": False,
                "state": "installed",
            }
        ],
        "pins": [
            {
                "file": "/etc/apt/preferences.d/gpufleet",
                "packages": "*nvidia*",
                "version": "580.*",
                "pin": "version 580.*",
                "priority": 1001,
                "from_package": False,
            }
        ],
        "modules_by_kernel": {
            KERNEL: {
                "version": "580.95.05",
                "flavor": "open",
                "signer": None,
                "path": f"/lib/modules/{KERNEL}/nvidia.ko",
            }
        },
        "persistence": {"unit": "nvidia-persistenced.service", "present": True, "enabled": True, "active": True},
        "libcuda": {"result": 0, "error": "", "gpus": 1},
        "processes": [],
        "journal": {"schema": 1, "generation": 3},
    },
    "environments": [
        {
            "name": "base",
            "path": "/opt/gpufleet/envs/base",
            "current": RELEASE,
            "previous": None,
            "leftovers": [],
            "python": "3.12.3",
            "interpreter_ok": True,
            "owner": "root",
            "group": "root",
            "stamp_digest": DIGEST,
            "releases": [{"id": RELEASE, "stamped": True}],
            "torch": {
                "version": "2.9.1+cu128",
                "distribution_version": "2.9.1+cu128",
                "cuda": "12.8",
                "arch_flags": ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
            },
            "companions": {"torchvision": "0.24.1+cu128", "torchaudio": "2.9.1+cu128"},
            "integrity": {"status": "ok", "missing": 0, "changed": 0, "added": 0, "examples": []},
            "stamp": {"schema": 1, "spec": _SPEC, "id": RELEASE, "digest": DIGEST},
            "verdict": _STAMP,
        }
    ],
    "runtime": {
        "etc_environment": {"block": "TOKENIZERS_PARALLELISM=false\n", "values": _VARIABLES},
        "profile_d": {"path": "/etc/profile.d/gpufleet.sh", "values": _VARIABLES},
        "environment_d": {"path": "/etc/environment.d/60-gpufleet.conf", "values": _VARIABLES},
        "system_conf_d": {"path": "/etc/systemd/system.conf.d/60-gpufleet.conf", "values": _VARIABLES},
        "breaking": [],
    },
    "files": {
        "/opt/gpufleet/envs/base/runtime.env": {
            "sha256": DIGEST,
            "mode": "0644",
            "owner": "root",
            "group": "root",
            "type": "file",
        }
    },
    "health": {
        "disk": {
            "/opt/gpufleet/envs": {
                "free_mib": 900_000,
                "free_inodes": 9_000_000,
                "file_system": "ext4",
                "read_only": False,
            }
        },
        "clock_synchronized": True,
        "locks": [],
        "xid": [],
        "missing_gpus": [],
    },
    "foreign": [],
    "urls": {},
    "unknown": [],
}

_PLAN: dict[str, Any] = {
    "feasible": True,
    "refusals": [],
    "gpus": [
        {
            "pci_address": GPU,
            "name": "NVIDIA GeForce RTX 5090",
            "compute_capability": "12.0",
            "sm": "sm_120",
            "architecture": "Blackwell",
            "runs_on": "sm_120",
            "minimum_driver": "570.133.07",
        }
    ],
    "driver": {
        "branch": 580,
        "flavor": "open",
        "minimum": "570.133.07",
        "source": "nvidia",
        "package_set": "auto",
        "packages": [],
        "pin": None,
        "actions": [],
    },
    "torch": {
        "version": "2.9.1",
        "build": "2.9.1+cu128",
        "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"},
        "python": "3.12",
    },
    "environments": [
        {
            "name": "base",
            "spec": _SPEC,
            "spec_digest": DIGEST,
            "release_base": RELEASE,
            "owner": "root",
            "group": "root",
            "root": "/opt/gpufleet/envs",
            "sm": ["sm_120"],
            "variables": _VARIABLES,
            "actions": [],
            "integrity": "sizes",
            "stamped": {
                "name": "base",
                "verdict": "passed",
                "level": "quick",
                "proven": "quick",
                "proven_at": _STAMP["proven_at"],
                "stamped": True,
                "reason": "",
                "remedy": "",
            },
        }
    ],
    "runtime": {"scope": "host", "files": [], "actions": []},
    "actions": [],
    "reasons": ["the newest branch that supports every GPU"],
    "warnings": [],
    "pending": [],
    "steps": ["driver", "torch", "runtime", "proof"],
    "proof": {"level": "quick", "required_level": "quick", "time_limit": 0, "gpus": None},
}


def state() -> dict[str, Any]:
    """What a run knows of the host."""
    planned = {"changed": False, "observation": copy.deepcopy(_OBSERVATION), "plan": copy.deepcopy(_PLAN)}
    return {"planned": planned, "proof": {}, "unreachable": False, "asked": True, "groups": ["workstations"]}
