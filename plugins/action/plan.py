# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe a host and plan it: one remote execution, then pure functions on the controller."""

from __future__ import annotations

import json
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_version
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import (
    observation_request,
    urls_to_ask,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import INPUT_REFUSALS, resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import clean
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.variables import (
    InvalidVariables,
    desired_state,
    wanted_steps,
)

MINIMUM_ANSIBLE = (2, 19)

# Ansible loads this before it forks a worker for each host: what is read and worked out only once is then there for all of them.
resolve(
    {"os": {"id": "debian", "version_id": "12", "arch": "x86_64"}, "gpus": [{"pci_device_id": "2f04"}]},
    json.loads(json.dumps(desired_state({}, lambda value: value, wanted_steps([], [], None)))),
)


class ActionModule(ActionBase):
    """The task ``gpufleet.workstation.plan``."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the observation and the plan; in check mode ``changed`` and ``diff`` predict the apply."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        result["changed"] = False
        problem = self._unusable()
        if problem:
            return {**result, "failed": True, "msg": problem}
        try:
            desired = self._desired(task_vars)
            request = observation_request(desired)
        except (InvalidDesired, InvalidVariables) as error:
            return {**result, **_stop_the_run(task_vars, str(error))}
        observed = self._execute_module("gpufleet.workstation.gpu_info", module_args=request, task_vars=task_vars)
        if "observation" not in observed:
            return self._told({**result, "observation": {}, "plan": _unobserved(observed)})
        observation = observed["observation"]
        plan = self._resolve(observation, desired, task_vars)
        urls = [] if self._compact() else urls_to_ask(plan)
        if urls:  # only where something will be downloaded: a converged host is asked once
            request = {**request, "urls": urls}
            observed = self._execute_module("gpufleet.workstation.gpu_info", module_args=request, task_vars=task_vars)
            observation = observed.get("observation", observation)
            plan = self._resolve(observation, desired, task_vars)
        wrong = [f"{item['reason']}. {item['remedy']}" for item in plan["refusals"] if item["code"] in INPUT_REFUSALS]
        if wrong:
            return {**result, **_stop_the_run(task_vars, " ".join(wrong))}
        result.update(observation=observation, plan=plan)
        changes = [action for action in plan["actions"] if action["step"] != "proof"]
        if self._task.check_mode:
            result["changed"] = bool(changes)
        if self._task.diff:
            result["diff"] = [_diff(action) for action in changes]
        return self._told(result)

    def _compact(self) -> bool:
        return boolean(self._task.args.get("compact", False))

    def _told(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the result, in one text where that is asked for: Ansible copies every value of a result several times."""
        if not self._compact():
            return result
        text = json.dumps({key: result.pop(key) for key in ("observation", "plan")})
        return {**result, "compact": text}

    def _resolve(
        self, observation: dict[str, Any], desired: dict[str, Any], task_vars: dict[str, Any]
    ) -> dict[str, Any]:
        """Plan with the locks of the host's environments; what has to be built and has none yet gets one."""
        plan = resolve(observation, desired)
        if "torch" not in plan["steps"]:
            return plan
        folder = locks.folder_for({name: self._templar.template(task_vars.get(name)) for name in locks.PLACES})
        try:
            found = {item["name"]: locks.existing(item["spec"], folder) for item in plan["environments"]}
            if any(found.values()):
                plan = resolve(observation, {**desired, "locks": _texts(found)})
            makes_locks = boolean(self._task.args.get("make_locks", True)) and not self._task.check_mode
            if makes_locks and plan["feasible"]:
                missing = [item for item in plan["environments"] if _is_built(item) and not found[item["name"]]]
                for item in missing:
                    found[item["name"]] = locks.ensure(item, folder)
                if missing:
                    plan = resolve(observation, {**desired, "locks": _texts(found)})
        except locks.NoLock as error:
            return {**plan, "feasible": False, "actions": [], "refusals": [*plan["refusals"], _no_lock(error)]}
        for item in plan["environments"]:
            locked = found[item["name"]]
            item["lock_file"] = str(locked.path) if locked else None
        return plan

    def _unusable(self) -> str | None:
        if tuple(int(part) for part in ansible_version.split(".")[:2]) < MINIMUM_ANSIBLE:
            return f"ansible-core {ansible_version} is too old: gpufleet.workstation needs 2.19 or newer."
        if self._task.delegate_to:
            return "gpufleet.workstation.plan cannot be delegated: it would plan one host from another host's hardware."
        unknown = sorted(set(self._task.args) - {"steps", "make_locks", "compact"})
        if unknown:
            return f"gpufleet.workstation.plan takes no {', '.join(unknown)}; its options are steps, make_locks and compact."
        return None

    def _desired(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        asked = self._task.args.get("steps")
        steps = wanted_steps(
            list(task_vars.get("ansible_run_tags") or []),
            list(task_vars.get("ansible_skip_tags") or []),
            None if asked is None else list(asked),
        )
        desired = desired_state(task_vars, self._templar.template, steps)
        return json.loads(json.dumps(desired))  # plain types: no lazily templated containers past this point


def _texts(found: dict[str, locks.Locked | None]) -> dict[str, str]:
    return {name: locked.text for name, locked in found.items() if locked}


def _is_built(environment: dict[str, Any]) -> bool:
    return any(action["id"].startswith("torch.build:") for action in environment["actions"])


def _no_lock(error: locks.NoLock) -> dict[str, Any]:
    remedy = (
        "A controller that reaches the indexes can make the locks (playbooks/lock.yml); keep them with the inventory."
    )
    return {"code": "lock", "gpu": None, "reason": f"an environment cannot be locked: {error}", "remedy": remedy}


def _stop_the_run(task_vars: dict[str, Any], problem: str) -> dict[str, Any]:
    """Fail the task for a value that no host can have: the play stops before any host changes."""
    message = f"{task_vars.get('inventory_hostname')}: {clean(problem).rstrip('.')}. Nothing was changed on any host."
    return {"failed": True, "msg": message}


def _unobserved(observed: dict[str, Any]) -> dict[str, Any]:
    cause = str(observed.get("msg") or "gpu_info gave no answer").strip()
    stderr = str(observed.get("module_stderr") or "").strip()
    if stderr:  # of a shell the first line says it, of Python the last
        cause = f"{cause} ({stderr.splitlines()[-1 if 'Traceback' in stderr else 0]})"
    refusal = {
        "code": "unobserved",
        "gpu": None,
        "reason": f"the host could not be observed: {cause}",
        "remedy": "Check the become password (-K), sudo, and that the host's Python (ansible_python_interpreter) is 3.9 or newer; "
        "nothing was changed on it.",
    }
    return {"feasible": False, "refusals": [refusal], "actions": [], "environments": [], "steps": []}


def _diff(action: dict[str, Any]) -> dict[str, str]:
    content = (action.get("data") or {}).get("content")
    after = content if isinstance(content, str) else f"{action['what']}\n"
    return {
        "before_header": f"{action['id']} (now)",
        "after_header": f"{action['id']} (planned: {clean(action['why'])})",
        "before": "",
        "after": hide_credentials(after),
    }
