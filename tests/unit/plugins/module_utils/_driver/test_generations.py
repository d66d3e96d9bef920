"""The way back: generations, the journal, and what else belongs to them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import generations
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import NOT_THERE, Done
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.generations import Journal, Store
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import (
    DriverError,
    Package,
    PackageFile,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

DRIVER = {"branch": 580, "version": "580.95.05", "flavor": "open", "source": "nvidia", "package_set": "compute"}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "state/generations")


@pytest.fixture
def fetched(tmp_path):
    """Makes a package file as a package manager fetches it."""

    def make(name: str, version: str = "580.95.05-1", content: bytes = b"") -> PackageFile:
        path = tmp_path / "archives" / f"{name}_{version}_amd64.deb"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content or f"{name} {version}".encode())
        return PackageFile(Package(name, version, "amd64"), path, generations.sha256(path))

    return make


def write(store, *files, **more):
    arguments = {
        "created": "2026-11-22T23:00:00Z",
        "driver": DRIVER,
        "packages": files,
        "configuration": {"/etc/apt/preferences.d/gpufleet-nvidia": "Pin: version 580.95.05-1\n"},
        "default_kernel": "6.12.94+deb13-amd64",
        "environments": {"base": "2.9.1-cu128-1a2b3c4d"},
        **more,
    }
    return store.write(**arguments)


def test_what_was_written_is_read_back_with_every_file(store, fetched):
    made = write(store, fetched("libcuda1"), fetched("nvidia-kernel-open-dkms"))
    assert store.read(1) == made
    assert made.n == 1
    assert made.driver == DRIVER
    assert made.environments == {"base": "2.9.1-cu128-1a2b3c4d"}
    assert made.default_kernel == "6.12.94+deb13-amd64"
    files = store.files(store.read(1))
    assert [file.package for file in files] == [
        Package("libcuda1", "580.95.05-1", "amd64"),
        Package("nvidia-kernel-open-dkms", "580.95.05-1", "amd64"),
    ]
    assert files[0].path == store.folder / "1/packages/libcuda1_580.95.05-1_amd64.deb"
    assert files[0].path.read_bytes() == b"libcuda1 580.95.05-1"


def test_environments_that_changed_while_a_generation_served_are_noted_in_it(store, fetched):
    made = write(store, fetched("libcuda1"), environments={})
    noted = store.note(made, {"base": "2.9.1-cu128-1a2b3c4d"})
    assert store.read(1) == noted
    assert noted.environments == {"base": "2.9.1-cu128-1a2b3c4d"}
    assert (noted.packages, noted.configuration) == (made.packages, made.configuration)
    written = (store.folder / "1/generation.json").stat()
    assert written.st_mode & 0o777 == 0o600
    store.note(noted, {"base": "2.9.1-cu128-1a2b3c4d"})
    assert (store.folder / "1/generation.json").stat().st_ino == written.st_ino


def test_generations_are_roots_alone(store, fetched):
    write(store, fetched("libcuda1"))
    assert store.folder.stat().st_mode & 0o777 == 0o700
    for path in store.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_generation_without_packages_is_a_way_back_too(store):
    write(store, driver={}, default_kernel=None)
    assert store.files(store.read(1)) == []


def test_the_same_package_takes_its_space_once(store, fetched):
    file = fetched("firmware", content=b"f" * 100_000)
    write(store, file)
    write(store, file, fetched("libcuda1"))
    first, second = (store.folder / f"{n}/packages/{file.path.name}" for n in (1, 2))
    assert first.samefile(second)
    assert not first.samefile(file.path)


def test_a_file_of_the_same_name_and_size_with_other_content_is_not_shared(store, fetched):
    write(store, fetched("libcuda1", content=b"one"))
    write(store, fetched("libcuda1", content=b"two"))
    assert store.files(store.read(1))[0].path.read_bytes() == b"one"
    assert store.files(store.read(2))[0].path.read_bytes() == b"two"


def test_an_older_file_that_rotted_is_not_shared(store, fetched):
    file = fetched("libcuda1", content=b"good")
    write(store, file)
    (store.folder / f"1/packages/{file.path.name}").write_bytes(b"rot!")
    write(store, file)
    assert store.files(store.read(2))[0].path.read_bytes() == b"good"
    with pytest.raises(DriverError, match=r"Generation 1 cannot be used: .*libcuda1.* is damaged"):
        store.files(store.read(1))


def test_a_file_that_changed_since_it_was_fetched_is_refused_and_no_generation_appears(store, fetched):
    file = fetched("libcuda1")
    file.path.write_bytes(b"something else, of any size")
    with pytest.raises(DriverError, match="is damaged"):
        write(store, file)
    assert store.numbers() == []
    write(store, fetched("libcuda1"))
    assert [path.name for path in store.folder.iterdir()] == ["1"]


def test_a_write_that_was_killed_leaves_nothing_that_is_offered(store, fetched, monkeypatch):
    write(store, fetched("libcuda1"))

    def power_fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(generations, "write_json", power_fails)
    with pytest.raises(KeyboardInterrupt):
        write(store, fetched("libcuda1"))
    monkeypatch.undo()
    assert (store.folder / "2.partial").exists()
    assert [generation.n for generation in store.all()] == [1]
    assert write(store, fetched("libcuda1")).n == 2
    assert not (store.folder / "2.partial").exists()


def test_a_full_disk_leaves_no_half_generation_and_says_what_it_takes(store, fetched, monkeypatch):
    write(store, fetched("libcuda1"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generations.shutil, "copyfileobj", full)
    with pytest.raises(
        DriverError, match=r"cannot be kept in .*: No space left on device. It takes up to 1 MiB; free space"
    ):
        write(store, fetched("nvidia-kernel-open-dkms"))
    assert [path.name for path in store.folder.iterdir()] == ["1"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "generation.json").unlink(),
        lambda folder: (folder / "generation.json").write_text(""),
        lambda folder: (folder / "generation.json").write_text('{"schema": 1, "n": 2}'),
        lambda folder: (folder / "generation.json").write_text('{"schema": 2, "n": 2}'),
        lambda folder: (folder / "generation.json").write_text("[]"),
        lambda folder: next((folder / "packages").iterdir()).unlink(),
        lambda folder: rewrite(folder, lambda document: document["packages"][0].update(file="../../x")),
        lambda folder: rewrite(folder, lambda document: document.update(n=7)),
    ],
)
def test_a_torn_generation_is_never_offered_and_says_why(store, fetched, harm):
    write(store, fetched("libcuda1"))
    write(store, fetched("libcuda1"))
    harm(store.folder / "2")
    assert [generation.n for generation in store.all()] == [1]
    with pytest.raises(DriverError, match=r"Generation 2 cannot be used: .*"):
        store.read(2)


def rewrite(folder: Path, change) -> None:
    document = json.loads((folder / "generation.json").read_text())
    change(document)
    (folder / "generation.json").write_text(json.dumps(document))


def test_a_generation_that_is_not_there_is_answered_with_those_that_are(store, fetched):
    for _ in range(2):
        write(store, fetched("libcuda1"))
    with pytest.raises(
        DriverError, match=r"Generation 5 cannot be used: there is no such generation. Other generations: 1, 2."
    ):
        store.read(5)


def test_numbers_go_on_after_the_newest_was_dropped(store, fetched):
    assert write(store, fetched("libcuda1"), at_least=8).n == 8
    assert write(store, fetched("libcuda1"), at_least=3).n == 9


@pytest.mark.parametrize(
    ("keep", "serving", "left"),
    [
        (3, 6, [4, 5, 6]),
        (1, 6, [5, 6]),
        (1, 3, [2, 3, 6]),
        (2, 1, [1, 5, 6]),
        (0, None, [6]),
        (9, 6, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_the_serving_one_and_its_predecessor_stay(store, fetched, keep, serving, left):
    for _ in range(6):
        write(store, fetched("libcuda1"))
    dropped = store.prune(keep, serving)
    assert store.numbers() == left
    assert sorted(dropped + left) == [1, 2, 3, 4, 5, 6]
    assert all(store.files(generation) for generation in store.all())


def test_a_torn_generation_takes_no_place_of_a_good_one(store, fetched):
    for _ in range(3):
        write(store, fetched("libcuda1"))
    (store.folder / "2/generation.json").unlink()
    assert store.prune(2, 3) == [2]
    assert store.numbers() == [1, 3]


def test_there_is_nothing_before_the_first_generation(store):
    assert (store.numbers(), store.all(), store.prune(3, None)) == ([], [], [])


# -- the journal ------------------------------------------------------------------------------------------------------


def test_a_journal_is_read_back(tmp_path):
    path = tmp_path / "state/driver.json"
    journal = Journal(
        previous={"branch": 550},
        present=DRIVER,
        holds=["libcuda1"],
        gpus=[{"pci_address": "0000:01:00.0", "pci_device_id": "2f04", "name": "RTX 5070"}],
        generation=4,
        before={"packages": []},
    )
    generations.write_journal(journal, path)
    assert generations.read_journal(path) == journal
    assert json.loads(path.read_text())["schema"] == 1
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["driver.json"]


def test_a_host_without_a_journal_has_an_empty_one(tmp_path):
    assert generations.read_journal(tmp_path / "driver.json") == Journal()


@pytest.mark.parametrize("former", [{"schema": 1}, {}])
def test_the_former_format_is_understood(tmp_path, former):
    path = tmp_path / "driver.json"
    path.write_text(json.dumps({**former, "previous": None, "present": DRIVER}))
    journal = generations.read_journal(path)
    assert journal == Journal(present=DRIVER)
    generations.write_journal(journal, path)
    assert generations.read_journal(path) == journal


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_journal_is_said_not_overwritten(tmp_path, text):
    path = tmp_path / "driver.json"
    path.write_text(text)
    with pytest.raises(DriverError, match=r"driver.json cannot be read: .* restore it from a backup, or delete it"):
        generations.read_journal(path)
    assert path.read_text() == text


def test_a_newer_journal_is_left_alone(tmp_path):
    path = tmp_path / "driver.json"
    path.write_text('{"schema": 2}')
    with pytest.raises(DriverError, match="newer version"):
        generations.read_journal(path)


def test_a_file_that_cannot_be_written_completely_stays_as_it_was(tmp_path):
    path = tmp_path / "driver.json"
    generations.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        generations.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["driver.json"]


# -- kernels and environments -----------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    for release in ("6.12.107+deb13-amd64", "6.12.94+deb13-amd64"):
        path = tmp_path / f"boot/vmlinuz-{release}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "boot/grub").mkdir()
    return Host(root=str(tmp_path), release="6.12.94+deb13-amd64")


def test_the_releases_of_the_environments_are_those_that_current_leads_to(tmp_path, host):
    root = tmp_path / "opt/envs"
    for name, release in (("base", "releases/2.9.1-cu128-1a2b3c4d"), (".cache", "x")):
        (root / name).mkdir(parents=True)
        (root / name / "current").symlink_to(release)
    (root / "unfinished").mkdir()
    assert generations.environments(host, "/opt/envs") == {"base": "2.9.1-cu128-1a2b3c4d"}
    assert generations.environments(host, "/nowhere") == {}


def test_the_default_kernel_is_the_boot_loaders(tmp_path, host):
    assert generations.default_kernel(host) == "6.12.107+deb13-amd64"
    assert generations.default_kernel(Host(root=str(tmp_path / "opt"), release="6.12")) is None


def test_a_default_kernel_that_is_still_the_default_needs_nothing(host):
    def nothing(*_):
        raise AssertionError

    assert generations.restore_default_kernel(host, nothing, "6.12.107+deb13-amd64") == ""
    assert generations.restore_default_kernel(host, nothing, None) == ""


def test_grubby_sets_the_default_kernel_where_it_is(host):
    asked = []

    def grubby(argv, *_):
        asked.append(list(argv))
        return Done(0, "")

    assert generations.restore_default_kernel(host, grubby, "6.12.94+deb13-amd64") == ""
    assert asked == [["grubby", "--set-default", "/boot/vmlinuz-6.12.94+deb13-amd64"]]


@pytest.mark.parametrize(
    ("done", "release", "words"),
    [
        (
            Done(NOT_THERE, "grubby is not installed"),
            "6.12.94+deb13-amd64",
            "was the default then: choose it in /etc/default/grub",
        ),
        (Done(1, "no entry\n"), "6.12.94+deb13-amd64", "(grubby: no entry)"),
        (Done(0, ""), "6.1.0-1-amd64", "is not installed any more"),
    ],
)
def test_a_person_hears_what_cannot_be_done_for_the_default_kernel(host, done, release, words):
    assert words in generations.restore_default_kernel(host, lambda *_: done, release)
