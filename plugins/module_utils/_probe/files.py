# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Files that the collection manages, and the variables that the launch contexts set."""

from __future__ import annotations

import hashlib
import re
import shlex
import stat
from typing import Any, Iterator

from .accounts import group_name, user_name
from .host import MIB, Host, Unreadable

BEGIN = "# BEGIN gpufleet.workstation"
END = "# END gpufleet.workstation"
ETC_ENVIRONMENT = "/etc/environment"
PROFILE_D = "/etc/profile.d/gpufleet.sh"
ENVIRONMENT_D = "/etc/environment.d/50-gpufleet.conf"
SYSTEM_CONF_D = "/etc/systemd/system.conf.d/50-gpufleet.conf"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")


def describe(host: Host, path: str) -> dict[str, Any] | None:
    """Return what is at a path (symlinks are not followed), or None where nothing is."""
    state = host.lstat(path)
    if state is None:
        return None
    found: dict[str, Any] = {
        "sha256": None,
        "mode": f"{stat.S_IMODE(state.st_mode):04o}",
        "owner": user_name(state.st_uid),
        "group": group_name(state.st_gid),
        "type": "other",
    }
    if stat.S_ISLNK(state.st_mode):
        found["type"] = "link"
    elif stat.S_ISDIR(state.st_mode):
        found["type"] = "directory"
    elif stat.S_ISREG(state.st_mode):
        found["type"] = "file"
        found["sha256"] = hashlib.sha256(host.read_bytes(path, MIB)).hexdigest()
    return found


def runtime(host: Host, variables: list[str]) -> dict[str, Any]:
    """Return what each launch context's file sets, of the variables that were asked for."""
    text = host.text(ETC_ENVIRONMENT) or ""
    found: dict[str, Any] = {
        "etc_environment": {"block": managed_block(text), "values": _wanted(assignments(text), variables)}
    }
    for context, path, parse in (
        ("profile_d", PROFILE_D, _exports),
        ("environment_d", ENVIRONMENT_D, assignments),
        ("system_conf_d", SYSTEM_CONF_D, default_environment),
    ):
        values = _wanted(parse(host.text(path) or ""), variables)
        found[context] = {"path": path, "values": values}
    return found


def managed_block(text: str) -> str | None:
    """Return what stands between our markers; an unfinished block ends with the file, None where there is none."""
    lines = text.splitlines(keepends=True)
    stripped = [line.strip() for line in lines]
    if BEGIN not in stripped:
        return None
    start = stripped.index(BEGIN) + 1
    end = stripped.index(END, start) if END in stripped[start:] else len(lines)
    return "".join(lines[start:end])


def _wanted(pairs: Iterator[tuple[str, str]], variables: list[str]) -> dict[str, str]:
    """The last value of each variable that was asked for; others may be secrets and stay on the host."""
    values = dict(pairs)
    return {name: values[name] for name in variables if name in values}


def assignments(text: str) -> Iterator[tuple[str, str]]:
    """NAME=value lines as pam_env and environment.d(5) read them: export is allowed, quotes around a value are dropped."""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("export "):
            line = line[len("export ") :].lstrip()
        name, equals, value = line.partition("=")
        if equals and _NAME.match(name):
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            yield name, value


def _exports(text: str) -> Iterator[tuple[str, str]]:
    """Assignments in a shell fragment, with or without export."""
    for line in text.splitlines():
        for word in _words(line):
            name, equals, value = word.partition("=")
            if equals and _NAME.match(name):
                yield name, value.rstrip(";")


def default_environment(text: str) -> Iterator[tuple[str, str]]:
    """DefaultEnvironment= of systemd-system.conf(5): words, cumulative, an empty value starts over."""
    pairs: dict[str, str] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == "DefaultEnvironment":
            words = _words(value)
            if not words:
                pairs.clear()
            pairs.update((name, content) for name, sign, content in (word.partition("=") for word in words) if sign)
    yield from pairs.items()


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an unbalanced quote: the shell would not get anything out of this line either
        return []


def described(host: Host, paths: list[str], unknown: list[dict[str, str]]) -> dict[str, Any]:
    """Describe every path that was asked for."""
    found: dict[str, Any] = {}
    for path in paths:
        try:
            found[path] = describe(host, path)
        except (OSError, Unreadable) as error:
            found[path] = None
            unknown.append({"what": f"files[{path}]", "why": str(error)})
    return found
