# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Windows puts into a WSL2 host: the driver's libraries below /usr/lib/wsl/lib."""

from __future__ import annotations

from typing import Any

from .native import compile_library
from .settings import Settings
from .stubs import NVIDIA_SMI

FOLDER = "usr/lib/wsl/lib"


def libraries(settings: Settings, wsl: dict[str, Any]) -> dict[str, tuple[bytes, int]]:
    """Files to lay over the image of a WSL2 host: path -> (content, mode)."""
    version, cuda = wsl["driver"], int(wsl["cuda"])
    files = {}
    for source, soname in (("cuda.c", "libcuda.so.1"), ("nvml.c", "libnvidia-ml.so.1")):
        files[f"{FOLDER}/{soname}"] = (compile_library(source, soname, version, cuda, wsl=True), 0o755)
    files[f"{FOLDER}/nvidia-smi"] = (NVIDIA_SMI.encode(), 0o755)
    files["etc/ld.so.conf.d/ld.wsl.conf"] = (b"/usr/lib/wsl/lib\n", 0o644)
    return files
