"""What the script of the proof finds out before torch has to compute."""

from __future__ import annotations

import os

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import torch_checks


@pytest.mark.failure("triton_missing", "compiler_missing", "headers_missing")
def test_what_the_compiler_lacks_is_named_in_the_order_in_which_it_is_needed(monkeypatch, tmp_path):
    def code():
        problem = torch_checks.compiler_problem()
        return problem and (problem.code, isinstance(problem, torch_checks.NotRun))

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch_checks.importlib.util, "find_spec", lambda name: None)
    assert code() == ("triton_missing", False)
    monkeypatch.setattr(torch_checks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch_checks.shutil, "which", lambda name: None)
    assert code() == ("compiler_missing", True)
    monkeypatch.setattr(torch_checks.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(torch_checks.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert code() == ("headers_missing", True)
    (tmp_path / "Python.h").touch()
    assert code() is None


@pytest.mark.failure("noexec")
def test_a_folder_from_which_nothing_may_be_loaded_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(torch_checks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch_checks.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(torch_checks.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert torch_checks.compiler_problem() is None
    monkeypatch.setattr(torch_checks.os, "statvfs", lambda path: type("State", (), {"f_flag": os.ST_NOEXEC}))
    problem = torch_checks.compiler_problem()
    assert problem.code == "noexec"
    assert str(tmp_path) in str(problem)


SEEN = {"index": 0, "name": "NVIDIA GeForce RTX 5070", "sm": "sm_120"}


@pytest.mark.failure("torch_misses_gpu")
@pytest.mark.parametrize("device", [None, {**SEEN, "name": "NVIDIA GeForce RTX 4090"}, {**SEEN, "sm": "sm_89"}])
def test_a_gpu_that_torch_sees_otherwise_than_the_driver_is_no_gpu_to_prove_on(device):
    gpu = {"pci_address": "0000:01:00.0", "name": "NVIDIA GeForce RTX 5070", "sm": "sm_120"}
    with pytest.raises(torch_checks.Failed) as raised:
        torch_checks.check_identity(device, gpu)
    assert raised.value.code == "torch_misses_gpu"
    assert torch_checks.check_identity(SEEN, gpu)[0] == "torch device 0 is NVIDIA GeForce RTX 5070, sm_120"
