"""The observation of a host whose driver is simulated, call by call: only the libraries and the tree of files are not real."""

from __future__ import annotations

import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import failures

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
LIMIT = 1.0  # seconds; 10 on hosts


@pytest.fixture
def look(debian, simulated):
    """Observe within so many seconds; nothing may be left behind."""
    debian.loaded().userspace().gpu(FIRST, driver="nvidia").gpu(SECOND, driver="nvidia")

    def observed(seconds=LIMIT, cuda=True, leaves=0):
        started = time.monotonic()
        seen = observe(debian.host(load_library=simulated.load), Request(cuda=cuda, time_limit=LIMIT))
        assert time.monotonic() - started < seconds + 2
        assert len(simulated.users()) == leaves
        return seen

    return observed


def said_of(seen, what):
    return " ".join(note["why"] for note in seen["unknown"] if note["what"].startswith(what))


def test_a_healthy_driver_is_read_to_the_last_word(look):
    seen = look()
    assert [gpu["source"] for gpu in seen["gpus"]] == ["nvml", "nvml"]
    assert seen["gpus"][1]["uuid"] == "GPU-00000000-0000-0000-0000-000000000002"
    assert {(gpu["name"], gpu["sm"], gpu["memory_mib"]) for gpu in seen["gpus"]} == {
        ("NVIDIA GeForce RTX 5070", "sm_120", 12227)
    }
    assert seen["driver"]["libcuda"] == {"result": 0, "error": None, "gpus": 2}
    assert seen["driver"]["cuda_api"] == "13.0"
    assert said_of(seen, "nvml") + said_of(seen, "libcuda") + said_of(seen, "gpus") == ""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        pytest.param(number, words, marks=pytest.mark.failure(f"nvml_{number}"))
        for number, words in {
            4: "Insufficient Permissions",
            9: "Driver Not Loaded",
            18: "version mismatch",
            999: "Unknown",
        }.items()
    ],
)
def test_an_nvml_that_does_not_start_is_said_and_libcuda_still_tells(look, simulated, number, words):
    simulated.faults(f"nvmlInit_v2 * 1 return {number}")
    seen = look()
    assert f"nvmlInit_v2 failed with {number} (" in said_of(seen, "nvml")
    assert words in said_of(seen, "nvml")
    assert [gpu["source"] for gpu in seen["gpus"]] == ["libcuda", "libcuda"]


NVML_NUMBERS = [int(code[len("nvml_") :]) for code in failures.TABLE if code.startswith("nvml_")]
HALF = len(NVML_NUMBERS) // 2 + 1


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(numbers, marks=pytest.mark.failure(*(f"nvml_{number}" for number in numbers)))
        for numbers in (NVML_NUMBERS[:HALF], NVML_NUMBERS[HALF:])
    ],
    ids=["one half", "the other"],
)
def test_what_nvml_answers_for_one_gpu_is_said_of_that_gpu(look, simulated, numbers):
    simulated.gpus(len(numbers))
    simulated.faults(*(f"nvmlDeviceGetHandleByIndex_v2 {gpu} 1 return {number}" for gpu, number in enumerate(numbers)))
    seen = look(cuda=False)
    for gpu, number in enumerate(numbers):
        assert f"nvmlDeviceGetHandleByIndex_v2 failed with {number} (" in said_of(seen, f"gpus[nvml {gpu}]")


@pytest.mark.failure("nvml_15")
def test_a_gpu_that_is_lost_stays_in_the_list_and_the_other_is_complete(look, simulated):
    simulated.faults("nvmlDevice* 1 1 return 15")
    seen = look(cuda=False)
    assert [(gpu["pci_address"], gpu["source"]) for gpu in seen["gpus"]] == [(FIRST, "nvml"), (SECOND, "pci")]
    assert "GPU is lost" in said_of(seen, "gpus[nvml 1]")
    assert "the driver does not serve it" in said_of(seen, f"gpus[{SECOND}]")
    assert [gpu["pci_address"] for gpu in seen["health"]["missing_gpus"]] == [SECOND]


@pytest.mark.failure("nvml_15")
def test_a_gpu_that_is_lost_while_it_is_asked_keeps_what_it_said(look, simulated):
    simulated.faults("nvmlDevice* 1 5 return 15")
    seen = look(cuda=False)
    second = seen["gpus"][1]
    assert [gpu["uuid"] for gpu in seen["health"]["missing_gpus"]] == [second["uuid"]]
    assert len(said_of(seen, f"gpus[{SECOND}]").split("GPU is lost")) == 2, "it is asked no more"
    assert (second["name"], second["uuid"]) == ("NVIDIA GeForce RTX 5070", "GPU-00000000-0000-0000-0000-000000000002")
    assert second["persistence_mode"] is None


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("nvmlInit_v2 * 1 hang 0", "no answer within 1 s; the child process was killed"),
        ("nvmlDeviceGetName 1 1 signal 19", "no answer within 1 s; the child process was killed"),
        ("nvmlDeviceGetName 1 1 signal 11", "SIGSEGV"),
        ("nvmlDeviceGetName 1 1 signal 9", "SIGKILL"),
    ],
    ids=["hangs", "stops", "crashes", "is killed"],
)
def test_an_nvml_that_gives_no_answer_costs_its_limit_and_its_part(look, simulated, fault, why):
    simulated.faults(fault)
    seen = look()
    assert why in said_of(seen, "nvml")
    assert [gpu["source"] for gpu in seen["gpus"]] == ["libcuda", "libcuda"]


@pytest.mark.parametrize(
    ("number", "name"),
    [
        pytest.param(number, name, marks=pytest.mark.failure(f"cuda_{number}"))
        for number, name in {
            34: "STUB_LIBRARY",
            100: "NO_DEVICE",
            802: "SYSTEM_NOT_READY",
            803: "SYSTEM_DRIVER_MISMATCH",
            804: "COMPAT_NOT_SUPPORTED_ON_DEVICE",
            999: "UNKNOWN",
        }.items()
    ],
)
def test_what_cuda_answers_to_its_start_is_told(look, simulated, number, name):
    simulated.faults(f"cuInit * 1 return {number}")
    said = look()["driver"]["libcuda"]
    assert said == {"result": number, "error": f"cuInit failed with {number} (CUDA_ERROR_{name})", "gpus": 0}


def test_a_libcuda_that_hangs_costs_its_limit_and_its_part(look, simulated):
    simulated.faults("cuInit * 1 hang 0")
    seen = look()
    assert "no answer within 1 s" in said_of(seen, "libcuda")
    assert [gpu["source"] for gpu in seen["gpus"]] == ["nvml", "nvml"]


def test_a_gpu_that_libcuda_does_not_show_is_not_taken_from_the_others(look, simulated):
    simulated.gpus(1, of="cuda")
    seen = look()
    assert [gpu["source"] for gpu in seen["gpus"]] == ["nvml", "nvml"]
    assert seen["driver"]["libcuda"]["gpus"] == 1


def test_an_nvml_that_the_kernel_does_not_let_go_is_reported_and_not_waited_for(look, simulated, unkillable):
    simulated.faults("nvmlInit_v2 * 1 hang 0")
    unkillable()
    why = said_of(look(cuda=False, leaves=1), "nvml")
    (left,) = simulated.users()
    assert f"the child process {left} cannot be killed (state D)" in why
    assert "only a reboot ends that" in why
