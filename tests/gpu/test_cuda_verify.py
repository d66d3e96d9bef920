"""The proof on a real GPU: what is right passes, what is wrong fails for its own reason."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import driver_kernel, judge, runner

HOLD = """
import sys, torch
kept = [torch.ones(1, device="cuda")]
leave = int(sys.argv[1]) << 20
if leave:
    size = 1 << 30
    while size >= 1 << 20:
        if torch.cuda.mem_get_info()[0] > leave + size:
            kept.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        else:
            size //= 2
print("ready", flush=True)
sys.stdin.read()
"""


def prove(python, described, level="quick", time_limit=120.0, **request):
    request = {"level": level, "expect": {"torch": described["version"]}, "sm": [described["sm"]], **request}
    started = time.monotonic()
    result = runner.run_checks(python, request, None, time_limit)
    assert time.monotonic() - started < time_limit + 6
    return result


def checks_of(result):
    found = {check["id"]: check for check in result["checks"]}
    for gpu in result["gpus"]:
        found.update({check["id"]: check for check in gpu["checks"]})
    return found


@pytest.fixture
def hold(torch_python):
    """Another process with a CUDA context that leaves so many MiB free (0: takes next to nothing)."""
    processes = []

    def start(leave_mib=0):
        command = [torch_python, "-I", "-c", HOLD, str(leave_mib)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in processes:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture
def tampered(torch_python):
    """A virtual environment that sees the machine's torch, changed by a module that its site-packages loads at start."""
    root = Path(tempfile.mkdtemp(prefix="proof-gpu-test-"))
    root.chmod(0o755)
    command = [torch_python, "-I", "-m", "venv", "--without-pip", "--system-site-packages", str(root)]
    subprocess.run(command, check=True)
    site = next(root.glob("lib/python3*/site-packages"))
    # Where the Python under test is a virtual environment itself, the new one sees the system's packages, not that one's.
    where = [torch_python, "-I", "-c", "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))"]
    packages = subprocess.run(where, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    (site / "torch_of_the_machine.pth").write_text(packages + "\n", encoding="utf-8")

    # Not sitecustomize: Ubuntu has one of its own, which comes first.
    (site / "torch_tampered.pth").write_text("import tampered_torch\n", encoding="ascii")

    def change(code):
        (site / "tampered_torch.py").write_text("import torch\n" + code, encoding="ascii")
        return str(root / "bin" / "python")

    yield change
    shutil.rmtree(root)


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
    assert prove(torch_python, described)["verdict"] == "passed"
    assert set(glob.glob("/tmp/gpufleet-proof-*")) <= before
    commands = [Path(path).read_bytes() for path in glob.glob("/proc/[0-9]*/cmdline") if os.path.exists(path)]
    assert not [command for command in commands if b"companions" in command]


# ---- what is not as expected ----------------------------------------------------------------------------------------


def test_another_version_than_expected_fails_although_the_kernels_are_right(torch_python, described):
    result = prove(torch_python, described, expect={"torch": "2.6.0+cu124"})
    assert result["verdict"] == "failed"
    assert checks_of(result)["torch.version"]["code"] == "wrong_version"
    assert {gpu["verdict"] for gpu in result["gpus"]} == {"passed"}


def test_an_architecture_without_code_fails(torch_python, described):
    result = prove(torch_python, described, level="static", sm=["sm_35"])
    assert checks_of(result)["torch.arch"]["code"] == "arch_missing"


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


def test_a_wrong_convolution_fails(tampered, described):
    python = tampered(
        "genuine = torch.nn.functional.conv2d\n"
        "def conv2d(x, w, padding):\n"
        "    y = genuine(x, w, padding=padding)\n"
        "    return y * 1.001 if x.is_cuda else y\n"
        "torch.nn.functional.conv2d = conv2d\n"
    )
    assert checks_of(prove(python, described))["gpu.conv2d"]["code"] == "wrong_result"


def test_a_wrong_kernel_of_the_driver_keeps_torch_from_the_gpu(torch_python, described, monkeypatch):
    tamper(monkeypatch, "mad.lo.u32 %r8", "mad.hi.u32 %r8")
    found = checks_of(prove(torch_python, described))
    assert found["gpu.driver_kernel"]["code"] == "wrong_result"
    assert found["gpu.copy"]["status"] == "not_run"


def test_a_program_that_the_driver_cannot_compile_is_named(torch_python, described, monkeypatch):
    tamper(monkeypatch, "mad.lo.u32 %r8", "no.such.instruction %r8")
    found = checks_of(prove(torch_python, described))["gpu.driver_kernel"]
    assert found["code"] == "cuda_218", found


def tamper(monkeypatch, old, new):
    genuine = runner.source_of
    assert old in genuine(driver_kernel)
    monkeypatch.setattr(runner, "source_of", lambda module: genuine(module).replace(old, new))


# ---- processes that misbehave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("torch.cuda._sleep(10**14); torch.cuda.synchronize()", "timed_out"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timed_out"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed"),
    ],
    ids=["a kernel that never ends", "stopped", "crashed"],
)
def test_a_process_that_misbehaves_on_the_gpu_is_named_and_the_gpu_is_free_again(
    tampered, torch_python, described, act, code
):
    python = tampered(MATMUL.format(dtype="float16", precision="highest", act=act))
    result = prove(python, described, time_limit=25.0)
    assert result["verdict"] == "failed"
    assert checks_of(result)["gpu.matmul_fp16"]["code"] == code
    assert checks_of(result)["gpu.matmul_fp32"]["status"] == "passed"
    again = prove(torch_python, described)
    assert again["verdict"] == "passed", again["reason"]


# ---- a GPU that others use ------------------------------------------------------------------------------------------


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


def test_a_full_gpu_fails_for_want_of_memory(torch_python, described, hold):
    hold(leave_mib=64)
    result = prove(torch_python, described, when_busy="run")
    checks = [check for gpu in result["gpus"] for check in gpu["checks"]]
    assert {check["code"] for check in checks if check["status"] == "failed"} == {"cuda_2"}, result["reason"]
    assert result["verdict"] == "failed"
    assert "memory is full" in result["remedy"]
