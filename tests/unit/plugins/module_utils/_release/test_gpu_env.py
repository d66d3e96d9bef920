"""gpu-env as people use it: real accounts, a real release of the tiny torch, real shells, pip and uv. And what root sees of it."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_index
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import gpu_env, overlays
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import ReleaseError
from conftest import Bench


@dataclasses.dataclass(frozen=True)
class Person:
    """An account of this machine's that the test made, and how it uses gpu-env."""

    name: str
    home: Path
    bench: Bench

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this person logs in: with nothing of the test's in the environment."""
        account = pwd.getpwnam(self.name)
        environment = {
            "PATH": f"{self.bench.directory}/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "PIP_INDEX_URL": f"{self.bench.url}/people",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_DEFAULT_INDEX": f"{self.bench.url}/people",
            "UV_NO_CONFIG": "1",
            **variables,
        }
        return subprocess.run(
            [str(word) for word in command],
            user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd=self.home, env=environment,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def gpu_env(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("gpu-env", *arguments, **variables)

    def says(self, *arguments: str | Path, **variables: str) -> str:
        """What gpu-env prints, if it succeeds."""
        done = self.gpu_env(*arguments, **variables)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def python(self, name: str, code: str) -> str:
        return self.says("run", name, "python", "-c", code).strip()

    def overlay(self, name: str) -> Path:
        return self.home / ".local/share/gpufleet/envs" / name


def _write_people_index(directory: Path) -> None:
    """What people find on their package index: more of numpy, a library that uses torch, and torch itself, newer and not ours."""
    for version in ("1.26.0", "2.1.0"):
        tiny_index.write_wheel(directory / "numpy", "numpy", version, {"numpy.py": f"VERSION = '{version}'\n"})
    for version in ("4.1", "4.2"):
        files = {"transformers.py": f"import numpy, torch\nVERSION = '{version}'\n"}
        tiny_index.write_wheel(directory / "transformers", "transformers", version, files, ("torch>=2", "numpy>=1"))
    tiny_index.write_wheel(directory / "newtorch", "newtorch", "1.0", {"newtorch.py": ""}, ("torch>=2.12",))
    tiny_index.write_wheel(directory / "old", "old", "1.0", {"old.py": ""}, ("numpy<2",))
    tiny_index.write_wheel(directory / "torch", "torch", "2.12.0", {"torch/__init__.py": "__version__ = 'WRONG'\n"})
    tiny_index.write_index(directory)


@pytest.fixture(scope="module")
def bench(uv: Path) -> Iterator[Bench]:
    """A root with one release, which holds numpy as well and a command, and an index of people's own beside the others."""
    directory = Path(tempfile.mkdtemp(prefix="gpufleet-people-", dir="/var/tmp"))
    directory.chmod(0o755)
    (directory / "uv").symlink_to(uv)
    served = directory / "index"
    tiny_index.tiny_torch_index(served / "cu128")
    files = {"numpy.py": "VERSION = '2.1.0'\n"}
    tiny_index.write_wheel(served / "packages" / "numpy", "numpy", "2.1.0", files)
    tiny_index.write_wheel(served / "packages" / "launch", "launch", "1.0", LAUNCH)
    tiny_index.write_index(served / "packages")
    _write_people_index(served / "people")
    with pytest.MonkeyPatch.context() as patch, tiny_index.serve(served) as url:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        made = Bench(directory, url, [])
        made.operation(torch="2.9.0+cu128", companions={}, requirements=["launch", "numpy"]).present()
        (made.home / "runtime.env").write_text("TOKENIZERS_PARALLELISM=false\n")
        yield made
    shutil.rmtree(directory)


LAUNCH = {
    "launch.py": "def main():\n    import sys\n    print('launched by', sys.executable, *sys.argv[1:])\n",
    "launch-1.0.dist-info/entry_points.txt": "[console_scripts]\ntorchrun = launch:main\n",
}


def _person(bench: Bench, name: str) -> Person:
    home = bench.directory / "home" / name
    home.parent.mkdir(exist_ok=True)
    command = ["useradd", "--create-home", "--home-dir", str(home), "--comment", "a test of gpufleet.workstation", name]
    subprocess.run(command, check=True, capture_output=True)
    return Person(name, home, bench)


@pytest.fixture(scope="module")
def ann(bench: Bench) -> Iterator[Person]:
    """Somebody with the overlay `mine`."""
    person = _person(bench, f"gpufleet-ann-{os.getpid()}")
    try:
        person.says("new", "mine", "--from", "base")
        yield person
    finally:
        subprocess.run(["userdel", person.name], check=True, capture_output=True)


@pytest.fixture
def bob(bench: Bench) -> Iterator[Person]:
    """Somebody without any."""
    person = _person(bench, f"gpufleet-bob-{os.getpid()}")
    try:
        yield person
    finally:
        subprocess.run(["userdel", "--remove", person.name], check=True, capture_output=True)


def serving(bench: Bench) -> str:
    return os.path.realpath(bench.home / "current")


def test_an_overlay_sees_the_base_and_its_variables(ann: Person) -> None:
    code = "import os, sys, torch; print(torch.__version__, torch.__file__, os.environ['TOKENIZERS_PARALLELISM'], sys.prefix)"
    version, file, value, prefix = ann.python("mine", code).split()
    assert (version, value, prefix) == ("2.9.0+cu128", "false", str(ann.overlay("mine")))
    assert file.startswith(serving(ann.bench) + "/lib/")


def test_an_overlay_s_python_works_with_an_empty_environment_as_editors_start_it(ann: Person) -> None:
    code = "import os, torch; print(torch.__version__, os.environ['TOKENIZERS_PARALLELISM'])"
    done = ann.run("/usr/bin/env", "-i", ann.overlay("mine") / "bin/python", "-I", "-c", code)
    assert done.stdout == "2.9.0+cu128 false\n"


@pytest.mark.parametrize("tool", ["pip", "uv"])
class TestInstalling:
    """What pip and uv do in an overlay; each test begins with a new one."""

    @pytest.fixture(autouse=True)
    def as_new(self, ann: Person) -> Iterator[None]:
        library, saved = str(ann.overlay("mine") / "lib"), str(ann.home / "saved")
        subprocess.run(["cp", "-a", library, saved], check=True)
        yield
        shutil.rmtree(library)
        os.rename(saved, library)

    def install(self, ann: Person, tool: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["pip"] if tool == "pip" else [str(ann.bench.directory / "uv"), "pip"]
        return ann.gpu_env("run", "mine", *command, "install", *words)

    def versions(self, ann: Person) -> str:
        code = "import numpy, torch, transformers; print(torch.__version__, numpy.VERSION, transformers.VERSION)"
        return ann.python("mine", code)

    def test_a_library_that_needs_torch_takes_the_base_s(self, ann: Person, tool: str) -> None:
        done = self.install(ann, tool, "transformers==4.1")
        assert done.returncode == 0, done.stderr
        assert "2.12" not in done.stdout + done.stderr
        assert self.versions(ann) == "2.9.0+cu128 2.1.0 4.1"
        assert not (next(ann.overlay("mine").glob("lib/*/site-packages")) / "torch").exists()

    def test_an_upgrade_leaves_torch_as_it_is(self, ann: Person, tool: str) -> None:
        assert self.install(ann, tool, "transformers==4.1").returncode == 0
        assert self.install(ann, tool, "--upgrade", "transformers", "torch").returncode == 0
        assert self.versions(ann) == "2.9.0+cu128 2.1.0 4.2"

    @pytest.mark.parametrize("wanted", ["newtorch", "torch==2.12.0"])
    def test_another_torch_is_refused_with_the_reason(self, ann: Person, tool: str, wanted: str) -> None:
        done = self.install(ann, tool, wanted)
        assert done.returncode != 0
        assert "torch==2.9.0+cu128" in done.stdout + done.stderr
        assert ann.python("mine", "import torch; print(torch.__version__)") == "2.9.0+cu128"

    def test_any_other_package_can_be_another_version(self, ann: Person, tool: str) -> None:
        assert self.install(ann, tool, "old").returncode == 0
        assert ann.python("mine", "import numpy; print(numpy.VERSION)") == "1.26.0"
        assert ann.python("base", "import numpy; print(numpy.VERSION)") == "2.1.0"


def test_commands_of_the_base_run_with_the_overlay_s_python(ann: Person) -> None:
    assert ann.says("run", "mine", "torchrun", "a  b") == f"launched by {ann.overlay('mine')}/bin/python a  b\n"
    assert ann.says("run", "base", "torchrun") == f"launched by {serving(ann.bench)}/bin/python\n"


SHELLS = {
    "/usr/bin/bash": "source {0}; command -v python pip; echo $UV_CONSTRAINT; deactivate; echo [$UV_CONSTRAINT$VIRTUAL_ENV]",
    "/usr/bin/zsh": 'source {0}; whence -p python pip; echo $UV_CONSTRAINT; deactivate; echo "[$UV_CONSTRAINT$VIRTUAL_ENV]"',
    "/usr/bin/fish": 'source {0}.fish; command -s python pip; echo $UV_CONSTRAINT; deactivate; echo "[$UV_CONSTRAINT$VIRTUAL_ENV]"',
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_managed_environment_is_activated_as_the_release_that_serves(bench: Bench, ann: Person, shell: str) -> None:
    if not os.access(shell, os.X_OK):
        pytest.skip(f"needs {shell}")
    script = f"source {bench.home}/bin/activate{{0}}; command -v python; deactivate; command -v python"
    done = ann.run(shell, "-c", script.format(".fish" if shell.endswith("fish") else ""))
    assert done.stdout.split()[0] == f"{serving(bench)}/bin/python"
    assert len(done.stdout.split()) == (2 if shutil.which("python", path="/usr/bin:/bin") else 1)


@pytest.mark.parametrize("shell", SHELLS)
def test_an_overlay_is_activated_and_left_again(ann: Person, shell: str) -> None:
    if not os.access(shell, os.X_OK):
        pytest.skip(f"needs {shell}")
    home = ann.overlay("mine")
    done = ann.run(shell, "-c", SHELLS[shell].format(home / "bin/activate"))
    assert done.stderr == ""
    assert done.stdout.split() == [f"{home}/bin/python", f"{home}/bin/pip", f"file://{home}/constraints.txt", "[]"]


def test_the_base_is_as_it_was(ann: Person) -> None:
    result = ann.bench.operation(torch="2.9.0+cu128", companions={}, requirements=["launch", "numpy"]).present()
    assert (result["changed"], result["what"].split()[0]) == (False, "keep")


def test_a_user_without_account_and_home_can_use_the_base_and_hears_why_not_more(bench: Bench) -> None:
    command = str(bench.directory / "bin" / "gpu-env")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *arguments], user=54321, group=54321, extra_groups=[], capture_output=True, text=True, check=False
        )

    assert run("list").stdout.startswith("base\t")
    assert run("run", "base", "python", "-c", "import torch; print(torch.__version__)").stdout == "2.9.0+cu128\n"
    assert "uid 54321 has no account" in run("new", "mine", "--from", "base").stderr


def test_list_names_what_there_is_and_where(ann: Person, bob: Person) -> None:
    number = os.path.basename(serving(ann.bench))
    assert ann.says("list") == f"base\t{number}\nmine\t{number}\toverlay of base at {ann.overlay('mine')}\n"
    assert bob.says("list") == f"base\t{number}\n"


def test_path_and_activate_lead_to_the_overlay(ann: Person) -> None:
    assert ann.says("path", "mine") == f"{ann.overlay('mine')}\n"
    assert f"source {ann.overlay('mine')}/bin/activate.fish" in ann.says("activate", "mine")


def test_root_gets_no_overlay_and_runs_nobody_s(ann: Person) -> None:
    command = str(ann.bench.directory / "bin" / "gpu-env")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(ann.home), "XDG_DATA_HOME": str(ann.home / ".local/share")}
    for arguments in (["new", "other", "--from", "base"], ["update", "mine"], ["remove", "mine"]):
        done = subprocess.run([command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, "root would run" in done.stderr) == (1, True)
    done = subprocess.run(
        [command, "run", "mine", "true"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "no environment 'mine'" in done.stderr) == (127, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("new", "mine", "--from", "base"), "you have an overlay mine already"),
        (("new", "base", "--from", "base"), "the name of a managed environment"),
        (("new", "x", "--from", "nosuch"), "no environment 'nosuch' that you can use; there is: base"),
        (("new", "../x", "--from", "base"), "is no name of an environment"),
        (("new", "x", "--from", "../base"), "is no name of an environment"),
        (("new", "x", "--from", "base", "--path", "."), "is there already and not empty"),
        (("new", "x", "--from", "base", "--path", "a:b"), "holds a character"),
        (
            ("new", "x", "--from", "base", "--path", "/proc/x/y"),
            "cannot be made: Error: [Errno 2] No such file or directory: '/proc/x'; choose another place with --path",
        ),
        (("remove", "base"), "base is a managed environment"),
        (("remove", "x"), "there is no such overlay"),
        (("update", "x"), "you have no overlay x"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(ann: Person, arguments: tuple[str, ...], words: str) -> None:
    done = ann.gpu_env(*arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert os.listdir(ann.overlay("mine").parent) == ["mine"]


def test_a_base_that_only_a_group_may_read_gives_no_overlay_to_others(bench: Bench, ann: Person, bob: Person) -> None:
    os.chown(bench.home, 0, pwd.getpwnam(ann.name).pw_gid)
    bench.home.chmod(0o750)
    try:
        assert "no environment 'base' that you can use" in bob.gpu_env("new", "mine", "--from", "base").stderr
        assert bob.says("list") == ""
        assert ann.python("mine", "import torch; print(torch.__version__)") == "2.9.0+cu128"
    finally:
        os.chown(bench.home, 0, 0)
        bench.home.chmod(0o755)


class TestElsewhere:
    def test_the_user_s_own_data_directory_is_respected_and_known_to_root(self, bob: Person) -> None:
        path = bob.home / "my data/gpufleet/envs/there"
        bob.says("new", "there", "--from", "base", XDG_DATA_HOME=str(bob.home / "my data"))
        assert os.readlink(bob.overlay("there")) == bob.says("path", "there").strip() == str(path)
        assert bob.python("there", "import torch; print(torch.__version__)") == "2.9.0+cu128"
        assert bob.says("run", "there", "torchrun") == f"launched by {path}/bin/python\n"
        assert bob.gpu_env("run", "there", "pip", "install", "newtorch").returncode != 0
        assert str(path) in overlays.pinned(str(bob.bench.root))[serving(bob.bench)]
        bob.says("remove", "there")
        assert (path.exists(), os.path.lexists(bob.overlay("there"))) == (False, False)

    def test_an_overlay_deleted_by_hand_counts_no_more_and_remove_keeps_what_is_none(self, bob: Person) -> None:
        bob.says("new", "there", "--from", "base", "--path", "here")
        assert str(bob.home / "here") in overlays.pinned(str(bob.bench.root))[serving(bob.bench)]
        shutil.rmtree(bob.home / "here")
        assert str(bob.home / "here") not in str(overlays.pinned(str(bob.bench.root)))
        assert "it is not complete: gpu-env remove there" in bob.gpu_env("run", "there", "true").stderr
        bob.run("sh", "-c", "mkdir here && echo precious > here/file")
        assert "is left as it is" in bob.says("remove", "there")
        assert (bob.home / "here/file").read_text() == "precious\n"
        assert bob.says("list").count("\n") == 1

    def test_a_killed_new_leaves_an_overlay_that_can_be_removed(self, bob: Person) -> None:
        unfinished = bob.overlay("mine")
        bob.run("mkdir", "-p", unfinished / "bin")
        assert "it is not complete: gpu-env remove mine" in bob.gpu_env("new", "mine", "--from", "base").stderr
        bob.says("remove", "mine")
        assert not unfinished.exists()


class TestPip:
    """Where pip comes from; the programs that bring it are played."""

    @pytest.fixture
    def called(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        calls: list[list[str]] = []

        def call(command: list[str]) -> tuple[int, str]:
            calls.append(command)
            return (1, "No module named ensurepip") if "ensurepip" in command else (0, "")

        monkeypatch.setattr(gpu_env, "_call", call)
        monkeypatch.setattr(gpu_env, "ROOT", str(tmp_path))
        return calls

    def test_without_ensurepip_uv_fetches_it(self, tmp_path: Path, called: list[list[str]]) -> None:
        (tmp_path / ".tools/uv-1.0").mkdir(parents=True)
        (tmp_path / ".tools/uv-1.0/uv").touch()
        gpu_env._add_pip("/x")
        assert called[1:] == [
            [f"{tmp_path}/.tools/uv-1.0/uv", "pip", "install", "--quiet", "--python", "/x/bin/python", "pip"]
        ]

    @pytest.mark.usefixtures("called")
    def test_without_either_the_remedy_is_said(self) -> None:
        with pytest.raises(gpu_env.Problem, match=r"No module named ensurepip.*the package python3-venv"):
            gpu_env._add_pip("/x")


@pytest.fixture(scope="module")
def newer(bench: Bench, ann: Person) -> str:
    """Another release serves; returns the one that the overlay of ann, who has to be there before, sees."""
    before = serving(bench)
    bench.operation(companions={}, requirements=["launch", "numpy"]).present()
    assert serving(bench) != before
    return before


@pytest.mark.usefixtures("newer")
class TestUpdate:
    """The base moves on. These tests come late: the other ones want the release that they began with."""

    def test_nothing_changes_by_itself_and_list_says_so(self, bench: Bench, ann: Person) -> None:
        assert ann.python("mine", "import torch; print(torch.__version__)") == "2.9.0+cu128"
        assert f"base serves {os.path.basename(serving(bench))} now: gpu-env update mine" in ann.says("list")
        assert "gpu-env update mine" in ann.gpu_env("new", "mine", "--from", "base").stderr

    def test_check_shows_and_changes_nothing(self, ann: Person) -> None:
        assert "  torch 2.9.0+cu128 -> 2.9.1+cu128\n" in ann.says("update", "mine", "--check")
        assert ann.python("mine", "import torch; print(torch.__version__)") == "2.9.0+cu128"

    def test_update_moves_everything(self, bench: Bench, ann: Person, newer: str) -> None:
        assert ann.gpu_env("run", "mine", "pip", "install", "old").returncode == 0
        said = ann.says("update", "mine")
        assert "numpy" not in said
        assert (
            ann.python("mine", "import numpy, torch; print(torch.__version__, numpy.VERSION)") == "2.9.1+cu128 1.26.0"
        )
        assert ann.says("run", "mine", "torchrun") == f"launched by {ann.overlay('mine')}/bin/python\n"
        assert ann.gpu_env("run", "mine", "pip", "install", "torch==2.9.0").returncode != 0
        packages = next(ann.overlay("mine").glob("lib/*/site-packages"))
        assert sorted(path.name for path in packages.glob("torch-*")) == ["torch-2.9.1+cu128.dist-info"]
        assert sorted(path.name for path in packages.glob("numpy-*")) == ["numpy-1.26.0.dist-info"]
        seen = overlays.pinned(str(bench.root))
        assert (str(ann.overlay("mine")) in seen[serving(bench)], newer in seen) == (True, False)
        assert "which base serves" in ann.says("update", "mine")

    def test_what_was_uninstalled_shows_the_base_s_again(self, bench: Bench, ann: Person) -> None:
        ann.says("run", "mine", "pip", "uninstall", "-q", "-y", "numpy", "old")
        assert ann.python("mine", "import numpy; print(numpy.VERSION)") == "2.1.0"
        assert "which base serves" in ann.says("update", "mine")
        assert "numpy==2.1.0" in ann.says("run", "mine", str(bench.directory / "uv"), "pip", "freeze")

    def test_for_another_python_the_packages_of_one_s_own_are_named(self, ann: Person) -> None:
        assert ann.gpu_env("run", "mine", "pip", "install", "transformers==4.1").returncode == 0
        (library,) = (ann.overlay("mine") / "lib").iterdir()
        other = library.rename(library.with_name("python3.9"))
        done = ann.gpu_env("update", "mine")
        other.rename(library)
        assert done.returncode == 1
        assert f"base has another Python now, {library.name}" in done.stderr
        assert done.stderr.endswith("transformers==4.1\n")
        assert "torch==" not in done.stderr

    def test_an_overlay_that_lost_its_release_says_so_and_can_be_updated(self, bench: Bench, ann: Person) -> None:
        config = ann.overlay("mine") / "pyvenv.cfg"
        config.write_text(config.read_text().replace(serving(bench), serving(bench) + ".gone"))
        assert "is gone: gpu-env update mine" in ann.gpu_env("run", "mine", "true").stderr
        assert "is gone: gpu-env update mine" in ann.says("list")
        ann.says("update", "mine")
        assert ann.says("run", "mine", "echo", "well") == "well\n"


def test_a_release_that_an_overlay_sees_is_not_pruned(bench: Bench, ann: Person) -> None:
    """Comes last: it changes the base twice."""
    seen = os.path.realpath(str(next(iter(overlays.pinned(str(bench.root))))))

    def operation(**changes: Any) -> Any:
        made = bench.operation(companions={}, keep=2, **changes)
        made.host = dataclasses.replace(made.host, pinned=overlays.pinned)
        return made

    results = [operation(requirements=[name]).present() for name in ("numpy", "launch", "numpy==2.1.0")]
    assert os.path.isdir(seen)
    assert any("overlays see it" in warning for warning in results[-1]["warnings"])
    with pytest.raises(ReleaseError, match=f"overlays use the environment: {ann.overlay('mine')}"):
        operation().absent()
    ann.says("remove", "mine")
    results.append(operation(requirements=["launch==1.0"]).present())
    assert os.path.basename(seen) in results[-1]["removed"]
