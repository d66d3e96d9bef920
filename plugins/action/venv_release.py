# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run venv_release on the host, and bring uv there when the host says that it needs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import uv

MODULE = "gpufleet.workstation.venv_release"
_GOES_ON = "A build that has begun goes on there. Run again: that follows it, or finds it done."

PATIENCE = 120
"""Seconds for which a host may be out of reach."""
RETRY = 5
"""Seconds between two tries to reach it."""

display = Display()


def describe(progress: dict[str, Any]) -> str:
    """How far a build is, in a line."""
    parts = [f"{progress['step']} ({progress['seconds']} s since the beginning)"]
    if progress["bytes_done"] is not None:
        parts.append(f"{_megabytes(progress['bytes_done'])} of about {_megabytes(progress['bytes_total'])} MB")
    if progress["rate"] is not None:
        parts.append(f"{_megabytes(progress['rate'])} MB/s")
    return f"building {progress['release']}: {', '.join(parts)}"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.0f}" if number >= 1e7 else f"{number / 1e6:.1f}"


class ActionModule(ActionBase):
    """The task ``gpufleet.workstation.venv_release``."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; only a host that has to build and has no uv yet costs a transfer and a second execution."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        answer = self._follow(arguments, task_vars)
        if answer.get("uv_needed"):
            local = self._wheel(arguments, task_vars)
            directory = self._connection._shell.tmpdir or self._make_tmp_path()
            remote = self._connection._shell.join_path(directory, local.name)
            self._transfer_file(str(local), remote)
            self._fixup_perms2((directory, remote))
            arguments["uv_archive"] = remote
            answer = self._follow(arguments, task_vars)
        return {**result, **answer}

    def _follow(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Execute the module, again while it says that a build goes on, and show how far that is."""
        host = task_vars.get("inventory_hostname", "this host")
        answer = self._patiently(arguments, task_vars)
        warnings = list(answer.get("warnings") or [])
        while answer.get("running"):
            display.display(f"{host}: {arguments.get('name')}: {describe(answer['progress'])}")
            answer = self._patiently({**arguments, "follow": answer["follow"]}, task_vars)
            warnings += answer.get("warnings") or []
        return {**answer, "warnings": warnings} if warnings else answer

    def _patiently(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        """Execute the module, again where the connection drops: a build minds that not, and an execution finds what one before it began."""
        deadline = time.monotonic() + PATIENCE
        while True:
            lost = None
            answer: dict[str, Any] = {}
            try:
                answer = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
                problem = str(answer.get("msg")) if answer.get("unreachable") else None
            except AnsibleConnectionFailure as error:
                lost, problem = error, str(error)
            if problem is None:
                return answer
            said = f"{problem.rstrip('.: ')}. {_GOES_ON}"
            if time.monotonic() >= deadline:
                if lost:
                    raise AnsibleConnectionFailure(said) from lost
                return {**answer, "msg": said}
            display.display(
                f"{task_vars.get('inventory_hostname', 'this host')}: {problem.rstrip('.: ')}. Trying again."
            )
            time.sleep(RETRY)

    def _wheel(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> Path:
        """The pinned wheel for the host's architecture, on the controller."""
        architecture = str((arguments.get("spec") or {}).get("arch"))
        try:
            return uv.wheel_for(architecture, str(arguments.get("uv_wheel") or ""))
        except uv.NoUv as error:
            raise AnsibleActionFail(f"{task_vars.get('inventory_hostname', 'this host')}: {error}") from error
