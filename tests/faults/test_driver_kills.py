# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill a driver's change at random moments: the package manager, the module, the connection, the controller. The next plain run gets
the host to its goal, and nobody has to help.

Hosts work in parallel, each through its own life: nothing there, 580, 595, removed. `--seeds 20` for more moments of each package manager.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "drivers"))
pytest.register_assert_rewrite("checks")
import checks  # noqa: E402
import harness  # noqa: E402
from harness import Host  # noqa: E402

pytestmark = [pytest.mark.skipif(bool(harness.lacking()), reason=harness.lacking()), pytest.mark.timeout(3600)]

PHASES = ("fresh", "upgrade", "removal")
PROGRAMS = re.compile(r"(^|/)(apt-get|dpkg|dpkg-deb|dnf|rpm|dkms)( |$)|dnf_session")
LOCK = "run/gpufleet-driver.lock"
VICTIMS = ("packages", "module", "ssh", "controller")
PATIENCE = 120.0


@dataclasses.dataclass
class Kill:
    """What one seed does."""

    seed: int
    host: Host
    phase: str
    victim: str
    delay: float
    hit: str = "nothing left to kill"
    outcome: str = ""

    def __str__(self) -> str:
        where = f"{self.seed:>5}  {self.host.name:<22} {self.phase:<8} {self.victim:<10}"
        return f"{where} {self.delay:5.2f} s  {self.hit:<44} {self.outcome}"


def processes(root: int) -> dict[int, str]:
    """Processes of a container, as this machine numbers them -> command line."""
    space = os.readlink(f"/proc/{root}/ns/pid")
    found = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdecimal() and os.readlink(f"/proc/{entry}/ns/pid") == space:
                found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ").strip()
    return found


def victims(kill: Kill, root: int, controller: int) -> dict[int, str]:
    """Whom this kill is for, as far as they live now."""
    if kill.victim == "controller":
        return {controller: "ansible-playbook"}
    there = processes(root)
    if kill.victim == "ssh":
        return {pid: text for pid, text in there.items() if re.match(r"sshd(-session)?: ", text)}
    if kill.victim == "module":
        return module(root)
    return {
        pid: text for pid, text in there.items() if PROGRAMS.search(text) and not text.startswith(("/bin/sh", "sudo"))
    }


def module(root: int) -> dict[int, str]:
    """The module while it works: the process that the lock of drivers names. Ansible gives it to Python through a pipe, without a name."""
    with contextlib.suppress(OSError):
        number = Path(f"/proc/{root}/root/{LOCK}").read_text().strip()
        for pid in processes(root):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if number and re.search(rf"^NSpid:.*\t{number}$", status, re.MULTILINE):
                    return {pid: "driver_packages"}
    return {}


def change(kill: Kill) -> tuple[str, dict[str, Any]]:
    """The playbook and variables of a phase."""
    if kill.phase == "removal":
        return "remove.yml", {"gpufleet_remove": True}
    return "provision_gpu.yml", {"nvidia_driver_branch": "595"} if kill.phase == "upgrade" else {}


def strike(kill: Kill) -> None:
    """Start the phase, and kill in the middle of the module's work."""
    playbook, variables = change(kill)
    root = kill.host.pid()
    with tempfile.TemporaryDirectory(prefix="gpufleet-kill-") as folder:
        process = subprocess.Popen(
            harness.command(playbook, [kill.host.name], variables),
            env=harness.environment(f"{folder}/tasks", f"{folder}/ssh"),
            cwd=harness.CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < end and not module(root):
            time.sleep(0.05)
        time.sleep(kill.delay)
        while process.poll() is None and time.monotonic() < end:
            targets = victims(kill, root, process.pid)
            if targets:
                kill.hit = ", ".join(
                    sorted({Path(text.split()[0]).name.rstrip(":") for text in targets.values() if text})
                )[:44]
                for pid in targets:
                    with contextlib.suppress(ProcessLookupError):
                        harness.kill_controller(pid) if kill.victim == "controller" else os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PATIENCE)
        if process.poll() is None:
            harness.kill_controller(process.pid)
        process.wait()


def at_goal(kill: Kill, fresh: checks.Seen) -> None:
    """One plain run, and the host is where it should be, seen without the collection."""
    playbook, variables = change(kill)
    run = harness.play(playbook, [kill.host.name], **variables)
    played = run[kill.host.name]
    assert played.ready, played.message or run.output[-2000:]
    seen = kill.host.look()
    if kill.phase == "removal":
        assert checks.driver(seen) == {}
        checks.untouched(fresh, seen)
    else:
        checks.serves(kill.host, seen, "595" if kill.phase == "upgrade" else kill.host.branch, kill.host.flavor)


def life(host: Host, kills: list[Kill]) -> None:
    """One host's kills, one after the other."""
    harness.play("remove.yml", [host.name], gpufleet_remove=True)
    fresh = host.look()
    for kill in kills:
        try:
            strike(kill)
            at_goal(kill, fresh)
            kill.outcome = "goal reached by the next run"
        except Exception as error:  # the verdict of this seed; the others go on
            kill.outcome = f"FAILED: {' '.join(str(error).split())[:600]}"
            harness.play(
                "provision_gpu.yml" if kill.phase != "removal" else "remove.yml", [host.name], gpufleet_remove=True
            )


def plan(hosts: list[str], seeds: int) -> dict[str, list[Kill]]:
    """Which host does which kills: every package manager gets `seeds` moments, every host a life in order."""
    kills: dict[str, list[Kill]] = {name: [] for name in hosts}
    for rpm in (False, True):
        of_manager = [name for name in hosts if Host(name).rpm == rpm]
        for seed in range(seeds if of_manager else 0):
            host = Host(of_manager[seed % len(of_manager)])
            chance = random.Random(f"{seed} {rpm}")  # noqa: S311  # a seed makes a failure come again
            phase = PHASES[len(kills[host.name]) % len(PHASES)]
            victim = VICTIMS[seed % len(VICTIMS)] if seeds < len(VICTIMS) else chance.choice(VICTIMS)
            kills[host.name].append(Kill(seed, host, phase, victim, chance.uniform(0.0, 8.0)))
    return kills


def able() -> list[str]:
    """Hosts that go through all phases: NVIDIA's repository, a GPU that 595 drives, no reboot in between."""
    hosts = [Host(name) for name in harness.driver_hosts()]
    return [h.name for h in hosts if h.nvidia and not h.before_turing and h.branch != "595"]


HOSTS = able()


@pytest.fixture(scope="session")
def struck(seeds: int) -> dict[str, list[Kill]]:
    harness.up(HOSTS)
    kills = {name: of_host for name, of_host in plan(HOSTS, seeds).items() if of_host}
    with ThreadPoolExecutor(max_workers=harness.ACROSS_HOSTS) as pool:
        list(pool.map(lambda name: life(Host(name), kills[name]), kills))
    rows = [str(kill) for of_host in kills.values() for kill in of_host]
    print(
        "\n seed  host                   phase    victim      moment   killed"
        + " " * 39
        + "outcome\n"
        + "\n".join(rows)
    )
    return kills


@pytest.mark.parametrize("name", HOSTS)
def test_kill_is_mended_by_the_next_run(struck: dict[str, list[Kill]], name: str) -> None:
    if name not in struck:
        pytest.skip("no seed fell on this host")
    bad = [str(kill) for kill in struck[name] if kill.outcome.startswith("FAILED")]
    assert bad == [], "\n".join(bad)
    assert all(kill.outcome for kill in struck[name])
