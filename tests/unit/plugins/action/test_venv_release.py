"""Where the controller gets uv from, and that only a host which needs it costs a transfer."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.gpufleet.workstation.plugins.action import venv_release
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.tool import WHEELS, Wheel

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
    monkeypatch.setattr(venv_release, "WHEELS", {"x86_64": WHEEL})
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

    monkeypatch.setattr(venv_release.subprocess, "run", run)
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
    with pytest.raises(AnsibleActionFail, match=r"ws1: no uv is known for the architecture 'riscv64'"):
        action.run(None, {"inventory_hostname": "ws1"})


def test_the_users_own_wheel_has_to_be_the_pinned_one(small_wheel: Path) -> None:
    small_wheel.write_bytes(b"another wheel")
    with pytest.raises(AnsibleActionFail, match="has the sha256"):
        venv_release.given_wheel(small_wheel, WHEEL)
    with pytest.raises(AnsibleActionFail, match="cannot be read"):
        venv_release.given_wheel(small_wheel.with_name("gone.whl"), WHEEL)


def test_the_cache_is_filled_once_and_again_when_it_is_damaged(pip: list[list[str]], tmp_path: Path) -> None:
    path = venv_release.cached_wheel(tmp_path / "kept", WHEEL)
    assert path.read_bytes() == CONTENT
    venv_release.cached_wheel(tmp_path / "kept", WHEEL)
    assert len(pip) == 1
    path.write_bytes(b"damaged")
    assert venv_release.cached_wheel(tmp_path / "kept", WHEEL).read_bytes() == CONTENT
    assert len(pip) == 2
    assert sorted(entry.name for entry in (tmp_path / "kept").iterdir()) == [".lock", WHEEL.file]


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("ERROR: Could not find a version that satisfies the requirement", "Could not find a version"),
        ("/usr/bin/python3: No module named pip", "No module named pip"),
        ("", "it says: nothing"),
    ],
)
def test_pips_refusal_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stderr: str, said: str
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(venv_release.subprocess, "run", lambda *_arguments, **_more: failed)
    with pytest.raises(AnsibleActionFail, match=said) as caught:
        venv_release.cached_wheel(tmp_path / "kept", WHEEL)
    assert "torch_env_uv_wheel" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnsibleActionFail, match="cannot keep uv in"):
        venv_release.cached_wheel(tmp_path / "file" / "below", WHEEL)


def test_every_real_pin_names_its_architecture() -> None:
    for architecture, wheel in WHEELS.items():
        assert architecture in wheel.file
        assert wheel.platform in wheel.file
        assert len(wheel.sha256) == 64
