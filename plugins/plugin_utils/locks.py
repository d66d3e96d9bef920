# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Locks of environments: resolved once on the controller, obeyed by every host.

uv resolves for the host's platform, not for the controller's, twice. First torch and its companions alone: of what they need, what is
named nvidia-* is torch's family. Then everything, with the torch index explicit: uv asks it for the family, whose members are all named
to it, and for nothing else; the package index is asked for everything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import http.client
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ansible_collections.gpufleet.workstation.plugins.module_utils._mirror.wheels import GENERATOR
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, tool
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import uv

RESOLVE_LIMIT = 300
"""Seconds that uv may take to resolve one environment."""
PLATFORMS = {"x86_64": "x86_64-manylinux_2_28", "aarch64": "aarch64-manylinux_2_28"}
"""The C library that torch's wheels of all supported releases need."""
_PAGE_TIMEOUT = 10
"""Seconds."""
_HEAD_SIZE = 1024
"""Bytes of a page in which its generator stands, where it names one. Such a page can have 40 MB."""
_FROM = re.compile(r"^\s*# from (\S+)$")


class NoLock(Exception):
    """There is no lock and none can be made. The text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Locked:
    """The lock of one environment on one platform."""

    path: Path
    text: str
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
    return Locked(path, found.render(), [], False) if found else None


def ensure(
    environment: Mapping[str, Any],
    folder: Path,
    *,
    upgrade: bool = False,
    write: bool = True,
    program: Callable[[], str] = uv.program,
) -> Locked:
    """Return the lock of an environment of the plan; make it where there is none, or anew where an upgrade is asked for.

    Safe with many forks and several controllers that share the folder. Raises NoLock.
    """
    spec = environment["spec"]
    indexes = Indexes(environment["lock_index_url"], environment["lock_package_index_url"])
    path = folder / lock.file_name(spec)
    before = _read(path, spec)
    if before is not None and not upgrade:
        return Locked(path, before.render(), [], False)
    if not write:
        after = resolve(spec, indexes, None if upgrade else _newest_sibling(path), program)
        return Locked(path, after.render(), lock.difference(before, after), False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "w", encoding="ascii") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if before is None:
                before = _read(path, spec)
                if before is not None:  # another fork was first
                    return Locked(path, before.render(), [], False)
            after = resolve(spec, indexes, None if upgrade else _newest_sibling(path), program)
            text = after.render()
            _write(path, text)
    except OSError as error:
        raise NoLock(
            f"the lock {path} cannot be written on the controller: {error.strerror}. Make its folder writable, or name another one in "
            "gpufleet_state_dir"
        ) from error
    return Locked(path, text, lock.difference(before, after), True)


def _write(path: Path, text: str) -> None:
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
    roots = {
        "torch": f"torch=={spec['torch']}",
        **{name: f"{name}=={version}" for name, version in spec["companions"].items()},
    }
    try:
        uv_program = program()
    except uv.NoUv as error:
        raise NoLock(str(error)) from error
    _refuse_mirror(indexes.torch, "torch_env_{}index_base_url")
    _refuse_mirror(indexes.packages, "torch_env_{}package_index_url")
    # A requirement can need one of torch's companions that was not asked for; with it the family is learned anew.
    for _round in range(len(lock.FAMILY)):
        family = _family(spec, indexes, roots, uv_program)
        wanted = [*roots.values(), *sorted(family - set(roots)), *(spec.get("requirements") or [])]
        found = _compile(spec, indexes, wanted, family, True, pins, uv_program)
        newcomers = {name for name in found if name in lock.FAMILY} - family
        if not newcomers:
            _check_origins(found, indexes, family)
            packages = [
                dataclasses.replace(item.pinned, from_torch_index=name in family)
                for name, item in sorted(found.items())
            ]
            return lock.Lock(lock.inputs(spec), tuple(packages))
        roots.update({name: name for name in newcomers})
    raise NoLock("torch's family did not become complete: report this with the environment's requirements")


def _refuse_mirror(url: str, variable: str) -> None:
    """A lock from a mirror would lack the hashes of every file that no lock named before. Raises NoLock."""
    if not url.startswith(("http://", "https://")):
        return
    # Not above: tests of what hosts execute make locks with a Python that has no Ansible.
    from ansible.module_utils import urls

    try:
        with contextlib.closing(urls.open_url(f"{hide_credentials(url).rstrip('/')}/", timeout=_PAGE_TIMEOUT)) as page:
            head = page.read(_HEAD_SIZE)
    except (OSError, http.client.HTTPException, urls.ConnectionError):
        return  # what is wrong with it uv will say
    if GENERATOR.encode("ascii") in head:
        raise NoLock(
            f"{_shown(url)} is a mirror that the role wheel_mirror keeps: it has only the files of earlier locks, so a lock made from it "
            f"would fit no other Python or architecture. Name the index itself in {variable.format('')} and the mirror in "
            f"{variable.format('mirror_')}"
        )


def _family(spec: Mapping[str, Any], indexes: Indexes, roots: Mapping[str, str], uv_program: str) -> set[str]:
    """The projects that have to come from the torch index: the roots, and of what they need torch's own libraries. Raises NoLock."""
    needed = _compile(spec, indexes, list(roots.values()), set(roots), False, None, uv_program)
    family = {name for name in needed if name in lock.FAMILY or name.startswith(lock.LIBRARIES)}
    lacking = [name for name in sorted(family) if needed[name].origin != _shown(indexes.torch)]
    if lacking:
        raise NoLock(
            f"torch {spec['torch']} needs {lacking[0]}, which the torch index {_shown(indexes.torch)} does not serve, and which must not "
            "come from anywhere else. Name an index that holds all of torch's libraries in torch_env_index_base_url"
        )
    return family


@dataclasses.dataclass(frozen=True)
class _Found:
    """A package that uv chose, and the index that it took it from."""

    pinned: lock.Pinned
    origin: str | None


def _compile(
    spec: Mapping[str, Any],
    indexes: Indexes,
    wanted: Sequence[str],
    family: set[str],
    explicit: bool,
    pins: str | None,
    uv_program: str,
) -> dict[str, _Found]:
    """One run of uv. What is wanted of the family comes from the torch index; others may only where that is not explicit."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-lock-") as folder:  # 0700: the URLs may hold credentials
        project = Path(folder) / "pyproject.toml"
        project.write_text(_project(spec, indexes, wanted, family, explicit), encoding="utf-8")
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
        command += ["--index-strategy", "first-index"]  # whatever the controller is configured for
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
    origins = _origins(text)
    return {item.name: _Found(item, origins.get(item.name)) for item in lock.pinned(text)}


def _project(spec: Mapping[str, Any], indexes: Indexes, wanted: Sequence[str], family: set[str], explicit: bool) -> str:
    lines = ["[project]", 'name = "environment"', 'version = "0"', f'requires-python = ">={spec["python"]}"']
    lines += [f"dependencies = {json.dumps(wanted)}", "[tool.uv.sources]"]
    lines += [f'{name} = {{ index = "torch" }}' for name in sorted(family)]
    lines += ["[[tool.uv.index]]", 'name = "torch"', f"url = {json.dumps(indexes.torch)}"]
    lines += ["explicit = true"] if explicit else []
    if indexes.packages:
        lines += ["[[tool.uv.index]]", 'name = "packages"', f"url = {json.dumps(indexes.packages)}", "default = true"]
    return "\n".join(lines) + "\n"


def _origins(text: str) -> dict[str, str]:
    """{project: URL of its index} as uv says it after each package."""
    origins: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if "==" in line and not line.startswith((" ", "#")):
            name = line.partition("==")[0]
        match = _FROM.match(line)
        if match:
            origins[name] = _shown(match[1])
    return origins


def _shown(url: str) -> str:
    """An index as uv names it: without credentials, default port and capitals in the host's name."""
    parts = urlsplit(hide_credentials(url))
    port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return urlunsplit(parts._replace(netloc=parts.netloc.lower().removesuffix(port))).rstrip("/")


def _check_origins(found: Mapping[str, _Found], indexes: Indexes, family: set[str]) -> None:
    """Whether uv took the family, and nothing else, from the torch index, and all else from the package index. Raises NoLock."""
    torch, packages = _shown(indexes.torch), _shown(indexes.packages)
    for name, item in found.items():
        if (item.origin == torch) != (name in family) or item.origin not in (torch, packages or item.origin):
            raise NoLock(
                f"uv took {name} from {item.origin}, which must not serve it. Take what names that index out of uv's configuration on the "
                "controller (uv.toml)"
            )
