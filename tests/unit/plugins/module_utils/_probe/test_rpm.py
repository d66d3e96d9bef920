"""What steers dnf, and what rpm has installed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import packages, rpm
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Unreadable
from hypothesis import given
from hypothesis import strategies as st

PLUGIN = "/usr/lib/python3.9/site-packages/dnf-plugins/versionlock.py"
LOCKS = "/etc/dnf/plugins/versionlock.list"
DRIVER = "nvidia-driver-cuda\t3\t580.178.04-1.el9\tx86_64\tNVIDIA x\n"

REPO = """\
[cuda-rhel9-x86_64]
name=cuda-rhel9-x86_64
baseurl=https://me:secret@developer.download.nvidia.com/compute/cuda/repos/rhel$releasever/${basearch}
  https://mirror.example.org/$unheard/of
enabled=1
gpgcheck=1
gpgkey=https://developer.download.nvidia.com/D42D0685.pub, file:///etc/pki/rpm-gpg/$basearch.key
exclude=nvidia-settings
 nvidia-xconfig

# [off-by-comment]
[epel]
mirrorlist=https://mirrors.example.org/epel-$releasever
enabled = 0
"""


def test_repositories_with_their_variables_put_in_and_without_credentials(tree):
    tree.file("/etc/dnf/dnf.conf", "[main]\ngpgcheck=True\nexcludepkgs=kernel*, nvidia-open\n")
    tree.file("/etc/yum.repos.d/cuda-rhel9.repo", REPO).file("/etc/yum.repos.d/old.repo.rpmsave", REPO)
    found = rpm.dnf(tree.host(), "9.6", [])
    assert found["repositories"] == [
        {
            "file": "/etc/yum.repos.d/cuda-rhel9.repo",
            "id": "cuda-rhel9-x86_64",
            "urls": [
                "https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64",
                "https://mirror.example.org/$unheard/of",
            ],
            "enabled": True,
            "gpgcheck": True,
            "keys": ["https://developer.download.nvidia.com/D42D0685.pub", "file:///etc/pki/rpm-gpg/x86_64.key"],
        },
        {
            "file": "/etc/yum.repos.d/cuda-rhel9.repo",
            "id": "epel",
            "urls": ["https://mirrors.example.org/epel-9"],
            "enabled": False,
            "gpgcheck": True,  # as dnf.conf says for all
            "keys": [],
        },
    ]
    assert found["excludes"] == [
        {"file": "/etc/dnf/dnf.conf", "id": None, "packages": ["kernel*", "nvidia-open"]},
        {
            "file": "/etc/yum.repos.d/cuda-rhel9.repo",
            "id": "cuda-rhel9-x86_64",
            "packages": ["nvidia-settings", "nvidia-xconfig"],
        },
    ]


def test_a_variable_that_a_file_sets_wins(tree):
    tree.file("/etc/dnf/vars/releasever", "9.4\n").file(
        "/etc/yum.repos.d/a.repo", "[a]\nbaseurl=http://x/$releasever\n"
    )
    assert rpm.dnf(tree.host(), "9.6", [])["repositories"][0]["urls"] == ["http://x/9.4"]


def test_a_repository_file_that_cannot_be_read_is_named_and_the_others_count(tree):
    unknown = []
    tree.link("/etc/yum.repos.d/loop.repo", "loop.repo").file("/etc/yum.repos.d/a.repo", "[a]\nbaseurl=http://x/\n")
    os.mkfifo(tree.path("/etc/yum.repos.d/pipe.repo"))
    assert [repository["id"] for repository in rpm.dnf(tree.host(), "9", unknown)["repositories"]] == ["a"]
    assert [entry["what"] for entry in unknown] == [
        "os.dnf.repositories[/etc/yum.repos.d/loop.repo]",
        "os.dnf.repositories[/etc/yum.repos.d/pipe.repo]",
    ]


def test_the_enabled_stream_of_nvidias_module(tree):
    assert rpm.streams(tree.host()) == {"nvidia-driver": None}
    tree.file("/etc/dnf/modules.d/perl.module", "[perl]\nname=perl\nstream=5.32\nprofiles=\nstate=enabled\n")
    path = "/etc/dnf/modules.d/nvidia-driver.module"
    tree.file(path, "[nvidia-driver]\nname=nvidia-driver\nstream=580-open\nprofiles=default\nstate=enabled\n")
    assert rpm.streams(tree.host()) == {"nvidia-driver": "580-open", "perl": "5.32"}
    tree.file(path, "[nvidia-driver]\nname=nvidia-driver\nstream=\nprofiles=\nstate=disabled\n")
    assert rpm.streams(tree.host())["nvidia-driver"] is None


@pytest.mark.parametrize(
    ("plugin", "settings", "heeded"),
    [
        (None, None, False),
        (PLUGIN, None, True),
        ("/usr/lib/python3/dist-packages/dnf-plugins/versionlock.py", "[main]\nenabled = 1\n", True),
        (PLUGIN, "[main]\nenabled = 0\n", False),
        ("/usr/bin/dnf5", None, True),
    ],
)
def test_whether_dnf_heeds_version_locks(tree, plugin, settings, heeded):
    if plugin:
        tree.file(plugin)
    if settings:
        tree.file("/etc/dnf/plugins/versionlock.conf", settings)
    assert rpm.locks_count(tree.host()) is heeded


@pytest.mark.parametrize(
    ("line", "name", "version"),
    [
        ("nvidia-driver-cuda-3:580.178.04-1.el9.*", "nvidia-driver-cuda", "3:580.178.04-1.el9"),
        ("nvidia-gpu-firmware-0:20250812-1.el9.noarch", "nvidia-gpu-firmware", "20250812-1.el9"),
        ("nvidia-driver-580.178.04-1.el9", "nvidia-driver", "580.178.04-1.el9"),
        ("*nvidia*580*", "*nvidia*580*", None),
        ("nvidia-driver-cuda", "nvidia-driver-cuda", None),
        ("!nvidia-driver-3:590.1-1.el9.*", "nvidia-driver", None),
    ],
)
def test_lines_of_versionlock_list(line, name, version):
    text = f"# Added lock on Sun Nov 22 2026\n\n{line}  # why\n"
    assert list(rpm.version_locks(text)) == [{"packages": name, "version": version, "pin": line}]


TOML = """\
version = "1.0"

[[packages]]
name = "nvidia-driver"
comment = "Added by 'versionlock add' command 2026-11-22 10:00:00"
[[packages.conditions]]
key = "evr"
comparator = "="
value = "3:580.178.04-1.fc43"

[[packages]]
name = 'nvidia-open'
[[packages.conditions]]
key = "evr"
comparator = "<"
value = "3:590"
"""


def test_dnf5s_locks(tree):
    tree.file("/etc/dnf/versionlock.toml", TOML)
    assert [(lock["packages"], lock["version"], lock["pin"]) for lock in rpm.locks(tree.host())] == [
        ("nvidia-driver", "3:580.178.04-1.fc43", "nvidia-driver evr = 3:580.178.04-1.fc43"),
        ("nvidia-open", None, "nvidia-open evr < 3:590"),
    ]


@pytest.mark.parametrize(
    ("lock", "held"),
    [
        ("nvidia-driver-cuda-3:580.178.04-1.el9.*", True),
        ("nvidia-driver-cuda-3:575.57.08-1.el9.*", True),  # it may only go there
        ("*nvidia*580*", True),
        ("nvidia-driver-cuda", True),
        ("nvidia-driver-cuda-580.178.04", True),
        ("3:nvidia-driver-cuda-580.178.04-1.el9.x86_64", True),
        ("nvidia-driver-3:580.178.04-1.el9.*", False),
        ("kernel-*", False),
        ("!nvidia-driver-cuda-3:590.1-1.el9.*", False),
    ],
)
def test_a_locked_package_is_held_where_dnf_heeds_locks(tree, lock, held):
    tree.folder("/var/lib/rpm").file(LOCKS, f"{lock}\n")
    tree.commands["rpm"] = DRIVER
    assert packages.inventory(tree.host(), "dnf", []).packages[0]["held"] is False
    assert packages.inventory(tree.file(PLUGIN).host(), "dnf", []).packages[0]["held"] is held


def test_a_driver_package_that_is_there_twice_was_interrupted_and_kernels_are_meant_to_be(tree):
    tree.folder("/var/lib/rpm")
    tree.commands["rpm"] = (
        DRIVER
        + DRIVER.replace("580.178.04", "580.95.05")
        + DRIVER.replace("x86_64", "i686")
        + "".join(f"kernel-core\t0\t5.14.0-{build}.el9\tx86_64\tRocky\n" for build in (1, 2))
    )
    found = packages.inventory(tree.host(), "dnf", [])
    assert found.interrupted == [
        "nvidia-driver-cuda.x86_64 is installed in 2 versions: 3:580.178.04-1.el9, 3:580.95.05-1.el9"
    ]
    assert len(found.packages) == 3


def _header(name, version="580.178.04", release="1.el9", epoch=3, vendor="NVIDIA"):
    """A package's header as rpm keeps it; tags and types of rpmtag.h."""
    strings = [(1000, name), (1001, version), (1002, release), (1011, vendor), (1022, "x86_64")]
    index, data = b"", b""
    for tag, value in strings:
        index += struct.pack(">IIiI", tag, 6, len(data), 1)
        data += value.encode() + b"\0"
    if epoch is not None:
        data += bytes(-len(data) % 4)
        index += struct.pack(">IIiI", 1003, 4, len(data), 1)
        data += struct.pack(">I", epoch)
    return struct.pack(">II", len(index) // 16, len(data)) + index + data


def _rpmdb(tree, *headers, path="/var/lib/rpm/rpmdb.sqlite"):
    """rpm's database: the tables that are read, as rpm makes them."""
    tree.folder(os.path.dirname(path))
    with sqlite3.connect(tree.path(path)) as database:
        database.execute("CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
        database.execute("CREATE TABLE 'Name' (key 'TEXT' NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL)")
        for number, (name, blob) in enumerate(headers, 1):
            database.execute("INSERT INTO Packages VALUES (?, ?)", (number, blob))
            database.execute("INSERT INTO Name VALUES (?, ?, 0)", (name, number))
    database.close()
    return tree


def _all(host):
    return rpm.installed(host, packages.is_driver_package)


def test_rpms_database_is_read_without_running_rpm_or_writing_anything(tree):
    _rpmdb(
        tree,
        ("bash", b"not looked at"),
        ("nvidia-driver", _header("nvidia-driver")),
        ("nvidia-gpu-firmware", _header("nvidia-gpu-firmware", "20250812", epoch=None, vendor="Red Hat, Inc.")),
        ("nvidia-open", _header("nvidia-open", epoch=0)),
    )
    before = sorted(path.name for path in tree.path("/var/lib/rpm").iterdir())
    assert _all(tree.host()) == [
        {"name": "nvidia-driver", "version": "3:580.178.04-1.el9", "architecture": "x86_64", "vendor": "NVIDIA"},
        {
            "name": "nvidia-gpu-firmware",
            "version": "20250812-1.el9",
            "architecture": "x86_64",
            "vendor": "Red Hat, Inc.",
        },
        {"name": "nvidia-open", "version": "580.178.04-1.el9", "architecture": "x86_64", "vendor": "NVIDIA"},
    ]
    assert tree.asked == []
    assert sorted(path.name for path in tree.path("/var/lib/rpm").iterdir()) == before


def test_the_database_of_el_10_lies_elsewhere(tree):
    path = "/usr/lib/sysimage/rpm/rpmdb.sqlite"
    _rpmdb(tree, ("nvidia-driver", _header("nvidia-driver")), path=path).link("/var/lib/rpm", "/usr/lib/sysimage/rpm")
    assert [package["name"] for package in _all(tree.host())] == ["nvidia-driver"]


@pytest.mark.parametrize("blob", [b"", b"\0" * 8, _header("nvidia-driver")[:-30], b"\xff" * 200, "text"])
def test_a_database_that_cannot_be_read_is_left_to_rpm(tree, blob):
    tree.commands["rpm"] = DRIVER
    _rpmdb(tree, ("nvidia-driver", blob))
    assert [package["name"] for package in _all(tree.host())] == ["nvidia-driver-cuda"]
    tree.file("/var/lib/rpm/rpmdb.sqlite", b"garbage " * 100)
    assert [package["name"] for package in _all(tree.host())] == ["nvidia-driver-cuda"]


def test_changes_that_wait_to_be_merged_are_left_to_rpm(tree):
    tree.commands["rpm"] = DRIVER
    _rpmdb(tree, ("nvidia-driver", _header("nvidia-driver"))).file("/var/lib/rpm/rpmdb.sqlite-wal", "")
    assert [package["name"] for package in _all(tree.host())] == ["nvidia-driver"]
    tree.file("/var/lib/rpm/rpmdb.sqlite-wal", "x" * 4096)
    assert [package["name"] for package in _all(tree.host())] == ["nvidia-driver-cuda"]


@given(st.binary(max_size=120), st.integers(0, 120))
def test_no_header_makes_the_reader_raise_anything_unexpected(noise, place):
    blob = _header("nvidia-driver")
    with contextlib.suppress(KeyError, ValueError, struct.error, Unreadable):
        assert rpm.header(blob[:place] + noise + blob[place + len(noise) :])["name"] is not None


def _history(tree, state, names=("nvidia-driver-cuda", "bash")):
    """dnf4's history with one transaction, in the columns that are read."""
    path = tree.folder("/var/lib/dnf").folder("/var/lib/rpm").path("/var/lib/dnf/history.sqlite")
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as history:
        history.executescript(
            "CREATE TABLE trans (id INTEGER PRIMARY KEY, state INTEGER);"
            "CREATE TABLE rpm (item_id INTEGER, name TEXT);"
            "CREATE TABLE trans_item (trans_id INTEGER, item_id INTEGER);"
        )
        history.execute("INSERT INTO trans VALUES (6, 0), (7, ?)", (state,))
        for number, name in enumerate(names):
            history.execute("INSERT INTO rpm VALUES (?, ?)", (number, name))
            history.execute("INSERT INTO trans_item VALUES (7, ?)", (number,))
    history.close()
    tree.commands["rpm"] = ""
    return tree


def test_dnfs_last_transaction_that_never_ended_is_named(tree):
    assert packages.inventory(_history(tree, 0).host(), "dnf", []).interrupted == [
        "dnf transaction 7 was interrupted: nvidia-driver-cuda"
    ]


def test_a_transaction_that_ended_or_was_finished_or_is_not_the_drivers_is_no_matter(tree):
    assert packages.inventory(_history(tree, 1).host(), "dnf", []).interrupted == []
    assert packages.inventory(_history(tree, 0, ["bash"]).host(), "dnf", []).interrupted == []
    tree.file("/var/lib/gpufleet/dnf.json", '{"repaired": 7}')
    assert packages.inventory(_history(tree, 0).host(), "dnf", []).interrupted == []


def test_reading_the_history_writes_nothing(tree):
    _history(tree, 0)
    before = {path.name: path.stat().st_mtime_ns for path in tree.path("/var/lib/dnf").iterdir()}
    assert rpm.unfinished(tree.host()) == (7, ["bash", "nvidia-driver-cuda"])
    assert {path.name: path.stat().st_mtime_ns for path in tree.path("/var/lib/dnf").iterdir()} == before


def test_the_end_of_a_transaction_counts_while_it_waits_in_the_write_ahead_log(tree):
    folder = _history(tree, 0).path("/var/lib/dnf")
    with contextlib.closing(
        sqlite3.connect(folder / "history.sqlite")
    ) as dnf:  # as dnf's connection is while it has not ended
        dnf.executescript(
            "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; UPDATE trans SET state = 1 WHERE id = 7;"
        )
        before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
        assert before["history.sqlite-wal"][1] > 0
        assert rpm.unfinished(tree.host()) is None
        assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before


def test_the_end_of_a_transaction_is_found_also_where_a_crash_took_the_index_of_the_log(tree):
    folder = _history(tree, 0).path("/var/lib/dnf")
    with contextlib.closing(sqlite3.connect(folder / "history.sqlite")) as dnf:
        dnf.executescript(
            "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; UPDATE trans SET state = 1 WHERE id = 7;"
        )
        kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("history.sqlite", "history.sqlite-wal"):
        tree.file(f"/var/lib/dnf/{name}", kept[name])
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()}
    assert sorted(before) == ["history.sqlite", "history.sqlite-wal"]
    assert rpm.unfinished(tree.host()) is None
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()} == before


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\0" + bytes(200)])
def test_a_damaged_history_hides_no_packages(tree, content):
    unknown = []
    tree.folder("/var/lib/rpm").file("/var/lib/dnf/history.sqlite", content)
    tree.commands["rpm"] = DRIVER
    assert len(packages.inventory(tree.host(), "dnf", unknown).packages) == 1
    assert [entry["what"] for entry in unknown] == ["driver.interrupted"]


def test_rpm_that_fails_leaves_the_packages_unknown(tree):
    with pytest.raises(Unreadable, match="rpm is not installed"):
        packages.inventory(tree.folder("/var/lib/rpm").host(), "dnf", [])


@given(st.text(max_size=200))
def test_no_text_makes_the_parsers_raise(text):
    assert all(isinstance(section, dict) for section in rpm.ini(text).values())
    assert all(lock["pin"] for lock in rpm.version_locks(text))
    assert all(lock["packages"] for lock in rpm.version_locks_toml(text + TOML))
    assert all(len(package) == 4 for package in rpm.rpm_lines(text))
