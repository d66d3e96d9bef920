# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: which environments have to be proven, because no stamp of an earlier proof covers them. Pure."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Notes, listed
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired, normal_pci_address
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import Action
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import stamp

RUNTIME_ENV = "runtime.env"
_CHANGES_DRIVER = ("driver.repair", "driver.packages", "driver.remove", "driver.nodes", "driver.load", "driver.reboot")
_CHANGES_ENVIRONMENT = ("torch.switch", "torch.owner", "torch.prove")


def proof_actions(
    host: Host,
    environments: t.Sequence[dict[str, t.Any]],
    planned: t.Sequence[Action],
    drift: t.Mapping[str, str | None],
    wanted: Desired,
    notes: Notes,
) -> list[Action]:
    """Say of every environment what its stamp proves (``stamped``), and return an action for each that has to be proven.

    ``drift``: by name, why what serves is not what is wanted, where this run leaves it so.
    """
    actions = []
    level = wanted.proof["level"]
    missing = None if level == "static" else why_no_gpu_proof(host, wanted)
    for environment in environments:
        name = environment["name"]
        environment["stamped"] = None
        if environment["proof"] is None:  # nothing serves
            continue
        why = _changes_now(environment, planned) or drift.get(name) or _covered(host, environment, wanted, missing)
        stamped = environment["stamped"]
        if why:
            what = f"prove the environment {name} at level {level}"
            actions.append(Action(f"proof.run:{name}", "proof", what, why, {"environment": name}))
        elif stamped["verdict"] != "passed":
            notes.say(f"{name} is proven at level {stamped['proven']}; level {level} waits: {stamped['reason']}.")
    return actions if "proof" in wanted.steps else []


def why_no_gpu_proof(host: Host, wanted: Desired) -> tuple[str, str] | None:
    """Why nothing can be proven on a GPU at present, with what to do; None where nothing is known against it."""
    missing = host.why_no_gpu_runs()
    busy = host.processes("compute", elsewhere=wanted.driver.gpus_exclude)
    if missing is None and busy:
        return f"the GPU is in use by {listed(busy)}", "Run again when that has ended."
    return missing


def _changes_now(environment: t.Mapping[str, t.Any], planned: t.Sequence[Action]) -> str | None:
    """What of this run makes every earlier proof worthless."""
    name = environment["name"]
    variables = f"runtime.file:{environment['root']}/{name}/{RUNTIME_ENV}"
    for action in planned:
        kind, _colon, of = action.id.partition(":")
        if kind in _CHANGES_DRIVER or (kind in _CHANGES_ENVIRONMENT and of == name) or action.id == variables:
            return f"this run is to {action.what}"
    return None


def _covered(host: Host, environment: dict[str, t.Any], wanted: Desired, missing: tuple[str, str] | None) -> str | None:
    """Set what the stamp proves; return why that is not enough, although more could be proven now."""
    name = environment["name"]
    seen = host.environment(name)
    variables = host.file(f"{environment['root']}/{name}/{RUNTIME_ENV}") or {}
    now = {
        "release": seen.get("current"),
        "release_digest": seen.get("stamp_digest"),
        "variables": variables.get("sha256"),
        "driver": host.loaded_version,
        "flavor": host.loaded_flavor,
        "userspace": host.driver.get("userspace_version"),
        "boot_id": host.os.get("boot_id"),
        "sm": sorted(environment["sm"]),
        "wish": stamp.wish(environment["proof"]),
        "gpus": [gpu for gpu in _served(host) if gpu["pci_address"] not in wanted.driver.gpus_exclude],
        "at": host.observation.get("observed_at"),
    }
    level, max_age = wanted.proof["level"], wanted.proof["max_age"]
    verdict = seen.get("verdict") or {}
    least = stamp.uncovered(verdict, name, now, "static", max_age)
    error = None if least else _error_since(host, verdict["proven_at"], wanted)
    why = stamp.uncovered(verdict, name, now, level, max_age) or error
    if why is None:
        environment["stamped"] = stamp.as_result(verdict, level)
    elif missing and least is None:
        # After an error of a GPU nothing counts that was computed on it, and of a burn that was too short the burn does not.
        kept = "static" if error else "full" if verdict["level"] == level == "stress" else verdict["level"]
        told = stamp.as_result({**verdict, "level": kept, "gpus": [] if error else verdict["gpus"]}, level)
        reason = f"{error}; it is not proven anew now: {missing[0]}" if error else missing[0]
        environment["stamped"] = {**told, "reason": reason, "remedy": missing[1]}
    else:
        return why
    return None


def _error_since(host: Host, proven_at: str, wanted: Desired) -> str | None:
    """What the driver logged since of the GPUs that count."""
    events = [event for event in host.xid_events() if event.get("pci_address") not in wanted.driver.gpus_exclude]
    return stamp.error_since(events, proven_at)


def _served(host: Host) -> list[dict[str, t.Any]]:
    """The GPUs that the driver serves: it has a name for each."""
    keys = ("uuid", "pci_address", "name")
    found = [
        {**{key: row.get(key) for key in keys}, **stamp.settings(row.get("health"))}
        for row in host.observed_gpus()
        if row.get("uuid")
    ]
    return [{**row, "pci_address": normal_pci_address(str(row["pci_address"]))} for row in found]
