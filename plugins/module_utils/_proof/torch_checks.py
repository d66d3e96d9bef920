# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to gpufleet.workstation: the checks that run inside an environment's own Python.

The runner sends this file's source to ``python -I -B -`` as an unprivileged user. Arguments: the request as JSON, the
descriptor for records, the descriptor on which the runner says which GPUs to use. Standard library and that
environment's torch only, Python 3.9. Records are JSON, one a line, on their own descriptor: whatever libraries print
cannot damage them, and what was finished before a crash or a hang is known.

Static checks need no GPU. GPU checks compare torch's kernels with float64 references computed on the CPU; the CPU
compares as well, because a broken GPU must not judge itself. Where there is too much data for that, the GPU counts the
values that are right, and the CPU compares the count: a kernel that does nothing counts none.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import sys
import sysconfig
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Iterator, NamedTuple

SEED = 20251112
# Odd proportions: a transposed or truncated product cannot pass by accident.
ROWS, INNER, COLUMNS = 384, 1024, 640
# What torch brings along, with the number that two of them must share to take each other's place.
CUDA_LIBRARY = re.compile(
    r"/(lib(?:cudart|cudnn\w*|cublas\w*|nccl|cufft\w*|curand|cusparse\w*|cusolver\w*|nvrtc[\w-]*|nvJitLink))\.so(\.\d+)?"
)
SINGLE = 2.0**-24  # unit roundoff of float32


def accumulation(terms: int) -> float:
    """What a sum of so many products may err, in standard deviations of the sum.

    Adding in float32 in any order errs like a random walk, about the root of `terms` roundings of partial sums no larger
    than a few standard deviations. 16 leaves room for tensor cores, which truncate instead of rounding. TF32 arithmetic
    (2**-11) in a float32 product exceeds this bound some hundredfold.
    """
    return 16 * math.sqrt(terms) * SINGLE


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


class NotRun(Failed):
    """A check that cannot run here, with a code the runner has a remedy for."""


class Given(NamedTuple):
    """What every check gets besides its device."""

    references: Future
    burn_seconds: float


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
        """Run one check, record how it ended and return that: passed, not_run, wrong_result or failed."""
        self.write(event="begin", id=name, gpu=gpu)
        started = time.perf_counter()
        record: dict[str, Any] = {"status": "failed"}
        try:
            text, values = function()
            record = {"status": "passed", "evidence": text, "values": values}
        except WrongResult as error:
            record.update(code="wrong_result", evidence=str(error), values=error.values)
        except NotRun as error:
            record.update(status="not_run", code=error.code, evidence=str(error))
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
        variables=start_variables(),
        foreign_libraries=foreign_libraries(os.path.dirname(os.path.dirname(os.path.realpath(torch.__file__)))),
    )
    return f"torch {torch.__version__} imported", {}


def start_variables() -> dict[str, str]:
    """What the environment's own start files set: the runner starts this process with none of these but one."""
    names = [
        name for name in os.environ if name.startswith(("CUDA_", "NVIDIA_", "LD_")) and name != "CUDA_DEVICE_ORDER"
    ]
    return {name: os.environ[name][:200] for name in sorted(names)}


def foreign_libraries(site: str) -> list[dict[str, str]]:
    """CUDA's libraries in this process that come from outside of `site` although it has its own: {path, own}."""
    with open("/proc/self/maps", errors="replace") as maps:
        paths = {line[line.index("/") :].rstrip("\n") for line in maps if CUDA_LIBRARY.search(line)}
    found = []
    for path in sorted(path for path in paths if not path.startswith(site + "/") and os.path.exists(path)):
        name, number = CUDA_LIBRARY.findall(path)[0]
        folders = [f"{site}/torch/lib", *glob.glob(f"{site}/nvidia/*/lib")]
        own = sorted(copy for folder in folders for copy in glob.glob(f"{folder}/{name}.so{number}*"))
        if own and not any(os.path.samefile(copy, path) for copy in own):
            found.append({"path": path, "own": own[0]})
    return found


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
    return {
        # All bits of the significand matter, so that TF32 in place of float32 is found.
        "full": with_product(
            torch.randn(ROWS, INNER, generator=generator), torch.randn(INNER, COLUMNS, generator=generator)
        ),
        # Multiples of 1/128 up to 1 are exact in bfloat16, float16 and TF32: one reference serves them all, and what
        # differs is the arithmetic alone.
        "short": with_product(
            multiples(128, ROWS, INNER, generator=generator), multiples(128, INNER, COLUMNS, generator=generator)
        ),
    }


def multiples(steps: int, *size: int, generator: Any, largest: int = 1) -> Any:
    """Random multiples of 1/steps from -largest to largest."""
    import torch

    return torch.randint(-steps * largest, steps * largest + 1, size, generator=generator) / float(steps)


def with_product(left: Any, right: Any) -> dict[str, Any]:
    """Two matrices, their product, and the standard deviation of its values: what an accumulation error is measured against."""
    wide_left, wide_right = left.double(), right.double()
    scale = wide_left.norm(dim=1)[:, None] * wide_right.norm(dim=0)[None, :] / math.sqrt(left.shape[1])
    return {"left": left, "right": right, "product": wide_left @ wide_right, "scale": scale}


def check_copy(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """Bytes to the GPU and back are the same bytes."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    data = torch.randint(-(2**31), 2**31 - 1, (1 << 20,), dtype=torch.int32, generator=generator)
    wrong = int((data.to(device).cpu() != data).sum())
    if wrong:
        raise WrongResult(f"{wrong} of {data.numel()} words changed on the way to the GPU and back", {"wrong": wrong})
    return "4 MiB to the GPU and back are unchanged", {"bytes": data.numel() * 4}


def check_elementwise(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """torch's own kernels. Every term is at most 1, so a dozen roundings stay below 2**-20."""
    import torch

    values = torch.randn(1 << 17, generator=torch.Generator().manual_seed(SEED))

    def function(x: Any) -> Any:
        return torch.sin(x) * torch.exp(-x * x) + 0.5 * torch.tanh(x)

    return compare("elementwise float32", function(values.to(device)), function(values.double()), 2.0**-20)


def check_reduction(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """Sums per row, whose order is the GPU's own, and an exact maximum."""
    import torch

    values = torch.randn(ROWS, INNER, generator=torch.Generator().manual_seed(SEED))
    on_gpu, wide = values.to(device), values.double()
    compare("maximum", on_gpu.amax(dim=1), wide.amax(dim=1), 0.0)
    return compare("sum float32", on_gpu.sum(dim=1), wide.sum(dim=1), accumulation(INNER) * wide.norm(dim=1))


def matmul_check(
    label: str, dtype_name: str, inputs: str, output_roundoff: float
) -> Callable[[str, Given], tuple[str, dict[str, Any]]]:
    """A matrix product whose values may differ from the reference by rounding the output and accumulating in float32."""

    def check(device: str, given: Given) -> tuple[str, dict[str, Any]]:
        import torch

        data = given.references.result()[inputs]
        dtype = getattr(torch, dtype_name)
        # NaN beforehand: a value that no kernel wrote is found.
        out = torch.full((ROWS, COLUMNS), math.nan, dtype=dtype, device=device)
        torch.matmul(data["left"].to(device, dtype), data["right"].to(device, dtype), out=out)
        allowed = output_roundoff * data["product"].abs() + accumulation(INNER) * data["scale"]
        return compare(f"matrix product {label}", out, data["product"], allowed)

    return check


def check_tf32(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """Exact numbers come out as in float32; whether TF32 was used shows in numbers that it has to round."""
    import torch

    text, values = matmul_check("TF32", "float32", "short", SINGLE)(device, given)
    data = given.references.result()["full"]
    out = torch.empty(ROWS, COLUMNS, device=device)
    torch.matmul(data["left"].to(device), data["right"].to(device), out=out)
    exact = SINGLE * data["product"].abs() + accumulation(INNER) * data["scale"]
    used = bool(((out.double().cpu() - data["product"]).abs() > exact).any())
    return f"{text}; TF32 was {'used' if used else 'allowed and not used'}", {**values, "tf32_used": used}


def check_convolution(device: str, given: Given) -> tuple[str, dict[str, Any]]:
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
        # Of a number, not of y with its gradient: the latter makes torch import sympy, which takes seconds.
        return [y, *torch.autograd.grad((y * g).sum(), (x, w))]

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
# The tensor cores of compute capability 8.9 and 9.0 add FP8 products in about 14 bits and truncate.
EIGHT_BIT_ACCUMULATION = 2.0**-7


def check_fp8(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """A product in e4m3. Multiples of 1/8 up to 2 are exact in it."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    data = with_product(
        multiples(8, ROWS, INNER, generator=generator, largest=2),
        multiples(8, INNER, COLUMNS, generator=generator, largest=2),
    )
    kind = torch.float8_e4m3fn
    left = data["left"].to(device).to(kind)
    right = data["right"].t().contiguous().to(device).to(kind).t()  # cuBLASLt wants the second one by columns
    one = torch.ones((), device=device)
    out = torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    out = out[0] if isinstance(out, tuple) else out  # before torch 2.5 with the largest value besides
    allowed = BFLOAT * data["product"].abs() + EIGHT_BIT_ACCUMULATION * data["scale"]
    return compare("matrix product FP8", out, data["product"], allowed)


def check_optimizer(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """Forward, backward and one step of AdamW; what is compared is by how much each weight changed."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    samples, wanted = torch.randn(128, 64, generator=generator), torch.randn(128, 32, generator=generator)
    before = torch.randn(32, 64, generator=generator)

    def step(target: str, dtype: Any) -> Any:
        x, y, start = (tensor.to(target, dtype) for tensor in (samples, wanted, before))
        weight = torch.nn.Parameter(start.clone())
        # A large eps: without it the first step is the sign of the gradient, which says nothing about its size.
        optimizer = torch.optim.AdamW([weight], lr=0.01, eps=0.01, weight_decay=0.1)
        loss = ((x @ weight.t() - y) ** 2).sum() / len(x)
        loss.backward()
        optimizer.step()
        return (weight.detach() - start).cpu().double()

    return compare("change of weights", step(device, torch.float32), step("cpu", torch.float64), 2.0**-16)


def check_nms(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """torchvision's own kernel. Corners in whole numbers: overlaps are far enough from the threshold, or exactly on it."""
    import torch
    import torchvision

    generator = torch.Generator().manual_seed(SEED)
    corners = torch.randint(0, 100, (2000, 2), generator=generator)
    sizes = torch.randint(1, 40, (2000, 2), generator=generator)
    boxes = torch.cat([corners, corners + sizes], dim=1).float()
    scores = torch.randperm(2000, generator=generator) / 2000.0
    expected = torchvision.ops.nms(boxes, scores, 0.5).tolist()
    kept = torchvision.ops.nms(boxes.to(device), scores.to(device), 0.5).tolist()
    if kept != expected:
        values = {"kept": len(kept), "expected": len(expected)}
        raise WrongResult(f"torchvision's nms kept {len(kept)} of 2000 boxes, not the {len(expected)} it must", values)
    return f"torchvision's nms kept the right {len(kept)} of 2000 boxes", {"kept": len(kept)}


def check_lfilter(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """torchaudio's recursive filter, which it has a kernel for, against the recursion in float64."""
    import torch
    import torchaudio

    a, b = [1.0, -0.9, 0.2], [0.5, 0.25, 0.125]
    signal = torch.randn(8, 512, generator=torch.Generator().manual_seed(SEED))
    filtered = torchaudio.functional.lfilter(
        signal.to(device), torch.tensor(a, device=device), torch.tensor(b, device=device), clamp=False
    )
    wide = torch.nn.functional.pad(signal.double(), (2, 0))
    expected = torch.zeros_like(wide)
    for n in range(2, wide.shape[1]):
        forward = sum(factor * wide[:, n - delay] for delay, factor in enumerate(b))
        expected[:, n] = forward - sum(factor * expected[:, n - delay] for delay, factor in enumerate(a) if delay)
    return compare("torchaudio's lfilter", filtered, expected[:, 2:], 2.0**-17)


def wait_for(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


COPIED = 128 << 20  # bytes


def check_bandwidth(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """How fast pinned memory gets to the GPU and back; whether that is fast enough depends on the link, which the runner knows."""
    import torch

    host = torch.empty(COPIED, dtype=torch.uint8, pin_memory=device != "cpu")
    there = torch.empty(COPIED, dtype=torch.uint8, device=device)
    speeds = {}
    for name, target, source in (("to_gpu_gb_s", there, host), ("from_gpu_gb_s", host, there)):
        best = math.inf
        until = time.perf_counter() + 0.5
        while best == math.inf or time.perf_counter() < until:
            started = time.perf_counter()
            for _copy in range(4):
                target.copy_(source, non_blocking=True)
            wait_for(device)
            best = min(best, time.perf_counter() - started)
        speeds[name] = round(4 * COPIED / best / 1e9, 2)
    return f"{speeds['to_gpu_gb_s']} GB/s to the GPU, {speeds['from_gpu_gb_s']} GB/s from it", speeds


CHUNK = 1 << 25  # words of 8 bytes
FILLED = 0.9  # of the memory that is free
KNUTH = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, so that every word of the pattern is another


def check_memory(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """Fill the memory with words that depend on their place, then with their complement; read all of it back each time."""
    import torch

    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    words = int(free * FILLED) // 8
    size = min(CHUNK, words // 4)
    try:
        wrong, filled = fill_and_verify(device, words - size, size)
    finally:
        torch.cuda.empty_cache()
    values = {"bytes": filled * 8, "free_bytes": free, "wrong_words": wrong}
    if wrong:
        raise WrongResult(f"{wrong} of {filled} words of memory did not keep what was written", values)
    return f"{filled * 8 / 2**30:.1f} GiB kept a pattern and its complement", values


def fill_and_verify(device: str, words: int, size: int) -> tuple[int, int]:
    """How many words were wrong, and how many were filled, in chunks of `size`; needs one chunk of memory besides."""
    import torch

    expected = torch.empty(size, dtype=torch.int64, device=device)
    chunks = [torch.empty(size, dtype=torch.int64, device=device) for _chunk in range(words // size)]

    def write(chunk: Any, number: int) -> None:
        torch.arange(number * size, (number + 1) * size, out=chunk)
        chunk.mul_(KNUTH)

    def count_right(inverted: bool) -> int:
        right = 0
        for number, chunk in enumerate(chunks):
            write(expected, number)
            if inverted:
                expected.bitwise_not_()
            right += int((chunk == expected).sum())
        return right

    # Everything is written before anything is read: words that share a place are found.
    for number, chunk in enumerate(chunks):
        write(chunk, number)
    right = count_right(inverted=False)
    for chunk in chunks:
        chunk.bitwise_not_()
    right += count_right(inverted=True)
    filled = len(chunks) * size
    return 2 * filled - right, filled


TILE = 512
PRODUCTS = 4  # between two looks at the clock


def check_burn(device: str, given: Given) -> tuple[str, dict[str, Any]]:
    """Load the GPU for a while; every product must have the same bits as the first one, which is right."""
    import torch

    capability = torch.cuda.get_device_capability(device)
    kinds = ["float32"]
    if capability >= (7, 0):  # before, half precision has no tensor cores and is slow
        kinds.insert(0, "bfloat16" if capability >= (8, 0) else "float16")
    return burn(device, given.burn_seconds, 4096, kinds)


def burn(device: str, seconds: float, size: int, kinds: list[str]) -> tuple[str, dict[str, Any]]:
    import torch

    jobs = {kind: prepare_products(device, size, kind) for kind in kinds}
    done = dict.fromkeys(kinds, 0)
    busy = dict.fromkeys(kinds, 0.0)
    started = time.perf_counter()
    turns = itertools.cycle(kinds)
    while time.perf_counter() < started + seconds or not all(done.values()):
        kind = next(turns)
        left, right, first, outputs = jobs[kind]
        same = torch.zeros((), dtype=torch.int64, device=device)
        batches = 0
        turn = time.perf_counter()
        while not batches or time.perf_counter() < min(turn + 0.5, started + seconds):
            begun = time.perf_counter()
            for out in outputs:
                torch.matmul(left, right, out=out)
            wait_for(device)
            busy[kind] += time.perf_counter() - begun
            for out in outputs:
                same += (out.view(first.dtype) == first).sum()
                out.zero_()  # a product that is not computed must not look like the one before
            batches += 1
        products = batches * len(outputs)
        done[kind] += products
        wrong = products * first.numel() - int(same)
        if wrong:
            values = {"wrong": wrong, "products": done, "seconds": round(time.perf_counter() - started, 1)}
            text = f"{wrong} values of {products} products in {kind} differ from those of the first, correct product"
            raise WrongResult(f"{text}, after {values['seconds']} s", values)
    speed = {kind: round(2 * size**3 * done[kind] / busy[kind] / 1e12, 1) for kind in kinds}
    shown = ", ".join(f"{done[kind]} in {kind} at {speed[kind]} TFLOP/s" for kind in kinds)
    elapsed = round(time.perf_counter() - started, 1)
    return f"products without a wrong bit in {elapsed} s: {shown}", {
        "seconds": elapsed,
        "products": done,
        "tflop_s": speed,
    }


def prepare_products(device: str, size: int, kind: str) -> tuple[Any, Any, Any, list[Any]]:
    """Two matrices on the GPU, the bits of their product, which is compared with float64, and room for more of them."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    dtype = getattr(torch, kind)
    if kind == "float32":
        strips = torch.randn(TILE, size, generator=generator), torch.randn(size, TILE, generator=generator)
        roundoff, bits = SINGLE, torch.int32
    else:
        strips = multiples(128, TILE, size, generator=generator), multiples(128, size, TILE, generator=generator)
        roundoff, bits = BFLOAT if kind == "bfloat16" else HALF, torch.int16
    # The same strip again and again: the CPU computes one tile of the product and knows them all.
    repeated = size // TILE
    data = with_product(*strips)
    left = data["left"].to(device, dtype).repeat(repeated, 1)
    right = data["right"].to(device, dtype).repeat(1, repeated)
    first = torch.full((size, size), math.nan, dtype=dtype, device=device)
    torch.matmul(left, right, out=first)
    allowed = roundoff * data["product"].abs() + accumulation(size) * data["scale"]
    for row in range(0, size, TILE):
        compare(
            f"first product {kind}",
            first[row : row + TILE],
            data["product"].repeat(1, repeated),
            allowed.repeat(1, repeated),
        )
    return left, right, first.view(bits), [torch.zeros_like(first) for _product in range(PRODUCTS)]


GPU_CHECKS: dict[str, Callable[[str, Given], tuple[str, dict[str, Any]]]] = {
    "gpu.copy": check_copy,
    "gpu.elementwise": check_elementwise,
    "gpu.reduction": check_reduction,
    "gpu.matmul_fp32": matmul_check("FP32", "float32", "full", SINGLE),
    "gpu.matmul_fp16": matmul_check("FP16", "float16", "short", HALF),
    "gpu.matmul_bf16": matmul_check("BF16", "bfloat16", "short", BFLOAT),
    "gpu.matmul_tf32": check_tf32,
    "gpu.conv2d": check_convolution,
    "gpu.matmul_fp8": check_fp8,
    "gpu.optimizer_step": check_optimizer,
    "gpu.torchvision_nms": check_nms,
    "gpu.torchaudio_lfilter": check_lfilter,
    "gpu.bandwidth": check_bandwidth,
    "gpu.memory": check_memory,
    "gpu.burn": check_burn,
}
COMPANIONS = {"gpu.torchvision_nms": "torchvision", "gpu.torchaudio_lfilter": "torchaudio"}
# These need TF32 allowed, a switch of the whole process: they run after the others have finished on every GPU.
TF32_CHECKS = ("gpu.matmul_tf32",)
# GPUs share links: one after the other.
SINGLE_CHECKS = ("gpu.bandwidth",)
# They load or fill a GPU for long: when everything else is known.
LAST_CHECKS = ("gpu.memory", "gpu.burn")


# ---- several GPUs, and the compiler ---------------------------------------------------------------------------------


def check_compile(device: str) -> tuple[str, dict[str, Any]]:
    """torch.compile of a function that is more than one kernel of torch's own, cold."""
    import torch

    # One process and one thread: the pool that inductor starts otherwise takes longer than this function.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

    def function(x: Any, y: Any) -> Any:
        return (torch.sin(x) * torch.relu(y) + 0.5 * x).sum(dim=1)

    generator = torch.Generator().manual_seed(SEED)
    x, y = (torch.randn(ROWS, INNER, generator=generator) for _tensor in range(2))
    reference = function(x.double(), y.double())
    try:
        result = torch.compile(function)(x.to(device), y.to(device))
        wait_for(device)
    except Exception as error:
        problem = compiler_problem()
        if problem is None:
            raise
        raise problem from error
    allowed = accumulation(INNER) * 1.5 * math.sqrt(INNER)  # no term is larger than a few times 1.5
    return compare("compiled function", result, reference, allowed)


def compiler_problem() -> Failed | None:
    """What torch.compile needs and this host or environment lacks, in the places where Triton looks."""
    if importlib.util.find_spec("triton") is None:
        return Failed("triton_missing", f"triton is not installed in {sys.prefix}")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return NotRun("compiler_missing", "torch.compile needs a C compiler, and there is neither gcc nor clang")
    headers = sysconfig.get_paths(scheme="posix_prefix")["include"]
    if not os.path.exists(os.path.join(headers, "Python.h")):
        return NotRun(
            "headers_missing", f"torch.compile needs the headers of Python, and {headers}/Python.h is missing"
        )
    if os.statvfs(".").f_flag & os.ST_NOEXEC:
        return NotRun("noexec", f"nothing that was compiled can be loaded from {os.getcwd()}, which is mounted noexec")
    return None


def check_peers(devices: list[int]) -> tuple[str, dict[str, Any]]:
    """Copies between every two GPUs, both ways. A platform that breaks peer access loses them without an error."""
    import torch

    pairs = list(itertools.permutations(devices, 2))
    direct = [pair for pair in pairs if torch.cuda.can_device_access_peer(*pair)]
    words = 1 << 22
    for number, (source, target) in enumerate(pairs):
        generator = torch.Generator().manual_seed(SEED + number)
        data = torch.randint(-(2**31), 2**31 - 1, (words,), dtype=torch.int32, generator=generator)
        there = torch.zeros(words, dtype=torch.int32, device=f"cuda:{target}")
        there.copy_(data.to(f"cuda:{source}"))
        wrong = int((there.cpu() != data).sum())
        if wrong:
            way = "directly" if (source, target) in direct else "through the host"
            text = f"{wrong} of {words} words changed on the way from GPU {source} to GPU {target}, copied {way}"
            raise WrongResult(text, {"wrong": wrong, "from": source, "to": target, "direct": way == "directly"})
    text = f"copies between {len(devices)} GPUs are unchanged, {len(direct)} of {len(pairs)} ways with peer access"
    return text, {"ways": len(pairs), "direct": len(direct)}


def check_all_reduce(device: str, rank: int, world: int, store: str) -> tuple[str, dict[str, Any]]:
    """NCCL as a training uses it: a process for each GPU. Sums of small whole numbers are exact in any order."""
    import torch

    torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl", store=torch.distributed.FileStore(store, world), rank=rank, world_size=world
    )
    speed = 0.0
    for words in (1 << 10, 1 << 18, 1 << 24):  # NCCL has other protocols for other sizes
        pattern = torch.arange(words, dtype=torch.int32) % 4093
        for _round in range(2):  # the first one connects the GPUs
            data = (pattern * (rank + 1)).to(device, torch.float32)
            torch.cuda.synchronize(device)
            started = time.perf_counter()
            torch.distributed.all_reduce(data)
            torch.cuda.synchronize(device)
            # The bus bandwidth of nccl-tests: what every GPU sends and receives.
            speed = 2 * (world - 1) / world * words * 4 / (time.perf_counter() - started) / 1e9
            expected = (pattern * (world * (world + 1) // 2)).double()
            compare(f"all-reduce of {words} values on GPU {rank}", data, expected, 0.0)
    torch.distributed.destroy_process_group()
    values = {"gpus": world, "bus_gb_s": round(speed, 2)}
    return f"NCCL's sums over {world} GPUs are exact, {values['bus_gb_s']} GB/s for 64 MiB", values


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


def prove_gpu(records: Records, gpu: dict[str, Any], device: dict[str, Any], names: list[str], given: Given) -> bool:
    """Run checks on one GPU, until one cannot run at all: after a CUDA error the context proves nothing more."""
    import torch

    target = f"cuda:{device['index']}"
    for name in names:

        def run(name: str = name) -> tuple[str, dict[str, Any]]:
            with torch.cuda.device(device["index"]):
                result = GPU_CHECKS[name](target, given)
                torch.cuda.synchronize(device["index"])
            return result

        if records.check(name, run, gpu["pci_address"]) == "failed":
            return False
    return True


def prove_gpus(records: Records, told: dict[str, Any], companions: dict[str, Any]) -> None:
    """All that the runner asked for. What it did not ask for, or what cannot be offered here, leaves no record."""
    import torch

    devices: list[dict[str, Any]] = []

    def look() -> tuple[str, dict[str, Any]]:
        devices.extend(describe_devices())
        return f"torch sees {len(devices)} GPUs", {"gpus": devices}

    def offered(name: str) -> bool:
        if name == "gpu.matmul_fp8":
            return hasattr(torch, "_scaled_mm")
        return name not in COMPANIONS or COMPANIONS[name] in companions

    if records.check("torch.devices", look) != "passed":
        return
    good: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for gpu in told["gpus"]:
        device = find_device(devices, gpu)
        identity = records.check("gpu.identity", partial(check_identity, device, gpu), gpu["pci_address"])
        if device is not None and identity == "passed":
            good.append((gpu, device))

    with ThreadPoolExecutor(max_workers=len(good) + 1) as pool:
        given = Given(pool.submit(make_references), told.get("burn_seconds") or 0)

        def run(wanted: Callable[[str], bool], at_once: bool = True) -> None:
            """Run the wanted checks on the GPUs that are still good, and go on with those that still are then."""
            jobs = []
            for gpu, device in good:
                names = [name for name in gpu["checks"] if wanted(name) and offered(name)]
                jobs.append(pool.submit(prove_gpu, records, gpu, device, names, given))
                if not at_once:
                    jobs[-1].result()
            good[:] = [pair for pair, job in zip(good, jobs) if job.result()]

        with precise_arithmetic():
            run(lambda name: name not in (*TF32_CHECKS, *SINGLE_CHECKS, *LAST_CHECKS))
        with tf32_arithmetic():
            run(lambda name: name in TF32_CHECKS)
        run(lambda name: name in SINGLE_CHECKS, at_once=False)
        indexes = [device["index"] for _gpu, device in good]
        if told.get("peers") and len(good) > 1:
            records.check("gpus.peer", partial(check_peers, indexes))
        for gpu, device in good:
            if gpu["pci_address"] == told.get("compile_on"):
                records.check("torch.compile", partial(check_compile, f"cuda:{device['index']}"))
        with precise_arithmetic():
            run(lambda name: name in LAST_CHECKS)


def reduce_with_others(records: Records, task: dict[str, Any]) -> None:
    """One process of an all-reduce."""
    # Sums inside NVSwitch take multicast groups of the fabric, which the whole host shares; a proof leaves them alone.
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    gpu = task["gpu"]

    def reduce() -> tuple[str, dict[str, Any]]:
        device = find_device(describe_devices(), gpu)
        check_identity(device, gpu)
        return check_all_reduce(f"cuda:{(device or gpu)['index']}", task["rank"], task["world"], task["store"])

    records.check("gpus.all_reduce", reduce, gpu["pci_address"])


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
    told = read_line(int(arguments[2]))
    if imported and told.get("gpus"):
        prove_gpus(records, told, companions)
    if imported and told.get("all_reduce"):
        reduce_with_others(records, told["all_reduce"])
    records.write(event="end")


if __name__ == "__main__":
    main(sys.argv[1:])
