from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import gpu_env as gpu_env_module
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, startup

PACKAGES = Path("lib", "python3.11", "site-packages")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An environment with two releases below a root whose name needs quoting."""
    home = tmp_path / "it's a $(root)" / "base"
    for release in ("one", "two"):
        program = home / "releases" / release / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\necho {release} "$0" "$@"\n')
        program.chmod(0o755)
        (program.parent / "activate").write_text(f"ACTIVATED={release}\n")
        (program.parent / "activate.fish").write_text(f"set -g ACTIVATED {release}\n")
    (home / "current").symlink_to("releases/one")
    files = startup.environment_files(str(home.parent), "base")
    files[str(tmp_path / "gpu-env")] = startup.command_file(str(home.parent))
    for path, (mode, content) in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(content)
        Path(path).chmod(mode)
    return home


def sh(*command: str | Path, program: str = "/bin/sh") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, command)], capture_output=True, text=True, check=False, timeout=20)


def gpu_env(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [home.parents[1] / "gpu-env", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


def test_the_python_launcher_starts_the_release_itself(home: Path) -> None:
    done = sh(home / "bin" / "python", "-c", "a b")
    assert done.stdout == f"one {home}/releases/one/bin/python -c a b\n"


def test_after_a_switch_the_next_start_takes_the_new_release(home: Path) -> None:
    (home / "new").symlink_to("releases/two")
    (home / "new").rename(home / "current")
    assert sh(home / "bin" / "python").stdout.startswith("two ")
    assert gpu_env(home, "path", "base").stdout == f"{home}/releases/two\n"


def test_without_a_release_the_launcher_says_so(home: Path) -> None:
    (home / "current").unlink()
    done = sh(home / "bin" / "python")
    assert done.returncode == 127
    assert "no release of this environment serves" in done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_has_an_activation_of_its_own(home: Path) -> None:
    done = sh("-c", "source $argv[1]; echo $ACTIVATED", home / "bin" / "activate.fish", program="/usr/bin/fish")
    assert (done.stdout, done.stderr) == ("one\n", "")
    (home / "current").unlink()
    done = sh("-c", "source $argv[1]", home / "bin" / "activate.fish", program="/usr/bin/fish")
    assert (done.returncode, "no release of this environment serves" in done.stderr) == (1, True)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash", "/bin/zsh"])
def test_activate_can_be_sourced(home: Path, shell: str) -> None:
    if not os.access(shell, os.X_OK):
        pytest.skip(f"needs {shell}")
    done = sh(
        "-c", '. "$1" && echo $ACTIVATED ${_gpufleet_release-unset}', "sh", home / "bin" / "activate", program=shell
    )
    assert done.stdout == "one unset\n"


VARIABLES = "# comment\nTOKENIZERS_PARALLELISM=false\nNOTE=two words; a=b= *\n"
SHOW = 'printf "%s|%s" "${TOKENIZERS_PARALLELISM-unset}" "${NOTE-unset}"'


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash", "/bin/zsh"])
@pytest.mark.parametrize("options", ["-c", "-euc"])
def test_activate_sets_the_variables_that_the_shell_lacks(home: Path, shell: str, options: str) -> None:
    if not os.access(shell, os.X_OK):
        pytest.skip(f"needs {shell}")
    (home / "runtime.env").write_text(VARIABLES)
    script = f". \"$1\"; exec /bin/sh -c '{SHOW}'"
    command = [shell, options, script, "sh", str(home / "bin" / "activate")]
    for given, shown in (
        ({}, "false|two words; a=b= *"),
        ({"TOKENIZERS_PARALLELISM": "true"}, "true|two words; a=b= *"),
    ):
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=20)
        assert (done.stdout, done.stderr) == (shown, "")


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash", "/bin/zsh"])
def test_an_environment_activated_after_another_sets_its_own(home: Path, shell: str) -> None:
    if not os.access(shell, os.X_OK):
        pytest.skip(f"needs {shell}")
    other = home.parent / "other"
    shutil.copytree(home, other, symlinks=True)
    for path, (_mode, content) in startup.environment_files(str(home.parent), "other").items():
        Path(path).write_text(content)
    (home / "runtime.env").write_text("NOTE=one\nTOKENIZERS_PARALLELISM=false\n")
    (other / "runtime.env").write_text("NOTE=two\n")
    script = f'NOTE_OF_MINE=1; . "$1"; . "$2"; {SHOW}'
    done = sh("-c", script, "sh", home / "bin" / "activate", other / "bin" / "activate", program=shell)
    assert (done.stdout, done.stderr) == ("unset|two", "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(("given", "shown"), [({}, "false|two words; a=b= *"), ({"NOTE": "mine"}, "false|mine")])
def test_activate_sets_the_variables_in_fish(home: Path, given: dict[str, str], shown: str) -> None:
    (home / "runtime.env").write_text(VARIABLES)
    for script in ("source $argv[1]", "source $argv[1]; source $argv[1]"):
        command = [
            "/usr/bin/fish",
            "--no-config",
            "-c",
            f"{script}; exec /bin/sh -c '{SHOW}'",
            str(home / "bin/activate.fish"),
        ]
        environment = {"HOME": str(home), **given}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)
        assert (done.stdout, done.stderr) == (shown, "")


@pytest.mark.parametrize(("given", "shown"), [({}, "false|two words; a=b= *"), ({"NOTE": "mine"}, "false|mine")])
def test_gpu_env_run_sets_the_variables_that_its_caller_lacks(home: Path, given: dict[str, str], shown: str) -> None:
    (home / "runtime.env").write_text(VARIABLES)
    command = [home.parents[1] / "gpu-env", "run", "base", "sh", "-c", SHOW]
    environment = {"PATH": os.environ["PATH"], **given}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert (done.stdout, done.stderr) == (shown, "")


def test_gpu_env_lists_what_serves(home: Path) -> None:
    assert gpu_env(home, "list").stdout == "base\tone\n"


def test_gpu_env_runs_a_command_in_the_release(home: Path) -> None:
    done = gpu_env(home, "run", "base", "sh", "-c", 'command -v python; echo "$VIRTUAL_ENV" "$1"', "x", "a  b")
    assert done.stdout == f"{home}/releases/one/bin/python\n{home}/releases/one a  b\n"


def test_gpu_env_hands_on_the_exit_status(home: Path) -> None:
    assert gpu_env(home, "run", "base", "sh", "-c", "exit 42").returncode == 42


@pytest.mark.parametrize("name", ["..", ".", "../base", "/etc", "", "a;id", "$(id)", "base/../base", "-x"])
def test_gpu_env_takes_only_names(home: Path, name: str) -> None:
    done = gpu_env(home, "path", name)
    assert done.returncode in (2, 127)
    assert done.stdout == ""
    assert "gpu-env" in done.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("run",), ("run", "base"), ("path",), ("list", "x"), ("frobnicate",), ("new", "x")]
)
def test_gpu_env_explains_its_use(home: Path, arguments: tuple[str, ...]) -> None:
    done = gpu_env(home, *arguments)
    assert done.returncode == 2
    assert "gpu-env run" in done.stderr or done.stderr.startswith("usage: gpu-env")


def test_gpu_env_starts_the_command_as_a_shell_would(home: Path) -> None:
    assert gpu_env(home, "run", "base", "sh", "-c", "grep SigIgn /proc/self/status").stdout.split()[1] == "0" * 16
    assert gpu_env(home, "run", "base", "--", "sh", "-c", "echo $1", "x", "--path").stdout == "--path\n"
    missing = gpu_env(home, "run", "base", "no-such-command")
    assert (missing.returncode, missing.stderr) == (127, "gpu-env: no-such-command: No such file or directory\n")
    assert gpu_env(home, "run", "base", "/etc/passwd").returncode == 126


def test_gpu_env_says_what_to_type_to_activate(home: Path) -> None:
    lines = gpu_env(home, "activate", "base").stdout.splitlines()
    assert [line.split("/")[-1] for line in lines] == ["activate'  # bash, zsh", "activate.fish'  # fish"]


def test_gpu_env_is_for_the_system_s_python_without_what_users_could_add(home: Path) -> None:
    text = (home.parents[1] / "gpu-env").read_text()
    assert text.startswith("#!/usr/bin/python3 -IS\n")
    assert f"\nROOT = {str(home.parent)!r}\n" in text


def test_gpu_env_knows_torch_s_family_as_locks_do() -> None:
    assert gpu_env_module.FAMILY == lock.FAMILY


def test_the_launchers_are_valid_for_dash_and_for_shellcheck_where_it_is(home: Path) -> None:
    for path in (home / "bin" / "python", home / "bin" / "activate"):
        assert sh("-n", path).returncode == 0
        if shutil.which("shellcheck"):
            done = subprocess.run(
                ["shellcheck", "--severity=warning", "-s", "sh", path], capture_output=True, text=True, check=False
            )
            assert done.stdout == ""


class TestRuntimeModule:
    @pytest.fixture
    def release(self, tmp_path: Path) -> Path:
        """The directory that plays the release, and two levels up runtime.env; the module is run by hand from there."""
        release = tmp_path / "base" / "releases" / "one"
        (release / PACKAGES).mkdir(parents=True)
        (release / PACKAGES / "_gpufleet_runtime.py").write_text(startup.MODULE)
        return release

    def run(self, prefix: Path, environment: dict[str, str] | None = None, show: str = "TOKENIZERS_PARALLELISM") -> str:
        program = (
            f"import sys, os; sys.path.insert(0, {str(prefix / PACKAGES)!r}); import _gpufleet_runtime\n"
            f"print(os.environ.get({show!r}), hasattr(_gpufleet_runtime, '_set_variables'))"
        )
        command = [sys.executable, "-I", "-S", "-B", "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment or {}, timeout=20)
        assert done.stderr == ""
        return done.stdout.split()[0]

    def test_it_sets_what_is_not_set(self, release: Path) -> None:
        (release.parents[1] / "runtime.env").write_text("# comment\n\nTOKENIZERS_PARALLELISM=false\n")
        assert self.run(release) == "false"

    def test_a_value_of_the_process_wins_also_an_empty_one(self, release: Path) -> None:
        (release.parents[1] / "runtime.env").write_text("TOKENIZERS_PARALLELISM=false\n")
        assert self.run(release, {"TOKENIZERS_PARALLELISM": "true"}) == "true"
        assert self.run(release, {"TOKENIZERS_PARALLELISM": ""}) == "False"

    def test_it_finds_the_file_through_the_symlink_current(self, release: Path) -> None:
        (release.parents[1] / "runtime.env").write_text("TOKENIZERS_PARALLELISM=false\n")
        (release.parents[1] / "current").symlink_to("releases/one")
        assert self.run(release.parents[1] / "current") == "false"

    @pytest.mark.parametrize(
        "content",
        [
            None,
            b"",
            b"\xff\xfe\x00=\x00",
            b"NO EQUALS SIGN",
            b"=value",
            b"A\x00B=c\n",
            b"X=" + b"y" * 300000,
            b"#A=b\n",
        ],
    )
    def test_nothing_in_the_file_can_stop_python(self, release: Path, content: bytes | None) -> None:
        if content is not None:
            (release.parents[1] / "runtime.env").write_bytes(content)
        assert self.run(release) == "None"

    def test_a_directory_in_its_place_or_an_unreadable_file_is_ignored(self, release: Path) -> None:
        (release.parents[1] / "runtime.env").mkdir()
        assert self.run(release) == "None"

    def test_a_value_may_hold_an_equals_sign(self, release: Path) -> None:
        (release.parents[1] / "runtime.env").write_text("PYTORCH_ALLOC_CONF=expandable_segments:True,x=1\n")
        assert self.run(release, show="PYTORCH_ALLOC_CONF") == "expandable_segments:True,x=1"

    def test_it_costs_less_than_a_third_of_a_millisecond(self, release: Path) -> None:
        (release.parents[1] / "runtime.env").write_text("TOKENIZERS_PARALLELISM=false\nOMP_NUM_THREADS=8\n")
        program = (
            "import sys, time, statistics\n"
            f"path = {str(release / PACKAGES / '_gpufleet_runtime.py')!r}\n"
            "source = compile(open(path).read(), 'm', 'exec')\n"
            "times = []\n"
            "for _ in range(50):\n"
            "    begin = time.perf_counter(); exec(source, {'__file__': path}); times.append(time.perf_counter() - begin)\n"
            "print(statistics.median(times) * 1000)"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True, timeout=20
        )
        assert float(done.stdout) < 0.3, os.uname().release
