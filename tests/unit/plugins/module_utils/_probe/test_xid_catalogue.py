"""The catalogue of Xid messages: complete rows, NVIDIA's own actions."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import xid_catalogue
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.xid_catalogue import ACTIONS, CATALOGUE

# The immediate actions of NVIDIA's catalog for Ampere and newer (RESTART_APP, RESET_GPU, RESTART_BM, CHECK_MECHANICALS, IGNORE).
NVIDIA = {
    "restart_app": [8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 80, 82, 83, 86, 94, 99, 105, 126, 135, 139],
    "reset": [46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158],
    "reboot": [79],
    "inspect": [54],
    "ignore": [37, 38, 43, 44, 63, 66, 67, 92, 93, 106, 107, 121, 137, 141, 152, 153, 160],
}


@pytest.mark.parametrize(("number", "action"), [(number, action) for action in NVIDIA for number in NVIDIA[action]])
def test_the_action_is_the_one_that_nvidia_names(number, action):
    assert CATALOGUE[number].action == action


@pytest.mark.parametrize("number", sorted(CATALOGUE))
def test_every_row_says_what_happened_what_to_do_and_how_grave_it_is(number):
    row = CATALOGUE[number]
    assert row.action in ACTIONS
    assert row.severity in xid_catalogue.SEVERITIES
    assert len(row.title) < 50
    assert row.meaning.endswith(".")
    assert row.remedy == ACTIONS[row.action]
    assert "nvidia.com" in row.source


def test_what_ends_the_work_on_a_gpu_is_critical():
    assert {CATALOGUE[number].severity for number in (46, 48, 62, 64, 79, 95, 119, 120, 140)} == {"critical"}


def test_a_number_that_nobody_knows_yet_is_grave_and_says_so():
    row = xid_catalogue.describe(9999)
    assert (row.action, row.severity) == ("inspect", "high")
    assert "does not know" in row.meaning
