"""The driver's Xid messages, as the kernel's ring buffer and the journal hold them."""

from __future__ import annotations

import calendar
import json
import os
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import child, xid
from hypothesis import given, settings
from hypothesis import strategies as st

BOOT, OLD = "0b1fbb4c0f6e4f3c9d4358a0d2f1a111", "f" * 32
FELL_OFF = "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
FAULT = "NVRM: Xid (PCI:0000:02:00): 31, pid=4711, name=python, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS"


def _entry(message, boot=BOOT, clock=1_000_000, at=1_795_000_000, **changes):
    row = {
        "MESSAGE": message,
        "_BOOT_ID": boot,
        "_SOURCE_MONOTONIC_TIMESTAMP": str(clock),
        "__REALTIME_TIMESTAMP": str(at * 1_000_000),
        "__CURSOR": "s=1",
        **changes,
    }
    return json.dumps(row) + "\n"


def _journal(*entries):
    return xid.events(xid.journal_lines("".join(entries)), BOOT)


@pytest.fixture
def logged(debian):
    """A made-up host with this text in its ring buffer and these entries in its journal."""

    def read(kmsg=None, journal=None, **changes):
        debian.file("/proc/uptime", "1000.00 1.00\n")
        if kmsg is not None:
            debian.file("/dev/kmsg", kmsg)
        if journal is not None:
            debian.folder("/var/log/journal/0123")
            debian.commands["journalctl"] = journal
        return xid.read(debian.host(**changes), 4.0)

    return read


def test_a_message_is_taken_apart():
    assert _journal(_entry(FAULT)) == [
        {
            "at": "2026-11-18T11:06:40Z",
            "last_at": "2026-11-18T11:06:40Z",
            "this_boot": True,
            "pci_address": "0000:02:00.0",
            "number": 31,
            "title": "GPU memory page fault",
            "action": "restart_app",
            "severity": "medium",
            "process": "python (4711)",
            "text": "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS",
            "count": 1,
        }
    ]


@pytest.mark.parametrize(
    ("message", "address", "number", "process", "text"),
    [
        (FELL_OFF, "0000:01:00.0", 79, None, "GPU has fallen off the bus."),
        (
            "NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
            "0000:01:00.0",
            79,
            None,
            "GPU has fallen off the bus.",
        ),
        (
            "NVRM: Xid (PCI:0000:01:00): 79, pid=1122, GPU has fallen",
            "0000:01:00.0",
            79,
            "process 1122",
            "GPU has fallen",
        ),
        ("NVRM: Xid (0000:01:00): 8, Channel 00000001", "0000:01:00.0", 8, None, "Channel 00000001"),
        ("NVRM: Xid (PCI:0000:3B:00 GPU-I:03): 13, pid=7, name=a b, x", "0000:3b:00.0", 13, "a b (7)", "x"),
        ("NVRM: Xid (PCI:00000008:01:00): 63, ", "0008:01:00.0", 63, None, ""),
    ],
    ids=["unknown process", "no process", "no name", "an old driver", "a part of a GPU", "a long domain"],
)
def test_every_spelling_of_the_driver_is_read(message, address, number, process, text):
    (event,) = _journal(_entry(message))
    assert [event[key] for key in ("pci_address", "number", "process", "text")] == [address, number, process, text]


@pytest.mark.parametrize(
    "message",
    [
        "python[12]: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.",
        "NVRM: GPU at PCI:0000:01:00: GPU-1",
        "NVRM: Xid (PCI:banana): 79, x",
        "NVRM: Xid (PCI:0000:01:00): 1234567, x",
        "NVRM: Xid (PCI:0000:01:00",
    ],
)
def test_what_is_no_message_of_the_driver_counts_for_nothing(message):
    assert _journal(_entry(message)) == []


def test_repeated_messages_are_one_event_with_first_and_last_time():
    many = [_entry(FAULT, clock=number, at=1_795_000_000 + number) for number in (9, 5, 7)]
    other = _entry(FAULT.replace("02:00", "03:00"), clock=6)
    first, second = _journal(*many, other)
    assert (first["pci_address"], first["count"]) == ("0000:03:00.0", 1)
    assert [second[key] for key in ("count", "at", "last_at")] == [3, "2026-11-18T11:06:45Z", "2026-11-18T11:06:49Z"]


def test_earlier_boots_are_told_apart_and_the_newest_is_last():
    later = _entry(FAULT, boot=OLD, at=1_796_000_000)  # by a clock that was wrong
    events = _journal(_entry(FAULT), later)
    assert [(event["this_boot"], event["number"]) for event in events] == [(False, 31), (True, 31)]


def test_a_number_that_is_newer_than_the_catalogue_is_shown_and_taken_as_grave():
    (event,) = _journal(_entry("NVRM: Xid (PCI:0000:01:00): 999, what is that"))
    assert (event["number"], event["action"], event["severity"]) == (999, "inspect", "high")


def test_the_ring_buffer_and_the_journal_count_the_same_message_once(logged):
    other = "6,2,2000000,-;usb 1-1: new device\n SUBSYSTEM=usb\n DEVICE=+usb:1-1\n"
    kmsg = f"4,1,1000000,-;{FAULT}\n{other}3,3,3000000,-;{FELL_OFF}\n"
    found = logged(kmsg, _entry(FAULT) + _entry(FAULT, boot=OLD, clock=5, at=1_794_000_000))
    assert found["unknown"] == []
    assert [(event["number"], event["this_boot"], event["count"]) for event in found["events"]] == [
        (31, False, 1),
        (31, True, 1),
        (79, True, 1),
    ]
    newest = calendar.timegm(time.strptime(found["events"][-1]["at"], "%Y-%m-%dT%H:%M:%SZ"))
    assert abs(newest - (time.time() - 1000 + 3)) < 5  # seconds after a boot 1000 seconds ago


def test_a_newer_journal_names_the_kernels_time_stamp_otherwise(logged):
    entry = _entry(FAULT, clock=5, _SOURCE_BOOTTIME_TIMESTAMP="1000000")
    (event,) = logged(f"4,1,1000000,-;{FAULT}\n", entry)["events"]
    assert event["count"] == 1


def test_the_journal_is_asked_with_limits(logged, debian):
    logged("", "")
    (command,) = debian.asked
    assert command[0] == "journalctl"
    assert {"--since=-30days", "--lines=5000", "_TRANSPORT=kernel", "--grep=^NVRM: Xid"} <= set(command)


def _failing(error):
    def run(argv, time_limit):
        raise error

    return run


@pytest.mark.parametrize(
    ("version", "unknown"),
    [
        ("systemd 255\n+PAM +PCRE2 +ZSTD\n", []),
        ("systemd 255\n+PAM -PCRE2 +ZSTD\n", ["the journal: journalctl was built without PCRE2 and cannot search"]),
    ],
)
def test_a_journal_without_such_a_message_is_no_error_and_one_that_cannot_search_is_not_empty(logged, version, unknown):
    def run(argv, time_limit):
        if argv[1] == "--version":
            return version
        raise child.NoAnswer("the command ended with status 1", 1)

    found = logged("", "", run=run)
    assert found["events"] == []
    assert [row["why"] for row in found["unknown"]] == unknown


def test_a_journal_that_gives_no_answer_costs_its_part(logged):
    found = logged(f"4,1,1,-;{FELL_OFF}\n", "", run=_failing(child.NoAnswer("no answer within 2 s")))
    assert [event["number"] for event in found["events"]] == [79]
    assert found["unknown"] == [{"what": "health.xid", "why": "the journal: no answer within 2 s"}]


def test_without_root_the_journal_is_not_taken_for_an_empty_one(logged):
    found = logged("", _entry(FAULT), uid=1000)
    assert found["events"] == []
    assert found["unknown"] == [{"what": "health.xid", "why": "the journal: only root may read it"}]


def test_without_any_log_nothing_is_known(logged):
    assert logged() == {
        "events": None,
        "unknown": [{"what": "health.xid", "why": "there is neither /dev/kmsg nor a journal"}],
    }


def test_a_log_that_may_not_be_read_is_said(logged, monkeypatch):
    usual = os.open

    def refused(path, *others, **more):
        if str(path).endswith("/dev/kmsg"):
            raise PermissionError(1, "Operation not permitted", path)
        return usual(path, *others, **more)

    monkeypatch.setattr(os, "open", refused)
    found = logged()
    assert found["events"] is None
    assert "Operation not permitted" in found["unknown"][0]["why"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to a device"])
def test_what_is_in_the_place_of_the_ring_buffer_is_not_waited_for(logged, debian, kind):
    path = debian.folder("/dev").path("/dev/kmsg")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)) if os.geteuid() == 0 else path.mkdir()  # /dev/zero
    started = time.monotonic()
    assert logged()["events"] is None
    assert time.monotonic() - started < 1


def test_the_real_ring_buffer_is_read_to_its_end():
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("this machine shows its ring buffer to nobody")
    started = time.monotonic()
    assert xid._ring_buffer(xid.Host()).count(b"\n") > 0
    assert time.monotonic() - started < 1.5


def test_a_flood_of_lines_is_counted_and_bounded():
    lines = [
        xid.Line(BOOT, number, 1_795_000_000, f"0000:{number % 250:02x}:00.0", 31, "x") for number in range(50_000)
    ]
    started = time.monotonic()
    events = xid.events(lines, BOOT)
    assert time.monotonic() - started < 5
    assert len(events) == 100
    assert {event["count"] for event in events} == {200}


def test_escape_sequences_and_megabytes_do_nothing(logged):
    evil = "NVRM: Xid (PCI:0000:01:00): 31, pid=1, name=\\x1b[31mroot\\x0a, \\x1b]0;title\\x07" + "A" * (2 << 20)
    (event,) = logged(f"4,1,1,-;{evil}\n")["events"]
    assert event["process"] == "[31mroot (1)"
    assert event["text"].isprintable()
    assert len(event["text"]) <= 300
    raw = "NVRM: Xid (PCI:0000:02:00): 31, pid=1, name=\x1b[2Jx, y\u202e\u2028z"
    (event,) = _journal(_entry(list(raw.encode())))
    assert (event["process"], event["text"]) == ("[2Jx (1)", "y  z")


@pytest.mark.parametrize(
    "changes",
    [
        {"MESSAGE": None},
        {"MESSAGE": [300]},
        {"MESSAGE": [FAULT, FAULT]},
        {"_SOURCE_MONOTONIC_TIMESTAMP": "soon"},
        {"__REALTIME_TIMESTAMP": "9" * 400},
        {"__REALTIME_TIMESTAMP": None},
    ],
)
def test_an_entry_that_is_none_hides_no_other(changes):
    entry = {**json.loads(_entry(FAULT)), **changes}
    events = _journal(json.dumps(entry) + "\n", "[1]\n", "{}\n", "{\n", _entry(FELL_OFF))
    assert [event["number"] for event in events] == [79]


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(), st.text(max_size=40), st.integers(), st.integers())
def test_whatever_is_logged_becomes_text_that_can_be_shown(message, boot, clock, at):
    text = f"NVRM: Xid (PCI:0000:01:00): 13, pid=1, name={message}, {message}"
    entry = json.dumps(
        {"MESSAGE": text, "_BOOT_ID": boot, "_SOURCE_MONOTONIC_TIMESTAMP": clock, "__REALTIME_TIMESTAMP": at}
    )
    lines = [*xid.journal_lines(f"{entry}\n{message}"), *xid.kmsg_lines(f"4,1,7,-;{text}\n{message}", boot, 0.0)]
    for event in xid.events(lines, boot):
        assert event["text"].isprintable()
        assert (event["process"] or "").isprintable()
        json.dumps(event, ensure_ascii=False).encode("utf-8")
