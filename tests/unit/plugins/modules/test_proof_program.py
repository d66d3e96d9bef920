"""The program of a host's timer is put in place once, and is root's alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

MODULE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.workstation.plugins.modules import proof_program
with patch_module_args(json.load(sys.stdin)):
    proof_program.main()
"""
COLLECTIONS = Path(__file__).resolve().parents[4] / "collections"


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Run the module as a process of its own, which has imported what it imports on a host."""

    def call(status: int = 0, **parameters: Any) -> dict[str, Any]:
        given = json.dumps({"path": str(tmp_path / "proof"), **parameters})
        done = subprocess.run(
            [sys.executable, "-c", MODULE],
            input=given,
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    return call


def test_it_is_written_once(run: Any, tmp_path: Path) -> None:
    assert run()["changed"]
    path = tmp_path / "proof"
    assert path.stat().st_mode & 0o7777 == 0o644
    before = path.stat().st_ino
    answer = run()
    assert (answer["changed"], answer["python"]) == (False, sys.executable)
    assert path.stat().st_ino == before
    assert os.listdir(tmp_path) == ["proof"]


def test_what_differs_is_replaced(run: Any, tmp_path: Path) -> None:
    run()
    path = tmp_path / "proof"
    program = path.read_bytes()
    path.write_bytes(b"something else")
    assert run()["changed"]
    assert path.read_bytes() == program
    path.chmod(0o666)
    assert run()["changed"]
    assert path.stat().st_mode & 0o7777 == 0o644


def test_check_mode_says_so_and_writes_nothing(run: Any, tmp_path: Path) -> None:
    assert run(_ansible_check_mode=True)["changed"]
    assert run(_ansible_check_mode=True, path=str(tmp_path / "none/proof"))["changed"]
    assert os.listdir(tmp_path) == []


def test_without_its_folder_the_path_is_named(run: Any, tmp_path: Path) -> None:
    assert f"{tmp_path}/none/proof was not written" in run(1, path=str(tmp_path / "none/proof"))["msg"]


def test_it_holds_what_a_proof_runs_and_nothing_of_the_controllers(run: Any, tmp_path: Path) -> None:
    run()
    names = zipfile.ZipFile(tmp_path / "proof").namelist()
    parts = {name.rpartition("module_utils/")[2] for name in names}
    needed = {
        "_proof/torch_checks.py",
        "_proof/driver_kernel.py",
        "_proof/watch.py",
        "_probe/nvml.py",
        "_report/metrics.py",
    }
    assert needed <= parts
    assert not [name for name in names if "plugin_utils" in name or "_driver/" in name or name.startswith("ansible/")]


def test_started_without_a_configuration_it_says_which_is_missing(run: Any, tmp_path: Path) -> None:
    if os.path.exists("/etc/gpufleet/proof.json"):
        pytest.skip("this machine has the timer itself")
    run()
    done = subprocess.run(
        [sys.executable, "-I", "-B", tmp_path / "proof"], cwd="/", env={}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpufleet-proof: /etc/gpufleet/proof.json")
