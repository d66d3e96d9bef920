# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What others installed that people meet beside our environments: other copies of torch, conda, search
paths, second package indexes.

Nothing of it is executed, and the look is bounded: well-known places, a number of homes, files of a size. A home belongs to its user,
who may put links, FIFOs and whole file systems there: below it no link is followed and only regular files are read. A file system that
hangs holds whoever reads it, so the caller runs all of this in a child with a time limit.
"""

from __future__ import annotations

import configparser
import errno
import os
import re
import stat
from typing import Any, Iterable, Iterator

from .._release.model import hide_credentials, is_foreign
from . import files
from .environments import assigned
from .host import ABSENT, KIB, Host, Unreadable, reason

Row = dict[str, Any]

_HOMES, _NAMES, _ROWS = 100, 200, 60
_FILE_LIMIT = 256 * KIB
_ANCESTORS = 16

_VENVS = ("venv", ".venv", "env", "torch", "torch-env", "torch_env", "torchenv", "pytorch", "pytorch-env")
_CONDAS = ("conda", "anaconda3", "miniconda3", "miniforge3", "mambaforge", ".conda")
_PYTHON = re.compile(r"python3(\.\d+)?$")

_SYSTEM_PROFILES = (
    "/etc/environment",
    "/etc/profile",
    "/etc/bash.bashrc",
    "/etc/bashrc",
    "/etc/zshenv",
    "/etc/zsh/zshenv",
    "/etc/zsh/zshrc",
)
_PROFILE_FOLDERS = ("/etc/profile.d", "/etc/environment.d")
_USER_PROFILES = (
    ".profile",
    ".bash_profile",
    ".bashrc",
    ".zshenv",
    ".zshrc",
    ".pam_environment",
    ".config/fish/config.fish",
)
_PIP_CONFIGS = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf")
_USER_PIP_CONFIGS = (".config/pip/pip.conf", ".pip/pip.conf")
_PIP_OPTIONS = ("extra-index-url", "find-links")

_SEARCH = ("PYTHONPATH", "PYTHONHOME")
_INDEXES = ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
_VALUE = r"(\"[^\"]*\"|'[^']*'|[^\s;&#]*)"
_SET = re.compile(
    r"(?:^|;|&&)\s*(?:(?:export|typeset|declare)\s+(?:-\S+\s+)?)?("
    + "|".join(_SEARCH + _INDEXES)
    + r")="
    + _VALUE
    # What stands before a command is set for that command alone.
    + r"\s*(?:$|;|&|\#)"
)
_SET_IN_FISH = re.compile(
    r"^\s*set\s+(?:-\S+\s+)*-\S*x\S*\s+(?:-\S+\s+)*(" + "|".join(_SEARCH + _INDEXES) + r")\s+" + _VALUE
)
_CONDA = re.compile(
    r">>> conda initialize >>>|/etc/profile\.d/conda\.sh|PATH\b.*(?:conda\d?|miniforge\d?|mambaforge)/(?:cond)?bin"
)


def observe(host: Host, root: str, wanted: list[str], pid: int) -> dict[str, Any]:
    """Return ``found`` (see gpu_info's RETURN, ``foreign``) and ``unknown``; ``pid`` is who asks, whose session is looked at."""
    look = _Look(host)
    look.add(root, look.directories(root, wanted))
    look.add("packages", look.system_packages())
    look.add("/opt", look.installations("/opt"))
    for path in _system_profiles(host):
        look.add(path, look.profile(path))
    look.add("session", look.session(pid))
    for path in _PIP_CONFIGS:
        look.add(path, look.system_pip_config(path))
    homes = [f"/home/{name}" for name in host.names("/home")]
    for home in ["/root", *homes[:_HOMES]]:
        look.add(home, look.home(home))
    if len(homes) > _HOMES:
        look.note("foreign", f"of {len(homes)} folders in /home only the first {_HOMES} were looked at")
    if len(look.found) > _ROWS:
        look.note("foreign", f"{len(look.found)} things were found; the first {_ROWS} are listed")
    return {"found": look.found[:_ROWS], "unknown": look.unknown}


def _row(kind: str, path: str, what: str, torch: dict[str, Any] | None = None) -> Row:
    return {"kind": kind, "path": path, "what": what, "torch": torch}


class _Look:
    """One look at a host: what was found, and what could not be read."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.found: list[Row] = []
        self.unknown: list[dict[str, str]] = []

    def note(self, what: str, why: str) -> None:
        self.unknown.append({"what": what, "why": why})

    def add(self, what: str, rows: Iterable[Row]) -> None:
        """Take what a look at one place yields, up to where it cannot be read."""
        try:
            for row in rows:
                self.found.append(row)
        except (OSError, Unreadable, configparser.Error) as error:
            self.note(f"foreign[{what}]", reason(error).splitlines()[0])

    def directories(self, root: str, wanted: Iterable[str]) -> Iterator[Row]:
        """What lies where a wanted environment belongs and is none."""
        for name in wanted:
            path = f"{root.rstrip('/')}/{name}"
            state = self.host.lstat(path)
            if state is None:
                continue
            if not stat.S_ISDIR(state.st_mode):
                yield _row("taken", path, "a link" if stat.S_ISLNK(state.st_mode) else "a file")
            elif is_foreign(self.host.names(path)):
                venv = self.host.text(f"{path}/pyvenv.cfg") is not None
                what = "a virtual environment" if venv else "a directory with files of somebody else"
                yield _row("taken", path, what)

    def system_packages(self) -> Iterator[Row]:
        """A torch among the packages of the system's Pythons."""
        for base in ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"):
            for python in self.host.names(base):
                for folder in ("dist-packages", "site-packages") if _PYTHON.match(python) else ():
                    path = f"{base}/{python}/{folder}"
                    torch = _torch(_Below(self.host, path), "")
                    if torch:
                        yield _row("system", path, "packages of the system's Python", torch)

    def installations(self, base: str) -> Iterator[Row]:
        """Virtual environments and conda's environments with well-known names in one folder."""
        below = _Below(self.host, base)
        for name in _VENVS:
            if below.text(f"{name}/pyvenv.cfg") is not None:
                torch = _torch_in_prefix(below, name)
                if torch:
                    yield _row("venv", f"{base}/{name}", "a virtual environment", torch)
        for name in _CONDAS:
            if below.names(f"{name}/conda-meta"):
                yield _row("conda", f"{base}/{name}", "a conda installation", _torch_in_prefix(below, name))
            for inner in below.names(f"{name}/envs"):
                torch = _torch_in_prefix(below, f"{name}/envs/{inner}")
                if torch:
                    yield _row("conda", f"{base}/{name}/envs/{inner}", "an environment of conda", torch)

    def home(self, home: str) -> Iterator[Row]:
        """Everything of one home."""
        below = _Below(self.host, home)
        yield from self.installations(home)
        for python in below.names(".local/lib"):
            site = f".local/lib/{python}/site-packages"
            torch = _torch(below, site) if _PYTHON.match(python) else None
            if torch:
                yield _row("user", f"{home}/{site}", "packages of the user's own", torch)
        for name in _USER_PROFILES:
            yield from self.settings(f"{home}/{name}", below.text(name) or "")
        for name in _USER_PIP_CONFIGS:
            yield from self.pip_config(f"{home}/{name}", below.text(name) or "")

    def profile(self, path: str) -> Iterator[Row]:
        """What a profile file of the system sets for everybody, apart from our own lines."""
        text = self.host.text(path, _FILE_LIMIT) or ""
        yield from self.settings(path, text.replace(files.managed_block(text) or "\0", ""))

    def settings(self, path: str, text: str) -> Iterator[Row]:
        """What a profile file sets that changes which packages a Python finds, and which Python is found."""
        values = {}
        for line in text.splitlines():
            if not line.lstrip().startswith("#"):
                for name, value in [*_SET.findall(line), *_SET_IN_FISH.findall(line)]:
                    values[name] = value.strip("'\"")
        for name, value in values.items():
            if value:
                yield self.setting(path, name, value)
        if _CONDA.search(text):
            yield _row("conda_path", path, "conda on the PATH")

    def setting(self, path: str, name: str, value: str) -> Row:
        """One variable that is set; what a search path leads to is looked at, as our Pythons would find it."""
        if name in _INDEXES:
            return _row("index", path, f"{name}={hide_credentials(value)}")
        torch = None
        for folder in value.split(":") if name == "PYTHONPATH" else ():
            if folder.startswith("/") and torch is None:
                torch = _torch(_Below(self.host, folder), "")
        return _row("search_path", path, f"{name}={value}", torch)

    def session(self, pid: int) -> Iterator[Row]:
        """What the session sets from which this run became root; sudo itself passes none of it on."""
        seen: dict[str, str] = {}
        for _generation in range(_ANCESTORS):
            status = self._text(f"/proc/{pid}/stat")
            fields = status.rpartition(")")[2].split()
            if len(fields) < 2 or not fields[1].isdigit() or int(fields[1]) <= 1:
                break
            pid = int(fields[1])
            pairs = (entry.partition("=") for entry in self._text(f"/proc/{pid}/environ").split("\0"))
            for name, _equals, value in pairs:
                if value and name in (*_SEARCH, "CONDA_PREFIX"):
                    seen.setdefault(name, value)
        where = "the session that asks"
        for name, value in seen.items():
            if name == "CONDA_PREFIX":
                yield _row("conda_path", where, f"conda's environment {value}")
            else:
                yield self.setting(where, name, value)

    def _text(self, path: str) -> str:
        """A file of /proc, empty where the process ended or belongs to somebody else."""
        try:
            return self.host.text(path, _FILE_LIMIT) or ""
        except (OSError, Unreadable):
            return ""

    def system_pip_config(self, path: str) -> Iterator[Row]:
        yield from self.pip_config(path, self.host.text(path, _FILE_LIMIT) or "")

    def pip_config(self, path: str, text: str) -> Iterator[Row]:
        """Second places that a pip configuration adds to the index. Raises configparser.Error."""
        parser = configparser.RawConfigParser(strict=False)
        parser.read_string(text)
        for section in parser.sections():
            for option, value in parser.items(section):
                if option.replace("_", "-") in _PIP_OPTIONS and value.strip():
                    yield _row("index", path, f"{option} = {hide_credentials(' '.join(value.split()))}")


def _system_profiles(host: Host) -> list[str]:
    paths = list(_SYSTEM_PROFILES)
    for folder in _PROFILE_FOLDERS:
        paths += [f"{folder}/{name}" for name in host.names(folder)[:_NAMES] if "gpufleet" not in name]
    return paths


class _Below:
    """A folder whose content nobody vouches for: below it no link is followed, and only regular files of a size are read."""

    def __init__(self, host: Host, base: str) -> None:
        try:
            self._base: str | None = host.at(base)
        except OSError:
            self._base = None

    def _open(self, path: str, flags: int) -> int | None:
        """Open something below the folder; None where there is no such thing, or it is not to be read."""
        if self._base is None:
            return None
        folder = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        parts = [part for part in path.split("/") if part]
        try:
            descriptor = os.open(self._base, folder)
            for position, part in enumerate(parts):
                last = position == len(parts) - 1
                try:
                    inner = os.open(part, (flags if last else folder) | os.O_NOFOLLOW, dir_fd=descriptor)
                finally:
                    os.close(descriptor)
                descriptor = inner
        except OSError as error:
            if error.errno in ABSENT | {errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENAMETOOLONG}:
                return None
            raise
        return descriptor

    def text(self, path: str) -> str | None:
        """A file's text, cut at the limit; None where there is no regular file."""
        descriptor = self._open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if descriptor is None:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            return os.read(descriptor, _FILE_LIMIT).decode("utf-8", "replace")
        finally:
            os.close(descriptor)

    def names(self, path: str) -> list[str]:
        """Some names in a folder, sorted; none where there is no folder."""
        descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if descriptor is None:
            return []
        try:
            with os.scandir(descriptor) as entries:
                return sorted(entry.name for entry, _number in zip(entries, range(_NAMES)))
        finally:
            os.close(descriptor)


def _torch_in_prefix(below: _Below, prefix: str) -> dict[str, Any] | None:
    for python in below.names(f"{prefix}/lib"):
        torch = _torch(below, f"{prefix}/lib/{python}/site-packages") if _PYTHON.match(python) else None
        if torch:
            return torch
    return None


def _torch(below: _Below, site: str) -> dict[str, Any] | None:
    """The torch among some packages, by its version file, which is read as text."""
    text = below.text(f"{site}/torch/version.py") or ""
    version = assigned(text, "__version__")
    return {"version": version, "cuda": assigned(text, "cuda")} if version else None
