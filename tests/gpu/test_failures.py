"""Failures that a healthy machine can be put into: the driver's own answers to broken programs, hidden devices, hung kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import driver_kernel, judge
from proving import checks_of, prove

LOAD = "ld.global.u32 %r6, [%a5];"
SYNCHRONIZE = 'cuda("cuCtxSynchronize")'
ROOT = Path(__file__).resolve().parents[2]


def cuda(number, old, new):
    return pytest.param(f"cuda_{number}", old, new, marks=pytest.mark.failure(f"cuda_{number}"))


# ---- what the driver answers to broken programs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        cuda(1, "BLOCK = 32", "BLOCK = 4096"),
        cuda(2, "size = COUNT * 4", "size = 1 << 50"),
        cuda(101, "ctypes.byref(context), 0, device", "ctypes.byref(context), 0, 99"),
        cuda(218, "mad.lo.u32 %r8", "no.such.instruction %r8"),
        cuda(222, ".version 6.0", ".version 99.0"),
        cuda(500, 'b"blend"', 'b"blond"'),
        cuda(700, LOAD, "mov.u64 %a5, 8; " + LOAD),
        cuda(716, LOAD, "add.s64 %a5, %a5, 1; " + LOAD),
    ],
    ids=[
        "a block larger than any GPU has",
        "more memory than any GPU has",
        "a GPU that nobody counted",
        "PTX that does not compile",
        "PTX of a newer driver",
        "a kernel that the module lacks",
        "memory that is not the kernel's",
        "an address that is not aligned",
    ],
)
def test_the_drivers_own_error_is_named_and_keeps_torch_from_the_gpu(
    torch_python, described, change_driver_kernel, code, old, new
):
    change_driver_kernel(old, new)
    result = prove(torch_python, described)
    for gpu in result["gpus"]:
        found = {check["id"]: check for check in gpu["checks"]}
        assert found["gpu.driver_kernel"]["code"] == code, found["gpu.driver_kernel"]
        assert found["gpu.copy"]["status"] == "not_run"
    print(result["reason"])
    assert result["verdict"] == "failed"
    assert len(result["gpus"]) == described["count"]


@pytest.fixture(scope="module")
def machine_code(torch_python, described, tmp_path_factory):
    """The kernel compiled for GPUs of another generation, by the assembler that comes with triton."""
    find = "import os, triton; print(os.path.join(os.path.dirname(triton.__file__), 'backends/nvidia/bin/ptxas'))"
    done = subprocess.run([torch_python, "-I", "-c", find], capture_output=True, text=True, check=False)
    ptxas = done.stdout.strip()
    if not Path(ptxas).is_file():
        pytest.skip("needs the ptxas that comes with triton")
    folder = tmp_path_factory.mktemp("cubin")
    text = driver_kernel.PTX.rstrip(b"\0").decode()
    other = "sm_80" if described["sm"] != "sm_80" else "sm_90"
    (folder / "blend.ptx").write_text(text.replace("sm_50", other).replace(".version 6.0", ".version 7.8"))
    subprocess.run([ptxas, f"-arch={other}", "-o", folder / "blend.cubin", folder / "blend.ptx"], check=True)
    return (folder / "blend.cubin").read_bytes()


@pytest.mark.failure("cuda_209")
def test_machine_code_for_another_gpu_is_no_kernel_image(torch_python, described, change_driver_kernel, machine_code):
    change_driver_kernel("COUNT = 8191", f"PTX = bytes.fromhex('{machine_code.hex()}')\nCOUNT = 8191")
    found = checks_of(prove(torch_python, described))["gpu.driver_kernel"]
    assert found["code"] == "cuda_209", found


@pytest.mark.failure("cuda_200")
def test_damaged_machine_code_is_an_invalid_image(torch_python, described, change_driver_kernel, machine_code):
    damaged = machine_code[:18] + b"\x3e\x00" + machine_code[20:]  # an ELF file of the CPU's
    change_driver_kernel("COUNT = 8191", f"PTX = bytes.fromhex('{damaged.hex()}')\nCOUNT = 8191")
    found = checks_of(prove(torch_python, described))["gpu.driver_kernel"]
    assert found["code"] == "cuda_200", found


# ---- a torch that lacks the GPU's architecture ----------------------------------------------------------------------


@pytest.mark.failure("cuda_209")
def test_a_torch_whose_machine_code_the_gpu_cannot_use_fails_in_its_first_kernel(tampered, described):
    """The driver is told to leave torch's machine code alone, and torch has no PTX for this GPU: as if it were for others."""
    own = judge.capability(described["sm"])
    if any(judge.capability(flag.replace("compute", "sm")) <= own for flag in described["flags"] if "compute" in flag):
        pytest.skip("this torch has PTX that the driver can compile for this GPU")
    result = prove(tampered("import os\nos.environ['CUDA_FORCE_PTX_JIT'] = '1'\n"), described)
    failed = [check for gpu in result["gpus"] for check in gpu["checks"] if check["status"] == "failed"]
    print(result["reason"])
    assert {check["code"] for check in failed} == {"cuda_209"}, failed
    assert checks_of(result)["gpu.driver_kernel"]["status"] == "passed"
    assert all("has no code for this GPU" in check["remedy"] for check in failed)


@pytest.mark.failure("arch_missing")
def test_a_torch_that_names_other_architectures_than_the_gpus_is_not_ready(tampered, described):
    result = prove(tampered("torch._C._cuda_getArchFlags = lambda: 'sm_35 sm_37'\n"), described, sm=[])
    assert checks_of(result)["torch.arch"]["code"] == "arch_missing"
    assert described["sm"] in checks_of(result)["torch.arch"]["evidence"]
    assert result["verdict"] == "failed"


# ---- hidden devices -------------------------------------------------------------------------------------------------


@pytest.mark.failure("devices_hidden")
def test_devices_that_the_environment_hides_from_itself_are_no_pass(tampered, described):
    result = prove(tampered("import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\n"), described)
    found = checks_of(result)
    assert found["torch.devices"]["code"] == "devices_hidden", found["torch.devices"]
    assert "CUDA_VISIBLE_DEVICES is ''" in found["torch.devices"]["evidence"]
    assert found["gpu.driver_kernel"]["status"] == "passed"
    assert found["gpu.copy"]["status"] == "not_run"
    assert result["verdict"] == "failed"


HIDDEN = """
import json, sys
sys.path[:0] = {paths!r}
from proving import prove
print(json.dumps(prove({python!r}, {described!r})))
"""


def test_device_nodes_that_lead_elsewhere_are_no_pass(torch_python, described):
    found = proven_without(Path("/dev/null"), torch_python, described)["driver.init"]
    assert found["status"] == "failed"
    assert found["code"].startswith("cuda_"), found


@pytest.mark.failure("device_permission")
def test_device_nodes_that_are_closed_to_the_account_are_named(torch_python, described, tmp_path):
    closed = tmp_path / "closed"
    closed.touch(mode=0o600)
    found = proven_without(closed, torch_python, described)["driver.init"]
    assert (found["status"], found["code"]) == ("failed", "device_permission"), found
    assert "/dev/nvidia" in found["evidence"]


def proven_without(other, torch_python, described):
    """The checks where another file stands in for every GPU's node: in a mount namespace, so that nobody else notices."""
    nodes = sorted(Path("/dev").glob("nvidia[0-9]*"))
    script = "".join(f"mount --bind {other} {node} && " for node in nodes)
    tried = subprocess.run(["unshare", "--mount", "sh", "-c", f"{script}true"], capture_output=True, check=False)
    if not nodes or tried.returncode:
        pytest.skip(f"cannot hide /dev/nvidia0: {tried.stderr!r}")
    paths = [str(ROOT / "collections"), str(ROOT / "tests/gpu")]
    code = HIDDEN.format(paths=paths, python=torch_python, described=described)
    command = ["unshare", "--mount", "sh", "-c", script + 'exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(result["reason"], "|", result["remedy"])
    assert result["verdict"] == "failed"
    return checks_of(result)


# ---- the driver's process hangs, is stopped, is killed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        pytest.param("hung", LOAD, "spin: bra.uni spin; " + LOAD, marks=pytest.mark.failure("hung")),
        pytest.param(
            "hung", SYNCHRONIZE, f"os.kill(os.getpid(), 19); {SYNCHRONIZE}", marks=pytest.mark.failure("hung")
        ),
        pytest.param(
            "crashed", SYNCHRONIZE, f"os.kill(os.getpid(), 9); {SYNCHRONIZE}", marks=pytest.mark.failure("crashed")
        ),
    ],
    ids=["a kernel that never ends", "stopped", "killed"],
)
def test_what_does_not_come_back_from_the_gpu_costs_the_limit_and_the_gpu_is_free_again(
    torch_python, described, change_driver_kernel, monkeypatch, code, old, new
):
    change_driver_kernel(old, new)
    result = prove(torch_python, described, gpu_limit=8.0)
    for gpu in result["gpus"]:
        assert gpu["checks"][0]["code"] == code, gpu["checks"][0]
    assert result["verdict"] == "failed"
    assert result["ms"] < 25_000  # the limit, the import of torch, and the patience with what was killed
    monkeypatch.undo()
    again = prove(torch_python, described)
    assert again["verdict"] == "passed", again["reason"]
