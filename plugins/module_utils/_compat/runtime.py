# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: the files that set environment variables in every launch context, and what of them a host lacks. Pure.

Each format has quoting rules of its own. ``desired`` lets only values pass that all of them can hold as they are.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import breaking
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Notes, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import (
    MANAGED_BLOCK_MARKER,
    Action,
    ManagedFile,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.proof import RUNTIME_ENV

ENVIRONMENT_PATH = "/etc/environment"
PROFILE_PATH = "/etc/profile.d/gpufleet.sh"
USER_ENVIRONMENT_PATH = "/etc/environment.d/50-gpufleet.conf"
SYSTEM_ENVIRONMENT_PATH = "/etc/systemd/system.conf.d/50-gpufleet.conf"
SYSTEM_PATHS = (PROFILE_PATH, USER_ENVIRONMENT_PATH, SYSTEM_ENVIRONMENT_PATH)
_WRITTEN_BY = "Written by gpufleet.workstation; changes are overwritten."


def environment_path(wanted: Desired, name: str) -> str:
    """The file from which the processes of one environment get their variables."""
    return f"{wanted.root}/{name}/{RUNTIME_ENV}"


def environment_block(wanted: Desired) -> str:
    """Our lines of /etc/environment."""
    return _assignments(_host_variables(wanted))


def _host_variables(wanted: Desired) -> t.Mapping[str, str]:
    """What every process of the host gets."""
    runtime = wanted.runtime
    return runtime.variables if (runtime.state, runtime.scope) == ("present", "host") else {}


def _assignments(variables: t.Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def runtime_files(wanted: Desired) -> list[ManagedFile]:
    """The files that set the variables, apart from /etc/environment. A value that a process has already is kept."""
    files = []
    variables = _host_variables(wanted)
    if variables:
        shell = "".join(
            f"if [ -z \"${{{name}+set}}\" ]; then\n    {name}='{value}'\nfi\nexport {name}\n"
            for name, value in variables.items()
        )
        quoted = " ".join(f'"{name}={value}"' for name, value in variables.items())
        files = [
            ManagedFile(PROFILE_PATH, f"# {_WRITTEN_BY}\n{shell}"),
            ManagedFile(USER_ENVIRONMENT_PATH, f"# {_WRITTEN_BY}\n{_assignments(variables)}"),
            ManagedFile(SYSTEM_ENVIRONMENT_PATH, f"# {_WRITTEN_BY}\n[Manager]\nDefaultEnvironment={quoted}\n"),
        ]
    return files + [
        ManagedFile(environment_path(wanted, item.name), f"# {_WRITTEN_BY}\n{_assignments(item.variables)}")
        for item in wanted.environments
        if item.variables
    ]


def runtime_actions(host: Host, wanted: Desired, notes: Notes) -> list[Action]:
    """Return what is to be written and removed."""
    files = {file.path: file for file in runtime_files(wanted)}
    own = [
        environment_path(wanted, item.name)
        for item in wanted.environments
        # The directory of an environment comes with its first release.
        if "torch" in wanted.steps or host.environment(item.name).get("current")
    ]
    if wanted.environments_alone:
        return [action for action in (_file_action(host, path, files.get(path), wanted) for path in own) if action]
    paths = [PROFILE_PATH]
    if host.os.get("init") in (None, "systemd"):
        paths += [USER_ENVIRONMENT_PATH, SYSTEM_ENVIRONMENT_PATH]
    else:
        notes.say(f"The host runs {host.os['init']}, not systemd: it needs no variables in systemd's files.")
    actions = [_file_action(host, path, files.get(path), wanted) for path in [*paths, *own]]
    actions.append(_block_action(host, wanted))
    _explain(host, wanted, notes)
    return [action for action in actions if action]


def _explain(host: Host, wanted: Desired, notes: Notes) -> None:
    """Say who gets the variables, and warn of what is not as it looks."""
    runtime = wanted.runtime
    if runtime.state == "absent":
        return
    names = sorted({*runtime.variables, *(name for item in wanted.environments for name in item.variables)})
    if names and runtime.scope == "host":
        notes.say(f"{listed(names)}: set for every process of the host (runtime_env_scope: host).")
    elif names:
        notes.say(f"{listed(names)}: set for processes of the environments only (runtime_env_scope: environment).")
    for name, value in _host_variables(wanted).items():
        last = (host.runtime("etc_environment").get("values") or {}).get(name)
        block = host.runtime("etc_environment").get("block")
        if last not in (None, value) and block == environment_block(wanted):
            notes.warn(f"{ENVIRONMENT_PATH} sets {name}={last} below our lines, which wins: remove that line.")
    given = {
        **runtime.variables,
        **{name: value for item in wanted.environments for name, value in item.variables.items()},
    }
    for name, value in sorted(given.items()):
        row = breaking.judge(name, value)
        if row:
            notes.warn(f"{name}={value} is set, as the inventory wants it, although {row.why}.")


def warn_of_breaking(host: Host, notes: Notes) -> None:
    """Warn of variables that others set and that harm CUDA programs; they are left alone."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in host.breaking():
        value = row.get("value")
        what = str(row.get("name")) if value is None else f"{row.get('name')}={value}"
        places.setdefault((what, str(row.get("why"))), []).append(str(row.get("where")))
    for (what, why), where in places.items():
        notes.warn(f"Found and left alone: {what} ({listed(where)}): {why}. Remove it there.")


def _file_action(host: Host, path: str, file: ManagedFile | None, wanted: Desired) -> Action | None:
    reload = path == SYSTEM_ENVIRONMENT_PATH
    if file is None:
        if host.file(path) is None:
            return None
        data: dict[str, t.Any] = {
            "path": path,
            "state": "absent",
            "content": "",
            "mode": None,
            "owner": None,
            "group": None,
        }
        return Action(
            f"runtime.file:{path}", "runtime", f"remove {path}", _why_absent(wanted), {**data, "reload": reload}
        )
    drift = host.difference(file)
    if drift is None:
        return None
    data = {**file.as_dict(), "state": "present", "reload": reload}
    return Action(f"runtime.file:{path}", "runtime", f"write {path}", drift, data)


def _block_action(host: Host, wanted: Desired) -> Action | None:
    now, block = host.runtime("etc_environment").get("block"), environment_block(wanted)
    if _lines(now) == _lines(block):
        return None
    state = "present" if block else "absent"
    data = {"path": ENVIRONMENT_PATH, "state": state, "block": block, "marker": MANAGED_BLOCK_MARKER, "content": block}
    what = f"set the variables in {ENVIRONMENT_PATH}" if block else f"remove our lines from {ENVIRONMENT_PATH}"
    why = "our lines are not there" if now is None else "our lines differ" if block else _why_absent(wanted)
    return Action(f"runtime.block:{ENVIRONMENT_PATH}", "runtime", what, why, data)


def _why_absent(wanted: Desired) -> str:
    if wanted.runtime.state == "present" and wanted.runtime.variables and wanted.runtime.scope == "environment":
        return "the variables are for processes of the environments only"
    return "no variables are wanted any more"


def _lines(block: str | None) -> list[str]:
    return (block or "").strip("\n").splitlines()
