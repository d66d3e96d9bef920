# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's table as the last thing of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_summary
type: aggregate
short_description: End a run with the fleet's table
version_added: 0.1.0
description:
  - Prints the table of M(gpufleet.workstation.report), or the text of M(gpufleet.workstation.compliance), as the last thing of a run, below
    Ansible's own recap.
  - Where a whole batch is lost on the way, Ansible stops before the report; this callback then prints what was learned until there.
  - Prints nothing where the collection's playbooks were not used.
requirements:
  - Enabled in C(callbacks_enabled) of ansible.cfg, as it is in a checkout of the collection.
"""

from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.build import host_row, result_text

_ACTIONS = {
    "gpufleet.workstation.plan": "planned",
    "gpufleet.workstation.cuda_verify": "proof",
}
_REPORT = "gpufleet.workstation.report"
_COMPLIANCE = "gpufleet.workstation.compliance"


class CallbackModule(CallbackBase):
    """Collects the results of the collection's own tasks."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "gpufleet.workstation.fleet_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._hosts: dict[str, dict[str, Any]] = {}
        self._table: str | None = None
        self._reports = False

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """See whether the playbook is one that ends with a report; plan, rollback and remove do not."""
        blocks = [block for play in playbook.get_plays() for block in play.tasks]
        self._reports = self._reports or any(_has_report(block) for block in blocks)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Remember a plan or a proof."""
        action = result.task.action
        if action == _REPORT:
            self._table = result.result.get("table") or self._table
        elif action == _COMPLIANCE:
            self._read_compliance(result.result)
        elif action in _ACTIONS:
            self._remember(result, _ACTIONS[action])

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Remember why a host failed, or what the verdict on the fleet is."""
        if result.task.action == _COMPLIANCE:
            self._read_compliance(result.result)
        if result.task.action in _ACTIONS:
            self._remember(result, _ACTIONS[result.task.action])
        if result.host.name in self._hosts and not ignore_errors:
            self._hosts[result.host.name]["failed"] = f"{result.task.name}: {result.result.get('msg', 'no message')}"

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Remember that a host did not answer, or no longer does."""
        if result.task.action in _ACTIONS or result.host.name in self._hosts:
            state = self._hosts.setdefault(result.host.name, {})
            state["planned"] = {"unreachable": True, "msg": result.result.get("msg")}

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the table, of the report or of what is known without it."""
        if self._table is not None:
            self._display.display("\n" + self._table + "\n")
        elif self._hosts and self._reports:
            check_mode = bool(context.CLIARGS.get("check"))
            rows = [host_row(name, state, check_mode) for name, state in sorted(self._hosts.items())]
            self._display.display("\nThe run ended before its report. What was learned until then:\n")
            self._display.display(result_text(rows) + "\n")

    def _remember(self, result: Any, key: str) -> None:
        self._table = None  # that of a playbook before this one is no longer true
        state = self._hosts.setdefault(result.host.name, {})
        state[key] = dict(result.result)
        plan = state[key].get("plan")
        if isinstance(plan, dict):
            state["required_level"] = (plan.get("proof") or {}).get("required_level")

    def _read_compliance(self, result: Any) -> None:
        """Take the text of the report that was written; where none could be, the action has printed it."""
        path = (result.get("reports") or {}).get("report.txt")
        if path:
            self._table = Path(path).read_text(encoding="utf-8").rstrip("\n")


def _has_report(task: Any) -> bool:
    """Whether a task, or one within a block, prints the table."""
    for part in ("block", "rescue", "always"):
        if any(_has_report(inner) for inner in getattr(task, part, None) or ()):
            return True
    return getattr(task, "action", None) == _REPORT and task.args.get("show", "outcome") == "outcome"
