# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every GPU, every build and every observation, however odd."""

from __future__ import annotations

import copy
import itertools
import json
import time
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import matrix, pci_ids
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    Knowledge,
    at_least,
    branch_of,
    cuda_version,
    version_key,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.sass import runs_on
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Make = Callable[..., dict[str, Any]]
KNOWLEDGE = Knowledge.of(matrix)
DEVICES = {line[:4]: pci_ids.CHIPS[line.split(" ")[1]] for line in pci_ids.GPUS.splitlines()}
ONE_OF_EACH = {cc: device for device, cc in DEVICES.items() if cc}
BUILDS = [(version, tag) for version, release in KNOWLEDGE.releases.items() for tag in release.indexes]


def check(plan: dict[str, Any]) -> None:
    """What holds for every plan."""
    assert plan["feasible"] == (plan["refusals"] == [])
    json.dumps(plan)
    for refusal in plan["refusals"]:
        assert refusal["reason"]
        assert refusal["remedy"].endswith(".")
        assert not refusal["reason"].endswith(".")
        assert "None" not in refusal["reason"] + refusal["remedy"]
        assert "{" not in refusal["remedy"] or refusal["code"] == "unobserved"
    if plan["refusals"]:
        assert plan["actions"] == []
        assert plan["driver"]["actions"] == []
    sentences = [*plan["reasons"], *plan["warnings"]]
    assert len(sentences) == len(set(sentences))
    for sentence in sentences:
        assert "None" not in sentence, sentence
        assert sentence.endswith("."), sentence


@pytest.mark.parametrize("system", ["debian12", "debian13"])
def test_every_known_gpu_gets_a_driver_that_drives_it_and_a_torch_that_runs_on_it(fresh: Make, system: str) -> None:
    for device, cc in DEVICES.items():
        plan = resolve(fresh(device, system=system))
        check(plan)
        if not plan["feasible"]:
            assert {refusal["code"] for refusal in plan["refusals"]} <= {"torch_arch"}, device
            assert cc == "11.0", device  # Thor has no x86_64 build
            continue
        driver, (gpu,) = plan["driver"], plan["gpus"]
        assert at_least(driver["minimum"], gpu["minimum_driver"] or "0")
        assert driver["source"] == "platform" or driver["branch"] >= branch_of(driver["minimum"])
        architecture = KNOWLEDGE.architectures.get(cc or "")
        if architecture:
            assert gpu["runs_on"], device
            assert architecture.modules in ("both", driver["flavor"])
            assert architecture.last_branch is None or driver["branch"] <= architecture.last_branch


def test_no_build_is_planned_for_a_gpu_that_it_has_no_code_for(fresh: Make) -> None:
    planned = 0
    for (version, tag), (cc, device), arch in itertools.product(BUILDS, ONE_OF_EACH.items(), ("x86_64", "aarch64")):
        observation = fresh(device, system="debian12")
        observation["os"]["arch"] = arch
        plan = resolve(observation, {"torch": {"version": version, "cuda": tag}, "python": "3.11"})
        check(plan)
        code = KNOWLEDGE.releases[version].indexes[tag].architectures[arch]
        covered = any(runs_on(compiled, cc, str(cuda_version(tag))) for compiled in code or ())
        assert plan["feasible"] == covered, (version, tag, cc, arch, plan["refusals"])
        assert bool(plan["gpus"][0]["runs_on"]) == covered
        planned += covered
        if covered:
            assert plan["torch"]["build"] == f"{version}+{tag}"
            assert at_least(plan["driver"]["minimum"], KNOWLEDGE.cuda_floors[str(cuda_version(tag))])
    assert planned > 300


def test_the_nearest_that_is_named_works_when_it_is_asked_for(fresh: Make) -> None:
    named = 0
    for (version, tag), device in itertools.product(BUILDS, ONE_OF_EACH.values()):
        observation = fresh(device, system="debian12")
        plan = resolve(observation, {"torch": {"version": version, "cuda": tag}, "python": "3.11"})
        for refusal in plan["refusals"]:
            if "nearest that works here" in refusal["remedy"]:
                build = refusal["remedy"].split("torch_env_version to ")[1].split(",")[0]
                again = resolve(observation, {"torch": {"version": build}, "python": "3.11"})
                assert again["feasible"], (version, tag, device, build, again["refusals"])
                named += 1
    assert named > 50


def test_two_gpus_are_served_exactly_where_modules_and_one_build_serve_both(fresh: Make) -> None:
    release = KNOWLEDGE.releases[matrix.DEFAULTS["torch"]]
    for (first, one), (second, two) in itertools.product(ONE_OF_EACH.items(), repeat=2):
        if "11.0" in (first, second):
            continue
        plan = resolve(fresh(one, two))
        check(plan)
        modules = {KNOWLEDGE.architectures[cc].modules for cc in (first, second)}
        served = any(
            all(
                any(runs_on(code, cc, index.cuda) for code in index.architectures["x86_64"] or ())
                for cc in (first, second)
            )
            for index in release.indexes.values()
        )
        assert plan["feasible"] == (not {"open", "proprietary"} <= modules and served), (
            first,
            second,
            plan["refusals"],
        )
        assert ("gpu_mix" in {row["code"] for row in plan["refusals"]}) == ({"open", "proprietary"} <= modules)


@pytest.mark.parametrize("branch", sorted(KNOWLEDGE.branches))
@pytest.mark.parametrize("flavor", ["auto", "open", "proprietary"])
def test_a_branch_that_was_asked_for_is_planned_or_refused_never_replaced(
    fresh: Make, branch: int, flavor: str
) -> None:
    for cc, device in ONE_OF_EACH.items():
        architecture = KNOWLEDGE.architectures[cc]
        if architecture.driver_from != "packages":
            continue
        plan = resolve(fresh(device), {"driver": {"branch": str(branch), "flavor": flavor}})
        check(plan)
        assert plan["driver"]["branch"] == branch
        if plan["feasible"]:
            assert branch >= 550
            assert branch >= branch_of(plan["gpus"][0]["minimum_driver"])
            assert architecture.last_branch is None or branch <= architecture.last_branch
            assert architecture.modules in ("both", plan["driver"]["flavor"])
            assert plan["driver"]["flavor"] in KNOWLEDGE.branches[branch].modules


def test_an_installed_driver_is_kept_or_replaced_by_a_newer_branch(fresh: Make, driven: Make) -> None:
    for (cc, device), row, flavor in itertools.product(
        ONE_OF_EACH.items(), KNOWLEDGE.branches.values(), ("open", "proprietary")
    ):
        if KNOWLEDGE.architectures[cc].driver_from != "packages":
            continue
        plan = resolve(fresh(device, driver=driven(row.latest_seen, flavor)))
        check(plan)
        if plan["feasible"]:
            assert plan["driver"]["branch"] >= row.branch
            kept = "driver.stage" not in {action["id"] for action in plan["actions"]}
            assert kept == ((plan["driver"]["branch"], plan["driver"]["flavor"]) == (row.branch, flavor))
        else:
            assert {refusal["code"] for refusal in plan["refusals"]} == {"driver_downgrade"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    devices=st.lists(st.sampled_from(sorted(DEVICES)) | st.from_regex(r"[0-9a-f]{4}", fullmatch=True), max_size=4),
    version=st.sampled_from(sorted(KNOWLEDGE.releases)) | st.from_regex(r"[0-3]\.[0-9]{1,2}\.[0-9]", fullmatch=True),
    cuda=st.sampled_from(["auto", "cu118", "cu126", "cu128", "cu130", "cu132", "cu999", "cpu"]),
    system=st.sampled_from(["debian12", "debian13", "debian13-arm", "ubuntu2404", "ubuntu2604", "rocky9", "arch"]),
    driver=st.fixed_dictionaries(
        {},
        optional={
            "branch": st.sampled_from(["auto", "535", "550", "570", "580", "595", "620", "700"]),
            "flavor": st.sampled_from(["auto", "open", "proprietary"]),
            "source": st.sampled_from(["auto", "nvidia", "distro"]),
            "minimum": st.sampled_from(["550", "580.65.06", "595", "700"]),
            "state": st.sampled_from(["present", "absent"]),
        },
    ),
    installed=st.sampled_from([None, "535.261.03", "550.163.01", "580.105.08", "595.84", "620.05"]),
    source=st.sampled_from(["nvidia", "distro", "runfile"]),
    steps=st.lists(st.sampled_from(["driver", "torch", "runtime", "proof"]), unique=True),
)
def test_any_wish_on_any_host_gets_a_sound_plan_the_same_every_time(
    fresh: Make, driven: Make, devices: list[str], version: str, cuda: str, system: str, driver: dict[str, str],
    installed: str | None, source: str, steps: list[str],
) -> None:  # fmt: skip
    observation = fresh(*devices, system=system)
    if installed:
        observation["driver"] = driven(installed, source=source)
    desired = {"torch": {"version": version, "cuda": cuda}, "driver": driver, "steps": steps}
    plan = resolve(observation, desired)
    check(plan)
    assert {action["step"] for action in plan["actions"]} <= set(steps)
    assert resolve(copy.deepcopy(observation), copy.deepcopy(desired)) == plan
    asked = driver.get("branch", "auto")
    if plan["feasible"] and "driver" in steps and asked != "auto" and driver.get("state") != "absent":
        assert str(plan["driver"]["branch"]) == asked or plan["driver"]["source"] == "platform"


odd = (
    st.none() | st.booleans() | st.integers(-2, 999) | st.text(max_size=6) | st.just([]) | st.just({}) | st.just([None])
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_observation_with_holes_and_oddities_never_breaks_the_planner(
    full: Make, driven: Make, data: st.DataObject
) -> None:
    observation = full("2f04", **driven("570.211.01"))
    observation["environments"] = [
        {"name": "base", "current": "x", "releases": [{"id": "x"}], "stamp": {}, "integrity": {}}
    ]
    for _round in range(data.draw(st.integers(1, 4))):
        place: Any = observation
        while isinstance(place, (dict, list)) and place:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if data.draw(st.booleans()) or not isinstance(place[key], (dict, list)):
                place[key] = copy.deepcopy(data.draw(odd))
                break
            place = place[key]
    json.dumps(resolve(observation))


KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----"
BRANCHES = [{}, *({"branch": branch} for branch in ("550", "580", "595", "620")), {"branch_preferred": "595"}]
WISHES = st.fixed_dictionaries(
    {"source": st.sampled_from(["auto", "nvidia", "distro"]), "which": st.sampled_from(BRANCHES)},
    optional={
        "flavor": st.sampled_from(["auto", "open", "proprietary"]),
        "package_set": st.sampled_from(["auto", "compute", "desktop"]),
        "downgrade_allowed": st.booleans(),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    system=st.sampled_from(["debian12", "debian13", "ubuntu2204", "ubuntu2404", "rocky9", "alma10"]),
    device=st.sampled_from(["2204", "2f04", "1b80"]),
    wishes=st.lists(WISHES, min_size=1, max_size=5),
    graphical=st.booleans(),
    running=st.booleans(),
)
def test_any_life_across_sources_branches_and_flavors_ends_whole_after_every_step(
    full: Make, carry_out: Make, system: str, device: str, wishes: list[dict[str, Any]], graphical: bool, running: bool
) -> None:
    seen = full(device, system=system)
    seen["os"]["graphical"] = graphical
    seen["os"]["kernels"][0]["running"] = running  # else it was removed while it ran
    for number, wish in enumerate(map(dict, wishes)):
        driver = {"repository_key": KEY, "reboot_allowed": True, "minimum": "535"}
        driver.update(wish.pop("which"), **wish)
        desired = {"driver": driver, "steps": ["driver"]}
        plan = resolve(seen, desired)
        check(plan)
        if not plan["feasible"]:
            continue
        changes = {action["id"]: action["data"] for action in plan["actions"]}
        if "driver.packages" not in changes:
            assert not changes, "kept, and yet something is to be done"
            continue
        assert not set(changes["driver.packages"]["packages"]) & set(changes["driver.packages"]["remove"])
        version = f"{plan['driver']['branch']}.{100 + number}.05"
        seen = carry_out(seen, plan, version)
        again = resolve(seen, desired)
        assert (again["actions"], again["pending"], again["refusals"]) == ([], [], [])
        parts = [one for one in seen["driver"]["packages"] if not one["name"].startswith("linux-modules-nvidia")]
        assert {version in one["version"] for one in parts} == {True}, parts
        assert {one["source"] for one in seen["driver"]["packages"]} == {plan["driver"]["source"]}
        releases = [kernel["release"] for kernel in seen["os"]["kernels"]]
        found = {release: seen["driver"]["modules_by_kernel"][release] for release in releases}
        assert {(one["version"], one["flavor"]) for one in found.values()} == {(version, plan["driver"]["flavor"])}


@pytest.mark.parametrize(("system", "source"), [("debian13", "distro"), ("ubuntu2404", "nvidia"), ("rocky9", "nvidia")])
def test_not_knowing_something_is_no_reason_to_take_a_good_driver_away(
    full: Make, carry_out: Make, system: str, source: str
) -> None:
    desired = {"driver": {"repository_key": KEY, "source": source, "reboot_allowed": True}, "steps": ["driver"]}
    observation = full("2204", system=system)
    seen = carry_out(observation, resolve(observation, desired))
    holes = [(part, key) for part in ("os", "driver") for key in seen[part] if key not in ("source", "loaded_version")]
    for (part, key), gone in itertools.product(holes, (True, False)):
        partial = copy.deepcopy(seen)
        partial[part][key] = None
        if gone:
            del partial[part][key]
        plan = resolve(partial, desired)
        check(plan)
        assert {action["id"] for action in plan["actions"]} <= {"driver.repository"}, (part, key, gone)


def test_a_plan_takes_about_a_millisecond(full: Make, carry_out: Make) -> None:
    observation = full("2f04", "2204")
    seen = carry_out(observation, resolve(observation))
    best = min(_seconds(seen) for _try in range(5))
    assert best < 0.005, f"{best * 1000:.1f} ms"


def _seconds(observation: dict[str, Any]) -> float:
    begin = time.perf_counter()
    for _round in range(20):
        resolve(observation)
    return (time.perf_counter() - begin) / 20


def test_versions_in_the_knowledge_base_all_compare() -> None:
    for row in (*KNOWLEDGE.branches.values(),):
        assert version_key(row.latest_seen)[0] == row.branch
