"""Who is logged in, and what holds a reboot off."""

from __future__ import annotations

import os
import struct

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import sessions
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Unreadable
from hypothesis import given
from hypothesis import strategies as st


def _session(tree, number, **properties):
    text = "# This is private data. Do not parse.\n" + "".join(
        f"{name}={value}\n" for name, value in properties.items()
    )
    return tree.file(f"/run/systemd/sessions/{number}", text)


@pytest.mark.parametrize(
    ("properties", "kind"),
    [
        ({"TYPE": "wayland", "CLASS": "user", "SEAT": "seat0"}, "graphical"),
        ({"TYPE": "x11", "CLASS": "user", "REMOTE": "1"}, "graphical"),
        ({"TYPE": "tty", "CLASS": "user", "REMOTE": "1", "REMOTE_HOST": "192.0.2.1"}, "remote"),
        ({"TYPE": "tty", "CLASS": "user", "REMOTE": "0"}, "terminal"),
        ({"TYPE": "wayland", "CLASS": "greeter"}, None),
        ({"TYPE": "unspecified", "CLASS": "manager"}, None),
        ({"TYPE": "unspecified", "CLASS": "background"}, None),
        ({"TYPE": "tty", "CLASS": "user", "REMOTE": "1", "STATE": "closing"}, None),
    ],
)
def test_kinds_of_sessions(tree, properties, kind):
    _session(tree, 3, UID="1000", USER="alice", ACTIVE="1", **properties)
    assert sessions.sessions(tree.host()) == ([{"user": "alice", "kind": kind}] if kind else [])


@pytest.mark.parametrize(
    "group", ["0::/user.slice/user-0.slice/session-12.scope\n", "1:name=systemd:/x/session-12.scope\n0::/\n"]
)
def test_the_session_that_observes_is_left_out(tree, group):
    _session(tree, 12, USER="admin", TYPE="tty", REMOTE="1")
    _session(tree, "c1", USER="alice", TYPE="wayland").file("/proc/self/cgroup", group)
    os.mkfifo(tree.path("/run/systemd/sessions/c1.ref"))
    assert sessions.sessions(tree.host()) == [{"user": "alice", "kind": "graphical"}]


def test_a_host_without_logind_and_utmp_has_no_sessions(tree):
    assert sessions.sessions(tree.host()) == []


def _utmp(kind, line, user, host="", size=384):
    return struct.pack("<hxxi32s4s32s256s", kind, 77, line.encode(), b"1", user.encode(), host.encode()).ljust(
        size, b"\0"
    )


@pytest.mark.parametrize(("machine", "size"), [("x86_64", 384), ("aarch64", 400)])
def test_without_logind_utmp_tells(tree, machine, size):
    records = [
        (2, "~", "reboot", ""),
        (7, "pts/0", "bob", "192.0.2.1"),
        (7, "tty2", "carol", ""),
        (7, ":0", "dave", ":0"),
        (8, "pts/1", "eve", ""),
    ]
    tree.file("/run/utmp", b"".join(_utmp(*record, size=size) for record in records))
    assert sessions.sessions(tree.host(machine=machine)) == [
        {"user": "bob", "kind": "remote"},
        {"user": "carol", "kind": "terminal"},
        {"user": "dave", "kind": "graphical"},
    ]


def test_a_utmp_of_another_layout_is_unknown(tree):
    with pytest.raises(Unreadable, match="another layout"):
        sessions.sessions(tree.file("/run/utmp", bytes(385)).host())


@pytest.mark.parametrize(
    ("what", "mode", "blocks"),
    [
        ("shutdown", "block", True),
        ("shutdown:sleep:idle", "block", True),
        ("sleep:handle-lid-switch", "block", False),
        ("shutdown", "delay", False),
        ("shutdown", "block-weak", False),  # root's reboot goes through
    ],
)
def test_what_blocks_a_reboot(tree, what, mode, blocks):
    text = (
        f"# private\nWHAT={what}\nMODE={mode}\nUID=0\nPID=812\nWHO=Backup \\x22nightly\\x22\nWHY=a copy\\nis written\n"
    )
    os.mkfifo(tree.file("/run/systemd/inhibit/5", text).path("/run/systemd/inhibit/5.ref"))
    found = sessions.inhibitors(tree.host())
    assert found == ([{"who": 'Backup "nightly"', "why": "a copy\nis written"}] if blocks else [])


@given(st.text(max_size=120))
def test_no_text_makes_the_reader_raise(text):
    assert all(isinstance(value, str) for value in sessions.properties(text).values())
