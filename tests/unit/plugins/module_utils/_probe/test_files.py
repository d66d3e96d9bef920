"""Managed files and the variables of launch contexts."""

from __future__ import annotations

import hashlib
import os

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import files

NAME = "TOKENIZERS_PARALLELISM"


def test_a_file_is_described_by_hash_mode_and_owner(tree):
    found = files.describe(tree.file("/etc/x.conf", "content", 0o640).host(), "/etc/x.conf")
    assert found["sha256"] == hashlib.sha256(b"content").hexdigest()
    assert (found["mode"], found["type"]) == ("0640", "file")
    assert isinstance(found["owner"], str)


def test_folders_links_and_others_have_no_hash(tree):
    tree.folder("/d").link("/l", "/d")
    os.mkfifo(tree.path("/p"))
    found = files.described(tree.host(), ["/d", "/l", "/p", "/absent"], [])
    assert [found[path] and found[path]["type"] for path in found] == ["directory", "link", "other", None]
    assert found["/l"]["sha256"] is None


def test_a_special_mode_keeps_its_four_digits(tree):
    assert files.describe(tree.file("/s", "", 0o4755).host(), "/s")["mode"] == "4755"


def test_a_file_that_is_too_large_is_unknown(tree):
    unknown = []
    assert files.described(tree.file("/big", b"x" * (1024 * 1024 + 1)).host(), ["/big"], unknown) == {"/big": None}
    assert unknown == [{"what": "files[/big]", "why": "/big is larger than 1024 KiB"}]


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("", None),
        ("A=1\n", None),
        ("A=1\n# BEGIN gpufleet.workstation\nB=2\nC=3\n# END gpufleet.workstation\nD=4\n", "B=2\nC=3\n"),
        ("# BEGIN gpufleet.workstation\n# END gpufleet.workstation\n", ""),
        ("# BEGIN gpufleet.workstation\nB=2\n", "B=2\n"),
        ("# END gpufleet.workstation\n# BEGIN gpufleet.workstation\nB=2", "B=2"),
    ],
)
def test_the_block_between_our_markers(text, block):
    assert files.managed_block(text) == block


def test_the_last_assignment_in_etc_environment_counts(tree):
    tree.file("/etc/environment", f'PATH="/bin"\n{NAME}=true\nexport {NAME}="false"\nSECRET=hunter2\nbroken line\n')
    found = files.runtime(tree.host(), [NAME, "HF_HOME"])
    assert found["etc_environment"] == {"block": None, "values": {NAME: "false"}}


def test_variables_that_were_not_asked_for_stay_on_the_host(tree):
    tree.file("/etc/environment", "API_TOKEN=hunter2\n")
    assert "hunter2" not in str(files.runtime(tree.host(), [NAME]))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"export {NAME}=false\n", "false"),
        (f"{NAME}='false'; export {NAME}\n", "false"),
        (f"# export {NAME}=true\n", None),
        (f'export {NAME}="unclosed\n', None),
        (f"export OTHER=1 {NAME}=false\n", "false"),
    ],
)
def test_values_of_the_shell_fragment(tree, text, value):
    found = files.runtime(tree.file("/etc/profile.d/gpufleet.sh", text).host(), [NAME])
    assert found["profile_d"]["values"].get(NAME) == value


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (f"[Manager]\nDefaultEnvironment={NAME}=false\n", {NAME: "false"}),
        (f'[Manager]\nDefaultEnvironment="A=b c" "{NAME}=false"\n', {NAME: "false", "A": "b c"}),
        (f"[Manager]\nDefaultEnvironment={NAME}=x\nDefaultEnvironment=\n", {}),
        (f"[Manager]\nDefaultEnvironment=A=1\nDefaultEnvironment={NAME}=false\n", {"A": "1", NAME: "false"}),
        (f"[Manager]\nDefaultEnvironment=A=1 \\\n  {NAME}=false\n", {"A": "1", NAME: "false"}),
        (f"[Manager]\n#DefaultEnvironment={NAME}=x\n", {}),
    ],
)
def test_values_of_the_system_manager(tree, text, values):
    found = files.runtime(tree.file("/etc/systemd/system.conf.d/50-gpufleet.conf", text).host(), [NAME, "A"])
    assert found["system_conf_d"] == {"path": "/etc/systemd/system.conf.d/50-gpufleet.conf", "values": values}


def test_contexts_without_a_file_set_nothing(tree):
    assert files.runtime(tree.host(), [NAME]) == {
        "etc_environment": {"block": None, "values": {}},
        "profile_d": {"path": "/etc/profile.d/gpufleet.sh", "values": {}},
        "environment_d": {"path": "/etc/environment.d/50-gpufleet.conf", "values": {}},
        "system_conf_d": {"path": "/etc/systemd/system.conf.d/50-gpufleet.conf", "values": {}},
    }
