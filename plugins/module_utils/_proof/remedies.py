# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What a failed or skipped check means and what a person does about it.

Data and a lookup. A failure has a code: `cuda_<number>` for an error of CUDA (the driver and the run time API share the
numbers), or one of REMEDIES. torch names most errors only in words, hence the texts.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class CudaFailure(NamedTuple):
    """One error of CUDA: its number, the words that torch and its libraries use for it, cause and remedy."""

    number: int
    texts: tuple[str, ...]
    cause: str
    remedy: str


_HARDWARE = (
    "Look for Xid lines in the kernel log (journalctl -k -g Xid). Reboot; if it comes back, have the card inspected."
)

# Numbers and names: cuda.h and driver_types.h of CUDA 12.8; causes of 34, 46, 100, 209, 221, 222, 802, 803, 804 and 999:
# the `cuda_errors` rows of the knowledge base. The texts are those of cudaGetErrorString.
CUDA_FAILURES = (
    CudaFailure(
        2,
        ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
        "the GPU's memory is full",
        "End what uses the GPU (nvidia-smi lists it), then prove again.",
    ),
    CudaFailure(
        3,
        ("initialization error",),
        "CUDA could not start",
        "Restart the host; if it comes back, reinstall the driver.",
    ),
    CudaFailure(
        34,
        ("stub library",),
        "a stub of libcuda was loaded in place of the driver's",
        "Remove the CUDA toolkit's stubs directory from the system's library path (/etc/ld.so.conf.d).",
    ),
    CudaFailure(
        35,
        ("driver version is insufficient", "driver on your system is too old"),
        "the driver is older than this CUDA version allows",
        "Upgrade the driver (role nvidia_driver), or use a torch built for an older CUDA.",
    ),
    CudaFailure(
        46,
        ("devices are unavailable", "busy or unavailable"),
        "the GPU is in exclusive or prohibited compute mode, or another process holds it exclusively",
        "End that process, or set the default mode: nvidia-smi --compute-mode=DEFAULT.",
    ),
    CudaFailure(
        100,
        ("no CUDA-capable device", "No CUDA GPUs are available", "Found no NVIDIA driver"),
        "the driver is loaded but shows no GPU",
        "Look at 'nvidia-smi' and the kernel log (journalctl -k -g NVRM); a GPU that fell off the bus needs a cold restart.",
    ),
    CudaFailure(101, ("invalid device ordinal",), "a GPU that was counted cannot be opened", _HARDWARE),
    CudaFailure(
        200,
        ("device kernel image is invalid",),
        "the kernel's machine code is damaged",
        "Rebuild the environment: a file of it is damaged.",
    ),
    CudaFailure(
        209,
        ("no kernel image is available",),
        "this build of torch has no code for this GPU",
        "Install a torch whose arch flags cover the GPU (role torch_env with torch_env_cuda: auto chooses one).",
    ),
    CudaFailure(
        214,
        ("uncorrectable ECC error",),
        "the GPU's memory has an uncorrectable error",
        "Reboot to let the GPU retire the page; if it comes back, replace the card.",
    ),
    CudaFailure(
        218,
        ("a PTX JIT compilation failed",),
        "the driver could not compile PTX",
        "Reinstall the driver's packages: libraries of different versions are mixed.",
    ),
    CudaFailure(220, ("uncorrectable NVLink error",), "NVLink has an uncorrectable error", _HARDWARE),
    CudaFailure(
        221,
        ("PTX JIT compiler library not found",),
        "libnvidia-ptxjitcompiler is not installed",
        "Install the driver's complete compute package set (role nvidia_driver).",
    ),
    CudaFailure(
        222,
        ("unsupported toolchain",),
        "PTX is newer than the driver can read",
        "Upgrade the driver (role nvidia_driver).",
    ),
    CudaFailure(
        304,
        ("OS call failed",),
        "a call of the operating system failed",
        "Check the permissions of /dev/nvidia* and the limits of the account (ulimit -a).",
    ),
    CudaFailure(700, ("illegal memory access",), "a kernel read or wrote outside its memory", _HARDWARE),
    CudaFailure(
        702,
        ("launch timed out",),
        "the display's watchdog ended a kernel",
        "Prove while no desktop draws on this GPU; if it comes back, have the card inspected.",
    ),
    CudaFailure(710, ("device-side assert",), "a kernel found a contradiction in its data", _HARDWARE),
    CudaFailure(714, ("hardware stack error",), "the GPU reported a hardware error", _HARDWARE),
    CudaFailure(
        715, ("an illegal instruction was encountered",), "the GPU met an instruction it does not know", _HARDWARE
    ),
    CudaFailure(719, ("unspecified launch failure",), "a kernel failed for a reason the GPU does not name", _HARDWARE),
    CudaFailure(
        801,
        ("operation not supported",),
        "this GPU or driver lacks a function that torch uses",
        "Upgrade the driver (role nvidia_driver).",
    ),
    CudaFailure(
        802,
        ("system not yet initialized",),
        "the fabric manager of an NVSwitch system is not running",
        "Install and start nvidia-fabricmanager in exactly the driver's version.",
    ),
    CudaFailure(
        803,
        ("unsupported display driver / cuda driver combination", "system has unsupported display driver"),
        "the loaded kernel module and the driver's libraries have different versions",
        "Reboot, so that the installed version is loaded. Reinstalling does not help.",
    ),
    CudaFailure(
        804,
        ("forward compatibility was attempted",),
        "a cuda-compat package stands in for the driver on a GPU that forbids it",
        "Remove the cuda-compat package: it is for data-centre GPUs only.",
    ),
    CudaFailure(
        999,
        ("unknown error",),
        "often nvidia_uvm is not loaded, or was broken by a suspend",
        "Run 'modprobe nvidia_uvm'; after a suspend, reboot.",
    ),
)

REMEDIES = {
    "not_installed": "Rebuild the environment (role torch_env).",
    "wrong_version": "Rebuild the environment from the index of the wanted build (role torch_env).",
    "cpu_build": "Install from PyTorch's index for the wanted CUDA tag; this wheel was built without CUDA.",
    "rocm_build": "Install from PyTorch's index for the wanted CUDA tag; this wheel was built for AMD GPUs.",
    "companion_build": "Install torch and its companions from one index, in versions that belong together.",
    "import_failed": "Rebuild the environment; the evidence names the library that could not be loaded.",
    "outside": "Remove what leads Python out of the environment: a .pth file, or a package installed system-wide.",
    "arch_missing": "Install a torch whose arch flags cover the GPU (role torch_env with torch_env_cuda: auto chooses one).",
    "arch_unknown": "Name what the host's GPUs need with the option sm, for example sm_120.",
    "wrong_result": "Prove again; if it repeats, do not compute on this GPU: reboot, then have the card inspected.",
    "library_missing": "Install the driver's user space (role nvidia_driver): libcuda.so.1 comes with it.",
    "torch_misses_gpu": "Compare 'nvidia-smi -L' with torch.cuda.device_count(); reboot if the driver was changed meanwhile.",
    "gpu_missing": "Look for Xid lines in the kernel log (journalctl -k -g Xid); a GPU that fell off the bus needs a cold restart.",
    "failed": "The evidence is the program's own message.",
    "no_start": "Check that the interpreter exists and that the account may execute it and enter every directory above it.",
    "no_account": "Create the account, name another one, or become root.",
    "crashed": "Look at the kernel log (journalctl -k) and rebuild the environment; with SIGILL the CPU lacks an instruction.",
    "timed_out": "Look at the kernel log (journalctl -k -g 'NVRM|Xid'); raise the time limit only for slow disks.",
    "unkillable": "The process hangs inside the driver: only a reboot ends it.",
    "ended_early": "The evidence is what the program printed last.",
    "garbage": "Something in the environment writes to descriptors that are not its own: look at its .pth files and sitecustomize.",
    "busy": "Prove again when the job has ended, or set when_busy to run.",
    "no_gpu": "None on a host without a GPU; prove at level static there.",
    "no_driver": "Install and load the driver (role nvidia_driver).",
    "no_device_nodes": "Give the container the GPUs (nvidia-container-toolkit), or run nvidia-modprobe -u -c 0 on a host.",
    "stopped": "Mend what the failed check names first.",
}

_NUMBERED = re.compile(r"CUDA_ERROR_[A-Z_]+ \((\d+)\)")


def cuda_failure(number: int | None, text: str) -> CudaFailure | None:
    """Find the CUDA error by the number that the exception carried, else by its words."""
    match = _NUMBERED.search(text)
    if number is None and match:
        number = int(match.group(1))
    lowered = text.lower()
    for failure in CUDA_FAILURES:
        if failure.number == number or (number is None and any(words.lower() in lowered for words in failure.texts)):
            return failure
    return None


def code_of(check: str, number: int | None, kind: str | None, text: str) -> str:
    """The code of a failure that arrived as an exception."""
    failure = cuda_failure(number, text)
    if failure is not None:
        return f"cuda_{failure.number}"
    if number is not None:
        return f"cuda_{number}"
    if kind in ("ImportError", "ModuleNotFoundError", "OSError") and check.startswith(("torch.import", "companion.")):
        return "import_failed"
    return "failed"


def remedy(code: str, cuda: CudaFailure | None = None) -> str:
    """What to do about a failure or a check that did not run."""
    if code.startswith("cuda_"):
        number = int(code[len("cuda_") :])
        cuda = cuda or next((failure for failure in CUDA_FAILURES if failure.number == number), None)
        if cuda is None:
            return f"Look up the CUDA error {number} in the documentation of cudaError_t."
        return f"{cuda.cause[0].upper() + cuda.cause[1:]}. {cuda.remedy}"
    return REMEDIES[code]
