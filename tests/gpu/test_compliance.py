"""The shipped rules, judging this machine: what a real driver and a real GPU say of themselves has to be understood."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ansible", reason="the playbook needs ansible-core")
pytest.importorskip("jmespath", reason="the rules need jmespath")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The report that playbooks/check_compliance.yml writes of this machine, which has no environment of ours."""
    folder = tmp_path_factory.mktemp("compliance")
    inventory = folder / "hosts.ini"
    inventory.write_text(
        f"here ansible_connection=local ansible_python_interpreter={sys.executable}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "ansible", "playbook", "-i", str(inventory)]
    command += [str(ROOT / "playbooks/check_compliance.yml"), "-e", "gpu_compliance_fail_on=never"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    written = folder / ".gpufleet/compliance/report/report.json"
    assert written.is_file(), done.stdout + done.stderr
    return json.loads(written.read_text(encoding="utf-8"))


def test_the_machine_is_observed_and_not_called_ready(report: dict) -> None:
    host = report["hosts"][0]
    assert host["outcome"] == "not_ready", host["reason"]
    assert host["gpus"][0]["uuid"].startswith("GPU-")


def test_every_rule_of_a_gpu_is_met_or_says_that_it_does_not_apply(report: dict) -> None:
    results = report["hosts"][0]["results"]
    unclear = {
        rule: result for rule, result in results.items() if result["status"] == "error" and rule.startswith("gpu.")
    }
    assert unclear == {}
    serious = {rule["id"] for rule in report["rules"] if rule["severity"] in ("critical", "high")}
    failed = {
        rule: results[rule] for rule in serious if rule.startswith("gpu.") and results[rule]["status"] == "failed"
    }
    assert failed == {}
    assert results["gpu.answers"]["status"] == results["driver.floor"]["status"] == "passed"
