"""Rollback and removal: what a dry run leaves alone, what a real run does, and what they say of hosts they could not serve."""

from __future__ import annotations

import json

import pytest

GENERATIONS = [
    {"n": n, "branch": branch, "version": f"{branch}.95.05", "flavor": "open", "created": "2026-11-22T10:00:00Z",
     "environments": {"base": f"r{n}"}}
    for n, branch in ((1, 570), (2, 580), (3, 595))
]  # fmt: skip
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


def with_generations(fleet, name, now=3, **changes):
    driver = {
        "userspace_version": "595.95.05", "loaded_version": "595.95.05", "branch": 595, "packages": [],
        "generations": GENERATIONS, "journal": {"schema": 1, "generation": now}, **changes,
    }  # fmt: skip
    fleet.add(name)
    fleet.observe(name, "before.json", ready=True, driver=driver)


def test_rollback_goes_back_to_the_generation_before_this_one_and_to_the_previous_release(fleet):
    with_generations(fleet, "a")
    done = fleet.play(playbook="rollback")
    assert done.status == 0, done.text
    assert fleet.releases("a") == ["driver generation 2", "base previous /opt/gpufleet/envs"]


def test_rollback_to_a_generation_brings_the_releases_that_it_had(fleet):
    with_generations(fleet, "a")
    done = fleet.play("-e", "gpufleet_to=1", playbook="rollback")
    assert done.status == 0, done.text
    assert fleet.releases("a") == ["driver generation 1", "base previous /opt/gpufleet/envs r1"]


@pytest.mark.parametrize(
    ("tag", "asked"), [("driver", ["driver generation 2"]), ("torch", ["base previous /opt/gpufleet/envs"])]
)
def test_rollback_of_one_part_leaves_the_other(fleet, tag, asked):
    with_generations(fleet, "a")
    done = fleet.play("--tags", tag, playbook="rollback")
    assert done.status == 0, done.text
    assert fleet.releases("a") == asked


def test_generation_that_a_host_lacks_is_refused_with_those_that_it_has_and_others_go_back(fleet):
    with_generations(fleet, "a", generations=GENERATIONS[1:])
    with_generations(fleet, "b")
    done = fleet.play("-e", "gpufleet_to=1", playbook="rollback")
    assert done.status == 2, done.text
    said = done.text[done.text.rfind("TASK [Fail every host") :]
    assert (
        "a: there is no generation 1. It keeps generation 2 of 2026-11-22T10:00:00Z: driver 580.95.05 (open), base r2; generation 3"
        in said
    )
    assert fleet.releases("a") == []
    assert "driver generation 1" in fleet.releases("b")


@pytest.mark.parametrize("options", [("-e", "gpufleet_list=true"), ("--check",)])
def test_generations_are_listed_without_going_back(fleet, options):
    with_generations(fleet, "a")
    done = fleet.play(*options, playbook="rollback")
    assert done.status == 0, done.text
    assert "generation 3 serves. It keeps generation 1 of" in done.text
    assert "driver 595.95.05 (open), base r3" in done.text
    assert "driver generation 2" not in fleet.releases("a")


def test_host_that_has_nothing_to_go_back_to_is_no_success(fleet):
    fleet.add("a", ready=False)
    done = fleet.play(playbook="rollback")
    assert done.status == 2, done.text
    assert "a: there is nothing that it could go back to" in done.text


def test_host_of_the_first_version_goes_back_by_its_journal(fleet):
    journal = {"schema": 1, "previous": {"branch": 580, "flavor": "open", "source": "wsl"}, "present": None}
    with_generations(fleet, "a", generations=[], journal=journal)
    done = fleet.play("--tags", "driver", playbook="rollback")
    assert "TASK [Plan it]" in done.text
    assert "driver generation" not in done.text


def test_host_that_still_waits_is_no_success(fleet):
    with_generations(fleet, "a")
    waits = {"what": "driver change", "why": "the GPU is busy: python3", "remedy": "Run again."}
    (fleet.folder / "a" / "nvidia_driver.waits").write_text(json.dumps(waits), encoding="utf-8")
    done = fleet.play(playbook="rollback")
    assert done.status == 2, done.text
    assert fleet.releases("a") == ["driver generation 2"]
    assert "a: driver change waits: the GPU is busy: python3. Run again." in done.text
