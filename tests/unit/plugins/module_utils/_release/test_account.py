"""The build account is created once, removed only if it is ours, and never root."""

from __future__ import annotations

import pwd
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import build, model
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Account


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host whose accounts are a dictionary; useradd and userdel work on it, or say what the test wants them to."""
    state = SimpleNamespace(known={}, commands=[], complaint="")

    def getpwnam(name: str) -> Any:
        return state.known[name]

    def run(command: list[str], **_more: Any) -> subprocess.CompletedProcess[str]:
        state.commands.append(command)
        if state.complaint:
            return subprocess.CompletedProcess(command, 1, "", state.complaint + "\n")
        if command[0] == "useradd":
            comment = command[command.index("--comment") + 1]
            state.known[command[-1]] = SimpleNamespace(pw_name=command[-1], pw_uid=990, pw_gid=990, pw_gecos=comment)
        else:
            del state.known[command[-1]]
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    monkeypatch.setattr(build.subprocess, "run", run)
    return state


def test_it_is_created_as_a_system_account_that_nobody_logs_in_with(accounts: Any) -> None:
    assert build.build_account("/opt/gpufleet/envs/.cache") == Account("gpufleet", 990, 990)
    assert accounts.commands[0][:2] == ["useradd", "--system"]
    assert "/usr/sbin/nologin" in accounts.commands[0]
    build.build_account("/opt/gpufleet/envs/.cache")
    assert len(accounts.commands) == 1


def test_useradds_complaint_is_told(accounts: Any) -> None:
    accounts.complaint = "useradd: cannot lock /etc/passwd; try again later."
    with pytest.raises(model.ReleaseError, match="cannot lock /etc/passwd"):
        build.build_account("/opt/gpufleet/envs/.cache")


def test_an_account_with_the_uid_of_root_does_not_build(accounts: Any) -> None:
    accounts.known["gpufleet"] = SimpleNamespace(pw_name="gpufleet", pw_uid=0, pw_gid=0, pw_gecos="")
    with pytest.raises(model.ReleaseError, match="uid of root"):
        build.build_account("/opt/gpufleet/envs/.cache")


def test_what_was_created_is_removed_again(accounts: Any) -> None:
    build.build_account("/opt/gpufleet/envs/.cache")
    assert build.remove_build_account() is None
    assert accounts.known == {}
    assert build.remove_build_account() is None


def test_somebody_elses_account_of_that_name_stays(accounts: Any) -> None:
    accounts.known["gpufleet"] = SimpleNamespace(
        pw_name="gpufleet", pw_uid=1001, pw_gid=1001, pw_gecos="GPU fleet admin"
    )
    assert build.remove_build_account() is None
    assert "gpufleet" in accounts.known
    assert accounts.commands == []


def test_userdels_complaint_is_handed_back(accounts: Any) -> None:
    build.build_account("/opt/gpufleet/envs/.cache")
    accounts.complaint = "userdel: user gpufleet is currently used by process 1"
    assert build.remove_build_account() == "userdel says: userdel: user gpufleet is currently used by process 1"
