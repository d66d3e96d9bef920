"""What is proven in a run, and what a stamp of an earlier proof spares."""

from __future__ import annotations

import json
from typing import Any

import yaml


def asked(fleet: Any) -> list[str]:
    """The environments of the host a that were proven."""
    if not fleet.was_asked("a", "proof.json"):
        return []
    return [item["name"] for item in fleet.asked("a", "proof.json")["environments"]]


def test_what_a_stamp_covers_is_not_proven_again_and_the_table_says_of_which_day_it_is(fleet):
    fleet.add("a")
    fleet.stamp("a", "before.json", "base")
    done = fleet.play()
    assert done.status == 0, done.text
    assert asked(fleet) == []
    assert "quick passed on 2026-11-17  READY" in done.table
    assert "changed=0" in done.text


def test_compliance_is_proven_anew_where_that_is_asked_for_and_leaves_no_stamp(fleet):
    fleet.add("a")
    fleet.stamp("a", "before.json", "base")
    never = ("-e", "gpu_compliance_fail_on=never")  # these hosts are described in a few words
    done = fleet.play(*never, playbook="check_compliance")
    assert done.status == 0, done.text
    assert not fleet.was_asked("a", "proof.json")
    done = fleet.play(*never, "-e", "gpufleet_prove=true", playbook="check_compliance")
    assert done.status == 0, done.text
    assert asked(fleet) == ["base"]
    assert fleet.asked("a", "proof.json")["stamp"] is False


def test_only_the_environment_that_no_stamp_covers_is_proven_and_stamped(fleet):
    fleet.add("a", torch_env_environments=[{"name": "base"}, {"name": "vision"}])
    fleet.stamp("a", "before.json", "base")
    environment = {"name": "vision", "verdict": "passed", "proven": "quick", "gpus": [], "checks": []}
    fleet.write("a", "proof.json", {"verdict": "passed", "level": "quick", "environments": [environment]})
    done = fleet.play()
    assert done.status == 0, done.text
    assert asked(fleet) == ["vision"]
    assert fleet.asked("a", "proof.json")["stamp"] is True
    assert "quick passed on 2026-11-17  READY" in done.table


def test_check_mode_proves_nothing_and_says_what_would_be_proven(fleet):
    fleet.add("a")
    fleet.stamp("a", "before.json", "base", at="2026-11-10T14:02:00Z")
    done = fleet.play("--check", "--diff")
    assert done.status == 0, done.text
    assert asked(fleet) == []
    assert "WOULD PROVE" in done.table
    assert "its proof of 2026-11-10T14:02:00Z is older than 168 hours" in done.table
    assert "changed=0" in done.text


def test_what_the_run_changed_is_proven_although_a_stamp_covers_the_state_after_it(fleet):
    fleet.add("a", ready=False)
    fleet.stamp("a", "after.json", "base")
    done = fleet.play()
    assert done.status == 0, done.text
    assert "torch_env" in fleet.marks("a")
    assert asked(fleet) == ["base"]
    assert "2026-11-17" not in done.table


def test_a_run_of_one_step_proves_what_no_stamp_covers(fleet):
    fleet.add("a")
    assert fleet.play("--tags", "torch").status == 0
    assert asked(fleet) == ["base"]


def test_the_role_alone_proves_what_no_stamp_covers_and_fails_below_the_required_level(fleet):
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.include_role": {"name": "gpufleet.workstation.gpu_proof"}},
            {"ansible.builtin.debug": {"msg": "proven: {{ gpu_proof_result.verdict }} {{ gpu_proof_result.environments[0].proven_at }}"}},
        ],
    }  # fmt: skip
    (fleet.folder / "role.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    fleet.add("a", proof="not_run")
    fleet.stamp("a", "before.json", "base")
    done = fleet.play(playbook=str(fleet.folder / "role.yml"))
    assert done.status == 0, done.text
    assert "proven: passed 2026-11-17T14:02:00Z" in done.text
    assert asked(fleet) == []
    answer = json.loads((fleet.folder / "a/before.json").read_text(encoding="utf-8"))
    answer["observation"]["os"]["boot_id"] = "boot-2"
    fleet.write("a", "before.json", answer)
    done = fleet.play(playbook=str(fleet.folder / "role.yml"))
    assert done.status == 2
    assert asked(fleet) == ["base"]
    assert "base is proven at level static, gpu_proof_required_level is quick" in done.text
