# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run venv_release on the host, and bring uv there when the host says that it needs it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.tool import (
    UV_VERSION,
    WHEELS,
    Wheel,
    sha256_of,
)

MODULE = "gpufleet.workstation.venv_release"
DOWNLOAD_LIMIT = 600
"""Seconds that pip may take for one wheel of 17 MB."""


class ActionModule(ActionBase):
    """The task ``gpufleet.workstation.venv_release``."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; only a host that has to build and has no uv yet costs a transfer and a second execution."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        answer = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        if answer.get("uv_needed"):
            local = self._wheel(arguments, task_vars)
            directory = self._connection._shell.tmpdir or self._make_tmp_path()
            remote = self._connection._shell.join_path(directory, local.name)
            self._transfer_file(str(local), remote)
            self._fixup_perms2((directory, remote))
            arguments["uv_archive"] = remote
            answer = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        return {**result, **answer}

    def _wheel(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Path:
        """The pinned wheel for the host's architecture, on the controller."""
        host = task_vars.get("inventory_hostname", "this host")
        architecture = (arguments.get("spec") or {}).get("arch")
        wheel = WHEELS.get(str(architecture))
        if wheel is None:
            raise AnsibleActionFail(
                f"{host}: no uv is known for the architecture {architecture!r}; supported are {', '.join(sorted(WHEELS))}."
            )
        given = arguments.get("uv_wheel")
        return given_wheel(Path(given).expanduser(), wheel) if given else cached_wheel(cache_directory(), wheel)


def cache_directory() -> Path:
    """Where the controller keeps what it fetched."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpufleet"


def given_wheel(path: Path, wheel: Wheel) -> Path:
    """Return a wheel that the user supplies, if it is the pinned one."""
    advice = f"torch_env_uv_wheel has to name an unchanged {wheel.file} on the controller."
    try:
        found = sha256_of(str(path))
    except OSError as error:
        raise AnsibleActionFail(f"The uv wheel {path} cannot be read: {error.strerror}. {advice}") from error
    if found != wheel.sha256:
        raise AnsibleActionFail(f"The uv wheel {path} has the sha256 {found} instead of {wheel.sha256}. {advice}")
    return path


def cached_wheel(directory: Path, wheel: Wheel) -> Path:
    """Return the pinned wheel from the controller's cache, which pip fills on the first call. Safe with many forks."""
    path = directory / wheel.file
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / ".lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists() or sha256_of(str(path)) != wheel.sha256:
                _download(directory, wheel)
    except OSError as error:
        raise AnsibleActionFail(
            f"The controller cannot keep uv in {directory}: {error.strerror}. "
            f"Make it writable, or name the file {wheel.file} in torch_env_uv_wheel."
        ) from error
    return path


def _download(directory: Path, wheel: Wheel) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"uv=={UV_VERSION} --hash=sha256:{wheel.sha256}\n", encoding="ascii")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command += ["--platform", wheel.platform, "--dest", scratch, "--requirement", str(requirements)]
        command += ["--no-input", "--disable-pip-version-check", "--quiet"]
        advice = f"Fetch {wheel.file} elsewhere and name it in torch_env_uv_wheel."
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_LIMIT)
        except subprocess.TimeoutExpired as error:
            raise AnsibleActionFail(
                f"pip on the controller took longer than {DOWNLOAD_LIMIT} s to fetch uv. {advice}"
            ) from error
        fetched = Path(scratch) / wheel.file
        if done.returncode != 0 or not fetched.exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
            said = " ".join(lines or done.stderr.splitlines()[-3:]) or "nothing"
            raise AnsibleActionFail(f"pip on the controller could not fetch uv {UV_VERSION}; it says: {said} {advice}")
        fetched.replace(directory / wheel.file)
