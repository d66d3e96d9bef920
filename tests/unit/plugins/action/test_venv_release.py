"""Where the controller gets uv from, and that only a host which needs it costs a transfer."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible_collections.gpufleet.workstation.plugins.action import venv_release
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.tool import Wheel
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import uv

CONTENT = b"a wheel"
WHEEL = Wheel("uv-0-py3-none-any.whl", hashlib.sha256(CONTENT).hexdigest(), "any")


class Action(venv_release.ActionModule):
    """The action with a recorded connection."""

    def __init__(self, arguments: dict[str, Any], answers: list[dict[str, Any]]) -> None:
        shell = SimpleNamespace(tmpdir=None, join_path=lambda *parts: "/".join(parts))
        self._task = SimpleNamespace(args=arguments, async_val=0, check_mode=False, diff=False, environment=None)
        self._connection = SimpleNamespace(_shell=shell)
        self._supports_async = False
        self.answers = answers
        self.executed: list[dict[str, Any]] = []
        self.transferred: list[tuple[str, str]] = []

    def _execute_module(self, module_args: dict[str, Any], **_more: Any) -> dict[str, Any]:
        self.executed.append(dict(module_args))
        return self.answers.pop(0)

    def _make_tmp_path(self, *_arguments: Any) -> str:
        return "/remote/tmp"

    def _transfer_file(self, local: str, remote: str) -> str:
        self.transferred.append((local, remote))
        return remote

    def _fixup_perms2(self, *_arguments: Any, **_more: Any) -> None:
        return


@pytest.fixture(autouse=True)
def small_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A pinned wheel of seven bytes, and a cache of the test's own."""
    monkeypatch.setattr(uv.tool, "WHEELS", {"x86_64": WHEEL})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "given.whl"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that delivers the wheel; the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_more: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        requirements = Path(command[command.index("--requirement") + 1]).read_text()
        assert f"--hash=sha256:{WHEEL.sha256}" in requirements
        (Path(command[command.index("--dest") + 1]) / WHEEL.file).write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(uv.subprocess, "run", run)
    return commands


def test_a_host_that_needs_no_uv_costs_one_execution() -> None:
    action = Action({"name": "base"}, [{"changed": True}])
    assert action.run(None, {})["changed"]
    assert (len(action.executed), action.transferred) == (1, [])


def test_a_host_that_needs_uv_gets_it_and_runs_again(pip: list[list[str]], tmp_path: Path) -> None:
    action = Action(
        {"name": "base", "spec": {"arch": "x86_64"}}, [{"uv_needed": True, "changed": False}, {"changed": True}]
    )
    assert action.run(None, {})["changed"]
    assert action.transferred == [(str(tmp_path / "cache" / "gpufleet" / WHEEL.file), f"/remote/tmp/{WHEEL.file}")]
    assert [call.get("uv_archive") for call in action.executed] == [None, f"/remote/tmp/{WHEEL.file}"]
    assert len(pip) == 1


def test_the_users_own_wheel_is_taken_and_nothing_is_downloaded(pip: list[list[str]], small_wheel: Path) -> None:
    arguments = {"name": "base", "spec": {"arch": "x86_64"}, "uv_wheel": str(small_wheel)}
    action = Action(arguments, [{"uv_needed": True}, {"changed": True}])
    action.run(None, {})
    assert action.transferred[0][0] == str(small_wheel)
    assert pip == []


def test_an_unknown_architecture_is_told_with_the_host() -> None:
    action = Action({"name": "base", "spec": {"arch": "riscv64"}}, [{"uv_needed": True}])
    with pytest.raises(AnsibleActionFail, match=r"ws1: No uv is known for the architecture 'riscv64'"):
        action.run(None, {"inventory_hostname": "ws1"})


def test_a_build_is_followed_until_it_ends_and_shown_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(venv_release.display, "display", shown.append)
    progress = {
        "release": "2.9.1-cu128-1f2e3d4c",
        "step": "install",
        "seconds": 21,
        "bytes_done": 1_234_000_000,
        "bytes_total": 7_000_000_000,
        "bytes_total_from": "experience",
        "rate": 62_000_000,
    }
    going_on = {"running": True, "follow": "a.b", "progress": progress}
    action = Action({"name": "base"}, [{**going_on, "warnings": ["adopted"]}, going_on, {"changed": True}])
    assert action.run(None, {"inventory_hostname": "ws1"}) == {"changed": True, "warnings": ["adopted"]}
    assert [call.get("follow") for call in action.executed] == [None, "a.b", "a.b"]
    line = "install (21 s since the beginning), 1,234 of about 7,000 MB, 62 MB/s"
    assert shown == [f"ws1: base: building 2.9.1-cu128-1f2e3d4c: {line}"] * 2


class Dropping(Action):
    """Loses the connection where an answer is an exception."""

    def _execute_module(self, module_args: dict[str, Any], **more: Any) -> dict[str, Any]:
        if isinstance(self.answers[0], Exception):
            raise self.answers.pop(0)
        return super()._execute_module(module_args, **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Time passes only while the action sleeps; what it shows."""
    shown: list[str] = []
    now = [0.0]
    monkeypatch.setattr(venv_release.display, "display", shown.append)
    monkeypatch.setattr(venv_release, "describe", lambda _progress: "building")
    monkeypatch.setattr(venv_release.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(venv_release.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return shown


GOING_ON = {"running": True, "follow": "a.b", "progress": {}}
LOST = AnsibleConnectionFailure("Data could not be sent to the remote host.")
AWAY = {"unreachable": True, "msg": "Timeout (12s) waiting for privilege escalation prompt: "}


def test_a_connection_that_drops_meanwhile_is_tried_again(clock: list[str]) -> None:
    action = Dropping({"name": "base"}, [GOING_ON, LOST, AWAY, GOING_ON, {"changed": True}])
    assert action.run(None, {"inventory_hostname": "ws1"})["changed"]
    assert clock == [
        "ws1: base: building",
        "ws1: Data could not be sent to the remote host. Trying again.",
        "ws1: Timeout (12s) waiting for privilege escalation prompt. Trying again.",
        "ws1: base: building",
    ]


@pytest.mark.usefixtures("clock")
def test_a_connection_that_drops_before_the_first_answer_is_tried_again() -> None:
    action = Dropping({"name": "base"}, [LOST, GOING_ON, {"changed": True}])
    assert action.run(None, {})["changed"]
    assert [call.get("follow") for call in action.executed] == [None, "a.b"]


@pytest.mark.usefixtures("clock")
def test_a_connection_that_stays_lost_says_that_the_build_goes_on() -> None:
    action = Dropping({"name": "base"}, [GOING_ON, *[LOST] * 100])
    with pytest.raises(
        AnsibleConnectionFailure, match=r"remote host\. A build that has begun goes on there\. Run again"
    ):
        action.run(None, {})
    assert len(action.answers) == 100 - 1 - venv_release.PATIENCE // venv_release.RETRY


@pytest.mark.usefixtures("clock")
def test_a_host_that_stays_out_of_reach_says_that_the_build_goes_on() -> None:
    answer = Dropping({"name": "base"}, [GOING_ON, *[AWAY] * 100]).run(None, {})
    assert answer["unreachable"]
    assert answer["msg"].startswith(
        "Timeout (12s) waiting for privilege escalation prompt. A build that has begun goes on there. Run"
    )
