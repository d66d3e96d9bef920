# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection: from an observation and a desired state to a plan. Pure: no clock, no I/O, stable order.

The order of thought: which GPUs count; what bounds the driver from above (a branch that was asked for, an old GPU, a driver
that this run leaves alone); which torch builds serve all GPUs within these bounds; what bounds the driver from below (GPUs,
torch builds, the user's floor); which driver fulfils both; what of all this the host lacks. What cannot be is refused, with
the nearest that works.
"""

from __future__ import annotations

import hashlib
import json
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import matrix
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.actions import plan_actions
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.additions import extend
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.decision import Driver, Notes, Stack
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import Desired, parse
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.driver import (
    ceilings,
    gpus_missing,
    resolve_driver,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.foreign import judge_foreign
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import Action, Knowledge
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.observed import Gpu, Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.runtime import runtime_files
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.torch_stack import resolve_environment
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.unhealthy import unhealthy
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock

KNOWLEDGE = Knowledge.of(matrix)

INPUT_REFUSALS = frozenset({"torch_unknown", "torch_index_unknown", "driver_branch_unknown"})
"""Refusals that no host can escape, because what is asked for does not exist."""

_DECISIVE = frozenset({"unobserved", "architecture", "no_gpu", "gpu_missing", "gpu_too_old"})
"""Refusals beside which those that follow from them are noise."""

SUPPORTED_ARCHITECTURES = ("x86_64", "aarch64")


def resolve(
    observation: t.Mapping[str, t.Any] | None,
    desired: t.Mapping[str, t.Any] | None = None,
    knowledge: Knowledge = KNOWLEDGE,
) -> dict[str, t.Any]:
    """Plan one host. Raises InvalidDesired for a desired state that no host could have."""
    wanted = parse(desired)
    knowledge = extend(knowledge, wanted.knowledge)
    notes, torch_notes = Notes(), Notes()
    host = Host(observation, knowledge)
    _check_host(host, notes)
    gpus = _choose_gpus(host, wanted, knowledge, notes)
    bounds = ceilings(host, gpus, wanted, notes)
    stacks = [resolve_environment(item, host, gpus, bounds, knowledge, torch_notes) for item in wanted.environments]
    driver = resolve_driver(host, gpus, bounds, stacks, wanted, knowledge, notes)
    if "torch" not in wanted.steps:
        torch_notes.soften()
    if _wants_gpus(wanted):
        notes.add(torch_notes)
    if "torch" in wanted.steps:
        judge_foreign(host, gpus, wanted, knowledge, notes)
    environments = [_environment(stack, gpus, wanted, host) for stack in stacks]
    for text in (*unhealthy(host), *host.unknown()):
        notes.warn(text)
    actions = plan_actions(host, driver, environments, wanted, knowledge, notes)
    if any(refusal.code in _DECISIVE for refusal in notes.refusals):
        notes.refusals = [refusal for refusal in notes.refusals if refusal.code in _DECISIVE | INPUT_REFUSALS]
        notes.reasons.clear()
    return _plan(wanted, gpus, stacks, driver, environments, actions, notes)


def _check_host(host: Host, notes: Notes) -> None:
    schema = host.observation.get("schema", 1)
    if schema != 1:
        notes.refuse(
            "unobserved",
            f"the observation has schema {schema!r}, the planner reads schema 1",
            "Use gpu_info and the planner of one version of the collection.",
        )
    if not host.os_id or not host.gpus_known:
        missing = " and ".join(name for name, known in (("os", host.os_id), ("gpus", host.gpus_known)) if not known)
        notes.refuse(
            "unobserved",
            f"the observation does not tell {missing}: {'; '.join(host.unknown()) or 'nothing was read'}",
            "Observe the host with gpu_info, or give at least {os: {id, version_id, arch}, gpus: [{pci_device_id}]}.",
        )
    elif not host.arch_known:
        notes.say("The host's processor architecture is not known; x86_64 is assumed.")
    if host.arch not in SUPPORTED_ARCHITECTURES:
        notes.refuse(
            "architecture",
            f"there is no CUDA build of torch for {host.arch}",
            "Use a host with an x86_64 or aarch64 processor.",
        )
    if host.health.get("clock_synchronized") is False:
        notes.warn("The host's clock is not synchronized; where it is wrong, downloads fail for their certificates.")


def _choose_gpus(host: Host, wanted: Desired, knowledge: Knowledge, notes: Notes) -> list[Gpu]:
    """Leave out the GPUs that need not, or cannot, be served."""
    chosen, too_old = [], []
    addresses = {gpu.address for gpu in host.gpus}
    for address in wanted.driver.gpus_exclude:
        if host.gpus_known and address not in addresses:
            notes.warn(f"nvidia_driver_gpus_exclude names {address}, where this host has no GPU.")
    for gpu in host.gpus:
        if gpu.address in wanted.driver.gpus_exclude:
            notes.say(f"{gpu.label} at {gpu.address} is left out: nvidia_driver_gpus_exclude names it.")
        elif gpu.kernel_driver == "vfio-pci" or host.virtual(gpu) == "passthrough":
            by = gpu.kernel_driver or "passthrough"
            notes.warn(f"{gpu.label} at {gpu.address} is left out: it is reserved for a virtual machine ({by}).")
        elif gpu.too_old:
            too_old.append(gpu)
        else:
            chosen.append(gpu)
    for gpu in too_old:
        reason = f"{gpu.label} is older than Maxwell, and no driver that runs torch supports it"
        if chosen or not _wants_gpus(wanted):
            notes.warn(f"{reason}: it is left out.")
        else:
            notes.refuse("gpu_too_old", reason, "Replace it with a GPU of the Maxwell generation (2014) or newer.", gpu)
    if host.gpus_known and not chosen and not too_old and _wants_gpus(wanted):
        if host.gpus:
            refusal = (
                "no_gpu",
                "no GPU is left of those the host has",
                "Shorten nvidia_driver_gpus_exclude, or unbind vfio-pci.",
            )
        elif host.missing_gpus(wanted.driver.gpus_exclude):
            refusal = gpus_missing(host.missing_gpus(wanted.driver.gpus_exclude))
        else:
            refusal = (
                "no_gpu",
                "no NVIDIA GPU was found",
                "Check that the card is seated and powered (lspci -d 10de:), or take the host out of the group.",
            )
        notes.refuse(*refusal)
    for gpu in chosen:
        _describe_gpu(gpu, knowledge, notes)
    return chosen


def _wants_gpus(wanted: Desired) -> bool:
    """Whether this run makes a GPU usable; variables are set, and a driver is removed, also where there is none."""
    steps = set(wanted.steps) - ({"driver"} if wanted.driver.state == "absent" else set())
    return bool({"driver", "torch", "proof"} & steps)


def _describe_gpu(gpu: Gpu, knowledge: Knowledge, notes: Notes) -> None:
    added = knowledge.gpus.get(gpu.device_id or "")
    if added:
        notes.say(f"{gpu.label} is known from the inventory (gpufleet_knowledge; source: {added.source}).")
    if gpu.architecture and gpu.architecture.confidence == "low":
        notes.warn(
            f"What the knowledge base says of {gpu.architecture.name} ({gpu.name}) is inferred: the proof decides."
        )
    if gpu.known:
        return
    modules = "open kernel modules are assumed, as every GPU since Blackwell needs them"
    if gpu.modules == "proprietary":
        modules = "its device id is from before Turing, so it needs the proprietary kernel modules"
    notes.say(f"{gpu.label} is unknown to the knowledge base of {knowledge.as_of}: {modules}.")
    if gpu.cc is None:
        notes.warn(
            f"{gpu.label}: its compute capability is known only when a driver is loaded, so whether torch has code for it could "
            "not be checked."
        )


def _environment(stack: Stack, gpus: list[Gpu], wanted: Desired, host: Host) -> dict[str, t.Any]:
    """One environment's entry of the plan, its actions still to come."""
    name = stack.wanted.name
    spec = {
        "name": name,
        "python": stack.python or "auto",
        "torch": stack.build,
        "companions": stack.companions,
        "requirements": list(stack.wanted.requirements),
        "arch": host.arch,
        "schema": 1,
    }
    built = (host.environment(name).get("stamp") or {}).get("spec") or {}
    if name in wanted.locks:
        spec["lock"] = lock.digest(wanted.locks[name].render())
    elif built.get("lock") and {**spec, "lock": built["lock"]} == built:
        # The controller has no lock, as one that only looks: what was built for these wishes is what is wanted.
        spec["lock"] = built["lock"]
    digest = hashlib.sha256(
        json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    ).hexdigest()
    sm = sorted({gpu.sm for gpu in gpus if gpu.sm}, key=lambda code: (len(code), code))
    base = wanted.mirror.index_base_url
    return {
        "name": name,
        "spec": spec,
        "spec_digest": digest,
        "release_base": f"{stack.build.replace('+', '-')}-{digest[:8]}",
        "index_url": f"{base}/{stack.tag}" if base and stack.tag else stack.index_url,
        "package_index_url": wanted.mirror.package_index_url or wanted.package_index_url,
        # A mirror may hold only what earlier locks name.
        "lock_index_url": stack.index_url,
        "lock_package_index_url": wanted.package_index_url,
        "owner": stack.wanted.owner,
        "group": stack.wanted.group,
        "root": wanted.root,
        "keep": wanted.keep,
        "smoke": list(stack.wanted.smoke),
        "switch_after": stack.wanted.switch_after,
        "integrity": wanted.integrity,
        "sm": sm,
        "interpreter": stack.interpreter,
        "python_package": stack.python_package,
        "variables": dict(stack.wanted.variables),
        "actions": [],
        "proof": {
            "name": name,
            "python": f"{wanted.root}/{name}/current/bin/python",
            "user": stack.wanted.owner,
            "expect": {"torch": stack.build, "companions": stack.companions},
            "sm": sm,
        },
    }


def _plan(
    wanted: Desired,
    gpus: list[Gpu],
    stacks: list[Stack],
    driver: Driver,
    environments: list[dict[str, t.Any]],
    planned: list[Action],
    notes: Notes,
) -> dict[str, t.Any]:
    actions = [] if notes.refusals else [action.as_dict() for action in planned]
    for environment in environments:
        environment["actions"] = [
            action
            for action in actions
            if action["step"] == "torch" and action["data"]["environment"] == environment["name"]
        ]
    first = stacks[0] if stacks else None
    torch: dict[str, t.Any] = {"version": None, "build": None, "index_url": None, "companions": {}, "python": None}
    if first:
        torch = {
            "version": first.version,
            "build": first.build,
            "index_url": first.index_url,
            "companions": first.companions,
            "python": first.python,
        }
    return {
        "feasible": not notes.refusals,
        "refusals": [refusal.as_dict() for refusal in notes.refusals],
        "gpus": [_gpu(gpu, stacks, position) for position, gpu in enumerate(gpus)],
        "driver": driver.as_dict([action for action in actions if action["step"] == "driver"]),
        "torch": torch,
        "environments": environments,
        "runtime": {
            "scope": wanted.runtime.scope,
            "files": [file.as_dict() for file in runtime_files(wanted)],
            "actions": [action for action in actions if action["step"] == "runtime"],
        },
        "actions": actions,
        "reasons": notes.reasons,
        "warnings": notes.warnings,
        "pending": [] if notes.refusals else notes.pending,
        "steps": list(wanted.steps),
        # Where a GPU is left out of the plan it is left out of the proof; elsewhere every GPU has to pass that CUDA shows or that
        # passed here before.
        "proof": {**wanted.proof, "gpus": [gpu.address for gpu in gpus] if _names_gpus(wanted) else None},
    }


def _names_gpus(wanted: Desired) -> bool:
    """Whether the proof is of these GPUs alone, whatever else was or is there."""
    return bool(wanted.driver.gpus_exclude or wanted.driver.accept_missing_gpus)


def _gpu(gpu: Gpu, stacks: list[Stack], position: int) -> dict[str, t.Any]:
    return {
        "pci_address": gpu.address,
        "name": gpu.name,
        "compute_capability": gpu.cc,
        "sm": gpu.sm,
        "architecture": gpu.architecture_name,
        "runs_on": stacks[0].code[position] if stacks else None,
        "minimum_driver": gpu.first_driver,
    }
