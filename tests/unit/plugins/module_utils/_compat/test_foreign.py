# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others installed: said with what it means and what to do, left alone, and refused only where it is in the way."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import plan_text

Make = Callable[..., dict[str, Any]]
RTX_5070, RTX_3090 = "2f04", "2204"


def row(kind: str, path: str = "/home/ann/x", what: str = "x", torch: str | None = None) -> dict[str, Any]:
    cuda = None if torch is None or torch.endswith("+cpu") else "12.4"
    return {"kind": kind, "path": path, "what": what, "torch": {"version": torch, "cuda": cuda} if torch else None}


@pytest.fixture
def plan(full: Make) -> Make:
    """Plan a host with an RTX 5070 on which these things were found."""

    def make(*rows: dict[str, Any], **desired: Any) -> dict[str, Any]:
        return resolve({**full(RTX_5070), "foreign": list(rows)}, desired)

    return make


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (row("venv", torch="2.9.1+cpu"), ["torch 2.9.1+cpu in virtual environment", "for CPUs only", "gpu-env run base"]),
        (row("user", torch="2.9.1+cpu"), ["packages of a user's own", "for CPUs only"]),
        (row("system", torch="2.6.0+cu124"), ["no code for GeForce RTX 5070 (sm_120)", "only for sm_50", "gpu-env run"]),
        (row("conda", torch="2.7.1+cu126"), ["torch 2.7.1+cu126 in conda", "no kernel image"]),
        (row("search_path", what="PYTHONPATH=/srv/old"), ["PYTHONPATH=/srv/old", "imports from there first", "python -E"]),
        (row("search_path", what="PYTHONPATH=/a", torch="2.6.0+cu124"), ["torch 2.6.0+cu124 is there"]),
        (row("search_path", what="PYTHONHOME=/a"), ["no Python finds its own library"]),
        (row("conda_path", what="conda on the PATH"), ["are conda's", "auto_activate_base false"]),
        (row("index", what="extra-index-url = https://b"), ["higher version", "--index-url"]),
    ],
)  # fmt: skip
def test_what_does_harm_is_a_warning_with_its_place_and_a_way_out(
    plan: Make, found: dict[str, Any], words: list[str]
) -> None:
    result = plan(found)
    (warning,) = [text for text in result["warnings"] if text.startswith("Found and left alone:")]
    assert "/home/ann/x" in warning
    for word in words:
        assert word in warning
    assert result["feasible"]
    assert warning.split(": ", 1)[1][:40] in plan_text({"gpu01": {"plan": result}}, width=1000)


@pytest.mark.parametrize(
    "found",
    [
        row("venv", torch="2.9.1+cu128"),
        row("venv", torch="9.9.9+cu999"),
        row("venv", torch="2.9.1+rocm6.4"),
        row("conda"),
    ],
)
def test_what_does_no_harm_is_only_said(plan: Make, found: dict[str, Any]) -> None:
    result = plan(found)
    assert not [text for text in result["warnings"] if "left alone" in text]
    (reason,) = [text for text in result["reasons"] if "left alone" in text]
    assert "/home/ann/x" in reason


def test_nothing_of_it_is_touched(plan: Make) -> None:
    everything = [row(kind, torch="2.9.1+cpu") for kind in ("venv", "conda", "system", "user", "search_path", "index")]
    assert plan(*everything)["actions"] == plan()["actions"]


def test_the_same_in_many_homes_is_one_sentence(plan: Make) -> None:
    rows = [row("venv", f"/home/user{number}/venv", torch="2.9.1+cpu") for number in range(9)]
    (warning,) = [text for text in plan(*rows)["warnings"] if "left alone" in text]
    assert "/home/user3/venv and 5 more places" in warning
    assert "user4" not in warning


def test_somebody_elses_directory_in_the_place_of_an_environment_is_refused(plan: Make) -> None:
    taken = row("taken", "/opt/gpufleet/envs/base", "a virtual environment")
    result = plan(taken)
    (refusal,) = result["refusals"]
    assert (refusal["code"], result["actions"]) == ("foreign_directory", [])
    assert "a virtual environment and no environment of this collection" in refusal["reason"]
    assert plan(taken, environments=[{"name": "mine"}])["feasible"]


def test_a_run_without_environments_does_not_mention_any(plan: Make) -> None:
    result = plan(row("taken", "/opt/gpufleet/envs/base"), row("venv", torch="2.9.1+cpu"), steps=["driver"])
    assert result["feasible"]
    assert not [text for text in result["warnings"] if "left alone" in text]


@pytest.mark.parametrize("odd", [None, "x", [None], [{}], [{"kind": 3, "path": None, "torch": "2"}]])
def test_a_garbled_list_is_none(full: Make, odd: Any) -> None:
    assert resolve({**full(RTX_3090), "foreign": odd})["feasible"]
