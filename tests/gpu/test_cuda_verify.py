"""The proof on a real GPU: what is right passes, what is wrong fails for its own reason."""

from __future__ import annotations

import contextlib
import glob
import os

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge
from proving import checks_of, prove

# ---- what is right --------------------------------------------------------------------------------------------------


def test_static_passes_as_an_unprivileged_account(torch_python, described):
    result = prove(torch_python, described, level="static")
    assert result["verdict"] == "passed", result["reason"]
    assert result["user"] != "root"
    assert result["torch"]["arch_flags"] == described["flags"]
    assert result["gpus"] == []


def test_quick_passes_on_every_gpu_that_nvidia_smi_lists(torch_python, described, nvidia_smi):
    result = prove(torch_python, described)
    for gpu in result["gpus"]:
        for check in gpu["checks"]:
            print(f"{gpu['pci_address']} {check['id']:22} {check['ms']} ms  {check['evidence']}")
    print(f"quick: {result['ms']} ms, import torch: {checks_of(result)['torch.import']['ms']} ms")
    assert result["verdict"] == "passed", result["reason"]
    assert result["proven"] == "quick"
    shown = [{key: gpu[key] for key in ("pci_address", "uuid", "name")} for gpu in result["gpus"]]
    assert shown == sorted(nvidia_smi, key=lambda gpu: gpu["pci_address"])
    for gpu in result["gpus"]:
        names = [check["id"] for check in gpu["checks"]]
        assert names == ["gpu.driver_kernel", "gpu.identity", *judge.gpu_checks(described["sm"])]


def test_what_the_gpus_need_is_found_out_where_nobody_says_it(torch_python, described):
    result = prove(torch_python, described, sm=[])
    assert result["verdict"] == "passed", result["reason"]
    assert described["sm"] in checks_of(result)["torch.arch"]["evidence"]


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"])
def test_hidden_devices_of_the_caller_do_not_leak_in(torch_python, described, monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert prove(torch_python, described)["verdict"] == "passed"


def test_nothing_is_left_behind(torch_python, described):
    before = set(glob.glob("/tmp/gpufleet-proof-*"))
    assert prove(torch_python, described, level="full", time_limit=180.0)["proven"] in ("full", "quick")
    assert set(glob.glob("/tmp/gpufleet-proof-*")) <= before
    # Every process of a proof works in its private directory; after that is gone the link still names it.
    places = []
    for path in glob.glob("/proc/[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it ended, or is nobody's to see
            places.append(os.readlink(path))
    assert os.getcwd() in places
    assert not [place for place in places if "gpufleet-proof-" in place]


# ---- what is not as expected ----------------------------------------------------------------------------------------


@pytest.mark.failure("wrong_version")
def test_another_version_than_expected_fails_although_the_kernels_are_right(torch_python, described):
    result = prove(torch_python, described, expect={"torch": "2.6.0+cu124"})
    assert result["verdict"] == "failed"
    assert checks_of(result)["torch.version"]["code"] == "wrong_version"
    assert {gpu["verdict"] for gpu in result["gpus"]} == {"passed"}


@pytest.mark.failure("arch_missing")
def test_an_architecture_without_code_fails(torch_python, described):
    result = prove(torch_python, described, level="static", sm=["sm_35"])
    assert checks_of(result)["torch.arch"]["code"] == "arch_missing"


@pytest.mark.failure("gpu_missing")
def test_a_gpu_that_is_not_there_fails(torch_python, described):
    result = prove(torch_python, described, gpus=["00ff:01:00.0"])
    assert result["verdict"] == "failed"
    assert checks_of(result)["driver.gpus"]["code"] == "gpu_missing"


# ---- wrong numbers --------------------------------------------------------------------------------------------------

MATMUL = """
genuine = torch.matmul
def matmul(left, right, out):
    if out.dtype == torch.{dtype} and torch.get_float32_matmul_precision() == "{precision}":
        {act}
    return genuine(left, right, out=out)
torch.matmul = matmul
"""


@pytest.mark.failure("wrong_result")
@pytest.mark.parametrize(
    ("dtype", "precision", "act", "name"),
    [
        ("float16", "highest", "genuine(left, right, out=out); out[5, 7] += 0.25; return out", "gpu.matmul_fp16"),
        ("bfloat16", "highest", "return out", "gpu.matmul_bf16"),
        ("float32", "highest", "genuine(left, right, out=out); out *= 1.0002; return out", "gpu.matmul_fp32"),
        ("float32", "highest", "torch.set_float32_matmul_precision('high')", "gpu.matmul_fp32"),
        ("float32", "high", "genuine(left, right, out=out); out[-1, -1] = float('nan'); return out", "gpu.matmul_tf32"),
    ],
    ids=["one value", "nothing written", "all a little", "tf32 in place of float32", "nan"],
)
def test_wrong_numbers_fail_with_the_numbers(tampered, described, dtype, precision, act, name):
    python = tampered(MATMUL.format(dtype=dtype, precision=precision, act=act))
    result = prove(python, described)
    found = checks_of(result)[name]
    assert (found["status"], found["code"]) == ("failed", "wrong_result"), found
    assert found["values"]["wrong"] >= 1
    print(found["evidence"])
    other = "gpu.matmul_bf16" if name != "gpu.matmul_bf16" else "gpu.matmul_fp32"
    assert checks_of(result)[other]["status"] == "passed"


@pytest.mark.failure("wrong_result")
def test_a_wrong_convolution_fails(tampered, described):
    python = tampered(
        "genuine = torch.nn.functional.conv2d\n"
        "def conv2d(x, w, padding):\n"
        "    y = genuine(x, w, padding=padding)\n"
        "    return y * 1.001 if x.is_cuda else y\n"
        "torch.nn.functional.conv2d = conv2d\n"
    )
    assert checks_of(prove(python, described))["gpu.conv2d"]["code"] == "wrong_result"


def test_a_wrong_kernel_of_the_driver_keeps_torch_from_the_gpu(torch_python, described, change_driver_kernel):
    change_driver_kernel("mad.lo.u32 %r8", "mad.hi.u32 %r8")
    found = checks_of(prove(torch_python, described))
    assert found["gpu.driver_kernel"]["code"] == "wrong_result"
    assert found["gpu.copy"]["status"] == "not_run"


# ---- processes that misbehave ---------------------------------------------------------------------------------------


def timed_out(act):
    return pytest.param(act, "timed_out", marks=pytest.mark.failure("timed_out"))


def crashed(act):
    return pytest.param(act, "crashed", marks=pytest.mark.failure("crashed"))


@pytest.mark.parametrize(
    ("act", "code"),
    [
        timed_out("torch.cuda._sleep(10**14); torch.cuda.synchronize()"),
        timed_out("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"),
        crashed("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        crashed("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    ],
    ids=["a kernel that never ends", "stopped", "crashed", "killed"],
)
def test_a_process_that_misbehaves_on_the_gpu_is_named_and_the_gpu_is_free_again(
    tampered, torch_python, described, act, code
):
    python = tampered(MATMUL.format(dtype="float16", precision="highest", act=act))
    result = prove(python, described, time_limit=12.0)
    assert result["verdict"] == "failed"
    assert checks_of(result)["gpu.matmul_fp16"]["code"] == code
    assert checks_of(result)["gpu.matmul_fp32"]["status"] == "passed"
    again = prove(torch_python, described)
    assert again["verdict"] == "passed", again["reason"]


# ---- a GPU that others use ------------------------------------------------------------------------------------------


@pytest.mark.failure("busy")
def test_a_gpu_in_use_is_left_alone_and_not_passed(torch_python, described, hold):
    process = hold()
    result = prove(torch_python, described)
    assert (result["verdict"], result["proven"]) == ("not_run", "static"), result["reason"]
    busy = [gpu for gpu in result["gpus"] if gpu["verdict"] == "not_run"]
    assert busy[0]["checks"][0]["code"] == "busy"
    print(result["reason"])
    assert process.poll() is None


def test_a_gpu_in_use_is_proven_where_the_user_says_so(torch_python, described, hold):
    hold()
    result = prove(torch_python, described, when_busy="run")
    assert result["verdict"] == "passed", result["reason"]


@pytest.mark.failure("cuda_2")
def test_a_full_gpu_fails_for_want_of_memory(torch_python, described, hold):
    hold(leave_mib=64)
    result = prove(torch_python, described, when_busy="run")
    checks = [check for gpu in result["gpus"] for check in gpu["checks"]]
    assert {check["code"] for check in checks if check["status"] == "failed"} == {"cuda_2"}, result["reason"]
    assert result["verdict"] == "failed"
    assert "memory is full" in result["remedy"]
