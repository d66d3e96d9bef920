"""The proof's own process against a simulated driver whose every call can fail, hang or crash. Only the libraries are simulated."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import child, failures, runner
from simulated import address

GPUS = 16  # as many as the simulated driver can have
FIRST, SECOND = address(0), address(1)
LIMIT = 1.5  # seconds for a call of the driver; 60 on hosts
NOW = 4.0  # seconds within which a fault is told that needs no limit


@pytest.fixture
def host(simulated):
    """A host with a kernel module that serves two GPUs, and with their nodes."""
    root = simulated.folder / "host"
    for number, where in enumerate((FIRST, SECOND)):
        folder = root / "proc/driver/nvidia/gpus" / where
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t NVIDIA GeForce RTX 5070\nDevice Minor: \t {number}\n")
    (root / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).touch()
        (root / "dev" / name).chmod(0o666)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3").touch(mode=0o755)

    def no_program(argv, time_limit):
        raise Unreadable(f"{argv[0]} is not installed")

    return Host(root=str(root), machine="x86_64", run=no_program)


@pytest.fixture
def prove(environment, simulated, host, monkeypatch):
    """Prove at level quick within so many seconds; nothing may be left behind."""
    genuine = child.clean_environment

    def led_to_the_simulated_driver(directory):
        return {**genuine(directory), "LD_LIBRARY_PATH": simulated.search_path}

    monkeypatch.setattr(child, "clean_environment", led_to_the_simulated_driver)

    def run(seconds=NOW, leaves=0, **request):
        started = time.monotonic()
        result = runner.prove(
            [{"name": "base", "python": environment.python}], time_limit=60.0, gpu_limit=LIMIT, host=host, **request
        )
        assert time.monotonic() - started < seconds
        assert len(simulated.users()) == leaves
        return result["environments"][0]

    return run


def of_driver(result, name):
    return next(check for check in result["checks"] if check["id"] == name)


def kernel_on(result, where):
    checks = next(gpu["checks"] for gpu in result["gpus"] if gpu["pci_address"] == where)
    return next(check for check in checks if check["id"] == "gpu.driver_kernel")


def cases(*numbers):
    return [pytest.param(number, f"cuda_{number}", marks=pytest.mark.failure(f"cuda_{number}")) for number in numbers]


# ---- what is right --------------------------------------------------------------------------------------------------


def test_the_simulated_driver_passes_the_drivers_checks(prove):
    result = prove()
    assert of_driver(result, "driver.init")["evidence"] == "libcuda speaks CUDA 13.0 and sees 2 GPUs"
    assert of_driver(result, "driver.gpus")["status"] == "passed"
    assert [kernel_on(result, where)["status"] for where in (FIRST, SECOND)] == ["passed", "passed"]
    assert {gpu["name"] for gpu in result["gpus"]} == {"NVIDIA GeForce RTX 5070"}


def test_a_slow_driver_is_waited_for(prove, simulated):
    simulated.faults("cuInit * 1 delay 300", "cuCtxCreate_v2 1 1 delay 300")
    result = prove()
    assert [kernel_on(result, where)["status"] for where in (FIRST, SECOND)] == ["passed", "passed"]
    assert of_driver(result, "driver.init")["ms"] >= 300


# ---- error codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), cases(3, 34, 100, 304, 802, 803, 804, 999))
def test_what_keeps_cuda_from_starting_is_named_with_a_remedy(prove, simulated, number, code):
    simulated.faults(f"cuInit * 1 return {number}")
    result = prove()
    found = of_driver(result, "driver.init")
    assert (found["status"], found["code"]) == ("failed", code)
    assert "cuInit: CUDA_ERROR_" in found["evidence"]
    assert f"({number})" in found["evidence"]
    assert len(found["remedy"]) > 20
    assert (result["verdict"], result["gpus"]) == ("failed", [])
    assert "driver.init" in result["reason"]


FAULTS = {
    "cuCtxCreate_v2": (2, 46, 101, 999),
    "cuModuleLoadData": (200, 209, 218, 221, 222),
    "cuLaunchKernel": (801,),
    "cuCtxSynchronize": (214, 220, 700, 702, 710, 714, 715, 719),
}
ALL = [int(row.code[len("cuda_") :]) for row in failures.TABLE.values() if row.title.startswith("CUDA_ERROR_")]
LIKELY = [(function, number) for function, numbers in FAULTS.items() for number in numbers]
ELSE = [("cuCtxSynchronize", number) for number in ALL if number not in {number for _function, number in LIKELY}]


def several_at_once(faults):
    """As many faults in one case as a host has GPUs, but for one."""
    cases = []
    for start in range(0, len(faults), GPUS - 1):
        chosen = faults[start : start + GPUS - 1]
        codes = [f"cuda_{number}" for _function, number in chosen]
        cases.append(pytest.param(chosen, marks=pytest.mark.failure(*codes), id=f"{codes[0]} to {codes[-1]}"))
    return cases


@pytest.mark.parametrize("faults", several_at_once(LIKELY + ELSE))
def test_what_fails_on_one_gpu_is_named_and_the_others_are_proven(prove, simulated, faults):
    simulated.gpus(len(faults) + 1)
    simulated.faults(*(f"{function} {index} 1 return {number}" for index, (function, number) in enumerate(faults)))
    result = prove()
    for index, (function, number) in enumerate(faults):
        found = kernel_on(result, address(index))
        assert (found["status"], found["code"]) == ("failed", f"cuda_{number}")
        assert found["evidence"].startswith(f"{function}: ")
        assert found["evidence"].endswith(f"({number})")
        assert found["remedy"] == failures.remedy(f"cuda_{number}")
    assert kernel_on(result, address(len(faults)))["status"] == "passed"
    assert result["verdict"] == "failed"


def test_an_error_that_nobody_knows_keeps_its_number(prove, simulated):
    simulated.faults("cuCtxSynchronize 1 1 return 998")
    found = kernel_on(prove(), SECOND)
    assert (found["code"], found["evidence"]) == ("cuda_998", "cuCtxSynchronize: unknown error (998)")


@pytest.mark.failure("wrong_result")
def test_wrong_numbers_fail_the_gpu_that_computed_them(prove, simulated):
    simulated.faults("cuLaunchKernel 1 1 wrong 3")
    result = prove()
    found = kernel_on(result, SECOND)
    assert found["code"] == "wrong_result"
    assert "3 of 8191 values are wrong, for example value 8188" in found["evidence"]
    assert kernel_on(result, FIRST)["status"] == "passed"


# ---- GPUs that are not there ----------------------------------------------------------------------------------------


@pytest.mark.failure("gpu_missing")
def test_a_gpu_that_the_module_serves_and_cuda_does_not_show_is_missing(prove, simulated):
    simulated.gpus(1, of="cuda")
    result = prove()
    found = of_driver(result, "driver.gpus")
    assert (found["code"], found["evidence"]) == ("gpu_missing", f"CUDA does not show {SECOND}")
    assert kernel_on(result, FIRST)["status"] == "passed"
    assert result["verdict"] == "failed"


@pytest.mark.failure("cuda_100")
def test_hidden_devices_are_no_pass(prove, simulated):
    simulated.gpus(0, of="cuda")
    result = prove()
    assert of_driver(result, "driver.init")["code"] == "cuda_100"
    assert result["verdict"] == "failed"


@pytest.mark.failure("cuda_719")
def test_a_gpu_that_is_lost_in_the_middle_fails_although_it_began_well(prove, simulated):
    simulated.faults("cuMem* 1 4 return 719")
    result = prove()
    assert kernel_on(result, SECOND)["code"] == "cuda_719"
    assert "cuMemcpyHtoD_v2" in kernel_on(result, SECOND)["evidence"]
    assert kernel_on(result, FIRST)["status"] == "passed"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(None, "library_missing", marks=pytest.mark.failure("library_missing")),
        pytest.param(b"", "damaged_driver", marks=pytest.mark.failure("damaged_driver")),
        pytest.param(b"\x7fELF damaged", "damaged_driver", marks=pytest.mark.failure("damaged_driver")),
    ],
    ids=["missing", "empty", "damaged"],
)
@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a driver of its own")
def test_a_libcuda_that_cannot_be_loaded_is_named(prove, simulated, content, code):
    library = simulated.folder / "cuda/libcuda.so.1"
    library.unlink()
    if content is not None:
        library.write_bytes(content)
    found = of_driver(prove(), "driver.init")
    assert found["code"] == code
    assert "libcuda.so.1" in found["evidence"]


# ---- hung, crashed, killed, stopped ---------------------------------------------------------------------------------


@pytest.mark.failure("hung")
@pytest.mark.parametrize(
    "fault",
    ["cuCtxCreate_v2 1 1 hang 0", "cuCtxSynchronize 1 1 hang 0", "cuCtxDestroy_v2 1 1 hang 0"],
    ids=["before its work", "in its work", "after its work"],
)
def test_a_gpu_that_hangs_costs_the_limit_and_the_other_is_proven(prove, simulated, fault):
    simulated.faults(fault, "cuLaunchKernel 1 1 delay 300")  # the other is ready first
    result = prove(seconds=LIMIT + NOW)
    found = kernel_on(result, SECOND)
    assert (found["status"], found["code"]) == ("failed", "hung")
    assert kernel_on(result, FIRST)["status"] == "passed"
    assert result["verdict"] == "failed"


@pytest.mark.failure("hung")
@pytest.mark.parametrize(
    "fault",
    ["nvmlInit_v2 * 1 hang 0", "nvmlDeviceGetComputeRunningProcesses_v3 1 1 signal 19", "cuInit * 1 hang 0"],
    ids=["NVML hangs", "NVML stops the process", "CUDA hangs"],
)
def test_a_driver_that_does_not_answer_costs_the_limit(prove, simulated, fault):
    simulated.faults(fault)
    result = prove(seconds=LIMIT + NOW)
    assert (result["verdict"], result["proven"]) == ("failed", None)
    assert [of_driver(result, name)["code"] for name in ("driver.init", "driver.end")] == ["hung", "hung"]
    assert of_driver(result, "python.end")["status"] == "passed"


@pytest.mark.failure("hung")
def test_a_process_that_the_driver_stops_costs_the_limit(prove, simulated):
    simulated.faults("cuCtxSynchronize 1 1 signal 19")
    assert kernel_on(prove(seconds=LIMIT + NOW), SECOND)["code"] == "hung"


@pytest.mark.failure("crashed")
@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("nvmlInit_v2 * 1 signal 7", "SIGBUS"),
        ("cuInit * 1 signal 4", "SIGILL"),
        ("cuModuleLoadData 1 1 signal 11", "SIGSEGV"),
        ("cuCtxSynchronize 1 1 signal 9", "SIGKILL"),
    ],
)
def test_a_driver_that_crashes_is_named_by_its_signal(prove, simulated, fault, name):
    simulated.faults(fault)
    result = prove()
    found = of_driver(result, "driver.end")
    assert (found["code"], result["verdict"]) == ("crashed", "failed")
    assert name in found["evidence"]


@pytest.mark.failure("unkillable")
def test_a_process_that_the_kernel_does_not_let_go_is_reported_and_not_waited_for(
    prove, simulated, unkillable, monkeypatch
):
    monkeypatch.setattr(child, "KILL_PATIENCE", 0.5)
    simulated.faults("cuInit * 1 hang 0")
    unkillable()
    result = prove(seconds=LIMIT + NOW, leaves=1)
    found = of_driver(result, "driver.init")
    (left,) = simulated.users()
    assert (found["code"], result["verdict"]) == ("unkillable", "failed")
    assert f"process {left} did not end" in found["evidence"]


# ---- causes that the host shows -------------------------------------------------------------------------------------


def put(host, path, content):
    os.makedirs(os.path.dirname(host.root + path), exist_ok=True)
    with open(host.root + path, "wb") as file:
        file.write(content)


@pytest.mark.failure("device_missing")
def test_a_node_that_is_not_there_is_why_cuda_does_not_start(prove, simulated, host):
    os.unlink(host.root + "/dev/nvidia-uvm")
    simulated.faults("cuInit * 1 return 999")
    found = of_driver(prove(), "driver.init")
    assert found["code"] == "device_missing"
    assert found["evidence"].endswith("(/dev/nvidia-uvm: No such file or directory)")


@pytest.mark.failure("device_permission")
def test_a_node_that_is_closed_to_the_account_is_why_cuda_does_not_start(prove, simulated, host):
    os.chmod(host.root + "/dev/nvidiactl", 0o000)
    simulated.faults("cuInit * 1 return 100")
    result = prove()
    found = of_driver(result, "driver.init")
    assert found["code"] == "device_permission"
    assert f"'{result['user']}' may not open /dev/nvidiactl" in found["evidence"]
    assert "mode 0000" in found["evidence"]


@pytest.mark.failure("uvm_not_loaded")
def test_a_module_that_is_not_loaded_is_why_cuda_does_not_start(prove, simulated, host):
    put(host, "/sys/module/nvidia/refcnt", b"1\n")
    simulated.faults("cuInit * 1 return 999")
    assert of_driver(prove(), "driver.init")["code"] == "uvm_not_loaded"


@pytest.mark.failure("suspended")
def test_a_host_that_slept_is_why_cuda_does_not_start(prove, simulated, host):
    put(host, "/sys/power/suspend_stats/success", b"2\n")
    simulated.faults("cuInit * 1 return 999")
    assert of_driver(prove(), "driver.init")["code"] == "suspended"


@pytest.mark.failure("fabric_manager_stopped")
def test_a_fabric_manager_that_does_not_run_is_why_cuda_does_not_start(prove, simulated, host):
    put(host, "/proc/1/comm", b"systemd\n")
    simulated.faults("cuInit * 1 return 802")
    assert of_driver(prove(), "driver.init")["code"] == "fabric_manager_stopped"


@pytest.mark.failure("cuda_34")
def test_the_stub_that_was_loaded_is_named_by_its_path(prove, simulated):
    simulated.faults("cuInit * 1 return 34")
    found = of_driver(prove(), "driver.init")
    assert f"the libcuda that was loaded is {simulated.folder}/cuda/libcuda.so.1" in found["evidence"]


@pytest.mark.failure("gpu_lost")
def test_a_gpu_that_fell_off_the_bus_is_told_from_one_that_failed(prove, simulated, host):
    put(host, f"/sys/bus/pci/devices/{SECOND}/config", b"\xff" * 64)
    simulated.faults("cuCtxSynchronize * 1 return 719")
    result = prove()
    assert kernel_on(result, SECOND)["code"] == "gpu_lost"
    assert f"{SECOND} does not answer on PCI Express" in kernel_on(result, SECOND)["evidence"]
    assert kernel_on(result, FIRST)["code"] == "cuda_719"


@pytest.mark.failure("gpu_lost", "nvml_15")
def test_a_gpu_that_nvml_calls_lost_is_lost_and_not_only_missing(prove, simulated):
    simulated.gpus(1, of="cuda")
    simulated.faults("nvmlDeviceGetHandleByIndex_v2 1 1 return 15")
    result = prove()
    assert of_driver(result, "driver.gpus")["code"] == "gpu_lost"
    assert kernel_on(result, FIRST)["status"] == "passed"


@pytest.mark.failure("gpu_not_served")
def test_a_gpu_that_was_given_to_another_kernel_driver_is_not_served(prove, simulated, host):
    folder = f"/sys/bus/pci/devices/{SECOND}"
    for name, value in {"vendor": b"0x10de\n", "class": b"0x030000\n", "device": b"0x2f04\n"}.items():
        put(host, f"{folder}/{name}", value)
    os.symlink("../../../bus/pci/drivers/vfio-pci", host.root + f"{folder}/driver")
    simulated.gpus(1, of="cuda")
    found = of_driver(prove(), "driver.gpus")
    assert found["code"] == "gpu_not_served"
    assert "vfio-pci" in found["evidence"]


@pytest.mark.failure("compute_mode")
def test_a_gpu_in_prohibited_mode_is_told_from_one_that_is_held(prove, simulated):
    simulated.faults("nvmlDeviceGetComputeMode 1 1 value 2", "cuCtxCreate_v2 * 1 return 46")
    result = prove()
    assert kernel_on(result, SECOND)["code"] == "compute_mode"
    assert f"{SECOND} is in compute mode PROHIBITED" in kernel_on(result, SECOND)["evidence"]
    assert kernel_on(result, FIRST)["code"] == "cuda_46"


@pytest.mark.failure("mig_empty")
def test_mig_without_instances_is_why_cuda_shows_no_gpu(prove, simulated):
    simulated.gpus(0, of="cuda")
    simulated.faults("nvmlDeviceGetMigMode * 1 value 1")
    found = of_driver(prove(), "driver.init")
    assert found["code"] == "mig_empty"
    assert f"MIG is on at {FIRST}, and there is no instance" in found["evidence"]


@pytest.mark.failure("mig_one_instance")
def test_mig_is_why_cuda_shows_one_gpu_of_two(prove, simulated):
    simulated.gpus(1, of="cuda")
    simulated.faults("nvmlDeviceGetMigMode * 1 value 1", "nvmlDeviceGetMigDeviceHandleByIndex * 1 value 2")
    assert of_driver(prove(), "driver.gpus")["code"] == "mig_one_instance"


def versions(host, loaded, installed):
    words = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {loaded}  Release Build\n"
    put(host, "/proc/driver/nvidia/version", words.encode())
    put(host, f"/usr/lib/x86_64-linux-gnu/libcuda.so.{installed}", b"")
    os.symlink(f"libcuda.so.{installed}", host.root + "/usr/lib/x86_64-linux-gnu/libcuda.so.1")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(803, "cuda_803", marks=pytest.mark.failure("cuda_803")),
        pytest.param(36, "driver_not_loaded_yet", marks=pytest.mark.failure("driver_not_loaded_yet")),
    ],
)
def test_an_installed_driver_that_is_not_loaded_is_named_with_both_versions(prove, simulated, host, number, code):
    versions(host, "570.86.10", "580.95.05")
    simulated.faults(f"cuInit * 1 return {number}")
    found = of_driver(prove(), "driver.init")
    assert found["code"] == code
    assert "driver 570.86.10 is loaded, 580.95.05 is installed" in found["evidence"]


@pytest.mark.failure("shadowed_driver")
def test_a_libcuda_of_another_driver_that_comes_first_is_named_by_its_path(prove, simulated, host):
    versions(host, "580.95.05", "580.95.05")
    library = simulated.folder / "cuda/libcuda.so.1"
    library.rename(library.with_name("libcuda.so.550.54.14"))
    library.symlink_to("libcuda.so.550.54.14")
    simulated.faults("cuInit * 1 return 803")
    found = of_driver(prove(), "driver.init")
    assert found["code"] == "shadowed_driver"
    assert "cuda/libcuda.so.550.54.14 was loaded, the installed driver is 580.95.05" in found["evidence"]
