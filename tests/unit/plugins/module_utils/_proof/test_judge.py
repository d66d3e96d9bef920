"""The verdict: no record, no pass."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge, torch_checks

GPU = {"pci_address": "0000:01:00.0", "uuid": "GPU-1", "name": "NVIDIA GeForce RTX 5070", "sm": "sm_120"}
FACTS = {
    "version": "2.9.1+cu128",
    "distribution_version": "2.9.1",
    "cuda": "12.8",
    "hip": None,
    "arch_flags": ["sm_75", "sm_90a", "sm_120", "compute_120"],
    "file": "/env/lib/torch/__init__.py",
    "prefix": "/env",
}
EXPECT = {"torch": "2.9.1+cu128", "companions": {"torchvision": "0.24.1"}}


def told(name, gpu=None, **more):
    return {"event": "check", "id": name, "gpu": gpu, "status": "passed", "evidence": "seen", **more}


def static_records():
    return [
        {"event": "python", "version": "3.12.1", "prefix": "/env"},
        told("torch.import"),
        {"event": "torch", "facts": FACTS},
        told("torch.cpu"),
        told("companion.torchvision"),
        {"event": "companions", "facts": {"torchvision": "0.24.1+cu128"}},
    ]


def gpu_records():
    return [told(name, GPU["pci_address"]) for name in ["gpu.identity", *judge.gpu_checks("sm_120")]]


def static_verdict(records, sm=("sm_120",)):
    return judge.verdict(judge.static_checks(judge.Outcome(records, None), EXPECT, sm)[0])


def gpu_verdict(records):
    driver = judge.Outcome([told("gpu.driver_kernel", GPU["pci_address"])], None)
    outcomes = {GPU["pci_address"]: judge.Outcome(records, None)}
    return judge.judged_gpus(outcomes, driver, [GPU], {})[0]["verdict"]


def test_all_records_together_pass():
    assert static_verdict(static_records()) == "passed"
    assert gpu_verdict(gpu_records()) == "passed"


@pytest.mark.parametrize("index", range(len(static_records())))
def test_a_lost_static_record_never_passes(index):
    records = static_records()
    del records[index]
    assert static_verdict(records) != "passed"


@pytest.mark.parametrize("index", range(len(gpu_records())))
def test_a_lost_gpu_record_never_passes(index):
    records = gpu_records()
    del records[index]
    assert gpu_verdict(records) == "not_run"


@pytest.mark.parametrize("status", ["failed", "not_run", "Passed", None, True, []])
def test_only_the_word_passed_passes(status):
    records = gpu_records()
    records[3] = told("gpu.elementwise", GPU["pci_address"], status=status)
    assert gpu_verdict(records) == "failed"


def test_a_record_of_another_gpu_does_not_count():
    records = gpu_records()
    records[-1] = {**records[-1], "gpu": "0000:02:00.0"}
    assert gpu_verdict(records) == "not_run"


def test_no_checks_prove_nothing():
    assert judge.verdict([]) == "not_run"
    assert judge.combine([]) == "not_run"
    assert judge.combine(["passed", "not_run"]) == "not_run"
    assert judge.combine(["not_run", "failed", "passed"]) == "failed"


def test_every_architecture_of_the_host_must_be_covered():
    checks, _torch, _companions = judge.static_checks(
        judge.Outcome(static_records(), None), EXPECT, ["sm_120", "sm_86", "sm_90"]
    )
    arch = next(check for check in checks if check["id"] == "torch.arch")
    assert arch["code"] == "arch_missing"
    assert "sm_86, sm_90" in arch["evidence"]  # sm_75 is another major version, and sm_90a is not code for every 9.0


def test_the_code_that_serves_is_named_and_ptx_is_listed_apart():
    checks, _torch, _companions = judge.static_checks(judge.Outcome(static_records(), None), EXPECT, ["sm_121"])
    arch = next(check for check in checks if check["id"] == "torch.arch")
    assert arch["values"]["runs_on"] == {"sm_121": "sm_120"}
    assert arch["values"]["ptx"] == ["compute_120"]


@pytest.mark.parametrize(
    ("sm", "present", "absent"),
    [
        ("sm_52", "gpu.matmul_fp32", "gpu.matmul_fp16"),
        ("sm_75", "gpu.matmul_fp16", "gpu.matmul_bf16"),
        ("sm_80", "gpu.matmul_bf16", None),
    ],
)
def test_types_that_the_hardware_lacks_are_not_asked_for(sm, present, absent):
    names = judge.gpu_checks(sm)
    assert present in names
    assert absent not in names


@pytest.mark.parametrize("text", ["120", "sm_1", "sm_", "compute_90", "sm_12.0", ""])
def test_what_is_no_architecture_is_refused(text):
    with pytest.raises(ValueError, match="no compute capability"):
        judge.capability(text)


def test_every_check_of_a_gpu_exists_in_the_script():
    assert [check.name for check in judge.GPU_CHECKS] == list(torch_checks.GPU_CHECKS)
    companions = {check.name: check.companion for check in judge.GPU_CHECKS if check.companion}
    assert companions == torch_checks.COMPANIONS


# ---- the result -----------------------------------------------------------------------------------------------------


def test_a_result_is_plain_json():
    checks, torch, companions = judge.static_checks(judge.Outcome(static_records(), None), EXPECT, ["sm_120"])
    assert json.loads(json.dumps([checks, torch, companions], allow_nan=False))[0][0]["id"] == "python.start"
