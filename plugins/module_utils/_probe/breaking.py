# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Variables and library folders that harm CUDA programs: where the system sets them, and who runs with them.

Only what everybody gets is looked at, never a home. What counts as harm is ``_compat/breaking.py``.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Iterable, Iterator

from .._compat import breaking
from . import files
from .host import KIB, MIB, Host, Unreadable, reason

Pairs = Iterable[tuple[str, str]]

_SHELL_FILES = (
    "/etc/profile",
    "/etc/bash.bashrc",
    "/etc/bashrc",
    *(f"/etc/{folder}{name}" for folder in ("", "zsh/") for name in ("zshenv", "zprofile", "zshrc", "zlogin")),
)
_FOLDERS = ("/etc", "/run", "/usr/local/lib", "/usr/lib")
_FILES = 200  # in one folder
_ASSIGNMENT = r"[A-Za-z_]\w*=(?:\"[^\"]*\"|'[^']*'|[^\s;&#\"'])*"
# Assignments that last, alone or after export; what stands before a command is set for that command alone.
_SHELL = re.compile(
    rf"(?:^|[;&]|\bthen\b|\belse\b)[ \t]*(?:(?:export|typeset|declare|readonly)\s+(?:-\w+\s+)*)?"
    rf"({_ASSIGNMENT}(?:[ \t]+{_ASSIGNMENT})*)[ \t]*(?=$|[;&#])",
    re.MULTILINE,
)
_PAM = re.compile(r"\b(DEFAULT|OVERRIDE)=(\"[^\"]*\"|\S*)")


def system_wide(host: Host, unknown: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return a row for each harmful setting in a file from which every process, or every session, gets variables or libraries."""
    rows = []
    for path, read in _places(host):
        try:
            rows += [_row(path, *found) for found in read(_without_ours(host.text(path, 256 * KIB) or ""))]
        except (OSError, Unreadable) as error:
            unknown.append({"what": f"runtime.breaking[{path}]", "why": reason(error)})
    return rows


def of_processes(host: Host, processes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each process that computes with a harmful variable: the name alone, values of processes may be secrets."""
    rows = []
    for process in processes:
        try:
            text = host.text(f"/proc/{process['pid']}/environ", MIB) or ""
        except (OSError, Unreadable):
            continue  # it ended, or is somebody else's in another container
        pairs = (entry.partition("=")[::2] for entry in text.split("\0"))
        where = f"process {process['pid']} ({process['command']})"
        rows += [_row(where, name, None, row.why) for name, _value, row in _harmful(pairs) if not row.single]
    return rows


def _row(where: str, name: str, value: str | None, why: str) -> dict[str, Any]:
    return {"where": where, "name": name, "value": value, "why": why}


def _places(host: Host) -> Iterator[tuple[str, Callable[[str], Iterator[tuple[str, str, str]]]]]:
    """Each file with the function that reads it."""
    yield files.ETC_ENVIRONMENT, _variables(files.assignments)
    yield "/etc/security/pam_env.conf", _variables(_pam)
    for path in (*_SHELL_FILES, *_within(host, "/etc/profile.d", ".sh")):
        yield path, _variables(_shell)
    for folder in _FOLDERS:
        for path in _within(host, f"{folder}/environment.d", ".conf"):
            yield path, _variables(files.assignments)
        for manager in ("system", "user"):
            for path in (
                f"{folder}/systemd/{manager}.conf",
                *_within(host, f"{folder}/systemd/{manager}.conf.d", ".conf"),
            ):
                yield path, _variables(files.default_environment)
    yield "/etc/ld.so.preload", _preloaded
    for path in ("/etc/ld.so.conf", *_within(host, "/etc/ld.so.conf.d", ".conf")):
        yield path, _library_folders


def _within(host: Host, folder: str, ending: str) -> list[str]:
    """Files of others in a folder. Debian links /etc/environment from a folder of systemd's: a link is read where it leads."""
    names = (name for name in host.names(folder)[:_FILES] if name.endswith(ending) and "gpufleet" not in name)
    return [path for path in (f"{folder}/{name}" for name in names) if host.link(path) is None]


def _without_ours(text: str) -> str:
    """What the inventory wants is said by the plan."""
    return text.replace(files.managed_block(text) or "\0", "")


def _variables(parse: Callable[[str], Pairs]) -> Callable[[str], Iterator[tuple[str, str, str]]]:
    def read(text: str) -> Iterator[tuple[str, str, str]]:
        for name, value, row in _harmful(parse(text)):
            yield name, value, row.why

    return read


def _harmful(pairs: Pairs) -> Iterator[tuple[str, str, breaking.Breaking]]:
    """The last value of each variable counts."""
    for name, value in dict(pairs).items():
        row = breaking.judge(name, value)
        if row:
            yield name, value, row


def _pam(text: str) -> Iterator[tuple[str, str]]:
    """Lines NAME DEFAULT=value OVERRIDE=value; what overrides counts unless it is empty."""
    for line in _lines(text):
        options = {key: value.strip('"') for key, value in _PAM.findall(line)}
        if options:
            yield line.split()[0], options.get("OVERRIDE") or options.get("DEFAULT") or ""


def _shell(text: str) -> Iterator[tuple[str, str]]:
    for assignments in _SHELL.findall(text):
        for assignment in re.findall(_ASSIGNMENT, assignments):
            name, _equals, value = assignment.partition("=")
            yield name, re.sub("[\"']", "", value)


def _preloaded(text: str) -> Iterator[tuple[str, str, str]]:
    for line in _lines(text):
        row = breaking.judge("LD_PRELOAD", line)
        if row:
            yield "ld.so.preload", line, row.why


def _library_folders(text: str) -> Iterator[tuple[str, str, str]]:
    for line in _lines(text):
        if breaking.LIBRARY_FOLDER.search(line) and re.search("(?i)cuda|nvidia", line):
            yield "ld.so.conf", line, breaking.LIBRARY_FOLDER_WHY


def _lines(text: str) -> list[str]:
    return [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]
