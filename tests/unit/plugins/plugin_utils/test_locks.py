"""Locks: resolved for the host's platform, each package from its own index, kept until somebody asks for a change."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror import wheels
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks, uv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils/_release"))
import tiny_index
from tiny_index import SPEC

pytestmark = pytest.mark.skipif(tiny_index.uv_program() is None, reason="needs uv")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Path, str]]:
    """A folder with a torch index and a package index, and its URL."""
    with tiny_index.serve_both() as served:
        yield served


def program() -> str:
    return str(tiny_index.uv_program())


def environment(url: str, wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": wanted["name"],
        "root": "/opt/gpufleet/envs",
        "spec": wanted,
        "lock_index_url": f"{url}/cu128",
        "lock_package_index_url": f"{url}/packages",
        "index_url": "http://127.0.0.1:9/cu128",  # a mirror, which no lock is made from
        "package_index_url": "http://127.0.0.1:9/packages",
        "variables": {},
    }


def spec(**changes: Any) -> dict[str, Any]:
    return {**SPEC, **changes}


def ensure(url: str, folder: Path, wanted: dict[str, Any], **more: Any) -> locks.Locked:
    return locks.ensure(environment(url, wanted), folder, program=program, **more)


def versions(path: Path) -> dict[str, str]:
    return {item.name: item.version for item in lock.parse(path.read_text()).packages}


def test_a_lock_holds_everything_with_hashes_of_the_files(served: tuple[Path, str], tmp_path: Path) -> None:
    locked = ensure(served[1], tmp_path, spec(requirements=["plainpkg<2"]))
    assert versions(locked.path) == {
        "torch": "2.9.1+cu128",
        "torchvision": "0.24.1+cu128",
        "torchaudio": "2.9.1+cu128",
        "nvidia-tiny": "12.8.1",
        "nvidia-small": "12.8.2",
        "plainpkg": "1.0",
    }
    wheel = next((served[0] / "cu128/torch").glob("torch-2.9.1*.whl"))
    text = locked.path.read_text()
    assert f"sha256:{uv.tool.sha256_of(str(wheel))}" in text
    assert locked.text == text
    assert locked.written
    assert "+ torch 2.9.1+cu128" in locked.changes


def test_a_lock_that_is_there_is_taken_without_asking_an_index(served: tuple[Path, str], tmp_path: Path) -> None:
    first = ensure(served[1], tmp_path, spec())
    again = ensure("http://127.0.0.1:9", tmp_path, spec())
    assert (again.text, again.changes, again.written) == (first.text, [], False)


def test_versions_change_only_on_request(served: tuple[Path, str], tmp_path: Path) -> None:
    old = ensure(served[1], tmp_path, spec(requirements=["plainpkg"]))
    text = old.path.read_text()
    assert versions(old.path)["plainpkg"] == "2.0"
    page = served[0] / "packages/plainpkg"
    wheel = tiny_index.write_wheel(page, "plainpkg", "3.0", {"plainpkg.py": "VALUE = 3\n"})
    tiny_index.write_index(served[0] / "packages")
    try:
        assert ensure(served[1], tmp_path, spec(requirements=["plainpkg"])).changes == []
        assert old.path.read_text() == text
        upgraded = ensure(served[1], tmp_path, spec(requirements=["plainpkg"]), upgrade=True)
        assert upgraded.changes == ["~ plainpkg 2.0 -> 3.0"]
        assert upgraded.text == old.path.read_text() != text
    finally:
        wheel.unlink()
        tiny_index.write_index(served[0] / "packages")


def test_another_requirement_leaves_the_versions_of_the_others_alone(served: tuple[Path, str], tmp_path: Path) -> None:
    ensure(served[1], tmp_path, spec(requirements=["plainpkg<2"]))
    locked = ensure(served[1], tmp_path, spec(requirements=["plainpkg"]))
    assert versions(locked.path)["plainpkg"] == "1.0"
    assert len(list((tmp_path / "base").glob("torch-*.txt"))) == 2


def test_a_lock_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    assert locks.existing(spec(), tmp_path) is None


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"gpufleet_state_dir": "/srv/gpufleet", "inventory_dir": "/etc/ansible"}, "/srv/gpufleet/locks"),
        ({"inventory_dir": "/etc/ansible"}, "/etc/ansible/.gpufleet/locks"),
        ({"inventory_dir": None}, f"{Path.home()}/.local/state/gpufleet/locks"),
    ],
)
def test_locks_lie_beside_the_inventory(variables: dict[str, Any], folder: str) -> None:
    assert str(locks.folder_for(variables)) == folder


def test_torch_never_comes_from_the_package_index(served: tuple[Path, str], tmp_path: Path) -> None:
    """Dependency confusion: the package index serves a torch, and a newer library of NVIDIA's name."""
    page = served[0] / "packages/nvidia-tiny"
    tiny_index.write_wheel(page, "nvidia-tiny", "99.0", {"nvidia/evil.py": ""})
    tiny_index.write_index(served[0] / "packages")
    locked = ensure(served[1], tmp_path, spec())
    assert (versions(locked.path)["torch"], versions(locked.path)["nvidia-tiny"]) == ("2.9.1+cu128", "12.8.1")


def test_what_the_torch_index_serves_beside_the_family_is_not_taken(served: tuple[Path, str], tmp_path: Path) -> None:
    page = served[0] / "cu128/plainpkg"
    tiny_index.write_wheel(page, "plainpkg", "99.0", {"plainpkg.py": "VALUE = 'evil'\n"})
    tiny_index.write_index(served[0] / "cu128")
    locked = ensure(served[1], tmp_path, spec(requirements=["plainpkg"]))
    assert versions(locked.path)["plainpkg"] == "2.0"


@pytest.fixture
def confused() -> Iterator[tuple[Path, str]]:
    """Both indexes serve what is the other's: in higher versions, in the same version with other content, and under other spellings."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-index-") as directory:
        torch, packages = Path(directory) / "cu128", Path(directory) / "packages"
        tiny_index.tiny_torch_index(torch)
        tiny_index.tiny_package_index(packages)
        for name, version in (
            ("torch", "2.9.1+cu128"),
            ("torch", "2.9.1"),
            ("torch", "99.0"),
            ("torchvision", "99.0"),
            ("torchaudio", "2.9.1+cu128"),
            ("nvidia-tiny", "12.8.1"),
            ("nvidia-small", "99.0"),
            ("triton", "99.0"),
        ):
            tiny_index.write_wheel(packages / name, name, version, {f"{name.replace('-', '_')}_evil.py": ""})
        for name, version in (("plainpkg", "1.0"), ("plainpkg", "99.0")):
            tiny_index.write_wheel(torch / name, name, version, {"evil.py": ""})
        tiny_index.write_index(torch)
        tiny_index.write_index(packages)
        with tiny_index.serve(Path(directory)) as url:
            yield Path(directory), url


def test_neither_index_can_replace_what_the_other_serves(confused: tuple[Path, str], tmp_path: Path) -> None:
    directory, url = confused
    locked = ensure(url, tmp_path, spec(requirements=["plainpkg"]))
    packages = lock.parse(locked.path.read_text()).packages
    assert {item.name: item.version for item in packages} == {
        "torch": "2.9.1+cu128",
        "torchvision": "0.24.1+cu128",
        "torchaudio": "2.9.1+cu128",
        "nvidia-tiny": "12.8.1",
        "nvidia-small": "12.8.2",
        "plainpkg": "2.0",
    }
    for item in packages:
        right, wrong = ("cu128", "packages") if item.from_torch_index else ("packages", "cu128")
        hashes = {
            side: {uv.tool.sha256_of(str(wheel)) for wheel in (directory / side / item.name).glob("*.whl")}
            for side in (right, wrong)
        }
        assert set(item.hashes) <= hashes[right]
        assert not set(item.hashes) & hashes[wrong]


@pytest.mark.parametrize("torch_part", [True, False])
def test_a_host_that_asks_the_wrong_index_installs_nothing(
    confused: tuple[Path, str], tmp_path: Path, torch_part: bool
) -> None:
    """Even then: a host whose index URL was exchanged gets other files under the same names and versions."""
    _directory, url = confused
    text = ensure(url, tmp_path, spec(requirements=["plainpkg==1.0"])).path.read_text()
    environment = {
        **os.environ,
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_DEFAULT_INDEX": f"{url}/{'packages' if torch_part else 'cu128'}",
    }

    def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [program(), *words]
        return subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=False)

    assert run("venv", "--python", sys.executable, str(tmp_path / "env")).returncode == 0
    python = str(tmp_path / "env/bin/python")
    options = ["--no-build", "--no-deps", "--require-hashes", "--python", python, "--requirements", "-"]
    done = run("pip", "install", *options, given=lock.parse(text).part(torch_part))
    assert done.returncode != 0
    assert run("pip", "freeze", "--python", python).stdout == ""


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"requirements": ["wantsold"]}, "torch"),
        ({"requirements": ["nosuchproject"]}, "nosuchproject was not found"),
        ({"requirements": ["sourceonly"]}, "has no usable wheels"),
        ({"torch": "2.9.2+cu128"}, "no version of torch==2.9.2"),
        ({"companions": {"torchvision": "0.24.0"}}, "torchvision"),
        ({"python": "auto"}, "Python"),
        ({"arch": "riscv64"}, "architecture"),
    ],
)
def test_what_cannot_be_locked_is_told(
    served: tuple[Path, str], tmp_path: Path, changes: dict[str, Any], cause: str
) -> None:
    with pytest.raises(locks.NoLock, match=cause):
        ensure(served[1], tmp_path, spec(**changes))
    assert not list(tmp_path.rglob("*.txt"))


def test_an_edited_lock_is_refused(served: tuple[Path, str], tmp_path: Path) -> None:
    path = ensure(served[1], tmp_path, spec()).path
    path.write_text(path.read_text().replace("nvidia-tiny==12.8.1", "nvidia-tiny==12.8.0") + "\n# mine\n")
    with pytest.raises(locks.NoLock, match="edited by hand"):
        ensure(served[1], tmp_path, spec())


def test_a_lock_of_other_inputs_under_this_name_is_refused(served: tuple[Path, str], tmp_path: Path) -> None:
    path = ensure(served[1], tmp_path, spec()).path
    path.write_text(lock.Lock({"name": "other"}, lock.parse(path.read_text()).packages).render())
    with pytest.raises(locks.NoLock, match="other inputs"):
        ensure(served[1], tmp_path, spec())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(served: tuple[Path, str], tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(locks.NoLock, match="gpufleet_state_dir"):
        ensure(served[1], tmp_path, spec())


def test_credentials_reach_neither_lock_nor_message(served: tuple[Path, str], tmp_path: Path) -> None:
    url = served[1].replace("http://", "http://user:secret@")
    locked = ensure(url, tmp_path, spec())
    assert "secret" not in locked.path.read_text()
    with pytest.raises(locks.NoLock) as caught:
        ensure(url, tmp_path, spec(torch="2.9.2+cu128"))
    assert "secret" not in str(caught.value)


def test_an_index_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(locks.NoLock, match="uv on the controller says"):
        ensure("http://127.0.0.1:9", tmp_path, spec())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "torch==2.9.1\n",
        "# Lock 1 of gpufleet.workstation. Made by playbooks/lock.yml; keep it under version control.\n{}\n",
    ],
)
def test_what_is_no_lock_is_not_read_as_one(text: str) -> None:
    with pytest.raises(lock.InvalidLock):
        lock.parse(text)


def test_the_difference_names_what_comes_goes_and_changes() -> None:
    def of(**packages: str) -> lock.Lock:
        rows = [lock.Pinned(name, version, ("0" * 64,)) for name, version in packages.items()]
        return lock.Lock(json.loads("{}"), tuple(rows))

    assert lock.difference(of(a="1", b="1", c="1"), of(b="1", c="2", d="1")) == ["- a 1", "~ c 1 -> 2", "+ d 1"]


def test_a_package_that_is_taken_from_another_index_is_a_change() -> None:
    here, there = (lock.Lock({}, (lock.Pinned("nvidia-x", "1", ("0" * 64,), side),)) for side in (True, False))
    assert lock.difference(here, there) == ["~ nvidia-x 1: from the package index"]
    assert lock.difference(there, here) == ["~ nvidia-x 1: from the torch index"]


@pytest.mark.parametrize("name", lock.FAMILY)
def test_a_lock_that_takes_torch_from_the_package_index_is_none(name: str) -> None:
    text = lock.Lock({"name": "base"}, (lock.Pinned(name, "1", ("0" * 64,)),)).render()
    with pytest.raises(lock.InvalidLock, match=f"{name} from the package index"):
        lock.parse(text)


def test_a_lock_that_takes_one_project_from_both_indexes_is_none() -> None:
    twice = tuple(lock.Pinned("nvidia-x", "1", ("0" * 64,), side) for side in (True, False))
    with pytest.raises(lock.InvalidLock, match="edited by hand"):
        lock.parse(lock.Lock({"name": "base"}, twice).render())


def test_a_lock_keeps_which_index_each_package_is_from() -> None:
    packages = tuple(
        lock.Pinned(name, "1", ("0" * 64,), name != "nvidia-b") for name in ("nvidia-a", "nvidia-b", "torch")
    )
    assert lock.parse(lock.Lock({"name": "base"}, packages).render()).packages == (
        packages[0],
        packages[2],
        packages[1],
    )


@contextlib.contextmanager
def indexes(torch: dict[str, tuple[str, ...]], packages: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """The tiny indexes with further projects, {name: what it requires}; those of the package index are version 2."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-index-") as directory:
        home = {True: Path(directory) / "cu128", False: Path(directory) / "packages"}
        tiny_index.tiny_torch_index(home[True])
        tiny_index.tiny_package_index(home[False])
        for side, projects in ((True, torch), (False, packages)):
            for name, requires in projects.items():
                version = "2.9.1+cu128" if name == "torch" else "1.0" if side else "2.0"
                tiny_index.write_wheel(home[side] / name, name, version, {f"{name}.py": ""}, requires)
            tiny_index.write_index(home[side])
        with tiny_index.serve(Path(directory)) as url:
            yield url


def parts(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What a lock takes from the torch index, and what from the package index."""
    packages = lock.parse(path.read_text()).packages
    torch, rest = (
        {item.name: item.version for item in packages if item.from_torch_index == side} for side in (True, False)
    )
    return torch, rest


@pytest.mark.parametrize("torch", [{}, {"nvidia-other": ()}], ids=["packages", "both"])
@pytest.mark.parametrize("requirement", ["nvidia_other", "needsother"])
def test_a_library_of_nvidia_s_that_torch_does_not_need_comes_from_the_package_index(
    tmp_path: Path, torch: dict[str, tuple[str, ...]], requirement: str
) -> None:
    """Also where the torch index has one of its name, and whether it is asked for or only needed."""
    with indexes(torch, {"nvidia-other": (), "needsother": ("nvidia-other", "nvidia-tiny")}) as url:
        locked = ensure(url, tmp_path, spec(requirements=[requirement]))
    family, rest = parts(locked.path)
    assert sorted(family) == ["nvidia-small", "nvidia-tiny", "torch", "torchaudio", "torchvision"]
    assert rest["nvidia-other"] == "2.0"


def test_what_torch_needs_is_never_looked_for_on_the_package_index(tmp_path: Path) -> None:
    """Dependency confusion: the torch index lacks a library, and anybody could put one of its name onto the package index."""
    with (
        indexes({"torch": ("nvidia-absent",)}, {"nvidia-absent": ()}) as url,
        pytest.raises(
            locks.NoLock, match=r"needs nvidia-absent, which the torch index .*/cu128 does not serve.*base_url"
        ),
    ):
        ensure(url, tmp_path, spec())
    assert not list(tmp_path.rglob("*.txt"))


def test_a_strategy_that_the_controller_is_configured_for_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a one takes the highest version of all indexes."""
    monkeypatch.setenv("UV_INDEX_STRATEGY", "unsafe-best-match")
    with indexes({"torch": ("nvidia-loose",), "nvidia-loose": ()}, {"nvidia-loose": ()}) as url:
        family, _rest = parts(ensure(url, tmp_path, spec()).path)
    assert family["nvidia-loose"] == "1.0"


def test_what_a_requirement_needs_of_torch_s_family_comes_from_the_torch_index(tmp_path: Path) -> None:
    with indexes({}, {"vision-models": ("torchvision",), "torchvision": ()}) as url:
        locked = ensure(url, tmp_path, spec(companions={}, requirements=["vision-models"]))
    family, rest = parts(locked.path)
    assert (family["torchvision"], rest) == ("0.24.1+cu128", {"vision-models": "2.0"})


@pytest.mark.parametrize("side", ["cu128", "packages"])
def test_a_lock_is_not_made_from_a_mirror(tmp_path: Path, side: str) -> None:
    """What it lacks would be missing from the lock for good."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-index-") as directory:
        tiny_index.tiny_torch_index(Path(directory) / "cu128")
        tiny_index.tiny_package_index(Path(directory) / "packages")
        (Path(directory) / side / "index.html").write_text(wheels.index_page(["torch", "plainpkg"]))
        variable = {"cu128": "index_base_url", "packages": "package_index_url"}[side]
        with (
            tiny_index.serve(Path(directory)) as url,
            pytest.raises(
                locks.NoLock, match=f"/{side} is a mirror.* in torch_env_{variable} and .*_env_mirror_{variable}"
            ) as caught,
        ):
            ensure(url.replace("http://", "http://bob:s3cret@"), tmp_path, spec(requirements=["plainpkg"]))
    assert "s3cret" not in str(caught.value)
    assert not list(tmp_path.rglob("*.txt"))


def test_an_index_that_the_controller_s_own_configuration_adds_is_refused(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes the lock must not matter where the package index is named."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config/uv").mkdir(parents=True)
    extra = tmp_path / "extra"
    tiny_index.write_wheel(extra / "plainpkg", "plainpkg", "99.0", {"plainpkg.py": ""})
    tiny_index.write_index(extra)
    (tmp_path / "config/uv/uv.toml").write_text(f'[[index]]\nname = "extra"\nurl = "file://{extra}"\n')
    with pytest.raises(locks.NoLock, match=rf"plainpkg from file://{extra}, which must not serve it\..*uv\.toml"):
        ensure(served[1], tmp_path / "locks", spec(requirements=["plainpkg"]))


def test_an_index_is_recognised_however_its_url_is_written(served: tuple[Path, str], tmp_path: Path) -> None:
    url = served[1].replace("http://127.0.0.1", "http://LocalHost")
    assert set(parts(ensure(url, tmp_path, spec()).path)[0]) >= {"torch", "nvidia-tiny"}
