"""Which of the GPUs that a host should have are missing, and since when."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import expected

BOOTED, SEEN, FELL = "2026-11-22T08:00:00Z", "2026-11-22T09:30:00Z", "2026-11-22T18:04:10Z"
BOOT = "0b1fbb4c-0f6e-4f3c-9d43-58a0d2f1a111"


def _gpu(slot=1, uuid=None, kind="2f04", lost=None, name="RTX 5070"):
    return {"pci_address": f"0000:0{slot}:00.0", "uuid": uuid, "pci_device_id": kind, "name": name, "lost": lost}


def _xid(slot, number=79, this_boot=True):
    return {"pci_address": f"0000:0{slot}:00.0", "number": number, "this_boot": this_boot, "at": FELL}


def _missing(before, now, events=(), boot_id=None, seen_at=SEEN):
    known = {"gpus": before, "seen_at": seen_at, "boot_id": boot_id}
    return expected.missing(known, now, events, BOOTED, BOOT)


@pytest.mark.parametrize(
    ("before", "now", "gone"),
    [
        ([_gpu(1, "a"), _gpu(2, "b")], [_gpu(1, "a"), _gpu(2, "b")], []),
        ([_gpu(1, "a"), _gpu(2, "b")], [_gpu(1, "a")], ["b"]),
        ([_gpu(1, "a"), _gpu(2, "b")], [_gpu(1, "b")], ["a"]),
        ([_gpu(1, "a"), _gpu(2, "b")], [_gpu(3, "b"), _gpu(4, "a")], []),
        ([_gpu(1, "a"), _gpu(2, "b")], [_gpu(1), _gpu(2)], []),
        ([_gpu(1, "a"), _gpu(2, "b")], [_gpu(2)], ["a"]),
        ([_gpu(1, "a")], [_gpu(1, "c", "2204")], []),
        ([_gpu(1, "a", "2f04")], [_gpu(2, None, "2f04")], []),
        ([_gpu(1, "a", "2f04")], [_gpu(2, None, "2204")], ["a"]),
        ([_gpu(1, "a", None)], [_gpu(2, None, "2204")], []),
        ([_gpu(1, "a")], [], ["a"]),
        ([], [_gpu(1, "a")], []),
    ],
    ids=[
        "all there",
        "one gone",
        "the other moved into its slot",
        "both moved",
        "no driver tells UUIDs",
        "one gone, no driver",
        "replaced by another model in its slot",
        "moved, no driver",
        "gone, and another model in another slot",
        "moved, kind not known",
        "the only one gone",
        "a new one",
    ],
)
def test_cards_may_move_and_be_replaced_but_not_become_fewer(before, now, gone):
    assert [gpu["uuid"] for gpu in expected.absent(before, now)] == gone


def test_a_gpu_that_fell_off_the_bus_is_missing_since_its_xid():
    (row,) = _missing([_gpu(1, "a"), _gpu(2, "b")], [_gpu(1, "a")], [_xid(1, 31), _xid(2)], BOOT)
    assert row == {
        "pci_address": "0000:02:00.0",
        "uuid": "b",
        "name": "RTX 5070",
        "since": FELL,
        "since_what": "xid",
        "text": f"RTX 5070 at 0000:02:00.0 is missing since {FELL} (Xid 79): neither the PCI bus nor the driver shows it",
    }


@pytest.mark.parametrize(
    ("now", "boot_id", "since", "what", "words"),
    [
        ([], "another", BOOTED, "boot", "since the boot of"),
        ([], None, BOOTED, "boot", "since the boot of"),
        ([], BOOT, SEEN, "after", "since some time after"),
        ([_gpu(1, lost="the driver says that it is lost")], BOOT, SEEN, "after", "since some time after"),
        ([_gpu(1, lost="the driver says that it is lost")], "another", BOOTED, "after", "since some time after"),
    ],
    ids=[
        "not there since the boot",
        "no proof",
        "was there in this boot",
        "lost after it was seen",
        "lost in this boot",
    ],
)
def test_without_an_xid_only_what_is_known_is_said(now, boot_id, since, what, words):
    for events in ((), [_xid(1, 79, this_boot=False)], [_xid(1, 31)], [_xid(2)]):
        (row,) = _missing([_gpu(1, "a")], now, events, boot_id)
        assert (row["since"], row["since_what"]) == (since, what)
        assert f"is missing {words} {since}: " in row["text"]


def test_a_time_that_nobody_knows_is_not_made_up():
    (row,) = expected.missing({"gpus": [_gpu(1)]}, [], [], None, None)
    assert (row["since"], row["since_what"]) == (None, None)
    assert "since a time that is not known" in row["text"]


def test_a_lost_gpu_is_missing_once_and_with_the_name_that_it_had_whether_it_was_expected_or_not():
    lost = _gpu(2, None, lost="the driver says that it is lost", name=None)
    (row,) = _missing([_gpu(1, "a"), _gpu(2, "b", name="RTX 3090")], [_gpu(1, "a"), lost])
    assert (row["uuid"], row["name"]) == ("b", "RTX 3090")
    assert row["text"].endswith("the driver says that it is lost")
    (row,) = _missing([], [lost])
    assert row["text"].startswith("a GPU at 0000:02:00.0 is missing")


def test_a_lost_gpu_stands_for_no_other_that_is_gone():
    lost = _gpu(2, None, lost="the driver says that it is lost")
    assert [row["pci_address"] for row in _missing([_gpu(1, "a"), _gpu(2, "b")], [lost])] == [
        "0000:02:00.0",
        "0000:01:00.0",
    ]


def test_what_was_proven_is_remembered_and_read_again(debian):
    kept = expected.document([{**_gpu(1, "a"), "sm": "sm_120"}], SEEN, BOOT)
    assert kept == {
        "schema": 1,
        "seen_at": SEEN,
        "boot_id": BOOT,
        "gpus": [{"pci_address": "0000:01:00.0", "pci_device_id": "2f04", "uuid": "a", "name": "RTX 5070"}],
    }
    debian.file("/var/lib/gpufleet/gpus.json", json.dumps(kept))
    journal = {"gpus": [_gpu(1), _gpu(2)]}
    assert expected.read(debian.host(), journal) == kept


@pytest.mark.parametrize(
    ("journal", "gpus"),
    [
        (None, []),
        ({}, []),
        ({"gpus": [{"pci_address": "x"}, 7, {"uuid": []}]}, [{"pci_address": "x"}]),
        ({"gpus": 3}, []),
    ],
)
def test_without_a_proof_the_journal_of_the_driver_tells(debian, journal, gpus):
    assert expected.read(debian.host(), journal)["gpus"] == gpus


@pytest.fixture
def proven_host(debian):
    """A host with a GPU on its bus that remembers three."""
    debian.gpu("0000:01:00.0", "2f04").file("/proc/uptime", "100.0 1.0\n")
    rows = [_gpu(1, "a"), _gpu(2, "b", "2204"), _gpu(3, "c", "1b80")]
    debian.file("/var/lib/gpufleet/gpus.json", json.dumps(expected.document(rows, SEEN, BOOT)))
    return debian


def test_without_nvml_the_bus_and_cuda_tell_what_is_missing(proven_host):
    shown = [{"pci_address": "0000:03:00.0", "uuid": "c", "name": "GTX 1080"}]  # the bus is not shown in full
    assert [row["uuid"] for row in expected.missing_now(proven_host.host(), shown)] == ["b"]
    proven_host.file("/sys/bus/pci/devices/0000:01:00.0/config", b"\xff\xff\xff\xff")
    lost, gone = expected.missing_now(proven_host.host(), shown)
    assert (lost["pci_address"], lost["since_what"], gone["uuid"]) == ("0000:01:00.0", "after", "b")


def test_a_proof_that_passed_is_remembered_with_the_others_that_are_still_there(proven_host):
    proven_host.gpu("0000:03:00.0", "1b80")
    proven = [{"pci_address": "0000:01:00.0", "uuid": "a", "name": "RTX 5070", "verdict": "passed"}]
    kept = expected.remembered(proven_host.host(), proven, FELL, "x")
    assert (kept["seen_at"], kept["boot_id"]) == (FELL, "x")
    assert [(gpu["uuid"], gpu["pci_device_id"]) for gpu in kept["gpus"]] == [("a", "2f04"), ("c", "1b80")]


def test_a_memory_that_cannot_be_read_is_not_replaced_for_a_lost_gpu_would_be_forgotten(proven_host):
    proven_host.file("/var/lib/gpufleet/gpus.json", "{")
    proven = [{"pci_address": "0000:01:00.0", "uuid": "a", "name": "RTX 5070"}]
    with pytest.raises(ValueError, match="property name"):
        expected.remembered(proven_host.host(), proven, FELL, "x")
