"""A switch that waits for a busy GPU: nothing is done twice, what serves on is what is proven, and the host is pending."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

JOB = {"pid": 4711, "command": "python", "user": "ann", "kind": "compute", "container": None, "gpus": []}
NEWER = {"torch_env_version": "2.10.0", "torch_env_switch_after": "quick"}


def waiting(fleet: Any, name: str, file: str, serves: bool = True) -> None:
    """The host computes, and holds a release of what is wanted now, which does not serve yet."""
    path = fleet.folder / name / file
    answer = json.loads(path.read_text(encoding="utf-8"))
    observation = answer["observation"]
    observation["driver"] = {**observation["driver"], "processes": [JOB]}
    release = resolve(observation, {"torch": {"version": "2.10.0"}})["environments"][0]["release_base"]
    environment = observation["environments"][0]
    environment["releases"].append({"id": release, "stamped": True})
    if not serves:
        observation["environments"] = [
            {**environment, "current": None, "stamp": None, "integrity": None, "torch": None}
        ]
    path.write_text(json.dumps(answer), encoding="utf-8")


def test_a_host_that_is_still_busy_is_pending_and_nothing_is_done(fleet: Any) -> None:
    fleet.add("a", **NEWER)
    waiting(fleet, "a", "before.json")
    done = fleet.play()
    assert done.status == 2, done.text
    assert "PENDING" in done.table
    assert "in use by python (4711)" in done.text
    assert fleet.marks("a") == set()
    (asked,) = fleet.asked("a", "proof.json")["environments"]
    assert asked["expect"]["torch"] == "2.9.1+cu128"


@pytest.mark.parametrize("serves", [True, False])
def test_what_was_staged_in_this_run_is_not_what_is_proven(fleet: Any, serves: bool) -> None:
    fleet.add("a", ready=False, **NEWER)
    before = fleet.folder / "a" / "before.json"
    answer = json.loads(before.read_text(encoding="utf-8"))
    answer["observation"]["environments"] = [{"name": "base", "current": None, "releases": []}]
    ready = json.loads((fleet.folder / "a" / "after.json").read_text(encoding="utf-8"))["observation"]
    if serves:
        answer["observation"]["environments"] = ready["environments"]
    before.write_text(json.dumps(answer), encoding="utf-8")
    base = resolve(answer["observation"], {"torch": {"version": "2.10.0"}})["environments"][0]["release_base"]
    answer["observation"]["environments"][0]["releases"].append({"id": base, "stamped": True})
    before.write_text(json.dumps(answer), encoding="utf-8")
    waiting(fleet, "a", "after.json", serves)
    fleet.write("a", "proof.json", {"verdict": "not_run", "level": "quick", "environments": []})
    done = fleet.play()
    assert done.status == 2, done.text
    assert "PENDING" in done.table
    assert "torch_env" in fleet.marks("a")
    assert fleet.was_asked("a", "proof.json") is serves
    if serves:
        (asked,) = fleet.asked("a", "proof.json")["environments"]
        assert asked["expect"]["torch"] == "2.9.1+cu128"


def test_hashes_are_asked_for_from_the_command_line(fleet: Any) -> None:
    fleet.add("a")
    never = ("-e", "gpu_compliance_fail_on=never")  # this host is described in a few words
    assert fleet.play(*never, "-e", "gpufleet_integrity=hashes", playbook="check_compliance").status == 0
    assert fleet.asked("a", "before.json")["integrity"] == "hashes"
    done = fleet.play("-e", "gpufleet_integrity=everything", playbook="check_compliance")
    assert done.status != 0
    assert "gpufleet_integrity must be one of: sizes, hashes" in done.text
