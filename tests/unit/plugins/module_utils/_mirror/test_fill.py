# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror's folder is filled once, with verified and complete files only, whatever the index, the disk or the network do."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror import fill as module
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.fill import Incomplete
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.sources import Folder, Indexes
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.store import DiskFull, Store
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.wheels import MirrorError, Stored, Wanted
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.tool import sha256_of

ONE, TWO = "one-1.0-py3-none-any.whl", "two-2.0-cp311-cp311-manylinux_2_28_x86_64.whl"


def fill(store: Store, upstream: Any, *wanted: Wanted, prune: bool = False, verify: bool = False) -> dict[str, Any]:
    def source() -> Indexes:
        return Indexes(f"{upstream.url}/whl", f"{upstream.url}/simple", lambda _seconds: None)

    with store.held():
        return module.fill(store, sorted(wanted), source, prune=prune, verify=verify)


def served(store: Store) -> set[str]:
    """Every file of the mirror but what nginx does not show, each wheel proven to be what its folder says."""
    found = set()
    for path in Path(store.root).rglob("*"):
        name = str(path.relative_to(store.root))
        if path.is_file() and "/." not in f"/{name}":
            found.add(name)
            if name.endswith(".whl"):
                assert sha256_of(str(path)) == path.parent.name
    return found


def left_over(store: Store) -> list[str]:
    """What lies in the folder of unfinished files."""
    incoming = Path(store.root, ".incoming")
    return sorted(os.listdir(incoming)) if incoming.exists() else []


def test_every_wheel_is_fetched_once_and_listed(upstream: Any, store: Store) -> None:
    one, two = upstream.offer(ONE), upstream.offer(TWO)
    result = fill(store, upstream, one, two)
    assert result["changed"]
    assert [item["file"] for item in result["fetched"]] == upstream.fetched() == [ONE, TWO]
    assert result["fetched"][0]["bytes"] == len(upstream.files[ONE])
    assert store.listed() == {
        ("packages/simple", "one"): {Stored(ONE, one.hashes[0])},
        ("packages/simple", "two"): {Stored(TWO, two.hashes[0])},
    }
    assert f"files/{one.hashes[0]}/{ONE}.metadata" in served(store)
    assert "packages/simple/index.html" in served(store)
    assert left_over(store) == []


def test_a_second_run_changes_nothing_and_asks_nobody(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    fill(store, upstream, one)
    upstream.requests.clear()
    times = {path: os.stat(Path(store.root, path)).st_mtime_ns for path in served(store)}
    result = fill(store, upstream, one)
    assert not result["changed"]
    assert upstream.requests == []
    assert {path: os.stat(Path(store.root, path)).st_mtime_ns for path in served(store)} == times


def test_one_file_serves_both_indexes_and_two_pythons(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    others = [Wanted("whl/cu128", *astuple(one)[1:]), Wanted(one.index, "one", "1.0", "3.13", "aarch64", one.hashes)]
    fill(store, upstream, one, *others)
    assert upstream.fetched() == [ONE]
    assert {"whl/cu128/one/index.html", "packages/simple/one/index.html", "whl/cu128/index.html"} < served(store)


def astuple(wanted: Wanted) -> tuple[Any, ...]:
    return (wanted.index, wanted.project, wanted.version, wanted.python, wanted.arch, wanted.hashes)


def test_a_wheel_with_another_hash_is_never_stored(upstream: Any, store: Store) -> None:
    one, two = upstream.offer(ONE), upstream.offer(TWO)
    upstream.files[ONE] = upstream.files[ONE] + b"more"  # it announces what the lock wants and serves something else
    with pytest.raises(
        Incomplete, match=r"one 1\.0 for Python 3\.11 on x86_64: .*which no lock names; it was thrown away"
    ) as caught:
        fill(store, upstream, one, two)
    assert [item["file"] for item in caught.value.result["fetched"]] == [TWO]
    assert not any("one" in path for path in served(store))
    assert left_over(store) == []
    assert upstream.fetched().count(ONE) == 1  # trying again would bring the same


def test_an_index_that_announces_other_hashes_is_not_asked_for_bytes(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    upstream.announced[ONE] = "f" * 64
    with pytest.raises(Incomplete, match="none with a hash of the lock"):
        fill(store, upstream, one)
    assert upstream.fetched() == []


def test_without_announced_hashes_the_right_file_is_found_by_its_bytes(upstream: Any, store: Store) -> None:
    upstream.offer("one-1.0-cp311-cp311-manylinux_2_28_x86_64.whl", 10)
    one = upstream.offer(ONE)
    upstream.announced = dict.fromkeys(upstream.announced)
    fill(store, upstream, one)
    assert [item.file for item in store.stored()] == [ONE]


def test_a_truncated_download_is_tried_again_and_never_served(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE, 100_000)
    upstream.truncate[ONE] = 1
    fill(store, upstream, one)
    assert upstream.fetched() == [ONE, ONE]
    assert f"files/{one.hashes[0]}/{ONE}" in served(store)


def test_a_download_that_always_breaks_is_reported_and_the_next_run_goes_on(upstream: Any, store: Store) -> None:
    one, two = upstream.offer(ONE, 100_000), upstream.offer(TWO)
    upstream.truncate[ONE] = 3
    with pytest.raises(Incomplete, match=r"one-1\.0.*ended after \d+ of \d+ bytes"):
        fill(store, upstream, one, two)
    assert not any("one" in path for path in served(store))
    upstream.requests.clear()
    fill(store, upstream, one, two)
    assert upstream.fetched() == [ONE]


def test_a_cut_file_of_unknown_length_is_caught_by_its_hash(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE, 100_000)
    upstream.lengths, upstream.truncate[ONE] = False, 1
    with pytest.raises(Incomplete, match="which no lock names"):
        fill(store, upstream, one)
    assert store.stored() == []


def test_a_server_that_is_out_of_order_for_a_moment_is_asked_again(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    upstream.errors["/simple/one/"] = [503]
    fill(store, upstream, one)
    assert upstream.requests[:2] == ["/simple/one/", "/simple/one/"]


def test_what_an_index_refuses_is_not_asked_again(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    upstream.errors["/simple/one/"] = [403, 403, 403]
    with pytest.raises(Incomplete, match="it answers 403"):
        fill(store, upstream, one)
    assert upstream.requests == ["/simple/one/"]


def test_credentials_go_to_their_own_server_only_and_are_never_shown(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    upstream.credentials = "ann:se/cret"
    url = upstream.url.replace("http://", "http://ann:se%2Fcret@")
    with store.held():
        source = Indexes(f"{url}/whl", f"{url}/simple", lambda _seconds: None)
        module.fill(store, [one], lambda: source, prune=False, verify=False)
    assert None not in upstream.seen
    upstream.credentials = "bob:other"
    with store.held(), pytest.raises(Incomplete) as caught:
        module.fill(store, [upstream.offer(TWO)], lambda: Indexes(url, f"{url}/simple"), prune=False, verify=False)
    assert "401" in str(caught.value)
    assert "cret" not in str(caught.value)
    foreign = Indexes("http://ann:se%2Fcret@elsewhere.example", f"{upstream.url}/simple", lambda _seconds: None)
    upstream.seen.clear()
    with pytest.raises(MirrorError):
        foreign.links(upstream.offer(TWO))
    assert upstream.seen == [None]


def test_only_web_servers_are_asked(store: Store) -> None:
    wanted = Wanted("packages/simple", "one", "1.0", "3.11", "x86_64", ("a" * 64,))
    with pytest.raises(MirrorError, match="no URL of a web server"):
        Indexes("file:///etc", "file:///etc").links(wanted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Store]:
    """A mirror on a file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield Store(str(folder))
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("lengths", [True, False], ids=["announced", "met while writing"])
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(upstream: Any, small_disk: Store, lengths: bool) -> None:
    one, two = upstream.offer(ONE), upstream.offer(TWO, 3_000_000)
    upstream.lengths = lengths
    with pytest.raises(Incomplete, match=r"no room for two-2\.0.*Free space there and run again") as caught:
        fill(small_disk, upstream, one, two)
    assert [item["file"] for item in caught.value.result["fetched"]] == [ONE]
    assert f"files/{one.hashes[0]}/{ONE}" in served(small_disk)
    assert "packages/simple/one/index.html" in served(small_disk)
    assert not any("two" in path for path in served(small_disk))
    assert left_over(small_disk) == []
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk.root], check=True)
    upstream.requests.clear()
    fill(small_disk, upstream, one, two)
    assert upstream.fetched() == [TWO]
    assert f"files/{two.hashes[0]}/{TWO}" in served(small_disk)


def test_a_page_that_does_not_fit_leaves_the_old_one(
    upstream: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, upstream, upstream.offer(ONE))
    page = Path(store.root, "packages/simple/index.html").read_text()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    listed = {**store.listed(), ("packages/simple", "another"): {Stored(ONE, store.stored()[0].sha256)}}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="no room for the pages"):
        store.write_pages(listed)
    assert Path(store.root, "packages/simple/index.html").read_text() == page


def test_what_a_killed_run_left_is_removed(upstream: Any, store: Store) -> None:
    partial = Path(store.root, ".incoming", f"{ONE}.partial")
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    fill(store, upstream, upstream.offer(ONE))
    assert not partial.exists()


def test_two_runs_at_once_are_told_apart(store: Store) -> None:
    with store.held(), pytest.raises(MirrorError, match="another run is filling"), Store(store.root).held():
        pytest.fail("the second run began")


def test_what_no_lock_needs_stays_until_pruning_is_asked_for(upstream: Any, store: Store) -> None:
    one, two = upstream.offer(ONE), upstream.offer(TWO)
    fill(store, upstream, one, two)
    assert not fill(store, upstream, one)["changed"]
    assert len(store.stored()) == 2
    assert module.predict(store, [one], prune=True, verify=False)["removed"] == [TWO]
    result = fill(store, upstream, one, prune=True)
    assert (result["changed"], result["removed"], result["wheels"]) == (True, [TWO], 1)
    assert not any("two" in path for path in served(store))
    assert "two" not in Path(store.root, "packages/simple/index.html").read_text()
    assert not fill(store, upstream, one, prune=True)["changed"]


def test_nothing_is_pruned_while_a_wheel_is_missing(upstream: Any, store: Store) -> None:
    one, two = upstream.offer(ONE), upstream.offer(TWO)
    fill(store, upstream, one)
    upstream.errors["/simple/two/"] = [404]
    with pytest.raises(Incomplete):
        fill(store, upstream, two, prune=True)
    assert [item.file for item in store.stored()] == [ONE]


def test_damage_is_found_on_request_and_mended(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    fill(store, upstream, one)
    path = Path(store.root, "files", one.hashes[0], ONE)
    path.write_bytes(b"damaged")
    assert not fill(store, upstream, one)["changed"]
    assert module.predict(store, [one], prune=False, verify=True)["missing"] == [str(one)]
    assert fill(store, upstream, one, verify=True)["removed"] == [ONE]
    assert path.read_bytes() == upstream.files[ONE]


def test_a_prediction_asks_nobody_and_writes_nothing(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    before = module.predict(store, [one], prune=False, verify=False)
    assert (before["changed"], before["missing"]) == (True, ["one 1.0 for Python 3.11 on x86_64"])
    assert (upstream.requests, os.listdir(store.root)) == ([], [])
    fill(store, upstream, one)
    after = module.predict(store, [one], prune=False, verify=False)
    assert (after["changed"], after["missing"]) == (False, [])
    listed_too = Wanted("whl/cu128", *astuple(one)[1:])
    assert module.predict(store, [one, listed_too], prune=False, verify=False)["changed"]


def test_a_carried_folder_serves_without_network_and_is_verified_alike(
    upstream: Any, store: Store, tmp_path: Path
) -> None:
    one, two = upstream.offer(ONE), upstream.offer(TWO)
    carried = tmp_path / "carried" / "deep"
    carried.mkdir(parents=True)
    (carried / ONE).write_bytes(upstream.files[ONE])
    (carried / TWO).write_bytes(upstream.files[TWO] + b"x")
    with store.held(), pytest.raises(Incomplete, match=r"two 2\.0 .*none with a hash of the lock"):
        module.fill(store, [one, two], lambda: Folder(str(tmp_path / "carried")), prune=False, verify=False)
    assert [item.file for item in store.stored()] == [ONE]
    assert upstream.requests == []
    (carried / TWO).write_bytes(upstream.files[TWO])
    with store.held():
        module.fill(store, [one, two], lambda: Folder(str(tmp_path / "carried")), prune=False, verify=False)
    assert len(store.stored()) == 2


def test_another_mirrors_folder_can_be_carried(upstream: Any, store: Store, tmp_path: Path) -> None:
    one = upstream.offer(ONE)
    fill(store, upstream, one)
    second = Store(str(tmp_path / "second"))
    with second.held():
        module.fill(second, [one], lambda: Folder(store.root), prune=False, verify=False)
    assert served(second) == served(store)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match="is no folder on this host"):
        Folder(str(tmp_path / "gone"))


def test_what_is_no_wheel_is_not_stored_even_with_the_right_hash(upstream: Any, store: Store) -> None:
    one = upstream.offer(ONE)
    upstream.files[ONE] = b"<html>sign in first</html>"
    digest = hashlib.sha256(upstream.files[ONE]).hexdigest()
    upstream.announced[ONE] = digest
    with pytest.raises(Incomplete, match="is no wheel"):
        fill(store, upstream, Wanted(*astuple(one)[:-1], (digest,)))
    assert served(store) == {"packages/simple/index.html"}


def test_removal_takes_only_what_is_the_mirrors(upstream: Any, store: Store) -> None:
    fill(store, upstream, upstream.offer(ONE))
    notes = Path(store.root, "notes.txt")
    notes.write_text("the user's")
    assert store.exists()
    with store.held():
        store.clear()
    assert os.listdir(store.root) == ["notes.txt"]
    assert not store.exists()
    notes.unlink()
    store.clear()
    assert not os.path.exists(store.root)
