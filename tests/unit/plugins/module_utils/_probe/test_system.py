"""The operating system."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import system


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n', ("debian", "13", "trixie", "debian")),
        (
            'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n',
            ("ubuntu", "24.04", "noble", "debian"),
        ),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n', ("rocky", "9.6", None, "redhat")),
        ("ID=fedora\nVERSION_ID=43\n", ("fedora", "43", None, "redhat")),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="16.0"\n', ("opensuse-leap", "16.0", None, "suse")),
        ("ID=arch\n", ("arch", None, None, "arch")),
        ("# nothing\nID='unclosed\n", ("unclosed", None, None, "unclosed")),
        ("", ("linux", None, None, "linux")),
    ],
)
def test_os_release(text, expected):
    found = system.os_release(text)
    assert (found["id"], found["version_id"], found["codename"], found["family"]) == expected


def test_pythons_are_executable_and_versioned_and_usr_bin_comes_first(tree):
    for path in ("/usr/bin/python3.11", "/usr/local/bin/python3.11", "/usr/local/bin/python3.13", "/usr/bin/python3"):
        tree.file(path, "", 0o755)
    tree.file("/usr/bin/python3.9", "", 0o644).file("/usr/bin/python3.11-config", "", 0o755).file(
        "/usr/bin/python2.7", "", 0o755
    )
    tree.link("/usr/bin/python3.14", "/gone")
    assert system.pythons(tree.host()) == {"3.11": "/usr/bin/python3.11", "3.13": "/usr/local/bin/python3.13"}


def test_init_is_systemd_where_systemd_runs_and_else_process_1(tree):
    tree.file("/proc/1/comm", "runit\n")
    assert system.init(tree.host()) == "runit"
    assert system.init(tree.folder("/run/systemd/system").host()) == "systemd"


def test_boot_id(debian, tree):
    assert system.boot_id(debian.host()) == "0b1fbb4c-0f6e-4f3c-9d43-58a0d2f1a111"
