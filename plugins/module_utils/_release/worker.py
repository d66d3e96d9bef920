# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the process that builds, detached from who asked for it (jobs.py), and what it shares with the module."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import time
import traceback
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import host as probe
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner, stamp
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import jobs, overlays, tool
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.build import (
    build_account,
    remove_build_account,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import (
    SCHEMA,
    BadInput,
    Layout,
    ReleaseError,
    Request,
    hide_credentials,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.release import Host, Operation


def real_host(layout: Layout, uv_archive: str | None = None, **more: t.Any) -> Host:
    """Everything outside as it is."""
    return Host(
        account=lambda: build_account(layout.cache),
        uv=lambda: _uv(layout, uv_archive),
        prove=runner.run_checks,
        now=_now,
        forget_account=remove_build_account,
        forget_proof=lambda name: stamp.remove(probe.Host(), name),
        pinned=lambda root, say: overlays.pinned(root, say=say),
        **more,
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _uv(layout: Layout, archive: str | None) -> str | None:
    present = tool.installed(layout.tools)
    if os.access(present, os.X_OK):
        return present
    if archive is None:
        return None
    wheel = tool.WHEELS.get(platform.machine())
    if wheel is None:
        cause = f"the collection knows no uv for {platform.machine()}"
        raise ReleaseError("install uv", cause, "Supported are x86_64 and aarch64.")
    return tool.unpack(archive, wheel, layout.tools)


def failure(name: str, operation: Operation | None, error: ReleaseError) -> dict[str, t.Any]:
    """What is told of a step that failed: the message, and its parts."""
    details: dict[str, t.Any] = {"step": error.step, "cause": error.cause, "remedy": error.remedy, **error.details}
    untouched = "Nothing was changed."
    if operation is not None:
        details.update(what=operation.what, steps=operation.steps)
        if not isinstance(error, BadInput):
            serving = operation.before.current
            begun = (
                "what was begun is removed" if "staged" not in error.details else f"{error.details['staged']} is kept"
            )
            untouched = f"{serving} serves as before." if serving else f"No release serves; {begun}."
    return {"msg": f"{name}: {error} {untouched}", **details}


def main(directory: str) -> None:
    """Build what the job's request asks for; its result is the job's last file."""
    path = os.path.join(directory, "request.json")
    with open(path, encoding="utf-8") as file:  # it may hold credentials: nothing comes before
        os.unlink(path)
        given = json.load(file)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    os.environ.update(given["environment"])
    request = _request(given["request"])
    status = {
        "schema": SCHEMA,
        "job": given["job"],
        "name": request.layout.name,
        "spec_digest": request.spec_digest,
        "release": given["release"],
        **jobs.identity(),
        "began": _now(),
        "began_at": int(time.time()),
        "bytes_total": given["expected"][0],
        "bytes_total_from": given["expected"][1],
    }

    def tell(step: str, steps: list[dict[str, t.Any]]) -> None:
        with contextlib.suppress(OSError):  # a full disk is told by the step that needs it
            _write(directory, "status.json", {**status, "step": step, "steps": steps, "updated": _now()})

    tell("start", [])
    operation = Operation(request, real_host(request.layout, tell=tell))
    try:
        ended = {"result": operation.present()}
    except ReleaseError as error:
        ended = {"failure": failure(request.layout.name, operation, error)}
    except Exception as error:  # whatever it is, whoever follows must hear of it
        problem = ReleaseError("build", f"it met what it does not know: {error!r}", "Report this with the traceback.")
        told = failure(request.layout.name, operation, problem)
        ended = {"failure": {**told, "exception": traceback.format_exc()}}
    _write(directory, "result.json", {"job": given["job"], **ended})


def _request(values: dict[str, t.Any]) -> Request:
    """A request as it was before it became JSON."""
    made: dict[str, t.Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    made["layout"] = Layout(**values["layout"])
    return Request(**made)


def _write(directory: str, name: str, content: dict[str, t.Any]) -> None:
    """Replace one of the job's files. Nobody needs it after a power loss, so that nothing waits for the disk."""
    scratch = os.path.join(directory, f".{name}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(_without_credentials(content), file)
    os.rename(scratch, os.path.join(directory, name))


def _without_credentials(content: t.Any) -> t.Any:
    if isinstance(content, dict):
        return {key: _without_credentials(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_credentials(value) for value in content]
    return hide_credentials(content) if isinstance(content, str) else content
