"""Disk, clock and locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import health
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

LOCK = "/var/lib/dpkg/lock-frontend"
HOLD = "import fcntl,sys; f=open(sys.argv[1],'r+'); fcntl.lockf(f,fcntl.LOCK_EX); print('held',flush=True); sys.stdin.read()"


@contextlib.contextmanager
def _held(tree, path):
    """Another process holds the lock; its number."""
    argv = [sys.executable, "-c", HOLD, str(tree.path(path))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            yield holder.pid
        finally:
            holder.communicate()


def test_disk_is_measured_where_the_root_will_be(tree):
    state = os.statvfs(tree.root)
    found = health.disk(tree.folder("/opt").host(), "/opt/gpufleet/envs")["/opt/gpufleet/envs"]
    assert abs(found["free_mib"] - state.f_bavail * state.f_frsize // 1048576) < 1024
    assert found["free_inodes"] > 0
    assert found["read_only"] is False


def test_a_file_system_that_was_remounted_read_only_is_told(tree, monkeypatch):
    state = os.statvfs(tree.root)
    fields = [*state[:8], state.f_flag | os.ST_RDONLY, state.f_namemax]
    monkeypatch.setattr(health.os, "statvfs", lambda path: os.statvfs_result(fields))
    assert health.disk(tree.folder("/opt").host(), "/opt/gpufleet/envs")["/opt/gpufleet/envs"]["read_only"] is True


def test_a_held_lock_is_found_with_its_holder_and_a_free_one_is_not(tree):
    tree.file(LOCK).file("/var/lib/dpkg/lock").folder("/proc")
    with _held(tree, LOCK) as holder:
        tree.process(holder, "unattended-upgr")
        assert health.locks(tree.host(), []) == [
            {"path": LOCK, "holder": f"unattended-upgr (process {holder})"},
        ]
    assert health.locks(tree.host(), []) == []


def test_asking_for_a_lock_does_not_take_it(tree):
    tree.file(LOCK)
    with open(tree.path(LOCK), "r+b") as mine:
        fcntl.lockf(mine, fcntl.LOCK_EX)
        assert health.locks(tree.host(), []) == []  # our own process does not stand in our own way


def test_dnf_names_its_holder_in_a_file(tree):
    tree.process(4321, "dnf").file("/var/cache/dnf/metadata_lock.pid", "4321\n").file("/run/zypp.pid", "99999\n")
    assert health.locks(tree.host(), []) == [
        {"path": "/var/cache/dnf/metadata_lock.pid", "holder": "dnf (process 4321)"}
    ]


def test_a_lock_that_cannot_be_opened_is_unknown(tree):
    unknown = []
    assert health.locks(tree.link(LOCK, "lock-frontend").host(), unknown) == []
    assert [entry["what"] for entry in unknown] == [f"health.locks[{LOCK}]"]


def test_the_clock_is_in_time_when_timesyncd_says_so(tree):
    assert health.clock_synchronized(tree.file("/run/systemd/timesync/synchronized").host()) is True
    assert health.clock_synchronized(tree.root and Host(root=str(tree.folder("/x").path("/x")))) is None


def test_the_kernel_is_asked_about_the_clock():
    assert health.clock_synchronized(Host()) in (True, False)


def test_a_lock_behind_a_link_is_named_once(tree):
    tree.file("/usr/lib/sysimage/rpm/.rpm.lock").link("/var/lib/rpm", "/usr/lib/sysimage/rpm").folder("/proc")
    with _held(tree, "/usr/lib/sysimage/rpm/.rpm.lock"):
        assert [lock["path"] for lock in health.locks(tree.host(), [])] == ["/usr/lib/sysimage/rpm/.rpm.lock"]


@pytest.mark.parametrize(
    ("path", "who"),
    [
        ("/var/lib/dpkg/lock-frontend", "apt (process 7)"),
        ("/usr/lib/sysimage/rpm/.rpm.lock", "apt (process 7)"),
        ("/var/lib/apt/lists/lock", None),  # apt-get update
        ("/var/cache/dnf/metadata_lock.pid", None),  # dnf makecache
    ],
)
def test_only_some_locks_mean_that_packages_change(path, who):
    assert health.changing_packages([{"path": path, "holder": "apt (process 7)"}]) == who
    assert health.changing_packages([]) is None


@pytest.mark.parametrize(
    ("line", "holder"),
    [
        ("1: FLOCK  ADVISORY  WRITE 4321 {device} 0 EOF", "python3 (process 4321)"),
        ("1: -> FLOCK  ADVISORY  WRITE 4321 {device} 0 EOF", None),  # it waits
        ("1: POSIX  ADVISORY  WRITE 4321 {device} 0 EOF", None),
        ("1: FLOCK  ADVISORY  WRITE 4321 00:01:2 0 EOF", None),
        ("1: FLOCK  ADVISORY  WRITE -1 {device} 0 EOF", "a process of another container"),
        ("garbage", None),
    ],
)
def test_a_change_of_drivers_that_goes_on_is_a_lock_as_well(tree, line, holder):
    path = "/run/gpufleet-driver.lock"
    state = tree.file(path).process(4321, "python3").path(path).stat()
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    found = health.locks(tree.file("/proc/locks", line.format(device=device) + "\n").host(), [])
    assert found == ([{"path": path, "holder": holder}] if holder else [])
    assert health.changing_packages(found) == holder


def test_a_real_flock_is_seen_as_the_kernel_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "_OWN_LOCK", str(tmp_path / "lock"))
    with open(tmp_path / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = [entry for entry in health.locks(Host(), []) if entry["path"] == str(tmp_path / "lock")]
    assert [f"(process {os.getpid()})" in entry["holder"] for entry in found] == [True]


def test_the_kind_of_file_system_is_that_of_where_the_root_leads(tree):
    table = "28 1 8:1 / / rw - ext4 /dev/sda1 rw\n80 28 0:55 / /mnt/share rw - nfs4 server:/envs rw\n"
    tree.folder("/mnt/share").link("/opt", "/mnt/share").file("/proc/self/mountinfo", table)
    assert health.disk(tree.host(), "/opt/gpufleet/envs")["/opt/gpufleet/envs"]["file_system"] == "nfs4"
    assert health.disk(tree.host(), "/srv")["/srv"]["file_system"] == "ext4"
    tree.path("/proc/self/mountinfo").unlink()
    assert health.disk(tree.host(), "/srv")["/srv"]["file_system"] is None
