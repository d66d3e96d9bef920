"""The pinned uv on the controller: fetched once, verified, and what is said where it cannot be had."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.tool import WHEELS, Wheel
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import uv

CONTENT = b"a wheel"
WHEEL = Wheel("uv-0-py3-none-any.whl", hashlib.sha256(CONTENT).hexdigest(), "any")


@pytest.fixture
def small_wheel(tmp_path: Path) -> Path:
    """A pinned wheel of seven bytes."""
    path = tmp_path / "given.whl"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that delivers the wheel; the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_more: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / WHEEL.file).write_bytes(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(uv.subprocess, "run", run)
    return commands


def test_the_users_own_wheel_has_to_be_the_pinned_one(small_wheel: Path) -> None:
    small_wheel.write_bytes(b"another wheel")
    with pytest.raises(uv.NoUv, match="has the sha256"):
        uv.given_wheel(small_wheel, WHEEL)
    with pytest.raises(uv.NoUv, match="cannot be read"):
        uv.given_wheel(small_wheel.with_name("gone.whl"), WHEEL)


def test_the_cache_is_filled_once_and_again_when_it_is_damaged(pip: list[list[str]], tmp_path: Path) -> None:
    path = uv.cached_wheel(tmp_path / "kept", WHEEL)
    assert path.read_bytes() == CONTENT
    uv.cached_wheel(tmp_path / "kept", WHEEL)
    assert len(pip) == 1
    path.write_bytes(b"damaged")
    assert uv.cached_wheel(tmp_path / "kept", WHEEL).read_bytes() == CONTENT
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
    monkeypatch.setattr(uv.subprocess, "run", lambda *_arguments, **_more: failed)
    with pytest.raises(uv.NoUv, match=said) as caught:
        uv.cached_wheel(tmp_path / "kept", WHEEL)
    assert "torch_env_uv_wheel" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(uv.NoUv, match="cannot keep uv in"):
        uv.cached_wheel(tmp_path / "file" / "below", WHEEL)


def test_every_real_pin_names_its_architecture() -> None:
    for architecture, wheel in WHEELS.items():
        assert architecture in wheel.file
        assert wheel.platform in wheel.file
        assert len(wheel.sha256) == 64


def test_an_architecture_without_uv_is_named() -> None:
    with pytest.raises(uv.NoUv, match="riscv64"):
        uv.wheel_for("riscv64")
