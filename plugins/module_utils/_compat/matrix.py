# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the knowledge base. Cited facts as Python literals, and nothing else.

Every row names its sources (keys of SOURCES). To add a row, copy a neighbour, change it and cite where it is from.
Confidence: high = measured or a vendor's document; medium = secondary or partial; low = inferred. None: not established.
"""

from __future__ import annotations

# fmt: off
AS_OF = "2026-11-22"
"""The day on which the rows were last checked."""

DEFAULTS = {
    "driver_branch": 580,
    "driver_minimum": "550",
    "driver_flavor": "open",
    "torch": "2.9.1",
    "cuda": "cu128",
    "companions": ("torchvision", "torchaudio"),
    "torch_index_base_url": "https://download.pytorch.org/whl",
    "nvidia_repository_base_url": "https://developer.download.nvidia.com/compute/cuda/repos",
    "source": ("decision", "supported-drivers-615", "previous-versions"),
}
"""What `auto` and a missing key mean. 580: long-term support, the only branch from Maxwell to RTX 50."""

ARCHITECTURES = (
    {
        "cc": "5.0", "sm": "sm_50", "name": "Maxwell", "chips": ("GM107", "GM108"),
        "examples": ("GTX 750/750 Ti", "Quadro K2200/K620"), "first_driver": "334", "last_branch": 580,
        "modules": "proprietary", "driver_from": "packages", "toolkit_first": "6.5", "toolkit_last": "12.x",
        "source": ("arch-matrix", "domain"), "confidence": "high (last), low (first)", "note": "",
    },
    {
        "cc": "5.2", "sm": "sm_52", "name": "Maxwell", "chips": ("GM200", "GM204", "GM206"),
        "examples": ("GTX 950-980 Ti", "Titan X", "Tesla M40/M60"), "first_driver": "343", "last_branch": 580,
        "modules": "proprietary", "driver_from": "packages", "toolkit_first": "6.5", "toolkit_last": "12.x",
        "source": ("arch-matrix", "domain"), "confidence": "high (last), low (first)", "note": "",
    },
    {
        "cc": "6.0", "sm": "sm_60", "name": "Pascal", "chips": ("GP100",), "examples": ("Tesla P100", "Quadro GP100"),
        "first_driver": "375", "last_branch": 580, "modules": "proprietary", "driver_from": "packages",
        "toolkit_first": "8.0", "toolkit_last": "12.x", "source": ("arch-matrix", "domain"),
        "confidence": "high (last), low (first)", "note": "",
    },
    {
        "cc": "6.1", "sm": "sm_61", "name": "Pascal", "chips": ("GP102", "GP104", "GP106", "GP107", "GP108"),
        "examples": ("GTX 1050-1080 Ti", "Titan Xp", "Tesla P4/P40", "Quadro P-series"), "first_driver": "367",
        "last_branch": 580, "modules": "proprietary", "driver_from": "packages", "toolkit_first": "8.0",
        "toolkit_last": "12.x", "source": ("arch-matrix", "domain"), "confidence": "high (last), low (first)",
        "note": "runs sm_60 SASS",
    },
    {
        "cc": "7.0", "sm": "sm_70", "name": "Volta", "chips": ("GV100",),
        "examples": ("Tesla V100", "Titan V", "Quadro GV100"), "first_driver": "384", "last_branch": 580,
        "modules": "proprietary", "driver_from": "packages", "toolkit_first": "9.0", "toolkit_last": "12.x",
        "source": ("arch-matrix", "domain"), "confidence": "high (last), low (first)", "note": "",
    },
    {
        "cc": "7.5", "sm": "sm_75", "name": "Turing", "chips": ("TU102", "TU104", "TU106", "TU116", "TU117"),
        "examples": ("RTX 2060-2080 Ti", "GTX 1630-1660", "T4", "Quadro RTX", "T400-T1000"), "first_driver": "410",
        "last_branch": None, "modules": "both", "driver_from": "packages", "toolkit_first": "10.0",
        "toolkit_last": None, "source": ("arch-matrix", "open-readme"), "confidence": "high",
        "note": "open is the default flavour since R560; on R620 (2026-11) only open exists",
    },
    {
        "cc": "8.0", "sm": "sm_80", "name": "Ampere", "chips": ("GA100",), "examples": ("A100", "A30", "A800"),
        "first_driver": "450", "last_branch": None, "modules": "both", "driver_from": "packages",
        "toolkit_first": "11.0", "toolkit_last": None, "source": ("arch-matrix",), "confidence": "high", "note": "",
    },
    {
        "cc": "8.6", "sm": "sm_86", "name": "Ampere", "chips": ("GA102", "GA103", "GA104", "GA106", "GA107"),
        "examples": ("RTX 3050-3090 Ti", "RTX A2000-A6000", "A10", "A40"), "first_driver": "455", "last_branch": None,
        "modules": "both", "driver_from": "packages", "toolkit_first": "11.1", "toolkit_last": None,
        "source": ("arch-matrix",), "confidence": "high", "note": "",
    },
    {
        "cc": "8.7", "sm": "sm_87", "name": "Ampere (Tegra)", "chips": ("GA10B",), "examples": ("Jetson Orin",),
        "first_driver": None, "last_branch": None, "modules": "platform", "driver_from": "jetpack",
        "toolkit_first": "11.4", "toolkit_last": None, "source": ("torch-2.15-init",), "confidence": "medium",
        "note": "not a PCI GPU; sm_80/86 SASS is NOT valid on 8.7 unless the build is CUDA >= 13.2",
    },
    {
        "cc": "8.9", "sm": "sm_89", "name": "Ada Lovelace", "chips": ("AD102", "AD103", "AD104", "AD106", "AD107"),
        "examples": ("RTX 4050-4090", "RTX 6000 Ada", "L4", "L40", "L40S"), "first_driver": "520",
        "last_branch": None, "modules": "both", "driver_from": "packages", "toolkit_first": "11.8",
        "toolkit_last": None, "source": ("arch-matrix",), "confidence": "high",
        "note": "the first drivers were 520 and 525; runs sm_80 and sm_86 SASS",
    },
    {
        "cc": "9.0", "sm": "sm_90", "name": "Hopper", "chips": ("GH100",), "examples": ("H100", "H200", "H20"),
        "first_driver": "525", "last_branch": None, "modules": "both", "driver_from": "packages",
        "toolkit_first": "11.8", "toolkit_last": None, "source": ("arch-matrix",), "confidence": "high",
        "note": "GH200 by model: MODELS",
    },
    {
        "cc": "10.0", "sm": "sm_100", "name": "Blackwell", "chips": ("GB100", "GB102"),
        "examples": ("B200", "B100", "GB200"), "first_driver": "570.86.15", "last_branch": None, "modules": "open",
        "driver_from": "packages", "toolkit_first": "12.8", "toolkit_last": None,
        "source": ("open-modules", "arch-matrix"), "confidence": "high", "note": "GB200 by model: MODELS",
    },
    {
        "cc": "10.3", "sm": "sm_103", "name": "Blackwell Ultra", "chips": ("GB110", "GB112"),
        "examples": ("B300", "GB300"), "first_driver": "580.82.07", "last_branch": None, "modules": "open",
        "driver_from": "packages", "toolkit_first": "12.9", "toolkit_last": None,
        "source": ("open-modules", "pci-ids"), "confidence": "high (driver), medium (GB112)",
        "note": "runs sm_100 SASS",
    },
    {
        "cc": "10.7", "sm": "sm_107", "name": "Rubin", "chips": ("GR100", "GR102"), "examples": ("Vera Rubin",),
        "first_driver": "615", "last_branch": None, "modules": "open", "driver_from": "packages",
        "toolkit_first": "13.4", "toolkit_last": None, "source": ("rubin",), "confidence": "low",
        "note": "treat as unknown: probe, do not refuse",
    },
    {
        "cc": "11.0", "sm": "sm_110", "name": "Blackwell (Thor)", "chips": ("GB10B",),
        "examples": ("Jetson AGX Thor", "Jetson T5000"), "first_driver": "580", "last_branch": None,
        "modules": "open", "driver_from": "jetpack", "toolkit_first": "13.0", "toolkit_last": None,
        "source": ("pci-ids", "release-md"), "confidence": "medium",
        "note": "sm_101 before CUDA 13.0; only aarch64 builds from cu130 on have code for it",
    },
    {
        "cc": "12.0", "sm": "sm_120", "name": "Blackwell (RTX)",
        "chips": ("GB202", "GB203", "GB205", "GB206", "GB207"),
        "examples": ("RTX 5050-5090", "RTX PRO 2000-6000 Blackwell"), "first_driver": "570.86.16",
        "last_branch": None, "modules": "open", "driver_from": "packages", "toolkit_first": "12.8",
        "toolkit_last": None, "source": ("open-modules", "arch-matrix"), "confidence": "high",
        "note": "first driver by model: MODELS",
    },
    {
        "cc": "12.1", "sm": "sm_121", "name": "Blackwell (GB10)", "chips": ("GB20B",),
        "examples": ("DGX Spark / GB10", "RTX Spark N1X"), "first_driver": "580", "last_branch": None,
        "modules": "open", "driver_from": "packages", "toolkit_first": "12.9", "toolkit_last": None,
        "source": ("open-modules", "pci-ids"), "confidence": "medium",
        "note": "torch up to 2.9 warns of a maximum of 12.0, which is false",
    },
)
"""`modules`: which kernel modules drive it. `last_branch`: the last driver branch that does. `driver_from`: who brings the
driver."""

MODELS = (
    {
        "name": "GeForce RTX 5090", "ids": ("2b85",), "first_driver": "570.86.16", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GeForce RTX 5080", "ids": ("2c02",), "first_driver": "570.86.16", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GeForce RTX 5070 Ti", "ids": ("2c05",), "first_driver": "570.124.04", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GeForce RTX 5070", "ids": ("2f04", "2c09"), "first_driver": "570.133.07", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "RTX PRO 6000 Blackwell Workstation Edition", "ids": ("2bb1",), "first_driver": "570.133.07",
        "modules": None, "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GeForce RTX 5060 Ti", "ids": ("2d04",), "first_driver": "570.148.08", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GeForce RTX 5060", "ids": ("2d05", "2f06"), "first_driver": "570.158.01", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "RTX PRO 6000 Blackwell Server Edition", "ids": ("2bb5",), "first_driver": "575.57.08",
        "modules": None, "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GeForce RTX 5050", "ids": ("2d83",), "first_driver": "575.64.03", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GB10", "ids": ("2e12",), "first_driver": "580.119.02", "modules": None, "source": ("open-modules",),
        "confidence": "high",
    },
    {
        "name": "HGX GB200", "ids": ("2941",), "first_driver": "570.124.04", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "B300 SXM6 AC", "ids": ("3182",), "first_driver": "580.82.07", "modules": None,
        "source": ("open-modules",), "confidence": "high",
    },
    {
        "name": "GH200", "ids": ("2342", "2348"), "first_driver": "535", "modules": "open",
        "source": ("nvidia-blog-open", "domain"), "confidence": "medium",
    },
)
"""Models whose first driver, or whose modules, differ from their architecture's. Found by device id, else by name."""

SASS = {
    "rule": "code for X.y runs on X.z where z >= y, on no other major version; the excluded devices are integrated GPUs",
    "excluded_devices": {
        "8.0": ("8.7",),
        "8.6": ("8.7",),
        "7.0": ("7.2",),
        "5.0": ("5.3",),
        "5.2": ("5.3",),
        "6.0": ("6.2",),
        "6.1": ("6.2",),
        "10.0": ("10.1",),
    },
    "lifted_for": ("7.0", "8.0", "8.6"),
    "lifted_from_cuda": "13.2",
    "same_device": {"10.1": "11.0"},
    "source": ("torch-2.15-init",),
    "confidence": "high",
}
"""On which devices machine code (SASS) runs. PTX is not counted: no torch wheel on PyPI carries any."""

DRIVER_BRANCHES = (
    {
        "branch": 470, "cuda": "11.4", "designation": "legacy (Kepler)", "eol": None, "status": "eol",
        "latest_seen": "470.256.02", "modules": ("proprietary",), "source": ("supported-drivers",),
        "confidence": "high", "note": "",
    },
    {
        "branch": 525, "cuda": "12.0", "designation": "PB", "eol": None, "status": "eol", "latest_seen": "525.147.05",
        "modules": ("open", "proprietary"), "source": ("supported-drivers",), "confidence": "high", "note": "",
    },
    {
        "branch": 535, "cuda": "12.2", "designation": "LTSB", "eol": "2026-06", "status": "eol",
        "latest_seen": "535.309.01", "modules": ("open", "proprietary"), "source": ("supported-drivers-615",),
        "confidence": "high", "note": "Debian 12 security, Ubuntu",
    },
    {
        "branch": 550, "cuda": "12.4", "designation": "PB", "eol": None, "status": "eol", "latest_seen": "550.163.01",
        "modules": ("open", "proprietary"), "source": ("supported-drivers",), "confidence": "high", "note": "",
    },
    {
        "branch": 560, "cuda": "12.6", "designation": "NFB", "eol": None, "status": "eol", "latest_seen": "560.35.03",
        "modules": ("open", "proprietary"), "source": ("supported-drivers",), "confidence": "high", "note": "",
    },
    {
        "branch": 565, "cuda": "12.7", "designation": "NFB", "eol": None, "status": "eol", "latest_seen": "565.77",
        "modules": ("open", "proprietary"), "source": ("supported-drivers",), "confidence": "high", "note": "",
    },
    {
        "branch": 570, "cuda": "12.8", "designation": "PB", "eol": "2026-02", "status": "eol",
        "latest_seen": "570.211.01", "modules": ("open", "proprietary"), "source": ("supported-drivers",),
        "confidence": "high", "note": "",
    },
    {
        "branch": 575, "cuda": "12.9", "designation": "NFB", "eol": None, "status": "eol", "latest_seen": "575.64.05",
        "modules": ("open", "proprietary"), "source": ("supported-drivers",), "confidence": "high", "note": "",
    },
    {
        "branch": 580, "cuda": "13.0", "designation": "LTSB", "eol": "2028-06", "status": "supported",
        "latest_seen": "580.178.04", "modules": ("open", "proprietary"), "source": ("supported-drivers-615",),
        "confidence": "high", "note": "an older page said 2028-08",
    },
    {
        "branch": 590, "cuda": "13.1", "designation": "NFB", "eol": None, "status": "eol", "latest_seen": "590.48.01",
        "modules": ("open", "proprietary"), "source": ("supported-drivers-615",), "confidence": "medium",
        "note": "absent from the table of R615; the 590 packages of Ubuntu lead to 595",
    },
    {
        "branch": 595, "cuda": "13.2", "designation": "PB", "eol": "2027-03", "status": "supported",
        "latest_seen": "595.84", "modules": ("open", "proprietary"),
        "source": ("supported-drivers-615", "ubuntu-packages"), "confidence": "high", "note": "",
    },
    {
        "branch": 610, "cuda": "13.3", "designation": "NFB", "eol": "2026-08", "status": "eol",
        "latest_seen": "610.43.02", "modules": ("open", "proprietary"), "source": ("supported-drivers-615",),
        "confidence": "high", "note": "",
    },
    {
        "branch": 615, "cuda": "13.4", "designation": "?", "eol": None, "status": "supported",
        "latest_seen": "615.71.09", "modules": ("open",), "source": ("nvml-py-615", "debian13-615"),
        "confidence": "medium",
        "note": "designation not found; sources differ on proprietary modules, on Debian 13 there are none",
    },
    {
        "branch": 620, "cuda": "13.5", "designation": "?", "eol": None, "status": "supported",
        "latest_seen": "620.05", "modules": ("open",), "source": ("guide-620",), "confidence": "medium",
        "note": "designation not found; CUDA version inferred",
    },
)
"""`cuda`: the version that cuDriverGetVersion reports."""

CUDA = (
    {
        "version": "11.8", "ga_driver": "520.61.05", "floor": "450.80.02", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.0", "ga_driver": "525.60.13", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.1", "ga_driver": "530.30.02", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.2", "ga_driver": "535.54.03", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.3", "ga_driver": "545.23.06", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.4", "ga_driver": "550.54.14", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.5", "ga_driver": "555.42.02", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.6", "ga_driver": "560.28.03", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.8", "ga_driver": "570.26", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "12.9", "ga_driver": "575.51.03", "floor": "525.60.13", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "13.0", "ga_driver": "580.65.06", "floor": "580.65.06", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "13.1", "ga_driver": "590.44.01", "floor": "580.65.06", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "13.2", "ga_driver": "595.45.04", "floor": "580.65.06", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "13.3", "ga_driver": "610.43.02", "floor": "580.65.06", "source": ("cuda-notes", "minor-version"),
        "confidence": "high",
    },
    {
        "version": "13.4", "ga_driver": "615", "floor": "580.65.06", "source": ("cuda-notes", "minor-version"),
        "confidence": "medium",
    },
    {
        "version": "13.5", "ga_driver": None, "floor": "580.65.06", "source": ("cuda-notes", "minor-version"),
        "confidence": "low",
    },
)
"""`floor`: the oldest driver that runs builds of this version (minor-version compatibility)."""

TORCH = (
    {
        "version": "2.4.1", "released": "2024-09-04", "python": ("3.8", "3.12"), "torchvision": "0.19.1",
        "torchaudio": "2.4.1", "triton": "3.0.0", "pypi": {"x86_64": "cu121", "aarch64": "cpu"},
        "indexes": {
            "cu118": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
            "cu121": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("measured-wheel",),
                "confidence": "high",
            },
            "cu124": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high", "note": "",
    },
    {
        "version": "2.5.1", "released": "2024-10-29", "python": ("3.9", "3.12"), "torchvision": "0.20.1",
        "torchaudio": "2.5.1", "triton": "3.1.0", "pypi": {"x86_64": "cu124", "aarch64": "cpu"},
        "indexes": {
            "cu118": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
            "cu121": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
            "cu124": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("measured-wheel",),
                "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high", "note": "",
    },
    {
        "version": "2.6.0", "released": "2025-01-29", "python": ("3.9", "3.13"), "torchvision": "0.21.0",
        "torchaudio": "2.6.0", "triton": "3.2.0", "pypi": {"x86_64": "cu124", "aarch64": "cpu"},
        "indexes": {
            "cu118": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
            "cu124": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("measured-wheel",),
                "confidence": "high",
            },
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high", "note": "no index has sm_120",
    },
    {
        "version": "2.7.0", "released": "2025-04-23", "python": ("3.9", "3.13"), "torchvision": "0.22.0",
        "torchaudio": "2.7.0", "triton": "3.3.0", "pypi": {"x86_64": "cu126", "aarch64": "cpu"},
        "indexes": {
            "cu118": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("measured-wheel",),
                "confidence": "high",
            },
            "cu128": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": None, "ptx": True, "source": ("build-cuda-2.7",),
                "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high",
        "note": "first stable with sm_120, cu128 index ONLY; PyPI default is cu126 without it",
    },
    {
        "version": "2.7.1", "released": "2025-06-04", "python": ("3.9", "3.13"), "torchvision": "0.22.1",
        "torchaudio": "2.7.1", "triton": "3.3.1", "pypi": {"x86_64": "cu126", "aarch64": "cpu"},
        "indexes": {
            "cu118": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("cog",),
                "confidence": "medium",
            },
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("measured-wheel",),
                "confidence": "high",
            },
            "cu128": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": None, "ptx": True, "source": ("build-cuda-2.7",),
                "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high", "note": "as 2.7.0",
    },
    {
        "version": "2.8.0", "released": "2025-08-06", "python": ("3.9", "3.13"), "torchvision": "0.23.0",
        "torchaudio": "2.8.0", "triton": "3.4.0", "pypi": {"x86_64": "cu128", "aarch64": "cpu"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": None, "ptx": False, "source": ("build-cuda-2.8",),
                "confidence": "high",
            },
            "cu128": {
                "x86_64": "7.0 7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": None, "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu129": {
                "x86_64": "7.0 7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": None, "ptx": True,
                "source": ("build-cuda-2.8",), "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high", "note": "first PyPI default with sm_120",
    },
    {
        "version": "2.9.0", "released": "2025-10-15", "python": ("3.10", "3.14"), "torchvision": "0.24.0",
        "torchaudio": "2.9.0", "triton": "3.5.0", "pypi": {"x86_64": "cu128", "aarch64": "cpu"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu128": {
                "x86_64": "7.0 7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": True,
                "source": ("release-md",), "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high", "note": "",
    },
    {
        "version": "2.9.1", "released": "2025-11-12", "python": ("3.10", "3.14"), "torchvision": "0.24.1",
        "torchaudio": "2.9.1", "triton": "3.5.1", "pypi": {"x86_64": "cu128", "aarch64": "cpu"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu128": {
                "x86_64": "7.0 7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": True,
                "source": ("release-md",), "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel", "previous-versions"), "confidence": "high", "note": "the pinned release",
    },
    {
        "version": "2.10.0", "released": "2026-01-21", "python": ("3.10", "3.14"), "torchvision": "0.25.0",
        "torchaudio": "2.10.0", "triton": "3.6.0", "pypi": {"x86_64": "cu128", "aarch64": "cpu"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu128": {
                "x86_64": "7.0 7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": True,
                "source": ("release-md",), "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high", "note": "",
    },
    {
        "version": "2.11.0", "released": "2026-03-23", "python": ("3.10", "3.14"), "torchvision": "0.26.0",
        "torchaudio": "2.11.0", "triton": "3.6.0", "pypi": {"x86_64": "cu130", "aarch64": "cu130"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu128": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 12.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu129": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": None, "ptx": True, "source": ("cog",),
                "confidence": "medium",
            },
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
        },
        "source": ("cog", "measured-wheel"), "confidence": "high",
        "note": "Volta leaves cu128; aarch64 on PyPI becomes CUDA; last torchaudio, without requirement of a torch",
    },
    {
        "version": "2.12.1", "released": "2026-06-17", "python": ("3.10", "3.14"), "torchvision": "0.27.1",
        "torchaudio": "2.11.0", "triton": "3.7.1", "pypi": {"x86_64": "cu130", "aarch64": "cu130"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu132": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("release-md",), "confidence": "medium",
            },
        },
        "source": ("pyg", "measured-wheel"), "confidence": "high", "note": "no cu128 any more",
    },
    {
        "version": "2.13.0", "released": "2026-07-08", "python": ("3.10", "3.14"), "torchvision": "0.28.0",
        "torchaudio": "2.11.0", "triton": "3.7.1", "pypi": {"x86_64": "cu130", "aarch64": "cu130"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu132": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("release-md",), "confidence": "medium",
            },
        },
        "source": ("pyg", "measured-wheel"), "confidence": "high", "note": "",
    },
    {
        "version": "2.14.1", "released": "2026-09-30", "python": ("3.10", "3.14"), "torchvision": "0.29.1",
        "torchaudio": "2.11.0", "triton": "3.8.0", "pypi": {"x86_64": "cu130", "aarch64": "cu130"},
        "indexes": {
            "cu126": {
                "x86_64": "5.0 6.0 7.0 7.5 8.0 8.6 9.0", "aarch64": "8.0 9.0", "ptx": False,
                "source": ("release-md",), "confidence": "high",
            },
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu132": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("issue-190355",), "confidence": "medium",
            },
        },
        "source": ("pr-194367", "measured-wheel"), "confidence": "high",
        "note": "RFC #190355 announced cu132 for PyPI; the wheel on PyPI is cu130 (measured)",
    },
    {
        "version": "2.15.0", "released": "2026-10-28", "python": ("3.11", "3.15"), "torchvision": "0.29.2",
        "torchaudio": "2.11.0", "triton": "3.9.0", "pypi": {"x86_64": "cu132", "aarch64": "cu132"},
        "indexes": {
            "cu130": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("code-cc-2.15", "issue-190385"), "confidence": "medium",
            },
            "cu132": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("measured-wheel",), "confidence": "high",
            },
            "cu134": {
                "x86_64": "7.5 8.0 8.6 9.0 10.0 12.0", "aarch64": "8.0 9.0 10.0 11.0 12.0", "ptx": False,
                "source": ("code-cc-2.15",), "confidence": "low",
            },
        },
        "source": ("measured-wheel",), "confidence": "high",
        "note": "cu126 dropped per #190385: no Maxwell/Pascal/Volta build",
    },
)
"""Oldest first. `python`: first and last. `pypi`: what the wheel on PyPI is. `indexes`: architectures with code, by tag."""

REPOSITORY_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "sbsa"}
"""How NVIDIA's repository names the architectures."""

PACKAGE_SETS = (
    {
        "name": "nvidia-debian", "until": None, "daemon": None,
        "desktop": {
            "open": ("nvidia-open",),
            "proprietary": ("cuda-drivers",),
        },
        "compute": {
            "open": ("nvidia-driver-cuda", "nvidia-kernel-open-dkms"),
            "proprietary": ("nvidia-driver-cuda", "nvidia-kernel-dkms"),
        },
        "names": (
            "nvidia-driver", "nvidia-driver-libs", "nvidia-driver-cuda", "nvidia-kernel-open-dkms",
            "nvidia-kernel-dkms", "nvidia-kernel-support", "libcuda1", "libnvidia-ml1", "libnvidia-ptxjitcompiler1",
            "libnvidia-cfg1", "libcudadebugger1", "libnvidia-gpucomp", "nvidia-opencl-icd", "nvidia-egl-icd",
            "nvidia-vulkan-icd", "xserver-xorg-video-nvidia", "libxnvctrl0", "firmware-nvidia-gsp",
            "nvidia-modprobe", "nvidia-persistenced", "nvidia-powerd", "nvidia-settings", "nvidia-xconfig",
        ),
        "source": ("driver-assistant", "packages-seen"), "confidence": "high", "note": "",
    },
    {
        "name": "nvidia-ubuntu-suffixed", "until": 589, "daemon": "nvidia-compute-utils-{branch}",
        "desktop": {
            "open": ("nvidia-open-{branch}",),
            "proprietary": ("cuda-drivers-{branch}",),
        },
        "compute": {
            "open": ("libnvidia-compute-{branch}", "nvidia-dkms-{branch}-open", "nvidia-utils-{branch}"),
            "proprietary": ("libnvidia-compute-{branch}", "nvidia-dkms-{branch}", "nvidia-utils-{branch}"),
        },
        "names": (
            "nvidia-driver-{branch}", "nvidia-dkms-{branch}", "nvidia-kernel-source-{branch}",
            "nvidia-headless-no-dkms-{branch}", "nvidia-headless-{branch}", "nvidia-driver-{branch}-open",
            "nvidia-dkms-{branch}-open", "nvidia-kernel-source-{branch}-open",
            "nvidia-headless-no-dkms-{branch}-open", "nvidia-headless-{branch}-open",
            "nvidia-kernel-common-{branch}", "nvidia-utils-{branch}", "nvidia-compute-utils-{branch}",
            "libnvidia-compute-{branch}", "libnvidia-gl-{branch}", "libnvidia-decode-{branch}",
            "libnvidia-encode-{branch}", "libnvidia-extra-{branch}", "libnvidia-fbc1-{branch}",
            "libnvidia-common-{branch}", "libnvidia-cfg1-{branch}", "xserver-xorg-video-nvidia-{branch}",
            "nvidia-modprobe", "nvidia-settings",
        ),
        "source": ("version-locking", "packages-seen"), "confidence": "high", "note": "",
    },
    {
        "name": "nvidia-ubuntu", "until": None, "daemon": "nvidia-persistenced",
        "desktop": {
            "open": ("nvidia-open",),
            "proprietary": ("cuda-drivers",),
        },
        "compute": {
            "open": ("libnvidia-compute", "nvidia-dkms-open"),
            "proprietary": ("libnvidia-compute", "nvidia-dkms"),
        },
        "names": (
            "nvidia-driver", "nvidia-dkms", "nvidia-kernel-source", "nvidia-headless-no-dkms", "nvidia-driver-open",
            "nvidia-dkms-open", "nvidia-kernel-source-open", "nvidia-headless-no-dkms-open", "nvidia-kernel-common",
            "nvidia-firmware", "libnvidia-compute", "libnvidia-cfg1", "libnvidia-common", "libnvidia-decode",
            "libnvidia-encode", "libnvidia-extra", "libnvidia-fbc1", "libnvidia-gl", "libnvidia-gpucomp",
            "nvidia-modprobe", "nvidia-persistenced", "xserver-xorg-video-nvidia", "nvidia-settings",
        ),
        "source": ("version-locking", "packages-seen"), "confidence": "high",
        "note": "the proprietary compute set is inferred",
    },
    {
        "name": "nvidia-el", "until": 609, "daemon": None,
        "desktop": {
            "open": ("nvidia-open",),
            "proprietary": ("cuda-drivers",),
        },
        "compute": {
            "open": ("nvidia-driver-cuda", "kmod-nvidia-open-dkms"),
            "proprietary": ("nvidia-driver-cuda", "kmod-nvidia-latest-dkms"),
        },
        "names": (
            "nvidia-driver", "nvidia-driver-libs", "nvidia-driver-cuda", "nvidia-driver-cuda-libs", "libnvidia-ml",
            "libnvidia-cfg", "libnvidia-gpucomp", "libnvidia-fbc", "xorg-x11-nvidia", "nvidia-kmod-common",
            "nvidia-modprobe", "nvidia-persistenced", "nvidia-libXNVCtrl", "nvidia-libXNVCtrl-devel",
            "nvidia-settings", "nvidia-xconfig", "kmod-nvidia-open-dkms", "kmod-nvidia-latest-dkms",
        ),
        "source": ("guide-620-modules", "packages-seen"), "confidence": "high", "note": "",
    },
    {
        "name": "nvidia-el-common", "until": None, "daemon": None,
        "desktop": {
            "open": ("nvidia-open",),
            "proprietary": ("cuda-drivers",),
        },
        "compute": {
            "open": ("nvidia-driver-cuda", "kmod-nvidia-open-dkms"),
            "proprietary": ("nvidia-driver-cuda", "kmod-nvidia-latest-dkms"),
        },
        "names": (
            "nvidia-driver", "nvidia-driver-libs", "nvidia-driver-cuda", "nvidia-driver-cuda-libs", "libnvidia-fbc",
            "xorg-x11-nvidia", "nvidia-kmod-common", "nvidia-modprobe", "nvidia-persistenced", "nvidia-libXNVCtrl",
            "nvidia-libXNVCtrl-devel", "nvidia-settings", "nvidia-xconfig", "kmod-nvidia-open-dkms",
            "kmod-nvidia-latest-dkms", "nvidia-driver-common",
        ),
        "source": ("guide-620-modules", "packages-seen"), "confidence": "medium",
        "note": "from 610 nvidia-driver-common holds what libnvidia-cfg, -gpucomp and -ml were",
    },
    {
        "name": "nvidia-suse", "until": None, "daemon": None,
        "desktop": {
            "open": ("nvidia-open",),
            "proprietary": ("cuda-drivers",),
        },
        "compute": {"open": (), "proprietary": ()}, "names": (),
        "source": ("driver-assistant", "suse-g07"),
        "confidence": "medium", "note": "compute-only packages are not established",
    },
    {
        "name": "debian-archive", "until": None, "daemon": None,
        "desktop": {
            "open": ("nvidia-driver", "nvidia-open-kernel-dkms", "nvidia-persistenced"),
            "proprietary": ("nvidia-driver", "nvidia-kernel-dkms", "nvidia-persistenced"),
        },
        "compute": {
            "open": ("libcuda1", "nvidia-smi", "nvidia-open-kernel-dkms", "nvidia-persistenced"),
            "proprietary": ("libcuda1", "nvidia-smi", "nvidia-kernel-dkms", "nvidia-persistenced"),
        },
        "names": (),
        "source": ("debian-nvidia",), "confidence": "high", "note": "",
    },
    {
        "name": "ubuntu-archive", "until": None, "daemon": None,
        "desktop": {
            "open": ("nvidia-driver-{branch}-open",),
            "proprietary": ("nvidia-driver-{branch}",),
        },
        "compute": {
            "open": ("nvidia-headless-{branch}-open", "nvidia-utils-{branch}"),
            "proprietary": ("nvidia-headless-{branch}", "nvidia-utils-{branch}"),
        },
        "names": (
            "nvidia-driver-{branch}", "nvidia-dkms-{branch}", "nvidia-kernel-source-{branch}",
            "nvidia-headless-no-dkms-{branch}", "nvidia-headless-{branch}", "nvidia-driver-{branch}-open",
            "nvidia-dkms-{branch}-open", "nvidia-kernel-source-{branch}-open",
            "nvidia-headless-no-dkms-{branch}-open", "nvidia-headless-{branch}-open",
            "nvidia-kernel-common-{branch}", "nvidia-utils-{branch}", "nvidia-compute-utils-{branch}",
            "libnvidia-compute-{branch}", "libnvidia-gl-{branch}", "libnvidia-decode-{branch}",
            "libnvidia-encode-{branch}", "libnvidia-extra-{branch}", "libnvidia-fbc1-{branch}",
            "libnvidia-common-{branch}", "libnvidia-cfg1-{branch}", "xserver-xorg-video-nvidia-{branch}",
        ),
        "source": ("ubuntu-packages", "packages-seen"), "confidence": "high", "note": "",
    },
    {
        "name": "ubuntu-archive-signed", "until": None, "daemon": None,
        "desktop": {
            "open": ("nvidia-driver-{branch}-open",),
            "proprietary": ("nvidia-driver-{branch}",),
        },
        "compute": {
            "open": ("nvidia-headless-no-dkms-{branch}-open", "nvidia-utils-{branch}"),
            "proprietary": ("nvidia-headless-no-dkms-{branch}", "nvidia-utils-{branch}"),
        },
        "names": (
            "nvidia-driver-{branch}", "nvidia-dkms-{branch}", "nvidia-kernel-source-{branch}",
            "nvidia-headless-no-dkms-{branch}", "nvidia-headless-{branch}", "nvidia-driver-{branch}-open",
            "nvidia-dkms-{branch}-open", "nvidia-kernel-source-{branch}-open",
            "nvidia-headless-no-dkms-{branch}-open", "nvidia-headless-{branch}-open",
            "nvidia-kernel-common-{branch}", "nvidia-utils-{branch}", "nvidia-compute-utils-{branch}",
            "libnvidia-compute-{branch}", "libnvidia-gl-{branch}", "libnvidia-decode-{branch}",
            "libnvidia-encode-{branch}", "libnvidia-extra-{branch}", "libnvidia-fbc1-{branch}",
            "libnvidia-common-{branch}", "libnvidia-cfg1-{branch}", "xserver-xorg-video-nvidia-{branch}",
        ),
        "source": ("ubuntu-packages", "packages-seen"), "confidence": "high",
        "note": "the module packages are named after the kernels: DISTRIBUTIONS, signed_modules",
    },
)
"""What to install. `until`: last branch with these names, None: any. `daemon`: what brings the persistence daemon, where nothing of
`compute` depends on it. `names`: all that the source has; (): not listed."""

DISTRIBUTIONS: tuple[dict[str, object], ...] = (
    {
        "name": "Debian 12", "os_ids": ("debian",), "version": "12", "family": "debian", "repository": "debian12",
        "key": "EB693B3035CD5710E231E123A4B469963BF863CC", "python": "3.11", "python_packages": {"3.11": "python3"},
        "pin": "preferences", "pinning_branches": (570, 580, 590, 595, 610), "branches_seen": (570, 580, 590, 595),
        "sets": ("nvidia-debian",), "native": ({"branch": 535, "version": "535.261.03", "note": "", "fails_from": None},),
        "native_sets": "debian-archive", "components": ("contrib", "non-free", "non-free-firmware"),
        "headers": {
            "x86_64": "linux-headers-amd64", "aarch64": "linux-headers-arm64",
        },
        "installs": True, "epel": (),
        "signed_modules": None,
        "source": ("driver-assistant", "version-locking", "madison", "packages-seen", "distribution-packages"),
        "confidence": "high", "note": "",
    },
    {
        "name": "Debian 13", "os_ids": ("debian",), "version": "13", "family": "debian", "repository": "debian13",
        "key": "02182E60104FCDC26EAE1B8597A5D4CB8793F200", "python": "3.13", "python_packages": {"3.13": "python3"},
        "pin": "preferences", "pinning_branches": (570, 580, 590, 595, 610), "branches_seen": (580, 590, 595, 615),
        "sets": ("nvidia-debian",),
        "native": (
            {
                "branch": 550, "version": "550.163.01",
                "note": "its DKMS build fails on kernel 6.12.107 and works on 6.12.94", "fails_from": "6.12.107",
            },
        ),
        "native_sets": "debian-archive", "components": ("contrib", "non-free", "non-free-firmware"),
        "headers": {
            "x86_64": "linux-headers-amd64", "aarch64": "linux-headers-arm64",
        },
        "installs": True, "epel": (),
        "signed_modules": None,
        "source": (
            "driver-assistant", "version-locking", "madison", "packages-seen", "measured-dkms",
            "distribution-packages",
        ),
        "confidence": "high", "note": "",
    },
    {
        "name": "Ubuntu 22.04", "os_ids": ("ubuntu",), "version": "22.04", "family": "debian",
        "repository": "ubuntu2204", "key": "EB693B3035CD5710E231E123A4B469963BF863CC", "python": "3.10",
        "python_packages": {"3.10": "python3"}, "pin": "preferences", "pinning_branches": (570, 575, 580, 590, 595, 610),
        "branches_seen": (580, 595, 610), "sets": ("nvidia-ubuntu-suffixed", "nvidia-ubuntu"), "native": (
            {"branch": 580, "version": "580.159.03", "note": "its exact version there is not established", "fails_from": None},
            {"branch": 595, "version": "595.71.05", "note": "its exact version there is not established", "fails_from": None},
        ),
        "native_sets": "ubuntu-archive", "components": ("restricted",), "headers": {},
        "installs": True, "epel": (),
        "signed_modules": {
            "set": "ubuntu-archive-signed", "package": "linux-modules-nvidia-{branch}{flavor}-{kernel}",
            "kernels": ("generic", "lowlatency", "aws", "azure", "gcp", "oracle"), "first_kernel": "5.15",
        },
        "source": ("version-locking", "ubuntu-packages", "packages-seen", "distribution-packages"),
        "confidence": "high", "note": "the archive has the names of 24.04; its versions are not established",
    },
    {
        "name": "Ubuntu 24.04", "os_ids": ("ubuntu",), "version": "24.04", "family": "debian",
        "repository": "ubuntu2404", "key": "EB693B3035CD5710E231E123A4B469963BF863CC", "python": "3.12",
        "python_packages": {"3.12": "python3"}, "pin": "preferences", "pinning_branches": (570, 575, 580, 590, 595, 610),
        "branches_seen": (580, 595, 610), "sets": ("nvidia-ubuntu-suffixed", "nvidia-ubuntu"),
        "native": (
            {"branch": 580, "version": "580.173.02", "note": "", "fails_from": None},
            {"branch": 595, "version": "595.84", "note": "", "fails_from": None},
        ),
        "native_sets": "ubuntu-archive", "components": ("restricted",), "headers": {},
        "installs": True, "epel": (),
        "signed_modules": {
            "set": "ubuntu-archive-signed", "package": "linux-modules-nvidia-{branch}{flavor}-{kernel}",
            "kernels": ("generic", "lowlatency", "aws", "azure", "gcp", "oracle"), "first_kernel": "6.8",
        },
        "source": ("version-locking", "ubuntu-packages", "packages-seen", "distribution-packages"),
        "confidence": "high", "note": "",
    },
    {
        "name": "Ubuntu 26.04", "os_ids": ("ubuntu",), "version": "26.04", "family": "debian",
        "repository": "ubuntu2604", "key": "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40", "python": None,
        "python_packages": {}, "pin": "preferences", "pinning_branches": (595, 610), "branches_seen": (595, 610),
        "sets": ("nvidia-ubuntu-suffixed", "nvidia-ubuntu"),
        "native": (
            {"branch": 580, "version": "580.159.03", "note": "", "fails_from": None},
            {"branch": 595, "version": "595.84", "note": "", "fails_from": None},
        ),
        "native_sets": "ubuntu-archive", "components": ("restricted",), "headers": {},
        "installs": True, "epel": (),
        "signed_modules": {
            "set": "ubuntu-archive-signed", "package": "linux-modules-nvidia-{branch}{flavor}-{kernel}",
            "kernels": ("generic", "lowlatency", "aws", "azure", "gcp", "oracle"), "first_kernel": "7.0",
        },
        "source": ("version-locking", "ubuntu-packages", "packages-seen"), "confidence": "high",
        "note": "NVIDIA's repository begins with branch 595; the default Python is not established",
    },
    {
        "name": "Enterprise Linux 8", "os_ids": ("rhel", "rocky", "almalinux", "ol", "centos"), "version": "8",
        "family": "redhat", "repository": "rhel8", "key": "D42D0685", "python": "3.6",
        "python_packages": {"3.11": "python3.11", "3.12": "python3.12"}, "pin": "module_stream",
        "pinning_branches": (), "branches_seen": (580, 595), "sets": ("nvidia-el", "nvidia-el-common"), "native": (),
        "native_sets": None, "components": (), "headers": {},
        "installs": False, "epel": (),
        "signed_modules": None,
        "source": ("guide-620-modules", "driver-assistant", "packages-seen", "distribution-packages"),
        "confidence": "high", "note": "DKMS comes from EPEL",
    },
    {
        "name": "Enterprise Linux 9", "os_ids": ("rhel", "rocky", "almalinux", "ol", "centos"), "version": "9",
        "family": "redhat", "repository": "rhel9", "key": "D42D0685", "python": "3.9",
        "python_packages": {
            "3.9": "python3", "3.11": "python3.11", "3.12": "python3.12",
        },
        "pin": "module_stream", "pinning_branches": (), "branches_seen": (580, 595), "sets": ("nvidia-el", "nvidia-el-common"),
        "native": (), "native_sets": None, "components": (), "headers": {},
        "installs": True, "epel": ("almalinux", "centos", "rocky"),
        "signed_modules": None,
        "source": ("guide-620-modules", "driver-assistant", "packages-seen", "distribution-packages"),
        "confidence": "high", "note": "DKMS comes from EPEL",
    },
    {
        "name": "Enterprise Linux 10", "os_ids": ("rhel", "rocky", "almalinux", "ol", "centos"), "version": "10",
        "family": "redhat", "repository": "rhel10", "key": "CDF6BA43", "python": "3.12",
        "python_packages": {"3.12": "python3"}, "pin": "versionlock", "pinning_branches": (),
        "branches_seen": (580, 595), "sets": ("nvidia-el", "nvidia-el-common"), "native": (), "native_sets": None, "components": (),
        "headers": {}, "installs": True, "epel": ("almalinux", "centos", "rocky"),
        "signed_modules": None,
        "source": ("guide-620-modules", "packages-seen", "distribution-packages"),
        "confidence": "high", "note": "documented without modules; module metadata was seen there in 2025-08",
    },
    {
        "name": "Fedora 43", "os_ids": ("fedora",), "version": "43", "family": "redhat", "repository": "fedora43",
        "key": "1940C73E", "python": None, "python_packages": {}, "pin": "versionlock", "pinning_branches": (),
        "branches_seen": (580, 595), "sets": ("nvidia-el", "nvidia-el-common"), "native": (), "native_sets": None, "components": (),
        "headers": {}, "installs": False, "epel": (),
        "signed_modules": None,
        "source": ("guide-620-modules", "repo-issue-49"), "confidence": "high", "note": "",
    },
    {
        "name": "Fedora 44", "os_ids": ("fedora",), "version": "44", "family": "redhat", "repository": "fedora44",
        "key": "129994480EC63D2789BC98E490DFED2F73CD9B30", "python": None, "python_packages": {},
        "pin": "versionlock", "pinning_branches": (), "branches_seen": (580, 595), "sets": ("nvidia-el", "nvidia-el-common"),
        "native": (), "native_sets": None, "components": (), "headers": {},
        "installs": False, "epel": (),
        "signed_modules": None,
        "source": ("guide-620-modules", "repo-issue-49"), "confidence": "high", "note": "",
    },
    {
        "name": "SLES 15", "os_ids": ("sles",), "version": "15", "family": "suse", "repository": "sles15",
        "key": "D42D0685", "python": None, "python_packages": {}, "pin": "versionlock", "pinning_branches": (),
        "branches_seen": (), "sets": ("nvidia-suse",), "native": (), "native_sets": None, "components": (),
        "headers": {}, "installs": False, "epel": (),
        "signed_modules": None,
        "source": ("driver-assistant", "suse-g07"), "confidence": "medium",
        "note": "compute-only packages are not established",
    },
    {
        "name": "SLES 16", "os_ids": ("sles",), "version": "16", "family": "suse", "repository": "sles16",
        "key": "D42D0685", "python": None, "python_packages": {}, "pin": "versionlock", "pinning_branches": (),
        "branches_seen": (), "sets": ("nvidia-suse",), "native": (), "native_sets": None, "components": (),
        "headers": {}, "installs": False, "epel": (),
        "signed_modules": None,
        "source": ("driver-assistant", "suse-g07"), "confidence": "medium",
        "note": "compute-only packages are not established",
    },
    {
        "name": "openSUSE Leap 15", "os_ids": ("opensuse-leap",), "version": "15", "family": "suse",
        "repository": "opensuse15", "key": "D42D0685", "python": None, "python_packages": {}, "pin": "versionlock",
        "pinning_branches": (), "branches_seen": (), "sets": ("nvidia-suse",), "native": (), "native_sets": None,
        "components": (), "headers": {}, "installs": False, "epel": (),
        "signed_modules": None,
        "source": ("driver-assistant", "suse-g07"), "confidence": "medium",
        "note": "compute-only packages are not established",
    },
    {
        "name": "openSUSE Leap 16", "os_ids": ("opensuse-leap",), "version": "16", "family": "suse",
        "repository": "suse16", "key": "3A8B5622", "python": None, "python_packages": {}, "pin": "versionlock",
        "pinning_branches": (), "branches_seen": (), "sets": ("nvidia-suse",), "native": (), "native_sets": None,
        "components": (), "headers": {}, "installs": False, "epel": (),
        "signed_modules": None,
        "source": ("driver-assistant", "suse-g07"), "confidence": "medium",
        "note": "compute-only packages are not established",
    },
)
"""`repository`: its name at NVIDIA. `pin`: how a branch is held. `branches_seen`: proves presence, not absence. `native`:
drivers in its own archive; `fails_from`: the first kernel that their modules do not compile on. `python`: its default. `installs`:
whether the role installs drivers there. `epel`: where the distribution itself packages EPEL's description. `signed_modules`: module
packages of its own archive, signed with a key that its firmware loader knows; `first_kernel`: that of the release, later ones are HWE."""

SIGNING_KEYS = (
    {
        "fingerprint": "EB693B3035CD5710E231E123A4B469963BF863CC",
        "file": "EB693B3035CD5710E231E123A4B469963BF863CC.asc",
        "sha256": "84965153d511e89233e86d62affb72a892014669ed6535bfc66ca560b99847a8",
        "repositories": (
            "debian10", "debian11", "debian12", "ubuntu1604", "ubuntu1804", "ubuntu2004", "ubuntu2204", "ubuntu2404",
        ),
        "source": ("extrepo", "repo-issues-30-39"), "confidence": "high",
        "note": "SHA-1 self-signature: sqv of Debian 13 and newer Ubuntu rejects it since 2026-02-01",
    },
    {
        "fingerprint": "02182E60104FCDC26EAE1B8597A5D4CB8793F200",
        "file": "02182E60104FCDC26EAE1B8597A5D4CB8793F200.asc",
        "sha256": "5b9273fbab97b3ff26557b4f60954153a3df51bd20f300f0c19cbe02aa718255", "repositories": ("debian13",),
        "source": ("extrepo",), "confidence": "high", "note": "",
    },
    {
        "fingerprint": "14BAFBC7562AD710CA04E69905FBB6DA60DF8A40", "file": None, "sha256": None,
        "repositories": ("ubuntu2604",), "source": ("four-repositories",), "confidence": "high", "note": "",
    },
    {
        "fingerprint": "D42D0685", "file": None, "sha256": None,
        "repositories": ("rhel8", "rhel9", "sles15", "sles16", "opensuse15"), "source": ("gpg-keys",),
        "confidence": "high", "note": "key id, full fingerprint not found; also Fedora up to 42",
    },
    {
        "fingerprint": "CDF6BA43", "file": None, "sha256": None, "repositories": ("rhel10",),
        "source": ("six-repositories",), "confidence": "high", "note": "key id, full fingerprint not found",
    },
    {
        "fingerprint": "1940C73E", "file": None, "sha256": None, "repositories": ("fedora43",),
        "source": ("repo-issue-49",), "confidence": "high", "note": "key id, full fingerprint not found",
    },
    {
        "fingerprint": "129994480EC63D2789BC98E490DFED2F73CD9B30", "file": None, "sha256": None,
        "repositories": ("fedora44",), "source": ("repo-issue-49",), "confidence": "high", "note": "",
    },
    {
        "fingerprint": "3A8B5622", "file": None, "sha256": None, "repositories": ("suse16",),
        "source": ("mirror-config",), "confidence": "medium", "note": "key id, full fingerprint not found",
    },
)
"""`file`: under roles/nvidia_driver/files, with its hash; None: not shipped."""

CUDA_ERRORS = {
    0: "CUDA_SUCCESS",
    3: "NOT_INITIALIZED",
    34: "STUB_LIBRARY: libcuda stub from a toolkit/image was loaded, not the driver",
    46: "DEVICE_UNAVAILABLE: exclusive-process or prohibited compute mode",
    100: "NO_DEVICE: the driver sees no CUDA GPU, CUDA_VISIBLE_DEVICES hides all, or a container lacks /dev/nvidia*",
    101: "INVALID_DEVICE",
    102: "DEVICE_NOT_LICENSED (vGPU)",
    200: "INVALID_IMAGE",
    209: "NO_BINARY_FOR_GPU: \"no kernel image is available\", wheel lacks this sm",
    218: "INVALID_PTX",
    221: "JIT_COMPILER_NOT_FOUND: libnvidia-ptxjitcompiler missing",
    222: "UNSUPPORTED_PTX_VERSION: PTX newer than the driver (minor-version compatibility limit)",
    304: "OPERATING_SYSTEM",
    802: "SYSTEM_NOT_READY: fabric manager not running on NVSwitch systems",
    803: "SYSTEM_DRIVER_MISMATCH: user space and loaded module differ (reboot)",
    804: "COMPAT_NOT_SUPPORTED_ON_DEVICE: cuda-compat in the library path on a GeForce",
    999: "UNKNOWN: often nvidia_uvm not loaded or broken after suspend",
}
"""Source: cuda-h."""

CUDA_DEVICE_ATTRIBUTES = {
    "major": 75, "minor": 76, "pci_bus": 33, "pci_device": 34, "pci_domain": 50, "sm_count": 16, "compute_mode": 20,
}
"""Source: cuda-h."""

NVIDIA_SMI_EXITS = {
    0: "ok",
    2: "bad argument",
    3: "not available on device",
    4: "no permission",
    6: "object not found",
    8: "power cable",
    9: "driver not loaded",
    10: "interrupt issue",
    12: "NVML library not found",
    13: "NVML lacks function",
    14: "infoROM corrupt",
    15: "GPU off the bus",
    18: "driver/library version mismatch (NVML_ERROR_LIB_RM_VERSION_MISMATCH, not in the man page)",
    255: "other",
}
"""Source: nvidia-smi-man."""

PCI = {
    "vendor": "10de",
    "class_prefix": "03",
    "first_supported": 0x1340,
    "first_turing": 0x1E00,
    "source": ("pci-ids", "driver-assistant"),
    "confidence": "high",
}
"""Ids from first_supported on are Maxwell or newer, from first_turing on Turing or newer: no exception among 651 ids. An
unknown id from first_turing on needs the open modules, as nvidia-driver-assistant assumes too."""

TOKENIZERS = {
    "variable": "TOKENIZERS_PARALLELISM",
    "false_values": ("", "off", "false", "f", "no", "n", "0"),
    "written": "false",
    "anything_else": "read as true: a forked child deadlocks in every version measured",
    "source": ("tokenizers",),
    "confidence": "high",
}
"""Compared without regard to case."""

ENVIRONMENT_NEEDS = {"mib": 8000, "inodes": 20000, "source": ("measured-venv",), "confidence": "high"}
"""Free space to build one release: what was measured, rounded up."""

SOURCES = {
    "arch-matrix": "https://docs.nvidia.com/datacenter/tesla/drivers/cuda-toolkit-driver-and-architecture-matrix.html",
    "open-modules": "measured: README.md PCI table by git tag of github.com/NVIDIA/open-gpu-kernel-modules (non-beta tags)",
    "open-readme": "github.com/NVIDIA/open-gpu-kernel-modules README.md: \"any Turing or later GPU\"",
    "domain": "domain knowledge, no source found",
    "torch-2.15-init": "measured: torch/cuda/__init__.py DEVICE_REQUIREMENT inside the torch 2.15.0 wheel",
    "pci-ids": "pci.ids 0.0~2026.10.24-1 (Debian sid)",
    "rubin": "flashinfer \"GR100 (cc 10.7, driver 620.05)\"; CUTLASS 4.8.0dev \"SM107 needs R615\"; nvidia-ml-py NVML_DEVICE_ARCH_RUBIN=13",
    "release-md": "pytorch RELEASE.md support matrix: PRs #164471 (2.9), #175253 (2.11), #182849 (2.12), #197555 (2.14)",
    "supported-drivers": "https://docs.nvidia.com/datacenter/tesla/drivers/supported-drivers-and-cuda-toolkit-versions.html",
    "supported-drivers-615": "https://docs.nvidia.com/datacenter/tesla/drivers/615/supported-drivers-and-cuda-toolkit-versions.html",
    "ubuntu-packages": "packages.ubuntu.com",
    "nvml-py-615": "nvidia-ml-py 13.615.71 on PyPI; driver installation guide, release 615, 2026-09-09",
    "debian13-615": "dpkg listing, Debian 13, 2026-09-15: nvidia-kernel-dkms 615.71.09 is empty and pulls in the open modules",
    "guide-620": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/620/pdf/Driver_Installation_Guide.pdf section 4.1",
    "cuda-notes": "docs.nvidia.com/cuda/cuda-toolkit-release-notes, table \"CUDA Toolkit and Corresponding Driver Versions\"",
    "minor-version": "https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html",
    "cog": "replicate/cog pkg/config/torch_compatibility.json (generated from download.pytorch.org, 2026-08-21)",
    "measured-wheel": "measured 2026-11-22: cuobjdump --list-elf and the _cuda_getArchFlags string of the PyPI wheel (cp312)",
    "build-cuda-2.7": "pytorch/pytorch .ci/manywheel/build_cuda.sh at v2.7.0; pytorch.github.io PR #1989",
    "build-cuda-2.8": "pytorch/pytorch .ci/manywheel/build_cuda.sh at 00c7a380",
    "previous-versions": "https://pytorch.org/get-started/previous-versions",
    "pyg": "https://data.pyg.org/whl/nightly/ listing",
    "pr-194367": "pytorch PR #194367",
    "issue-190355": "pytorch issue #190355",
    "issue-190385": "pytorch issue #190385",
    "code-cc-2.15": "measured: PYTORCH_RELEASES_CODE_CC inside the torch 2.15.0 wheel",
    "nvidia-blog-open": "NVIDIA blog, July 2024 (open kernel modules for Grace Hopper and Blackwell), read in reprints; NixOS wiki",
    "driver-assistant": "NVIDIA nvidia-driver-assistant (MIT)",
    "version-locking": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/version-locking.html; page \"Recent updates\"",
    "madison": "measured: apt-cache madison and package indexes of bookworm, trixie and sid, 2026-11-22",
    "packages-seen": "NVIDIA's repositories as described by 34 public records of their packages, 2024-08 to 2026-10",
    "guide-620-modules": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/620/kernel-modules.html",
    "suse-g07": "software.opensuse.org, page of the G07 packages",
    "repo-issue-49": "NVIDIA/cuda-repo-management issue #49",
    "repo-issues-30-39": "NVIDIA/cuda-repo-management issues #30 and #39",
    "distribution-packages": "the distribution's own packages",
    "debian-nvidia": "Debian's nvidia-graphics-drivers and nvidia-open-gpu-kernel-modules, read from the packages",
    "measured-dkms": "measured 2026-11-22: nvidia-open-kernel-dkms 550.163.01-2 and the 550.163.01-4 of backports on 6.12.107 and 6.12.94",
    "extrepo": "measured from extrepo-offline-data 1.0.7",
    "four-repositories": "four independent public repositories",
    "six-repositories": "six public repositories that quote cuda-rhel10.repo",
    "gpg-keys": "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/gpg-keys-used-to-sign-the-packages.html",
    "mirror-config": "a public mirror configuration",
    "cuda-h": "cuda.h shipped in triton 3.5.1; some meanings are domain knowledge",
    "nvidia-smi-man": "nvidia-smi(1) of Debian nvidia-smi 550.163.01; 18 from pynvml",
    "tokenizers": "huggingface/tokenizers tokenizers/src/utils/parallelism.rs at 14005348; measured 2026-11-22 with seven versions",
    "measured-venv": "measured 2026-11-22: environment with torch 2.9.1, torchvision and torchaudio: 6.8 GB, 14,849 files",
    "decision": "choice of this collection; docs/architecture.md",
}
