# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What the controller keeps of a fleet's compliance: a file for each run, what provisioning left, the reports.

A run's file is JSON whose first line is its summary, so that the course of hundreds of runs is read without their hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.canonical import OUTCOMES

SCHEMA = 1
_RUN = re.compile(r"[0-9]{8}T[0-9]{6}Z\.json")
_AT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_FINE = ("passed", "not_applicable")
_JUDGED = ("ready", "not_ready")


class NotKept(Exception):
    """A file of the controller cannot be written. The text says which, why and what to do."""


@dataclass(frozen=True)
class History:
    """What earlier runs left."""

    at: str | None = None
    """UTC, of the last run; null where there is none that can be read."""
    hosts: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The last verdict of each host: {outcome, since, results: {rule: {status, since}}, facts}. A rule that is not named was passed or not
    applicable. Results and facts are of the last run that observed the host."""
    provisioned: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """{host: {at, facts}} of the last provisioning that ended with the host ready."""
    series: list[dict[str, Any]] = field(default_factory=list)
    """{at, totals, failing: {rule: hosts}} of each run, the oldest first."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, in sentences."""


def folder_for(places: Mapping[str, Any]) -> Path:
    """Where history, records and reports of an inventory lie: beside its locks (``places`` as locks.folder_for takes them)."""
    return locks.folder_for(places).parent / "compliance"


def read(folder: Path) -> History:
    """Return what earlier runs left in ``folder``; what is damaged is named in ``problems`` and otherwise as if it were not there."""
    problems: list[str] = []
    series: list[dict[str, Any]] = []
    for path in _runs(folder, problems):
        try:
            series.append(_summary(path))
        except (OSError, ValueError) as error:
            problems.append(_damaged(path, error))
    last: dict[str, Any] = {}
    while series and not last:  # the newest whose hosts can be read
        path = folder / "history" / _name(series[-1]["at"])
        try:
            last = _document(path)
        except (OSError, ValueError) as error:
            problems.append(_damaged(path, error))
            series.pop()
    return History(last.get("at"), last.get("hosts", {}), _provisioned(folder, problems), series, problems)


def write(folder: Path, document: Mapping[str, Any], keep: int) -> Path:
    """Keep a run's verdicts and forget the oldest beyond ``keep``; raises NotKept.

    A host that was not asked keeps its last verdict, one that was not observed its last results and facts.
    """
    path = folder / "history" / _name(document["generated_at"])
    with _held(folder):
        before = read(folder).hosts
        hosts = {host["name"]: _kept(host, before.get(host["name"], {})) for host in document["hosts"]}
        head = {"schema": SCHEMA, **summary(document)}
        lines = [f"{_json(name)}: {_json(entry)}" for name, entry in sorted(hosts.items())]
        _write(path, _json(head)[:-1] + ',\n"hosts": {\n' + ",\n".join(lines) + "\n}}\n")
        for old in _runs(folder, [])[: -max(keep, 1)]:
            with _explained(old):
                old.unlink(missing_ok=True)
    return path


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return {at, totals, failing} of a canonical document; ``failing`` counts hosts with an unwaived failure, error or unjudged item."""
    failing: dict[str, int] = {}
    for host in document["hosts"]:
        for rule, result in host["results"].items():
            if result["status"] not in (*_FINE, "waived"):
                failing[rule] = failing.get(rule, 0) + 1
    return {"at": document["generated_at"], "totals": document["totals"], "failing": dict(sorted(failing.items()))}


def record_provisioned(folder: Path, facts: Mapping[str, Mapping[str, Any]], at: str) -> None:
    """Keep what hosts were like when provisioning ended with them ready; raises NotKept. Other hosts' records stay."""
    if not facts:
        return
    path = folder / "provisioned.json"
    with _held(folder):
        problems: list[str] = []
        known = _provisioned(folder, problems)
        if problems:
            with _explained(path):
                path.replace(path.with_name("provisioned.damaged.json"))
        records = {**known, **{host: {"at": at, "facts": dict(found)} for host, found in facts.items()}}
        lines = [f"{_json(host)}: {_json(record)}" for host, record in sorted(records.items())]
        _write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def write_reports(folder: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """Write reports by their file names, each in one step, and return their paths; raises NotKept."""
    with _held(folder):
        for name, text in texts.items():
            _write(folder / name, text)
    return {name: str(folder / name) for name in texts}


def _kept(host: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    if host["outcome"] == "not_asked" and before:
        return dict(before)
    kept = {"outcome": host["outcome"], "since": host.get("since")}
    if host["outcome"] not in _JUDGED:
        return {**kept, "results": before.get("results", {}), "facts": before.get("facts", {})}
    results = {
        rule: {"status": result["status"], "since": result.get("since")}
        for rule, result in sorted(host["results"].items())
        if result["status"] not in _FINE
    }
    return {**kept, "results": results, "facts": host.get("facts") or {}}


def _runs(folder: Path, problems: list[str]) -> list[Path]:
    """Return the files of all runs, the oldest first."""
    try:
        names = sorted(name for name in os.listdir(folder / "history") if _RUN.fullmatch(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(_damaged(folder / "history", error))
        return []
    return [folder / "history" / name for name in names]


def _summary(path: Path) -> dict[str, Any]:
    """Read a run's first line; raises ValueError where it is not what `write` writes."""
    with open(path, encoding="utf-8") as file:
        line = file.readline().rstrip()
    if not line.endswith(","):
        raise ValueError("its first line is no summary")
    return _checked(json.loads(line[:-1] + "}"), path)


def _checked(head: Any, path: Path) -> dict[str, Any]:
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        raise ValueError(f"it is not of schema {SCHEMA}")
    at, totals, failing = (head.get(key) for key in ("at", "totals", "failing"))
    if not isinstance(at, str) or not _AT.fullmatch(at) or _name(at) != path.name:
        raise ValueError("its time is not that of its name")
    if not _counts(totals) or not _counts(failing):
        raise ValueError("its totals are no numbers")
    return {"at": at, "totals": totals, "failing": failing}


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(number, int) and not isinstance(number, bool) for number in value.values()
    )


def _document(path: Path) -> dict[str, Any]:
    whole = _load(path)
    head = _checked(whole, path)
    hosts = whole.get("hosts")
    if not isinstance(hosts, dict) or not all(_is_verdict(entry) for entry in hosts.values()):
        raise ValueError("a host's verdict is not as it was written")
    return {"at": head["at"], "hosts": hosts}


def _is_verdict(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("facts"), dict):
        return False
    results = entry.get("results")
    return (
        entry.get("outcome") in OUTCOMES
        and isinstance(entry.get("since"), (str, type(None)))
        and isinstance(results, dict)
        and all(isinstance(result, dict) and isinstance(result.get("status"), str) for result in results.values())
    )


def _provisioned(folder: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    path = folder / "provisioned.json"
    try:
        records = _load(path)
        for record in records.values():
            if not isinstance(record, dict) or not isinstance(record.get("at"), str):
                raise ValueError("a host's record has no time")
            if not isinstance(record.get("facts"), dict):
                raise ValueError("a host's record has no facts")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(_damaged(path, error))
        return {}
    return records


def _load(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it holds no mapping")
    return content


def _damaged(path: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else error
    return f"{path} cannot be used and is left aside: {why}. Remove it, or put its backup in its place."


def _name(at: str) -> str:
    return re.sub("[-:]", "", at) + ".json"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: several controllers may share it."""
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, text: str) -> None:
    """Write a file of mode 0600 in one step: readers see the old one or the new one."""
    with _explained(path):
        path.parent.mkdir(exist_ok=True, mode=0o700)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(scratch, path)
        except OSError:
            os.unlink(scratch)
            raise


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotKept(
            f"{path} cannot be written on the controller: {error.strerror}. Make its folder writable for the user who runs Ansible, or "
            "name another one in gpufleet_state_dir (reports: gpu_compliance_directory)."
        ) from error
