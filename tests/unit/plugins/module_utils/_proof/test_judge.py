"""The verdict: no record, no pass."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge, remedies, torch_checks

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
    assert [name for name, _first in judge.GPU_CHECKS] == sorted(
        torch_checks.GPU_CHECKS, key=[name for name, _first in judge.GPU_CHECKS].index
    )


# ---- codes and remedies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("CUDA error: no kernel image is available for execution on the device", 209),
        ("No CUDA GPUs are available", 100),
        ("CUDA error: no CUDA-capable device is detected", 100),
        ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", 100),
        ("The NVIDIA driver on your system is too old (found version 12040).", 35),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver / cuda driver combination",
            803,
        ),
        ("Error 802: system not yet initialized", 802),
        ("Error 804: forward compatibility was attempted on non supported HW", 804),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", 999),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", 46),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", 46),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", 2),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 2),
        ("CUDA error: an illegal memory access was encountered", 700),
        ("CUDA error: an illegal instruction was encountered", 715),
        ("cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)", 803),
        ("cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", 222),
    ],
)
def test_an_error_of_cuda_is_recognised_by_its_words(text, number):
    code = remedies.code_of("gpu.copy", None, "RuntimeError", text)
    assert code == f"cuda_{number}"
    assert len(remedies.remedy(code)) > 40


def test_the_number_that_an_exception_carries_decides():
    assert remedies.code_of("gpu.copy", 803, "AcceleratorError", "out of memory") == "cuda_803"
    assert "12345" in remedies.remedy(remedies.code_of("gpu.copy", 12345, "AcceleratorError", "new"))


def test_words_that_belong_to_no_error_of_cuda_are_not_guessed():
    assert remedies.code_of("gpu.copy", None, "RuntimeError", "shape mismatch") == "failed"


def proof_sources():
    for path in sorted(Path(judge.__file__).parent.glob("*.py")):
        if path.name != "remedies.py":
            yield ast.parse(path.read_text(encoding="utf-8"))


def test_every_code_given_to_a_check_has_a_remedy():
    used = set()
    for tree in proof_sources():
        for node in ast.walk(tree):
            code = None
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                place = {"failed": 1, "not_run": 1, "Failed": 0}.get(name)
                code = node.args[place] if place is not None and len(node.args) > place else None
            elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and is_text(node.elts[1]):
                code = node.elts[0]  # a code with its sentence, on its way to a check
            if isinstance(code, ast.Constant):
                used.add(code.value)
    assert {"no_start", "timed_out", "busy", "not_installed", "no_gpu", "gpu_missing"} <= used
    assert used <= set(remedies.REMEDIES), used - set(remedies.REMEDIES)


def is_text(node):
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and " " in str(node.value))


def test_every_remedy_belongs_to_a_code_that_is_used():
    constants = {node.value for tree in proof_sources() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert set(remedies.REMEDIES) - constants == {"import_failed"}  # remedies.code_of gives that one


def test_a_result_is_plain_json():
    checks, torch, companions = judge.static_checks(judge.Outcome(static_records(), None), EXPECT, ["sm_120"])
    assert json.loads(json.dumps([checks, torch, companions], allow_nan=False))[0][0]["id"] == "python.start"
