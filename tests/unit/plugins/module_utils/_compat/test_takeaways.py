# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users take away of an environment is planned like every other managed file: it never says what is no longer so."""

from __future__ import annotations

import copy
import hashlib
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import observation_request
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, takeaway

Make = Callable[..., dict[str, Any]]
LOCK = lock.Lock({"name": "base"}, (lock.Pinned("torch", "2.9.1+cu128", ("0" * 64,), True),))
WANTED = {"locks": {"base": LOCK.render()}}
HOME = "/opt/gpufleet/envs/base/takeaway"


def written(seen: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """The host with the files of a plan's environments."""
    seen = copy.deepcopy(seen)
    for environment in plan["environments"]:
        for path, (mode, content) in takeaway.managed(environment, LOCK).items():
            digest = hashlib.sha256(content.encode()).hexdigest()
            row = {"sha256": digest, "mode": f"{mode:04o}", "owner": "root", "group": "root", "type": "file"}
            seen["files"][path] = row
    return seen


def ids(plan: dict[str, Any]) -> list[str]:
    return [action["id"] for action in plan["actions"]]


@pytest.fixture
def bare(full: Make, carry_out: Make) -> dict[str, Any]:
    """A host that has the release, from a version of the collection that wrote no such files there."""
    observation = full("2f04")
    return carry_out(observation, resolve(observation, WANTED))


@pytest.fixture
def converged(bare: dict[str, Any]) -> dict[str, Any]:
    return written(bare, resolve(bare, WANTED))


def test_they_are_part_of_the_single_observation() -> None:
    names = {"requirements-torch.txt", "requirements.txt", "constraints.txt", "Dockerfile", "kernel.json"}
    asked = observation_request({"environments": [{"name": "base"}, {"name": "vision"}]})["files"]
    assert {f"{HOME}/{name}" for name in names} < set(asked)
    assert {f"{HOME}/{name}".replace("base", "vision") for name in names} < set(asked)


def test_what_is_missing_is_written_once(bare: dict[str, Any]) -> None:
    plan = resolve(bare, WANTED)
    assert ids(plan) == ["torch.takeaway:base"]
    assert f"{HOME}/Dockerfile" in plan["actions"][0]["what"]
    assert plan["environments"][0]["actions"] == plan["actions"]
    assert ids(resolve(written(bare, plan), WANTED)) == []


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"mirror": {"index_base_url": "http://m.lan/whl"}}, ["requirements-torch.txt"]),
        ({"mirror": {"package_index_url": "http://m.lan/simple"}}, ["requirements.txt"]),
        ({"package_index_url": "https://pypi.example/simple"}, ["requirements.txt"]),
        ({"runtime": {"variables": {"NOTE": "new"}}}, ["Dockerfile"]),
    ],
)
def test_a_change_that_the_release_does_not_see_makes_them_stale(
    converged: dict[str, Any], change: dict[str, Any], stale: list[str]
) -> None:
    plan = resolve(converged, {**WANTED, "steps": ["torch"], **change})
    assert ids(plan) == ["torch.takeaway:base"]
    named = plan["actions"][0]["what"]
    assert [name for name in takeaway.NAMES if f"/{name}" in named] == stale
    assert ids(resolve(written(converged, plan), {**WANTED, "steps": ["torch"], **change})) == []


def test_credentials_of_an_index_change_nothing(converged: dict[str, Any]) -> None:
    mirror = {"index_base_url": "http://m.lan/whl"}
    plain = written(converged, resolve(converged, {**WANTED, "mirror": mirror}))
    mirror = {"index_base_url": "http://bob:one@m.lan/whl"}
    once = written(plain, resolve(plain, {**WANTED, "mirror": mirror}))
    assert ids(resolve(once, {**WANTED, "mirror": {"index_base_url": "http://bob:two@m.lan/whl"}})) == []


@pytest.mark.parametrize("drift", [None, {"sha256": "0" * 64}, {"mode": "0666"}, {"owner": "mallory"}])
def test_what_somebody_changed_is_written_again(converged: dict[str, Any], drift: dict[str, Any] | None) -> None:
    path = f"{HOME}/constraints.txt"
    converged["files"][path] = None if drift is None else {**converged["files"][path], **drift}
    plan = resolve(converged, WANTED)
    assert [(action["id"], action["what"]) for action in plan["actions"]] == [("torch.takeaway:base", f"write {path}")]


def test_a_controller_without_the_lock_leaves_them_alone(bare: dict[str, Any]) -> None:
    assert ids(resolve(bare)) == []


def test_while_a_switch_waits_they_describe_what_serves(converged: dict[str, Any]) -> None:
    converged["driver"].update(processes=[{"pid": 7, "command": "train", "user": "ann", "kind": "compute"}])
    other = lock.Lock({"name": "base"}, (lock.Pinned("torch", "2.9.1+cu128", ("1" * 64,), True),)).render()
    wanted = {"locks": {"base": other}, "switch_after": "quick", "steps": ["torch"]}
    plan = resolve(converged, wanted)
    assert ids(plan) == ["torch.build:base"]
    assert plan["pending"]


def test_a_text_that_is_no_lock_is_refused() -> None:
    with pytest.raises(InvalidDesired, match=r"locks\.base is no lock: it does not begin with"):
        resolve({}, {"locks": {"base": "torch==2.9.1"}})
