# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What rpm has installed, and what steers dnf: repositories, module streams, version locks, excludes.

dnf's configuration is read from its files (dnf.conf(5), dnf4's and dnf5's versionlock), packages from rpm's SQLite database (rpm 4.16
and newer, lib/backend/sqlite.c), else from rpm.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
import struct
import tempfile
from collections import defaultdict
from typing import Any, Callable, Iterator, Sequence

from .host import Host, Unreadable, reason

_FORM = "%{NAME}\\t%{EPOCHNUM}\\t%{VERSION}-%{RELEASE}\\t%{ARCH}\\t%{VENDOR} %{PACKAGER}\\n"
_LIMIT = 20.0
_DATABASES = ("/usr/lib/sysimage/rpm/rpmdb.sqlite", "/var/lib/rpm/rpmdb.sqlite")
_HEADER, _ENTRY = struct.Struct(">II"), struct.Struct(">IIiI")
_TAGS = (1000, 1001, 1002, 1022, 1011, 1015)  # name, version, release, architecture; vendor, packager (rpmtag.h)
_EPOCH = 1003
_STRINGS = (6, 9)  # RPM_STRING_TYPE, RPM_I18NSTRING_TYPE
_CONFIGURATION = "/etc/dnf/dnf.conf"
_REPOSITORIES = ("/etc/yum.repos.d", "/etc/distro.repos.d")
_STREAMS = "/etc/dnf/modules.d"
_LOCK_SETTINGS = "/etc/dnf/plugins/versionlock.conf"
_LOCKS_4 = "/etc/dnf/plugins/versionlock.list"
_LOCKS_5 = "/etc/dnf/versionlock.toml"
_HISTORY = "/var/lib/dnf/history.sqlite"
_NEVER_ENDED = 0  # trans.state, libdnf's TransactionState::UNKNOWN
_STATE = "/var/lib/gpufleet/dnf.json"  # the role's notes; `repaired` is the number of the transaction that it finished
_DRIVER_MODULE = "nvidia-driver"
# As dnf writes a lock: name-epoch:version-release.architecture, the epoch and the architecture may be left out.
_NEVRA = re.compile(
    r"(?P<name>.+)-(?:(?P<epoch>\d+):)?(?P<version>\d[^-:]*)-(?P<release>[^-]+?)(?:\.(?P<arch>\*|x86_64|aarch64|noarch|i686))?$"
)
_TOML_VALUE = re.compile(r"""^(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")
_YES = ("1", "yes", "true", "on")
_NO = ("0", "no", "false", "off")


def installed(host: Host, wanted: Callable[[str], bool]) -> list[dict[str, str]]:
    """Return the installed packages whose names are wanted: name, version ("epoch:version-release"), architecture and vendor.

    rpm itself reads every package's header to name one, which takes 0.1-0.3 s; its SQLite database has an index of names. Where there
    is none, or changes wait to be merged into it, rpm is asked.
    """
    found = _from_database(host, wanted)
    if found is None:
        argv = ["rpm", "-qa", "--nodigest", "--nosignature", "--queryformat", _FORM]
        found = [package for package in rpm_lines(host.run(argv, _LIMIT)) if wanted(package["name"])]
    return found


def _from_database(host: Host, wanted: Callable[[str], bool]) -> list[dict[str, str]] | None:
    path = next((path for path in _DATABASES if host.exists(path)), None)
    log = host.lstat(f"{path}-wal")
    if path is None or (log and log.st_size):
        return None
    try:
        rows = _rows(host, path, "SELECT key, hnum FROM Name")
        numbers = {number for name, number in rows if isinstance(name, str) and wanted(name)}
        blobs = [
            _rows(host, path, "SELECT blob FROM Packages WHERE hnum = ?", number)[0][0] for number in sorted(numbers)
        ]
        return [header(blob) for blob in blobs]
    except (ImportError, KeyError, IndexError, TypeError, ValueError, struct.error, Unreadable):
        return None  # what is wrong with the database is rpm's to say


def header(blob: bytes) -> dict[str, str]:
    """Parse a package's header as rpm keeps it: an index of (tag, type, offset, count), then the data, all big-endian."""
    entries, size = _HEADER.unpack_from(blob)
    data = blob[_HEADER.size + _ENTRY.size * entries :]
    if len(data) < size:
        raise Unreadable("a package's header is cut off")
    values: dict[int, str] = {}
    for number in range(entries):
        tag, kind, offset, _count = _ENTRY.unpack_from(blob, _HEADER.size + _ENTRY.size * number)
        if tag == _EPOCH:
            values[tag] = f"{struct.unpack_from('>I', data, offset)[0]}:"
        elif tag in _TAGS and kind in _STRINGS:
            values[tag] = data[offset : data.index(b"\0", offset)].decode("utf-8", "replace")
    name, version, release, architecture = (values[tag] for tag in _TAGS[:4])
    epoch = values.get(_EPOCH, "0:")
    return {
        "name": name,
        "version": f"{'' if epoch == '0:' else epoch}{version}-{release}",
        "architecture": architecture,
        "vendor": " ".join(values[tag] for tag in _TAGS[4:] if tag in values),
    }


def _rows(host: Host, path: str, query: str, *values: Any) -> list[Any]:
    """Ask a SQLite database. It is read as it lies there: nothing is written, and nobody is kept from writing.

    What waits in its write-ahead log counts: dnf leaves the end of a transaction there, and the file itself may know of its beginning only.
    Without the index of the log (-shm, which is gone after a crash) SQLite would have to write one beside it: then a copy is read.
    """
    import sqlite3  # pylint: disable=import-outside-toplevel  # 5 ms that only hosts with such a database have to spend

    file, how = host.at(path), "immutable=1"
    log = host.lstat(f"{path}-wal")
    with contextlib.ExitStack() as stack:
        try:
            if log and log.st_size:
                how = "mode=ro&readonly_shm=1"
                if host.lstat(f"{path}-shm") is None:
                    copy = f"{stack.enter_context(tempfile.TemporaryDirectory())}/{os.path.basename(path)}"
                    for ending in ("", "-wal"):
                        shutil.copyfile(file + ending, copy + ending)
                    file, how = copy, "mode=rw"
            address = re.sub(r"[%?#]", lambda match: f"%{ord(match.group()):02x}", file)
            database = stack.enter_context(contextlib.closing(sqlite3.connect(f"file:{address}?{how}", uri=True)))
            return database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise Unreadable(f"{path}: {error}") from None


def rpm_lines(text: str) -> list[dict[str, str]]:
    """Parse the output of rpm -qa: name, epoch, version-release, architecture and vendor, separated by tabs."""
    found = []
    for line in text.splitlines():
        columns = line.split("\t")
        if len(columns) == 5:
            name, epoch, version, architecture, vendor = columns
            version = version if epoch in ("0", "(none)") else f"{epoch}:{version}"
            found.append({"name": name, "version": version, "architecture": architecture, "vendor": vendor})
    return found


def duplicates(packages: Sequence[dict[str, Any]]) -> list[str]:
    """Name the packages that are there twice: a transaction was killed between installing the new and erasing the old one."""
    versions: dict[str, list[str]] = defaultdict(list)
    for package in packages:
        versions[f"{package['name']}.{package['architecture']}"].append(package["version"])
    return [
        f"{name} is installed in {len(there)} versions: {', '.join(sorted(there))}"
        for name, there in sorted(versions.items())
        if len(there) > 1
    ]


def unfinished(host: Host) -> tuple[int, list[str]] | None:
    """Return number and package names of dnf4's last transaction where it never ended and nobody finished it since."""
    if not host.exists(_HISTORY):
        return None
    last = _rows(host, _HISTORY, "SELECT id, state FROM trans ORDER BY id DESC LIMIT 1")
    if not last or last[0][1] != _NEVER_ENDED:
        return None
    number = last[0][0]
    notes = json.loads(host.text(_STATE) or "{}")
    if isinstance(notes, dict) and notes.get("repaired") == number:
        return None
    query = "SELECT DISTINCT name FROM trans_item JOIN rpm USING (item_id) WHERE trans_id = ? ORDER BY name LIMIT 10000"
    return number, [str(row[0]) for row in _rows(host, _HISTORY, query, number)]


def dnf(host: Host, version_id: str | None, unknown: list[dict[str, str]]) -> dict[str, Any]:
    """Return what steers dnf: {repositories, streams, versionlock, excludes}."""
    main = ini(host.text(_CONFIGURATION) or "").get("main", {})
    variables = _variables(host, version_id)
    repositories = []
    excludes = _excludes(_CONFIGURATION, None, main)
    for folder in _REPOSITORIES:
        for name in host.names(folder):
            path = f"{folder}/{name}"
            if not name.endswith(".repo"):
                continue
            try:
                sections = ini(host.text(path) or "")
            except (OSError, Unreadable) as error:
                unknown.append({"what": f"os.dnf.repositories[{path}]", "why": reason(error)})
                continue
            for identity, settings in sections.items():
                if identity != "main":
                    repositories.append(_repository(path, _expanded(identity, variables), settings, main, variables))
                    excludes += _excludes(path, identity, settings)
    return {
        "repositories": repositories,
        "streams": streams(host),
        "versionlock": locks_count(host),
        "excludes": excludes,
    }


def streams(host: Host) -> dict[str, str | None]:
    """Return the enabled stream of every module; that of NVIDIA's driver is always a key."""
    found: dict[str, str | None] = {_DRIVER_MODULE: None}
    for name in host.names(_STREAMS):
        if name.endswith(".module"):
            for identity, settings in ini(host.text(f"{_STREAMS}/{name}") or "").items():
                if settings.get("state") == "enabled" and settings.get("stream"):
                    found[settings.get("name") or identity] = settings["stream"]
    return found


def locks_count(host: Host) -> bool:
    """Whether dnf heeds version locks: dnf5 always does, dnf4 has a plugin for it."""
    if host.exists("/usr/bin/dnf5") and not host.exists("/usr/bin/dnf-3"):
        return True
    settings = ini(host.text(_LOCK_SETTINGS) or "").get("main", {})
    if settings.get("enabled", "1").lower() in _NO:
        return False
    return any(
        host.exists(f"/usr/lib/{python}/{packages}/dnf-plugins/versionlock.py")
        for python in host.names("/usr/lib")
        if python.startswith("python3")
        for packages in ("site-packages", "dist-packages")
    )


def locks(host: Host) -> list[dict[str, Any]]:
    """Return dnf's version locks in the shape of pins: {file, packages, version, pin} and what only apt has."""
    path = ini(host.text(_LOCK_SETTINGS) or "").get("main", {}).get("locklist") or _LOCKS_4
    found = []
    for source, parse in ((path, version_locks), (_LOCKS_5, version_locks_toml)):
        for lock in parse(host.text(source) or ""):
            found.append({"file": source, **lock, "priority": None, "from_package": None})
    return found


def version_locks(text: str) -> Iterator[dict[str, Any]]:
    """Parse dnf4's versionlock.list: one pattern a line; those that begin with ! exclude a version and lock nothing."""
    for line in text.splitlines():
        pattern = line.partition("#")[0].strip()
        if pattern:
            match = _NEVRA.match(pattern)
            name = match.group("name") if match else pattern
            yield {
                "packages": name.lstrip("!"),
                "version": _evr(match) if match and not pattern.startswith("!") else None,
                "pin": pattern,
            }


def version_locks_toml(text: str) -> Iterator[dict[str, Any]]:
    """Parse dnf5's versionlock.toml as dnf5 writes it: tables ``packages``, each with ``packages.conditions``."""
    name: str | None = None
    conditions: list[dict[str, str]] = []
    for line in [*text.splitlines(), "[[packages]]"]:
        line = line.strip()
        if line == "[[packages]]":
            if name:
                written = " ".join(
                    f"{item.get('key')} {item.get('comparator')} {item.get('value')}" for item in conditions
                )
                exact = [
                    item.get("value")
                    for item in conditions
                    if item.get("key") == "evr" and item.get("comparator") == "="
                ]
                yield {"packages": name, "version": exact[0] if exact else None, "pin": f"{name} {written}".strip()}
            name, conditions = None, []
        elif line == "[[packages.conditions]]":
            conditions.append({})
        else:
            match = _TOML_VALUE.match(line)
            if match:
                value = match.group(2) if match.group(2) is not None else match.group(3)
                if conditions:
                    conditions[-1][match.group(1)] = value
                elif match.group(1) == "name":
                    name = value


def locked(package: dict[str, Any], pins: Sequence[dict[str, Any]]) -> bool:
    """Whether one of these version locks names the package, in whichever form dnf accepts (dnf-versionlock(8))."""
    name, version, architecture = package["name"], package["version"] or "", package["architecture"]
    epoch, colon, rest = version.rpartition(":")
    epoch = epoch if colon else "0"
    forms = [name, f"{name}.{architecture}", f"{name}-{rest.rpartition('-')[0]}"]
    for evr in (rest, f"{epoch}:{rest}"):
        forms += [f"{name}-{evr}", f"{name}-{evr}.{architecture}"]
    forms.append(f"{epoch}:{name}-{rest}.{architecture}")
    for pin in pins:
        if (pin["pin"] or "").startswith("!"):
            continue
        if pin["packages"] == name or any(fnmatch.fnmatchcase(form, pin["pin"].partition(" ")[0]) for form in forms):
            return True
    return False


def ini(text: str) -> dict[str, dict[str, str]]:
    """Parse dnf's configuration: [section], name=value; a line that begins with a blank goes on with the value above."""
    found: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if line[0] in " \t":
            if name:
                section[name] = f"{section[name]} {stripped}".strip()
        elif stripped[0] == "[" and stripped[-1] == "]":
            section, name = found.setdefault(stripped[1:-1].strip(), {}), ""
        else:
            key, equals, value = stripped.partition("=")
            name = key.strip() if equals else ""
            if name:
                section[name] = value.strip()
    return found


def _repository(
    path: str, identity: str, settings: dict[str, str], main: dict[str, str], variables: dict[str, str]
) -> dict[str, Any]:
    """One section of a .repo file; what it leaves out is dnf's default."""
    urls = settings.get("baseurl") or settings.get("mirrorlist") or settings.get("metalink") or ""
    return {
        "file": path,
        "id": identity,
        "urls": [_CREDENTIALS.sub("", _expanded(url, variables)) for url in _words(urls)],
        "enabled": settings.get("enabled", "1").lower() in _YES,
        "gpgcheck": settings.get("gpgcheck", main.get("gpgcheck", "0")).lower() in _YES,
        "keys": [_expanded(key, variables) for key in _words(settings.get("gpgkey", ""))],
    }


def _excludes(path: str, identity: str | None, settings: dict[str, str]) -> list[dict[str, Any]]:
    """Packages that dnf must not see, everywhere (identity null) or in one repository."""
    names = [word for key in ("exclude", "excludepkgs") for word in _words(settings.get(key, ""))]
    return [{"file": path, "id": identity, "packages": names}] if names else []


def _variables(host: Host, version_id: str | None) -> dict[str, str]:
    """dnf's variables: its own three, then those that files set."""
    found = {
        "basearch": host.machine,
        "arch": host.machine,
        "releasever": (version_id or "").partition(".")[0],
        "releasever_major": (version_id or "").partition(".")[0],
    }
    for folder in ("/etc/yum/vars", "/etc/dnf/vars"):
        for name in host.names(folder):
            found[name] = (host.text(f"{folder}/{name}", 4096) or "").strip()
    return {name: value for name, value in found.items() if value}


def _expanded(text: str, variables: dict[str, str]) -> str:
    """Put the variables in; one that is not known stays as it is written."""
    return _VARIABLE.sub(lambda match: variables.get(match.group(1) or match.group(2), match.group(0)), text)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _evr(match: re.Match[str]) -> str:
    version = f"{match.group('version')}-{match.group('release')}"
    return version if match.group("epoch") in (None, "0") else f"{match.group('epoch')}:{version}"
