# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A canonical document (docs/architecture.md, "Compliance") of a made-up fleet: the same for the same arguments.

python tests/compliance/fleet.py [HOSTS [RULES]] prints it.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc)
OUTCOMES = ("ready", "not_ready", "unknown", "unreachable", "not_asked")
GROUPS = ("lab_north", "lab_south", "render", "students", "robotics")
# Model, code name of its targets, MiB, and the oldest driver that knows it.
MODELS = (
    ("NVIDIA GeForce RTX 3090", "sm_86", 24576, "455.23"),
    ("NVIDIA GeForce RTX 4090", "sm_89", 24564, "520.56"),
    ("NVIDIA RTX 6000 Ada Generation", "sm_89", 49140, "525.60"),
    ("NVIDIA GeForce RTX 5090", "sm_120", 32607, "570.86"),
    ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "sm_120", 97887, "570.133"),
    ("NVIDIA H100 80GB HBM3", "sm_90", 81559, "525.60"),
)
# Id, severity, for each GPU, title, rationale, remedy, and evidence of a failure.
CATALOGUE: tuple[tuple[str, str, bool, str, str, str, dict[str, Any]], ...] = (
    (
        "driver.floor", "critical", True, "The loaded driver is new enough for every GPU",
        "A driver that is older than the GPU does not initialise it: CUDA finds no device.",
        "Provision the host with nvidia_driver_branch=auto, or raise nvidia_driver_minimum; reboot when the report asks for it.",
        {"loaded": "535.183.01", "needed": "570.86"},
    ),
    (
        "driver.loaded_is_installed", "critical", False, "The loaded driver is the installed one",
        "Where the kernel module and the libraries differ, every new CUDA process ends with error 803.",
        "Reboot the host: the new module is loaded then. Running jobs keep working until that moment.",
        {"loaded": "580.95.05", "installed": "580.105.08"},
    ),
    (
        "driver.flavor", "high", True, "The kernel modules have the flavor that the GPU needs",
        "Blackwell GPUs work with the open modules only; Volta and older need the proprietary ones.",
        "Set nvidia_driver_flavor=auto and provision the host.", {"loaded": "proprietary", "needed": "open"},
    ),
    (
        "driver.branch_eol", "medium", False, "The driver's branch still gets security fixes",
        "NVIDIA ends branches; after that date holes stay open.",
        "Plan the move to a supported branch: nvidia_driver_branch=580.", {"branch": 535, "end_of_life": "2026-06-30"},
    ),
    (
        "driver.pin_effective", "high", False, "The pin holds the driver's packages back",
        "Without a pin unattended upgrades replace the driver under running jobs.",
        "Provision the host: the role writes the pin again.", {"pins": [], "branch": 580},
    ),
    (
        "driver.module_every_kernel", "high", False, "Every kernel that can boot has the module",
        "A host that boots a kernel without the module comes up without GPUs.",
        "Install the headers of the kernel named here and run dkms autoinstall.", {"without": ["6.1.0-41-amd64"]},
    ),
    (
        "driver.nouveau", "critical", False, "nouveau is not loaded",
        "nouveau holds the GPU, so that the NVIDIA module cannot take it.",
        "Provision the host and reboot: the role blacklists nouveau in the initramfs too.", {"nouveau_loaded": True},
    ),
    (
        "boot.secure_boot", "critical", False, "Secure Boot accepts the module",
        "A module that no enrolled key has signed is refused when the host boots.",
        "Enrol the key at the console (mokutil --import), or sign the module.", {"secure_boot": True, "signed_by": None},
    ),
    (
        "torch.build", "critical", False, "torch is the CUDA build that was asked for",
        "A CPU build imports without an error and trains a hundred times slower.",
        "Rebuild the environment with its lock: the index of the CUDA build is in it.",
        {"environment": "base", "found": "2.9.1+cpu", "wanted": "2.9.1+cu128"},
    ),
    (
        "torch.arch_flags", "critical", True, "torch has code for every GPU",
        "Without code for the GPU every kernel fails: no kernel image is available.",
        "Choose a CUDA tag that covers the GPU: torch_env_cuda=auto does.",
        {"gpu": "sm_120", "arch_flags": ["sm_75", "sm_80", "sm_86", "sm_90"]},
    ),
    (
        "torch.companions", "high", False, "torchvision and torchaudio fit to torch",
        "Companions of another build fail when they are imported.",
        "Rebuild the environment.", {"torch": "2.9.1+cu128", "torchvision": "0.23.0"},
    ),
    (
        "environment.integrity", "critical", False, "The environment's files are those that were installed",
        "A file that was changed or lost in the environment breaks programs hours later, or silently changes results.",
        "Rebuild the environment side by side; the damaged one stays until the new one is proven.",
        {"missing": 3, "changed": 1, "examples": ["torch/lib/libtorch_cuda.so", "torch/_C.cpython-311-x86_64-linux-gnu.so"]},
    ),
    (
        "environment.lock_drift", "high", False, "The environment is what its lock says",
        "Packages that somebody added by hand are not on the next host, and not in the next release.",
        "Add the package to the environment's requirements, or rebuild.", {"added": ["numpy 1.26.4"], "lock": "numpy 2.3.5"},
    ),
    (
        "proof.age", "high", False, "The host was proven not long ago",
        "A proof says what was so when it ran.", "Run check_compliance.yml with -e gpufleet_prove=true, or install the timer.",
        {"proven_at": "2026-11-02T04:11:09Z", "hours": 511, "allowed": 168},
    ),
    (
        "proof.covers", "critical", False, "The last proof covers what is there now",
        "Driver, release or GPUs have changed since the proof: nobody has computed with this combination.",
        "Provision the host, or prove it anew.", {"uncovered": "the driver was 580.95.05, is 580.105.08"},
    ),
    (
        "runtime.tokenizers", "medium", False, "TOKENIZERS_PARALLELISM is set wherever processes start",
        "Tokenizers that fork after they have threads deadlock data loaders.",
        "Provision the host with --tags runtime.", {"context": "systemd user", "value": None},
    ),
    (
        "runtime.breaking", "medium", False, "No variable breaks CUDA or makes it slow",
        "CUDA_LAUNCH_BLOCKING and the like stay in a start file after debugging.",
        "Remove the line from the file that is named here.", {"where": "/etc/environment", "name": "CUDA_LAUNCH_BLOCKING"},
    ),
    (
        "gpu.ecc", "critical", True, "No uncorrected memory errors",
        "Uncorrected errors end jobs and can change results.", "Drain the host and reset the GPU; replace it when they come back.",
        {"uncorrected_volatile": 2, "uncorrected_total": 14},
    ),
    (
        "gpu.xid", "high", True, "No Xid since the host was booted that asks for more than a restart",
        "The driver has reported a fault of the GPU or of its link.", "Follow the action of the catalogue: reset, reboot, inspect.",
        {"number": 79, "title": "GPU has fallen off the bus", "count": 1, "last_at": "2026-11-23T03:12:44Z"},
    ),
    (
        "gpu.link_width", "high", True, "The PCIe link has its full width",
        "A GPU on fewer lanes loads data at a fraction of the speed.", "Reseat the GPU; look at the riser and at the BIOS's bifurcation.",
        {"width": 4, "max_width": 16},
    ),
    (
        "gpu.throttle", "medium", True, "The hardware does not slow the GPU down",
        "Heat or power: training takes longer without any error.", "Look at fans, dust, the power supply and its cables.",
        {"throttle": ["hw_thermal_slowdown"], "temperature_c": 92},
    ),
    (
        "gpu.persistence", "low", True, "The driver stays loaded between jobs",
        "Without it the first call of every job takes seconds longer.", "Enable nvidia-persistenced.", {"persistence_mode": False},
    ),
    (
        "host.disk", "high", False, "There is room for two releases",
        "An upgrade builds beside the running release.", "Make room below the path, or prune releases.",
        {"path": "/opt/gpufleet/envs", "free_mib": 2210, "needed_mib": 21504},
    ),
    (
        "host.clock", "medium", False, "The clock is synchronised",
        "A wrong clock makes certificates invalid and proofs look old.", "Enable systemd-timesyncd or chrony.",
        {"clock_synchronized": False},
    ),
    (
        "host.repository_keys", "low", False, "The package repositories' keys are valid for a month",
        "With an expired key the host gets no updates at all.", "Provision the host: the role brings the new key.",
        {"key": "cuda-archive-keyring.gpg", "expires": "2026-12-01"},
    ),
)  # fmt: skip


def document(hosts: int = 40, rules: int = len(CATALOGUE), runs: int = 60, seed: int = 6) -> dict[str, Any]:
    """A fleet in which about one host of eight has findings and a few are not to be reached."""
    chance = random.Random(seed)  # noqa: S311
    columns = [_rule(index) for index in range(rules)]
    records = [_host(index, columns, chance) for index in range(hosts)]
    waivers = _waivers(columns, records)
    for record in records:
        record["outcome"], record["reason"] = _outcome(record, columns)
    totals = {"hosts": hosts, **{outcome: sum(r["outcome"] == outcome for r in records) for outcome in OUTCOMES}}
    return {
        "schema": 1,
        "generated_at": _at(NOW),
        "collection": "0.5.0",
        "fail_on": "high",
        "rules": [{key: value for key, value in column.items() if not key.startswith("_")} for column in columns],
        "hosts": records,
        "waivers": waivers,
        "totals": totals,
        "history": _history(totals, records, runs, chance),
        "errors": [],
        "notes": ["Waiver of driver.branch_eol for render-*: nothing to waive now."],
    }


def _rule(index: int) -> dict[str, Any]:
    rule_id, severity, for_each, title, rationale, remedy, evidence = CATALOGUE[index % len(CATALOGUE)]
    again = index // len(CATALOGUE)
    return {
        "id": f"site{again}.{rule_id.replace('.', '_')}" if again else rule_id,
        "title": title if not again else f"{title} (own rule {again})",
        "severity": severity,
        "rationale": rationale,
        "remedy": remedy,
        "params": {"hours": 168} if rule_id == "proof.age" else {},
        "source": "NVIDIA, driver documentation" if rule_id.startswith("driver.") else "",
        "_each": for_each,
        "_evidence": evidence,
    }


def _host(index: int, rules: list[dict[str, Any]], chance: random.Random) -> dict[str, Any]:
    group = GROUPS[index % len(GROUPS)]
    model, sm, memory, _ = chance.choice(MODELS)
    driver = chance.choice(("580.105.08", "580.105.08", "580.95.05", "570.195.03"))
    state = chance.choices(("observed", "unreachable", "unknown", "not_asked"), (94, 3, 2, 1))[0]
    gpus = [
        {
            "pci_address": f"0000:{slot + 1:02x}:00.0",
            "name": model,
            "sm": sm,
            "uuid": "GPU-{:08x}-{:04x}-{:04x}-{:04x}-{:012x}".format(
                *(chance.getrandbits(bits) for bits in (32, 16, 16, 16, 48))
            ),
            "memory_mib": memory,
        }
        for slot in range(8 if "H100" in model else chance.choice((1, 1, 2, 4)))
    ]
    observed = state == "observed"
    weak = observed and chance.random() < 0.13
    results = {rule["id"]: _result(rule, gpus, weak, observed, chance) for rule in rules}
    facts = {
        "kernel": "6.1.0-42-amd64",
        "driver.loaded": driver,
        "driver.installed": driver,
        "gpus": f"{len(gpus)} x {model}",
        "torch.base": "2.9.1+cu128",
        "release.base": f"{chance.getrandbits(48):012x}",
        "variables": "TOKENIZERS_PARALLELISM=false",
    }
    changes = [
        {"what": "driver loaded", "before": "570.172.08", "after": driver},
        {"what": "kernel", "before": "6.1.0-41-amd64", "after": "6.1.0-42-amd64"},
    ]
    last = observed and chance.random() < 0.06
    return {
        "name": f"{group.replace('_', '-')}-{index:03d}",
        "groups": ["workstations", group],
        "outcome": state,
        "reason": "",
        "proven_at": _at(NOW - timedelta(hours=chance.randrange(150))) if observed else None,
        "observed_at": _at(NOW - timedelta(seconds=chance.randrange(90))) if observed else None,
        "since": _at(NOW - timedelta(hours=chance.choice((0, 3, 26, 180, 900)))),
        "gpu": f"{len(gpus)} x {model.replace('NVIDIA ', '')}" if observed else "",
        "sm": sm if observed else "",
        "driver": driver if observed else "",
        "torch": "2.9.1+cu128" if observed else "",
        "kernel": "6.1.0-42-amd64" if observed else "",
        "gpus": gpus if observed else [],
        "results": results,
        "facts": facts if observed else {},
        "drift": {
            "since_last": changes[:1] if last else [],
            "since_provisioned": changes[chance.randrange(2) :] if last or (observed and chance.random() < 0.3) else [],
        },
    }


def _result(
    rule: dict[str, Any], gpus: list[dict[str, Any]], weak: bool, observed: bool, chance: random.Random
) -> dict[str, Any]:
    since = _at(NOW - timedelta(hours=chance.choice((0, 2, 30, 200))))
    names = [gpu["pci_address"] for gpu in gpus] if rule["_each"] else [""]
    if not observed:
        message = "There is no observation of this host, so nothing can be said."
        return {
            "status": "error",
            "since": since,
            "items": [{"name": "", "status": "error", "evidence": {}, "message": message}],
        }
    if weak and chance.random() < 0.18:
        status = chance.choices(("failed", "error", "not_run"), (8, 1, 2))[0]
        message = {"failed": "", "error": "driver.loaded_version is null", "not_run": "The GPU computes for somebody."}[
            status
        ]
        evidence = rule["_evidence"] if status == "failed" else {}
        items = [{"name": name, "status": status, "evidence": evidence, "message": message} for name in names[:2]]
        return {"status": status, "since": since, "items": items}
    return {"status": "not_applicable" if chance.random() < 0.06 else "passed", "since": since, "items": []}


def _waivers(rules: list[dict[str, Any]], hosts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Waivers of findings that the fleet has, of every state; the findings become waived."""
    people = ("a.turing", "g.hopper", "k.johnson", "e.dijkstra", "b.liskov")
    waivers: list[dict[str, Any]] = []
    for number, rule in enumerate(rules[:: max(1, len(rules) // 10)]):
        days = (3, 11, 28, 61, 88, -4)[number % 6]
        failing = [host for host in hosts if host["results"][rule["id"]]["status"] == "failed"][:6]
        for host in failing if days >= 0 else []:
            result = host["results"][rule["id"]]
            result["status"] = "waived"
            for item in result["items"]:
                item["status"] = "waived"
        waivers.append(
            {
                "rule": rule["id"],
                "hosts": "*" if len(failing) > 1 else (failing or hosts[:1] or [{"name": "ws-*"}])[0]["name"],
                "owner": people[number % len(people)],
                "reason": "The spare part is ordered; the jobs on these hosts do not need it.",
                "ticket": f"OPS-{4200 + 17 * number}",
                "expires": (NOW + timedelta(days=days)).strftime("%Y-%m-%d"),
                "days_left": days,
                "state": "expired" if days < 0 else "active" if failing else "unneeded",
                "waives": len(failing) if days >= 0 else 0,
            }
        )
    return waivers


def _outcome(host: dict[str, Any], rules: list[dict[str, Any]]) -> tuple[str, str]:
    reasons = {
        "unreachable": "ssh: connect to host port 22: No route to host",
        "unknown": "It answered, but the observation did not come to an end within 120 s.",
        "not_asked": "It was left out by --limit.",
    }
    if host["outcome"] in reasons:
        return host["outcome"], reasons[host["outcome"]]
    bad = [
        r
        for r in rules
        if r["severity"] in ("critical", "high")
        and host["results"][r["id"]]["status"] in ("failed", "error", "not_run")
    ]
    if not bad:
        return "ready", ""
    first = f"{host['results'][bad[0]['id']]['status'].replace('_', ' ')}: {bad[0]['id']}"
    return "not_ready", first + (f", and {len(bad) - 1} more" if bad[1:] else "")


def _history(
    totals: dict[str, int], hosts: list[dict[str, Any]], runs: int, chance: random.Random
) -> list[dict[str, Any]]:
    """A fleet that gets better, with one bad day; the last run is the present one."""
    failing: dict[str, int] = {}
    for host in hosts:
        for rule, result in host["results"].items() if host["observed_at"] else ():
            failing[rule] = failing.get(rule, 0) + (result["status"] in ("failed", "error", "not_run"))
    series = []
    for run in range(runs):
        left = runs - 1 - run
        worse = round(
            totals["hosts"]
            * (0.25 * left / max(runs, 1) + (0.2 if left == runs // 4 else 0))
            * chance.uniform(0.8, 1.2)
        )
        worse = min(worse, totals["ready"]) if left else 0
        series.append(
            {
                "at": _at(NOW - timedelta(hours=12 * left)),
                "totals": {**totals, "ready": totals["ready"] - worse, "not_ready": totals["not_ready"] + worse},
                "failing": {rule: count + worse // 9 for rule, count in failing.items() if count or worse // 9},
            }
        )
    return series


def _at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    print(json.dumps(document(*map(int, sys.argv[1:3]))))
