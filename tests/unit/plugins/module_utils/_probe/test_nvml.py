"""NVML through a library that is made of Python functions with the same calling convention."""

from __future__ import annotations

import ctypes

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import nvml
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable

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


def test_everything_that_a_gpu_says():
    assert _read(FakeNvml()) == {
        "driver_version": "580.95.05",
        "cuda_version": "13.0",
        "gpus": [
            {
                "pci_address": "0000:01:00.0",
                "pci_device_id": "2f04",
                "subsystem_id": "10de:205e",
                "name": "NVIDIA GeForce RTX 5070",
                "uuid": "GPU-0000",
                "compute_capability": "12.0",
                "memory_mib": 12227,
                "persistence_mode": True,
                "mig": None,
                "virtualization_mode": 2,
                "pcie": {"width": 8, "max_width": None, "speed_gts": 2.5, "max_speed_gts": 32.0},
                "compute_pids": [],
            }
        ],
        "problems": [],
    }


def test_compute_processes_are_asked_for_with_room_for_all():
    assert _read(FakeNvml(pids=range(5000, 5040)))["gpus"][0]["compute_pids"] == list(range(5000, 5040))


def test_a_mismatch_of_module_and_library_is_said_with_its_code():
    with pytest.raises(Unreadable, match=r"nvmlInit_v2 failed with 18 \(Driver/library version mismatch\)"):
        _read(FakeNvml(failing={"nvmlInit_v2": MISMATCH}))


def test_a_lost_gpu_is_a_problem_and_the_others_are_described():
    found = _read(FakeNvml(gpus=2, failing={("nvmlDeviceGetHandleByIndex_v2", 0): LOST}))
    assert [gpu["pci_address"] for gpu in found["gpus"]] == ["0000:02:00.0"]
    assert found["problems"] == [["gpus[nvml 0]", "nvmlDeviceGetHandleByIndex_v2 failed with 15 (GPU is lost)"]]


def test_a_value_that_cannot_be_read_is_null_and_named():
    found = _read(FakeNvml(failing={"nvmlDeviceGetUUID": 999}))
    assert found["gpus"][0]["uuid"] is None
    assert found["problems"] == [["gpus[0000:01:00.0].uuid", "nvmlDeviceGetUUID failed with 999 (Unknown Error)"]]


def test_a_function_that_an_old_library_lacks_is_null_and_no_problem():
    found = _read(FakeNvml(without=["nvmlDeviceGetCudaComputeCapability"]))
    assert found["gpus"][0]["compute_capability"] is None
    assert found["problems"] == []


def test_structures_have_the_sizes_of_nvml_h():
    assert ctypes.sizeof(nvml._Pci) == 68
    assert ctypes.sizeof(nvml._Process) == 24
    assert ctypes.sizeof(nvml._Memory) == 24
