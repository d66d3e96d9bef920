# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.metrics import Family, of_host, seconds, text

AT = "2026-11-23T12:00:00Z"
STAMP = {
    "verdict": "passed",
    "level": "quick",
    "proven_at": "2026-11-20T12:00:00Z",
    "gpus": [{"uuid": "GPU-1", "verdict": "passed"}, {"uuid": "GPU-2", "verdict": "failed"}],
}


def host(proofs, observation=None):
    return text(of_host(proofs, observation or {}, AT)).splitlines()


def test_format_has_help_type_and_sorted_series():
    family = Family("gpufleet_x", "gauge", "Back\\slash\nand line.", [({"b": "2"}, 1.5), ({"b": "1"}, True)])
    assert text([family]) == (
        "# HELP gpufleet_x Back\\\\slash\\nand line.\n"
        "# TYPE gpufleet_x gauge\n"
        'gpufleet_x{b="1"} 1\n'
        'gpufleet_x{b="2"} 1.5\n'
    )


def test_quotes_and_backslashes_of_a_label_are_escaped_and_control_characters_replaced():
    line = text([Family("x", "gauge", "", [({"h": 'a"b\\c\n\x1b\u202e\ud800d'}, 1)])]).splitlines()[-1]
    assert line == 'x{h="a\\"b\\\\c\ufffdd"} 1'


def test_a_label_is_cut():
    line = text([Family("x", "gauge", "", [({"h": "W" * 1000}, 1)])]).splitlines()[-1]
    assert line == 'x{h="' + "W" * 199 + '\N{HORIZONTAL ELLIPSIS}"} 1'


def test_a_series_is_there_once():
    assert text([Family("x", "gauge", "", [({"h": "a"}, 1), ({"h": "a"}, 2)])]).splitlines()[2:] == ['x{h="a"} 1']


@pytest.mark.parametrize("value", [None, "1", float("nan"), float("inf"), 2**63, [1], {}])
def test_what_is_no_number_is_no_series_and_no_metric(value):
    assert text([Family("x", "gauge", "", [({}, value)])]) == ""


@pytest.mark.parametrize("time", [None, "", "2026-02-30T12:00:00Z", "2026-11-23 12:00", 5, ["2026-11-23T12:00:00Z"]])
def test_what_is_no_time_has_no_seconds(time):
    assert seconds(time) is None


def test_seconds_are_those_of_utc():
    assert seconds("1970-01-02T00:00:00Z") == 86400


def test_a_proof_that_passed_and_covers_is_one():
    lines = host([{"environment": "base", "stamp": STAMP, "covers": True}])
    assert 'gpufleet_proof_passed{environment="base",level="quick"} 1' in lines
    assert 'gpufleet_proof_timestamp_seconds{environment="base"} 1795176000' in lines
    assert 'gpufleet_proof_gpu_passed{environment="base",uuid="GPU-1"} 1' in lines
    assert 'gpufleet_proof_gpu_passed{environment="base",uuid="GPU-2"} 0' in lines
    assert "gpufleet_host_checked_timestamp_seconds 1795435200" in lines


@pytest.mark.parametrize(
    "proof",
    [
        {"stamp": STAMP, "covers": False},
        {"stamp": STAMP, "covers": None},
        {"stamp": STAMP, "covers": "yes"},
        {"stamp": STAMP},
        {"stamp": {**STAMP, "verdict": "failed"}, "covers": True},
        {"stamp": {**STAMP, "verdict": None}, "covers": True},
        {"stamp": None, "covers": True},
        {"stamp": "passed", "covers": True},
        {},
    ],
)
def test_any_other_proof_is_zero(proof):
    lines = host([{"environment": "base", **proof}])
    assert [line[-2:] for line in lines if line.startswith("gpufleet_proof_passed{")] == [" 0"]


def test_missing_gpus_are_counted_and_not_known_is_no_number():
    assert "gpufleet_gpu_missing 2" in host([], {"health": {"missing_gpus": [{}, {}]}})
    assert "gpufleet_gpu_missing 0" in host([], {"health": {"missing_gpus": []}})
    assert "gpufleet_gpus 1" in host([], {"gpus": [{}]})
    assert not [
        line
        for line in host([], {"health": {"missing_gpus": None}, "gpus": None})
        if "gpus" in line or "missing" in line
    ]


def test_xid_messages_of_this_boot_are_counted_by_gpu_and_number():
    message = {"this_boot": True, "count": 2, "number": 79, "pci_address": "0000:01:00.0", "severity": "fatal"}
    xid = [
        message,
        message,
        {**message, "this_boot": False},
        {**message, "number": 13, "count": 1},
        {"count": "7"},
        None,
    ]
    lines = [line for line in host([], {"health": {"xid": xid}}) if line.startswith("gpufleet_xid_total{")]
    assert lines == [
        'gpufleet_xid_total{pci_address="0000:01:00.0",xid="13",severity="fatal"} 1',
        'gpufleet_xid_total{pci_address="0000:01:00.0",xid="79",severity="fatal"} 4',
    ]
