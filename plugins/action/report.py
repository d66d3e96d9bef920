# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the fleet's plan or its outcome, and remember what is ready: reads what the run registered, asks no host anything."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import (
    host_row,
    plan_groups,
    plan_text,
    result_text,
)
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import document as documents
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import history

display = Display()

SUMMARY_CALLBACK = "gpufleet.workstation.fleet_summary"
"""Where it is enabled, it prints the table after everything else, and this action leaves that to it."""

_REGISTERED = {"planned": "gpufleet_host", "after": "gpufleet_after", "proof": "gpufleet_proof"}


class ActionModule(ActionBase):
    """The task ``gpufleet.workstation.report``."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print the plan or the table for every host of the play, and return it as data."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        result["changed"] = False
        show = self._task.args.get("show", "outcome")
        if show not in ("plan", "outcome"):
            return {**result, "failed": True, "msg": f"show is {show!r}; it has to be plan or outcome."}
        hosts = list(task_vars.get("ansible_play_hosts_all") or [])
        hostvars = task_vars["hostvars"]
        width = max(80, min(160, shutil.get_terminal_size((120, 24)).columns))
        if show == "plan":
            plans = {host: _plain(hostvars[host].get("gpufleet_host")) for host in hosts}
            groups = plan_groups(plans)
            display.display("\n" + plan_text(plans, width) + "\n")
            return {**result, "groups": groups, "disruptive": any(group["disruptive"] for group in groups)}
        served = set(task_vars.get("ansible_play_hosts") or [])
        states = {host: _state(hostvars[host], host not in served) for host in hosts}
        rows = [host_row(host, state, self._task.check_mode) for host, state in states.items()]
        if not self._task.check_mode:
            self._remember({row["host"]: states[row["host"]] for row in rows if row["ready"]}, task_vars)
        table = result_text(rows, width)
        if SUMMARY_CALLBACK not in constants.config.get_config_value("CALLBACKS_ENABLED"):
            display.display("\n" + table + "\n")
        return {**result, "hosts": {row["host"]: row for row in rows}, "table": table}

    def _remember(self, ready: dict[str, dict[str, Any]], task_vars: dict[str, Any]) -> None:
        """Keep what the hosts are like now, for compliance to tell what changed since. Without it the run is no worse."""
        now = datetime.now(timezone.utc).replace(microsecond=0)
        facts = {}
        for host, state in ready.items():
            latest = state["after"] if state["after"].get("observation") else state["planned"]
            facts[host] = documents.facts(documents.build(host, {"planned": latest}, [], now, state["required_level"]))
        places = {name: self._templar.template(task_vars.get(name)) for name in locks.PLACES}
        try:
            history.record_provisioned(history.folder_for(places), facts, now.strftime("%Y-%m-%dT%H:%M:%SZ"))
        except history.NotKept as error:
            display.warning(f"Compliance will not be able to tell what changed since this run: {error}")


def _state(variables: Any, lost: bool) -> dict[str, Any]:
    state = {key: _plain(variables.get(name)) for key, name in _REGISTERED.items()}
    proof = state["planned"].get("plan", {}).get("proof", {})
    return {
        **state,
        "failed": str(variables.get("gpufleet_failed") or ""),
        "pending": _plain(variables.get("nvidia_driver_pending")),
        "lost": lost,
        "held_back": variables.get("gpufleet_held_back") is True,
        "required_level": proof.get("required_level"),
        "note": str(variables.get("gpufleet_note") or ""),
    }


def _plain(value: Any) -> dict[str, Any]:
    """Return ``value`` as plain JSON types: registered results are lazily templated containers."""
    return json.loads(json.dumps(value)) if isinstance(value, dict) else {}
