# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/lock.yml as a user plays it: against real indexes of tiny wheels, for hosts that are only observed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, tool

from .conftest import Fleet, Run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins/module_utils/_release"))
import tiny_index

pytestmark = pytest.mark.skipif(tiny_index.uv_program() is None, reason="needs uv")
MIRROR = "http://bob:geheim@127.0.0.1:9"  # where nothing answers: locks must not be made from it


@pytest.fixture
def served() -> Iterator[tuple[Path, str]]:
    """A folder with a torch index and a package index, and its URL."""
    with tiny_index.serve_both() as served:
        yield served


@pytest.fixture
def teams(fleet: Fleet, served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Two hosts of one kind with one environment, one of them with another beside it; they install from a mirror. No locks yet."""
    tools = Path(tool.installed(str(tmp_path / "cache/gpufleet/tools")))
    tools.parent.mkdir(parents=True)
    tools.symlink_to(str(tiny_index.uv_program()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    variables = {
        "torch_env_index_base_url": served[1],
        "torch_env_package_index_url": f"{served[1]}/packages",
        "torch_env_mirror_index_base_url": f"{MIRROR}/whl",
        "torch_env_mirror_package_index_url": f"{MIRROR}/packages/simple",
    }
    base = {"name": "base", "requirements": ["plainpkg"]}
    fleet.add("a", ready=False, torch_env_environments=[base], **variables)
    fleet.add("b", ready=False, torch_env_environments=[base, {"name": "plain"}], **variables)
    shutil.rmtree(tmp_path / ".gpufleet")
    return fleet


def locks(fleet: Fleet) -> dict[str, dict[str, str]]:
    """{environment: {package: version}} of all locks."""
    found: dict[str, dict[str, str]] = {}
    for path in (fleet.folder / ".gpufleet/locks").glob("*/*.txt"):
        assert path.parent.name not in found
        found[path.parent.name] = {item.name: item.version for item in lock.parse(path.read_text()).packages}
    return found


def changed(run: Run) -> dict[str, int]:
    assert run.status == 0, run.text
    recap = run.text[run.text.rfind("PLAY RECAP") :]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s*:.*changed=(\d+)", recap, re.MULTILINE)}


def test_each_environment_is_locked_once_and_changes_only_when_asked(teams: Fleet, served: tuple[Path, str]) -> None:
    family = {
        "torch": "2.9.1+cu128",
        "torchvision": "0.24.1+cu128",
        "torchaudio": "2.9.1+cu128",
        "nvidia-tiny": "12.8.1",
        "nvidia-small": "12.8.2",
    }
    predicted = teams.play("--check", playbook="lock")
    assert changed(predicted) == {"a": 2, "b": 1}  # provisioning would change both hosts too
    assert not (teams.folder / ".gpufleet").exists()

    made = teams.play(playbook="lock")
    assert changed(made) == {"a": 1, "b": 0}  # one task for all hosts
    assert locks(teams) == {"base": {**family, "plainpkg": "2.0"}, "plain": family}
    for run in (predicted, made):
        assert run.text.count("+ plainpkg 2.0") == 1  # two hosts, one lock

    tiny_index.write_wheel(served[0] / "packages/plainpkg", "plainpkg", "3.0", {"plainpkg.py": "VALUE = 3\n"})
    tiny_index.write_index(served[0] / "packages")
    upgraded = teams.play(playbook="lock")
    assert changed(upgraded) == {"a": 1, "b": 0}
    assert "~ plainpkg 2.0 -> 3.0" in upgraded.text
    assert upgraded.text.count("unchanged") == 1  # the other environment
    assert locks(teams) == {"base": {**family, "plainpkg": "3.0"}, "plain": family}

    settled = teams.play(playbook="lock")
    assert changed(settled) == {"a": 0, "b": 0}
    assert all("geheim" not in run.text for run in (predicted, made, upgraded, settled))
    for name in ("a", "b"):
        assert (teams.marks(name), teams.releases(name)) == (set(), [])


def test_only_provisioning_makes_locks_on_its_own(teams: Fleet) -> None:
    for playbook in ("plan", "check_compliance", "remove"):
        done = teams.play(playbook=playbook)
        assert "PLAY RECAP" in done.text
        assert not (teams.folder / ".gpufleet/locks").exists(), playbook
    done = teams.play("-e", "gpufleet_batches=100%")
    assert set(locks(teams)) == {"base", "plain"}, done.text
    assert "geheim" not in done.text


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("nosuchproject", "nosuchproject was not found"),
        ("wantsold", "torch"),
    ],
)
def test_what_cannot_be_locked_fails_the_play_and_locks_the_others(
    teams: Fleet, requirement: str, said: str, served: tuple[Path, str]
) -> None:
    environments: list[dict[str, Any]] = [{"name": "base", "requirements": [requirement]}, {"name": "plain"}]
    teams.hosts["b"]["torch_env_environments"] = environments
    done = teams.play("--limit", "b", playbook="lock")
    assert done.status == 2, done.text
    assert said in done.text
    assert set(locks(teams)) == {"plain"}


def test_a_mirror_that_is_named_as_the_index_is_refused(teams: Fleet) -> None:
    for name in ("a", "b"):
        teams.hosts[name]["torch_env_index_base_url"] = f"{MIRROR}/whl"
    done = teams.play(playbook="lock")
    assert done.status != 0
    said = " ".join(done.text.split())
    assert "torch_env_mirror_index_base_url" in said
    assert "name the same place" in said
    assert "geheim" not in done.text
    assert not (teams.folder / ".gpufleet").exists()
