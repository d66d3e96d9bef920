"""When a host gets its timer, and what is written for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import timer

from .conftest import ANSIBLE, ROOT, Fleet

ROLE = ROOT / "roles/gpu_compliance"
UNITS = ("gpufleet-proof.service", "gpufleet-proof.timer", "gpufleet-proof.path")


def watched(fleet: Fleet, name: str) -> bool:
    """Whether the role ran on a host."""
    return (fleet.folder / name / "gpu_compliance").exists()


def test_a_host_that_is_changed_or_proven_gets_its_timer_where_the_inventory_says_so(fleet: Fleet) -> None:
    fleet.add("changed", ready=False, gpu_compliance_timer_state="present")
    fleet.add("proven", gpu_compliance_timer_state="present")
    fleet.add("other", ready=False)
    assert fleet.play().status == 0
    assert [watched(fleet, name) for name in ("changed", "proven", "other")] == [True, True, False]


def test_a_host_on_which_nothing_is_to_be_done_is_not_asked_once_more(fleet: Fleet) -> None:
    fleet.add("ws", gpu_compliance_timer_state="present")
    fleet.stamp("ws", "before.json", "base")
    assert fleet.play().status == 0
    assert not watched(fleet, "ws")


def test_check_mode_installs_no_timer(fleet: Fleet) -> None:
    fleet.add("ws", ready=False, gpu_compliance_timer_state="present")
    assert fleet.play("--check").status == 0
    assert not watched(fleet, "ws")


def test_the_timer_of_a_host_whose_proof_failed_is_left_as_it_was(fleet: Fleet) -> None:
    fleet.add("ws", ready=False, proof="failed", gpu_compliance_timer_state="present")
    (fleet.folder / "ws/proof.json").write_text(
        json.dumps({"failed": True, "msg": "base is not proven"}), encoding="utf-8"
    )
    assert fleet.play().status != 0
    assert not watched(fleet, "ws")


def test_watch_installs_it_on_its_own(fleet: Fleet) -> None:
    fleet.add("ws")
    assert fleet.play(playbook="watch").status == 0
    assert watched(fleet, "ws")


def test_a_removal_takes_the_timer_along_and_a_dry_run_leaves_it(fleet: Fleet) -> None:
    fleet.add("ws")
    fleet.play(playbook="remove")
    assert not watched(fleet, "ws")
    fleet.play("-e", "gpufleet_remove=true", "--tags", "runtime", playbook="remove")
    assert not watched(fleet, "ws")
    fleet.play("-e", "gpufleet_remove=true", playbook="remove")
    assert watched(fleet, "ws")


# ---- what is written ------------------------------------------------------------------------------------------------


PROOF = {
    "name": "base", "python": "/opt/gpufleet/envs/base/current/bin/python", "user": "root", "sm": ["sm_120"],
    "expect": {"torch": "2.9.1+cu128", "companions": {}},
}  # fmt: skip
PLAN: dict[str, Any] = {
    "environments": [
        {"name": "base", "root": "/opt/gpufleet/envs", "proof": PROOF},
        {"name": "new", "root": "/opt/gpufleet/envs", "proof": None},
    ],
    "proof": {"level": "full", "required_level": "quick", "time_limit": 0, "max_age": 168, "gpus": None},
}


@pytest.fixture
def rendered(tmp_path: Path) -> Any:
    """Render the role's templates as Ansible does; returns their folder."""

    def render(plan: dict[str, Any] = PLAN, **variables: Any) -> Path:
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
            "vars": {
                "ansible_python_interpreter": sys.executable,
                "gpu_compliance_plan": plan,
                "__gpu_compliance_installed": {"python": "/usr/bin/python3"},
            },
            "tasks": [
                {
                    "name": "Render",
                    "ansible.builtin.template": {"src": f"{ROLE}/templates/{{{{ item }}}}.j2", "dest": f"{tmp_path}/{{{{ item }}}}"},
                    "loop": ["proof.json", *UNITS],
                }
            ],
        }  # fmt: skip
        (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
        command = [ANSIBLE, "-i", "localhost,", "-c", "local", "-e", json.dumps(variables), tmp_path / "play.yml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return tmp_path

    return render


def test_the_program_reads_what_the_role_writes(rendered: Any) -> None:
    document = json.loads((rendered() / "proof.json").read_text(encoding="utf-8"))
    assert timer.settings_of(document) == timer.Settings(
        environments=[timer.Environment("base", PROOF["python"], "root", ["sm_120"])],
        root="/opt/gpufleet/envs",
        level="full",
        max_age=168,
        time_limit=None,
        gpus=None,
        textfile_directory="/var/lib/prometheus/node-exporter",
    )


def test_level_limit_gpus_and_folder_are_those_that_were_set(rendered: Any) -> None:
    proof = {**PLAN["proof"], "time_limit": 900, "gpus": ["0000:01:00.0"]}
    folder = rendered(
        {**PLAN, "proof": proof}, gpu_compliance_level="static", gpu_compliance_textfile_directory="/srv/node"
    )
    settings = timer.settings_of(json.loads((folder / "proof.json").read_text(encoding="utf-8")))
    assert (settings.level, settings.time_limit, settings.gpus) == ("static", 900, ["0000:01:00.0"])
    assert settings.textfile_directory == "/srv/node"
    assert "TimeoutStartSec=1800\n" in (folder / UNITS[0]).read_text(encoding="utf-8")
    assert "ReadWritePaths=-/srv/node\n" in (folder / UNITS[0]).read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_has_nothing_against_the_units(rendered: Any) -> None:
    folder = rendered(gpu_compliance_schedule="*-*-* 02,14:30")
    service = folder / UNITS[0]
    # The program is not on this machine.
    text = service.read_text(encoding="utf-8").replace("/usr/local/libexec/gpufleet/proof", "/dev/null")
    service.write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", *(folder / unit for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_proof_can_get_longer_than_its_environments_may_take(rendered: Any) -> None:
    text = (rendered() / UNITS[0]).read_text(encoding="utf-8")
    longest = max(timer.runner.TIME_LIMITS.values()) + timer.runner.BURN_SECONDS
    limit = next(int(line.partition("=")[2]) for line in text.splitlines() if line.startswith("TimeoutStartSec="))
    assert limit >= longest + timer._PACKAGES_LIMIT
