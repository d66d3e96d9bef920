# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The program that a host's own timer runs: prove what no stamp covers, and write the metrics.

It decides by `stamp.uncovered` as the planner and cuda_verify do, and adds no rule of what counts as proven. What the host is like
never makes it fail, the metrics tell that: its status is not 0 only where it could not do its work.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
import time
from typing import Any, Callable, Mapping, NamedTuple

from .._probe import health, nvml, observe, system
from .._probe.host import Host, Unreadable
from .._report import metrics
from . import judge, runner, stamp

CONFIGURATION = "/etc/gpufleet/proof.json"
SCHEMA = 1
TEXTFILE = "gpufleet_host.prom"

_LATE = (nvml,)  # observe imports it late, and the program is made of what is imported when it is packed
_RENEWED_AT = 0.75  # of the greatest age: a GPU that is busy then has a quarter of it left to become idle
_PACKAGES_LIMIT, _POLL = 600, 5  # seconds
_QUIET = 30  # seconds without a change, after which a change of packages is over
_DATABASES = (
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
)
_NVML_LIMIT = 10.0  # seconds


class Unusable(Exception):
    """The configuration cannot be used; the text says why, for people."""


class Environment(NamedTuple):
    """An environment that has to be proven."""

    name: str
    python: str
    user: str | None
    sm: list[str]


class Settings(NamedTuple):
    """What the role wrote for this host."""

    environments: list[Environment]
    root: str
    level: str
    max_age: int
    time_limit: int | None
    gpus: list[str] | None
    textfile_directory: str


class Seen(NamedTuple):
    """What is known of an environment's proof."""

    environment: Environment
    stamp: dict[str, Any]  # empty: there is none that can be trusted
    now: dict[str, Any]
    expect: dict[str, Any]
    events: list[dict[str, Any]]
    problem: str | None  # why it cannot be proven at all

    def why(self, level: str, max_age: int) -> str | None:
        """Why its stamp does not cover this; None where it does."""
        why = self.problem or stamp.uncovered(self.stamp, self.environment.name, self.now, level, max_age)
        return why or stamp.error_since(self.events, self.stamp["proven_at"])


# ---- configuration --------------------------------------------------------------------------------------------------


def read_settings(host: Host) -> Settings:
    """Read the configuration, of which root alone may be the author: it names programs to run. Raises Unusable."""
    try:
        stamp.trust(host, CONFIGURATION, "regular file", stat.S_ISREG)
        return settings_of(json.loads(host.read_bytes(CONFIGURATION).decode("utf-8")))
    except (stamp.NoStamp, OSError, Unreadable) as error:
        raise Unusable(str(error)) from error
    except (ValueError, RecursionError, Unusable) as error:
        raise Unusable(f"{CONFIGURATION}: {error}") from error


def settings_of(document: Any) -> Settings:
    """Return the settings that a document holds. Raises Unusable where the role would not have written it."""
    values = _fields(document, ("schema", *Settings._fields), "the configuration")
    if values.pop("schema") != SCHEMA:
        raise Unusable(f"it is not of schema {SCHEMA}; run the role gpu_compliance again")
    environments = values["environments"]
    if not isinstance(environments, list):
        raise Unusable("environments is no list")
    rows = [Environment(**_fields(row, Environment._fields, "an environment")) for row in environments]
    for row in rows:
        if not (_path(row.python) and isinstance(row.name, str) and _texts(row.sm) and _text_or_none(row.user)):
            raise Unusable(f"the environment {row.name!r} has a value of the wrong type")
    settings = Settings(**{**values, "environments": rows})
    wrong = {
        "root": not _path(settings.root),
        "level": settings.level not in judge.LEVELS,
        "max_age": not _whole(settings.max_age) or settings.max_age < 1,
        "time_limit": settings.time_limit is not None and (not _whole(settings.time_limit) or settings.time_limit < 1),
        "gpus": settings.gpus is not None and not _texts(settings.gpus),
        "textfile_directory": not _path(settings.textfile_directory),
    }
    for key, bad in wrong.items():
        if bad:
            raise Unusable(f"{key} is {str(values[key])[:80]!r}")
    return settings


def _fields(value: Any, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise Unusable(f"{what} has to hold {', '.join(keys)}, and nothing besides")
    return dict(value)


def _path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---- a tick ---------------------------------------------------------------------------------------------------------


def tick(
    host: Host,
    settings: Settings,
    run: Callable[..., dict[str, Any]] = runner.prove,
    look: Callable[[Host, observe.Request], dict[str, Any]] = observe.observe,
    say: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.time,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Prove what has to be proven and can be now, then write the metrics, whatever came of that. Raises OSError."""
    say = say or _say
    request = observe.Request(root=settings.root, environments=[row.name for row in settings.environments])
    try:
        who = wait_for_packages(host, clock, pause)
        if who is None:
            with stamp.alone(host):
                _prove(host, settings, look(host, request), run, say, clock)
        else:
            say(f"nothing was proven: {who}; the next run tries again")
    except stamp.NotAlone as error:
        say(f"nothing was proven: {error}; the next run tries again")
    finally:
        observation = look(host, request)
        rows = [_see(host, settings, row, observation, clock) for row in settings.environments]
        for seen in rows:
            why = seen.why(settings.level, settings.max_age)
            say(f"{seen.environment.name}: {why or 'proven at level ' + seen.stamp['level']}")
        write_metrics(host, settings, rows, observation, system.utc(clock()))


def _prove(
    host: Host,
    settings: Settings,
    observation: Mapping[str, Any],
    run: Callable[..., dict[str, Any]],
    say: Callable[[str], None],
    clock: Callable[[], float],
) -> None:
    unusable = None if settings.level == "static" else why_no_gpu(host, settings, observation)
    todo = []
    for row in settings.environments:
        seen = _see(host, settings, row, observation, clock)
        why = due(seen, settings, unusable is not None)
        if why:
            say(f"{row.name}: is proven now: {why}")
            todo.append({**row._asdict(), "expect": seen.expect})
    if unusable and len(todo) < len(settings.environments):
        say(f"no GPU is proven on: {unusable}")
    options = {
        "level": settings.level,
        "sm": [],
        "gpus": settings.gpus,
        "time_limit": settings.time_limit,
    }
    if todo:
        stamp.prove(run, todo, options, True, 0, say, host, clock)


def due(seen: Seen, settings: Settings, unusable: bool) -> str | None:
    """Why an environment has to be proven now; None where it need not, or where that would only take away what is known."""
    if seen.problem:
        return None
    why = seen.why(settings.level, max(1, int(settings.max_age * _RENEWED_AT)))
    if why and unusable:
        failed = seen.stamp.get("verdict") == "failed"
        return None if failed or seen.why("static", settings.max_age) is None else why
    return why


def why_no_gpu(host: Host, settings: Settings, observation: Mapping[str, Any]) -> str | None:
    """Why nothing can be proven on a GPU at present; None where nothing is known against it."""
    absent = runner.driver_absent(host)
    if absent is not None:
        return absent[1]
    for process in observation["driver"]["processes"] or ():
        on = process.get("gpus")
        if process["kind"] == "compute" and not (on and settings.gpus and not set(on) & set(settings.gpus)):
            return f"{process['command']} ({process['pid']}) computes"
    return None


def _see(
    host: Host,
    settings: Settings,
    environment: Environment,
    observation: Mapping[str, Any],
    clock: Callable[[], float],
) -> Seen:
    events = [
        event
        for event in observation["health"]["xid"] or ()
        if settings.gpus is None or event["pci_address"] in settings.gpus
    ]
    now: dict[str, Any] = {}
    expect: dict[str, Any] = {}
    found = problem = None
    try:
        state = stamp.state_of(host, environment.name, environment.python)
        expect = _expected(host, environment)
        now = {
            **stamp.present(host, state, environment.sm, settings.gpus, system.utc(clock()), _NVML_LIMIT),
            "wish": stamp.wish({**environment._asdict(), "expect": expect}),
        }
    except (stamp.NoStamp, OSError, Unreadable, ValueError) as error:
        problem = f"it cannot be proven: {error}"
    with contextlib.suppress(stamp.NoStamp, OSError, Unreadable):  # a stamp that cannot be trusted is none
        found = stamp.read(host, environment.name)
    return Seen(environment, found or {}, now, expect, events, problem)


def _expected(host: Host, environment: Environment) -> dict[str, Any]:
    """What the release that serves was built to hold: it may be a newer one than when the role ran."""
    release = os.path.dirname(host.resolve(os.path.dirname(environment.python)))
    releases, name = os.path.split(release)
    text = host.read_bytes(f"{os.path.dirname(releases)}/stamps/{name}.json").decode("utf-8")
    manifest = json.loads(text)
    spec = manifest.get("spec") if isinstance(manifest, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("torch"), str):
        raise ValueError(f"the stamp of its release {name} does not say which torch it holds")
    companions = spec.get("companions")
    return {"torch": spec["torch"], "companions": companions if isinstance(companions, dict) else {}}


def wait_for_packages(host: Host, clock: Callable[[], float], pause: Callable[[float], None]) -> str | None:
    """Wait until nobody has changed packages for a moment; who still does after 10 minutes.

    In the middle of an update the driver's files do not fit together, and a proof would call that a failure.
    """
    for left in range(_PACKAGES_LIMIT, -1, -_POLL):
        who = health.changing_packages(health.locks(host, []))
        if who is None and not any(0 <= clock() - changed < _QUIET for changed in _changed_at(host)):
            return None
        if left:
            pause(_POLL)
    return f"{who} changes packages" if who else "packages are being changed"


def _changed_at(host: Host) -> list[float]:
    return [state.st_mtime for state in map(host.lstat, _DATABASES) if state is not None]


# ---- metrics --------------------------------------------------------------------------------------------------------


def write_metrics(host: Host, settings: Settings, rows: list[Seen], observation: Mapping[str, Any], at: str) -> None:
    """Replace the textfile in one step. Raises OSError."""
    proofs = [
        {
            "environment": seen.environment.name,
            "stamp": seen.stamp or None,
            "covers": seen.why(settings.level, settings.max_age) is None,
        }
        for seen in rows
    ]
    content = metrics.text(metrics.of_host(proofs, observation, at))
    folder = os.open(host.root + settings.textfile_directory, os.O_RDONLY | os.O_DIRECTORY)
    scratch = f".{TEXTFILE}.{os.getpid()}"  # node_exporter reads names that end with .prom
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=folder)
        # The folder may be another account's, which could have put a link there.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(scratch, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # whatever the umask
            os.fsync(file.fileno())
        os.rename(scratch, TEXTFILE, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=folder)
        raise
    finally:
        os.close(folder)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _end(*_arguments: Any) -> None:
    """At systemd's time limit: end what runs, and write the metrics."""
    raise SystemExit(1)


def main(host: Host | None = None) -> int:
    """Run once; the status of the process."""
    host = host or Host()
    signal.signal(signal.SIGTERM, _end)
    try:
        tick(host, read_settings(host))
    except (Unusable, OSError, Unreadable) as error:
        sys.stderr.write(f"gpufleet-proof: {error}\n")
        return 1
    return 0
