# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped rules over what probe and planner really deliver, of made-up trees, what NVML said on real cards, and this machine.

A rule that asks for a key which is not there, or expects another shape, is an error here.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import health
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import evaluate, policies
from nvml_answers import Replay

ROOT = Path(__file__).resolve().parents[2]
PROBE = ROOT / "tests/unit/plugins/module_utils/_probe"
RULES = policies.load([ROOT / "roles/gpu_compliance/files/policies"], {}, "tuning")
NVIDIA = "NVIDIA CORPORATION <cudatools@nvidia.com>"
H100, RTX_5070 = "2330", "2f04"


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("made_up_hosts", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses and annotations look for it there
    spec.loader.exec_module(module)
    return module


MADE_UP = _module(PROBE / "conftest.py")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A made-up Debian machine; a tree of files has no kernel that could be asked for its clock."""
    monkeypatch.setattr(health, "clock_synchronized", lambda host: True)
    (tmp_path / "root").mkdir()
    return MADE_UP.Tree(tmp_path / "root").debian()


def driven(tree: Any, version: str = "580.159.04") -> Any:
    """The machine with NVIDIA's driver, of NVIDIA's packages."""
    tree.loaded(version).userspace(version)
    tree.dpkg(*((name, "install ok installed", f"{version}-1", NVIDIA) for name in ("libcuda1", "nvidia-open")))
    module = MADE_UP.elf_module({"version": version, "license": "Dual MIT/GPL"})
    return tree.file(f"/lib/modules/{MADE_UP.KERNEL}/updates/dkms/nvidia.ko", module)


def judged(host: Host, desired: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of the rules on a host as it is observed and planned, and the observation."""
    seen = observe(host, Request())
    planned = json.loads(json.dumps({"observation": seen, "plan": resolve(seen, desired or {})}))
    state = {"planned": planned, "proof": {}, "unreachable": False, "asked": True, "groups": []}
    now = datetime.datetime.now(datetime.timezone.utc)
    report = evaluate.assess(RULES, [], {"h": state}, now, None, "high", "0")
    return report["hosts"][0]["results"], planned["observation"]


def having(results: dict[str, Any], status: str) -> dict[str, list[str]]:
    return {
        rule: [item["message"] for item in result["items"]]
        for rule, result in results.items()
        if result["status"] == status
    }


def answering(tree: Any, recording: str) -> Host:
    """The machine, whose NVML says what was recorded."""
    answers = json.loads((PROBE / recording).read_text())

    def load(names: Any) -> Any:
        if "nvidia-ml" not in names[0]:
            raise Unreadable(f"{names[0]}: cannot open shared object file")
        return Replay(answers)

    return tree.host(load_library=load)


def test_a_host_without_gpu_and_driver_is_judged_and_not_ready(tree):
    results, _seen = judged(tree.host())
    assert having(results, "error") == {}
    assert {"driver.loaded", "plan.feasible", "environment.present"} <= set(having(results, "failed"))


def test_a_gpu_that_nouveau_holds_is_judged(tree):
    results, _seen = judged(tree.gpu(driver="nouveau").host())
    assert having(results, "error") == {}
    assert {"driver.loaded", "gpu.bound", "gpu.answers"} <= set(having(results, "failed"))
    assert results["gpu.ecc_errors"]["status"] == "not_applicable"


@pytest.mark.parametrize(
    ("recording", "addresses", "device"),
    [
        ("recorded/nvml/h100-80gb-hbm3-580.json", ["0000:00:06.0"], H100),
        ("recorded/nvml/two-h100-80gb-hbm3-580.json", ["0000:00:06.0", "0000:00:07.0"], H100),
        ("simulated/nvml-geforce-rtx-5070.json", ["0000:01:00.0"], RTX_5070),
    ],
)
def test_what_cards_say_is_understood_and_healthy(tree, recording, addresses, device):
    answers = json.loads((PROBE / recording).read_text())
    found = [row["nvmlDeviceGetPciInfo_v3"][0][1] for row in answers["devices"]]
    assert [f"0000:{row['bus']:02x}:{row['device']:02x}.0" for row in found] == addresses
    for address in addresses:
        tree.gpu(address, device, "nvidia")
    results, seen = judged(answering(driven(tree, answers["about"]["driver"]).environment(), recording))
    assert having(results, "error") == {}
    assert [gpu["source"] for gpu in seen["gpus"]] == ["nvml"] * len(addresses)
    about_gpus = {rule: result["status"] for rule, result in results.items() if rule.startswith("gpu.")}
    if device == H100:
        assert set(about_gpus.values()) <= {"passed", "not_applicable"}
        assert about_gpus["gpu.ecc_errors"] == about_gpus["gpu.rows_failed"] == about_gpus["gpu.mig"] == "passed"
        assert about_gpus["gpu.pages_pending"] == "not_applicable"
    else:  # recorded without the persistence daemon
        assert {rule for rule, status in about_gpus.items() if status == "failed"} == {"gpu.persistence"}
        assert (
            about_gpus["gpu.ecc_errors"] == about_gpus["gpu.rows_failed"] == about_gpus["gpu.mig"] == "not_applicable"
        )
        assert about_gpus["gpu.recovery"] == "passed"


def test_a_release_that_is_gone_fails_one_rule_and_leaves_the_others_out(tree):
    tree.gpu("0000:01:00.0", RTX_5070, "nvidia").folder("/opt/gpufleet/envs/base/releases")
    results, _seen = judged(answering(driven(tree, "580.95.05"), "simulated/nvml-geforce-rtx-5070.json"))
    assert having(results, "error") == {}
    assert results["environment.serves"]["status"] == "failed"
    assert {results[f"environment.{name}"]["status"] for name in ("intact", "torch", "gpu_code", "companions", "lock")} == {
        "not_applicable"
    }  # fmt: skip


def test_a_driver_alone_needs_no_torch(tree):
    tree.gpu("0000:01:00.0", RTX_5070, "nvidia")
    host = answering(driven(tree, "580.95.05"), "simulated/nvml-geforce-rtx-5070.json")
    results, _seen = judged(host, {"environments": []})
    assert having(results, "error") == {}
    about = {result["status"] for rule, result in results.items() if rule.startswith(("environment.", "proof."))}
    assert about <= {"passed", "not_applicable"}


def test_a_gpu_of_a_virtual_machine_that_is_left_out_is_no_fault(tree):
    tree.gpu("0000:00:06.0", H100, "nvidia").gpu("0000:00:07.0", H100, "vfio-pci")
    host = answering(driven(tree).environment(), "recorded/nvml/h100-80gb-hbm3-580.json")
    results, _seen = judged(host, {"driver": {"gpus_exclude": ["0000:00:07.0"]}})
    assert having(results, "error") == {}
    assert results["gpu.bound"]["status"] == results["gpu.answers"]["status"] == "passed"


def test_on_this_machine_nothing_is_an_error_but_what_could_not_be_observed():
    results, seen = judged(Host())
    assert having(results, "error") == {} or seen["unknown"]
