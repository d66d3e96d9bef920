"""libcuda through a library that is made of Python functions with the same calling convention."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import libcuda
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable

UUID = bytes(range(16))


class FakeCuda:
    """One GPU's worth of libcuda. ``failing`` maps a function to its error code."""

    def __init__(self, failing=None, uuid_v2=True):
        self.failing = failing or {}
        if uuid_v2:
            self.cuDeviceGetUuid_v2 = self._uuid

    def __getattribute__(self, name):
        if name.startswith("cu") and name in object.__getattribute__(self, "failing"):
            return lambda *arguments: self.failing[name]
        return object.__getattribute__(self, name)

    def cuGetErrorName(self, code, text):  # noqa: N802
        if code != 803:
            return 1
        text._obj.value = b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
        return 0

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal.value
        return 0

    def cuDeviceGetName(self, buffer, size, device):  # noqa: N802
        buffer.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def cuDeviceTotalMem_v2(self, size, device):  # noqa: N802
        size._obj.value = 81079 * 1024 * 1024
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: 9, 76: 0, 33: 0x9B, 34: 0, 50: 0x1}[attribute.value]
        return 0

    def _uuid(self, value, device):
        value._obj.octets[:] = UUID
        return 0

    cuDeviceGetUuid = _uuid  # noqa: N815


def _read(library):
    return libcuda.read(Host(load_library=lambda names: library))


@pytest.mark.parametrize("uuid_v2", [True, False])
def test_everything_that_a_gpu_says(uuid_v2):
    assert _read(FakeCuda(uuid_v2=uuid_v2)) == {
        "result": 0,
        "error": None,
        "cuda_version": "12.8",
        "gpus": [
            {
                "pci_address": "0001:9b:00.0",
                "name": "NVIDIA H100 80GB HBM3",
                "uuid": "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f",
                "compute_capability": "9.0",
                "memory_mib": 81079,
            }
        ],
    }


def test_a_refused_initialisation_is_a_result_with_its_name():
    found = _read(FakeCuda(failing={"cuInit": 803}))
    assert found == {
        "result": 803,
        "error": "cuInit failed with 803 (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)",
        "cuda_version": "12.8",
        "gpus": [],
    }


def test_an_error_without_a_name_keeps_its_number():
    assert (
        _read(FakeCuda(failing={"cuInit": 4242}))["error"] == "cuInit failed with 4242 (no name for it in this driver)"
    )


def test_a_call_that_fails_after_initialisation_is_said():
    with pytest.raises(Unreadable, match="cuDeviceGetName failed with 999"):
        _read(FakeCuda(failing={"cuDeviceGetName": 999}))


def test_the_callers_cuda_variables_are_dropped_and_others_kept(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_INJECTION64_PATH", "/tmp/evil.so")
    monkeypatch.setenv("NOT_CUDA", "1")
    _read(FakeCuda())
    import os

    assert [name for name in os.environ if name.startswith("CUDA_")] == []
    assert os.environ["NOT_CUDA"] == "1"
