"""Rollback and removal: what a dry run leaves alone, what a real run does, and what they say of hosts they could not serve."""

from __future__ import annotations

import pytest

OLD = {"name": "old", "path": "/srv/envs/old", "current": "r1", "releases": [{"id": "r1", "stamped": True}]}


def test_removal_is_a_dry_run_unless_told_otherwise_and_names_what_goes(fleet):
    fleet.add("a")
    done = fleet.play(playbook="remove")
    assert done.status == 0, done.text
    assert "Environments that go: /opt/gpufleet/envs/base." in done.text
    assert "Nothing was removed." in done.text
    assert fleet.marks("a") == set()
    assert fleet.releases("a") == []


def test_removal_takes_environments_that_no_variable_names_any_more(fleet):
    fleet.add("a", ready=False)
    fleet.observe("a", "before.json", ready=False, environments=[OLD])
    fleet.observe("a", "after.json", ready=False, environments=[OLD])
    done = fleet.play("-e", "gpufleet_remove=true", playbook="remove")
    assert done.status == 0, done.text
    assert fleet.releases("a") == ["old absent /srv/envs"]


def test_removal_plans_no_builds(fleet):
    fleet.add("a", ready=False)
    done = fleet.play(playbook="remove")
    assert done.status == 0, done.text
    assert "build" not in done.text


def test_removal_of_one_part_leaves_the_others(fleet):
    fleet.add("a")
    done = fleet.play("-e", "gpufleet_remove=true", "--tags", "torch", playbook="remove")
    assert done.status == 0, done.text
    assert fleet.releases("a") == ["base absent /opt/gpufleet/envs"]
    assert fleet.marks("a") == set()


def test_removal_needs_no_gpu(fleet):
    fleet.add("a")
    fleet.observe("a", "before.json", ready=True)
    observation = {"gpus": [], "environments": [OLD]}
    fleet.observe("a", "before.json", ready=False, **observation)
    fleet.observe("a", "after.json", ready=False, **observation)
    done = fleet.play("-e", "gpufleet_remove=true", playbook="remove")
    assert done.status == 0, done.text
    assert fleet.releases("a") == ["old absent /srv/envs"]


@pytest.mark.parametrize(
    ("playbook", "options"), [("remove", ["-e", "gpufleet_remove=true"]), ("rollback", ["--tags", "torch"])]
)
def test_dead_host_is_no_success_and_stops_nobody(fleet, playbook, options):
    (fleet.add("a") / "dead").touch()
    fleet.add("b")
    done = fleet.play(*options, playbook=playbook)
    assert done.status == 2, done.text
    assert "the cable is cut" in done.text[done.text.rfind("TASK [Fail every host") :]
    assert len(fleet.releases("b")) == 1
    assert "The run ended before its report" not in done.text
