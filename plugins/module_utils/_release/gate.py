# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: what a release that is built and stamped has to pass before it may become current.

The user's own smoke command, and the proof on this host's GPUs where the user wants that one to decide.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import tempfile
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import (
    SYSTEM_PATH,
    Layout,
    ReleaseError,
    Request,
    hide_credentials,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Account, Ended, run_as

_SHOWN_LINES = 10
_STALE_DRIVER = "cuda_803"
"""The loaded driver is not the installed one: a reboot mends that, and no other release would fare better."""


def run_smoke(request: Request, release_id: str, account: Account) -> None:
    """Run the smoke command in a release, as ``account``; raises ReleaseError where it does not succeed in time."""
    words = " ".join(shlex.quote(word) for word in request.smoke)
    release = request.layout.release(release_id)
    directory = tempfile.mkdtemp(prefix="gpufleet-smoke-", dir="/tmp")
    environment = {
        **_runtime_variables(request.layout),
        **request.variables,
        "PATH": f"{release}/bin:{SYSTEM_PATH}",
        "VIRTUAL_ENV": release,
        "HOME": directory,
        "TMPDIR": directory,
        "USER": account.name,
        "LOGNAME": account.name,
        "LANG": "C.UTF-8",
    }
    try:
        os.chown(directory, account.uid, account.gid)
        ended = run_as(
            account,
            request.smoke,
            environment=environment,
            directory=directory,
            time_limit=request.proof_time_limit,
            groups=os.getgrouplist(account.name, account.gid),
        )
        problem = _problem(ended, request.proof_time_limit)
    except OSError as error:
        problem = f"cannot be started: {error.strerror or error}"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if problem is not None:
        raise ReleaseError(
            "run the smoke command",
            f"{words}, as {account.name} in {release_id}, {problem}",
            "Mend the command (smoke) or what it found, then run again: this release is kept and only tried again.",
            staged=release_id,
        )


def _problem(ended: Ended, time_limit: float) -> str | None:
    """What is wrong with how the command ended, with what it said last."""
    if ended.timed_out:
        problem = f"was killed at its time limit of {time_limit:.0f} s"
    elif ended.returncode < 0:
        problem = f"was ended by {signal.Signals(-ended.returncode).name}"
    elif ended.returncode > 0:
        problem = f"ended with status {ended.returncode}"
    else:
        return None
    lines = [line.rstrip() for line in ended.output.splitlines() if line.strip()][-_SHOWN_LINES:]
    said = "".join(char if char.isprintable() else " " for char in hide_credentials(" | ".join(lines)))
    return f"{problem}. It said last: {said}" if said else f"{problem} and said nothing"


def _runtime_variables(layout: Layout) -> dict[str, str]:
    """The variables of runtime.env, which root wrote; none before the first run has written it."""
    try:
        with open(os.path.join(layout.home, "runtime.env"), encoding="utf-8", errors="surrogateescape") as file:
            pairs = [line.strip().partition("=") for line in file]
    except FileNotFoundError:
        return {}
    return {name: value for name, equals, value in pairs if equals and name and not name.startswith("#")}


def waits_for(proof: t.Mapping[str, t.Any]) -> dict[str, str] | None:
    """Why a release that is statically proven has to wait for its quick proof; None where the proof says what it says.

    A busy GPU, none that runs, or a driver that is not the installed one says nothing of the release.
    """
    if proof.get("proven") != "static":
        return None
    failed = {
        check.get("code")
        for part in (proof, *(proof.get("gpus") or []))
        for check in part.get("checks") or []
        if check.get("status") == "failed"
    }
    if proof.get("verdict") != "not_run" and failed != {_STALE_DRIVER}:
        return None
    return {key: str(proof.get(key) or "").rstrip(".") for key in ("reason", "remedy")}
