# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run venv_release on the host, and bring uv there when the host says that it needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import uv

MODULE = "gpufleet.workstation.venv_release"


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
        architecture = str((arguments.get("spec") or {}).get("arch"))
        try:
            return uv.wheel_for(architecture, str(arguments.get("uv_wheel") or ""))
        except uv.NoUv as error:
            raise AnsibleActionFail(f"{task_vars.get('inventory_hostname', 'this host')}: {error}") from error
