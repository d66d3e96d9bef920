# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the locks of all environments of the play's hosts anew, each once."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks

display = Display()


class ActionModule(ActionBase):
    """The task ``gpufleet.workstation.lock``."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resolve each environment and platform once; print what changes and return it."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        hostvars = task_vars["hostvars"]
        folder = locks.folder_for({name: self._templar.template(task_vars.get(name)) for name in locks.PLACES})
        specs: dict[str, dict[str, Any]] = {}
        for host in task_vars.get("ansible_play_hosts") or []:
            plan = json.loads(json.dumps(hostvars[host].get("gpufleet_host") or {})).get("plan") or {}
            for item in plan.get("environments") or []:
                specs.setdefault(lock.file_name(item["spec"]), item)
        changes: dict[str, list[str]] = {}
        problems = []
        for name, item in sorted(specs.items()):
            try:
                locked = locks.ensure(item, folder, upgrade=True, write=not self._task.check_mode)
            except locks.NoLock as error:
                problems.append(f"{name}: {error}")
                continue
            changes[str(locked.path)] = locked.changes
            display.display(f"\n{locked.path}\n" + "".join(f"  {line}\n" for line in locked.changes or ["unchanged"]))
        result.update(changed=any(changes.values()), locks=changes)
        if problems:
            result.update(failed=True, msg="; ".join(problems))
        elif not specs:
            result.update(
                failed=True, msg="No host of this play has a plan with an environment: see the refusals above."
            )
        return result
