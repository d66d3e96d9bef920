# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which torch build and which Python an environment gets, on every GPU generation, and what keeps a release serving."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

Make = Callable[..., dict[str, Any]]
RTX_5070 = "2f04"


@pytest.fixture
def converged(full: Make, carry_out: Make) -> dict[str, Any]:
    """A host on which the plan for its RTX 5070 was carried out."""
    observation = full(RTX_5070)
    return carry_out(observation, resolve(observation, {"locks": {"base": "a" * 64}}))


def test_a_controller_without_the_lock_keeps_what_was_built_with_one(converged: dict[str, Any]) -> None:
    plan = resolve(converged)
    assert plan["actions"] == []
    assert plan["environments"][0]["spec"]["lock"] == "a" * 64
    assert [action["id"] for action in resolve(converged, {"locks": {"base": "b" * 64}})["actions"]] == [
        "torch.build:base",
        "torch.switch:base",
    ]


def test_a_stamp_that_is_garbled_adopts_nothing(converged: dict[str, Any]) -> None:
    odd = copy.deepcopy(converged)
    odd["environments"][0]["stamp"]["spec"] = {"lock": "a" * 64, "torch": None}
    assert "lock" not in resolve(odd)["environments"][0]["spec"]


# ---- Python -------------------------------------------------------------------------------------------------------------


def with_pythons(observation: dict[str, Any], *versions: str) -> dict[str, Any]:
    observation["os"]["pythons"] = {version: f"/usr/bin/python{version}" for version in versions}
    return observation


@pytest.mark.parametrize(
    ("system", "pythons", "wanted", "package", "version"),
    [
        ("rocky9", ["3.9"], "auto", "python3.12", "3.12"),
        ("rocky9", ["3.9"], "3.11", "python3.11", "3.11"),
        ("debian13", [], "auto", "python3", "3.13"),
        ("debian13", ["3.8"], "3.13", "python3", "3.13"),
    ],
)
def test_a_python_that_the_distribution_packages_is_installed_before_the_build(
    full: Make, driven: Make, system: str, pythons: list[str], wanted: str, package: str, version: str
) -> None:
    observation = with_pythons(full(RTX_5070, system=system, **driven("580.105.08")), *pythons)
    plan = resolve(observation, {"python": wanted, "steps": ["torch"]})
    assert plan["feasible"], plan["refusals"]
    assert [action["id"] for action in plan["actions"]] == [
        f"torch.python:{version}",
        "torch.build:base",
        "torch.switch:base",
    ]
    assert plan["actions"][0]["data"] == {"environment": "base", "package": package}
    (environment,) = plan["environments"]
    assert (environment["interpreter"], environment["python_package"]) == (f"/usr/bin/python{version}", package)
    installed = resolve(with_pythons(observation, *pythons, version), {"python": wanted, "steps": ["torch"]})
    assert [action["id"] for action in installed["actions"]] == ["torch.build:base", "torch.switch:base"]
    assert installed["environments"][0]["spec_digest"] == environment["spec_digest"]


def test_one_package_serves_all_environments(full: Make, driven: Make) -> None:
    observation = with_pythons(full(RTX_5070, system="rocky9", **driven("580.105.08")), "3.9")
    environments = [{"name": "a"}, {"name": "b"}, {"name": "c", "python": "3.11"}]
    plan = resolve(observation, {"environments": environments, "steps": ["torch"]})
    assert [action["id"] for action in plan["actions"] if action["id"].startswith("torch.python")] == [
        "torch.python:3.12",
        "torch.python:3.11",
    ]
    assert [len(item["actions"]) for item in plan["environments"]] == [3, 2, 3]


def test_a_newer_python_beside_it_is_no_reason_to_build_anew(full: Make, driven: Make, carry_out: Make) -> None:
    observation = with_pythons(full(RTX_5070, system="rocky9", **driven("580.105.08")), "3.9", "3.12")
    wanted = {"steps": ["torch"]}
    seen = carry_out(observation, resolve(observation, wanted))
    assert resolve(with_pythons(seen, "3.9", "3.12", "3.13"), wanted)["actions"] == []


def test_after_a_system_upgrade_the_environment_is_built_with_the_python_that_is_there_now(
    full: Make, driven: Make, carry_out: Make
) -> None:
    """Debian 12 with Python 3.11 became Debian 13 with 3.13; what served is kept until the new release is proven."""
    observation = full(RTX_5070, system="debian12", **driven("580.105.08"))
    wanted = {"steps": ["torch"]}
    seen = carry_out(observation, resolve(observation, wanted))
    seen["os"].update(version_id="13", codename="trixie")
    with_pythons(seen, "3.13")
    seen["environments"][0].update(interpreter_ok=False, python="3.11.2")
    plan = resolve(seen, wanted)
    assert [action["id"] for action in plan["actions"]] == ["torch.build:base", "torch.switch:base"]
    old = seen["environments"][0]["current"]
    assert (
        plan["actions"][0]["why"]
        == f"{old} has a dangling interpreter: the Python 3.11.2 that it was built with is gone"
    )
    assert plan["environments"][0]["spec"]["python"] == "3.13"
    assert plan["environments"][0]["release_base"] != old
    assert f"{old} serves now" in plan["actions"][1]["why"]


def test_a_named_python_that_vanished_and_is_not_packaged_is_refused(converged: dict[str, Any]) -> None:
    converged["environments"][0]["interpreter_ok"] = False
    plan = resolve(with_pythons(converged, "3.14"), {"python": "3.13"})
    assert plan["environments"][0]["python_package"] == "python3"
    plan = resolve(with_pythons(converged, "3.14"), {"python": "3.12"})
    assert [refusal["code"] for refusal in plan["refusals"]] == ["python"]
