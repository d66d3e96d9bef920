# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run wheel_store on the host with the locks of the controller."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks

MODULE = "gpufleet.workstation.wheel_store"
# pip has no command that tells its default index; what an option's default became is its configuration, its environment or that.
_ASK_PIP = (
    "from pip._internal.commands import create_command; print(create_command('download').parse_args([])[0].index_url)"
)


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
            if arguments.get("source", "index") == "index" and not arguments.get("package_index_url"):
                arguments["package_index_url"] = _package_index()
        return {**result, **self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)}

    def _folder(self, task_vars: Mapping[str, Any]) -> Path:
        """Where the inventory's locks lie; the implicit localhost belongs to the inventory that the run was given."""
        variables = {name: self._templar.template(task_vars.get(name)) for name in locks.PLACES}
        sources = task_vars.get("ansible_inventory_sources") or []
        if not variables["inventory_dir"] and sources:
            first = Path(str(sources[0]))
            variables["inventory_dir"] = first if first.is_dir() else first.parent
        return locks.folder_for(variables)


def _package_index() -> str:
    """The index that pip on the controller asks: the one it is configured for, else its own default."""
    command = [sys.executable, "-I", "-c", _ASK_PIP]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)
    url = done.stdout.strip()
    if done.returncode != 0 or not url.startswith(("http://", "https://", "file://")):
        raise AnsibleActionFail(
            "pip on the controller does not tell which package index it uses. Name one in wheel_mirror_package_index_url."
            " Nothing was changed."
        )
    return url


def _paths(given: list[str], folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in [Path(entry).expanduser() for entry in given] or [folder]:
        below = [entry for pattern in ("torch-*.txt", "*/torch-*.txt") for entry in sorted(path.glob(pattern))]
        found += [path] if given and not path.is_dir() else below
    if not found:
        raise AnsibleActionFail(
            f"There is no lock in {', '.join(given) or folder}: make the locks first, with playbooks/lock.yml."
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
