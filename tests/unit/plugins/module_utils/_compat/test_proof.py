"""Which environments a run has to prove: those that no stamp of an earlier proof covers, each with what changed."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import stamp

Make = Callable[..., dict[str, Any]]
RTX_5070, RTX_3090 = "2f04", "2204"
JOB = {"pid": 4711, "command": "python", "kind": "compute", "gpus": []}
ERROR = {
    "pci_address": "0000:01:00.0", "number": 48, "title": "double-bit memory error", "action": "reset", "count": 1,
    "last_at": "2026-11-22T20:00:00Z", "this_boot": True,
}  # fmt: skip


@pytest.fixture
def proven(full: Make, carry_out: Make) -> dict[str, Any]:
    """A host with an RTX 5070 that was provisioned and proven at level quick."""
    observation = full(RTX_5070)
    return carry_out(observation, resolve(observation))


def ids(plan: dict[str, Any]) -> list[str]:
    return [action["id"] for action in plan["actions"]]


def why(seen: dict[str, Any], desired: dict[str, Any] | None = None) -> str:
    """Why a host is to be proven, which is all that it needs."""
    plan = resolve(seen, desired)
    assert ids(plan) == ["proof.run:base"]
    assert plan["environments"][0]["stamped"] is None
    (action,) = plan["actions"]
    assert (action["step"], action["disruptive"], action["data"]) == ("proof", False, {"environment": "base"})
    return str(action["why"])


def test_a_proof_that_still_counts_is_no_action_and_the_plan_says_what_it_proved(proven: dict[str, Any]) -> None:
    plan = resolve(proven)
    assert plan["actions"] == plan["pending"] == []
    stamped = plan["environments"][0]["stamped"]
    assert (stamped["name"], stamped["verdict"], stamped["proven"]) == ("base", "passed", "quick")
    assert (stamped["proven_at"], stamped["stamped"]) == ("2026-11-22T19:00:00Z", True)


def test_a_host_that_was_never_proven_is(proven: dict[str, Any]) -> None:
    proven["environments"][0]["verdict"] = None
    assert why(proven) == "no proof is on record"


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("os.boot_id", "another boot", "since its proof: rebooted"),
        ("driver.loaded_flavor", "proprietary", "since its proof: open -> proprietary kernel modules"),
        ("environments.0.stamp_digest", "f" * 64, "since its proof: the release's own stamp was written anew"),
        ("gpus.0.uuid", None, "since its proof: a GPU at 0000:01:00.0 is gone"),
        ("gpus.0.uuid", "GPU-9", "since its proof: a GPU at 0000:01:00.0 is gone, None at 0000:01:00.0 was not proven"),
        ("observed_at", "2026-11-29T19:00:00Z", "its proof of 2026-11-22T19:00:00Z is older than 168 hours"),
        ("observed_at", None, "the age of its proof is not known"),
        ("os.boot_id", None, "since its proof: rebooted"),
        ("gpus.0.health.compute_mode", "prohibited", "since its proof: compute mode of a GPU at 0000:01:00.0: default -> prohibited"),
        ("gpus.0.health.compute_mode", None, "since its proof: compute mode of a GPU at 0000:01:00.0 is not known"),
        ("gpus.0.health.mig", {"enabled": True, "instances": []},
         "since its proof: MIG of a GPU at 0000:01:00.0: not_applicable -> no instances"),
        ("gpus.0.health.mig", None, "since its proof: MIG of a GPU at 0000:01:00.0 is not known"),
        ("gpus.0.health", "not_applicable", "since its proof: MIG of a GPU at 0000:01:00.0 is not known, "
         "compute mode of a GPU at 0000:01:00.0 is not known"),
        ("health.xid", [ERROR], "since its proof: Xid 48 (double-bit memory error) at 0000:01:00.0"),
        ("environments.0.verdict.verdict", "failed", "its last proof failed: "),
        ("environments.0.verdict.more", 1, "the proof on record is unusable: not the keys of a stamp of schema 1: more"),
    ],
)  # fmt: skip
def test_what_changed_since_is_named(proven: dict[str, Any], path: str, value: Any, told: str) -> None:
    *parents, last = path.split(".")
    target: Any = proven
    for part in parents:
        target = target[int(part) if part.isdigit() else part]
    target[last] = value
    assert why(proven) == told


@pytest.mark.parametrize(
    "mig",
    [{"enabled": False, "pending": False, "instances": []}, {"enabled": True, "instances": [{"uuid": "MIG-1"}]}],
)
def test_a_gpu_that_can_be_parted_is_covered_as_it_was_proven(full: Make, carry_out: Make, mig: dict[str, Any]) -> None:
    observation = full(RTX_5070)
    observation["gpus"][0]["health"] = {"mig": mig, "compute_mode": "default"}
    seen = carry_out(observation, resolve(observation))
    assert resolve(seen)["actions"] == []
    seen["gpus"][0]["health"]["mig"] = {"enabled": True, "instances": []}
    assert why(seen).startswith("since its proof: MIG of a GPU at 0000:01:00.0: ")
    assert why(seen).endswith(" -> no instances")


def test_for_another_account_it_is_proven_again(proven: dict[str, Any]) -> None:
    desired = {"environments": [{"name": "base", "owner": "ada"}], "steps": ["proof"]}
    assert why(proven, desired) == "since its proof: what is expected of it or who runs it changed"


def test_another_driver_under_a_loaded_one_is_proven_as_soon_as_it_is_there(proven: dict[str, Any]) -> None:
    """Somebody upgraded the packages by hand: no program can start CUDA until the next boot."""
    proven["driver"].update(userspace_version="580.200.01", mismatch=True)
    plan = resolve(proven, {"steps": ["proof"]})
    assert ids(plan) == ["proof.run:base"]
    assert plan["actions"][0]["why"] == "since its proof: installed driver 580.178.04 -> 580.200.01"


@pytest.mark.parametrize(
    "change", [{"this_boot": False}, {"action": "restart_app"}, {"action": "ignore"}, {"last_at": "2026-11-22T18:00:00Z"}]
)  # fmt: skip
def test_what_the_driver_logged_of_programs_or_before_the_proof_changes_nothing(
    proven: dict[str, Any], change: dict[str, Any]
) -> None:
    proven["health"]["xid"] = [{**ERROR, **change}]
    assert resolve(proven)["actions"] == []


def test_the_level_that_is_wanted_has_to_be_proven(proven: dict[str, Any]) -> None:
    assert resolve(proven, {"proof": {"level": "static"}})["actions"] == []
    assert why(proven, {"proof": {"level": "full"}}) == "level full is wanted, level quick was proven"


def test_the_greatest_age_is_the_users_and_0_proves_every_time(proven: dict[str, Any]) -> None:
    assert "older than 0 hours" in why(proven, {"proof": {"max_age": 0}})
    proven["observed_at"] = "2026-11-24T19:00:00Z"
    assert resolve(proven, {"proof": {"max_age": 49}})["actions"] == []
    assert "older than 48 hours" in why(proven, {"proof": {"max_age": 48}})


def test_a_busy_host_keeps_the_proof_that_it_has(proven: dict[str, Any]) -> None:
    proven["driver"]["processes"] = [JOB]
    plan = resolve(proven)
    assert plan["actions"] == []
    assert plan["environments"][0]["stamped"]["verdict"] == "passed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"processes": [JOB]}, "the GPU is in use by python (4711)"),
        ({"device_nodes": {"/dev/nvidia0": False}}, "this container has no device node of a GPU"),
    ],
)
def test_where_no_more_can_be_proven_nothing_is_run_again_and_that_is_said(
    proven: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    proven["os"]["virtualization"] = "container"
    proven["environments"][0]["verdict"].update(level="static", asked="quick", gpus=[])
    proven["driver"].update(change)
    plan = resolve(proven)
    assert plan["actions"] == []
    stamped = plan["environments"][0]["stamped"]
    assert (stamped["verdict"], stamped["proven"], stamped["level"]) == ("not_run", "static", "quick")
    assert (stamped["reason"], bool(stamped["remedy"])) == (reason, True)
    assert f"base is proven at level static; level quick waits: {reason}." in plan["reasons"]


def test_as_soon_as_more_can_be_proven_it_is(proven: dict[str, Any]) -> None:
    proven["environments"][0]["verdict"].update(level="static", asked="quick", gpus=[], reason="gpu.copy: in use by x")
    assert why(proven) == "level quick is wanted, level static was proven (gpu.copy: in use by x)"


def test_an_error_of_a_gpu_counts_on_a_busy_host_too(proven: dict[str, Any]) -> None:
    proven["driver"]["processes"] = [JOB]
    event = {"this_boot": True, "action": "reset", "number": 48, "title": "memory error", "pci_address": "0000:01:00.0"}
    proven["health"] = {**proven.get("health", {}), "xid": [{**event, "last_at": "2026-11-22T18:59:59Z"}]}
    proven["environments"][0]["verdict"]["proven_at"] = "2026-11-22T18:00:00Z"
    stamped = resolve(proven)["environments"][0]["stamped"]
    assert (stamped["verdict"], stamped["proven"], stamped["gpus"]) == ("not_run", "static", [])
    assert stamped["reason"].startswith("since its proof: Xid 48 (memory error)")
    assert stamped["reason"].endswith("the GPU is in use by python (4711)")


def test_a_burn_that_was_too_short_does_not_count_on_a_busy_host_either(proven: dict[str, Any]) -> None:
    proven["driver"]["processes"] = [JOB]
    proven["environments"][0]["verdict"].update(level="stress", asked="stress", burn_seconds=10)
    stamped = resolve(proven, {"proof": {"level": "stress"}})["environments"][0]["stamped"]
    assert (stamped["verdict"], stamped["proven"]) == ("not_run", "full")


def test_a_busy_host_whose_proof_is_worthless_is_proven_as_far_as_it_can(proven: dict[str, Any]) -> None:
    proven["driver"]["processes"] = [JOB]
    proven["os"]["boot_id"] = "another boot"
    assert why(proven) == "since its proof: rebooted"


def test_only_what_changed_of_several_environments_is_proven(full: Make, carry_out: Make) -> None:
    desired = {"environments": [{"name": "a"}, {"name": "b", "torch": "2.8.0"}]}
    observation = full(RTX_3090)
    seen = carry_out(observation, resolve(observation, desired))
    assert resolve(seen, desired)["actions"] == []
    seen["environments"][1]["verdict"] = None
    plan = resolve(seen, desired)
    assert ids(plan) == ["proof.run:b"]
    assert [bool(item["stamped"]) for item in plan["environments"]] == [True, False]


def test_the_stamp_of_another_environment_says_nothing(full: Make, carry_out: Make) -> None:
    desired = {"environments": [{"name": "a"}, {"name": "b"}]}
    observation = full(RTX_3090)
    seen = carry_out(observation, resolve(observation, desired))
    seen["environments"][1]["verdict"] = copy.deepcopy(seen["environments"][0]["verdict"])
    assert ids(resolve(seen, desired)) == ["proof.run:b"]


def test_gpus_that_are_left_out_need_no_proof_and_count_again_when_they_do_not(full: Make, carry_out: Make) -> None:
    desired = {"driver": {"gpus_exclude": ["0000:02:00.0"]}}
    observation = full(RTX_3090, RTX_3090)
    seen = carry_out(observation, resolve(observation, desired))
    assert resolve(seen, desired)["actions"] == []
    assert "at 0000:02:00.0 was not proven" in why(seen)


@pytest.mark.parametrize(
    ("desired", "first"),
    [
        ({"driver": {"branch": "595", "reboot_allowed": True}}, "driver."),
        ({"torch": {"version": "2.10.0"}}, "torch.build"),
        ({"runtime": {"variables": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}}}, "runtime.file"),
    ],
)
def test_what_this_run_changes_it_proves_afterwards_whatever_the_stamp_says(
    proven: dict[str, Any], desired: dict[str, Any], first: str
) -> None:
    plan = resolve(proven, desired)
    assert ids(plan)[0].startswith(first)
    assert plan["actions"][-1]["id"] == "proof.run:base"
    assert plan["actions"][-1]["why"].startswith("this run is to ")
    assert plan["environments"][0]["stamped"] is None


def test_a_driver_that_only_waits_takes_no_proof_from_a_busy_host(proven: dict[str, Any]) -> None:
    proven["driver"]["processes"] = [JOB]
    plan = resolve(proven, {"driver": {"branch": "595"}})
    assert plan["pending"]
    assert [name for name in ids(plan) if not name.startswith("driver.")] == []
    assert plan["environments"][0]["stamped"]["verdict"] == "passed"


def test_what_serves_while_its_successor_waits_keeps_its_proof(proven: dict[str, Any]) -> None:
    proven["driver"]["processes"] = [JOB]
    plan = resolve(proven, {"torch": {"version": "2.10.0"}, "switch_after": "quick"})
    assert ids(plan) == ["torch.build:base"]
    assert plan["environments"][0]["stamped"]["torch"] == {"version": "2.9.1+cu128"}


def test_a_release_that_is_not_the_wanted_one_is_not_ready_on_its_stamp(proven: dict[str, Any]) -> None:
    desired = {"torch": {"version": "2.10.0"}, "steps": ["proof"]}
    assert why(proven, desired) == "2.9.1+cu128 serves, 2.10.0+cu128 is wanted"


def test_a_run_without_the_step_plans_no_proof_but_knows_whether_there_is_one(proven: dict[str, Any]) -> None:
    desired = {"steps": ["driver", "torch", "runtime"]}
    assert resolve(proven, desired)["environments"][0]["stamped"]
    proven["environments"][0]["verdict"] = None
    plan = resolve(proven, desired)
    assert plan["actions"] == []
    assert plan["environments"][0]["stamped"] is None


def test_a_proof_needs_no_root_in_the_plan(proven: dict[str, Any]) -> None:
    proven["os"]["uid"] = 1000
    proven["environments"][0]["verdict"] = None
    assert resolve(proven)["feasible"]


@pytest.mark.parametrize("value", [True, 1, "passed", [], ["passed"], {"verdict": "passed"}, {"schema": 1}])
def test_no_odd_verdict_of_an_observation_counts_as_a_proof(proven: dict[str, Any], value: Any) -> None:
    proven["environments"][0]["verdict"] = value
    assert why(proven)


def test_without_any_of_the_fields_of_its_stamp_a_host_is_proven(proven: dict[str, Any]) -> None:
    whole = proven["environments"][0]["verdict"]
    assert set(whole) == set(stamp.checked(whole, "base"))
    for key in whole:
        for odd in ({}, {key: None}, {key: []}, {key: {}}, {key: 0}):
            proven["environments"][0]["verdict"] = {**{name: whole[name] for name in whole if name != key}, **odd}
            if proven["environments"][0]["verdict"] != whole and odd != {key: None}:
                assert why(proven), (key, odd)
