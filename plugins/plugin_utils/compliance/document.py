# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What a rule sees of a host: its observation, joined with the plan and with what is known of driver branches.

Pure. Nothing is filled in or repaired: what was not observed stays absent or null, and what has another type than it should keeps it,
so that the rule that needs it says so.
"""

from __future__ import annotations

import calendar
import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import matrix, sass
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof.judge import LEVELS
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials

REDACTED = "(redacted)"

_OBSERVED = (
    *("schema", "observed_at", "os", "gpus", "driver", "environments", "runtime", "files", "health", "foreign", "urls"),
    "unknown",
)
_PLANNED = ("feasible", "refusals", "actions", "pending", "warnings")
_OF_PEOPLE = frozenset(
    ("user", "users", "username", "who", "owner", "group", "command", "commands", "cmdline", "argv", "holder")
)
"""Keys whose values name people or show what they run."""
_HOME = re.compile(r"(/home/|/Users/)[^/\s\"':]+")
_PROCESS = re.compile(r"\b(process \d+) \([^)]*\)")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_SIGNED_BY = re.compile(r"/[^\n]*|inline|[0-9A-Fa-f]{16,40}!?")
_CODE = re.compile(r"(sm|compute)_[0-9]{2,3}[af]?")
_CUDA = re.compile(r"[0-9]+(\.[0-9]+)*")
_BRANCHES = {row["branch"]: row for row in matrix.DRIVER_BRANCHES}


def build(
    host: str, state: Mapping[str, Any], groups: list[str], now: datetime.datetime, required_level: Any
) -> dict[str, Any]:
    """Return the document of a host. ``state``: {planned: result of the action plan, proof: result of cuda_verify}; ``now`` is in UTC.

    People's names, command lines, homes and URLs' credentials are gone from it.
    """
    planned = _mapping(state.get("planned"))
    plan = _mapping(planned.get("plan"))
    document = {key: value for key, value in _mapping(planned.get("observation")).items() if key in _OBSERVED}
    if isinstance(document.get("gpus"), list):
        document["gpus"] = [_gpu(gpu, plan) for gpu in document["gpus"]]
    if isinstance(document.get("driver"), dict):
        document["driver"] = {**document["driver"], **_branch(document["driver"].get("branch"), now)}
    if isinstance(document.get("os"), dict):
        document["os"] = _system(document["os"], _mapping(document.get("driver")))
        if any(_mapping(note).get("what") == "os.kernels" for note in _list(document.get("unknown"))):
            document["os"]["kernels"] = None  # the probe's list is empty then, as that of a container, which boots none
    wanted = plan.get("environments")
    if isinstance(wanted, list):
        document["wanted_environments"] = [_mapping(item).get("name") for item in wanted]
    proof = _mapping(state.get("proof"))
    proof = proof if proof and not proof.get("skipped") else {}
    if isinstance(document.get("environments"), list):
        document["environments"] = [
            _environment(environment, plan, proof, required_level) for environment in document["environments"]
        ]
    document.update(
        plan={
            **{key: plan[key] for key in _PLANNED if key in plan},
            "variables_for_all": _mapping(plan.get("runtime")).get("scope") != "environment",
        },
        proof=proof or None,
        required_level=required_level,
        host=host,
        groups=groups,
    )
    return redact(document)


def _system(system: dict[str, Any], driver: Mapping[str, Any]) -> dict[str, Any]:
    """The system; whether it is WSL2, where Windows has the driver; and what is known of each kernel that can boot."""
    joined = {**system, "wsl": system.get("virtualization") == "wsl"}
    if isinstance(system.get("kernels"), list):
        joined["kernels"] = [_kernel(kernel, driver) for kernel in system["kernels"]]
    joined["driver_repositories"] = _driver_repositories(system.get("apt"), system.get("dnf"))
    return joined


def _kernel(kernel: Any, driver: Mapping[str, Any]) -> Any:
    """A kernel with the driver's module, and with whether its initramfs may load nouveau."""
    release = _mapping(kernel).get("release")
    if not isinstance(release, str):
        return kernel
    sources = (("module", "modules_by_kernel"), ("may_load_nouveau", "nouveau_in_initramfs"))
    known = ((name, _mapping(driver.get(key))) for name, key in sources)
    return {**kernel, **{name: rows[release] for name, rows in known if release in rows}}


def _driver_repositories(apt: Any, dnf: Any) -> list[dict[str, Any]] | None:
    """NVIDIA's repositories: {file, urls, signed}; None where that cannot be told, as of a system with neither apt nor dnf."""
    if isinstance(apt, dict) and isinstance(apt.get("sources"), list):
        rows = [(row, "uris", "signed_by") for row in apt["sources"]]
    elif isinstance(dnf, dict) and isinstance(dnf.get("repositories"), list):
        rows = [(row, "urls", "gpgcheck") for row in dnf["repositories"]]
    else:
        return None
    found = []
    for row, urls, key in rows:
        addresses = _mapping(row).get(urls)
        if not isinstance(addresses, list) or key not in row:
            return None
        if any("nvidia." in str(address) for address in addresses) and row.get("enabled") is not False:
            found.append({"file": row.get("file"), "urls": addresses, "signed": _signed(row[key])})
    return found


def _signed(value: Any) -> bool | None:
    """apt: whether Signed-By names a file or a key, or holds one ("inline"); dnf: gpgcheck."""
    if isinstance(value, str):
        return bool(_SIGNED_BY.fullmatch(value)) or None
    return False if value is None else value if isinstance(value, bool) else None


def _gpu(gpu: Any, plan: Mapping[str, Any]) -> Any:
    """A GPU with what the plan says of it; `excluded` where the plan leaves it out."""
    rows = plan.get("gpus")
    known = isinstance(rows, list) and all(_ADDRESS.fullmatch(str(_mapping(row).get("pci_address"))) for row in rows)
    if not isinstance(gpu, dict) or not known:
        return gpu
    row = next((row for row in _list(rows) if row["pci_address"] == gpu.get("pci_address")), None)
    if row is None:
        return {**gpu, "excluded": True}
    joined = {key: row[key] for key in ("minimum_driver", "runs_on") if key in row}
    return {**gpu, **joined, "excluded": False}


def _branch(number: Any, now: datetime.datetime) -> dict[str, Any]:
    """What is known of the installed branch: `branch_status`, and in how many days its support ends; null: not known."""
    row = _BRANCHES.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
    if row is None:
        return {"branch_status": None, "branch_eol_days": None}
    days = None
    if row["eol"]:
        year, month = (int(part) for part in str(row["eol"]).split("-"))
        last = datetime.date(year, month, calendar.monthrange(year, month)[1])
        days = (last - now.date()).days
    return {"branch_status": row["status"], "branch_eol_days": days}


def _environment(environment: Any, plan: Mapping[str, Any], proof: Mapping[str, Any], required_level: Any) -> Any:
    """An environment with what is wanted of it and with the proof that counts now."""
    if not isinstance(environment, dict):
        return environment
    name = environment.get("name")
    wanted = next((item for item in map(_mapping, _list(plan.get("environments"))) if item.get("name") == name), None)
    joined: dict[str, Any] = {"asked": wanted is not None, "wanted": wanted.get("spec") if wanted else None}
    if wanted is None:
        joined.update(wanted_sm=None, unserved=None, wrong_companions=None, uncovered=None, proven=None)
        return {**environment, **joined}
    joined["wanted_sm"] = wanted.get("sm")
    joined["unserved"] = _unserved(environment.get("torch"), wanted.get("sm"))
    joined["wrong_companions"] = _wrong_companions(
        environment.get("companions"), _mapping(wanted.get("spec")).get("companions")
    )
    stamped = wanted.get("stamped")
    proven: Mapping[str, Any] | None = stamped if isinstance(stamped, dict) else None
    if "stamped" in wanted:
        joined["uncovered"] = (
            None if proven and proven.get("verdict") == "passed" else _uncovered(str(name), proven, plan)
        )
    for item in map(_mapping, _list(proof.get("environments"))):
        if item.get("name") == name:  # this run's own proof says more than any before it
            proven = item
    joined["proven"] = None
    if proven:
        told = {key: proven.get(key) for key in ("verdict", "proven", "proven_at", "reason", "remedy", "stamped")}
        joined["proven"] = {**told, "enough": _enough(proven, required_level)}
    return {**environment, **joined}


def _unserved(torch: Any, wanted: Any) -> list[str] | None:
    """The GPUs (sm) for which this torch has no code that runs; None where that cannot be told."""
    torch = _mapping(torch)
    flags, cuda = torch.get("arch_flags"), torch.get("cuda")
    if not (_codes(flags) and _codes(wanted) and isinstance(cuda, str) and _CUDA.fullmatch(cuda)):
        return None
    codes = [_capability(flag) for flag in flags if flag.startswith("sm_")]
    return [sm for sm in wanted if sass.serving_code(codes, _capability(sm), cuda) is None]


def _codes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and _CODE.fullmatch(name) for name in value)


def _capability(code: str) -> str:
    """The compute capability of an architecture's name: sm_90a is 9.0."""
    digits = code.partition("_")[2].rstrip("af")
    return f"{digits[:-1]}.{digits[-1]}"


def _wrong_companions(installed: Any, wanted: Any) -> list[str] | None:
    """What torch's companions are where they are not those that belong to it; None where that cannot be told."""
    if not isinstance(installed, dict) or not isinstance(wanted, dict):
        return None
    rows = [(name, version, installed.get(name)) for name, version in sorted(wanted.items())]
    if not all(isinstance(text, str) for row in rows for text in row[:2]) or not rows:
        return None
    wrong = [
        f"{name} is {'not there' if found is None else found}, not {version}"
        for name, version, found in rows
        if not isinstance(found, str) or found.partition("+")[0] != version
    ]
    return [*wrong, *(f"{name} is not asked for" for name in sorted(set(map(str, installed)) - set(wanted)))]


def _uncovered(name: str, proven: Mapping[str, Any] | None, plan: Mapping[str, Any]) -> str:
    if proven:
        return str(proven.get("reason") or "its last proof could not run")
    planned = (
        action for action in map(_mapping, _list(plan.get("actions"))) if action.get("id") == f"proof.run:{name}"
    )
    return str(next(planned, {}).get("why") or "no proof of its present state is on record")


def _enough(proven: Mapping[str, Any], required_level: Any) -> bool | None:
    """Whether the level that was proven is the one that is required, or a higher one; None where either is no level."""
    level = proven.get("proven")
    if proven.get("verdict") == "failed" or level is None:
        return False
    if level not in LEVELS or required_level not in LEVELS:
        return None
    return LEVELS.index(level) >= LEVELS.index(required_level)


# ---- drift ----------------------------------------------------------------------------------------------------------


def facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """The flat fingerprint of a host that drift compares: texts, null where it is not known."""
    system, driver = _mapping(document.get("os")), _mapping(document.get("driver"))
    found: dict[str, Any] = {
        "kernel": _text(system.get("kernel")),
        "operating system": _joined(system.get("id"), system.get("version_id")),
        "driver.loaded": _joined(driver.get("loaded_version"), driver.get("loaded_flavor")),
        "driver.installed": _text(driver.get("userspace_version")),
        "gpus": None,
    }
    if isinstance(document.get("gpus"), list):
        gpus = [_mapping(gpu) for gpu in document["gpus"]]
        found["gpus"] = ", ".join(sorted(f"{_text(gpu.get('pci_address'))} {_text(gpu.get('name'))}" for gpu in gpus))
    for environment in map(_mapping, _list(document.get("environments"))):
        name = _text(environment.get("name"))
        if name:
            found[f"environment {name}: release"] = _text(environment.get("current"))
            found[f"environment {name}: torch"] = _text(_mapping(environment.get("torch")).get("version"))
    for context, content in _mapping(document.get("runtime")).items():
        values = _mapping(content).get("values")
        if isinstance(values, dict):
            found[f"variables of {context}"] = json.dumps(values, sort_keys=True, default=str)[:500]
    return found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _joined(*values: Any) -> str | None:
    return " ".join(value for value in values if isinstance(value, str) and value) or None


# ---- people ---------------------------------------------------------------------------------------------------------


def redact(value: Any) -> Any:
    """``value`` without people's names and command lines where keys say so, without homes' names, and without URLs' credentials."""
    if isinstance(value, str):
        text = _HOME.sub(rf"\g<1>{REDACTED}", value) if "/" in value else value
        text = _PROCESS.sub(r"\1", text) if "process " in text else text
        return hide_credentials(text) if "://" in text else text
    if isinstance(value, dict):
        return {
            redact(key): _hidden(item) if isinstance(key, str) and key.lower() in _OF_PEOPLE else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value


def _hidden(value: Any) -> Any:
    """Of what names people only whether there is something."""
    return None if value is None or value in ("", [], {}) else REDACTED


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
