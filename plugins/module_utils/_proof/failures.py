# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Every failure that a check can have: its code, what it means, what a person does about it.

Data and lookups. A code is `cuda_<number>` for an error of CUDA (the driver and the run time API share the numbers),
`nvml_<number>` for one of NVML, else a word. torch names many errors of CUDA only in NVIDIA's words, hence the texts.
docs/failures.md and the documentation of cuda_verify are made of this table; causes.py replaces a code that has several
causes by a narrower one where the host shows which it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Failure(NamedTuple):
    """One failure. `texts` are words that occur in no other error's message."""

    code: str
    title: str
    cause: str
    remedy: str
    source: str
    texts: tuple[str, ...] = ()

    @property
    def tested(self) -> str:
        """How its code is known to be given: on a real GPU, by a simulated driver, or by unit tests alone."""
        if self.code in ON_GPU:
            return "gpu"
        return "unit" if self.code in BY_UNIT else "stub"


_INSPECT = (
    "Look for Xid lines in the kernel log (journalctl -k -g Xid). Reboot; if it comes back, have the card inspected."
)
_REBUILD = (
    "Rebuild the environment (role torch_env). If it repeats in a new one, report it to PyTorch with this evidence."
)
_UPGRADE = "Upgrade the driver (role nvidia_driver), or use a torch built for an older CUDA (torch_env_cuda)."
_REINSTALL = "Reinstall the driver's packages (role nvidia_driver)."
_MPS = "End the MPS daemon (echo quit | nvidia-cuda-mps-control), prove again, then start it anew for its users."
_MEMORY = "End what uses the GPU (nvidia-smi lists it), then prove again."
_PEER = "Prove the GPUs one by one (option gpus); training on several works without peer access too, with NCCL_P2P_DISABLE=1."
_NOTHING = "The value is left out; the proof needs no NVML. For more of them, upgrade the driver (role nvidia_driver)."
_COLLECTION = "Report it to the maintainers of this collection with the driver's version (nvidia-smi)."

# fmt: off
# number, name, NVIDIA's words for it (cudaGetErrorString, CUDA 13.0), cause, remedy, further words of torch and its libraries
_DRIVER_API = (
    (1, "CUDA_ERROR_INVALID_VALUE", "invalid argument", "CUDA was given a value that it does not take", _REBUILD),
    (2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory", "the GPU's memory is full", _MEMORY,
        "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    (3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error", "CUDA could not start in this process",
        "Restart the host; if it comes back, reinstall the driver (role nvidia_driver).", "CUDA driver initialization failed"),
    (4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down", "CUDA was called while it was ending", _REBUILD),
    (5, "CUDA_ERROR_PROFILER_DISABLED", "profiler disabled while using external profiling tool", "a profiler is attached from outside",
        "End the profiler (nsys, ncu), then prove again."),
    (6, "CUDA_ERROR_PROFILER_NOT_INITIALIZED", "profiler not initialized: call cudaProfilerInitialize()",
        "CUDA's profiler was used before it was set up", _REBUILD),
    (7, "CUDA_ERROR_PROFILER_ALREADY_STARTED", "profiler already started", "CUDA's profiler was started twice", _REBUILD),
    (8, "CUDA_ERROR_PROFILER_ALREADY_STOPPED", "profiler already stopped", "CUDA's profiler was stopped twice", _REBUILD),
    (34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library", "a stub of libcuda was loaded in place of the driver's",
        "Remove the CUDA toolkit's stubs folder from the system's library path (/etc/ld.so.conf.d), then run ldconfig.", "stub library"),
    (36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "API call is not supported in the installed CUDA driver",
        "torch calls a function that this driver does not have yet", _UPGRADE),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable",
        "the GPU is in exclusive or prohibited compute mode, or another process holds it exclusively",
        "End that process, or set the default mode: nvidia-smi --compute-mode=DEFAULT.", "busy or unavailable", "devices are unavailable"),
    (100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected", "the driver is loaded but shows no GPU",
        "Look at 'nvidia-smi' and the kernel log (journalctl -k -g NVRM); a GPU that fell off the bus needs a cold restart.",
        "no CUDA-capable device", "No CUDA GPUs are available"),
    (101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal", "a GPU that was counted cannot be opened", _INSPECT,
        "invalid device ordinal"),
    (102, "CUDA_ERROR_DEVICE_NOT_LICENSED", "device doesn't have valid Grid license", "this virtual GPU has no licence",
        "Give nvidia-gridd a licence server (/etc/nvidia/gridd.conf), or pass a whole GPU through to this machine."),
    (200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid", "the machine code of a kernel is damaged",
        "Rebuild the environment (role torch_env): a file of it is damaged.", "device kernel image is invalid"),
    (201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context", "CUDA was called without a context on the GPU", _REBUILD),
    (202, "CUDA_ERROR_CONTEXT_ALREADY_CURRENT", "context already current", "a context was made current twice", _REBUILD),
    (205, "CUDA_ERROR_MAP_FAILED", "mapping of buffer object failed", "memory could not be mapped for the GPU", _INSPECT),
    (206, "CUDA_ERROR_UNMAP_FAILED", "unmapping of buffer object failed", "the GPU's mapping of memory could not be undone", _INSPECT),
    (207, "CUDA_ERROR_ARRAY_IS_MAPPED", "array is mapped", "an array was to be freed while it was mapped", _REBUILD),
    (208, "CUDA_ERROR_ALREADY_MAPPED", "resource already mapped", "a resource was mapped twice", _REBUILD),
    (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device",
        "this build of torch has no code for this GPU",
        "Install a torch whose arch flags cover the GPU (role torch_env with torch_env_cuda: auto chooses one).",
        "no kernel image is available", "CUBLAS_STATUS_ARCH_MISMATCH", "CUDNN_STATUS_ARCH_MISMATCH"),
    (210, "CUDA_ERROR_ALREADY_ACQUIRED", "resource already acquired", "a resource was acquired twice", _REBUILD),
    (211, "CUDA_ERROR_NOT_MAPPED", "resource not mapped", "a resource was used before it was mapped", _REBUILD),
    (212, "CUDA_ERROR_NOT_MAPPED_AS_ARRAY", "resource not mapped as array", "a resource was used as an array and is none", _REBUILD),
    (213, "CUDA_ERROR_NOT_MAPPED_AS_POINTER", "resource not mapped as pointer", "a resource was used as memory and is none", _REBUILD),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered", "the GPU's memory has an uncorrectable error",
        "Reboot to let the GPU replace the bad memory; if it comes back, replace the card.", "uncorrectable ECC error"),
    (215, "CUDA_ERROR_UNSUPPORTED_LIMIT", "limit is not supported on this architecture", "torch set a limit that this GPU lacks", _UPGRADE),
    (216, "CUDA_ERROR_CONTEXT_ALREADY_IN_USE", "exclusive-thread device already in use by a different thread",
        "the GPU is reserved for one thread", "Set the default mode: nvidia-smi --compute-mode=DEFAULT."),
    (217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access is not supported between these two devices",
        "these two GPUs cannot read each other's memory", _PEER),
    (218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed", "the driver could not compile PTX",
        "Reinstall the driver's packages (role nvidia_driver): libraries of different versions are mixed.", "a PTX JIT compilation failed"),
    (219, "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT", "invalid OpenGL or DirectX context", "CUDA was tied to a broken graphics context",
        _REBUILD),
    (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "uncorrectable NVLink error detected during the execution",
        "NVLink has an uncorrectable error", _INSPECT, "uncorrectable NVLink error"),
    (221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX JIT compiler library not found", "libnvidia-ptxjitcompiler is not installed",
        "Install the driver's complete compute package set (role nvidia_driver).", "PTX JIT compiler library not found"),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain.",
        "PTX is newer than the driver can read", "Upgrade the driver (role nvidia_driver).", "unsupported toolchain"),
    (223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "PTX JIT compilation was disabled", "a variable forbids the driver to compile PTX",
        "Remove CUDA_DISABLE_PTX_JIT from the environment's start files and from /etc."),
    (224, "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY", "the provided execution affinity is not supported",
        "a part of the GPU was asked for that cannot be reserved", _MPS),
    (225, "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC", "the provided PTX contains unsupported call to cudaDeviceSynchronize",
        "a kernel's PTX is for older GPUs and waits in a way that newer ones lack", _REBUILD),
    (226, "CUDA_ERROR_CONTAINED", "Invalid access of peer GPU memory over nvlink or a hardware error",
        "the GPU contained an error of its hardware or of another GPU's memory", _INSPECT),
    (300, "CUDA_ERROR_INVALID_SOURCE", "device kernel image is invalid", "a kernel's source does not compile", _REBUILD),
    (301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found", "a file with kernels is missing",
        "Rebuild the environment (role torch_env): a file of it is missing."),
    (302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "shared object symbol not found",
        "a library lacks a function that another one needs: their versions do not belong together", _REINSTALL),
    (303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "shared object initialization failed", "a library of the driver did not start",
        _REINSTALL),
    (304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS", "a call of the operating system failed",
        "Check the permissions of /dev/nvidia* and the limits of the account (ulimit -a).", "OS call failed"),
    (400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle", "a stream or an event was used after its end, or on another GPU",
        _REBUILD),
    (401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state",
        "something was asked for in an order that CUDA does not take", _REBUILD),
    (402, "CUDA_ERROR_LOSSY_QUERY", "attempted introspection would be semantically lossy",
        "torch asked about something that is newer than itself", _REBUILD),
    (500, "CUDA_ERROR_NOT_FOUND", "named symbol not found", "a kernel or a function of the driver is not there under its name", _REBUILD),
    (600, "CUDA_ERROR_NOT_READY", "device not ready", "work on the GPU was not finished when it had to be", _REBUILD),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered", "a kernel read or wrote outside its memory", _INSPECT,
        "illegal memory access"),
    (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch",
        "a kernel needs more registers or memory than the GPU has", _REBUILD),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated", "the display's watchdog ended a kernel",
        "Prove while no desktop draws on this GPU; if it comes back, have the card inspected.", "launch timed out"),
    (703, "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING", "launch uses incompatible texturing mode", "a kernel uses textures wrongly",
        _REBUILD),
    (704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled", "peer access was switched on twice", _REBUILD),
    (705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled", "peer access was switched off before it was on",
        _REBUILD),
    (708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "cannot set while device is active in this process",
        "the GPU was to be set up after it had been used", _REBUILD),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed", "the context on the GPU ended before its work did", _INSPECT),
    (710, "CUDA_ERROR_ASSERT", "device-side assert triggered", "a kernel found a contradiction in its data", _INSPECT,
        "device-side assert"),
    (711, "CUDA_ERROR_TOO_MANY_PEERS", "peer mapping resources exhausted", "too many GPUs were to read this one's memory", _PEER),
    (712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped",
        "the host's memory was registered twice", _REBUILD),
    (713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region",
        "the host's memory was not registered", _REBUILD),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR", "hardware stack error", "a kernel's stack overflowed or was damaged", _INSPECT,
        "hardware stack error"),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction was encountered", "the GPU met an instruction it does not know",
        _INSPECT, "an illegal instruction was encountered"),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address", "a kernel read or wrote at an odd address", _INSPECT),
    (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", "operation not supported on global/shared address space",
        "a kernel used an instruction on the wrong kind of memory", _INSPECT),
    (718, "CUDA_ERROR_INVALID_PC", "invalid program counter", "a kernel jumped to where no program is", _INSPECT),
    (719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure", "a kernel failed for a reason the GPU does not name", _INSPECT,
        "unspecified launch failure", "CUBLAS_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_EXECUTION_FAILED"),
    (720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch",
        "a kernel has more blocks than the GPU runs at once", _REBUILD),
    (721, "CUDA_ERROR_TENSOR_MEMORY_LEAK", "tensor memory not completely freed", "a kernel did not give its tensor memory back", _REBUILD),
    (800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted", "the account may not do what torch asked of CUDA",
        "Prove as the account that owns the environment; in a container, give it the GPUs with nvidia-container-toolkit."),
    (801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported", "this GPU or driver lacks a function that torch uses",
        "Upgrade the driver (role nvidia_driver)."),
    (802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized", "the fabric manager of an NVSwitch system is not running",
        "Install and start nvidia-fabricmanager in exactly the driver's version.", "system not yet initialized"),
    (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination",
        "the loaded kernel module and the driver's libraries have different versions",
        "Reboot, so that the installed version is loaded. Reinstalling does not help.", "system has unsupported display driver"),
    (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility was attempted on non supported HW",
        "a cuda-compat package stands in for the driver on a GPU that forbids it",
        "Remove the cuda-compat package: it is for data-centre GPUs only.", "forward compatibility was attempted"),
    (805, "CUDA_ERROR_MPS_CONNECTION_FAILED", "MPS client failed to connect to the MPS control daemon or the MPS server",
        "the MPS daemon does not take the account's programs", _MPS),
    (806, "CUDA_ERROR_MPS_RPC_FAILURE", "the remote procedural call between the MPS server and the MPS client failed",
        "the MPS server did not answer", _MPS),
    (807, "CUDA_ERROR_MPS_SERVER_NOT_READY", "MPS server is not ready to accept new MPS client requests",
        "the MPS server recovers from a failure", _MPS),
    (808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "the hardware resources required to create MPS client have been exhausted",
        "too many programs use the GPU through MPS", _MPS),
    (809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", "the hardware resources required to support device connections have been exhausted",
        "too many connections to the GPU exist through MPS", _MPS),
    (810, "CUDA_ERROR_MPS_CLIENT_TERMINATED", "the MPS client has been terminated by the server", "the MPS server ended the program", _MPS),
    (811, "CUDA_ERROR_CDP_NOT_SUPPORTED", "is using CUDA Dynamic Parallelism, but the current configuration, like MPS, does not support it",
        "kernels that start kernels do not work under MPS", _MPS),
    (812, "CUDA_ERROR_CDP_VERSION_MISMATCH", "unsupported interaction between different versions of CUDA Dynamic Parallelism",
        "libraries of different CUDA versions are mixed in one kernel", _REBUILD),
    (900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing",
        "something was called that cannot be part of a CUDA graph", _REBUILD),
    (901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture",
        "an error before spoilt a CUDA graph", _REBUILD),
    (902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences",
        "two CUDA graphs would have become one", _REBUILD),
    (903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began",
        "a CUDA graph ended in another stream than it began in", _REBUILD),
    (904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work", "a CUDA graph ended before a part of it", _REBUILD),
    (905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream",
        "a CUDA graph waits for work outside of it", _REBUILD),
    (906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream",
        "the default stream would have waited for a CUDA graph", _REBUILD),
    (907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream",
        "an event of a CUDA graph was used outside of it", _REBUILD),
    (908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread",
        "a CUDA graph ended in another thread than it began in", _REBUILD),
    (909, "CUDA_ERROR_TIMEOUT", "wait operation timed out", "CUDA waited for another process or GPU in vain", _INSPECT),
    (910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
        "the graph update was not performed because it included changes which violated constraints",
        "a CUDA graph was changed more than it may be", _REBUILD),
    (911, "CUDA_ERROR_EXTERNAL_DEVICE", "an async error has occured in external entity outside of CUDA",
        "a device beside the GPU reported an error", _INSPECT),
    (912, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "a kernel launch error has occurred due to cluster misconfiguration",
        "a kernel asked for a cluster of blocks that the GPU cannot form", _REBUILD),
    (913, "CUDA_ERROR_FUNCTION_NOT_LOADED", "the function handle is not loaded when calling an API that requires a loaded function",
        "a kernel was used before it was loaded", _REBUILD),
    (914, "CUDA_ERROR_INVALID_RESOURCE_TYPE", "one or more resources passed in are not valid resource types for the operation",
        "a part of the GPU was asked for that cannot be shared out", _REBUILD),
    (915, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION", "one or more resources are insufficient or non-applicable for the operation",
        "the parts of the GPU that were asked for do not fit it", _REBUILD),
    (916, "CUDA_ERROR_KEY_ROTATION", "key rotation error", "confidential computing could not change its keys", _INSPECT),
    (999, "CUDA_ERROR_UNKNOWN", "unknown error", "often nvidia_uvm is not loaded, or was broken by a suspend",
        "Run 'modprobe nvidia_uvm'; after a suspend, reboot.", "CUDA unknown error"),
)
# What the run time API adds: torch raises these numbers, the driver does not.
_RUNTIME_API = (
    (9, "cudaErrorInvalidConfiguration", "invalid configuration argument", "a kernel has more threads or memory than the GPU allows",
        _REBUILD),
    (12, "cudaErrorInvalidPitchValue", "invalid pitch argument", "a row of memory is longer than CUDA allows", _REBUILD),
    (13, "cudaErrorInvalidSymbol", "invalid device symbol", "a variable on the GPU is not there under its name", _REBUILD),
    (16, "cudaErrorInvalidHostPointer", "invalid host pointer", "an address of the host's memory is wrong", _REBUILD),
    (17, "cudaErrorInvalidDevicePointer", "invalid device pointer", "an address of the GPU's memory is wrong", _REBUILD),
    (18, "cudaErrorInvalidTexture", "invalid texture reference", "a texture is not one", _REBUILD),
    (19, "cudaErrorInvalidTextureBinding", "texture is not bound to a pointer", "a texture has no memory", _REBUILD),
    (20, "cudaErrorInvalidChannelDescriptor", "invalid channel descriptor", "the format of a texture is wrong", _REBUILD),
    (21, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy", "a copy has no direction", _REBUILD),
    (22, "cudaErrorAddressOfConstant", "invalid address of constant",
        "a program for CUDA 3.0 or older takes the address of a constant", _REBUILD),
    (23, "cudaErrorTextureFetchFailed", "fetch from texture failed", "a program for CUDA 3.0 or older reads a texture in vain", _REBUILD),
    (24, "cudaErrorTextureNotBound", "cannot fetch from a texture that is not bound",
        "a program for CUDA 3.0 or older reads a texture without memory", _REBUILD),
    (25, "cudaErrorSynchronizationError", "incorrect use of __syncthreads()",
        "a program for CUDA 3.0 or older lets its threads wait wrongly", _REBUILD),
    (26, "cudaErrorInvalidFilterSetting", "linear filtering not supported for non-float type", "a texture's filter does not fit it",
        _REBUILD),
    (27, "cudaErrorInvalidNormSetting", "read as normalized float not supported for data type", "a texture's type does not fit it",
        _REBUILD),
    (28, "cudaErrorMixedDeviceExecution", "mixed host and device execution not supported",
        "a program for CUDA 3.0 or older runs partly on an emulated GPU", _REBUILD),
    (31, "cudaErrorNotYetImplemented", "feature not yet implemented", "a program for CUDA 4.0 or older", _REBUILD),
    (32, "cudaErrorMemoryValueTooLarge", "memory size or pointer value too large to fit in 32 bit",
        "a program for CUDA 3.0 or older holds an address that is too large for it",
        _REBUILD),
    (35, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version",
        "the driver is older than this CUDA version allows", _UPGRADE, "driver version is insufficient",
        "driver on your system is too old"),
    (37, "cudaErrorInvalidSurface", "invalid surface reference", "a surface is not one", _REBUILD),
    (43, "cudaErrorDuplicateVariableName", "duplicate global variable looked up by string name", "two variables share a name", _REBUILD),
    (44, "cudaErrorDuplicateTextureName", "duplicate texture looked up by string name", "two textures share a name", _REBUILD),
    (45, "cudaErrorDuplicateSurfaceName", "duplicate surface looked up by string name", "two surfaces share a name", _REBUILD),
    (49, "cudaErrorIncompatibleDriverContext", "incompatible driver context", "another library made a context that torch cannot use",
        _REBUILD),
    (52, "cudaErrorMissingConfiguration", "__global__ function call is not configured", "a kernel was started without its size", _REBUILD),
    (53, "cudaErrorPriorLaunchFailure", "unspecified launch failure in prior launch", "a kernel before this one failed", _INSPECT),
    (65, "cudaErrorLaunchMaxDepthExceeded", "launch would exceed maximum depth of nested launches",
        "kernels start each other too deep", _REBUILD),
    (66, "cudaErrorLaunchFileScopedTex", "launch failed because kernel uses unsupported, file-scoped textures",
        "a kernel is made for older CUDA textures", _REBUILD),
    (67, "cudaErrorLaunchFileScopedSurf", "launch failed because kernel uses unsupported, file-scoped surfaces",
        "a kernel is made for older CUDA surfaces", _REBUILD),
    (68, "cudaErrorSyncDepthExceeded", "cudaDeviceSynchronize failed because caller's grid depth exceeds",
        "kernels wait for each other too deep", _REBUILD),
    (69, "cudaErrorLaunchPendingCountExceeded", "launch failed because launch would exceed cudaLimitDevRuntimePendingLaunchCount",
        "too many kernels wait to be started by a kernel", _REBUILD),
    (98, "cudaErrorInvalidDeviceFunction", "invalid device function", "a kernel is not in the file for this GPU: the build does not fit it",
        "Install a torch whose arch flags cover the GPU (role torch_env with torch_env_cuda: auto chooses one)."),
    (103, "cudaErrorSoftwareValidityNotEstablished", "integrity checks failed", "the driver found its own software changed", _REINSTALL),
    (127, "cudaErrorStartupFailure", "startup failure in cuda runtime", "the CUDA run time library did not start", _REBUILD),
)
# number, name, NVIDIA's words for it (nvmlErrorString), cause, remedy
_NVML = (
    (1, "NVML_ERROR_UNINITIALIZED", "Uninitialized", "NVML was used before it was started", _COLLECTION),
    (2, "NVML_ERROR_INVALID_ARGUMENT", "Invalid Argument", "NVML was given a value that it does not take", _COLLECTION),
    (3, "NVML_ERROR_NOT_SUPPORTED", "Not Supported", "this card or its firmware has no such thing", _NOTHING),
    (4, "NVML_ERROR_NO_PERMISSION", "Insufficient Permissions", "the account may not ask this, or may not open /dev/nvidia*",
        "Run as root (become), or let the account into the group of /dev/nvidia* (usermod -aG)."),
    (5, "NVML_ERROR_ALREADY_INITIALIZED", "Already Initialized", "NVML was started twice", _COLLECTION),
    (6, "NVML_ERROR_NOT_FOUND", "Not Found", "the driver knows nothing under that name", _NOTHING),
    (7, "NVML_ERROR_INSUFFICIENT_SIZE", "Insufficient Size", "the driver had more to say than there was room for", _COLLECTION),
    (8, "NVML_ERROR_INSUFFICIENT_POWER", "Insufficient External Power", "the card's own power connector has too little power",
        "Switch the machine off and check the card's power cables and the power supply."),
    (9, "NVML_ERROR_DRIVER_NOT_LOADED", "Driver Not Loaded", "NVML found no NVIDIA kernel module",
        "Install and load the driver (role nvidia_driver); 'journalctl -k -g NVRM' says why a module was refused."),
    (10, "NVML_ERROR_TIMEOUT", "Timeout", "the driver did not answer in time", _INSPECT),
    (11, "NVML_ERROR_IRQ_ISSUE", "Interrupt Request Issue", "interrupts of the GPU do not reach the kernel",
        "Reboot; then update the machine's firmware, and boot without 'pci=nomsi' or 'irqpoll'."),
    (12, "NVML_ERROR_LIBRARY_NOT_FOUND", "NVML Shared Library Not Found", "libnvidia-ml.so.1 is not installed",
        "Install the driver's user space (role nvidia_driver)."),
    (13, "NVML_ERROR_FUNCTION_NOT_FOUND", "Function Not Found", "this driver is older than the question", _NOTHING),
    (14, "NVML_ERROR_CORRUPTED_INFOROM", "Corrupted infoROM", "the card's small permanent memory is damaged",
        "The card still computes, but has lost its error counters: have it inspected or replaced."),
    (15, "NVML_ERROR_GPU_IS_LOST", "GPU is lost", "the GPU fell off the bus",
        "Switch the machine off and on (a reboot may not bring it back); then check its power cables, cooling and slot."),
    (16, "NVML_ERROR_RESET_REQUIRED", "GPU requires reset", "the GPU works again only after a reset",
        "End what uses it, then nvidia-smi --gpu-reset -i ADDRESS; or reboot."),
    (17, "NVML_ERROR_OPERATING_SYSTEM", "The operating system has blocked the request.", "the operating system or a container forbids it",
        "Ask on the host itself; in a container, give it the GPUs with nvidia-container-toolkit."),
    (18, "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "Driver/library version mismatch",
        "the loaded kernel module and libnvidia-ml have different versions", "Reboot, so that the installed version is loaded."),
    (19, "NVML_ERROR_IN_USE", "In use by another client", "the GPU is in use", _MEMORY),
    (20, "NVML_ERROR_MEMORY", "Insufficient Memory", "the host's memory is full", "Free memory of the host (free -m), then ask again."),
    (21, "NVML_ERROR_NO_DATA", "No data", "the driver has measured nothing yet", _NOTHING),
    (22, "NVML_ERROR_VGPU_ECC_NOT_SUPPORTED", "vGPU ECC not supported", "virtual GPUs cannot be used while ECC is on",
        "Switch ECC off on the hypervisor (nvidia-smi --ecc-config=0), then reboot it."),
    (23, "NVML_ERROR_INSUFFICIENT_RESOURCES", "Insufficient resources", "the GPU has run out of something other than memory", _MEMORY),
    (24, "NVML_ERROR_FREQ_NOT_SUPPORTED", "Frequency not supported", "the card has no such clock frequency",
        "Choose one that 'nvidia-smi -q -d SUPPORTED_CLOCKS' lists."),
    (25, "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", "Argument version mismatch", "a structure is newer than this driver", _NOTHING),
    (26, "NVML_ERROR_DEPRECATED", "Deprecated", "this driver has given the question up", _NOTHING),
    (27, "NVML_ERROR_NOT_READY", "Not ready", "the GPU or its fabric is still starting",
        "Wait until nvidia-persistenced and, on NVSwitch systems, nvidia-fabricmanager have started (systemctl status)."),
    (28, "NVML_ERROR_GPU_NOT_FOUND", "GPU not found", "the driver serves no GPU",
        "Look at 'journalctl -k -g NVRM': it names a GPU that the driver does not support, or that did not start."),
    (29, "NVML_ERROR_INVALID_STATE", "Invalid state", "the GPU is in a state in which this cannot be done", _MEMORY),
    (30, "NVML_ERROR_RESET_TYPE_NOT_SUPPORTED", "Reset type not supported", "the card has no such reset", "Reboot the machine instead."),
    (999, "NVML_ERROR_UNKNOWN", "Unknown Error", "the driver failed inside; in a container, the GPUs were often taken away from it",
        "In a container, restart it; on a host, look at 'journalctl -k -g NVRM', then reboot."),
)
# code, title, cause, remedy, words by which it is recognised
_WORDS = (
    # the environment
    ("not_installed", "not installed", "the package is not in the environment", "Rebuild the environment (role torch_env)."),
    ("wrong_version", "another version", "another version is installed than was asked for",
        "Rebuild the environment from the index of the wanted build (role torch_env)."),
    ("wrong_index", "build for another CUDA", "the version is right, but the wheel came from the index of another CUDA tag",
        "Rebuild the environment (role torch_env), which takes the wanted tag from its own index; with pip, name it with --index-url."),
    ("cpu_build", "CPU-only build", "this wheel was built without CUDA",
        "Install from PyTorch's index for the wanted CUDA tag (role torch_env)."),
    ("rocm_build", "ROCm build", "this wheel was built for AMD GPUs",
        "Install from PyTorch's index for the wanted CUDA tag (role torch_env)."),
    ("companion_build", "companion of another build", "a companion was built for another CUDA tag than torch",
        "Install torch and its companions from one index, in versions that belong together (role torch_env)."),
    ("import_failed", "import failed", "a library that torch needs could not be loaded",
        "Rebuild the environment (role torch_env); the evidence names the library that could not be loaded."),
    ("damaged_library", "damaged library", "a library of the environment is cut short or overwritten",
        "Rebuild the environment (role torch_env): never repair one in place. Then check the disk (journalctl -k -g 'I/O error')."),
    ("shadowed_library", "library of another place", "a library from outside of the environment took the place of the environment's own",
        "Remove the folder from the system's library path (/etc/ld.so.conf.d, then ldconfig) and from LD_LIBRARY_PATH.",
        "cuDNN version incompatibility", "CUDNN_STATUS_SUBLIBRARY", "Could not load library libcudnn", "Unable to load any of {libcudnn"),
    ("outside", "package of another place", "torch comes from outside of the environment",
        "Remove what leads Python out of the environment: a .pth file, or a package installed system-wide."),
    ("arch_missing", "no code for this GPU", "torch was not compiled for the architecture of a GPU of this host",
        "Install a torch whose arch flags cover the GPU (role torch_env with torch_env_cuda: auto chooses one)."),
    ("arch_unknown", "architecture not known", "nobody said what the GPUs of this host need",
        "Name it with the option sm, for example sm_120."),
    ("triton_missing", "triton is missing", "torch.compile makes its kernels with triton, which is not in the environment",
        "Rebuild the environment (role torch_env): torch's wheel for Linux brings triton along."),
    ("compiler_missing", "no C compiler", "torch.compile compiles with the host's C compiler, and there is none",
        "Install gcc (package gcc or build-essential); only programs that call torch.compile need it."),
    ("headers_missing", "no headers of Python", "torch.compile compiles against Python's own headers, which are not installed",
        "Install them for the environment's Python (package python3-dev, python3.12-dev or python3-devel)."),
    ("noexec", "mounted noexec", "torch.compile loads what it compiled from a folder in which nothing may be executed",
        "Mount the file system without noexec, or let TORCHINDUCTOR_CACHE_DIR and TMPDIR lead elsewhere."),
    ("wrong_result", "wrong numbers", "a kernel ran, and what it computed is wrong",
        "Prove again; if it repeats, do not compute on this GPU: reboot, then have the card inspected."),
    ("failed", "another error", "a program failed with an error that is none of CUDA",
        "Read the program's own message in the evidence; where it names a file of the environment, rebuild that (role torch_env)."),
    # the driver
    ("no_gpu", "no GPU", "there is no NVIDIA GPU on this host", "None on a host without a GPU; prove at level static there."),
    ("no_driver", "driver not loaded", "the NVIDIA kernel module is not loaded", "Install and load the driver (role nvidia_driver).",
        "Found no NVIDIA driver"),
    ("no_device_nodes", "no device nodes", "the container was started without the GPUs",
        "Give the container the GPUs (nvidia-container-toolkit), or run nvidia-modprobe -u -c 0 on a host."),
    ("library_missing", "libcuda is missing", "the driver's user space is not installed",
        "Install the driver's user space (role nvidia_driver): libcuda.so.1 comes with it."),
    ("damaged_driver", "damaged library of the driver", "libcuda is cut short or overwritten", _REINSTALL),
    ("shadowed_driver", "libcuda of another place", "a libcuda that is not the installed driver's comes first in the library path",
        "Remove that folder from the system's library path (/etc/ld.so.conf.d), or the package that it belongs to; then run ldconfig."),
    ("driver_not_loaded_yet", "installed driver not loaded", "a newer driver is installed, and the old kernel module still runs",
        "Reboot (nvidia_driver_reboot_allowed: true lets the role do it)."),
    ("uvm_not_loaded", "nvidia_uvm is not loaded", "CUDA needs the module nvidia_uvm beside nvidia",
        "Run 'modprobe nvidia_uvm'. If that fails, the driver's modules are incomplete: reinstall it (role nvidia_driver)."),
    ("device_missing", "device node missing", "a node that CUDA opens is not there, or leads nowhere",
        "On a host run 'nvidia-modprobe -u -c 0'; start a container anew, with the GPUs (nvidia-container-toolkit)."),
    ("device_permission", "device node closed to the account", "the account may not open a node that CUDA opens",
        "Add the account to the node's group (usermod -aG), or remove NVreg_DeviceFileMode from /etc/modprobe.d and reboot."),
    ("device_forbidden", "device node forbidden by the container", "the container's device rules no longer allow the GPUs",
        "Start the container anew. A 'systemctl daemon-reload' on the host takes them away again unless they are given with --device."),
    ("gpu_not_started", "GPU did not start", "the kernel module could not bring the GPU up",
        "Look at 'journalctl -k -g NVRM' (RmInitAdapter): switch the machine off and on, then check power cables and slot."),
    ("gpu_not_served", "GPU not served by the driver", "the kernel module is loaded and has not taken the GPU",
        "Free it from the driver named; else look at 'journalctl -k -g NVRM': old GPUs need an older branch, new ones the open flavor."),
    ("suspended", "broken by a suspend", "the host slept since it booted, and nvidia_uvm often does not survive that",
        "Run 'modprobe -r nvidia_uvm && modprobe nvidia_uvm' with nothing on the GPU, or reboot. Enable nvidia-suspend and nvidia-resume."),
    ("devices_hidden", "GPUs hidden by a variable", "a variable hides GPUs from every program that starts with it",
        "Remove the variable where the evidence says; jobs choose GPUs for themselves."),
    ("mig_empty", "MIG without instances", "MIG is on and no instance was made, so there is nothing to compute on",
        "Make instances (nvidia-smi mig -cgi PROFILE -C), or switch MIG off: nvidia-smi -i ADDRESS -mig 0."),
    ("mig_one_instance", "MIG shows one instance", "while MIG is on, CUDA shows a process one instance of one GPU",
        "Switch MIG off where the whole GPU is wanted (nvidia-smi -i ADDRESS -mig 0), or prove one GPU at a time (option gpus)."),
    ("compute_mode", "compute mode", "the GPU's compute mode keeps programs away",
        "Set the default mode (nvidia-smi -i ADDRESS --compute-mode=DEFAULT) and remove what sets another one when the host starts."),
    ("fabric_manager_stopped", "fabric manager does not run", "NVSwitch systems compute only while nv-fabricmanager runs",
        "Install nvidia-fabricmanager in exactly the driver's version and start it: systemctl enable --now nvidia-fabricmanager."),
    ("gpu_lost", "GPU fell off the bus", "the GPU does not answer on PCI Express any more",
        "Switch the machine off and on (a reboot may not bring it back); then check its power cables, cooling, riser and slot."),
    ("gpu_missing", "GPU not shown", "CUDA does not show a GPU that ought to be there",
        "Look for Xid lines in the kernel log (journalctl -k -g Xid); a GPU that fell off the bus needs a cold restart."),
    ("torch_misses_gpu", "torch does not see the GPU", "torch and the driver disagree about the GPUs",
        "Compare 'nvidia-smi -L' with torch.cuda.device_count(); reboot if the driver was changed meanwhile."),
    ("slow_link", "slow PCI Express link", "data moves much more slowly than the link that was negotiated allows",
        "Look for a job that fills the link; else reseat the card, take out risers, and check the slot's lanes in the firmware's setup."),
    ("link_unknown", "PCI Express link not known", "NVML does not tell what the link is, so there is nothing to compare with",
        "See whether nvidia-smi -q shows the link; in a part of a GPU and in WSL it does not."),
    ("not_watched", "errors not watched", "NVML did not tell whether the GPU reported errors while it computed",
        "See whether nvidia-smi works for the account; a part of a GPU and WSL tell no errors, so that level quick is the highest there."),
    ("xid", "Xid during the proof", "the driver reported an error of the GPU while it was proven",
        "Do what the Xid asks for: docs/failures.md lists the numbers. If it repeats, have the card inspected."),
    ("ecc_uncorrected", "uncorrectable memory errors", "the GPU's memory had errors during the proof that ECC could not correct",
        "Reboot to let the GPU replace the bad memory; if more follow, replace the card."),
    ("busy", "GPU in use", "other processes compute on the GPU", "Prove again when the job has ended, or set when_busy to run."),
    ("users_unknown", "users of the GPU not known", "who computes on the GPU cannot be told here, and this level would disturb them",
        "Prove as root, or, where nobody computes, set when_busy to run."),
    # the process of the proof
    ("no_start", "interpreter does not start", "the environment's Python cannot be executed by the account",
        "Check that the interpreter exists and that the account may execute it and enter every directory above it."),
    ("no_account", "no account", "there is no account that may run the environment's Python",
        "Create the account, name another one, or become root."),
    ("crashed", "process crashed", "the process was ended by a signal",
        "Look at the kernel log (journalctl -k) and rebuild the environment; with SIGILL the CPU lacks an instruction."),
    ("timed_out", "time limit", "the process was still running at its limit and was killed",
        "Look at the kernel log (journalctl -k -g 'NVRM|Xid'); raise the time limit only for slow disks."),
    ("hung", "GPU hangs", "a step on a GPU did not end within its limit: the GPU, the driver or the program on it hangs",
        "Look at the kernel log (journalctl -k -g 'NVRM|Xid') and reboot; a GPU that hangs again needs a look at its hardware."),
    ("unkillable", "process cannot be killed", "the process hangs inside the kernel module (state D)",
        "The process hangs inside the driver: only a reboot ends it."),
    ("ended_early", "process ended early", "the process ended before its work was done",
        "Read what it printed last in the evidence; look for what ends Python at its start (.pth files, sitecustomize)."),
    ("garbage", "records disturbed", "something wrote where only the proof writes",
        "Something in the environment writes to descriptors that are not its own: look at its .pth files and sitecustomize."),
    ("stopped", "not reached", "something before it failed", "Mend what the failed check names first."),
)
# fmt: on

_HEADERS = "cuda.h and driver_types.h of CUDA 13.0"
_NVML_HEADER = "nvml.h (nvidia-ml-py 13.615)"
_PROOF = "this collection"
# Where more than the header's comment is behind the cause.
_SOURCES = {
    "cuda_46": "cuda.h; CUDA C Programming Guide, compute modes",
    "cuda_802": "cuda.h; NVIDIA Fabric Manager user guide",
    "cuda_803": "cuda.h; CUDA Compatibility guide",
    "cuda_804": "cuda.h; CUDA Compatibility guide",
    "device_forbidden": "NVIDIA Container Toolkit, troubleshooting",
    "device_missing": "nvidia-modprobe(1); driver README, device nodes",
    "device_permission": "driver README, NVreg_DeviceFileMode",
    "gpu_lost": "docs.nvidia.com/deploy/xid-errors (Xid 79); nvml.h",
    "gpu_not_served": "driver README, supported products",
    "mig_empty": "NVIDIA Multi-Instance GPU user guide",
    "mig_one_instance": "NVIDIA Multi-Instance GPU user guide",
    "suspended": "driver README, power management",
    "uvm_not_loaded": "driver README, kernel modules",
}
_READ = 4096  # characters of a message: the cause is at its beginning
_PREFIXED = re.compile(r"(?:cuda(?: driver)? error(?: \d+)?|\[cuda\]|cudagetdevicecount\(\)\. error \d+): ([^\n]+)")
_NUMBERED = re.compile(r"(?:CUDA_ERROR_[A-Z0-9_]+ \((\d{1,6})\)|cudaGetDeviceCount\(\)\. Error (\d{1,6}):)")
# What the loader says of a file that is not whole (glibc, elf/dl-load.c).
_DAMAGED = re.compile(
    r"\.so[^\s:]{0,80}: (?:file too short|invalid ELF header|cannot read file data|ELF load command|"
    r"object file has no|only ET_DYN|ELF file.s phentsize|cannot make segment)"
)


def _table() -> dict[str, Failure]:
    rows = []
    for number, name, words, cause, remedy, *texts in (*_DRIVER_API, *_RUNTIME_API):
        rows.append(Failure(f"cuda_{number}", f"{name}: {words}", cause, remedy, _HEADERS, tuple(texts)))
    for number, name, words, cause, remedy in _NVML:
        rows.append(Failure(f"nvml_{number}", f"{name}: {words}", cause, remedy, _NVML_HEADER))
    for code, title, cause, remedy, *texts in _WORDS:
        rows.append(Failure(code, title, cause, remedy, _PROOF, tuple(texts)))
    return {row.code: row._replace(source=_SOURCES.get(row.code, row.source)) for row in rows}


TABLE = _table()
"""Every failure, by its code: CUDA's, NVML's, then the words."""
_BY_WORDS: dict[str, Failure] = {}
for _row in TABLE.values():
    if _row.code.startswith("cuda_"):
        _BY_WORDS.setdefault(_row.title.partition(": ")[2].lower(), _row)
# What the tests' markers say (tests/unit/test_failures_table.py compares): all others are brought about by a simulated driver.
_ON_GPU = """
arch_missing busy crashed cuda_1 cuda_101 cuda_2 cuda_200 cuda_209 cuda_218 cuda_222 cuda_500 cuda_700 cuda_716 device_permission
devices_hidden gpu_missing hung timed_out wrong_result wrong_version
"""
_BY_UNIT = """
arch_unknown companion_build compiler_missing cpu_build damaged_library device_forbidden ecc_uncorrected ended_early
failed garbage gpu_not_started headers_missing import_failed link_unknown no_account no_device_nodes no_driver no_gpu
no_start noexec not_installed not_watched outside rocm_build shadowed_library slow_link stopped torch_misses_gpu
triton_missing users_unknown wrong_index xid
"""
ON_GPU = frozenset(_ON_GPU.split())
BY_UNIT = frozenset(_BY_UNIT.split()) | {f"cuda_{row[0]}" for row in _RUNTIME_API}


def cuda_failure(number: int | None, text: str) -> Failure | None:
    """Find the error of CUDA by the number that the exception carried, else by its words."""
    match = _NUMBERED.search(text)
    if number is None and match:
        number = int(match.group(1) or match.group(2))
    if number is not None:
        return TABLE.get(f"cuda_{number}")
    lowered = text.lower()
    said = _PREFIXED.search(lowered)
    if said:
        fitting = [words for words in _BY_WORDS if said.group(1).startswith(words)]
        if fitting:
            return _BY_WORDS[max(fitting, key=len)]
    return _recognised("cuda_", lowered)


def _recognised(prefix: str, lowered: str) -> Failure | None:
    """The failure one of whose own texts occurs."""
    rows = (row for row in TABLE.values() if row.texts and row.code.startswith(prefix))
    return next((row for row in rows if any(words.lower() in lowered for words in row.texts)), None)


def code_of(check: str, number: int | None, kind: str | None, text: str) -> str:
    """The code of a failure that arrived as an exception."""
    text = text[:_READ]
    failure = cuda_failure(number, text)
    if failure is not None:
        return failure.code
    if number is not None:
        return f"cuda_{number}"
    failure = _recognised("", text.lower())
    if failure is not None:
        return failure.code
    if kind in ("ImportError", "ModuleNotFoundError", "OSError"):
        damaged = _DAMAGED.search(text)
        if check.startswith("driver."):
            return "damaged_driver" if damaged else "library_missing"
        if damaged:
            return "damaged_library"
        if check.startswith(("torch.import", "companion.")):
            return "import_failed"
    return "failed"


def remedy(code: str) -> str:
    """What to do about a failure or a check that did not run. A code with a number says little, so its cause comes first."""
    row = TABLE.get(code)
    library, _line, number = code.partition("_")
    if row is None and number.isdecimal():
        return f"Look up the error {number} in the documentation of {'cudaError_t' if library == 'cuda' else 'nvmlReturn_t'}."
    if row is None:
        raise KeyError(code)
    return f"{row.cause[0].upper()}{row.cause[1:]}. {row.remedy}" if number.isdecimal() else row.remedy
