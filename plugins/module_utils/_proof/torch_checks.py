# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to gpufleet.workstation: the checks that run inside an environment's own Python.

The runner sends this file's source to ``python -I -B -`` as an unprivileged user. Arguments: the request as JSON, the
descriptor for records, the descriptor on which the runner says which GPUs to use. Standard library and that
environment's torch only, Python 3.9. Records are JSON, one a line, on their own descriptor: whatever libraries print
cannot damage them, and what was finished before a crash or a hang is known.

Static checks need no GPU. GPU checks compare torch's kernels with float64 references computed on the CPU; the CPU
compares as well, because a broken GPU must not judge itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Iterator

SEED = 20251112
# Odd proportions: a transposed or truncated product cannot pass by accident.
ROWS, INNER, COLUMNS = 384, 1024, 640
SINGLE = 2.0**-24  # unit roundoff of float32
# Accumulating K products in float32 in any order errs like a random walk, about sqrt(K) roundings of partial sums no
# larger than a few standard deviations. 16 leaves room for tensor cores, which truncate instead of rounding. TF32
# arithmetic (2**-11) in a float32 product exceeds this bound some hundredfold.
ACCUMULATION = 16 * math.sqrt(INNER) * SINGLE


class WrongResult(Exception):
    """A kernel ran and its numbers are wrong."""

    def __init__(self, text: str, values: dict[str, Any]) -> None:
        super().__init__(text)
        self.values = values


class Failed(Exception):
    """A check that found what it looked for, with a code the runner has a remedy for."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Records:
    """Writes records, one JSON document a line; safe to share between threads."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, **record: Any) -> None:
        data = (json.dumps(record, default=str) + "\n").encode()
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def check(self, name: str, function: Callable[[], tuple[str, dict[str, Any]]], gpu: str | None = None) -> str:
        """Run one check, record how it ended and return that: passed, wrong_result or failed."""
        self.write(event="begin", id=name, gpu=gpu)
        started = time.perf_counter()
        record: dict[str, Any] = {"status": "failed"}
        try:
            text, values = function()
            record = {"status": "passed", "evidence": text, "values": values}
        except WrongResult as error:
            record.update(code="wrong_result", evidence=str(error), values=error.values)
        except Failed as error:
            record.update(code=error.code, evidence=str(error))
        except Exception as error:  # whatever a library raises is this check's finding
            record.update(
                evidence=f"{type(error).__name__}: {str(error)[:1500]}",
                error={"type": type(error).__name__, "number": getattr(error, "error_code", None)},
            )
        milliseconds = (time.perf_counter() - started) * 1000
        self.write(event="check", id=name, gpu=gpu, ms=round(milliseconds, 1), **record)
        return "wrong_result" if record.get("code") == "wrong_result" else record["status"]


# ---- static ---------------------------------------------------------------------------------------------------------


def import_torch(facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Import torch and collect what the runner judges: versions, CUDA, compiled architectures, where it came from."""
    import importlib.metadata

    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise Failed("not_installed", f"torch is not installed in {sys.prefix}") from error
        raise
    try:
        distribution: str | None = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    flags = getattr(torch._C, "_cuda_getArchFlags", None)
    facts.update(
        version=str(torch.__version__),
        distribution_version=distribution,
        cuda=torch.version.cuda,
        hip=getattr(torch.version, "hip", None),
        arch_flags=((flags() or "") if flags else "").split(),
        file=os.path.realpath(torch.__file__),
        prefix=os.path.realpath(sys.prefix),
    )
    return f"torch {torch.__version__} imported", {}


def multiply_on_cpu() -> tuple[str, dict[str, Any]]:
    """A product of small integers is exact in float32: a CPU that lacks an instruction dies here, by name."""
    import torch

    left = torch.arange(64 * 48, dtype=torch.float32).reshape(64, 48) % 13
    right = torch.arange(48 * 32, dtype=torch.float32).reshape(48, 32) % 11
    result = (left @ right).tolist()
    rows, columns = left.tolist(), list(zip(*right.tolist()))
    if result != [[float(sum(x * y for x, y in zip(row, column))) for column in columns] for row in rows]:
        raise WrongResult("a product of small integers on the CPU is wrong", {})
    return "a product of small integers on the CPU is exact", {}


def import_companion(name: str, facts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Import a companion package and, for torchvision, run a kernel of its own extension library."""
    import importlib
    import importlib.metadata

    module_name = name.replace("-", "_")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise Failed("not_installed", f"{name} is not installed in {sys.prefix}") from error
        raise
    version = str(getattr(module, "__version__", None) or importlib.metadata.version(name))
    facts[name] = version
    if name == "torchvision":
        import torch

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
        kept = module.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        if kept != [0, 2]:
            raise WrongResult(f"torchvision's nms on the CPU kept {kept}, expected [0, 2]", {})
    return f"{name} {version} imported", {}


# ---- numbers --------------------------------------------------------------------------------------------------------


def compare(what: str, result: Any, reference: Any, allowed: Any) -> tuple[str, dict[str, Any]]:
    """Compare on the CPU in float64. NaN compares false, so it counts as wrong."""
    import torch

    actual = result.detach().cpu().double()
    error = (actual - reference).abs()
    allowed = torch.as_tensor(allowed, dtype=torch.float64).expand_as(error)
    wrong = ~(error <= allowed)
    count = int(wrong.sum())
    if not count:
        worst = float((error / allowed.clamp_min(1e-300)).max())
        return f"{what}: {error.numel()} values, largest error {worst:.2g} of what is allowed", {
            "values": error.numel(),
            "largest_error_of_allowed": round(worst, 6),
        }
    place = int(wrong.flatten().to(torch.uint8).argmax())
    numbers = {
        "wrong": count,
        "values": error.numel(),
        "at": place,
        "actual": float(actual.flatten()[place]),
        "expected": float(reference.flatten()[place]),
        "allowed_error": float(allowed.flatten()[place]),
    }
    example = (
        f"value {place} is {numbers['actual']:.9g}, expected {numbers['expected']:.9g} "
        f"with an error of at most {numbers['allowed_error']:.2g}"
    )
    text = f"{what}: {count} of {error.numel()} values are wrong, for example {example}"
    # JSON knows no NaN and no infinity.
    raise WrongResult(text, {key: value if math.isfinite(value) else str(value) for key, value in numbers.items()})


def make_references() -> dict[str, Any]:
    """Inputs and float64 references of the matrix products, computed once for all GPUs."""
    import torch

    generator = torch.Generator().manual_seed(SEED)

    def pair(make: Callable[[int, int], Any]) -> dict[str, Any]:
        left, right = make(ROWS, INNER), make(INNER, COLUMNS)
        wide_left, wide_right = left.double(), right.double()
        # The standard deviation of a value of the product: what an accumulation error is measured against.
        scale = wide_left.norm(dim=1)[:, None] * wide_right.norm(dim=0)[None, :] / math.sqrt(INNER)
        return {"left": left, "right": right, "product": wide_left @ wide_right, "scale": scale}

    return {
        # All bits of the significand matter, so that TF32 in place of float32 is found.
        "full": pair(lambda rows, columns: torch.randn(rows, columns, generator=generator)),
        # Multiples of 1/128 up to 1 are exact in bfloat16, float16 and TF32: one reference serves them all, and what
        # differs is the arithmetic alone.
        "short": pair(lambda rows, columns: torch.randint(-128, 129, (rows, columns), generator=generator) / 128.0),
    }


def check_copy(device: str, references: Future) -> tuple[str, dict[str, Any]]:
    """Bytes to the GPU and back are the same bytes."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    data = torch.randint(-(2**31), 2**31 - 1, (1 << 20,), dtype=torch.int32, generator=generator)
    wrong = int((data.to(device).cpu() != data).sum())
    if wrong:
        raise WrongResult(f"{wrong} of {data.numel()} words changed on the way to the GPU and back", {"wrong": wrong})
    return "4 MiB to the GPU and back are unchanged", {"bytes": data.numel() * 4}


def check_elementwise(device: str, references: Future) -> tuple[str, dict[str, Any]]:
    """torch's own kernels. Every term is at most 1, so a dozen roundings stay below 2**-20."""
    import torch

    values = torch.randn(1 << 17, generator=torch.Generator().manual_seed(SEED))

    def function(x: Any) -> Any:
        return torch.sin(x) * torch.exp(-x * x) + 0.5 * torch.tanh(x)

    return compare("elementwise float32", function(values.to(device)), function(values.double()), 2.0**-20)


def check_reduction(device: str, references: Future) -> tuple[str, dict[str, Any]]:
    """Sums per row, whose order is the GPU's own, and an exact maximum."""
    import torch

    values = torch.randn(ROWS, INNER, generator=torch.Generator().manual_seed(SEED))
    on_gpu, wide = values.to(device), values.double()
    compare("maximum", on_gpu.amax(dim=1), wide.amax(dim=1), 0.0)
    return compare("sum float32", on_gpu.sum(dim=1), wide.sum(dim=1), ACCUMULATION * wide.norm(dim=1))


def matmul_check(
    label: str, dtype_name: str, inputs: str, output_roundoff: float
) -> Callable[[str, Future], tuple[str, dict[str, Any]]]:
    """A matrix product whose values may differ from the reference by rounding the output and accumulating in float32."""

    def check(device: str, references: Future) -> tuple[str, dict[str, Any]]:
        import torch

        data = references.result()[inputs]
        dtype = getattr(torch, dtype_name)
        # NaN beforehand: a value that no kernel wrote is found.
        out = torch.full((ROWS, COLUMNS), math.nan, dtype=dtype, device=device)
        torch.matmul(data["left"].to(device, dtype), data["right"].to(device, dtype), out=out)
        allowed = output_roundoff * data["product"].abs() + ACCUMULATION * data["scale"]
        return compare(f"matrix product {label}", out, data["product"], allowed)

    return check


def check_convolution(device: str, references: Future) -> tuple[str, dict[str, Any]]:
    """cuDNN forward and backward. Its Winograd algorithms lose some bits, hence the wider bound."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    image = torch.randn(4, 8, 32, 32, generator=generator)
    weight = torch.randn(16, 8, 3, 3, generator=generator)
    upstream = torch.randn(4, 16, 32, 32, generator=generator)

    def run(*tensors: Any) -> list[Any]:
        x, w, g = tensors
        x, w = x.requires_grad_(), w.requires_grad_()
        y = torch.nn.functional.conv2d(x, w, padding=1)
        return [y, *torch.autograd.grad(y, (x, w), g)]

    expected = run(image.double(), weight.double(), upstream.double())
    actual = run(image.to(device), weight.to(device), upstream.to(device))
    evidence: tuple[str, dict[str, Any]] = ("", {})
    for name, terms, result, reference in zip(
        ("output", "input gradient", "weight gradient"), (72, 144, 4096), actual, expected
    ):
        reference = reference.detach()
        allowed = 64 * math.sqrt(terms) * SINGLE * float(reference.std())
        evidence = compare("convolution " + name, result, reference, allowed)
    return evidence[0].replace("weight gradient", "forward and backward"), evidence[1]


HALF, BFLOAT = 2.0**-11, 2.0**-8
GPU_CHECKS: dict[str, Callable[[str, Future], tuple[str, dict[str, Any]]]] = {
    "gpu.copy": check_copy,
    "gpu.elementwise": check_elementwise,
    "gpu.reduction": check_reduction,
    "gpu.matmul_fp32": matmul_check("FP32", "float32", "full", SINGLE),
    "gpu.matmul_fp16": matmul_check("FP16", "float16", "short", HALF),
    "gpu.matmul_bf16": matmul_check("BF16", "bfloat16", "short", BFLOAT),
    "gpu.matmul_tf32": matmul_check("TF32", "float32", "short", SINGLE),
    "gpu.conv2d": check_convolution,
}
# These need TF32 allowed, a switch of the whole process: they run after the others have finished on every GPU.
TF32_CHECKS = ("gpu.matmul_tf32",)


# ---- GPUs -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def precise_arithmetic() -> Iterator[None]:
    """No TF32 and no reduced-precision accumulation, whatever torch's defaults are; restored afterwards."""
    import torch

    matmul = torch.backends.cuda.matmul
    precision = torch.get_float32_matmul_precision()
    reduced = (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction)
    torch.set_float32_matmul_precision("highest")
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = reduced


@contextlib.contextmanager
def tf32_arithmetic() -> Iterator[None]:
    import torch

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def describe_devices() -> list[dict[str, Any]]:
    """The GPUs as torch sees them; raises torch's own error when CUDA cannot start."""
    import torch

    torch.cuda.init()
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        uuid = getattr(properties, "uuid", None)
        address = None
        if hasattr(properties, "pci_bus_id"):
            address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
        devices.append(
            {
                "index": index,
                "name": properties.name,
                "sm": f"sm_{properties.major}{properties.minor}",
                "uuid": str(uuid) if uuid is not None else None,
                "pci_address": address,
                "memory_mib": properties.total_memory >> 20,
            }
        )
    return devices


def find_device(devices: list[dict[str, Any]], gpu: dict[str, Any]) -> dict[str, Any] | None:
    """The device that is this GPU: by UUID, by PCI address, and for a torch that tells neither, by PCI order."""
    for device in devices:
        if device["uuid"] is not None:
            if (gpu["uuid"] or "").split("-", 1)[-1].lower() == device["uuid"].lower():
                return device
        elif device["pci_address"] is not None:
            if gpu["pci_address"] == device["pci_address"]:
                return device
        elif device["index"] == gpu["index"]:
            return device
    return None


def check_identity(device: dict[str, Any] | None, gpu: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if device is None:
        raise Failed("torch_misses_gpu", f"torch does not see {gpu['name']} at {gpu['pci_address']}")
    for key in ("name", "sm"):
        if device[key] != gpu[key]:
            raise Failed("torch_misses_gpu", f"torch calls it {device[key]}, the driver {gpu[key]}")
    return f"torch device {device['index']} is {gpu['name']}, {gpu['sm']}", {}


def prove_gpu(
    records: Records, gpu: dict[str, Any], device: dict[str, Any], names: list[str], references: Future
) -> bool:
    """Run checks on one GPU, until one cannot run at all: after a CUDA error the context proves nothing more."""
    import torch

    target = f"cuda:{device['index']}"
    with torch.cuda.device(device["index"]):
        for name in names:

            def run(name: str = name) -> tuple[str, dict[str, Any]]:
                result = GPU_CHECKS[name](target, references)
                torch.cuda.synchronize(device["index"])
                return result

            if records.check(name, run, gpu["pci_address"]) == "failed":
                return False
    return True


def prove_gpus(records: Records, gpus: list[dict[str, Any]]) -> None:
    devices: list[dict[str, Any]] = []

    def look() -> tuple[str, dict[str, Any]]:
        devices.extend(describe_devices())
        return f"torch sees {len(devices)} GPUs", {"gpus": devices}

    if records.check("torch.devices", look) != "passed":
        return
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for gpu in gpus:
        device = find_device(devices, gpu)
        identity = records.check("gpu.identity", partial(check_identity, device, gpu), gpu["pci_address"])
        if device is not None and identity == "passed":
            found.append((gpu, device))

    with ThreadPoolExecutor(max_workers=len(found) + 1) as pool:
        references = pool.submit(make_references)

        def run_all(pairs: list[tuple[dict[str, Any], dict[str, Any]]], tf32: bool) -> list[bool]:
            jobs = [
                pool.submit(
                    prove_gpu,
                    records,
                    gpu,
                    device,
                    [name for name in gpu["checks"] if (name in TF32_CHECKS) == tf32],
                    references,
                )
                for gpu, device in pairs
            ]
            return [job.result() for job in jobs]

        with precise_arithmetic():
            good = run_all(found, tf32=False)
        with tf32_arithmetic():
            run_all([pair for pair, ok in zip(found, good) if ok], tf32=True)


def read_line(descriptor: int) -> dict[str, Any]:
    """What the runner decided about the GPUs, once the driver has been tried without torch."""
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor) as stream:
        line = stream.readline()
    return json.loads(line) if line.strip() else {}


def main(arguments: list[str]) -> None:
    request = json.loads(arguments[0])
    records = Records(int(arguments[1]))
    facts: dict[str, Any] = {}
    companions: dict[str, Any] = {}
    records.write(event="python", version=sys.version.split()[0], prefix=os.path.realpath(sys.prefix), uid=os.getuid())
    imported = records.check("torch.import", lambda: import_torch(facts)) == "passed"
    records.write(event="torch", facts=facts)
    if imported:
        records.check("torch.cpu", multiply_on_cpu)
        for name in request["companions"]:
            records.check("companion." + name, partial(import_companion, name, companions))
        records.write(event="companions", facts=companions)
    gpus = read_line(int(arguments[2])).get("gpus") or []
    if imported and gpus:
        prove_gpus(records, gpus)
    records.write(event="end")


if __name__ == "__main__":
    main(sys.argv[1:])
