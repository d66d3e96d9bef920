"""NVML through a library that is made of Python functions with the same calling convention."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import nvml
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable
from nvml_answers import Recorder, Replay, nameless

HERE = Path(__file__).resolve().parent
NOT_SUPPORTED, LOST, MISMATCH, SMALL = 3, 15, 18, 7


class FakeNvml:
    """Two GPUs' worth of NVML. ``failing`` maps a function, or (function, GPU), to its error code."""

    def __init__(self, gpus=1, failing=None, pids=(), without=()):
        self.gpus, self.failing, self.pids = gpus, failing or {}, list(pids)
        for name in without:
            setattr(self, name, None)
        self.without = set(without)

    def __getattribute__(self, name):
        value = object.__getattribute__(self, name)
        if name.startswith("nvml"):
            if name in self.without:
                raise AttributeError(name)
            if name in self.failing:
                return lambda *arguments: self.failing[name]
        return value

    class nvmlErrorString:  # noqa: N801
        restype = None

        def __new__(cls, code):
            return {MISMATCH: b"Driver/library version mismatch", LOST: b"GPU is lost"}.get(code, b"Unknown Error")

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def nvmlSystemGetDriverVersion(self, buffer, size):  # noqa: N802
        buffer.value = b"580.95.05"
        return 0

    def nvmlSystemGetCudaDriverVersion_v2(self, version):  # noqa: N802
        version._obj.value = 13000
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802
        handle._obj.value = 1000 + index.value
        return self.failing.get(("nvmlDeviceGetHandleByIndex_v2", index.value), 0)

    def nvmlDeviceGetPciInfo_v3(self, handle, pci):  # noqa: N802
        pci._obj.domain, pci._obj.bus, pci._obj.device = 0, handle.value - 999, 0
        pci._obj.device_id, pci._obj.subsystem_id = 0x2F0410DE, 0x205E10DE
        return 0

    def nvmlDeviceGetName(self, handle, buffer, size):  # noqa: N802
        buffer.value = b"NVIDIA GeForce RTX 5070"
        return 0

    def nvmlDeviceGetUUID(self, handle, buffer, size):  # noqa: N802
        buffer.value = b"GPU-0000"
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):  # noqa: N802
        major._obj.value, minor._obj.value = 12, 0
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):  # noqa: N802
        memory._obj.total = 12227 * 1024 * 1024
        return 0

    def nvmlDeviceGetMigMode(self, handle, current, pending):  # noqa: N802
        return NOT_SUPPORTED

    def nvmlDeviceGetVirtualizationMode(self, handle, mode):  # noqa: N802
        mode._obj.value = 2
        return 0

    def nvmlDeviceGetPersistenceMode(self, handle, value):  # noqa: N802
        value._obj.value = 1
        return 0

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle, value):  # noqa: N802
        value._obj.value = 8
        return 0

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle, value):  # noqa: N802
        value._obj.value = 4294967295
        return 0

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle, value):  # noqa: N802
        value._obj.value = 1
        return 0

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle, value):  # noqa: N802
        value._obj.value = 5
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle, count, table):  # noqa: N802
        room, count._obj.value = count._obj.value, len(self.pids)
        if room < len(self.pids):
            return SMALL
        for entry, pid in zip(table or (), self.pids):
            entry.pid = pid
        return 0


def _read(library):
    return nvml.read(Host(load_library=lambda names: library))


def _answers(**changes):
    """The simulated GeForce, with other answers to some questions."""
    recording = json.loads((HERE / "simulated/nvml-geforce-rtx-5070.json").read_text())
    recording["devices"][0].update({question.replace("__", " "): answers for question, answers in changes.items()})
    return recording


def test_everything_that_a_card_for_desktops_says():
    assert _read(Replay(_answers())) == {
        "driver_version": "580.95.05",
        "cuda_version": "13.0",
        "lost": 0,
        "problems": [],
        "gpus": [
            {
                "pci_address": "0000:01:00.0",
                "pci_device_id": "2f04",
                "subsystem_id": "10de:205e",
                "name": "NVIDIA GeForce RTX 5070",
                "uuid": "GPU-00000000-0000-0000-0000-000000000001",
                "compute_capability": "12.0",
                "memory_mib": 12227,
                "persistence_mode": False,
                "virtualization_mode": 0,
                "pcie": {"width": 16, "max_width": 16, "speed_gts": 2.5, "max_speed_gts": 32.0},
                "compute_pids": [],
                "lost": False,
                "health": {
                    "ecc": "not_applicable",
                    "retired_pages": "not_applicable",
                    "remapped_rows": "not_applicable",
                    "recovery_action": "none",
                    "throttle": ["gpu_idle"],
                    "temperature_c": 41,
                    "power": {"limit_w": 250.0, "default_limit_w": 250.0, "max_limit_w": 287.5, "draw_w": 11.21},
                    "compute_mode": "default",
                    "bar1_mib": 16384,
                    "mig": "not_applicable",
                },
            }
        ],
    }


@pytest.mark.parametrize("path", sorted((HERE / "recorded/nvml").glob("*.json")), ids=lambda path: path.stem)
def test_what_was_recorded_on_a_real_card_is_read_without_a_gap(path):
    recording = json.loads(path.read_text())
    assert recording["about"]["simulated"] is False
    seen = _read(Replay(recording))
    assert seen["problems"] == []
    assert [gpu["name"] for gpu in seen["gpus"]] == recording["about"]["cards"]
    for gpu in seen["gpus"]:
        assert None not in gpu["health"].values()
        assert gpu["health"]["bar1_mib"] > 0
        assert 0 < gpu["health"]["temperature_c"] < 120
        assert gpu["health"]["power"]["limit_w"] <= gpu["health"]["power"]["max_limit_w"]


def test_a_recording_says_again_what_was_recorded():
    recorder = Recorder(FakeNvml(gpus=2, pids=[7, 8], without=["nvmlDeviceGetUUID"]))
    seen = _read(recorder)
    again = json.loads(json.dumps(nameless(recorder.recording)))
    assert _read(Replay(again)) == seen
    assert again["absent"].count("nvmlDeviceGetUUID") == 2
    assert [answer[0] for answer in again["devices"][1]["nvmlDeviceGetComputeRunningProcesses_v3"]] == [SMALL, 0]


def test_a_recording_names_no_real_card():
    told = {"a": ["GPU-1f3f0bd4-5f1f-4c9b-8a52-0ff25cb5d1ad", 7], "b": "MIG-1f3f0bd4-5f1f-4c9b-8a52-0ff25cb5d1ad of it"}
    assert nameless(told) == {
        "a": ["GPU-00000000-0000-0000-0000-000000000001", 7],
        "b": "MIG-00000000-0000-0000-0000-000000000002 of it",
    }


def test_a_question_that_nobody_recorded_is_an_error():
    with pytest.raises(AssertionError, match="nobody recorded 'nvmlInit_v2'"):
        _read(Replay({"absent": [], "words": {}, "system": {}, "devices": []}))


def _health(**changes):
    seen = _read(Replay(_answers(**changes)))
    return seen["gpus"][0]["health"], seen["problems"]


def test_a_card_with_ecc_tells_its_errors():
    status = {"version": 0x1000068, "counters": [0] * 11, "threshold_exceeded": 1}
    health, problems = _health(
        nvmlDeviceGetEccMode=[[0, 1, 1]],
        nvmlDeviceGetTotalEccErrors__0__0=[[0, 5]],
        nvmlDeviceGetTotalEccErrors__1__0=[[0, 2]],
        nvmlDeviceGetTotalEccErrors__0__1=[[0, 5_000_000_000]],
        nvmlDeviceGetTotalEccErrors__1__1=[[0, 3]],
        nvmlDeviceGetSramEccErrorStatus=[[0, status]],
    )
    assert health["ecc"] == {
        "enabled": True,
        "corrected_volatile": 5,
        "uncorrected_volatile": 2,
        "corrected_total": 5_000_000_000,
        "uncorrected_total": 3,
        "sram_threshold_exceeded": True,
    }
    assert problems == []


def test_a_card_whose_ecc_is_off_says_that_and_has_no_counters():
    ecc = _health(nvmlDeviceGetEccMode=[[0, 0, 0]])[0]["ecc"]
    assert (ecc["enabled"], ecc["uncorrected_volatile"]) == (False, "not_applicable")


def test_pages_and_rows_that_were_taken_out_of_use():
    health, _ = _health(
        nvmlDeviceGetRetiredPages__0=[[SMALL, 12]],
        nvmlDeviceGetRetiredPages__1=[[0, 0]],
        nvmlDeviceGetRetiredPagesPendingStatus=[[0, 1]],
        nvmlDeviceGetRemappedRows=[[0, 4, 1, 1, 0]],
    )
    assert health["retired_pages"] == {"single_bit": 12, "double_bit": 0, "pending": True}
    assert health["remapped_rows"] == {"corrected": 4, "uncorrected": 1, "pending": True, "failure": False}


def test_every_reason_for_slower_clocks_has_a_name():
    assert _health(nvmlDeviceGetCurrentClocksEventReasons=[[0, 0]])[0]["throttle"] == []
    reasons = _health(nvmlDeviceGetCurrentClocksEventReasons=[[0, 0x68]])[0]["throttle"]
    assert reasons == ["hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown"]
    assert _health(nvmlDeviceGetCurrentClocksEventReasons=[[0, 1 << 40]])[0]["throttle"] == ["unknown_40"]


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ([0, {"code": 0, "value": 2}], "node_reboot"),
        ([0, {"code": 0, "value": 99}], "unknown_99"),
        ([0, {"code": 3, "value": 0}], "not_applicable"),
        ([0, {"code": 2, "value": 0}], None),
        ([2], None),
    ],
    ids=["known", "newer than this", "no such thing", "older driver", "older driver that refuses the call"],
)
def test_what_the_driver_asks_for_to_recover(answer, action):
    field = {"field": 230, "scope": 0, "timestamp": 1, "latency": 1, "kind": 1}
    code, *told = answer
    health, problems = _health(nvmlDeviceGetFieldValues__1=[[code, *({**field, **part} for part in told)]])
    assert health["recovery_action"] == action
    assert problems == []


def test_a_laptop_has_no_limit_of_power_and_still_tells_its_draw():
    power = _health(nvmlDeviceGetPowerManagementLimit=[[3]], nvmlDeviceGetPowerManagementLimitConstraints=[[3]])[0][
        "power"
    ]
    assert (power["limit_w"], power["max_limit_w"], power["draw_w"]) == ("not_applicable", "not_applicable", 11.21)


def test_a_split_card_names_its_parts():
    recording = _answers(
        nvmlDeviceGetMigMode=[[0, 1, 1]],
        nvmlDeviceGetMaxMigDeviceCount=[[0, 3]],
        nvmlDeviceGetMigDeviceHandleByIndex__0=[[0, {"device": 1}]],
        nvmlDeviceGetMigDeviceHandleByIndex__1=[[6]],
        nvmlDeviceGetMigDeviceHandleByIndex__2=[[0, {"device": 2}]],
    )
    for number in (1, 2):
        recording["devices"].append(
            {
                "nvmlDeviceGetUUID 96": [[0, f"MIG-{number}"]],
                "nvmlDeviceGetName 96": [[0, "NVIDIA H100 MIG 1g.10gb"]],
                "nvmlDeviceGetMemoryInfo": [[0, {"total": 10 << 30, "free": 0, "used": 0}]],
            }
        )
    mig = _read(Replay(recording))["gpus"][0]["health"]["mig"]
    assert (mig["enabled"], mig["pending"]) == (True, True)
    assert mig["instances"] == [
        {"uuid": "MIG-1", "name": "NVIDIA H100 MIG 1g.10gb", "memory_mib": 10240},
        {"uuid": "MIG-2", "name": "NVIDIA H100 MIG 1g.10gb", "memory_mib": 10240},
    ]


def test_a_card_that_could_be_split_and_is_not_has_no_parts():
    assert _health(nvmlDeviceGetMigMode=[[0, 0, 1]])[0]["mig"] == {"enabled": False, "pending": True, "instances": []}


@pytest.mark.parametrize(("code", "lost"), [(LOST, True), (16, False)])
def test_a_card_that_is_lost_while_it_is_asked_is_asked_no_more(code, lost):
    library = Replay(_answers(nvmlDeviceGetRemappedRows=[[code]], nvmlDeviceGetTemperature__0=[]))
    seen = _read(library)
    (gpu,) = seen["gpus"]
    assert (gpu["lost"], gpu["health"]["temperature_c"], gpu["health"]["power"]) == (lost, None, None)
    assert [what for what, _why in seen["problems"]] == ["gpus[0000:01:00.0].health.remapped_rows"]


def test_compute_processes_are_asked_for_with_room_for_all():
    assert _read(FakeNvml(pids=range(5000, 5040)))["gpus"][0]["compute_pids"] == list(range(5000, 5040))


def test_a_mismatch_of_module_and_library_is_said_with_its_code():
    with pytest.raises(Unreadable, match=r"nvmlInit_v2 failed with 18 \(Driver/library version mismatch\)"):
        _read(FakeNvml(failing={"nvmlInit_v2": MISMATCH}))


def test_a_lost_gpu_is_a_problem_and_the_others_are_described():
    found = _read(FakeNvml(gpus=2, failing={("nvmlDeviceGetHandleByIndex_v2", 0): LOST}))
    assert [gpu["pci_address"] for gpu in found["gpus"]] == ["0000:02:00.0"]
    assert found["lost"] == 1
    [[where, why]] = found["problems"]
    assert where == "gpus[nvml 0]"
    assert why.startswith(
        "nvmlDeviceGetHandleByIndex_v2 failed with 15 (GPU is lost): The GPU fell off the bus. Switch the machine off"
    )


def test_a_value_that_cannot_be_read_is_null_and_named():
    found = _read(FakeNvml(failing={"nvmlDeviceGetUUID": 999}))
    assert found["gpus"][0]["uuid"] is None
    [[where, why]] = found["problems"]
    assert where == "gpus[0000:01:00.0].uuid"
    assert why.startswith("nvmlDeviceGetUUID failed with 999 (Unknown Error): ")


def test_a_function_that_an_old_library_lacks_is_null_and_no_problem():
    found = _read(FakeNvml(without=["nvmlDeviceGetCudaComputeCapability"]))
    assert found["gpus"][0]["compute_capability"] is None
    assert found["problems"] == []


def test_structures_have_the_sizes_of_nvml_h():
    assert ctypes.sizeof(nvml._Pci) == 68
    assert ctypes.sizeof(nvml._Process) == 24
    assert ctypes.sizeof(nvml._Memory) == 24
    assert ctypes.sizeof(nvml._SramStatus) == nvml._SRAM_STATUS_1 & 0xFFFFFF
    assert ctypes.sizeof(nvml._FieldValue) == 40
