from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import tool
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import ReleaseError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import tiny_index


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "uv.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"uv-{tool.UV_VERSION}.data/scripts/uv", "#!/bin/sh\necho uv\n")
    return path


def pin(path: Path) -> tool.Wheel:
    return tool.Wheel("uv.whl", hashlib.sha256(path.read_bytes()).hexdigest(), "any")


def test_uv_is_unpacked_as_a_program(tmp_path: Path, archive: Path) -> None:
    path = tool.unpack(str(archive), pin(archive), str(tmp_path / "tools"))
    assert path == str(tmp_path / "tools" / f"uv-{tool.UV_VERSION}" / "uv")
    assert os.stat(path).st_mode & 0o7777 == 0o755
    assert os.listdir(tmp_path / "tools") == [f"uv-{tool.UV_VERSION}"]
    assert os.popen(path).read() == "uv\n"  # noqa: S605  (a path of this test's own)


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path, archive: Path) -> None:
    wheel = pin(archive)
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(ReleaseError, match="sha256"):
        tool.unpack(str(archive), wheel, str(tmp_path / "tools"))
    assert not (tmp_path / "tools").exists()


def test_a_wheel_without_uv_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "uv.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("other", "")
    with pytest.raises(ReleaseError, match="cannot be unpacked"):
        tool.unpack(str(path), pin(path), str(tmp_path / "tools"))
    assert os.listdir(tmp_path / "tools") == []


def test_a_wheel_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"gone\.whl cannot be read"):
        tool.unpack(str(tmp_path / "gone.whl"), tool.WHEELS["x86_64"], str(tmp_path / "tools"))


def test_the_pins_are_those_of_the_controllers_requirements() -> None:
    text = (Path(__file__).resolve().parents[5] / "requirements.txt").read_text()
    section = re.search(r"^uv==(\S+) \\\n((?:\s+--hash=\S+.*\n)+)", text, re.MULTILINE)
    assert section is not None
    assert section[1] == tool.UV_VERSION
    assert all(f"sha256:{wheel.sha256}" in section[2] for wheel in tool.WHEELS.values())
    assert all(wheel.file.startswith(f"uv-{tool.UV_VERSION}-") for wheel in tool.WHEELS.values())


UNREACHABLE = """Using Python 3.11.2 environment at: /opt/gpufleet/envs/base/releases/x
error: Request failed after 3 retries in 9.5s
  cause: Failed to fetch: `http://bob:s3cret@mirror/cu128/torch/`
  cause: error sending request for url
  cause: client error (Connect)
  cause: tcp connect error
  cause: Connection refused (os error 111)
"""
NO_VERSION = """Using Python 3.11.2 environment at: /opt/gpufleet/envs/base/releases/x
error: No solution found when resolving dependencies
  cause: Because there is no version of torch==2.9.2+cu128 and you require torch==2.9.2+cu128, we can conclude
      that your requirements are unsatisfiable.
hint: `torch` was found on http://mirror/cu128, but not at the requested version. To try other indexes use
      `--index-strategy unsafe-best-match`
"""


def test_the_cause_is_told_without_noise_credentials_and_dangerous_advice() -> None:
    cause, remedy = tool.explain(UNREACHABLE)
    assert cause.startswith("Request failed after 3 retries")
    assert cause.endswith("Connection refused (os error 111)")
    assert "s3cret" not in cause
    assert "proxy" in remedy
    cause, remedy = tool.explain(NO_VERSION)
    assert "no version of torch==2.9.2+cu128" in cause
    assert "unsafe" not in cause
    assert "torch_env_version" in remedy


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("error: Failed to write\n  cause: No space left on device (os error 28)", "Free space"),
        ("error: Hash mismatch for `torch==2.9.1`", "index serves is not what it announces"),
        ("error: x\n cause: Failed to extract archive: y.whl\n cause: Bad CRC (got 1, expected 2)", "no sound wheel"),
        ("error: x\n cause: Failed to extract archive: y.whl\n cause: No space left on device", "Free space"),
        ("error: x\n cause: end of file before message length reached", "ended in the middle of a file"),
        ("error: x\n cause: Failed to download due to network timeout.", "stopped sending"),
        ("error: x\n cause: invalid peer certificate: UnknownIssuer", "CA certificates"),
        ("error: x\n cause: dns error: failed to lookup address", "DNS"),
        ("error: HTTP status client error (401 Unauthorized)", "credentials"),
        ("error: x torch has no wheels with a matching Python ABI tag", "torch_env_python"),
        ("error: something new", "Correct what is named"),
        ("", "Correct what is named"),
    ],
)
def test_known_messages_come_with_what_to_do(output: str, advice: str) -> None:
    assert advice in tool.explain(output)[1]


@pytest.mark.skipif(
    tiny_index.uv_program() is None or tiny_index.system_python() is None, reason="needs uv and a system Python"
)
def test_uv_makes_an_environment_where_the_distribution_split_venv_and_ensurepip_off(tmp_path: Path) -> None:
    """As on a minimal Debian or Ubuntu without python3-venv, where ``python3 -m venv`` fails."""
    real = os.path.realpath(tiny_index.system_python() or "")
    version = os.path.basename(real)
    library = Path(real).parents[1] / "lib" / version
    without = tmp_path / "system/lib" / version
    without.mkdir(parents=True)
    (tmp_path / "system/bin").mkdir()
    for entry in library.iterdir():
        if entry.name not in ("venv", "ensurepip", "EXTERNALLY-MANAGED"):
            (without / entry.name).symlink_to(entry)
    python = tmp_path / "system/bin" / version
    shutil.copy(real, python)
    plain = subprocess.run([python, "-m", "venv", tmp_path / "plain"], capture_output=True, text=True, check=False)
    assert "No module named venv" in plain.stderr
    command = [str(tiny_index.uv_program()), "venv", "--no-project", "--python", str(python), str(tmp_path / "env")]
    settings = {"PATH": os.defpath, "UV_PYTHON_DOWNLOADS": "never", "UV_CACHE_DIR": str(tmp_path / "cache")}
    made = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    asked = [
        tmp_path / "env/bin/python",
        "-I",
        "-c",
        "import sys; print(sys.prefix != sys.base_prefix, sys.base_prefix)",
    ]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    assert said == ["True", str(tmp_path / "system")]
