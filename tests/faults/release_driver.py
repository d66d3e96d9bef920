#!/usr/bin/env python3
"""Bring one environment of tiny wheels to a release, as the module does; the tests kill this process and what it starts.

Takes a JSON object: request (fields of Request; layout as [root, name]), uv, state, and what shall go wrong:

    die_in, die_after   name of a step in which this process kills itself, before the step's work or after it; "remove_tree" is the moment
                        at which a release that is pruned has lost its stamp, and not yet its files
    squeeze             {step, kind, root, relief}: before that step the file system of root, a tmpfs, is left without "space" or "inodes";
                        after it the file system gets the mount options relief, if any
    clock               seconds by which this process's clock is off (simulated: uv and the kernel keep the right time)
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import store
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import (
    Layout,
    ReleaseError,
    Request,
    check_root,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Account
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.release import Host, Operation

LEFT_KIB, LEFT_INODES = 24, 1


class Mortal(Operation):
    """An operation that something happens to in a step."""

    die_in = ""
    die_after = False
    squeeze: dict[str, str] | None = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """As usual, with the fault before or after the work."""
        with super().step(name):
            if name == self.die_in and not self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            with squeezed(self.squeeze) if self.squeeze and self.squeeze["step"] == name else contextlib.nullcontext():
                yield
            if name == self.die_in:
                os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def squeezed(how: dict[str, str]) -> Iterator[None]:
    """Leave little room in a file system, for a while or for good."""
    leave_little(how["root"], how["kind"])
    try:
        yield
    finally:
        if how.get("relief"):
            subprocess.run(["mount", "-o", f"remount,{how['relief']}", how["root"]], check=True)


def leave_little(root: str, kind: str) -> None:
    """Shrink a tmpfs to what it holds and a little more, as if a neighbour had filled the disk."""
    now = os.statvfs(root)
    used = (now.f_blocks - now.f_bfree) * now.f_frsize // 1024
    room = {"space": f"size={used + LEFT_KIB}k", "inodes": f"nr_inodes={now.f_files - now.f_ffree + LEFT_INODES}"}
    subprocess.run(["mount", "-o", f"remount,{room[kind]}", root], check=True)


def turn_clock(seconds: float) -> None:
    """Let this process believe in another time."""
    right, calendar = time.time, time.gmtime
    time.time = lambda: right() + seconds
    time.gmtime = lambda moment=None: calendar(time.time() if moment is None else moment)


def main() -> int:
    """Run; print the result or the failure as JSON."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    os.umask(0o022)
    turn_clock(asked["clock"])
    if asked["die_in"] == "remove_tree":
        store.remove_tree = lambda _path: os.kill(os.getpid(), signal.SIGKILL)
    nobody = pwd.getpwnam("nobody")
    host = Host(
        account=lambda: Account("nobody", nobody.pw_uid, nobody.pw_gid),
        uv=lambda: asked["uv"],
        prove=runner.run_checks,
        now=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    try:
        root, name = asked["request"]["layout"]
        request = Request(**{**asked["request"], "layout": Layout(check_root(root), name)})
        operation = Mortal(request, host)
        operation.die_in, operation.die_after = asked["die_in"], asked["die_after"]
        operation.squeeze = asked["squeeze"]
        result = getattr(operation, asked["state"])()
    except ReleaseError as error:
        print(json.dumps({"error": str(error), "step": error.step}))
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
