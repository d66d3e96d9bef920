# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn what is known of every host into rows, and rows into text.

PRIVATE to the collection: it can change at any time without notice.

Pure: no clock, no I/O, stable order. A host is ready only where everything needed was seen to be so; whatever is
missing, null or unexpected makes it not ready.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from typing import Any

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof.judge import LEVELS, combine
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import hide_credentials
from ansible_collections.gpufleet.workstation.plugins.module_utils._report.metrics import UNPRINTABLE

OUTCOMES = (
    *("failed", "unreachable", "refused", "not_proven", "pending", "unfinished", "held_back", "planned", "would_prove"),
    "ready",
)
"""Every outcome, the most urgent first."""

_LABELS = {
    "failed": "FAILED",
    "unreachable": "UNREACHABLE",
    "refused": "REFUSED",
    "not_proven": "NOT PROVEN",
    "pending": "PENDING",
    "unfinished": "UNFINISHED",
    "held_back": "HELD BACK",
    "planned": "WOULD CHANGE",
    "would_prove": "WOULD PROVE",
    "ready": "READY",
}


def clean(value: Any) -> str:
    """Return ``value`` as one line of printable text, its URLs without credentials."""
    # Credentials first: a control character within them would become a space, where a URL ends.
    return UNPRINTABLE.sub(" ", hide_credentials("" if value is None else str(value))).strip()


def host_row(name: str, state: dict[str, Any], check_mode: bool = False) -> dict[str, Any]:
    """Judge one host and describe it in a row.

    ``state`` holds what the run learned: ``planned`` (result of the action plan before the apply), ``after`` (the same, after
    it; absent where nothing was to be done), ``proof`` (result of cuda_verify), ``failed`` (text), ``pending`` (what the driver's
    role left because something stood in the way: what, why, remedy), ``lost`` (whether Ansible gave the host up), ``held_back``
    (whether the run stopped before it), ``required_level``, ``note``.
    """
    planned = _mapping(state.get("planned"))
    after = _mapping(state.get("after"))
    # One of an earlier playbook of this run says nothing of a host that was not to be changed since.
    latest = after if after.get("plan") and _changes(_mapping(planned.get("plan"))) else planned
    plan, observation = _mapping(latest.get("plan")), _mapping(latest.get("observation"))
    proof = _proven(_mapping(state.get("proof")), plan)
    outcome, reason, remedy = _judge({**state, "proof": proof}, planned, latest, check_mode)
    return {
        "host": name,
        "gpu": _gpus(plan, observation),
        "sm": "+".join(dict.fromkeys(clean(gpu.get("sm")) or "?" for gpu in _list(plan.get("gpus")))) or "-",
        "driver": _driver(observation),
        "generation": _mapping(_mapping(observation.get("driver")).get("journal")).get("generation"),
        "torch": _torch(plan, observation),
        "proof": _proof(proof),
        "proven_at": min(_times(proof), default=None),
        "outcome": outcome,
        "ready": outcome == "ready",
        "reason": reason,
        "remedy": remedy,
        "actions": [clean(action.get("what")) for action in _list(plan.get("actions"))],
        "warnings": [clean(text) for text in _list(plan.get("warnings"))],
        "note": clean(state.get("note")),
    }


def _changes(plan: dict[str, Any]) -> list[Any]:
    """The actions of a plan that change the host; a proof does not."""
    return [action for action in _list(plan.get("actions")) if _mapping(action).get("step") != "proof"]


def _proven(proof: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """What this run proved, and of the environments that it left out what their stamps prove, as cuda_verify returns it."""
    if proof and not proof.get("skipped") and not proof.get("verdict"):  # it was tried, and came to no end
        return proof
    ran = _list(proof.get("environments"))
    named = [_mapping(item).get("name") for item in ran]
    stamped = [_mapping(item.get("stamped")) for item in map(_mapping, _list(plan.get("environments")))]
    stamped = [item for item in stamped if item and item.get("name") not in named]
    if not stamped:
        return proof
    everything = ran + stamped
    return {
        "verdict": combine([str(_mapping(item).get("verdict")) for item in everything]),
        "level": proof.get("level") or stamped[0].get("level"),
        "environments": everything,
    }


def _times(proof: dict[str, Any], stamped: bool = False) -> list[str]:
    """When the environments were proven, of all or of those that this run left out."""
    environments = map(_mapping, _list(proof.get("environments")))
    return [
        clean(item["proven_at"])
        for item in environments
        if item.get("proven_at") and (item.get("stamped") or not stamped)
    ]


def _judge(
    state: dict[str, Any], planned: dict[str, Any], latest: dict[str, Any], check_mode: bool
) -> tuple[str, str, str]:
    plan = _mapping(latest.get("plan"))
    wanted = [clean(_mapping(item).get("name")) for item in _list(plan.get("environments"))]
    if _mapping(state.get("proof")).get("verdict") == "failed":
        return _judge_proof(state, wanted)
    if state.get("failed"):
        return "failed", clean(state["failed"]), "Mend the cause and run again: steps that are done are not repeated."
    if latest.get("unreachable") or not planned:
        reason = clean(latest.get("msg")) or "the host did not answer"
        return "unreachable", reason, "Check that the host is on and that ssh works, then run again with --limit."
    if state.get("lost"):
        reason = "the host stopped answering, or failed outside of what is rescued, while it was served"
        return (
            "unreachable",
            reason,
            "Its last message is above. Check that it is on and that ssh works, then run again.",
        )
    refusals = _list(plan.get("refusals"))
    if refusals or plan.get("feasible") is not True:
        first = _mapping(refusals[0]) if refusals else {"reason": "the plan is not complete", "remedy": "Run plan.yml."}
        return "refused", clean(first.get("reason")), clean(first.get("remedy"))
    if state.get("held_back"):
        reason = "the run stopped before this host, because more hosts failed than gpufleet_max_failed permits"
        return "held_back", reason, "Mend the hosts that failed, then run again; nothing was changed on this one."
    met = _mapping(state.get("pending"))
    pending = [met] * bool(met) + _list(plan.get("pending"))
    actions, changes = _list(plan.get("actions")), _changes(plan)
    if check_mode and changes:
        return "planned", f"{len(actions)} actions", "Run without --check to carry them out."
    if pending:
        first = _mapping(pending[0])
        return "pending", f"{clean(first.get('what'))}: {clean(first.get('why'))}", clean(first.get("remedy"))
    if changes:
        what = ", ".join(clean(_mapping(action).get("what")) for action in changes[:3])
        return "unfinished", f"still to be done: {what}", "Run again; if this stays, report it with the output of -vvv."
    if check_mode and actions:
        why = "; ".join(f"{clean(action.get('what'))}: {clean(action.get('why'))}" for action in map(_mapping, actions))
        return "would_prove", why, "Run without --check to prove it."
    if not _mapping(state.get("proof")).get("verdict") and "proof" not in _list(plan.get("steps", ["proof"])):
        return "not_proven", "this run was told to leave the proof out", "Run with the tag proof."
    if not wanted:
        return (
            "not_proven",
            "torch_env_environments is empty, so there is nothing to prove",
            "Name an environment in it.",
        )
    return _judge_proof(state, wanted)


def _judge_proof(state: dict[str, Any], wanted: list[str]) -> tuple[str, str, str]:
    proof, required = _mapping(state.get("proof")), state.get("required_level")
    if required not in LEVELS:
        return (
            "not_proven",
            f"gpu_proof_required_level is {clean(required)!r}",
            f"Set it to one of {', '.join(LEVELS)}.",
        )
    environments = _list(proof.get("environments"))
    named = {clean(_mapping(item).get("name")) for item in environments}
    missing = [name for name in wanted if name not in named]
    if environments and missing and proof.get("verdict") != "failed":
        return "not_proven", f"{', '.join(missing)}: not among what was proven", "Run again with the tag proof."
    for environment in environments:
        if _mapping(environment).get("verdict") == "failed":
            check = _first_check(environment, "failed")
            text = f"{clean(environment.get('name'))}: {clean(check.get('id'))}: {clean(check.get('evidence'))}"
            return "not_proven", text, clean(check.get("remedy")) or "Run cuda_verify with -v for the evidence."
    short = [item for item in map(_mapping, environments) if not _is_proven(item, required)]
    if environments and not short and proof.get("verdict") in ("passed", "not_run"):
        return "ready", "", ""
    if short and short[0].get("proven") in LEVELS and short[0].get("verdict") == "passed":
        reason = f"{clean(short[0].get('name'))} is proven at level {short[0]['proven']}, level {required} is required"
        return "not_proven", reason, f"Set gpu_proof_level to {required} or higher."
    environments = short or environments
    check = _first_check(environments[0], "not_run") if environments else {}
    reason = clean(_mapping(environments[0]).get("reason")) if environments else "no environment was proven"
    reason = reason or clean(check.get("evidence")) or "the proof did not run to its end"
    return (
        "not_proven",
        f"{required} was not run: {reason}",
        clean(check.get("remedy") or _mapping(environments[0] if environments else None).get("remedy"))
        or "Mend the cause, then run again.",
    )


def _is_proven(environment: dict[str, Any], required: str) -> bool:
    proven = environment.get("proven")
    if environment.get("verdict") not in ("passed", "not_run") or proven not in LEVELS:
        return False
    return LEVELS.index(proven) >= LEVELS.index(required)


def _first_check(environment: Any, status: str) -> dict[str, Any]:
    environment = _mapping(environment)
    checks = _list(environment.get("checks"))
    for gpu in _list(environment.get("gpus")):
        checks = checks + _list(_mapping(gpu).get("checks"))
    return next((_mapping(check) for check in checks if _mapping(check).get("status") == status), {})


def _gpus(plan: dict[str, Any], observation: dict[str, Any]) -> str:
    gpus = _list(plan.get("gpus")) or _list(observation.get("gpus"))
    names = [_short_name(_mapping(gpu)) for gpu in gpus]
    counted = Counter(names)
    return " + ".join(f"{n} x {name}" if n > 1 else name for name, n in counted.items()) or "-"


def _short_name(gpu: dict[str, Any]) -> str:
    name = clean(gpu.get("name")) or f"unknown ({clean(gpu.get('pci_device_id')) or '?'})"
    return re.sub(r"^(NVIDIA )?(GeForce )?", "", name) or name


def _driver(observation: dict[str, Any]) -> str:
    driver = _mapping(observation.get("driver"))
    installed = driver.get("userspace_version")
    loaded, flavor = driver.get("loaded_version"), driver.get("loaded_flavor")
    if not loaded and not installed:
        return "-"
    left = f"{clean(loaded)} {clean(flavor)}".strip() if loaded else "-"
    return f"{left} / {clean(installed) or '-'}"


def _torch(plan: dict[str, Any], observation: dict[str, Any]) -> str:
    builds: dict[str, list[str]] = {}
    wanted = {clean(_mapping(item).get("name")) for item in _list(plan.get("environments"))}
    for environment in _list(observation.get("environments")):
        environment = _mapping(environment)
        version = clean(_mapping(environment.get("torch")).get("version"))
        if version and environment.get("current") and clean(environment.get("name")) in wanted:
            builds.setdefault(version, []).append(clean(environment.get("name")))
    if not builds:
        return "-"
    if len(builds) == 1 and len(wanted) == 1:
        return next(iter(builds))
    return ", ".join(f"{'/'.join(names)} {version}" for version, names in builds.items())


def _proof(proof: Any) -> str:
    proof = _mapping(proof)
    level, verdict = clean(proof.get("level")), clean(proof.get("verdict")).replace("_", " ")
    if not verdict:
        return "-"
    proven = {clean(_mapping(item).get("proven")) for item in _list(proof.get("environments"))}
    # A proof of an earlier run says which day it is of.
    day = "".join(f" on {time[:10]}" for time in sorted(_times(proof, stamped=True))[:1])
    if verdict == "not run" and len(proven) == 1 and proven <= set(LEVELS):
        return f"{proven.pop()} passed{day}, {level} not run"
    return f"{level} {verdict}{day}"


_COLUMNS = (
    ("host", "host"),
    ("gpu", "GPU"),
    ("sm", "sm"),
    ("driver", "driver loaded / installed"),
    ("torch", "torch"),
    ("proof", "proof"),
    ("outcome", "outcome"),
)


def result_text(rows: list[dict[str, Any]], width: int = 120) -> str:
    """Return the fleet's table with, below it, the reason and the remedy of every host that is not ready."""
    cells = [[title for _key, title in _COLUMNS]]
    for row in rows:
        cells.append([_LABELS[row["outcome"]] if key == "outcome" else row[key] for key, _title in _COLUMNS])
    lines = aligned(cells)
    lines.insert(1, "-" * max(len(line) for line in lines))
    ready = sum(row["ready"] for row in rows)
    lines += ["", f"{ready} of {len(rows)} hosts train-ready."]
    waiting = sorted((row for row in rows if not row["ready"]), key=lambda row: OUTCOMES.index(row["outcome"]))
    for row in waiting:
        lines += ["", *paragraph(f"{row['host']} {_LABELS[row['outcome']].lower()}: ", row["reason"], width)]
        if row["outcome"] == "planned":
            lines += [f"    would do: {action}" for action in row["actions"]]
        if row["remedy"]:
            lines += paragraph("    what to do: ", row["remedy"], width)
    lines += _said_of_hosts("warning", {row["host"]: row["warnings"] for row in rows}, width)
    lines += _said_of_hosts("note", {row["host"]: [row["note"]] if row["note"] else [] for row in rows}, width)
    return "\n".join(lines)


def _said_of_hosts(kind: str, texts: dict[str, list[str]], width: int) -> list[str]:
    """Return each text once, with the hosts that it is about."""
    said: dict[str, list[str]] = {}
    for host, of_host in texts.items():
        for text in of_host:
            said.setdefault(text, []).append(host)
    lines = []
    for text, hosts in said.items():
        whom = "all hosts" if len(hosts) == len(texts) > 1 else some(hosts)
        lines += paragraph(f"{kind} ({whom}): ", text, width)
    return ["", *lines] if lines else []


def some(hosts: list[str]) -> str:
    """Return the names of eight hosts, and how many more there are."""
    return ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")


def aligned(cells: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in cells]


def paragraph(head: str, text: str, width: int) -> list[str]:
    """Return lines of at most that width, indented after the first one."""
    return textwrap.wrap(head + text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def plan_groups(plans: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Group hosts whose plans say the same, so that five hundred hosts read like the few kinds they are.

    ``plans`` maps a host's name to the result of the action plan. Each group: ``hosts``, ``kind`` (refused, unreachable, pending,
    change, prove, nothing), ``gpus``, ``decision``, ``actions``, ``refusals``, ``pending``, ``reasons``, ``warnings``, ``disruptive``.
    """
    groups: dict[str, dict[str, Any]] = {}
    for host in plans:
        group = _plan_group(plans[host])
        key = repr(sorted(group.items()))
        groups.setdefault(key, {"hosts": [], **group})["hosts"].append(host)
    order = ("refused", "unreachable", "change", "pending", "prove", "nothing")
    return sorted(groups.values(), key=lambda group: (order.index(group["kind"]), group["hosts"]))


def _plan_group(result: dict[str, Any]) -> dict[str, Any]:
    plan, observation = _mapping(result.get("plan")), _mapping(result.get("observation"))
    actions = [
        (clean(action.get("what")), clean(action.get("why")), action.get("disruptive") is True)
        for action in map(_mapping, _list(plan.get("actions")))
    ]
    pending = [
        (clean(item.get("what")), clean(item.get("why")), clean(item.get("remedy")))
        for item in map(_mapping, _list(plan.get("pending")))
    ]
    refusals = [
        (clean(item.get("reason")), clean(item.get("remedy"))) for item in map(_mapping, _list(plan.get("refusals")))
    ]
    if result.get("unreachable") or not plan:
        kind = "unreachable"
        refusals = refusals or [(clean(result.get("msg")) or "the host did not answer", "Check the host and ssh.")]
    elif refusals:
        kind = "refused"
    else:
        kind = "change" if _changes(plan) else "pending" if pending else "prove" if actions else "nothing"
    return {
        "kind": kind,
        "gpus": _gpus(plan, observation),
        "decision": _decision(plan) if kind in ("change", "pending", "prove", "nothing") else "",
        "actions": actions,
        "pending": pending,
        "refusals": refusals,
        "reasons": [clean(text) for text in _list(plan.get("reasons"))],
        "warnings": [clean(text) for text in _list(plan.get("warnings"))],
        "disruptive": any(action[2] for action in actions),
    }


def _decision(plan: dict[str, Any]) -> str:
    driver, parts = _mapping(plan.get("driver")), []
    if driver.get("branch"):
        parts.append(
            f"driver {clean(driver['branch'])} {clean(driver.get('flavor')) or 'of Windows'} (minimum {clean(driver.get('minimum'))})"
        )
    for environment in map(_mapping, _list(plan.get("environments"))):
        spec = _mapping(environment.get("spec"))
        parts.append(
            f"{clean(environment.get('name'))}: torch {clean(spec.get('torch'))}, Python {clean(spec.get('python'))}"
        )
    return "; ".join(parts)


_HEADINGS = {
    "refused": "refused",
    "unreachable": "not observed",
    "change": "to change",
    "pending": "waiting",
    "prove": "to prove",
    "nothing": "nothing to do",
}


def plan_text(plans: dict[str, dict[str, Any]], width: int = 120) -> str:
    """Return what would be done, why, and on which hosts, grouped by outcome."""
    lines: list[str] = []
    groups = plan_groups(plans)
    for group in groups:
        lines += ["", f"{_HEADINGS[group['kind']].upper()}: {some(group['hosts'])}   [{group['gpus']}]"]
        if group["decision"]:
            lines += paragraph("  -> ", group["decision"], width)
        for reason, remedy in group["refusals"]:
            lines += paragraph("  refused: ", reason, width)
            lines += paragraph("  what to do: ", remedy, width)
        for what, why, disruptive in group["actions"]:
            lines += paragraph("  ! " if disruptive else "  - ", f"{what} ({why})" if why else what, width)
        for what, why, remedy in group["pending"]:
            lines += paragraph("  waits: ", f"{what}: {why}. {remedy}", width)
        for reason in group["reasons"]:
            lines += paragraph("  why: ", reason, width)
        for warning in group["warnings"]:
            lines += paragraph("  warning: ", warning, width)
    disruptive = [host for group in groups if group["disruptive"] for host in group["hosts"]]
    head = f"{len(plans)} host{'s' if len(plans) != 1 else ''}; disruptive steps (marked !) on {len(disruptive)}: "
    lines += ["", *paragraph(head, f"{', '.join(disruptive) or 'none'}.", width)]
    return "\n".join(lines).lstrip("\n")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
