"""What a person reads at the end must be true, complete and safe to print."""

from __future__ import annotations

import copy
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import (
    clean,
    host_row,
    plan_groups,
    plan_text,
    result_text,
)

READY = {
    "planned": {
        "plan": {
            "feasible": True,
            "refusals": [],
            "actions": [],
            "pending": [],
            "gpus": [{"name": "NVIDIA GeForce RTX 5070", "sm": "sm_120"}],
            "environments": [{"name": "base"}],
            "warnings": [],
        },
        "observation": {
            "driver": {"loaded_version": "580.178.04", "loaded_flavor": "open", "userspace_version": "580.178.04"},
            "environments": [{"name": "base", "current": "r1", "torch": {"version": "2.9.1+cu128"}}],
        },
    },
    "proof": {
        "verdict": "passed",
        "level": "quick",
        "environments": [{"name": "base", "verdict": "passed", "level": "quick", "proven": "quick"}],
    },
    "required_level": "quick",
}


def changed(path: str, value: object) -> dict:
    state = copy.deepcopy(READY)
    target = state
    *parents, last = path.split(".")
    for key in parents:
        target = target[key]
    target[last] = value
    return state


def test_ready_row_shows_what_is_there():
    row = host_row("ws", READY)
    assert row["ready"] is True
    assert (row["gpu"], row["sm"], row["torch"]) == ("RTX 5070", "sm_120", "2.9.1+cu128")
    assert row["driver"] == "580.178.04 open / 580.178.04"
    assert row["proof"] == "quick passed"


@pytest.mark.parametrize(
    ("path", "value", "outcome"),
    [
        ("failed", "Install: no space", "failed"),
        ("planned", {}, "unreachable"),
        ("planned", {"unreachable": True, "msg": "timed out"}, "unreachable"),
        ("planned.plan", {}, "refused"),
        ("planned.plan.feasible", None, "refused"),
        ("planned.plan.feasible", "True", "refused"),
        ("planned.plan.refusals", [{"reason": "too old", "remedy": "newer GPU"}], "refused"),
        ("planned.plan.pending", [{"what": "reboot", "why": "not allowed", "remedy": "allow"}], "pending"),
        ("planned.plan.actions", [{"what": "install"}], "unfinished"),
        ("proof", {}, "not_proven"),
        ("proof", None, "not_proven"),
        ("proof.verdict", None, "not_proven"),
        ("proof.verdict", True, "not_proven"),
        ("proof.environments", [], "not_proven"),
        ("proof.environments", [{"name": "base", "verdict": "passed"}], "not_proven"),
        ("proof.environments", [{"name": "base", "verdict": "passed", "proven": None}], "not_proven"),
        ("proof.environments", [{"name": "base", "verdict": "passed", "proven": "QUICK"}], "not_proven"),
        ("proof.environments", [{"name": "base", "verdict": "passed", "proven": "static"}], "not_proven"),
        ("proof.environments", [{"name": "base", "verdict": "not_run", "proven": "static"}], "not_proven"),
        ("proof.environments", [{"proven": "quick"}, {"proven": "static"}], "not_proven"),
        ("proof.environments", [{"verdict": "passed", "proven": "quick"}, None], "not_proven"),
        ("proof.environments", [{"name": "base", "proven": "quick"}], "not_proven"),
        ("proof.environments", [{"name": "base", "verdict": "failed"}], "not_proven"),
        ("proof.environments", [{"name": "other", "verdict": "passed", "proven": "quick"}], "not_proven"),
        ("planned.plan.environments", [{"name": "base"}, {"name": "second"}], "not_proven"),
        ("planned.plan.environments", [], "not_proven"),
        ("lost", True, "unreachable"),
        ("held_back", True, "held_back"),
        ("required_level", None, "not_proven"),
        ("required_level", "full", "not_proven"),
    ],
)
def test_anything_missing_or_wrong_is_not_ready(path, value, outcome):
    row = host_row("ws", changed(path, value))
    assert row["outcome"] == outcome
    assert row["ready"] is False
    assert row["reason"]
    assert row["remedy"]


def test_what_was_not_run_is_no_obstacle_where_less_is_required():
    state = changed("required_level", "static")
    state["proof"]["verdict"] = "not_run"
    state["proof"]["environments"] = [{"name": "base", "verdict": "not_run", "proven": "static"}]
    row = host_row("ws", state)
    assert row["ready"] is True
    assert row["proof"] == "static passed, quick not run"


def test_failed_proof_names_the_check_even_where_the_task_failed():
    state = changed("failed", "Prove: verdict failed")
    check = {"id": "torch.arch_flags", "status": "failed", "evidence": "no sm_120", "remedy": "use cu128"}
    state["proof"] = {
        "verdict": "failed",
        "level": "quick",
        "environments": [{"name": "base", "verdict": "failed", "checks": [check]}],
    }
    row = host_row("ws", state)
    assert row["outcome"] == "not_proven"
    assert row["reason"] == "base: torch.arch_flags: no sm_120"
    assert row["remedy"] == "use cu128"


def test_state_after_the_apply_replaces_the_one_before():
    state = changed("planned.plan.actions", [{"what": "install"}])
    state["after"] = copy.deepcopy(READY["planned"])
    assert host_row("ws", state)["ready"] is True


def test_skipped_second_observation_is_not_taken_for_one():
    state = copy.deepcopy(READY)
    state["after"] = {"changed": False, "skipped": True}
    assert host_row("ws", state)["ready"] is True


def test_check_mode_predicts_instead_of_asking_for_proof():
    state = changed("planned.plan.actions", [{"what": "install the driver"}])
    row = host_row("ws", state, check_mode=True)
    assert row["outcome"] == "planned"
    assert "would do: install the driver" in result_text([row])


def test_second_observation_of_an_earlier_playbook_says_nothing_of_a_host_that_is_gone():
    state = changed("planned", {"unreachable": True, "msg": "timed out"})
    state["after"] = copy.deepcopy(READY["planned"])
    assert host_row("ws", state)["outcome"] == "unreachable"


def test_check_mode_tells_what_only_waits_from_what_would_be_done():
    state = changed("planned.plan.pending", [{"what": "reboot", "why": "not allowed", "remedy": "allow"}])
    row = host_row("ws", state, check_mode=True)
    assert (row["outcome"], row["reason"]) == ("pending", "reboot: not allowed")


def test_host_that_the_driver_role_left_alone_waits_and_says_for_whom():
    state = changed("planned.plan.actions", [{"what": "replace the loaded driver"}])
    state["after"] = copy.deepcopy(state["planned"])
    state["pending"] = {"what": "driver change", "why": "the GPU is busy: python3", "remedy": "Run again later."}
    row = host_row("ws", state)
    assert (row["outcome"], row["reason"]) == ("pending", "driver change: the GPU is busy: python3")
    assert row["remedy"] == "Run again later."


def test_row_names_the_generation_that_serves():
    assert host_row("ws", changed("planned.observation.driver.journal", {"generation": 3}))["generation"] == 3
    assert host_row("ws", changed("planned.observation.driver.journal", None))["generation"] is None


def test_credentials_in_a_url_are_never_shown():
    state = changed("failed", "Build: https://me:geheim@mirror.example.org/whl does not answer")
    text = result_text([host_row("ws", state)])
    assert "geheim" not in text
    assert "https://mirror.example.org/whl" in text


def test_control_characters_of_a_host_never_reach_the_terminal():
    state = changed("planned.plan.gpus", [{"name": "RTX\x1b[2J 5070\u202e", "sm": "sm_120\x07"}])
    state["note"] = "a\x1b]0;b"
    text = result_text([host_row("ws", state)])
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert "\u202e" not in text


def test_table_has_one_aligned_row_a_host_and_says_why_and_what_to_do():
    rows = [
        host_row("a", READY),
        host_row("longer-name", changed("planned.plan.refusals", [{"reason": "no GPU", "remedy": "add one"}])),
    ]
    lines = result_text(rows).splitlines()
    assert lines[2].index("READY") == lines[3].index("REFUSED") == lines[0].index("outcome")
    assert "1 of 2 hosts train-ready." in lines
    assert "longer-name refused: no GPU" in lines
    assert "    what to do: add one" in lines


def test_two_equal_gpus_are_counted():
    state = changed("planned.plan.gpus", [{"name": "GeForce RTX 3090", "sm": "sm_86"}] * 2)
    row = host_row("ws", state)
    assert (row["gpu"], row["sm"]) == ("2 x RTX 3090", "sm_86")


def test_hosts_with_the_same_plan_are_one_group():
    plan = {
        "feasible": True,
        "actions": [{"what": "install", "why": "absent", "disruptive": True}],
        "driver": {"branch": 580, "flavor": "open", "minimum": "570.133.07"},
    }
    plans = {f"ws-{n}": {"plan": plan} for n in range(3)}
    plans["dead"] = {"unreachable": True, "msg": "timed out"}
    groups = plan_groups(plans)
    assert [(group["kind"], len(group["hosts"])) for group in groups] == [("unreachable", 1), ("change", 3)]
    text = plan_text(plans)
    assert "TO CHANGE: ws-0, ws-1, ws-2" in text
    assert "  ! install (absent)" in text
    assert "disruptive steps (marked !) on 3: ws-0, ws-1, ws-2" in text


# ---- proofs of earlier runs -----------------------------------------------------------------------------------------

STAMPED = {
    "name": "base",
    "verdict": "passed",
    "level": "quick",
    "proven": "quick",
    "proven_at": "2026-11-17T14:02:00Z",
    "stamped": True,
    "reason": "",
    "remedy": "",
}
RUN = {"what": "prove the environment base at level quick", "why": "since its proof: rebooted", "step": "proof"}


def proven_earlier(**changes: object) -> dict:
    """A host on which this run proved nothing, because a stamp covers."""
    state = changed("planned.plan.environments", [{"name": "base", "stamped": {**STAMPED, **changes}}])
    state["proof"] = {"changed": False, "skipped": True}
    return state


def test_ready_on_an_earlier_proof_says_of_which_day_it_is():
    row = host_row("ws", proven_earlier())
    assert (row["outcome"], row["proof"]) == ("ready", "quick passed on 2026-11-17")
    assert row["proven_at"] == "2026-11-17T14:02:00Z"
    assert "quick passed on 2026-11-17" in result_text([row])


def test_a_proof_of_this_run_says_no_day_and_comes_before_a_stamp():
    state = proven_earlier()
    state["proof"] = {
        "verdict": "failed",
        "level": "quick",
        "environments": [{"name": "base", "verdict": "failed", "proven": None, "checks": []}],
    }
    assert host_row("ws", state)["outcome"] == "not_proven"
    assert host_row("ws", state)["proof"] == "quick failed"
    assert host_row("ws", READY)["proof"] == "quick passed"


def test_an_earlier_proof_is_no_more_than_it_says():
    state = proven_earlier(
        verdict="not_run", proven="static", reason="the GPU is in use by python (42)", remedy="Wait."
    )
    row = host_row("ws", state)
    assert (row["outcome"], row["proof"]) == ("not_proven", "static passed on 2026-11-17, quick not run")
    assert "the GPU is in use by python (42)" in row["reason"]
    assert row["remedy"] == "Wait."
    assert host_row("ws", {**state, "required_level": "static"})["outcome"] == "ready"


def test_of_several_environments_the_oldest_proof_tells_the_day():
    state = proven_earlier()
    state["planned"]["plan"]["environments"].append({"name": "vision", "stamped": None})
    ran = {
        "name": "vision",
        "verdict": "passed",
        "proven": "quick",
        "proven_at": "2026-11-23T08:00:00Z",
        "stamped": False,
    }
    state["proof"] = {"verdict": "passed", "level": "quick", "environments": [ran]}
    row = host_row("ws", state)
    assert (row["outcome"], row["proof"]) == ("ready", "quick passed on 2026-11-17")
    state["proof"]["environments"] = []
    assert host_row("ws", state)["outcome"] == "not_proven"


@pytest.mark.parametrize("proof", [{"unreachable": True, "msg": "gone"}, {"failed": True, "msg": "MODULE FAILURE"}])
def test_a_proof_that_was_tried_and_came_to_no_end_is_not_replaced_by_an_earlier_one(proof):
    state = proven_earlier()
    state["proof"] = proof
    row = host_row("ws", state)
    assert (row["outcome"], row["proof"]) == ("not_proven", "-")


@pytest.mark.parametrize("odd", [None, True, "passed", [], {}, {"verdict": "passed"}, {**STAMPED, "proven": "any"}])
def test_no_odd_stamp_makes_a_host_ready(odd):
    state = changed("planned.plan.environments", [{"name": "base", "stamped": odd}])
    state["proof"] = {}
    assert host_row("ws", state)["ready"] is False


def test_a_stamp_of_the_state_before_a_change_does_not_count_after_it():
    state = proven_earlier()
    state["planned"]["plan"]["actions"] = [{"what": "install", "step": "driver"}]
    state["after"] = copy.deepcopy(READY["planned"])
    state["after"]["plan"]["environments"] = [{"name": "base", "stamped": None}]
    assert host_row("ws", state)["outcome"] == "not_proven"


def test_an_action_that_only_proves_is_not_unfinished_once_it_has_run():
    state = changed("planned.plan.actions", [RUN])
    assert host_row("ws", state)["outcome"] == "ready"
    state["proof"] = {}
    assert host_row("ws", state)["outcome"] == "not_proven"


def test_check_mode_tells_what_would_only_be_proven_from_what_would_change():
    state = changed("planned.plan.actions", [RUN])
    state["proof"] = {}
    row = host_row("ws", state, check_mode=True)
    assert (row["outcome"], row["reason"]) == ("would_prove", f"{RUN['what']}: since its proof: rebooted")
    assert "WOULD PROVE" in result_text([row])
    state["planned"]["plan"]["actions"] = [{"what": "install", "step": "driver"}, RUN]
    row = host_row("ws", state, check_mode=True)
    assert (row["outcome"], row["reason"]) == ("planned", "2 actions")


def test_the_plan_tells_hosts_that_are_only_proven_from_those_that_change():
    text = plan_text({"ws": {"plan": {"feasible": True, "actions": [RUN]}, "observation": {}}})
    assert "TO PROVE: ws" in text
    assert "prove the environment base at level quick (since its proof: rebooted)" in text


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("ready\u202e\u200b\ufeff now", "ready  now"),
        ("\x1b]8;;x\x1b\\a\ud800b", "]8;;x \\a b"),
        ("HTTPS://me:pa\x00ss@index.invalid/x", "HTTPS://index.invalid/x"),
    ],
)
def test_what_cannot_be_seen_and_credentials_do_not_reach_a_table(told, shown):
    assert clean(told) == shown


def test_a_very_long_string_is_cleaned_at_once():
    started = time.perf_counter()
    assert len(clean("w" * 1_000_000)) == 1_000_000
    assert time.perf_counter() - started < 5
