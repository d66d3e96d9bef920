"""What gates a switch, in the plan: releases that are staged, GPUs that are busy, roots that other hosts see."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import observation_request
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

Make = Callable[..., dict[str, Any]]
RTX_5070, RTX_3090 = "2f04", "2204"
QUICK = {"switch_after": "quick"}
NEWER = {**QUICK, "torch": {"version": "2.10.0"}}
JOB = {"pid": 4711, "command": "python", "user": "ann", "kind": "compute", "container": None, "gpus": []}
DESKTOP = {"pid": 900, "command": "Xorg", "user": "root", "kind": "graphics", "container": None, "gpus": []}


@pytest.fixture
def serving(full: Make, carry_out: Make) -> dict[str, Any]:
    """A host with an RTX 5070 on which the default plan was carried out."""
    observation = full(RTX_5070)
    return carry_out(observation, resolve(observation))


def staged(observation: dict[str, Any], desired: dict[str, Any]) -> dict[str, Any]:
    """The same host with a stamped release of what is wanted now."""
    seen = copy.deepcopy(observation)
    release = resolve(observation, desired)["environments"][0]["release_base"]
    seen["environments"][0]["releases"].append({"id": release, "stamped": True})
    return seen


def ids(plan: dict[str, Any]) -> list[str]:
    return [action["id"] for action in plan["actions"]]


def test_an_idle_host_switches_to_what_is_staged(serving: dict[str, Any]) -> None:
    plan = resolve(staged(serving, NEWER), NEWER)
    assert ids(plan) == ["torch.switch:base", "proof.run:base"]
    assert plan["pending"] == []
    assert plan["environments"][0]["proof"]["expect"]["torch"] == "2.10.0+cu128"


def test_a_busy_host_needs_no_action_and_is_pending_with_who_is_busy(serving: dict[str, Any]) -> None:
    seen = staged(serving, NEWER)
    seen["driver"]["processes"] = [DESKTOP, JOB]
    seen["environments"][0]["leftovers"] = ["2.8.0-cu128-00000000"]
    plan = resolve(seen, NEWER)
    assert plan["feasible"]
    assert plan["actions"] == plan["environments"][0]["actions"] == []
    (wait,) = plan["pending"]
    assert wait["what"] == f"switch the environment base to {seen['environments'][0]['releases'][1]['id']}"
    assert wait["why"].endswith("the GPU is in use by python (4711)")
    assert "torch_env_switch_after: static" in wait["remedy"]
    proof = plan["environments"][0]["proof"]
    assert proof["expect"] == {"torch": "2.9.1+cu128", "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"}}


def test_a_build_on_a_busy_host_is_planned_without_its_switch(serving: dict[str, Any]) -> None:
    serving["driver"]["processes"] = [JOB]
    plan = resolve(serving, NEWER)
    assert ids(plan) == ["torch.build:base"]
    assert [wait["what"] for wait in plan["pending"]] == ["switch the environment base to the new release"]
    assert ids(resolve(serving, {"torch": {"version": "2.10.0"}})) == [
        "torch.build:base",
        "torch.switch:base",
        "proof.run:base",
    ]


def test_where_nothing_serves_yet_nothing_is_proven_meanwhile(serving: dict[str, Any]) -> None:
    serving["driver"]["processes"] = [JOB]
    serving["environments"] = []
    plan = resolve(serving, QUICK)
    assert ids(plan)[0] == "torch.build:base"
    assert plan["environments"][0]["proof"] is None


def test_the_desktop_keeps_nothing_waiting(serving: dict[str, Any]) -> None:
    seen = staged(serving, NEWER)
    seen["driver"]["processes"] = [DESKTOP]
    assert ids(resolve(seen, NEWER)) == ["torch.switch:base", "proof.run:base"]


def test_what_computes_only_on_gpus_that_are_left_out_keeps_nothing_waiting(full: Make, carry_out: Make) -> None:
    desired = {"driver": {"gpus_exclude": ["0000:02:00.0"]}}
    observation = full(RTX_3090, RTX_3090)
    seen = staged(carry_out(observation, resolve(observation, desired)), {**NEWER, **desired})
    for gpus, waits in ((["0000:02:00.0"], False), (["0000:01:00.0", "0000:02:00.0"], True), ([], True)):
        seen["driver"]["processes"] = [{**JOB, "gpus": gpus}]
        assert bool(resolve(seen, {**NEWER, **desired})["pending"]) is waits


@pytest.mark.parametrize(
    ("driver", "system", "why"),
    [
        ({"loaded_version": None}, {}, "the NVIDIA kernel module is not loaded"),
        ({"mismatch": True}, {}, "the loaded driver is not the installed one"),
        ({"device_nodes": {"/dev/nvidia0": False}}, {"virtualization": "container"}, "no device node of a GPU"),
    ],
)
def test_a_host_whose_gpus_do_not_run_says_so(
    serving: dict[str, Any], driver: dict[str, Any], system: dict[str, Any], why: str
) -> None:
    desired = {**NEWER, "steps": ["torch"]}
    seen = staged(serving, desired)
    seen["driver"].update(driver)
    seen["os"].update(system)
    plan = resolve(seen, desired)
    assert plan["actions"] == []
    assert why in plan["pending"][0]["why"]


def test_a_driver_that_this_run_loads_is_counted_on(full: Make) -> None:
    plan = resolve(full(RTX_5070), QUICK)
    assert "driver.load" in ids(plan)
    assert "torch.switch:base" in ids(plan)
    assert plan["pending"] == []


def test_a_damaged_release_is_not_what_is_staged(serving: dict[str, Any]) -> None:
    seen = staged(serving, NEWER)
    seen["environments"][0]["releases"][1]["stamped"] = False
    assert ids(resolve(seen, NEWER)) == ["torch.build:base", "torch.switch:base", "proof.run:base"]


def test_gates_are_no_part_of_the_specification_and_reach_the_role(serving: dict[str, Any]) -> None:
    desired = {
        "smoke": ["true"],
        "switch_after": "quick",
        "environments": [{"name": "base"}, {"name": "b", "smoke": ["b"]}],
    }
    plan = resolve(serving, desired)
    first, second = plan["environments"]
    assert first["spec_digest"] == resolve(serving)["environments"][0]["spec_digest"]
    assert first["actions"] == []
    assert (first["smoke"], first["switch_after"], first["integrity"]) == (["true"], "quick", "sizes")
    assert (second["smoke"], second["switch_after"]) == (["b"], "quick")


@pytest.mark.parametrize("smoke", ["python -c pass", [], [""], ["python", 5], [None], {"a": "b"}, ["a\0"]])
def test_a_smoke_command_that_is_none_is_refused(smoke: Any) -> None:
    with pytest.raises(InvalidDesired, match=r"torch_env_environments \(environments\[0\].smoke\) must be a list"):
        resolve({}, {"environments": [{"name": "base", "smoke": smoke}]})
    if smoke:
        with pytest.raises(InvalidDesired, match=r"torch_env_smoke \(smoke\) must be a list"):
            resolve({}, {"smoke": smoke})


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidDesired, match="torch_env_switch_after"):
        resolve({}, {"switch_after": "full"})
    with pytest.raises(InvalidDesired, match="gpufleet_integrity"):
        resolve({}, {"integrity": "none"})


def test_the_observation_is_asked_for_hashes_where_they_are_wanted() -> None:
    assert observation_request({})["integrity"] == "sizes"
    assert observation_request({"integrity": "hashes"})["integrity"] == "hashes"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "ceph", "lustre", "fuse.sshfs", "9p"])
def test_a_root_that_other_hosts_see_is_refused(serving: dict[str, Any], kind: str) -> None:
    serving["health"]["disk"]["/opt/gpufleet/envs"]["file_system"] = kind
    plan = resolve(serving)
    (refusal,) = plan["refusals"]
    assert refusal["code"] == "root_shared"
    assert f"/opt/gpufleet/envs is on a file system of the kind {kind}, which other hosts see too" in refusal["reason"]
    assert "torch_env_root" in refusal["remedy"]
    assert resolve(serving, {"steps": ["driver", "proof"]})["feasible"]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "overlay", None])
def test_a_root_of_the_hosts_own_is_not(serving: dict[str, Any], kind: str | None) -> None:
    serving["health"]["disk"]["/opt/gpufleet/envs"]["file_system"] = kind
    assert resolve(serving)["feasible"]
