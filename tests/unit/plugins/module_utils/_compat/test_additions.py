# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows that an inventory adds to the knowledge base: planned with like the others, named with their source, refused where they are bad."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

Make = Callable[..., dict[str, Any]]
RTX_5070, NEW_GPU = "2f04", "3fff"
SOURCE = "https://example.org/release-notes, 2026-12-01"
ROWS: dict[str, Any] = {
    "torch": {
        "2.16.0": {
            "source": SOURCE,
            "python": ["3.11", "3.15"],
            "torchvision": "0.30.0",
            "indexes": {"cu136": {"x86_64": "7.5 8.0 9.0 12.0", "driver": "615.10"}, "cu132": {"x86_64": "8.0 9.0"}},
        }
    },
    "gpus": {
        "0x3FFF": {
            "source": SOURCE,
            "name": "GeForce RTX 6070",
            "compute_capability": 12.0,
            "first_driver": "610.10",
            "modules": "open",
        }
    },
}


def said(plan: dict[str, Any]) -> str:
    return "\n".join([*plan["reasons"], *plan["warnings"]])


def test_a_release_of_the_inventory_is_planned_with_its_source_and_driver(fresh: Make) -> None:
    plan = resolve(fresh(RTX_5070), {"knowledge": ROWS, "torch": {"version": "2.16.0"}})
    assert plan["feasible"], plan["refusals"]
    assert plan["torch"]["build"] == "2.16.0+cu136"
    assert plan["torch"]["index_url"] == "https://download.pytorch.org/whl/cu136"
    assert plan["driver"]["minimum"] == "615.10"
    assert f"torch 2.16.0 is known from the inventory (gpufleet_knowledge; source: {SOURCE})." in plan["reasons"]


def test_a_companion_that_the_row_leaves_out_is_not_installed_and_that_is_said(fresh: Make) -> None:
    plan = resolve(fresh(RTX_5070), {"knowledge": ROWS, "torch": {"version": "2.16.0"}})
    assert plan["torch"]["companions"] == {"torchvision": "0.30.0"}
    assert "Which torchaudio belongs to torch 2.16.0 is not known, so it is not installed." in plan["warnings"]


def test_a_release_of_the_inventory_is_judged_like_the_others(fresh: Make) -> None:
    asked = {"knowledge": ROWS, "torch": {"version": "2.16.0", "cuda": "cu132"}}
    (refusal,) = resolve(fresh(RTX_5070), asked)["refusals"]
    assert refusal["code"] == "torch_arch"
    assert "only for sm_80 sm_90" in refusal["reason"]
    (refusal,) = resolve(fresh(RTX_5070), {**asked, "torch": {"version": "2.16.0"}, "python": "3.10"})["refusals"]
    assert refusal["code"] == "python"


def test_without_the_row_the_release_is_unknown(fresh: Make) -> None:
    (refusal,) = resolve(fresh(RTX_5070), {"torch": {"version": "2.16.0"}})["refusals"]
    assert refusal["code"] == "torch_unknown"


def test_a_gpu_of_the_inventory_is_known_with_its_driver(fresh: Make) -> None:
    plan = resolve(fresh(NEW_GPU), {"knowledge": ROWS})
    assert plan["feasible"], plan["refusals"]
    (gpu,) = plan["gpus"]
    assert (gpu["name"], gpu["sm"], gpu["runs_on"], gpu["minimum_driver"]) == (
        "GeForce RTX 6070",
        "sm_120",
        "sm_120",
        "610.10",
    )
    assert plan["driver"]["flavor"] == "open"
    assert f"GeForce RTX 6070 (sm_120) is known from the inventory (gpufleet_knowledge; source: {SOURCE})." in said(
        plan
    )
    without = resolve(fresh(NEW_GPU))
    assert "is unknown to the knowledge base" in said(without)
    assert without["gpus"][0]["sm"] is None


def test_what_the_driver_says_of_a_gpu_counts_more_than_the_inventory(fresh: Make) -> None:
    observation = fresh(NEW_GPU)
    observation["gpus"][0].update(compute_capability="9.0", name="NVIDIA H300")
    (gpu,) = resolve(observation, {"knowledge": ROWS})["gpus"]
    assert (gpu["name"], gpu["sm"]) == ("H300", "sm_90")


def test_the_inventorys_row_counts_where_both_know_a_release(fresh: Make) -> None:
    row = {"source": SOURCE, "python": ["3.13", "3.13"], "indexes": {"cu128": {"x86_64": "9.0"}}}
    asked = {"knowledge": {"torch": {"2.9.1": row}}, "torch": {"version": "2.9.1+cu128"}}
    (refusal,) = resolve(fresh(RTX_5070), asked)["refusals"]
    assert "only for sm_90" in refusal["reason"]


def test_rows_of_one_host_do_not_reach_another(fresh: Make) -> None:
    resolve(fresh(RTX_5070), {"knowledge": ROWS, "torch": {"version": "2.16.0"}})
    assert not resolve(fresh(RTX_5070), {"torch": {"version": "2.16.0"}})["feasible"]


@pytest.mark.parametrize("empty", [None, {}, {"torch": {}}, {"torch": None, "gpus": None}])
def test_no_rows_change_nothing(fresh: Make, empty: Any) -> None:
    assert resolve(fresh(RTX_5070), {"knowledge": empty}) == resolve(fresh(RTX_5070))


TORCH, GPU = "torch.2.16.0", "gpus.0x3FFF"


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        (TORCH, "source", None, r"gpufleet_knowledge\.torch\[2\.16\.0\]\.source is missing"),
        (TORCH, "source", " ", r"source is missing"),
        (TORCH, "python", "3.11", r"torch\[2\.16\.0\]\.python must be the first and the last"),
        (TORCH, "python", ["3.15", "3.11"], r"begins with 3\.15, which is newer than 3\.11"),
        (TORCH, "python", [3.11, "x"], r"python must be a version such as '3\.12', in quotes; it is 'x'"),
        (TORCH, "torchvision", "latest", r"\.torchvision must be a version"),
        (TORCH, "indexes", {}, r"must name at least one CUDA tag"),
        (TORCH, "indexes", {"cpu": {"x86_64": "9.0"}}, r"indexes\[cpu\]: 'cpu' is no CUDA tag"),
        (TORCH, "indexes", {"cu132": {}}, r"must say for x86_64 or aarch64"),
        (TORCH, "indexes", {"cu132": {"x86_64": "sm_90"}}, r"indexes\[cu132\]\.x86_64 must be compute capabilities"),
        (TORCH, "indexes", {"cu136": {"x86_64": "9.0"}}, r"driver is missing: which driver CUDA 13\.6 needs"),
        (TORCH, "indexes", {"cu132": {"ppc": "9.0"}}, r"there is no 'ppc'; known are x86_64, aarch64, driver"),
        (TORCH, "triton", "3.9", r"there is no 'triton'"),
        (GPU, "source", None, r"gpufleet_knowledge\.gpus\[0x3FFF\]\.source is missing"),
        (GPU, "name", "", r"\.name must be what the GPU is called"),
        (GPU, "compute_capability", "sm_120", r"compute_capability must be such as 12\.0"),
        (GPU, "modules", "nouveau", r"modules must be one of open, proprietary, both"),
        (GPU, "first_driver", None, r"modules needs first_driver"),
        (GPU, "first_driver", "new", r"first_driver must be a driver version"),
    ],
)
def test_a_bad_row_stops_the_run_with_its_place_and_what_is_wrong(
    fresh: Make, place: str, key: str, value: Any, message: str
) -> None:
    rows = copy.deepcopy(ROWS)
    table, _dot, name = place.partition(".")
    rows[table][name][key] = value
    with pytest.raises(InvalidDesired, match=message):
        resolve(fresh(RTX_5070), {"knowledge": rows})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "gpufleet_knowledge must be a mapping"),
        ({"drivers": {}}, "there is no 'drivers'; known are torch, gpus"),
        ({"torch": []}, None),
        ({"torch": ["x"]}, "gpufleet_knowledge.torch must be a mapping"),
        ({"torch": {"2.16.0+cu132": {}}}, "is no version of torch"),
        ({"gpus": {"2000000000000.0": {}}}, "is no PCI device id such as 2f04 .in quotes"),
        ({"torch": {"2.16.0": None}}, r"torch\[2.16.0\] must be a mapping"),
    ],
)
def test_what_is_no_table_of_rows_stops_the_run(fresh: Make, rows: Any, message: str | None) -> None:
    if message is None:
        assert resolve(fresh(RTX_5070), {"knowledge": rows})["feasible"]
        return
    with pytest.raises(InvalidDesired, match=message):
        resolve(fresh(RTX_5070), {"knowledge": rows})
