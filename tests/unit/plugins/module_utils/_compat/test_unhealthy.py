"""GPUs that need a person are named in every plan for their host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

RTX_3090 = "2204"
HEALTHY: dict[str, Any] = {
    "ecc": {"enabled": True, "corrected_volatile": 9, "uncorrected_volatile": 0, "sram_threshold_exceeded": False},
    "retired_pages": "not_applicable",
    "remapped_rows": {"corrected": 3, "uncorrected": 1, "pending": False, "failure": False},
    "recovery_action": "none",
    "throttle": ["sw_power_cap"],
}


def _warnings(full: Any, health: Any, xid: Any = ()) -> list[str]:
    observation = full(RTX_3090)
    observation["gpus"][0].update(pci_address="0000:01:00.0", name="RTX 3090", health=health)
    observation["health"] = {"xid": list(xid)}
    told = resolve(json.loads(json.dumps(observation)))["warnings"]
    return [warning for warning in told if "0000:0" in warning]


def _xid(**changes: Any) -> dict[str, Any]:
    event = {
        "pci_address": "0000:01:00.0",
        "number": 48,
        "title": "uncorrectable memory error",
        "action": "reset",
        "count": 1,
    }
    return {**event, "last_at": "2026-11-22T18:04:10Z", "this_boot": True, **changes}


@pytest.mark.parametrize(
    "health",
    [
        None,
        {},
        HEALTHY,
        {**HEALTHY, "ecc": "not_applicable", "remapped_rows": None, "recovery_action": "not_applicable"},
        {**HEALTHY, "ecc": {"enabled": False, "uncorrected_volatile": "not_applicable"}, "recovery_action": None},
        {"ecc": [], "remapped_rows": 7, "retired_pages": {"pending": "yes"}, "recovery_action": {}},
    ],
    ids=["no driver", "nothing told", "healthy", "no such thing", "off", "nonsense"],
)
def test_a_gpu_that_is_well_or_tells_nothing_is_not_warned_of(full: Any, health: Any) -> None:
    assert _warnings(full, health) == []


@pytest.mark.parametrize(
    ("part", "state", "words"),
    [
        ("ecc", {"uncorrected_volatile": 3}, "made 3 memory errors that could not be corrected"),
        ("ecc", {"sram_threshold_exceeded": True}, "more errors in its caches"),
        ("remapped_rows", {"pending": True, "failure": True}, "cannot replace any more"),
        ("remapped_rows", {"pending": True, "failure": False}, "at its next reset"),
        ("retired_pages", {"pending": True}, "at its next reset"),
        ("recovery_action", "drain_and_reset", "the driver asks for drain and reset"),
    ],
)
def test_a_gpu_that_is_not_is_named_with_what_to_do(full: Any, part: str, state: Any, words: str) -> None:
    (warning,) = _warnings(full, {**HEALTHY, part: state})
    assert warning.startswith("RTX 3090 at 0000:01:00.0")
    assert words in warning


def test_an_xid_of_this_boot_that_asks_for_something_is_shown_with_its_meaning(full: Any) -> None:
    (warning,) = _warnings(full, HEALTHY, [_xid()])
    assert warning.startswith(
        "RTX 3090 at 0000:01:00.0: Xid 48 (uncorrectable memory error) at 2026-11-22T18:04:10Z. End what uses the GPU"
    )
    (warning,) = _warnings(full, HEALTHY, [_xid(count=4, action="inspect", pci_address="0000:02:00.0")])
    assert warning.startswith("The GPU at 0000:02:00.0: Xid 48 (uncorrectable memory error) 4 times, last at")


def test_an_xid_of_a_program_or_of_an_earlier_boot_is_none_of_the_plans_business(full: Any) -> None:
    events = [_xid(action="restart_app"), _xid(action="ignore"), _xid(this_boot=False), _xid(action="dance"), {}, 7]
    assert _warnings(full, HEALTHY, events) == []


def test_what_the_planner_reads_is_what_the_probe_says() -> None:
    """The words of both sides are the same: the names in the documented sample of the observation."""
    text = (Path(__file__).resolve().parents[5] / "plugins/modules/gpu_info.py").read_text()
    for word in (
        "uncorrected_volatile",
        "sram_threshold_exceeded",
        "recovery_action",
        "missing_gpus",
        "this_boot",
        "last_at",
    ):
        assert word in text
