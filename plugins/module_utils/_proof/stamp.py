# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The stamp of a proof: what was proven, on what and when, kept on the host.

A stamp can make a host count as proven without anything being run there, so it is doubted: whatever is missing, odd or
not known makes it cover nothing. `uncovered` is the one place that decides; the planner asks it about an observation,
cuda_verify about the host itself.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from .._probe import child, driver, expected, nvml, proc, system
from .._probe.host import Host, Unreadable
from . import judge
from .judge import BURN_SECONDS

FOLDER = "/var/lib/gpufleet/proof"
SCHEMA = 1
OWNER = 0  # whose the folder and the stamps have to be
LOCK = "/run/gpufleet-proof.lock"  # flock(2)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NVML_LIMIT = 10.0  # seconds
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_VERDICTS = ("passed", "failed", "not_run")

Document = dict[str, Any]


class NoStamp(Exception):
    """There is no stamp that could be used or written; the text says why, for people."""


class NotAlone(Exception):
    """Somebody else proves on this host; the text says so, for people."""


# ---- format ---------------------------------------------------------------------------------------------------------


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _name_or_null(value: Any) -> bool:
    return value is None or _name(value)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_name, value))


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _one_of(words: Sequence[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in words


def _mapping(**parts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and set(value) == set(parts) and all(fits(value[key]) for key, fits in parts.items())
    )


def _several(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _time(value: Any) -> datetime.datetime | None:
    try:
        found = datetime.datetime.strptime(value, _TIME)
    except (TypeError, ValueError):
        return None
    return found if found.strftime(_TIME) == value else None  # 2026-1-2 is read as well, but never written


_CHECKS = _several(_mapping(id=_name, gpu=_name_or_null, code=_name_or_null, evidence=_text))
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "schema": lambda value: _number(value) and value == SCHEMA,
    "environment": _name,
    "verdict": _one_of(_VERDICTS),
    "level": _one_of(judge.LEVELS),
    "asked": _one_of(judge.LEVELS),
    "reason": _text,
    "remedy": _text,
    "release": _name,
    "release_digest": _digest,
    "variables": lambda value: value is None or _digest(value),
    "driver": _name_or_null,
    "flavor": _name_or_null,
    "userspace": _name_or_null,
    "boot_id": _name,
    "sm": _names,
    "wish": _digest,
    "burn_seconds": _number,
    "gpus": _several(
        _mapping(
            uuid=_name,
            pci_address=_name,
            name=_name,
            mig=_name_or_null,
            compute_mode=_name_or_null,
            verdict=_one_of(_VERDICTS),
        )
    ),
    "proven_at": lambda value: _time(value) is not None,
    "torch": _name_or_null,
    "checks": _mapping(passed=_number, failed=_CHECKS, not_run=_CHECKS),
}


def checked(document: Any, name: str) -> Document:
    """Return the document of a stamp; raises NoStamp for one that `document` would not have made for this environment."""
    if not isinstance(document, dict):
        raise NoStamp("it holds no JSON object")
    wrong = sorted(str(key) for key in set(document) ^ set(_FIELDS))
    if wrong:
        raise NoStamp(f"not the keys of a stamp of schema {SCHEMA}: {', '.join(wrong)[:200]}")
    for key, fits in _FIELDS.items():
        if not fits(document[key]):
            raise NoStamp(f"{key} is {str(document[key])[:80]!r}")
    if document["environment"] != name:
        raise NoStamp(f"it is of the environment {document['environment']}")
    if document["verdict"] == "passed":
        on_gpus = judge.LEVELS.index(document["level"]) > 0
        verdicts = [gpu["verdict"] for gpu in document["gpus"]]
        if document["checks"]["failed"] or "failed" in verdicts or (on_gpus and not verdicts):
            raise NoStamp("it says passed and holds a failure, or no GPU")
        if (document["burn_seconds"] > 0) is not (document["level"] == judge.LEVELS[-1]):
            raise NoStamp("it names a burn without the level stress, or the level without a burn")
    return document


def document(result: Mapping[str, Any], now: Mapping[str, Any]) -> Document:
    """The stamp of one environment's result of cuda_verify. `now`: what the host is like, see `uncovered`, and `at`."""
    served = {gpu["pci_address"]: gpu for gpu in now["gpus"] or ()}
    found: dict[str, list[dict[str, Any]]] = {"passed": [], "failed": [], "not_run": []}
    for address, checks in [(None, result["checks"])] + [(gpu["pci_address"], gpu["checks"]) for gpu in result["gpus"]]:
        for check in checks:
            row = {"id": check["id"], "gpu": address, "code": check["code"], "evidence": check["evidence"]}
            found[check["status"]].append(row)
    proven = result["proven"] if result["verdict"] != "failed" else None
    return {
        "schema": SCHEMA,
        "environment": result["name"],
        "verdict": "passed" if proven else result["verdict"],
        "level": proven or result["level"],
        "asked": result["level"],
        "reason": result["reason"],
        "remedy": result["remedy"],
        **{key: now[key] for key, _change in _COMPARED},
        "sm": sorted(now["sm"]),
        "burn_seconds": now["burn_seconds"] if proven == "stress" else 0,
        # NVML's, as the observation has it: CUDA shows another one for a part of a GPU (MIG).
        "gpus": [
            {
                "uuid": served.get(gpu["pci_address"], gpu)["uuid"],
                **{key: served.get(gpu["pci_address"], {}).get(key) for key, _what in _SET},
                **{key: gpu[key] for key in ("pci_address", "name", "verdict")},
            }
            for gpu in result["gpus"]
        ],
        "proven_at": now["at"],
        "torch": (result["torch"] or {}).get("version"),
        "checks": {"passed": len(found["passed"]), "failed": found["failed"], "not_run": found["not_run"]},
    }


def as_result(stamp: Document, level: str) -> dict[str, Any]:
    """A stamp that covers, as cuda_verify returns an environment; above the stamp's own level nothing counts as run."""
    enough = judge.LEVELS.index(stamp["level"]) >= judge.LEVELS.index(level)
    return {
        "name": stamp["environment"],
        "verdict": "passed" if enough else "not_run",
        "level": level,
        "proven": stamp["level"],
        "proven_at": stamp["proven_at"],
        "stamped": True,
        "reason": "" if enough else stamp["reason"],
        "remedy": "" if enough else stamp["remedy"],
        "torch": {"version": stamp["torch"]},
        "companions": {},
        "checks": [],
        "gpus": [
            {**{key: gpu[key] for key in ("uuid", "pci_address", "name", "verdict")}, "checks": []}
            for gpu in stamp["gpus"]
        ],
        "ms": 0,
    }


# ---- what a stamp covers --------------------------------------------------------------------------------------------


_COMPARED = (
    ("release", "release {0} -> {1}"),
    ("release_digest", "the release's own stamp was written anew"),
    ("variables", "the environment's variables changed"),
    ("driver", "driver {0} -> {1}"),
    ("flavor", "{0} -> {1} kernel modules"),
    ("userspace", "installed driver {0} -> {1}"),
    ("boot_id", "rebooted"),
    ("sm", "GPUs of {0} -> {1}"),
    ("wish", "what is expected of it or who runs it changed"),
)
"""What has to be as it was, and what a difference is called."""

_SET = (
    ("mig", "MIG"),
    ("compute_mode", "compute mode"),
)
"""How every GPU has to be set as it was, see `settings`, and what that is called."""


def uncovered(document: Any, name: str, now: Mapping[str, Any], level: str, max_age: int) -> str | None:
    """Why a stamp does not cover a wish, in words; None where it does.

    `now` is the host as it is: the keys of `_COMPARED`, `gpus` ([{uuid, pci_address, name} and `settings`] that have to be
    proven, None: not known), `burn_seconds` (level stress) and `at` (UTC, by the host's clock). `max_age` is in hours.
    """
    if not document:
        return "no proof is on record"
    try:
        stamp = checked(document, name)
    except NoStamp as error:
        return f"the proof on record is unusable: {error}"
    if stamp["verdict"] != "passed":
        return f"its last proof {'failed' if stamp['verdict'] == 'failed' else 'could not run'}: {stamp['reason']}"
    changes = _changes(stamp, now)
    if changes:
        return f"since its proof: {', '.join(changes)}"
    if judge.LEVELS.index(stamp["level"]) < judge.LEVELS.index(level):
        reason = f" ({stamp['reason']})" if stamp["reason"] else ""
        return f"level {level} is wanted, level {stamp['level']} was proven{reason}"
    burn = now.get("burn_seconds", BURN_SECONDS)
    if level == "stress" and stamp["burn_seconds"] < burn:
        return f"a burn of {burn} s is wanted, one of {stamp['burn_seconds']} s was run"
    then, at = _time(stamp["proven_at"]), _time(now.get("at"))
    if then is None or at is None:
        return "the age of its proof is not known"
    if then > at:
        return f"its proof is dated {stamp['proven_at']}, which is still to come by the host's clock"
    if (at - then).total_seconds() >= max_age * 3600:
        return f"its proof of {stamp['proven_at']} is older than {max_age} hours"
    return None


def error_since(events: Iterable[Mapping[str, Any]], proven_at: str) -> str | None:
    """What the driver logged since a proof began, if it says that something is wrong with a GPU rather than with a program."""
    for event in events:
        grave = event.get("this_boot") and event.get("action") not in ("ignore", "restart_app")
        if grave and str(event.get("last_at") or "") >= proven_at:
            return f"since its proof: Xid {event.get('number')} ({event.get('title')}) at {event.get('pci_address')}"
    return None


def _changes(stamp: Document, now: Mapping[str, Any]) -> list[str]:
    changes = []
    for key, change in _COMPARED:
        if key not in now or stamp[key] != now[key]:
            changes.append(change.format(_shown(stamp[key]), _shown(now.get(key))))
    if judge.LEVELS.index(stamp["level"]) > 0:
        there = now.get("gpus")
        if there is None:
            return [*changes, "which GPUs the driver serves is not known"]
        before, after = ({gpu["uuid"]: gpu for gpu in gpus} for gpus in (stamp["gpus"], there))
        changes += [f"{_gpu(before[uuid])} is gone" for uuid in before if uuid not in after]
        changes += [f"{_gpu(after[uuid])} was not proven" for uuid in after if uuid not in before]
        for uuid in before:
            if uuid in after:
                changes += _set_otherwise(before[uuid], after[uuid])
    return changes


def _set_otherwise(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    changes = []
    for key, what in _SET:
        was, now = before[key], after.get(key)
        if was is None or now is None:
            changes.append(f"{what} of {_gpu(before)} {'is' if now is None else 'was'} not known")
        elif was != now:
            changes.append(f"{what} of {_gpu(before)}: {was} -> {now}")
    return changes


def _shown(value: Any) -> str:
    return (" ".join(value) if isinstance(value, list) else value) or "none"


def _gpu(gpu: Mapping[str, Any]) -> str:
    return f"{gpu['name']} at {gpu['pci_address']}"


# ---- the host -------------------------------------------------------------------------------------------------------


def state_of(host: Host, name: str, python: str) -> dict[str, Any]:
    """What has to stay the same while an environment is proven: release, driver and boot. Raises NoStamp, OSError and
    Unreadable.
    """
    folder = os.path.dirname(host.resolve(os.path.dirname(python)))
    releases, release = os.path.split(folder)
    home = os.path.dirname(releases)
    if (os.path.basename(releases), os.path.basename(home)) != ("releases", name):
        raise NoStamp(f"{python} belongs to no release of an environment {name}")
    version, flavor = proc.loaded_driver(host)
    boot_id = system.boot_id(host)
    if not boot_id:
        raise NoStamp("which boot this is cannot be told")
    return {
        "release": release,
        "release_digest": hashlib.sha256(host.read_bytes(f"{home}/stamps/{release}.json")).hexdigest(),
        "variables": digest_of(host, f"{home}/runtime.env"),
        "driver": version,
        "flavor": flavor,
        "userspace": driver.userspace_version(host),
        "boot_id": boot_id,
    }


def wish(environment: Mapping[str, Any]) -> str:
    """What is asked of an environment, of those that `prove` takes, in a sha256: the builds expected, and who runs it."""
    expect = environment.get("expect") or {}
    asked = {
        "torch": expect.get("torch") or None,
        "companions": expect.get("companions") or {},
        "user": environment.get("user") or None,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def settings(health: Any) -> dict[str, Any]:
    """What decides, without a reboot, whether CUDA shows a GPU and to whom: {mig, compute_mode}, of its health as NVML tells it.

    `mig` is "disabled", "not_applicable", or the UUIDs of its instances in one text; each is None where it is not known.
    """
    health = health if isinstance(health, dict) else {}
    mig, mode = health.get("mig"), health.get("compute_mode")
    told = nvml.NOT_APPLICABLE if mig == nvml.NOT_APPLICABLE else None
    if isinstance(mig, dict) and mig.get("enabled") is False:
        told = "disabled"
    elif isinstance(mig, dict) and mig.get("enabled") is True and isinstance(mig.get("instances"), list):
        uuids: list[Any] = [part.get("uuid") if isinstance(part, dict) else None for part in mig["instances"]]
        told = (" ".join(sorted(uuids)) or "no instances") if _names(uuids) else None
    return {"mig": told, "compute_mode": mode if _name(mode) else None}


def digest_of(host: Host, path: str) -> str | None:
    """The sha256 of a file, None where there is none."""
    text = host.read_bytes(path) if host.exists(path) else None
    return None if text is None else hashlib.sha256(text).hexdigest()


def present(
    host: Host, state: Mapping[str, Any], sm: Sequence[str], addresses: Sequence[str] | None, at: str, time_limit: float
) -> dict[str, Any]:
    """`state` with what else there is on the host that a stamp is compared with; NVML tells which GPUs the driver serves, of
    those at `addresses`.
    """
    wsl = host.exists("/dev/dxg")
    told: dict[str, Any] = {"gpus": []}
    if wsl or state["driver"]:
        try:
            told = child.start(lambda: nvml.read(host), time_limit, True).answer()
        except (child.NoAnswer, OSError):
            told = {"gpus": None}
    gpus = told["gpus"]
    if gpus is not None:
        keys = ("uuid", "pci_address", "name")
        rows = ({**{key: gpu[key] for key in keys}, **settings(gpu["health"])} for gpu in gpus if gpu["uuid"])
        gpus = [row for row in rows if addresses is None or row["pci_address"] in addresses]
    of_windows = told.get("driver_version") if wsl else None
    return {
        **state,
        "driver": state["driver"] or of_windows,
        "userspace": state["userspace"] or of_windows,
        "sm": sorted(sm),
        "gpus": gpus,
        "at": at,
    }


def read(host: Host, name: str) -> Document | None:
    """Return an environment's stamp, None where there is none. Raises NoStamp for one that is not to be trusted, OSError
    and Unreadable.
    """
    path = _path(name)
    if host.lstat(path) is None:
        return None
    trust(host, FOLDER, "directory", stat.S_ISDIR)
    trust(host, path, "regular file", stat.S_ISREG)
    try:
        text = host.read_bytes(path).decode("utf-8")
        return checked(json.loads(text), name)
    except (ValueError, RecursionError, NoStamp) as error:
        raise NoStamp(f"{path}: {error}") from error


def trust(host: Host, path: str, what: str, kind: Callable[[int], bool]) -> None:
    """Raise NoStamp unless a path is root's own and of this kind (stat.S_ISREG...), OSError where that cannot be seen."""
    state = host.lstat(path)
    if state is None or not kind(state.st_mode) or state.st_uid != OWNER or state.st_mode & 0o022:
        raise NoStamp(f"{path} is no {what} of root's that nobody else can write")


def write(host: Host, stamp: Document) -> None:
    """Put a stamp in place, and before it which GPUs passed, each in one step that survives a power loss. Raises NoStamp and OSError."""
    path = _path(checked(stamp, stamp["environment"])["environment"])
    for folder in (os.path.dirname(FOLDER), FOLDER):
        with contextlib.suppress(FileExistsError):
            os.mkdir(host.root + folder, 0o755)
    trust(host, FOLDER, "directory", stat.S_ISDIR)
    gpus = [gpu for gpu in stamp["gpus"] if gpu["verdict"] == "passed"]
    if stamp["verdict"] == "passed" and gpus:  # one that is gone later is missing, not absent
        try:
            memory = expected.remembered(host, gpus, stamp["proven_at"], stamp["boot_id"])
        except (ValueError, Unreadable) as error:
            raise NoStamp(
                f"which GPUs the host should have cannot be read from {expected.PATH} ({error}); delete it if those that are"
                " there are all"
            ) from error
        _put(host, expected.PATH, memory)
    _put(host, path, stamp)


def _put(host: Host, path: str, content: Document) -> None:
    final = host.root + path
    scratch = f"{final}.{os.getpid()}"
    try:
        with open(scratch, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # whatever the umask
            os.fsync(file.fileno())
        os.rename(scratch, final)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
    _sync(host, path)


def forget(host: Host, name: str) -> None:
    """Delete an environment's stamp, and be sure of it: nothing is proven from here on. Raises OSError."""
    try:
        os.unlink(host.root + _path(name))
    except FileNotFoundError:
        return
    _sync(host, _path(name))


def remove(host: Host, name: str) -> None:
    """Delete an environment's stamp, and with the last one which GPUs passed. Raises OSError."""
    forget(host, name)
    if not host.names(FOLDER):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(host.root + expected.PATH)
        for folder in (FOLDER, os.path.dirname(FOLDER)):
            with contextlib.suppress(OSError):  # not there, or somebody else's files are in it
                os.rmdir(host.root + folder)


def _sync(host: Host, path: str) -> None:
    folder = os.open(host.root + os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _path(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NoStamp(f"{name!r} is no name of an environment")
    return f"{FOLDER}/{name}.json"


# ---- a proof with stamps --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(host: Host, patience: float = 0.0) -> Iterator[None]:
    """Be the only one who proves on this host: each of two would find the GPUs in use. Raises NotAlone after so many seconds."""
    path = host.root + LOCK
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(open(path, "a", encoding="ascii"))
        except OSError as error:
            raise NotAlone(f"whether something else proves here cannot be seen: {error}") from error
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise NotAlone(f"another proof runs on this host ({LOCK} is locked)") from None
                time.sleep(0.2)
        yield


def prove(
    run: Callable[..., dict[str, Any]],
    environments: Sequence[dict[str, Any]],
    options: Mapping[str, Any],
    keep: bool,
    max_age: int,
    warn: Callable[[str], None],
    host: Host | None = None,
    clock: Callable[[], float] = time.time,
    doubt: bool = False,
) -> dict[str, Any]:
    """`run` (runner.prove, with its `options`) what no stamp younger than `max_age` hours covers, and `keep` what comes of it.

    With `doubt` a failure deletes the stamp although nothing is kept: what an earlier proof said is no longer so.
    Raises OSError where a stamp that is to go cannot be deleted: nothing is proven then.
    """
    host = host or Host()
    seen = [_state_or_why(host, environment) for environment in environments]
    results: dict[int, dict[str, Any]] = {}
    for number, (environment, state) in enumerate(zip(environments, seen)):
        if max_age > 0 and isinstance(state, dict):
            found = _covering(host, environment, state, options, max_age, system.utc(clock()))
            if found is not None:
                results[number] = {**as_result(found, options["level"]), "python": environment["python"], "user": None}
    todo = [number for number in range(len(environments)) if number not in results]
    if keep:
        for number in todo:
            with contextlib.suppress(NoStamp):  # what cannot be a name has no stamp
                forget(host, environments[number]["name"])
    began = system.utc(clock())  # what the driver logs from here on may be of what is proven here
    proven = run([environments[number] for number in todo], **options)["environments"] if todo else []
    for number, one in zip(todo, proven):
        results[number] = {**one, "stamped": False, "proven_at": began}
        if doubt and one["verdict"] == "failed":
            with contextlib.suppress(NoStamp):
                forget(host, one["name"])
        if keep:
            why = _kept(host, environments[number], results[number], seen[number], options)
            if why:
                warn(f"{one['name']}: no stamp was written, so the next run proves it again: {why}")
    ordered = [results[number] for number in range(len(environments))]
    return {
        "verdict": judge.combine([one["verdict"] for one in ordered]),
        "level": options["level"],
        "environments": ordered,
    }


def _state_or_why(host: Host, environment: Mapping[str, Any]) -> dict[str, Any] | str:
    try:
        return state_of(host, environment["name"], environment["python"])
    except (NoStamp, OSError, Unreadable) as error:
        return str(error)


def _present(
    host: Host, environment: Mapping[str, Any], state: Mapping[str, Any], options: Mapping[str, Any], at: str
) -> dict[str, Any]:
    now = present(host, state, environment.get("sm") or options["sm"], options["gpus"], at, _NVML_LIMIT)
    burn_seconds = int(options.get("burn_seconds") or BURN_SECONDS)
    return {**now, "wish": wish(environment), "burn_seconds": burn_seconds}


def _covering(
    host: Host,
    environment: Mapping[str, Any],
    state: Mapping[str, Any],
    options: Mapping[str, Any],
    max_age: int,
    at: str,
) -> Document | None:
    name = environment["name"]
    try:
        found = read(host, name)
    except (NoStamp, OSError, Unreadable):
        return None
    if found is None:
        return None
    now = _present(host, environment, state, options, at)
    return found if uncovered(found, name, now, options["level"], max_age) is None else None


def _kept(
    host: Host,
    environment: Mapping[str, Any],
    proven: Mapping[str, Any],
    before: dict[str, Any] | str,
    options: Mapping[str, Any],
) -> str | None:
    """Write the stamp of a proof; why not, where not."""
    after = _state_or_why(host, environment)
    if isinstance(before, str) or isinstance(after, str):
        return before if isinstance(before, str) else str(after)
    changed = [key for key in before if before[key] != after[key]]
    if changed:
        return f"{', '.join(changed)} changed while it was proven"
    try:
        write(host, document(proven, _present(host, environment, after, options, proven["proven_at"])))
    except (NoStamp, OSError) as error:
        return str(error)
    return None
