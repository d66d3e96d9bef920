"""Which locks the mirror's host gets, and that a bad one stops before anything is executed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.gpufleet.workstation.plugins.action import wheel_store
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock

INDEX = "https://index.example/simple"


@pytest.fixture(autouse=True)
def _configured_pip(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip reads its configuration from the machine; here it says one known index."""
    configuration = tmp_path_factory.mktemp("pip") / "pip.conf"
    configuration.write_text(f"[global]\nindex-url = {INDEX}\n")
    for name in ("PIP_INDEX_URL", "PIP_ISOLATED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))


class Action(wheel_store.ActionModule):
    """The action with a recorded execution."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._task = SimpleNamespace(args=arguments, async_val=0, check_mode=False, diff=False, environment=None)
        self._connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None))
        self._templar = SimpleNamespace(template=lambda value: value)
        self._supports_async = False
        self.executed: list[dict[str, Any]] = []

    def _execute_module(self, module_args: dict[str, Any], **_more: Any) -> dict[str, Any]:
        self.executed.append(module_args)
        return {"changed": True}


def write_lock(folder: Path, name: str = "base") -> str:
    """A lock where playbooks/lock.yml writes it, with the files that lie beside one."""
    inputs = {"name": name, "python": "3.11", "arch": "x86_64", "torch": "2.9.1+cu128"}
    text = lock.Lock(inputs, (lock.Pinned("torch", "2.9.1+cu128", ("a" * 64,), True),)).render()
    path = folder / name / "torch-2.9.1+cu128-cp311-x86_64-01234567.txt"
    beside = path.with_suffix("")
    beside.mkdir(parents=True)
    (beside / "requirements-torch.txt").write_text("torch==2.9.1")
    path.write_text(text)
    return text


def test_all_locks_of_the_inventory_are_sent(tmp_path: Path) -> None:
    texts = [write_lock(tmp_path / ".gpufleet/locks", name) for name in ("base", "vision")]
    action = Action({"path": "/srv/w"})
    assert action.run(None, {"inventory_dir": str(tmp_path)})["changed"]
    assert action.executed == [{"path": "/srv/w", "lock_texts": texts, "package_index_url": INDEX}]


@pytest.mark.parametrize("given", [{"package_index_url": "https://mine.example"}, {"source": "directory"}])
def test_pip_is_asked_only_where_an_index_is_needed_and_none_is_named(tmp_path: Path, given: dict[str, str]) -> None:
    write_lock(tmp_path / ".gpufleet/locks")
    action = Action({"path": "/srv/w", **given})
    action.run(None, {"inventory_dir": str(tmp_path)})
    assert action.executed[0].get("package_index_url") == given.get("package_index_url")


def test_an_index_that_pip_does_not_tell_has_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lock(tmp_path / ".gpufleet/locks")
    monkeypatch.setattr(wheel_store, "_ASK_PIP", "raise SystemExit(1)")
    action = Action({"path": "/srv/w"})
    with pytest.raises(AnsibleActionFail, match="wheel_mirror_package_index_url"):
        action.run(None, {"inventory_dir": str(tmp_path)})
    assert action.executed == []


@pytest.mark.parametrize("source", ["hosts.yml", "."])
def test_the_implicit_localhost_serves_the_inventory_of_the_run(tmp_path: Path, source: str) -> None:
    text = write_lock(tmp_path / ".gpufleet/locks")
    action = Action({"path": "/srv/w"})
    action.run(None, {"ansible_inventory_sources": [str(tmp_path / source)]})
    assert action.executed[0]["lock_texts"] == [text]


def test_named_locks_and_folders_are_sent_instead(tmp_path: Path) -> None:
    first, second = write_lock(tmp_path / "one"), write_lock(tmp_path / "two")
    path = next((tmp_path / "one").glob("base/*.txt"))
    action = Action({"locks": [str(path), str(tmp_path / "two/base")]})
    action.run(None, {"inventory_dir": "/nowhere"})
    assert action.executed[0]["lock_texts"] == [first, second]


def test_without_a_lock_nothing_is_executed_and_the_way_to_one_is_said(tmp_path: Path) -> None:
    action = Action({})
    with pytest.raises(AnsibleActionFail, match=r"no lock in .*make the locks first, with playbooks/lock\.yml"):
        action.run(None, {"inventory_dir": str(tmp_path)})
    assert action.executed == []


def test_an_edited_or_missing_lock_is_named_before_anything_is_executed(tmp_path: Path) -> None:
    write_lock(tmp_path)
    path = next(tmp_path.glob("base/*.txt"))
    path.write_text(path.read_text() + "more==1\n")
    for bad in (path, tmp_path / "gone.txt"):
        action = Action({"locks": [str(bad)]})
        with pytest.raises(AnsibleActionFail, match=f"{re.escape(bad.name)} cannot be used"):
            action.run(None, {})
        assert action.executed == []


def test_removal_needs_no_lock() -> None:
    action = Action({"path": "/srv/w", "state": "absent"})
    action.run(None, {})
    assert action.executed == [{"path": "/srv/w", "state": "absent"}]
