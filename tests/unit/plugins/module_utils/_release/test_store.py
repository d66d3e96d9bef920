from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import manifest, model, store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="environments belong to root")


@pytest.fixture
def layout(tmp_path: Path) -> model.Layout:
    layout = model.Layout(str(tmp_path), "base")
    os.makedirs(layout.releases)
    os.makedirs(layout.stamps)
    return layout


def add(layout: model.Layout, release_id: str, built_at: str | None) -> dict[str, Any]:
    """A release with one file; stamped where ``built_at`` is given."""
    directory = Path(layout.release(release_id))
    directory.mkdir()
    (directory / "file").write_text(release_id)
    text = manifest.encode(manifest.render(manifest.scan(str(directory))))
    stamp = {"schema": 1, "id": release_id, "spec": {}, "proof": {}, "built_at": built_at}
    stamp["manifest_sha256"] = hashlib.sha256(text).hexdigest()
    if built_at is not None:
        store.write_file(layout.manifest(release_id), text)
        store.write_stamp(layout, stamp)
    return stamp


def test_nothing_there_is_a_state_too(tmp_path: Path) -> None:
    assert store.read_state(model.Layout(str(tmp_path), "base")) == store.State({}, None, None)


def test_releases_are_ordered_by_when_they_were_built(layout: model.Layout) -> None:
    add(layout, "b", "2026-01-01T00:00:00Z")
    add(layout, "a", "2026-02-01T00:00:00Z")
    add(layout, "broken", None)
    state = store.read_state(layout)
    assert list(state.stamped) == ["b", "a"]
    assert state.releases["broken"] is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "id": "other", "spec": {}, "proof": {}}']
)
def test_a_stamp_that_cannot_be_understood_is_none(layout: model.Layout, text: str) -> None:
    add(layout, "a", None)
    Path(layout.stamp("a")).write_text(text)
    assert store.read_state(layout).releases == {"a": None}


def test_a_link_in_place_of_the_environment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to("/etc")
    with pytest.raises(model.BadInput, match="no directory of its own"):
        store.read_state(model.Layout(str(tmp_path), "base"))


@pytest.mark.parametrize("entry", ["lib", "pyvenv.cfg", "data"])
def test_somebody_elses_directory_is_refused_and_left_as_it_is(tmp_path: Path, entry: str) -> None:
    (tmp_path / "base" / "bin").mkdir(parents=True)
    (tmp_path / "base" / entry).touch()
    with pytest.raises(model.BadInput, match="is somebody else's"):
        store.read_state(model.Layout(str(tmp_path), "base"))
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == sorted(["bin", entry])


@pytest.mark.parametrize("target", ["/etc", "../../etc", "releases/gone", "releases/../x"])
def test_a_current_that_leads_elsewhere_counts_as_none(layout: model.Layout, target: str) -> None:
    os.symlink(target, layout.link("current"))
    assert store.read_state(layout).current is None


def test_the_switch_remembers_what_served(layout: model.Layout) -> None:
    for name in ("a", "b"):
        add(layout, name, "2026-01-01T00:00:00Z")
    state = store.switch(layout, store.read_state(layout), "a")
    assert (state.current, state.previous) == ("a", None)
    state = store.switch(layout, state, "b")
    assert (
        (state.current, state.previous)
        == ("b", "a")
        == (store.read_state(layout).current, store.read_state(layout).previous)
    )
    assert os.readlink(layout.link("current")) == "releases/b"
    state = store.switch(layout, state, "a")
    assert (
        (state.current, state.previous)
        == ("a", "b")
        == (store.read_state(layout).current, store.read_state(layout).previous)
    )


def test_a_leftover_link_of_a_killed_switch_is_no_obstacle(layout: model.Layout) -> None:
    add(layout, "a", "2026-01-01T00:00:00Z")
    os.symlink("nowhere", os.path.join(layout.home, f".current.{os.getpid()}"))
    store.switch(layout, store.read_state(layout), "a")
    assert store.read_state(layout).current == "a"


def test_an_id_is_never_used_twice(layout: model.Layout) -> None:
    base = "2.9.1-cu128-12345678"
    assert store.next_id(store.read_state(layout), layout, base) == base
    add(layout, base, "2026-01-01T00:00:00Z")
    assert store.next_id(store.read_state(layout), layout, base) == base + ".2"
    add(layout, base + ".7", None)
    assert store.next_id(store.read_state(layout), layout, base) == base + ".8"


def test_the_newest_and_the_linked_releases_are_kept(layout: model.Layout) -> None:
    for day, name in enumerate("abcde", 1):
        add(layout, name, f"2026-01-0{day}T00:00:00Z")
    add(layout, "unfinished", None)
    state = store.State(store.read_state(layout).releases, current="b", previous="a")
    assert store.prunable(state, 2) == ["unfinished", "c", "d", "e"]
    assert store.prunable(state, 3) == ["unfinished", "c", "d"]
    assert store.prunable(store.State(state.releases, "e", "d"), 2) == ["unfinished", "a", "b", "c"]


def test_damage_is_described(layout: model.Layout) -> None:
    stamp = add(layout, "a", "2026-01-01T00:00:00Z")
    assert store.damage(layout, "a", stamp) is None
    Path(layout.release("a"), "evil.pth").write_text("")
    Path(layout.release("a"), "file").write_text("longer than before")
    assert store.damage(layout, "a", stamp) == "0 files missing, 1 changed, 1 added, for example file, evil.pth"


def test_a_manifest_that_was_exchanged_is_damage(layout: model.Layout) -> None:
    stamp = add(layout, "a", "2026-01-01T00:00:00Z")
    Path(layout.release("a"), "evil.pth").write_text("")
    Path(layout.manifest("a")).write_text("0 evil.pth\n1 file\n")
    assert store.damage(layout, "a", stamp) == "its manifest is not the one that was stamped"


def test_a_release_that_is_gone_is_damage(layout: model.Layout) -> None:
    stamp = add(layout, "a", "2026-01-01T00:00:00Z")
    os.unlink(layout.manifest("a"))
    assert "cannot be examined" in str(store.damage(layout, "a", stamp))


def test_a_removed_release_takes_its_stamp_with_it(layout: model.Layout) -> None:
    add(layout, "a", "2026-01-01T00:00:00Z")
    store.remove_release(layout, "a")
    assert os.listdir(layout.stamps) == os.listdir(layout.releases) == []
    store.remove_release(layout, "a")


@pytest.mark.parametrize("stamped", [True, False])
def test_an_interrupted_removal_leaves_what_is_no_release(
    layout: model.Layout, monkeypatch: pytest.MonkeyPatch, stamped: bool
) -> None:
    """Wherever it is interrupted: when its name is gone, the stamp may be there still, or not any more."""
    add(layout, "a", "2026-01-01T00:00:00Z")
    monkeypatch.setattr(*(os, "unlink") if stamped else (store, "remove_tree"), _interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.remove_release(layout, "a")
    monkeypatch.undo()
    assert os.path.exists(layout.stamp("a")) == stamped
    assert store.read_state(layout) == store.State({".a": None}, None, None)
    assert store.read_state(layout).leftovers == [".a"]
    assert store.next_id(store.read_state(layout), layout, "a") == "a.2"
    store.remove_release(layout, ".a")
    assert os.listdir(layout.stamps) == os.listdir(layout.releases) == []


def _interrupt(_path: str) -> None:
    raise KeyboardInterrupt


def test_only_what_a_removal_left_is_a_leftover(layout: model.Layout) -> None:
    add(layout, "stamped", "2026-01-01T00:00:00Z")
    add(layout, "unfinished", None)
    add(layout, "unreadable", None)
    Path(layout.stamp("unreadable")).write_text("{")
    assert store.read_state(layout).leftovers == []


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    store.write_file(str(path), b"new", 0o640)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "gpu-env"
    path.write_text("#!/bin/sh\necho mine\n")
    with pytest.raises(model.ReleaseError, match="was not written by this collection"):
        store.outdated_files({str(path): (0o755, "Written by gpufleet.workstation")})


def test_our_file_is_outdated_in_content_or_mode(tmp_path: Path) -> None:
    path = str(tmp_path / "x" / "gpu-env")
    files = {path: (0o755, "Written by gpufleet.workstation: 2\n")}
    assert store.outdated_files(files) == [path]
    store.write_files(files, [path])
    assert store.outdated_files(files) == []
    os.chmod(path, 0o700)
    assert store.outdated_files(files) == [path]
    Path(path).chmod(0o755)
    assert store.outdated_files({path: (0o755, "Written by gpufleet.workstation: 3\n")}) == [path]


def test_a_second_run_is_told_who_holds_the_lock(layout: model.Layout) -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from ansible_collections.gpufleet.workstation.plugins.module_utils._release import model, store\n"
        "layout = model.Layout(sys.argv[1], 'other')\n"
        "with store.locked(layout, 0):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, layout.root, *sys.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(model.ReleaseError, match=rf"another run \(process {holder.pid}, working on other since"),
            store.locked(layout, 0.3),
        ):
            pass
        holder.kill()
    with store.locked(layout, 5):
        assert f"process {os.getpid()}" in Path(layout.lock).read_text()


def test_a_stamp_is_readable_by_everybody_and_json(layout: model.Layout) -> None:
    stamp = add(layout, "a", "2026-01-01T00:00:00Z")
    assert json.loads(Path(layout.stamp("a")).read_text()) == stamp
    assert os.stat(layout.stamp("a")).st_mode & 0o7777 == 0o644


def test_the_disk_is_waited_for_and_its_refusal_is_an_error(tmp_path: Path) -> None:
    store.finish_sync(store.start_sync(str(tmp_path)), 60)
    with pytest.raises(OSError, match=r"sync says: .*No such file"):
        store.finish_sync(store.start_sync(str(tmp_path / "gone")), 60)


def test_a_disk_that_does_not_answer_is_not_waited_for_without_end() -> None:
    stuck = subprocess.Popen(["/bin/sleep", "60"], stderr=subprocess.PIPE, text=True)
    with pytest.raises(OSError, match="did not take everything within 0 s"):
        store.finish_sync(stuck, 0.1)


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(layout: model.Layout) -> None:
    with store.locked(layout, 0):
        os.unlink(layout.lock)  # as the removal of the last environment does
    with store.locked(layout, 0), pytest.raises(model.ReleaseError, match="another run"), store.locked(layout, 0):
        pass
