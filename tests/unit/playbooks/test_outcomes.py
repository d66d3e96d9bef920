"""What a run says of every host, and its exit status: 0 only where all hosts were seen to be ready."""

from __future__ import annotations

import json

import pytest


def test_fleet_that_is_ready_ends_with_success_and_applies_nothing(fleet):
    fleet.add("a")
    done = fleet.play()
    assert done.status == 0, done.text
    assert "1 of 1 hosts train-ready." in done.text
    assert fleet.marks("a") == set()


def test_host_is_changed_observed_again_and_ready(fleet):
    fleet.add("a", ready=False)
    done = fleet.play()
    assert done.status == 0, done.text
    assert "1 of 1 hosts train-ready." in done.text
    assert fleet.marks("a") == {"torch_env", "runtime_env"}


def test_what_ready_hosts_are_like_is_kept_for_compliance_to_compare_with(fleet):
    fleet.add("a")
    fleet.add("b", proof="failed")
    kept = fleet.folder / ".gpufleet/compliance/provisioned.json"
    fleet.play("--check")
    assert not kept.exists()
    done = fleet.play("-e", "gpufleet_max_failed=1")
    assert "1 of 2 hosts train-ready." in done.text
    records = json.loads(kept.read_text(encoding="utf-8"))
    assert list(records) == ["a"]
    assert records["a"]["facts"]["driver.installed"] == "580.95.05"
    done = fleet.play("--limit", "b", "-e", "gpufleet_max_failed=1")
    assert json.loads(kept.read_text(encoding="utf-8")) == records  # hosts that a run leaves out keep theirs


def test_a_record_that_cannot_be_written_is_a_warning_and_hosts_are_ready_all_the_same(fleet):
    fleet.add("a")
    (fleet.folder / ".gpufleet/compliance").touch()
    done = fleet.play()
    assert done.status == 0, done.text
    assert "1 of 1 hosts train-ready." in done.text
    assert "Compliance will not be able to tell what changed since this run" in done.text


def test_check_mode_applies_nothing_and_predicts(fleet):
    fleet.add("a", ready=False)
    done = fleet.play("--check")
    assert done.status == 0, done.text
    assert "WOULD CHANGE" in done.table
    assert "0 of 1 hosts train-ready." in done.text
    assert fleet.marks("a") == set()


def test_failed_host_holds_later_batches_back_and_says_so(fleet):
    fleet.add("a", ready=False)
    (fleet.folder / "a" / "torch_env.fails").touch()
    fleet.add("b", ready=False)
    fleet.add("c")
    done = fleet.play()
    assert done.status == 2, done.text
    assert "0 of 3 hosts train-ready." in done.text
    assert "a failed: Serve: non-zero return code: no space left" in done.text
    assert "b held back: the run stopped before this host" in done.text
    assert "c held back: the run stopped before this host" in done.text
    assert fleet.marks("b") == set()


def test_permitted_failures_do_not_hold_others_back(fleet):
    fleet.add("a", ready=False)
    (fleet.folder / "a" / "torch_env.fails").touch()
    fleet.add("b", ready=False)
    done = fleet.play("-e", "gpufleet_max_failed=1")
    assert done.status == 2, done.text
    assert "1 of 2 hosts train-ready." in done.text
    assert fleet.marks("b") == {"torch_env", "runtime_env"}


def test_host_that_is_lost_midway_holds_later_batches_back(fleet):
    fleet.add("a", ready=False)
    fleet.add("b", ready=False)
    (fleet.folder / "a" / "torch_env.kills").touch()
    fleet.add("c", ready=False)
    done = fleet.play("-e", '{"gpufleet_batches": [2, 1]}')
    assert done.status not in (0,), done.text
    assert "a unreachable: the host stopped answering" in done.text
    assert "c held back: " in done.text
    assert "1 of 3 hosts train-ready." in done.text
    assert fleet.marks("c") == set()


@pytest.mark.parametrize("callback", [True, False])
def test_first_batch_that_is_lost_as_a_whole_is_never_a_success(fleet, callback):
    fleet.add("a", ready=False)
    (fleet.folder / "a" / "torch_env.kills").touch()
    fleet.add("b")
    done = fleet.play(callback=callback)
    assert done.status != 0
    assert "READY" not in done.table.replace("train-ready", "")
    assert ("The run ended before its report" in done.text) == callback


def test_dead_first_host_hides_nobody(fleet):
    (fleet.add("a") / "dead").touch()
    fleet.add("b", ready=False)
    done = fleet.play()
    assert done.status == 2, done.text
    assert "a unreachable: " in done.text
    assert "1 of 2 hosts train-ready." in done.text


@pytest.mark.parametrize(
    ("options", "marks"),
    [
        (["--tags", "proof"], set()),
        (["--tags", "torch"], {"torch_env"}),
        (["--tags", "runtime"], {"runtime_env"}),
        (["--skip-tags", "driver"], {"torch_env", "runtime_env"}),
    ],
)
def test_tags_choose_what_is_applied_and_the_proof_decides(fleet, options, marks):
    fleet.add("a", ready=False, proof="not_run")
    done = fleet.play(*options)
    assert done.status == 2, done.text
    assert "a not proven: quick was not run: as the test asks" in done.text
    assert fleet.marks("a") == marks


def test_proof_that_was_left_out_is_no_proof(fleet):
    fleet.add("a")
    done = fleet.play("--skip-tags", "proof")
    assert done.status == 2, done.text
    assert "a not proven: this run was told to leave the proof out" in done.text


def test_environments_that_are_none_prove_nothing(fleet):
    fleet.add("a", torch_env_environments=[])
    fleet.write("a", "proof.json", {"verdict": "not_run", "level": "quick", "environments": []})
    done = fleet.play()
    assert done.status == 2, done.text
    assert "a not proven: torch_env_environments is empty" in done.text


def test_bad_value_of_one_host_stops_the_run_for_all(fleet):
    fleet.add("a", ready=False)
    fleet.add("b", ready=False, torch_env_keep="two")
    done = fleet.play()
    assert done.status != 0
    assert "torch_env_keep" in done.text
    assert fleet.marks("a") == set()


def test_outcome_of_an_earlier_playbook_does_not_vouch_for_a_host_that_is_gone(fleet):
    home = fleet.add("a", ready=False)
    killer = fleet.folder / "kill.yml"
    killer.write_text(
        f"- hosts: localhost\n  gather_facts: false\n  tasks:\n    - command: touch {home}/dead\n", encoding="utf-8"
    )
    done = fleet.play(playbook=f"provision_gpu {killer} provision_gpu")
    assert done.status == 2, done.text
    assert "1 of 1 hosts train-ready." in done.text
    assert "0 of 1 hosts train-ready." in done.text[done.text.rfind("PLAY RECAP") :]


def test_failure_of_an_earlier_playbook_is_forgotten_once_it_is_mended(fleet):
    fleet.add("a", ready=False)
    fails = fleet.folder / "a" / "torch_env.fails"
    fails.touch()
    fleet.add("b")
    site = fleet.folder / "site.yml"
    provision = {"import_playbook": "gpufleet.workstation.provision_gpu"}
    mend = [{"meta": "clear_host_errors"}, {"file": {"path": str(fails), "state": "absent"}}]
    again = {"hosts": "all", "gather_facts": False, "tasks": mend}
    site.write_text(json.dumps([provision, again, provision]), encoding="utf-8")
    done = fleet.play("-e", "gpufleet_max_failed=1", playbook=str(site))
    assert "2 of 2 hosts train-ready." in done.text[done.text.rfind("PLAY RECAP") :], done.text


def test_credentials_of_an_index_are_not_shown(fleet):
    index = "https://me:geheim@mirror.invalid/whl"
    fleet.add("a", ready=False, torch_env_index_base_url=index)
    answers = {f"{index}/cu128/torch/": {"status": None, "error": "401 Unauthorized"}}
    fleet.observe("a", "before.json", ready=False, urls=answers)
    done = fleet.play("--diff")
    assert done.status == 2, done.text
    assert "https://mirror.invalid/whl/cu128: 401 Unauthorized" in done.text
    assert "geheim" not in done.text
