# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: environment variables that harm CUDA programs where everybody has them. Data, and one lookup.

The probe finds them on hosts, the planner warns of them or refuses to set them. Left out on purpose, because torch's wheels run with them
as without: CUDA_HOME, CUDA_PATH, TORCH_CUDA_ARCH_LIST, CUDA_DEVICE_ORDER, PYTORCH_CUDA_ALLOC_CONF. PYTHONPATH and PYTHONHOME are reported
as what others installed (``foreign``).
"""

from __future__ import annotations

import re
import typing as t

_CUDA_GUIDE = "CUDA Programming Guide, 5.2 CUDA Environment Variables"
_DCGM = "NVIDIA/DCGM nvvs/plugin_src/software/Software.cpp, checkForBadEnvVariables"


class Breaking(t.NamedTuple):
    """A kind of variable."""

    names: str
    """Pattern of the whole name."""
    values: str
    """Pattern found in every value that does harm."""
    why: str
    refused: bool
    """Whether we never set it: no value of it is of use to everybody."""
    single: bool
    """Whether a single process may well have it, set by its launcher."""
    source: str


_ON = r"[^0\s]"

BREAKING = (
    Breaking(
        "CUDA_LAUNCH_BLOCKING",
        _ON,
        "every kernel launch waits for the GPU, which slows all programs; it is for debugging",
        refused=False,
        single=False,
        source=_CUDA_GUIDE,
    ),
    Breaking(
        "CUDA_DEVICE_WAITS_ON_EXCEPTION",
        _ON,
        "a program whose kernel fails does not end: it keeps the GPU and waits for a debugger",
        refused=False,
        single=False,
        source=_CUDA_GUIDE,
    ),
    Breaking(
        "CUDA_FORCE(?:_PTX)?_JIT",
        _ON,
        "CUDA ignores compiled kernels, and torch's wheels hold no PTX to compile: every kernel fails to load",
        refused=True,
        single=False,
        source=_CUDA_GUIDE,
    ),
    Breaking(
        "CUDA_DISABLE(?:_PTX)?_JIT",
        _ON,
        "kernels that come as PTX fail to load",
        refused=False,
        single=False,
        source=_CUDA_GUIDE,
    ),
    Breaking(
        "(?:CUDA|NVTX)_INJECTION(?:32|64)_PATH|NSIGHT_CUDA_DEBUGGER",
        r".",
        "a profiler's or debugger's code is loaded into every CUDA program, which can slow it or keep CUDA from starting",
        refused=True,
        single=False,
        source=_DCGM,
    ),
    Breaking(
        "CUDA_VISIBLE_DEVICES",
        r"^",
        "programs see these GPUs only, and none where the value is empty or names no GPU; the proof cannot vouch for the others",
        refused=False,
        single=True,
        source=_CUDA_GUIDE,
    ),
    Breaking(
        "NVIDIA_VISIBLE_DEVICES",
        r"^(?!all$)",
        "containers that take over the host's environment (enroot, for example) get these GPUs only",
        refused=False,
        single=True,
        source="NVIDIA/enroot conf/hooks/98-nvidia.sh",
    ),
    Breaking(
        "LD_LIBRARY_PATH|LD_PRELOAD",
        r"(?i)cuda|cudnn|cublas|nccl|nvidia|tensorrt|nsight|nsys",
        "libraries from there are taken instead of the driver's or those that torch brings: errors 34, 803 or an undefined symbol follow",
        refused=True,
        single=False,
        source="ld.so(8)",
    ),
)

LIBRARY_FOLDER = re.compile(r"/(?:stubs|compat)(?:/|$)")
"""A folder in the configuration of ld.so from which every program would get a libcuda that is not the driver's."""
LIBRARY_FOLDER_WHY = "every program finds the libcuda there, which is not the driver's: errors 34, 803 or 804 follow"


def judge(name: str, value: str) -> Breaking | None:
    """The row that says what harm a variable with this value does; None where none is known."""
    for row in BREAKING:
        if re.fullmatch(row.names, name):
            return row if re.search(row.values, value) else None
    return None
