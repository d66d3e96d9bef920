# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run wheel_store on the host with the locks of the controller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks

MODULE = "gpufleet.workstation.wheel_store"


class ActionModule(ActionBase):
    """The task ``gpufleet.workstation.wheel_store``."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read the locks, then run the module; nothing is executed on the host where one of them is none."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state", "present") == "present":
            arguments["lock_texts"] = _texts(_paths(arguments.get("locks") or [], self._folder(task_vars)))
        return {**result, **self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)}

    def _folder(self, task_vars: Mapping[str, Any]) -> Path:
        """Where the inventory's locks lie; the implicit localhost belongs to the inventory that the run was given."""
        variables = {name: self._templar.template(task_vars.get(name)) for name in locks.PLACES}
        sources = task_vars.get("ansible_inventory_sources") or []
        if not variables["inventory_dir"] and sources:
            first = Path(str(sources[0]))
            variables["inventory_dir"] = first if first.is_dir() else first.parent
        return locks.folder_for(variables)


def _paths(given: list[str], folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in [Path(entry).expanduser() for entry in given] or [folder]:
        # Beside each lock lie files for other tools, in a folder of its name.
        below = [entry for pattern in ("torch-*.txt", "*/torch-*.txt") for entry in sorted(path.glob(pattern))]
        found += [path] if given and not path.is_dir() else below
    if not found:
        raise AnsibleActionFail(
            f"There is no lock in {', '.join(given) or folder}: make the locks first, with playbooks/lock.yml and the URLs of the "
            "real indexes."
        )
    return found


def _texts(paths: list[Path]) -> list[str]:
    texts = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            lock.parse(text)
        except (OSError, UnicodeError, lock.InvalidLock) as error:
            raise AnsibleActionFail(f"The lock {path} cannot be used: {error}. Nothing was changed.") from None
        texts.append(text)
    return texts
