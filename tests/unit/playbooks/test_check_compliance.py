"""The fleet's compliance as a user runs it: which hosts count, what is asked of them, what is written, and how the run ends.

The rules' engine has tests of its own. Here one that knows a single rule, "the plan is feasible", stands in for it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from .conftest import Fleet

_POLICIES = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Rule:
    id: str
    severity: str

class PolicyError(ValueError):
    pass

def load(paths, tuning, where):
    for path in paths:
        if "wrong" in path.name:
            raise PolicyError(f"{path}:3: expect does not depend on the host.")
    return [Rule("plan.feasible", tuning.get("plan.feasible", {}).get("severity", "critical"))]

def load_waivers(items, rules, hosts, groups, today):
    return [item for item in items if item["hosts"] in hosts or item["hosts"] in groups]
"""
_EVALUATE = """
def assess(rules, waivers, hosts, now, previous, fail_on, version):
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    answers = [_host(name, state, rules[0].id, previous.hosts.get(name, {}), at) for name, state in hosts.items()]
    outcomes = [host["outcome"] for host in answers]
    kinds = ("ready", "not_ready", "unknown", "unreachable", "not_asked")
    return {
        "schema": 1, "generated_at": at, "collection": version, "fail_on": fail_on, "hosts": answers,
        "rules": [{"id": rules[0].id, "title": "feasible", "severity": rules[0].severity}], "waivers": [],
        "totals": {"hosts": len(answers), **{kind: outcomes.count(kind) for kind in kinds}},
        "history": previous.series, "errors": [], "notes": previous.problems,
    }

def _host(name, state, rule, before, at):
    plan = state["planned"].get("plan", {})
    observed = bool(state["planned"].get("observation"))
    status = "passed" if plan.get("feasible") is True else "failed"
    facts = {"kernel": state["planned"]["observation"]["os"].get("kernel")} if observed else {}
    outcome = (
        "not_asked" if not state["asked"] else "unreachable" if state["unreachable"] else "unknown" if not observed
        else "ready" if status == "passed" else "not_ready"
    )
    last = before.get("facts", {})
    changes = [
        {"what": key, "before": last[key], "after": value} for key, value in facts.items() if key in last and last[key] != value
    ]
    return {
        "name": name, "groups": state["groups"], "outcome": outcome, "facts": facts,
        "reason": str(plan.get("refusals") or state["planned"].get("msg", "")),
        "since": before["since"] if before.get("outcome") == outcome else at,
        "proven": state["proof"].get("verdict"), "drift": {"since_last": changes, "since_provisioned": []},
        "results": {rule: {"status": status, "since": at, "items": []}} if outcome in ("ready", "not_ready") else {},
    }
"""


@pytest.fixture
def judged(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet whose collection has the rules' engine of this file."""
    base = tmp_path_factory.mktemp("engine")
    shutil.copytree(fleet.collections, base, symlinks=True, dirs_exist_ok=True)
    code = base / "ansible_collections/gpufleet/workstation/plugins/plugin_utils/compliance"
    (code / "policies.py").write_text(_POLICIES, encoding="utf-8")
    (code / "evaluate.py").write_text(_EVALUATE, encoding="utf-8")
    return Fleet(fleet.folder, base)


def kept(fleet: Fleet) -> Path:
    return fleet.folder / ".gpufleet/compliance"


def report(fleet: Fleet) -> dict[str, Any]:
    return json.loads((kept(fleet) / "report/report.json").read_text(encoding="utf-8"))


def outcomes(fleet: Fleet) -> dict[str, str]:
    return {host["name"]: host["outcome"] for host in report(fleet)["hosts"]}


def refuse(fleet: Fleet, name: str) -> None:
    """Have a host's plan refused: it has no GPU."""
    fleet.observe(name, "before.json", ready=False, gpus=[])


@pytest.mark.parametrize("options", [(), ("--check", "--diff")])
def test_a_fleet_that_is_ready_passes_with_one_question_to_each_host_and_no_proof(judged, options):
    judged.add("a")
    judged.add("b", ready=False)
    done = judged.play(*options, playbook="check_compliance")
    assert done.status == 0, done.text
    assert outcomes(judged) == {"a": "ready", "b": "ready"}
    assert done.text.count("TASK [Observe and plan]") == 1
    assert not judged.was_asked("a", "proof.json")
    assert "changed=0" in done.text
    assert judged.marks("b") == set()
    assert {path.name for path in (kept(judged) / "report").iterdir()} == {
        ".lock", "report.json", "report.txt", "index.html", "junit.xml", "gpufleet.prom"
    }  # fmt: skip
    assert len(list((kept(judged) / "history").iterdir())) == 1


def test_the_whole_inventory_counts_and_nothing_that_is_not_known_is_ready(judged):
    for name in ("fine", "refused", "gone", "mute", "left-out"):
        judged.add(name)
    refuse(judged, "refused")
    (judged.folder / "gone/dead").touch()
    judged.write("mute", "before.json", {"failed": True, "msg": "Missing sudo password"})
    done = judged.play("--limit", "!left-out", playbook="check_compliance")
    assert done.status == 2, done.text
    assert outcomes(judged) == {
        "fine": "ready", "refused": "not_ready", "gone": "unreachable", "mute": "unknown", "left-out": "not_asked"
    }  # fmt: skip
    assert report(judged)["totals"]["hosts"] == 5
    assert "1 of 5 hosts do not meet rules of severity high or worse: refused" in done.text
    assert "2 of 5 hosts could not be observed: gone, mute" in done.text


@pytest.mark.parametrize("options", [(), ("-e", "gpufleet_prove=true")])
def test_the_first_host_of_a_limit_that_is_gone_keeps_nobody_from_being_judged(judged, options):
    for name in ("a", "b", "c"):
        judged.add(name)
    (judged.folder / "a/dead").touch()
    done = judged.play("--limit", "a,b", *options, playbook="check_compliance")
    assert done.status == 2, done.text
    assert outcomes(judged) == {"a": "unreachable", "b": "ready", "c": "not_asked"}
    assert "1 of 3 hosts could not be observed: a" in done.text
    assert judged.was_asked("b", "proof.json") is bool(options)


def test_hosts_that_limit_leaves_out_do_not_fail_the_run(judged):
    judged.add("a")
    judged.add("b")
    refuse(judged, "b")
    assert judged.play("--limit", "a", playbook="check_compliance").status == 0
    assert outcomes(judged) == {"a": "ready", "b": "not_asked"}


def test_the_pattern_of_hosts_is_the_denominator(judged):
    judged.add("a")
    judged.add("b")
    assert judged.play("-e", "gpufleet_hosts=a", playbook="check_compliance").status == 0
    assert outcomes(judged) == {"a": "ready"}


def test_proving_anew_is_a_second_question_and_leaves_no_stamp(judged):
    judged.add("a")
    judged.stamp("a", "before.json", "base")
    done = judged.play("-e", "gpufleet_prove=true", playbook="check_compliance")
    assert done.status == 0, done.text
    assert judged.asked("a", "proof.json")["stamp"] is False
    assert report(judged)["hosts"][0]["proven"] == "passed"


@pytest.mark.parametrize(
    ("fail_on", "severity", "status"),
    [
        ("high", "critical", 2),
        ("high", "high", 2),
        ("high", "medium", 0),
        ("low", "medium", 2),
        ("never", "critical", 0),
    ],
)
def test_the_run_fails_by_severity(judged, fail_on, severity, status):
    rules = {"plan.feasible": {"severity": severity}}
    judged.add("a", gpu_compliance_fail_on=fail_on, gpu_compliance_rules=rules)
    refuse(judged, "a")
    done = judged.play(playbook="check_compliance")
    assert done.status == status, done.text
    assert outcomes(judged) == {"a": "not_ready"}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"gpu_compliance_policies": ["wrong.yml"]}, "wrong.yml:3: expect does not depend on the host"),
        ({"gpu_compliance_policies": ["nowhere"]}, "there is no"),
        ({"gpu_compliance_keep": 0}, "at least 1"),
        ({"gpu_compliance_fail_on": "bad"}, "gpu_compliance_fail_on"),
        ({"gpu_compliance_waivers": [{"rule": "a.b"}]}, "expires"),
    ],
)
def test_a_mistake_in_rules_or_settings_is_found_before_any_host_is_asked(judged, variables, said):
    judged.add("a", **variables)
    (judged.folder / "wrong.yml").write_text("[]\n", encoding="utf-8")
    done = judged.play(playbook="check_compliance")
    assert done.status == 2
    assert said in done.text
    assert not judged.was_asked("a", "before.json")
    assert not kept(judged).exists()


def test_a_misspelt_variable_does_not_leave_rules_out_in_silence(judged):
    judged.add("a", gpu_compliance_polices=["mine.yml"])
    done = judged.play(playbook="check_compliance")
    assert done.status == 2
    assert "did you mean gpu_compliance_policies" in done.text


def test_since_stays_while_the_outcome_does_and_drift_is_shown(judged):
    judged.add("a")
    judged.observe("a", "before.json", ready=True, os={"id": "debian", "version_id": "12", "arch": "x86_64", "virtualization": "wsl",
                   "uid": 0, "init": "systemd", "boot_id": "boot-1", "kernel": "one"})  # fmt: skip
    assert judged.play(playbook="check_compliance").status == 0
    first = report(judged)["hosts"][0]["since"]
    answer = json.loads((judged.folder / "a/before.json").read_text(encoding="utf-8"))
    answer["observation"]["os"]["kernel"] = "two"
    judged.write("a", "before.json", answer)
    done = judged.play(playbook="check_compliance")
    assert done.status == 0, done.text
    assert report(judged)["hosts"][0]["since"] == first
    assert "kernel: one -> two" in done.text


def test_where_nothing_can_be_written_the_verdict_is_shown_and_the_run_fails(judged):
    judged.add("a")
    (judged.folder / "file").touch()
    done = judged.play("-e", f"gpufleet_state_dir={judged.folder}/file", playbook="check_compliance")
    assert done.status == 2
    assert "cannot be written on the controller" in done.text
    assert "READY" in done.text


@pytest.mark.parametrize("callback", [True, False])
def test_the_fleet_is_shown_once_whether_the_callback_is_enabled_or_not(judged, callback):
    judged.add("a")
    done = judged.play(playbook="check_compliance", callback=callback)
    assert done.status == 0, done.text
    assert done.text.count("a is train-ready") == 1
    assert (done.text.index("PLAY RECAP") < done.text.index("a is train-ready")) is callback


def test_a_controller_without_jmespath_is_told_what_to_install(judged):
    code = judged.collections / "ansible_collections/gpufleet/workstation/plugins/plugin_utils/compliance/policies.py"
    code.write_text("raise ModuleNotFoundError('No module named jmespath', name='jmespath')\n", encoding="utf-8")
    judged.add("a")
    done = judged.play(playbook="check_compliance")
    assert done.status == 2
    assert "-m pip install jmespath" in done.text
    assert not judged.was_asked("a", "before.json")


def test_what_automation_gets_are_totals_names_and_paths(judged):
    judged.add("a")
    refuse(judged, "a")
    done = judged.play("-e", '{"ansible_show_custom_stats": true}', "-v", playbook="check_compliance")
    assert "gpufleet_compliance" in done.text
    assert "report.json" in done.text
