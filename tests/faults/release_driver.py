#!/usr/bin/env python3
"""Bring one environment of tiny wheels to a release, as the module does; the tests kill this process.

Takes a JSON object: request (fields of Request; layout as [root, name]), uv, state, die_in (name of a step in which this
process kills itself, before the step's work or, with die_after, after it).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import Layout, ReleaseError, Request
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Account
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.release import Host, Operation


class Mortal(Operation):
    """An operation that dies in a step."""

    die_in = ""
    die_after = False

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """As usual, with SIGKILL before or after the work."""
        with super().step(name):
            if name == self.die_in and not self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield
            if name == self.die_in:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Run; print the result or the failure as JSON."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    os.umask(0o022)
    request = Request(**{**asked["request"], "layout": Layout(*asked["request"]["layout"])})
    nobody = pwd.getpwnam("nobody")
    host = Host(
        account=lambda: Account("nobody", nobody.pw_uid, nobody.pw_gid),
        uv=lambda: asked["uv"],
        prove=runner.run_checks,
        now=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    operation = Mortal(request, host)
    operation.die_in = asked.get("die_in", "")
    operation.die_after = asked.get("die_after", False)
    try:
        result = getattr(operation, asked.get("state", "present"))()
    except ReleaseError as error:
        print(json.dumps({"error": str(error), "step": error.step}))
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
