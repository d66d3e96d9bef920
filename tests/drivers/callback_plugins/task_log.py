# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write every result of a run to a file, one JSON object a line, so that tests need not read what is printed for people."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_log
type: notification
short_description: Write every result to the file that GPUFLEET_TASK_LOG names
description: For the tests of this collection.
"""
KEPT = ("changed", "msg", "done", "transaction", "kernels", "generation", "restored", "plan", "hosts", "warnings")


class CallbackModule(CallbackBase):
    """One line for each result, and one with the counts of every host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "task_log"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, line: dict[str, Any]) -> None:
        with open(os.environ["GPUFLEET_TASK_LOG"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def _result(self, result: Any, status: str, ignored: bool = False) -> None:
        values = {key: result.result[key] for key in KEPT if key in result.result}
        task = {
            "host": result.host.get_name(),
            "task": result.task.get_name(),
            "action": result.task.action,
            "ignored": ignored,
        }
        self._write({**task, "status": status, "result": values})

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task that succeeded."""
        self._result(result, "changed" if result.result.get("changed") else "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task that failed, rescued or not."""
        self._result(result, "failed", bool(ignore_errors))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host that was lost."""
        self._result(result, "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The recap."""
        self._write({"stats": {host: stats.summarize(host) for host in stats.processed}})
