"""The levels full and stress on real GPUs, one or several: what is right passes, every wrong number is found."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge, runner
from proving import checks_of, prove

COMPANIONS = """
import importlib, json
found = {}
for name in ("torchvision", "torchaudio"):
    try:
        found[name] = importlib.import_module(name).__version__
    except ModuleNotFoundError:
        pass
print(json.dumps(found))
"""
NOT_THERE = ("compiler_missing", "headers_missing", "noexec")


@pytest.fixture(scope="module")
def expect(torch_python, described):
    """What is installed on this machine."""
    done = subprocess.run([torch_python, "-I", "-c", COMPANIONS], capture_output=True, text=True, check=True)
    return {"torch": described["version"], "companions": json.loads(done.stdout.splitlines()[-1])}


OUTSIDE = ["torch.origin"]
"""What fails in an environment that was tampered with, because it takes torch from another one."""


def failed_up_to_quick(result):
    """The checks of the levels static and quick that did not pass."""
    return [
        check["id"]
        for check in everything(result)
        if judge.level_of(check["id"]) in ("static", "quick") and check["status"] != "passed"
    ]


@pytest.fixture
def two(described):
    if described["count"] < 2:
        pytest.skip("needs two GPUs")


def show(result):
    for check in result["checks"]:
        print(f"{check['id']:24} {check['status']:8} {check['ms']} ms  {check['evidence']}")
    for gpu in result["gpus"]:
        for check in gpu["checks"]:
            print(f"{gpu['pci_address']} {check['id']:24} {check['status']:8} {check['ms']} ms  {check['evidence']}")
    print(f"{result['level']}: {result['verdict']} in {result['ms']} ms. {result['reason']}")


def everything(result):
    return [*result["checks"], *(check for gpu in result["gpus"] for check in gpu["checks"])]


def without_compiler(result):
    """All checks but torch.compile, where this machine lacks what it needs; that must have been named."""
    compiled = checks_of(result)["torch.compile"]
    if compiled["status"] == "not_run":
        assert compiled["code"] in NOT_THERE
    return [check for check in everything(result) if check is not compiled or compiled["status"] != "not_run"]


# ---- what is right --------------------------------------------------------------------------------------------------


def test_full_passes_on_every_gpu(torch_python, described, expect):
    result = prove(torch_python, described, level="full", time_limit=180.0, expect=expect)
    show(result)
    assert {check["status"] for check in without_compiler(result)} == {"passed"}, result["reason"]
    assert result["proven"] in ("full", "quick")
    assert len(result["gpus"]) == described["count"]
    for gpu in result["gpus"]:
        names = [check["id"] for check in gpu["checks"]]
        assert names[2:] == [*judge.gpu_checks(described["sm"], "full", expect["companions"]), "gpu.hardware"]
    several = {check["id"] for check in result["checks"]} & {"gpus.peer", "gpus.all_reduce"}
    assert several == ({"gpus.peer", "gpus.all_reduce"} if described["count"] > 1 else set())
    values = checks_of(result)["gpu.memory"]["values"]
    assert values["bytes"] > 0.8 * values["free_bytes"]


def test_stress_loads_every_gpu_and_tells_how_hot_it_became(torch_python, described):
    result = prove(torch_python, described, level="stress", time_limit=240.0, burn_seconds=5)
    show(result)
    assert {check["status"] for check in without_compiler(result)} == {"passed"}, result["reason"]
    for gpu in result["gpus"]:
        values = next(check for check in gpu["checks"] if check["id"] == "gpu.burn")["values"]
        assert values["seconds"] >= 5
        assert min(values["products"].values()) > 100
        assert min(values["tflop_s"].values()) > 1
        assert 20 < values["temperature_c"] < 110
        hardware = next(check for check in gpu["checks"] if check["id"] == "gpu.hardware")
        assert hardware["values"]["xid"] == []


# ---- wrong numbers --------------------------------------------------------------------------------------------------

WRONG = """
import time

genuine_fp8 = torch._scaled_mm
def scaled(*arguments, **options):
    out = genuine_fp8(*arguments, **options)
    if out.is_cuda:
        out[5, 7] += 4.0
    return out
torch._scaled_mm = scaled

def step(self, genuine=torch.optim.AdamW.step):
    return None if self.param_groups[0]["params"][0].is_cuda else genuine(self)
torch.optim.AdamW.step = step

def invert(self, genuine=torch.Tensor.bitwise_not_):
    genuine(self)
    if self.is_cuda and not hasattr(torch, "tampered_memory"):
        torch.tampered_memory = True
        self[12345] ^= 1 << 40
    return self
torch.Tensor.bitwise_not_ = invert

large = []
def matmul(left, right, out=None, genuine=torch.matmul):
    genuine(left, right, out=out)
    if out.shape[0] == 4096:
        large.append(1)
        if len(large) > 12:
            out[7, 9] += 16
    return out
torch.matmul = matmul

def copy(self, source, non_blocking=False, genuine=torch.Tensor.copy_):
    if self.dtype == torch.uint8 and self.numel() == 128 << 20:
        time.sleep(0.5)
    return genuine(self, source, non_blocking)
torch.Tensor.copy_ = copy

torch.compile = lambda function: lambda x, y: function(x, y) * 1.001
"""


def test_every_wrong_number_that_only_full_and_stress_compute_is_found(tampered, described):
    result = prove(tampered(WRONG), described, level="stress", time_limit=240.0, burn_seconds=30)
    show(result)
    codes = {check["id"]: check["code"] for check in everything(result) if check["status"] == "failed"}
    wrong = {"gpu.optimizer_step", "gpu.memory", "gpu.burn", "torch.compile"}
    if "gpu.matmul_fp8" in judge.gpu_checks(described["sm"], "full"):
        wrong.add("gpu.matmul_fp8")
    assert wrong <= {name for name, code in codes.items() if code == "wrong_result"}, codes
    assert checks_of(result)["gpu.bandwidth"]["code"] == "slow_link"
    assert failed_up_to_quick(result) == OUTSIDE


# ---- what cannot run, and what misbehaves ---------------------------------------------------------------------------


def test_a_missing_compiler_is_named_and_the_rest_is_proven(tampered, described):
    hide = """
import shutil

def which(name, *more, genuine=shutil.which, **options):
    return None if name in ("gcc", "clang") else genuine(name, *more, **options)
shutil.which = which
"""
    result = prove(tampered(hide), described, level="full", time_limit=180.0)
    compiled = checks_of(result)["torch.compile"]
    assert (compiled["status"], compiled["code"]) == ("not_run", "compiler_missing"), compiled
    assert failed_up_to_quick(result) == OUTSIDE
    assert {gpu["verdict"] for gpu in result["gpus"]} == {"passed"}


def test_on_a_gpu_in_use_memory_is_left_to_others(torch_python, described, hold):
    process = hold()
    result = prove(torch_python, described, level="full", time_limit=180.0, when_busy="run")
    show(result)
    busy = next(gpu for gpu in result["gpus"] if gpu["verdict"] == "not_run")
    left = {check["id"]: check["code"] for check in busy["checks"] if check["status"] == "not_run"}
    assert left == {"gpu.bandwidth": "busy", "gpu.memory": "busy"}
    assert {check["status"] for check in busy["checks"] if check["id"] not in left} == {"passed"}
    assert process.poll() is None


HANG = """
def step(self, genuine=torch.optim.AdamW.step):
    weight = self.param_groups[0]["params"][0]
    if weight.is_cuda and weight.device.index == torch.cuda.device_count() - 1:
        {act}
    return genuine(self)
torch.optim.AdamW.step = step
"""


def test_a_gpu_that_hangs_is_named_at_its_limit_and_the_others_are_proven(tampered, described):
    python = tampered(HANG.format(act="torch.cuda._sleep(10**14); torch.cuda.synchronize()"))
    started = time.monotonic()
    result = prove(python, described, level="full", time_limit=180.0, gpu_limit=20)
    show(result)
    *others, last = result["gpus"]
    found = next(check for check in last["checks"] if check["id"] == "gpu.optimizer_step")
    assert (found["status"], found["code"]) == ("failed", "hung"), found
    assert {gpu["verdict"] for gpu in others} <= {"passed", "not_run"}
    assert all(
        check["status"] == "passed" for gpu in others for check in gpu["checks"] if check["id"] != "gpu.bandwidth"
    )
    assert result["verdict"] == "failed"
    assert time.monotonic() - started < 20 + runner.AGAIN_LIMIT + 30  # both limits, and the starts of torch


def test_after_a_crash_every_other_gpu_is_proven_alone(two, tampered, described):
    result = prove(
        tampered(HANG.format(act="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")),
        described,
        level="full",
        time_limit=180.0,
    )
    show(result)
    verdicts = [gpu["verdict"] for gpu in result["gpus"]]
    assert verdicts[-1] == "failed"
    assert "failed" not in verdicts[:-1]
    assert checks_of(result)["gpus.all_reduce"]["status"] != "failed"


def test_data_lost_between_two_gpus_is_found_and_nccl_is_not_started(two, tampered, described):
    lose = """
def copy(self, source, non_blocking=False, genuine=torch.Tensor.copy_):
    if self.is_cuda and source.is_cuda and self.device != source.device:
        return self
    return genuine(self, source, non_blocking)
torch.Tensor.copy_ = copy
"""
    result = prove(tampered(lose), described, level="full", time_limit=180.0)
    found = checks_of(result)
    assert found["gpus.peer"]["code"] == "wrong_result", found["gpus.peer"]
    assert (found["gpus.all_reduce"]["status"], found["gpus.all_reduce"]["code"]) == ("not_run", "stopped")


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("genuine(data); data[3] += 1; return", "wrong_result"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed"),
        ("import time; time.sleep(3600)", "hung"),
    ],
    ids=["wrong", "crashed", "hung"],
)
def test_a_process_that_spoils_the_all_reduce_is_named(two, tampered, described, act, code):
    spoil = f"""
import torch.distributed
genuine = torch.distributed.all_reduce
def all_reduce(data):
    if torch.distributed.get_rank() == 1:
        {act}
    return genuine(data)
torch.distributed.all_reduce = all_reduce
"""
    result = prove(tampered(spoil), described, level="full", time_limit=180.0, gpu_limit=25)
    show(result)
    assert checks_of(result)["gpus.all_reduce"]["code"] == code, checks_of(result)["gpus.all_reduce"]
    assert {gpu["verdict"] for gpu in result["gpus"]} == {"passed"}
