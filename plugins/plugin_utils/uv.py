# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The pinned uv on the controller: fetched once, verified, run by the controller and sent to hosts."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import tool
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import ReleaseError

DOWNLOAD_LIMIT = 600
"""Seconds that pip may take for one wheel of 17 MB."""


class NoUv(Exception):
    """uv cannot be had on the controller. The text says why and what to do."""


def cache_directory() -> Path:
    """Where the controller keeps what it fetched."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpufleet"


def wheel_for(architecture: str, given: str = "") -> Path:
    """The pinned wheel for an architecture: the file that the user names, else the cached one. Raises NoUv."""
    wheel = tool.WHEELS.get(architecture)
    if wheel is None:
        known = ", ".join(sorted(tool.WHEELS))
        raise NoUv(f"No uv is known for the architecture {architecture!r}; supported are {known}.")
    return given_wheel(Path(given).expanduser(), wheel) if given else cached_wheel(cache_directory(), wheel)


def program() -> str:
    """Path of the pinned uv that runs on the controller itself. Raises NoUv."""
    tools = cache_directory() / "tools"
    ready = tool.installed(str(tools))
    if not os.access(ready, os.X_OK):
        architecture = platform.machine()
        wheel = wheel_for(architecture)
        try:
            return tool.unpack(str(wheel), tool.WHEELS[architecture], str(tools))
        except ReleaseError as error:
            raise NoUv(f"The controller cannot unpack uv: {error}") from error
    return ready


def given_wheel(path: Path, wheel: tool.Wheel) -> Path:
    """Return a wheel that the user supplies, if it is the pinned one. Raises NoUv."""
    advice = f"torch_env_uv_wheel has to name an unchanged {wheel.file} on the controller."
    try:
        found = tool.sha256_of(str(path))
    except OSError as error:
        raise NoUv(f"The uv wheel {path} cannot be read: {error.strerror}. {advice}") from error
    if found != wheel.sha256:
        raise NoUv(f"The uv wheel {path} has the sha256 {found} instead of {wheel.sha256}. {advice}")
    return path


def cached_wheel(directory: Path, wheel: tool.Wheel) -> Path:
    """Return the pinned wheel from the controller's cache, which pip fills on the first call. Safe with many forks. Raises NoUv."""
    path = directory / wheel.file
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / ".lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists() or tool.sha256_of(str(path)) != wheel.sha256:
                _download(directory, wheel)
    except OSError as error:
        raise NoUv(
            f"The controller cannot keep uv in {directory}: {error.strerror}. "
            f"Make it writable, or name the file {wheel.file} in torch_env_uv_wheel."
        ) from error
    return path


def _download(directory: Path, wheel: tool.Wheel) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"uv=={tool.UV_VERSION} --hash=sha256:{wheel.sha256}\n", encoding="ascii")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command += ["--platform", wheel.platform, "--dest", scratch, "--requirement", str(requirements)]
        command += ["--no-input", "--disable-pip-version-check", "--quiet"]
        advice = f"Fetch {wheel.file} elsewhere and name it in torch_env_uv_wheel."
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_LIMIT)
        except subprocess.TimeoutExpired as error:
            raise NoUv(f"pip on the controller took longer than {DOWNLOAD_LIMIT} s to fetch uv. {advice}") from error
        fetched = Path(scratch) / wheel.file
        if done.returncode != 0 or not fetched.exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
            said = " ".join(lines or done.stderr.splitlines()[-3:]) or "nothing"
            raise NoUv(f"pip on the controller could not fetch uv {tool.UV_VERSION}; it says: {said} {advice}")
        fetched.replace(directory / wheel.file)
