# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Locks of environments: resolved once on the controller, obeyed by every host.

uv resolves for the host's platform, not for the controller's. The torch index is explicit: uv asks it for torch's family, whose members
are all named to it, and for nothing else; the package index is asked for everything else.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, takeaway, tool
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import uv

RESOLVE_LIMIT = 300
"""Seconds that uv may take to resolve one environment."""
PLATFORMS = {"x86_64": "x86_64-manylinux_2_28", "aarch64": "aarch64-manylinux_2_28"}
"""The C library that torch's wheels of all supported releases need."""
_ROUNDS = 4
_FROM = re.compile(r"^\s*# from (\S+)$")


class NoLock(Exception):
    """There is no lock and none can be made. The text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Locked:
    """The lock of one environment on one platform."""

    path: Path
    digest: str
    changes: list[str]
    """What differs from the lock that was there before; everything where there was none."""
    written: bool


@dataclasses.dataclass(frozen=True)
class Indexes:
    """Where packages come from. An empty package index means the one that uv is configured for, PyPI by default."""

    torch: str
    packages: str = ""


PLACES = ("gpufleet_state_dir", "inventory_dir")
"""The variables that decide where locks lie."""


def folder_for(variables: Mapping[str, Any]) -> Path:
    """Where the locks of an inventory lie: in gpufleet_state_dir, by default a folder beside the inventory."""
    given = variables.get("gpufleet_state_dir")
    if given:
        return Path(str(given)).expanduser() / "locks"
    inventory = variables.get("inventory_dir")
    # Ansible reads everything in a folder of inventories but what begins with a dot.
    state = Path(str(inventory)) / ".gpufleet" if inventory else Path.home() / ".local/state/gpufleet"
    return state / "locks"


def existing(spec: Mapping[str, Any], folder: Path) -> Locked | None:
    """The lock of an environment, where there is one. Raises NoLock for a file that is none."""
    path = folder / lock.file_name(spec)
    found = _read(path, spec)
    return Locked(path, lock.digest(found.render()), [], False) if found else None


def ensure(
    environment: Mapping[str, Any],
    folder: Path,
    *,
    upgrade: bool = False,
    write: bool = True,
    program: Callable[[], str] = uv.program,
) -> Locked:
    """Return the lock of an environment of the plan; make it where there is none, or anew where an upgrade is asked for.

    Beside it lie the same packages as files for other tools, in a folder of its name.

    Safe with many forks and several controllers that share the folder. Raises NoLock.
    """
    spec = environment["spec"]
    indexes = Indexes(environment["index_url"], environment["package_index_url"])
    path = folder / lock.file_name(spec)
    before = _read(path, spec)
    if before is not None and not upgrade:
        return Locked(path, lock.digest(before.render()), [], False)
    if not write:
        after = resolve(spec, indexes, None if upgrade else _newest_sibling(path), program)
        return Locked(path, lock.digest(after.render()), lock.difference(before, after), False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w", encoding="ascii") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if before is None:
                before = _read(path, spec)
                if before is not None:  # another fork was first
                    return Locked(path, lock.digest(before.render()), [], False)
            after = resolve(spec, indexes, None if upgrade else _newest_sibling(path), program)
            text = after.render()
            _write(path, text)
            for name, content in takeaway.files(environment, after).items():
                _write(path.with_suffix("") / name, content)
    except OSError as error:
        raise NoLock(
            f"the lock {path} cannot be written on the controller: {error.strerror}. Make its folder writable, or name another one in "
            "gpufleet_state_dir"
        ) from error
    return Locked(path, lock.digest(text), lock.difference(before, after), True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _read(path: Path, spec: Mapping[str, Any]) -> lock.Lock | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise NoLock(f"the lock {path} cannot be read: {error}") from error
    try:
        found = lock.parse(text)
    except lock.InvalidLock as error:
        raise NoLock(f"{path} is no lock: {error}. Restore it from version control, or delete it") from error
    if found.inputs != lock.inputs(spec):
        raise NoLock(f"{path} was made for other inputs than its name says. Delete it and run playbooks/lock.yml")
    return found


def _newest_sibling(path: Path) -> str | None:
    """The lock that this environment had before its requirements changed: what it pins stays, where it can."""
    prefix = path.name.rpartition("-")[0]
    others = [other for other in path.parent.glob(f"{prefix}-*.txt") if other != path]
    newest = max(others, key=lambda other: other.stat().st_mtime, default=None)
    return newest.read_text(encoding="utf-8") if newest else None


def resolve(
    spec: Mapping[str, Any], indexes: Indexes, pins: str | None, program: Callable[[], str] = uv.program
) -> lock.Lock:
    """Resolve one environment for its platform; `pins` is an earlier lock whose versions are kept where possible. Raises NoLock."""
    if spec["arch"] not in PLATFORMS or spec["python"] == "auto":
        raise NoLock("a lock needs to know the host's architecture and Python")
    given = {"torch": spec["torch"], **spec["companions"]}
    wanted = [f"{name}=={version}" for name, version in given.items()]
    # First learn who belongs to the family, then bind every member to the torch index; a new pin can bring a new member.
    family: set[str] = set()
    try:
        uv_program = program()
    except uv.NoUv as error:
        raise NoLock(str(error)) from error
    for _round in range(_ROUNDS):
        found = _compile(spec, indexes, [*wanted, *sorted(family - set(given))], family, pins, uv_program)
        names = {item.name for item in found if item.from_torch_index}
        if names <= family:
            return lock.Lock(lock.inputs(spec), tuple(sorted(found, key=lambda item: item.name)))
        family |= names
    raise NoLock("torch's family did not become complete: report this with the environment's requirements")


def _compile(
    spec: Mapping[str, Any],
    indexes: Indexes,
    wanted: Sequence[str],
    family: set[str],
    pins: str | None,
    uv_program: str,
) -> list[lock.Pinned]:
    """One run of uv. Without a family it learns the members' names; with one, these come from the torch index and nothing else does."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-lock-") as folder:  # 0700: the URLs may hold credentials
        project = Path(folder) / "pyproject.toml"
        project.write_text(_project(spec, indexes, wanted, family), encoding="utf-8")
        output = Path(folder) / "lock.txt"
        if pins:
            output.write_text(pins, encoding="utf-8")
        command = [
            uv_program,
            "pip",
            "compile",
            "pyproject.toml",
            "--output-file",
            "lock.txt",
            "--quiet",
            "--no-header",
        ]
        command += ["--generate-hashes", "--no-build", "--no-annotate", "--emit-index-annotation", "--refresh"]
        command += ["--python-version", str(spec["python"]), "--python-platform", PLATFORMS[spec["arch"]]]
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
        }
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={**environment, "UV_COLOR": "never", "UV_PYTHON_DOWNLOADS": "never"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=RESOLVE_LIMIT,
            )
        except subprocess.TimeoutExpired as error:
            raise NoLock(f"uv on the controller took longer than {RESOLVE_LIMIT} s to resolve it") from error
        if done.returncode != 0:
            cause, remedy = tool.explain(done.stderr)
            raise NoLock(f"uv on the controller says: {cause.rstrip('.')}. {remedy}")
        text = output.read_text(encoding="utf-8")
    if family:
        _check_origins(text, indexes, family)
    return list(lock.pinned(text))


def _project(spec: Mapping[str, Any], indexes: Indexes, wanted: Sequence[str], family: set[str]) -> str:
    dependencies = [*wanted, *(spec.get("requirements") or [])]
    lines = ["[project]", 'name = "environment"', 'version = "0"', f'requires-python = ">={spec["python"]}"']
    lines += [f"dependencies = {json.dumps(dependencies)}", "[tool.uv.sources]"]
    lines += [f'{name} = {{ index = "torch" }}' for name in sorted(family)]
    lines += ["[[tool.uv.index]]", 'name = "torch"', f"url = {json.dumps(indexes.torch)}"]
    lines += ["explicit = true"] if family else []
    if indexes.packages:
        lines += ["[[tool.uv.index]]", 'name = "packages"', f"url = {json.dumps(indexes.packages)}", "default = true"]
    return "\n".join(lines) + "\n"


def _check_origins(text: str, indexes: Indexes, family: set[str]) -> None:
    """Whether uv took the family, and nothing else, from the torch index: it says so after each package. Raises NoLock."""
    torch = hide_credentials(indexes.torch).rstrip("/")
    name = ""
    for line in text.splitlines():
        if "==" in line and not line.startswith((" ", "#")):
            name = line.partition("==")[0]
        match = _FROM.match(line)
        origin = hide_credentials(match[1]).rstrip("/") if match else None
        if (
            origin is not None
            and (origin == torch) != (name in family)
            and not (lock.in_family(name) and name not in family)
        ):
            raise NoLock(f"uv took {name} from {origin}, which must not serve it")
