"""What root finds out about users' overlays, and that nothing in a home can stop, mislead or misuse it."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import overlays

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A root with one release and the home of nobody, which is the only one."""
    directory = Path(tempfile.mkdtemp(prefix="gpufleet-overlays-", dir="/var/tmp"))
    directory.chmod(0o755)
    (directory / "envs/base/releases/one").mkdir(parents=True)
    nobody = pwd.getpwnam("nobody")
    (directory / "home" / overlays.REGISTRY).mkdir(parents=True)
    for path in [directory / "home", *(directory / "home").rglob("*")]:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    home = overlays.Home(nobody.pw_uid, nobody.pw_gid, "nobody", str(directory / "home"))
    monkeypatch.setattr(overlays, "homes", lambda: [home])
    yield directory
    shutil.rmtree(directory)


def overlay(place: Path, name: str, release: str | None = None) -> Path:
    """Something in the user's registry; with a release it is an overlay."""
    path = place / "home" / overlays.REGISTRY / name
    path.mkdir()
    if release is not None:
        (path / "pyvenv.cfg").write_text(f"home = /usr/bin\ngpufleet-base = base\ngpufleet-release = {release}\n")
    return path


def seen(place: Path) -> dict[str, list[str]] | None:
    return overlays.pinned(str(place / "envs"))


def test_a_release_is_seen_by_its_overlays(place: Path) -> None:
    release = f"{place}/envs/base/releases/one"
    paths = [str(overlay(place, name, release)) for name in ("b", "a")]
    assert seen(place) == {release: sorted(paths)}


def test_the_root_may_be_named_by_a_symlink(place: Path) -> None:
    release = f"{place}/envs/base/releases/one"
    path = overlay(place, "a", release)
    (place / "link").symlink_to("envs")
    assert overlays.pinned(str(place / "link")) == {release: [str(path)]}


def test_what_lies_elsewhere_counts_by_a_symlink_as_long_as_it_is_there(place: Path) -> None:
    release = f"{place}/envs/base/releases/one"
    overlay(place, "a", release).rename(place / "elsewhere")
    link = place / "home" / overlays.REGISTRY / "a"
    link.symlink_to(place / "elsewhere")
    assert seen(place) == {release: [str(place / "elsewhere")]}
    shutil.rmtree(place / "elsewhere")
    assert seen(place) == {}


@pytest.mark.parametrize(
    "release",
    ["", "/", "relative/releases/one", "/etc", "{0}/envs", "{0}/envs/base", "{0}/envs/../x/base/releases/one", "{0}/envs/base/stamps/one",
     "{0}/envs/base/releases/one/lib", "{0}/other/base/releases/one", "{0}/envs/base/releases/.."],
)  # fmt: skip
def test_nothing_but_a_release_of_this_root_can_be_named(place: Path, release: str) -> None:
    overlay(place, "a", release.format(place))
    assert seen(place) == {}


def test_strange_things_in_a_registry_neither_hold_nor_mislead(place: Path) -> None:
    release = f"{place}/envs/base/releases/one"
    registry = place / "home" / overlays.REGISTRY
    os.mkfifo(overlay(place, "fifo") / "pyvenv.cfg")
    (overlay(place, "endless") / "pyvenv.cfg").symlink_to("/dev/zero")
    (overlay(place, "loop") / "pyvenv.cfg").symlink_to("pyvenv.cfg")
    (overlay(place, "directory") / "pyvenv.cfg").mkdir()
    (overlay(place, "late") / "pyvenv.cfg").write_text("x" * 10_000_000 + f"\ngpufleet-release = {release}\n")
    (overlay(place, "bytes") / "pyvenv.cfg").write_bytes(b"\xff\x00=\n" * 100)
    (registry / "file").touch()
    (registry / "circle").symlink_to("circle")
    good = overlay(place, "good", release)
    begin = time.monotonic()
    assert seen(place) == {release: [str(good)]}
    assert time.monotonic() - begin < 15


def test_a_name_cannot_play_with_the_terminal_of_whoever_reads_it(place: Path) -> None:
    release = f"{place}/envs/base/releases/one"
    path = overlay(place, "\x1b[2J", release)
    assert seen(place) == {release: [repr(str(path))]}


def test_many_overlays_of_one_user_do_not_drown_those_of_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = f"{place}/envs/base/releases/one"
    for number in range(500):
        overlay(place, f"{number}-{'x' * 200}", release)
    other = Path(tempfile.mkdtemp(dir=place))
    (other / overlays.REGISTRY / "a").mkdir(parents=True)
    (other / overlays.REGISTRY / "a" / "pyvenv.cfg").write_text(f"gpufleet-release = {release}\n")
    other.chmod(0o755)
    os.chown(other, 1, 1)
    places = [*overlays.homes(), overlays.Home(1, 1, "daemon", str(other))]
    monkeypatch.setattr(overlays, "homes", lambda: places)
    found = seen(place)
    assert found is not None
    assert str(other / overlays.REGISTRY / "a") in found[release]
    assert len(found[release]) == 201


def test_files_are_read_with_the_rights_of_the_user(place: Path) -> None:
    secret = overlay(place, "secret", f"{place}/envs/base/releases/one") / "pyvenv.cfg"
    os.chown(secret, 0, 0)
    secret.chmod(0o600)
    assert seen(place) == {}


@pytest.mark.parametrize("registry", [None, "", "file"])
def test_a_home_without_overlays_pins_nothing(place: Path, registry: str | None) -> None:
    shutil.rmtree(place / "home" / overlays.REGISTRY)
    if registry == "file":
        (place / "home" / overlays.REGISTRY).touch()
    elif registry is None:
        shutil.rmtree(place / "home")
    assert seen(place) == {}


def test_a_home_of_somebody_else_s_is_not_searched(place: Path) -> None:
    overlay(place, "a", f"{place}/envs/base/releases/one")
    os.chown(place / "home", 0, 0)
    assert seen(place) == {}


def test_a_folder_that_its_user_closed_does_not_stop_root(place: Path) -> None:
    overlay(place, "a", f"{place}/envs/base/releases/one")
    (place / "home" / ".local").chmod(0)
    assert seen(place) == {}


def test_a_home_that_does_not_let_its_own_user_in_cannot_be_said(place: Path) -> None:
    """As on a server that wants the user's ticket (sec=krb5)."""
    overlay(place, "a", f"{place}/envs/base/releases/one")
    (place / "home").chmod(0)
    said: list[str] = []
    assert overlays.pinned(str(place / "envs"), said.append) is None
    assert f"{place}/home of nobody" in said[0]


def test_a_home_that_hangs_cannot_be_said_and_is_named_in_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "_overlays", lambda _home: time.sleep(60))
    said: list[str] = []
    begin = time.monotonic()
    assert overlays.pinned(str(place / "envs"), said.append, time_limit=0.5) is None
    assert time.monotonic() - begin < 15
    assert f"{place}/home of nobody: no answer within 0.5 s" in said[0]


def test_the_caller_keeps_its_rights(place: Path) -> None:
    overlay(place, "a", f"{place}/envs/base/releases/one")
    before = (os.geteuid(), os.getegid(), os.getgroups())
    seen(place)
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


def test_all_accounts_and_the_owners_of_homes_beside_theirs_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        pwd.struct_passwd(("root", "x", 0, 0, "", "/root", "/bin/sh")),
        pwd.struct_passwd(("service", "x", 120, 120, "", "/var/lib/service", "/bin/sh")),
        pwd.struct_passwd(("ann", "x", 1000, 1000, "", str(tmp_path / "ann"), "/bin/sh")),
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: entries)
    (tmp_path / "unlisted").mkdir()
    os.chown(tmp_path / "unlisted", 987654, 987654)
    found = {(home.uid, home.path) for home in overlays.homes()}
    assert {(120, "/var/lib/service"), (1000, str(tmp_path / "ann")), (987654, str(tmp_path / "unlisted"))} <= found
    assert not any(uid == 0 for uid, _path in found)
