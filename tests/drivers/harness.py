# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet of driver hosts: make it, play on it, break it, look at it without the collection."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
# A fleet of its own unless somebody names one; read now, because other tests of this folder make yet another one.
NAME = os.environ.get("GPUFLEET_FLEET") or "drivers"
STATE = CHECKOUT / f".state/sandbox-{NAME}"
INVENTORY = STATE / "inventory.yml"
SANDBOX = CHECKOUT / "molecule/shared/sandbox"
PERSONAS: dict[str, dict[str, Any]] = yaml.safe_load((SANDBOX / "personas.yml").read_text(encoding="utf-8"))["hosts"]
CONTAINERS = Path("/run/gpufleet-sandbox/containers.conf")
KEPT = CHECKOUT / f".state/test/runs-{NAME}"
"""What each run of a playbook printed, for people who wonder why a case failed."""
VERDICT = "Fail every host that is not train-ready"
ACROSS_HOSTS = 4


def lacking() -> str:
    """Why this machine cannot play hosts; nothing where it can."""
    return "" if os.geteuid() == 0 else "root is needed to make containers"


def driver_hosts() -> list[str]:
    """The hosts of the matrix: one for each system and source, or those that GPUFLEET_DRIVER_HOSTS names."""
    wanted = os.environ.get("GPUFLEET_DRIVER_HOSTS")
    if wanted:
        return [name for name in PERSONAS if name in wanted.split(",")]
    return [
        name for name, persona in PERSONAS.items() if persona.get("group") == "drivers" and not persona.get("window")
    ]


def up(hosts: Iterable[str], *options: str) -> None:
    """Make the hosts that are missing. With GPUFLEET_KEEP, hosts that are there are taken as they are."""
    hosts = list(hosts)
    if os.environ.get("GPUFLEET_KEEP") and not options and INVENTORY.exists() and set(hosts) <= set(addresses()):
        return
    command = [SANDBOX / "fleet", "up", "--only-tiny", "--hosts", ",".join(hosts), *options]
    subprocess.run(command, env={**os.environ, "GPUFLEET_FLEET": NAME}, check=True, timeout=1500)


def destroy() -> None:
    """Take the whole fleet away."""
    subprocess.run([SANDBOX / "fleet", "destroy"], env={**os.environ, "GPUFLEET_FLEET": NAME}, check=True, timeout=300)


@dataclasses.dataclass(frozen=True)
class Host:
    """One simulated host, reached through podman as root."""

    name: str

    @property
    def persona(self) -> dict[str, Any]:
        return PERSONAS[self.name]

    @property
    def container(self) -> str:
        return f"gpufleet-{NAME}-{self.name}"

    @property
    def rpm(self) -> bool:
        """Whether packages are rpm's."""
        return self.persona["image"] == "el"

    @property
    def nvidia(self) -> bool:
        """Whether the driver is to come from NVIDIA's repository."""
        return self.persona.get("variables", {}).get("nvidia_driver_source", "nvidia") == "nvidia"

    @property
    def branch(self) -> str:
        """The branch that it gets when nobody names one: not every source has 580."""
        return {"drv-debian12-distro": "535", "drv-debian13-distro": "550", "drv-ubuntu2604-nvidia": "595"}.get(
            self.name, "580"
        )

    @property
    def models(self) -> set[str]:
        return {gpu["model"] for gpu in self.persona["gpus"]}

    @property
    def before_turing(self) -> bool:
        """A GPU that the open modules do not drive, and that no branch after 580 drives."""
        return any(model.startswith("gtx-10") for model in self.models)

    @property
    def blackwell(self) -> bool:
        """A GPU that the proprietary modules do not drive."""
        return any(model.startswith("rtx-50") for model in self.models)

    @property
    def flavor(self) -> str:
        """The flavor that its GPUs get when nobody chooses."""
        return "proprietary" if self.before_turing else "open"

    def podman(self, *arguments: str, text: str = "", check: bool = True, limit: float = 600) -> str:
        """Run podman; what it prints."""
        done = subprocess.run(
            ["podman", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
            env={**os.environ, "CONTAINERS_CONF": str(CONTAINERS)},
        )
        assert done.returncode == 0 or not check, f"{self.name}: {arguments}: {done.stdout}{done.stderr}"
        return done.stdout + ("" if done.returncode == 0 else done.stderr)

    def run(self, script: str, check: bool = True, limit: float = 600) -> str:
        """Run a shell script on the host as root; what it prints."""
        return self.podman("exec", "-i", self.container, "sh", "-eu", text=script, check=check, limit=limit)

    def look(self) -> dict[str, Any]:
        """What the host itself says of its packages, modules, files: no part of the collection is asked."""
        text = (HERE / "look.py").read_text(encoding="utf-8")
        return json.loads(self.podman("exec", "-i", self.container, "python3", "-I", "-", text=text))

    def pid(self) -> int:
        """Its first process, as this machine numbers it."""
        return int(self.podman("inspect", "--format", "{{.State.Pid}}", self.container))

    def cut_network(self) -> None:
        """No way to any index any more; Ansible still comes in."""
        server = server_address()
        self.run(f"ip route replace prohibit {server} && ip route replace prohibit default metric 1")

    def restore_network(self) -> None:
        """Undo cut_network."""
        server = server_address()
        self.run(f"ip route del prohibit {server} || true; ip route del prohibit default metric 1 || true")


def server_address() -> str:
    """Where the fleet's repositories are served."""
    everything = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))["all"]
    return re.sub(r"^https?://([^/:]+).*$", r"\1", everything["vars"]["torch_env_package_index_url"])


def addresses() -> dict[str, str]:
    """Host -> address."""
    everything = yaml.safe_load(INVENTORY.read_text(encoding="utf-8"))["all"]
    return {name: facts["ansible_host"] for name, facts in everything["hosts"].items()}


def on_all(names: Iterable[str], what: Any) -> dict[str, Any]:
    """Do something on several hosts at once; name -> outcome, which may be the exception."""

    def one(name: str) -> Any:
        try:
            return what(Host(name))
        except Exception as error:  # one host's failure is that host's verdict
            return error

    names = list(names)
    with ThreadPoolExecutor(max_workers=ACROSS_HOSTS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def look(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Look at several hosts at once."""
    return on_all(names, lambda host: host.look())


@dataclasses.dataclass
class Played:
    """One host's part of a run."""

    name: str
    stats: dict[str, int] = dataclasses.field(default_factory=dict)
    tasks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    executions: int = 0
    outcome: str = ""
    """The report's word for the host; nothing where the playbook has no report."""

    @property
    def plan(self) -> dict[str, Any]:
        """The first plan of the run."""
        return next((task["result"]["plan"] for task in self.tasks if task["result"].get("plan")), {})

    @property
    def planned(self) -> list[str]:
        """The ids of the driver's actions."""
        return [action["id"] for action in self.plan.get("driver", {}).get("actions", [])]

    @property
    def done(self) -> list[dict[str, Any]]:
        """What driver_packages says that it did."""
        return [step for task in self.tasks for step in task["result"].get("done") or ()]

    @property
    def changed(self) -> bool:
        return self.stats.get("changed", 0) > 0

    @property
    def pending(self) -> str:
        """Why the host waits, as its plan says."""
        return "; ".join(entry["why"] for entry in self.plan.get("pending", []))

    @property
    def refusals(self) -> list[dict[str, Any]]:
        return self.plan.get("refusals", [])

    @property
    def message(self) -> str:
        """What a person reads of this host: the words of tasks that failed."""
        said = [
            str(task["result"].get("msg", "")) for task in self.tasks if task["status"] in ("failed", "unreachable")
        ]
        return "\n".join(dict.fromkeys(filter(None, said)))

    @property
    def ready(self) -> bool:
        """Whether the run ended well for the host. That nothing was proven is right: there is no environment here."""
        if self.stats.get("unreachable") or self.outcome not in ("ready", "not_proven", "planned", ""):
            return False
        failed = {task["task"] for task in self.tasks if task["status"] == "failed" and not task["ignored"]}
        return failed <= ({VERDICT} if self.outcome == "not_proven" else set())


@dataclasses.dataclass
class Run:
    """A finished run of a playbook."""

    rc: int
    seconds: float
    output: str
    hosts: dict[str, Played]

    def __getitem__(self, name: str) -> Played:
        return self.hosts.get(name) or Played(name)


def environment(log: str, ssh_log: str) -> dict[str, str]:
    """What ansible-playbook gets: the checkout's configuration, the log of results and the counter of remote executions."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "gpufleet.workstation.fleet_summary,task_log",
        "ANSIBLE_SSH_EXECUTABLE": str(CHECKOUT / "bench/ssh-counter"),
        "ANSIBLE_NOCOLOR": "1",
        "COLUMNS": "160",
        "GPUFLEET_TASK_LOG": log,
        "GPUFLEET_SSH_LOG": ssh_log,
    }


def command(playbook: str, hosts: Sequence[str], variables: dict[str, Any], options: Sequence[str] = ()) -> list[str]:
    """The command line of a run: all hosts at once, the driver only, so no environment that would have to be proven."""
    all_at_once = {"gpufleet_hosts": ",".join(hosts), "gpufleet_batches": "100%", "gpufleet_max_failed": 99}
    settings = {**all_at_once, "torch_env_environments": [], **variables}
    return [
        *(str(CHECKOUT / ".venv/bin/ansible-playbook"), "-i", str(INVENTORY), "--forks", "20", "--tags", "driver"),
        *("-e", json.dumps(settings), *options, str(CHECKOUT / "playbooks" / playbook)),
    ]


def kill_controller(pid: int) -> None:
    """SIGKILL ansible-playbook with everything that it started: its workers have sessions of their own, and would go on for it."""
    family, waiting = [], [pid]
    while waiting:
        family.append(waiting.pop())
        with contextlib.suppress(OSError):
            os.kill(family[-1], signal.SIGSTOP)  # it starts nothing more while its children are looked for
            for task in Path(f"/proc/{family[-1]}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def play(playbook: str, hosts: Sequence[str], *options: str, limit: float = 1500, **variables: Any) -> Run:
    """Run a playbook on hosts as a user would, and sort what came back by host."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-play-") as folder:
        log, ssh_log = (f"{folder}/{name}" for name in ("tasks", "ssh"))
        begin = time.monotonic()
        done = subprocess.run(
            command(playbook, hosts, variables, options),
            env=environment(log, ssh_log),
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=limit,
        )
        found = {name: Played(name) for name in hosts}
        lines = Path(log).read_text(encoding="utf-8").splitlines() if Path(log).exists() else []
        sessions = Path(ssh_log).read_text(encoding="utf-8").splitlines() if Path(ssh_log).exists() else []
    KEPT.mkdir(parents=True, exist_ok=True)
    number = len(list(KEPT.iterdir())) + 1
    (KEPT / f"{number:03}-{playbook}.log").write_text(done.stdout, encoding="utf-8")
    for line in map(json.loads, lines):
        if "stats" in line:
            for name, stats in line["stats"].items():
                found.setdefault(name, Played(name)).stats = stats
        else:
            found.setdefault(line["host"], Played(line["host"])).tasks.append(line)
            for name, row in (line["result"].get("hosts") or {}).items():
                found.setdefault(name, Played(name)).outcome = row["outcome"]
    for name, address in addresses().items():
        if name in found:
            found[name].executions = sum(f" {address} " in f" {session} " for session in sessions)
    return Run(done.returncode, time.monotonic() - begin, done.stdout, found)
