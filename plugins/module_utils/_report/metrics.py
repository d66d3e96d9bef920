# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics as Prometheus reads them (text format 0.0.4), and those that a host writes about itself.

PRIVATE to the collection: it can change at any time without notice.

Pure, and imports nothing of the collection: it is part of the program that hosts run. Nothing here raises, whatever values it is given:
what is no number is left out, so that an alert on a missing series sees it.
"""

from __future__ import annotations

import datetime
import math
import re
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

UNPRINTABLE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ud800-\\udfff\\ufeff\\ufff9-\\ufffb"
    "\\ufffe\\uffff\\U000e0000-\\U000e007f]+"
)
"""Runs of what must not be shown: it moves a terminal's cursor, reorders or hides its neighbours, or is no character of XML or UTF-8."""

_LONGEST = 200  # characters of a label's value: each series repeats it in the memory of the server
_TIME = "%Y-%m-%dT%H:%M:%SZ"

Labels = dict[str, str]


class Family(NamedTuple):
    """All series of one metric."""

    name: str
    kind: str  # gauge or counter
    help: str
    series: Sequence[tuple[Mapping[str, Any], Any]]  # labels, value


def text(families: Iterable[Family]) -> str:
    """Return the textfile: in the order of the families, their series sorted, none twice (the first one counts)."""
    lines = []
    for family in families:
        found: dict[str, str] = {}
        for labels, value in family.series:
            number = _number(value)
            if number is not None:
                found.setdefault(_labels(labels), number)
        if found:
            lines += [f"# HELP {family.name} {_escaped(family.help)}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{labels} {number}" for labels, number in sorted(found.items())]
    return "".join(f"{line}\n" for line in lines)


def label(value: Any) -> str:
    """Return what a label holds of a value: one line of visible text, cut where it is long."""
    shown = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", "" if value is None else str(value))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def seconds(time: Any) -> int | None:
    """Return an ISO 8601 UTC time as seconds since 1970; None for what is none."""
    try:
        found = datetime.datetime.strptime(time, _TIME)
    except (TypeError, ValueError):
        return None
    return int(found.replace(tzinfo=datetime.timezone.utc).timestamp())


def of_host(proofs: Sequence[Mapping[str, Any]], observation: Mapping[str, Any], at: str) -> list[Family]:
    """Return a host's own metrics.

    ``proofs`` has one item for each environment that the host is to have: ``environment``, ``stamp`` (as `_proof/stamp.py` read it, None:
    there is none) and ``covers`` (whether it covers the host as it is now; only true passes). ``observation`` is gpu_info's, or a part of
    it: ``health`` and ``gpus``. ``at`` is when this was seen, by the host's clock.
    """
    passed, proven_at, gpus = [], [], []
    for proof in map(_mapping, proofs):
        stamp, environment = _mapping(proof.get("stamp")), proof.get("environment")
        good = proof.get("covers") is True and stamp.get("verdict") == "passed"
        passed.append(({"environment": environment, "level": stamp.get("level")}, good))
        proven_at.append(({"environment": environment}, seconds(stamp.get("proven_at"))))
        for gpu in map(_mapping, _list(stamp.get("gpus"))):
            gpu_good = proof.get("covers") is True and gpu.get("verdict") == "passed"
            gpus.append(({"environment": environment, "uuid": gpu.get("uuid")}, gpu_good))
    health = _mapping(observation.get("health"))
    missing, there = health.get("missing_gpus"), observation.get("gpus")
    xid: dict[tuple[str, str, str], int] = {}
    for message in map(_mapping, _list(health.get("xid"))):
        count = message.get("count")
        if message.get("this_boot") is True and isinstance(count, int):
            key = (label(message.get("pci_address")), label(message.get("number")), label(message.get("severity")))
            xid[key] = xid.get(key, 0) + count
    return [
        Family(
            "gpufleet_proof_passed",
            "gauge",
            "1 where the environment's last proof passed and still covers the host as it is, at that level; else 0.",
            passed,
        ),
        Family(
            "gpufleet_proof_timestamp_seconds",
            "gauge",
            "When the environment's last proof ended, by the host's clock, since 1970.",
            proven_at,
        ),
        Family(
            "gpufleet_proof_gpu_passed",
            "gauge",
            "1 where this GPU passed the environment's last proof, which still covers the host as it is; else 0.",
            gpus,
        ),
        Family("gpufleet_gpus", "gauge", "GPUs that the host has now.", _length(there)),
        Family("gpufleet_gpu_missing", "gauge", "GPUs that the host had and that are gone or lost.", _length(missing)),
        Family(
            "gpufleet_xid_total",
            "counter",
            "Xid messages of the NVIDIA driver since the host was booted.",
            [
                ({"pci_address": address, "xid": number, "severity": severity}, count)
                for (address, number, severity), count in xid.items()
            ],
        ),
        Family(
            "gpufleet_host_checked_timestamp_seconds",
            "gauge",
            "When the host wrote these metrics, by its own clock, since 1970.",
            [({}, seconds(at))],
        ),
    ]


def _length(value: Any) -> list[tuple[Labels, int]]:
    return [({}, len(value))] if isinstance(value, list) else []


def _labels(labels: Mapping[str, Any]) -> str:
    pairs = [f'{name}="{_escaped(label(value), quotes=True)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str, quotes: bool = False) -> str:
    value = value.replace("\\", "\\\\").replace("\n", "\\n")
    return value.replace('"', '\\"') if quotes else value


def _number(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        # The server keeps every value as a 64-bit float.
        return str(value) if abs(value) < 2**63 else None
    return repr(value) if isinstance(value, float) and math.isfinite(value) else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
