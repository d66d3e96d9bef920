"""The seam: reading files of a made-up root without being held by what is there."""

from __future__ import annotations

import os
import time

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host, Unreadable, reason, run


def test_absolute_symlinks_stay_inside_the_root(tree):
    host = tree.file("/usr/lib/os-release", "ID=debian\n").link("/etc/os-release", "/usr/lib/os-release").host()
    assert host.read("/etc/os-release") == "ID=debian\n"


def test_symlinks_that_climb_out_end_at_the_root(tree):
    host = tree.file("/etc/secret", "inside").link("/a/b", "../../../../etc/secret").host()
    assert host.read("/a/b") == "inside"
    assert host.resolve("/a/b") == "/etc/secret"


def test_a_symlink_loop_raises_and_does_not_spin(tree):
    host = tree.link("/a", "b").link("/b", "a").host()
    with pytest.raises(OSError, match="symbolic links"):
        host.read("/a")


def test_a_symlink_loop_does_not_exist(tree):
    host = tree.link("/a", "b").link("/b", "a").host()
    assert not host.exists("/a/x")
    assert not host.is_dir("/a")
    assert not host.runnable("/a")


def test_a_fifo_is_refused_at_once(tree):
    os.mkfifo(tree.path("/fifo"))
    started = time.monotonic()
    with pytest.raises(Unreadable, match="/fifo is not a regular file"):
        tree.host().read("/fifo")
    assert time.monotonic() - started < 1


def test_a_device_is_refused():
    with pytest.raises(Unreadable, match="not a regular file"):
        Host().read("/dev/zero")


def test_a_folder_is_refused(tree):
    with pytest.raises((OSError, Unreadable)):
        tree.folder("/etc").host().read("/etc")


def test_the_limit_is_inclusive(tree):
    host = tree.file("/f", "x" * 2048).host()
    assert len(host.read("/f", 2048)) == 2048
    with pytest.raises(Unreadable, match="/f is larger than 1 KiB"):
        host.read("/f", 2047)


def test_text_tells_absent_from_unreadable(tree):
    host = tree.file("/f", "x").link("/loop", "loop").host()
    assert host.text("/nothing") is None
    assert host.text("/f/below-a-file") is None
    with pytest.raises(OSError, match="symbolic links"):
        host.text("/loop")


def test_bytes_that_are_no_text_are_replaced(tree):
    assert tree.file("/f", b"a\xff\xfeb").host().read("/f") == "a\ufffd\ufffdb"


def test_names_are_sorted_and_an_absent_folder_is_empty(tree):
    host = tree.file("/d/b").file("/d/a").host()
    assert host.names("/d") == ["a", "b"]
    assert host.names("/none") == []
    assert host.names("/d/a") == []


def test_lstat_sees_the_link_itself_through_linked_folders(tree):
    host = tree.file("/real/f").link("/real/l", "f").link("/alias", "/real").host()
    assert os.path.stat.S_ISLNK(host.lstat("/alias/l").st_mode)
    assert host.link("/alias/l") == "f"
    assert host.link("/alias/f") is None
    assert host.lstat("/alias/none") is None


def test_runnable_follows_links_to_an_executable_file(tree):
    host = (
        tree.file("/usr/bin/python3.11", "", 0o755)
        .link("/v/python", "/usr/bin/python3.11")
        .link("/v/gone", "/no")
        .host()
    )
    assert host.runnable("/v/python")
    assert not host.runnable("/v/gone")
    assert not host.runnable("/v")


def test_a_program_that_is_not_installed_is_named():
    with pytest.raises(Unreadable, match="gpufleet-no-such-program is not installed"):
        run(["gpufleet-no-such-program"], 1)


def test_a_program_is_found_in_the_system_folders_and_not_in_path(monkeypatch, tmp_path):
    fake = tmp_path / "uname"
    fake.write_text("#!/bin/sh\necho hijacked\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["uname", "-s"], 5) == "Linux\n"


def test_reasons_are_one_line_for_people():
    assert reason(Unreadable("it is broken")) == "it is broken"
    assert reason(FileNotFoundError(2, "No such file or directory", "/x")) == "/x: No such file or directory"
    assert reason(ValueError("bad")) == "ValueError: bad"
