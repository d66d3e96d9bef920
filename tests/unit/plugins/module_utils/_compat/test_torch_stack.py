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
