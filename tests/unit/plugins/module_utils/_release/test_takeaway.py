"""What users take away: every file says the same as the lock, works, and lets no index replace what the other serves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, startup, takeaway

sys.path.insert(0, str(Path(__file__).resolve().parent))
import tiny_index

ENVIRONMENT: dict[str, Any] = {
    "name": "base",
    "root": "/opt/gpufleet/envs",
    "spec": {"python": "3.12", "torch": "2.9.1+cu128", "arch": "x86_64"},
    "index_url": "https://bob:s3cret@mirror.example/cu128",
    "package_index_url": "",
    "variables": {"TOKENIZERS_PARALLELISM": "false", "NOTE": "two words"},
}
LOCK = lock.Lock(
    {"name": "base"},
    (
        lock.Pinned("torch", "2.9.1+cu128", ("0" * 64,), True),
        lock.Pinned("nvidia-cublas-cu12", "12.8.4.1", ("1" * 64,), True),
        lock.Pinned("numpy", "2.4.6", ("2" * 64, "3" * 64)),
    ),
)
FILES = takeaway.files(ENVIRONMENT, LOCK)


def pins(name: str) -> list[str]:
    text = "\n".join(line for line in FILES[name].splitlines() if not line.startswith("--"))
    return [f"{item.name}=={item.version}" for item in lock.pinned(text)]


def test_each_index_has_a_file_of_its_own_with_all_hashes() -> None:
    assert pins(takeaway.TORCH_FILE) == ["nvidia-cublas-cu12==12.8.4.1", "torch==2.9.1+cu128"]
    assert pins(takeaway.REST_FILE) == ["numpy==2.4.6"]
    assert "--index-url https://mirror.example/cu128\n" in FILES[takeaway.TORCH_FILE]
    assert "--index-url" not in FILES[takeaway.REST_FILE]


@pytest.mark.parametrize("name", FILES)
def test_no_file_holds_credentials_or_a_second_index(name: str) -> None:
    assert "s3cret" not in FILES[name]
    assert "extra-index" not in FILES[name]


def test_an_index_with_credentials_says_where_to_put_them() -> None:
    assert "name and a password" in FILES[takeaway.TORCH_FILE]
    plain = takeaway.files({**ENVIRONMENT, "index_url": "https://mirror.example/cu128"}, LOCK)
    assert "password" not in plain[takeaway.TORCH_FILE]


def test_pip_is_told_to_use_a_mirror_without_encryption() -> None:
    made = takeaway.files({**ENVIRONMENT, "package_index_url": "http://mirror.lan:8080/simple"}, LOCK)
    assert "--trusted-host mirror.lan:8080\n--index-url http://mirror.lan:8080/simple\n" in made[takeaway.REST_FILE]
    assert "--trusted-host" not in made[takeaway.TORCH_FILE]


def test_constraints_pin_everything() -> None:
    expected = ["numpy==2.4.6", "nvidia-cublas-cu12==12.8.4.1", "torch==2.9.1+cu128"]
    assert [line for line in FILES["constraints.txt"].splitlines() if not line.startswith("#")] == expected


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, read as Docker reads them: comments go, lines that end with a backslash are joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines).splitlines()
    return [(word, rest) for word, _space, rest in (line.partition(" ") for line in joined)]


def test_the_image_has_the_environments_python_variables_and_an_ordinary_user() -> None:
    steps = instructions(FILES["Dockerfile"])
    assert steps == [
        ("FROM", "python:3.12-slim"),
        ("COPY", "requirements-torch.txt requirements.txt /tmp/"),
        (
            "RUN",
            "pip install --no-deps --require-hashes --no-cache-dir -r /tmp/requirements-torch.txt "
            "&& pip install --no-deps --require-hashes --no-cache-dir -r /tmp/requirements.txt",
        ),
        ("ENV", 'TOKENIZERS_PARALLELISM="false"'),
        ("ENV", 'NOTE="two words"'),
        ("RUN", "useradd --create-home user"),
        ("USER", "user"),
        ("WORKDIR", "/home/user"),
    ]
    for word, rest in steps:
        if word in ("RUN", "ENV"):
            assert shlex.split(rest)


def test_an_image_of_torch_alone_installs_one_file() -> None:
    alone = takeaway.files(ENVIRONMENT, lock.Lock({}, LOCK.packages[:2]))["Dockerfile"]
    assert ("COPY", "requirements-torch.txt /tmp/") in instructions(alone)
    assert "requirements.txt" not in alone


def test_the_kernel_resolves_the_release_when_it_starts() -> None:
    kernel = json.loads(FILES["kernel.json"])
    assert kernel["argv"][0] == "/opt/gpufleet/envs/base/bin/python"
    assert kernel["language"] == "python"


@pytest.mark.parametrize(("own", "value"), [({}, "false"), ({"TOKENIZERS_PARALLELISM": "true"}, "true")])
def test_the_kernel_starts_in_the_release_that_serves_with_its_variables_unless_the_user_has_others(
    tmp_path: Path, own: dict[str, str], value: str
) -> None:
    home = tmp_path / "base"
    release = home / "releases" / "r1"
    venv.create(release, with_pip=False, symlinks=True)
    (home / "current").symlink_to("releases/r1")
    (home / "runtime.env").write_text("TOKENIZERS_PARALLELISM=false\n")
    for path, (mode, content) in startup.environment_files(str(tmp_path), "base").items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(content)
        Path(path).chmod(mode)
    (site,) = release.glob("lib/python3*/site-packages")
    (site / startup.PTH_NAME).write_text(startup.PTH)
    (site / startup.MODULE_NAME).write_text(startup.MODULE)
    (site / "ipykernel_launcher.py").write_text(
        "import os, sys\nprint(sys.prefix, *sys.argv[1:], os.environ['TOKENIZERS_PARALLELISM'])\n"
    )
    kernel = takeaway.kernel({**ENVIRONMENT, "root": str(tmp_path)})
    argv = [word.replace("{connection_file}", "/run/kernel.json") for word in kernel["argv"]]
    environment = {"PATH": "/usr/bin:/bin", **own, **kernel.get("env", {})}  # as jupyter_client does
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(release.resolve()), "-f", "/run/kernel.json", value]


# ---- with a real pip ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Path, lock.Lock, str]]:
    """The files of an environment from tiny indexes that still serve: their folder, the lock and the URL of the indexes."""
    if tiny_index.uv_program() is None:
        pytest.skip("needs uv")
    with tempfile.TemporaryDirectory(prefix="gpufleet-takeaway-") as directory:
        served = Path(directory) / "served"
        tiny_index.tiny_torch_index(served / "cu128")
        tiny_index.tiny_package_index(served / "packages")
        with tiny_index.serve(served) as url:
            python = f"{sys.version_info[0]}.{sys.version_info[1]}"
            spec, text = tiny_index.locked({**tiny_index.SPEC, "python": python, "requirements": ["plainpkg<2"]}, url)
            environment = {
                **ENVIRONMENT,
                "spec": spec,
                "index_url": f"{url}/cu128",
                "package_index_url": f"{url}/packages",
            }
            folder = Path(directory) / "files"
            folder.mkdir()
            parsed = lock.parse(text)
            for name, content in takeaway.files(environment, parsed).items():
                (folder / name).write_text(content)
            yield folder, parsed, url


def pip(environment: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an environment's pip without the machine's own configuration."""
    settings = {
        "PATH": os.defpath,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "HOME": str(environment),
    }
    command = [str(environment / "bin" / "python"), "-m", "pip", *words]
    return subprocess.run(command, env=settings, cwd=folder, capture_output=True, text=True, check=False)


def test_pip_installs_from_the_files_exactly_what_the_lock_says(
    made: tuple[Path, lock.Lock, str], tmp_path: Path
) -> None:
    folder, wanted, _url = made
    venv.create(tmp_path / "env", with_pip=True)
    for name in (takeaway.TORCH_FILE, takeaway.REST_FILE):
        (command,) = re.findall(r"^# (?:First|Then): pip (.*)$", (folder / name).read_text(), re.MULTILINE)
        done = pip(tmp_path / "env", *command.split(), folder=folder)
        assert done.returncode == 0, done.stderr
    frozen = pip(tmp_path / "env", "freeze", folder=folder).stdout.split()
    assert sorted(frozen) == sorted(f"{item.name}=={item.version}" for item in wanted.packages)
    assert len(frozen) == 6
    checked = pip(tmp_path / "env", "check", folder=folder)
    assert checked.returncode == 0, checked.stdout
    again = pip(
        tmp_path / "env", "install", "--dry-run", "-c", takeaway.CONSTRAINTS_FILE, "torch", "plainpkg", folder=folder
    )
    assert again.returncode == 0, again.stderr
    assert "Would install" not in again.stdout


def test_pip_refuses_a_file_that_is_not_the_locked_one(made: tuple[Path, lock.Lock, str], tmp_path: Path) -> None:
    folder, _wanted, _url = made
    venv.create(tmp_path / "env", with_pip=True)
    wrong = tmp_path / takeaway.REST_FILE
    wrong.write_text(re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", (folder / takeaway.REST_FILE).read_text()))
    done = pip(tmp_path / "env", "install", "--no-deps", "--require-hashes", "-r", str(wrong), folder=folder)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
