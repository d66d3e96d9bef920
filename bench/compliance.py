#!/usr/bin/env python3
"""Measure check_compliance.yml over simulated hosts against its targets; print one JSON document; exit status 1 when one is missed.

    bench/compliance.py [HOSTS]     HOSTS: how many, 1000 unless told

The hosts are SIMULATED: the connection plugin bench/simulated/canned.py answers every module at once, with an observation of a healthy
host (tests/compliance/healthy.py), so that the controller's own time is all there is. The playbook and `ansible all -m ping` use the same
connection, hosts and forks, by turns. Needs this checkout and its .venv.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "collections"), str(ROOT / "tests/compliance")]

from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import evaluate, policies, render_html  # noqa: E402

import browser  # noqa: E402  # isort: skip
import healthy  # noqa: E402  # isort: skip

FORKS = 20
ROUNDS = 3
RULES = 100


def made_of(parts: list[Any], count: int) -> list[Any]:
    """As many rules as are asked for: those that are shipped, and copies of them under other names."""
    copies = []
    while len(parts) + len(copies) < count:
        rule = parts[len(copies) % len(parts)]
        copies.append(dataclasses.replace(rule, id=f"{rule.id}.copy{len(copies)}"))
    return [*parts, *copies][:count]


def evaluation(hosts: int) -> dict[str, Any]:
    """Judge the fleet by RULES rules in this process, and render its page."""
    shipped = policies.load(sorted((ROOT / "roles/gpu_compliance/files/policies").glob("*.yml")), {}, "bench")
    rules = made_of(shipped, RULES)
    now = datetime.datetime.fromisoformat(healthy.NOW.replace("Z", "+00:00"))
    states = {f"ws-{number:04}": healthy.state() for number in range(hosts)}
    started = time.monotonic()
    document = evaluate.assess(rules, [], states, now, None, "high", "bench")
    seconds = time.monotonic() - started
    page = render_html.html(document)
    ready = document["totals"]["ready"]
    if ready != hosts:
        raise SystemExit(f"bench: {hosts - ready} of the healthy hosts are not ready: {document['hosts'][0]['reason']}")
    return {
        "seconds": seconds,
        "shipped": len(shipped),
        "rules": len(rules),
        "page": len(page.encode()),
        "opens": opening(page),
    }


def opening(page: str) -> float | None:
    """Seconds until the page can be used in headless Chromium, the best of three; None where there is no Chromium."""
    if browser.missing():
        return None
    with tempfile.TemporaryDirectory() as folder, browser.chromium() as window:
        file = Path(folder, "index.html")
        file.write_text(page, encoding="utf-8")
        return min(window.open(file) for _round in range(ROUNDS))


def run(command: list[str], environment: dict[str, str], statuses: tuple[int, ...]) -> tuple[float, str]:
    """Run a command; return its seconds and its output."""
    started = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode not in statuses:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"bench: {' '.join(command)} ended with status {done.returncode}")
    return seconds, done.stdout


def playbook(hosts: int) -> dict[str, Any]:
    """The playbook against ping, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        inventory = Path(folder, "hosts.ini")
        lines = [f"ws-{number:04}" for number in range(hosts)]
        lines += ["[all:vars]", "ansible_connection=canned", f"ansible_python_interpreter={sys.executable}"]
        inventory.write_text("\n".join(lines) + "\n", encoding="ascii")
        answers = Path(folder, "answers")
        answers.mkdir()
        observed = healthy.state()["planned"]["observation"]
        answer = json.dumps({"changed": False, "observation": observed})
        (answers / "gpu_info.json").write_text(answer, encoding="ascii")
        (answers / "ping.json").write_text('{"ping": "pong"}', encoding="ascii")
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CONNECTION_PLUGINS": str(ROOT / "bench/simulated"),
            "ANSIBLE_FORKS": str(FORKS),
            "ANSIBLE_NOCOLOR": "1",
            "GPUFLEET_CANNED_ANSWERS": str(answers),
        }
        tools = ROOT / ".venv/bin"
        ping = [str(tools / "ansible"), "-i", str(inventory), "all", "-m", "ansible.builtin.ping"]
        check = [str(tools / "ansible-playbook"), "-i", str(inventory), str(ROOT / "playbooks/check_compliance.yml")]
        walls: dict[str, list[float]] = {"ping": [], "check": []}
        for _round in range(ROUNDS):
            seconds, output = run(ping, environment, (0,))
            if output.count("SUCCESS") != hosts:
                raise SystemExit("bench: not every simulated host answered ping")
            walls["ping"].append(seconds)
            seconds, output = run(check, environment, (0, 2))
            walls["check"].append(seconds)
        report = Path(folder, ".gpufleet/compliance/report/report.json")
        totals = json.loads(report.read_text(encoding="utf-8"))["totals"]
        if totals["ready"] + totals["not_ready"] != hosts:
            raise SystemExit(f"bench: the playbook did not judge every host: {totals}")
        tasks = [int(found) for found in re.findall(r"^ws-\d+ .*?ok=(\d+)", output, re.MULTILINE)]
    return {
        **{name: statistics.median(seconds) for name, seconds in walls.items()},
        "answer_bytes": len(answer),
        "host_tasks": statistics.median(tasks),
    }


def main() -> int:
    """Measure and print."""
    hosts = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    judged, played = evaluation(hosts), playbook(hosts)
    many = f"{hosts} simulated hosts"
    rules = f"{judged['rules']} rules ({judged['shipped']} shipped, the others copies) x {many}"
    how = f"{played['check']:.1f} s against {played['ping']:.1f} s, {many}, {FORKS} forks, {played['answer_bytes']} bytes each"
    figures = [
        ("check_compliance.yml against ansible -m ping", played["check"] / played["ping"], 1.3, "x", how),
        (
            "host-tasks per host",
            played["host_tasks"],
            2,
            "",
            "median of the recap; what runs once is the first host's",
        ),
        ("evaluating the rules", judged["seconds"], 3.0, "s", rules),
        ("size of the page", judged["page"] / 1e6, 5, "MB", rules),
        (
            "opening the page in Chromium",
            judged["opens"],
            2,
            "s",
            "best of three; tests/compliance/setup installs Chromium",
        ),
    ]
    shown = [
        {
            "name": name,
            "value": value and round(value, 3),
            "target": target,
            "unit": unit,
            "how": how,
            "met": value is not None and value <= target,
        }
        for name, value, target, unit, how in figures
    ]
    print(json.dumps({"figures": shown}, indent=1))
    return 0 if all(figure["met"] for figure in shown) else 1


if __name__ == "__main__":
    raise SystemExit(main())
