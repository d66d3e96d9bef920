# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alerts of docs/alerts.yml: promtool reads them, each one fires where it has to and stays silent where it must not."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import promtool
import pytest
import yaml
from ansible_collections.gpufleet.workstation.plugins.module_utils._report import metrics
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import render_prometheus

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "docs/alerts.yml"
INSTANCE = 'instance="ws-1:9100"'
XID = f'gpufleet_xid_total{{{INSTANCE},pci_address="0000:01:00.0",xid="79",severity="critical"}}'

# Alert, series with their values (a sample each 10 minutes), when it is looked at, and whether it fires.
CASES = [
    ("GpuMissing", {f"gpufleet_gpu_missing{{{INSTANCE}}}": "1x300"}, "1h", True),
    ("GpuMissing", {f"gpufleet_gpu_missing{{{INSTANCE}}}": "0x300"}, "1h", False),
    ("GpuNotProven", {f'gpufleet_proof_passed{{{INSTANCE},environment="base",level="quick"}}': "0x300"}, "25h", True),
    ("GpuNotProven", {f'gpufleet_proof_passed{{{INSTANCE},environment="base",level="quick"}}': "0x300"}, "23h", False),
    (
        "GpuNotProven",
        {
            f'gpufleet_proof_passed{{{INSTANCE},environment="base",level="quick"}}': "0x60 stale",
            f'gpufleet_proof_passed{{{INSTANCE},environment="base",level="static"}}': "_x60 0x300",
        },
        "26h",
        True,
    ),
    ("GpuNotProven", {f'gpufleet_proof_passed{{{INSTANCE},environment="base",level="quick"}}': "1x300"}, "25h", False),
    ("GpuXid", {XID: "_x10 1x20"}, "2h", True),
    ("GpuXid", {XID: "2x20 3x20"}, "4h", True),
    ("GpuXid", {XID: "2x300"}, "5h", False),
    ("GpuXid", {XID.replace("critical", "low"): "_x10 1x20"}, "2h", False),
    ("GpuHostSilent", {f"gpufleet_host_checked_timestamp_seconds{{{INSTANCE}}}": "0x300"}, "4h", True),
    ("GpuHostSilent", {f"gpufleet_host_checked_timestamp_seconds{{{INSTANCE}}}": "0+600x300"}, "4h", False),
    ("HostNotTrainReady", {'gpufleet_train_ready{host="ws-1"}': "0x300"}, "2h", True),
    ("HostNotTrainReady", {'gpufleet_train_ready{host="ws-1"}': "1x300"}, "2h", False),
    (
        "HostNotTrainReady",
        {'gpufleet_train_ready{host="ws-1"}': "0x300", 'gpufleet_host_outcome{host="ws-1",outcome="not_asked"}': "1x300"},
        "2h",
        False,
    ),
    (
        "HostNotTrainReady",
        {'gpufleet_train_ready{host="ws-1"}': "0x300", 'gpufleet_host_outcome{host="ws-2",outcome="not_asked"}': "1x300"},
        "2h",
        True,
    ),
    ("ComplianceReportOld", {"gpufleet_report_timestamp_seconds": "0x300"}, "37h", True),
    ("ComplianceReportOld", {"gpufleet_report_timestamp_seconds": "0x300"}, "35h", False),
    ("WaiverEnds", {'gpufleet_waiver_expiry_timestamp_seconds{rule="a.b",hosts="ws-*",ticket="T-1"}': "600000x300"}, "1h", True),
    ("WaiverEnds", {'gpufleet_waiver_expiry_timestamp_seconds{rule="a.b",hosts="ws-*",ticket="T-1"}': "900000x300"}, "1h", False),
]  # fmt: skip


@pytest.fixture
def ask() -> Callable[..., str]:
    """Ask promtool; returns what it said where it was not content."""

    def call(*arguments: Any) -> str:
        try:
            command = [promtool.path(), *map(str, arguments)]
        except promtool.Missing as error:
            pytest.skip(str(error))
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr if done.returncode else ""

    return call


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_promtool_reads_them(ask: Callable[..., str]) -> None:
    assert ask("check", "rules", ALERTS) == ""


def test_every_alert_is_played_both_ways() -> None:
    outcomes: dict[str, set[bool]] = {}
    for name, _series, _at, fires in CASES:
        outcomes.setdefault(name, set()).add(fires)
    assert outcomes == {rule["alert"]: {True, False} for rule in rules()}


@pytest.mark.parametrize(("name", "series", "at", "fires"), CASES)
def test_it_fires_where_it_has_to(
    ask: Callable[..., str], tmp_path: Path, name: str, series: dict[str, str], at: str, fires: bool
) -> None:
    # promtool's own test of an alert repeats all of its annotations.
    query = {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})', "eval_time": at}
    play = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "10m",
        "tests": [
            {
                "interval": "10m",
                "input_series": [{"series": key, "values": values} for key, values in series.items()],
                "promql_expr_test": [{**query, "exp_samples": [{"labels": "{}", "value": 1}] if fires else []}],
            }
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    assert ask("test", "rules", tmp_path / "play.yml") == ""


def test_they_ask_for_metrics_that_are_written() -> None:
    written = Path(metrics.__file__).read_text(encoding="utf-8") + Path(render_prometheus.__file__).read_text(
        encoding="utf-8"
    )
    for rule in rules():
        for name in re.findall(r"\bgpufleet_\w+", rule["expr"]):
            assert f'"{name}"' in written or f'"{name[len("gpufleet_") :]}"' in written, f"{rule['alert']}: {name}"
