# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Prove environments: run the proof's processes on this host and judge what they record.

`run_checks` proves one interpreter, `prove` a list of environments. Both change nothing, leave nothing behind, and
return within the time limit and a few seconds. Neither raises because of what it finds.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from .._probe import expected, proc, sysfs
from .._probe.host import Host, Unreadable
from . import causes, driver_kernel, judge, torch_checks, watch
from .child import KILL_PATIENCE, Account, AccountError, Child, Nursery, choose_account
from .judge import BURN_SECONDS

GPU_LIMIT = 60.0  # seconds for a step on a GPU; without persistence mode a GPU takes up to 3 s to start
AGAIN_LIMIT = 15.0  # the same once a GPU has hung: the others' steps take seconds, and a task is not held twice
TIME_LIMITS = {"static": 300.0, "quick": 300.0, "full": 600.0, "stress": 600.0}  # for an environment, besides the burn
WATCH_PATIENCE = 5.0  # seconds that NVML gets to say what it saw, when the load is over


class Settings(NamedTuple):
    """How an environment is proven."""

    name: str
    python: str
    user: str | None
    expect: dict[str, Any]
    sm: list[str]
    level: str
    gpus: Sequence[str] | None
    when_busy: str
    gpu_limit: float
    burn_seconds: float
    lost: Mapping[str, tuple[str, str]] = {}  # by PCI address: why a GPU is not to be touched again by this task

    @property
    def companions(self) -> list[str]:
        return sorted(self.expect.get("companions") or {})

    def limit_of(self, record: Mapping[str, Any]) -> float | None:
        return judge.step_limit(record, self.gpu_limit, self.burn_seconds)


class Driver:
    """What the driver showed without torch: found out for every environment, because a job can have started meanwhile."""

    def __init__(self) -> None:
        self.absent: tuple[str, str] | None = None  # why there is nothing to prove on: code and sentence
        self.outcome = judge.Outcome([], None)
        self.gpus: list[dict[str, Any]] = []  # those that CUDA shows and that were asked for
        self.missing: list[str] = []  # addresses that were asked for, or that the kernel module serves, and CUDA lacks
        self.gone: list[str] = []  # GPUs that were proven here before and are not there now, each in a sentence
        self.skipped: dict[str, tuple[str, str]] = {}  # by address: why a GPU was left alone
        self.shared: dict[str, tuple[str, str]] = {}  # by address: why only what disturbs nobody runs on a GPU

    def usable(self) -> list[dict[str, Any]]:
        """The GPUs on which the driver's own kernel passed."""
        tried = [gpu for gpu in self.gpus if gpu["pci_address"] not in self.skipped]
        return [gpu for gpu in tried if self._kernel_check(gpu)["status"] == "passed"]

    def _kernel_check(self, gpu: dict[str, Any]) -> judge.Check:
        return judge.from_records(self.outcome, ["gpu.driver_kernel"], gpu["pci_address"])[0]


def run_checks(
    python: str, request: dict[str, Any], user: str | None, time_limit: float, host: Host | None = None
) -> dict[str, Any]:
    """Prove one interpreter; the result is that of one environment, see `prove`.

    `request`: level, expect ({torch, companions: {name: version}}), sm (what the host's GPUs need), gpus (PCI addresses,
    None: all), when_busy (`skip` or `run`), gpu_limit, burn_seconds.
    """
    environment = {"name": python, "python": python, "user": user}
    result = prove(
        [{**environment, "expect": request.get("expect"), "sm": request.get("sm")}],
        level=request.get("level") or "static",
        gpus=request.get("gpus"),
        when_busy=request.get("when_busy") or "skip",
        time_limit=time_limit,
        gpu_limit=request.get("gpu_limit") or GPU_LIMIT,
        burn_seconds=request.get("burn_seconds") or BURN_SECONDS,
        host=host,
    )
    return result["environments"][0]


def prove(
    environments: Sequence[dict[str, Any]],
    level: str = "quick",
    sm: Sequence[str] = (),
    gpus: Sequence[str] | None = None,
    when_busy: str = "skip",
    time_limit: float | None = None,
    gpu_limit: float = GPU_LIMIT,
    burn_seconds: float = BURN_SECONDS,
    host: Host | None = None,
) -> dict[str, Any]:
    """Prove environments one after the other: {verdict, level, environments: [...]}, as cuda_verify documents it."""
    host = host or Host()
    driver: Driver | None = None
    lost: dict[str, tuple[str, str]] = {}
    limit = time_limit or TIME_LIMITS[level] + (burn_seconds if level == "stress" else 0.0)
    results = []
    for environment in environments:
        started = time.monotonic()
        settings = Settings(
            name=environment["name"],
            python=environment["python"],
            user=environment.get("user"),
            expect=environment.get("expect") or {},
            sm=list(environment.get("sm") or sm),
            level=level,
            gpus=gpus,
            when_busy=when_busy,
            gpu_limit=min(gpu_limit, AGAIN_LIMIT) if lost else gpu_limit,
            burn_seconds=burn_seconds,
            lost=dict(lost),
        )
        result, driver = _prove_one(settings, driver, started + limit, host)
        result["ms"] = round((time.monotonic() - started) * 1000)
        for gpu in result["gpus"]:
            if any(check["code"] in ("hung", "unkillable") for check in gpu["checks"]):
                lost[gpu["pci_address"]] = ("stopped", f"the GPU hung when {settings.name} was proven")
        results.append(result)
    return {
        "verdict": judge.combine([result["verdict"] for result in results]),
        "level": level,
        "environments": results,
    }


class Torch(NamedTuple):
    """What the environment's own processes showed."""

    outcome: judge.Outcome  # of the one that was started first
    of_gpu: dict[str, judge.Outcome]  # by PCI address: of the one that tells about it
    observed: dict[str, Any]  # by PCI address: what NVML saw meanwhile


def _prove_one(
    settings: Settings, driver: Driver | None, deadline: float, host: Host
) -> tuple[dict[str, Any], Driver | None]:
    try:
        account = choose_account(settings.user)
    except AccountError as error:
        return _unproven(settings, judge.not_run("python.start", "no_account", str(error))), driver
    with Nursery() as nursery:
        start = partial(_start_torch, nursery, settings, account, deadline)
        child = start()
        if settings.level == "static":
            outcome = _finish(nursery, [(child, {})])[0]
            return _judged(settings, account, Torch(outcome, {}, {}), None, lambda proven: [], host), driver
        # The driver is tried while torch is being imported; torch waits for the answer before it touches a GPU.
        if driver is None or driver.outcome.problem is None:  # a driver that hung is not tried again
            driver = _try_driver(nursery, settings, account, deadline, host)
        torch = _try_torch(
            nursery, settings, child, start, _start_watch(nursery, settings, driver, account, host), driver
        )
        return _judged(settings, account, torch, driver, partial(_all_reduce, nursery, account, start), host), driver


def _start_torch(
    nursery: Nursery,
    settings: Settings,
    account: Account,
    deadline: float,
    directory: str | None = None,
    limit_of: Callable[[dict[str, Any]], float | None] | None = None,
) -> Child:
    folder, name = os.path.split(settings.python)
    # A link such as `current` is followed once, here: Python imports late, and the link can be switched meanwhile.
    python = os.path.join(os.path.realpath(folder), name)
    request = {"companions": settings.companions}
    source, limit = source_of(torch_checks), limit_of or settings.limit_of
    return nursery.start([python, "-I", "-B"], source, request, account, deadline, limit, directory)


def _finish(nursery: Nursery, children: Sequence[tuple[Child, dict[str, Any]]]) -> list[judge.Outcome]:
    """Tell children what to do, and wait until all have done it."""
    for child, message in children:
        child.tell(message)
    nursery.run_until(lambda: all(child.done for child, _message in children))
    return [judge.Outcome(child.records, problem_of(child)) for child, _message in children]


def _try_torch(
    nursery: Nursery,
    settings: Settings,
    child: Child,
    start: Callable[..., Child],
    watcher: Child | None,
    driver: Driver,
) -> Torch:
    """Run torch's checks; where one GPU crashed or hung the process, the others are tried again alone."""
    gpus = []
    for gpu in driver.usable():
        names = judge.gpu_checks(gpu["sm"], settings.level, settings.companions)
        spared = judge.UNDISTURBED if gpu["pci_address"] in driver.shared else ()
        gpus.append({**gpu, "checks": [name for name in names if name not in spared]})
    names = judge.host_checks(settings.level, [gpu["sm"] for gpu in gpus])
    able = [gpu["pci_address"] for gpu in gpus if judge.capability(gpu["sm"]) >= judge.COMPILES_FROM]
    message = {
        "gpus": gpus,
        "burn_seconds": settings.burn_seconds,
        "peers": "gpus.peer" in names,
        "compile_on": able[0] if "torch.compile" in names else None,
    }
    outcome = _finish(nursery, [(child, message)])[0]
    of_gpu = {gpu["pci_address"]: outcome for gpu in gpus}
    if len(gpus) > 1 and (child.signal_name() or child.overdue):
        # Any of the GPUs can have crashed the process: alone, each one tells for itself. The one that hung has told.
        hung = child.overdue.gpu if child.overdue else None
        again = [gpu for gpu in judge.unfinished(outcome, gpus) if gpu["pci_address"] != hung]
        if len(again) > 1:  # side by side; what needs a link for itself is left out
            again = [{**gpu, "checks": [name for name in gpu["checks"] if name != "gpu.bandwidth"]} for gpu in again]
        limit = settings._replace(gpu_limit=min(settings.gpu_limit, AGAIN_LIMIT)).limit_of
        alone = [(start(limit_of=limit), {"gpus": [gpu], "burn_seconds": settings.burn_seconds}) for gpu in again]
        of_gpu.update(zip((gpu["pci_address"] for gpu in again), _finish(nursery, alone)))
    observed: dict[str, Any] = {}
    if watcher is not None:
        watcher.deadline = time.monotonic() + WATCH_PATIENCE
        _finish(nursery, [(watcher, {})])
        told = next((record.get("gpus") for record in watcher.records if record.get("event") == "watched"), None)
        observed = told if isinstance(told, dict) else {}
    return Torch(outcome, of_gpu, observed)


def _all_reduce(
    nursery: Nursery, account: Account, start: Callable[..., Child], gpus: Sequence[dict[str, Any]]
) -> list[judge.Check]:
    """NCCL over these GPUs, a process for each: what each of them tells, those first that ended before they were ended."""
    directory = nursery.directory(account)
    children = [start(directory=directory) for _gpu in gpus]
    for rank, (child, gpu) in enumerate(zip(children, gpus)):
        task = {"gpu": gpu, "rank": rank, "world": len(gpus), "store": os.path.join(directory, "store")}
        child.tell({"all_reduce": task})

    def over() -> bool:
        # One that is gone or has failed keeps the others waiting for it.
        return all(child.done for child in children) or any(_failed_alone(child) for child in children)

    nursery.run_until(over)
    children.sort(key=lambda child: not _failed_alone(child))
    for child in children:
        child.deadline = 0.0
        child.kill()
    outcomes = _finish(nursery, [(child, {}) for child in children])
    checks = []
    for outcome in outcomes:
        addresses = [record.get("gpu") for record in outcome.records if record.get("id") == "gpus.all_reduce"]
        checks += judge.from_records(outcome, ["gpus.all_reduce"], addresses[0] if addresses else None)
    return checks


def _failed_alone(child: Child) -> bool:
    told = [record.get("status") for record in child.records if record.get("event") == "check"]
    return (child.done and problem_of(child) is not None) or any(status != "passed" for status in told)


# ---- the driver without torch ---------------------------------------------------------------------------------------


def _try_driver(nursery: Nursery, settings: Settings, account: Account, deadline: float, host: Host) -> Driver:
    driver = Driver()
    driver.absent = driver_absent(host)
    if driver.absent is not None:
        driver.gone = _gone(settings, driver, host)
        return driver
    now = time.monotonic()
    # NVML, which is asked first, can hang as well: all of it together gets what a step gets.
    limit = now + min(settings.gpu_limit + 1, max(0.0, deadline - now) / 2)
    child = nursery.start(
        _system_python(host, settings),
        source_of(driver_kernel),
        {"devices": host.at("/dev")},
        account,
        limit,
        settings.limit_of,
    )
    nursery.run_until(lambda: child.done or _shown(child) is not None)
    driver.gpus = _shown(child) or []
    driver.gone = _gone(settings, driver, host)
    _choose(driver, settings, child, host)
    chosen = [gpu["pci_address"] for gpu in driver.gpus if gpu["pci_address"] not in driver.skipped]
    driver.outcome = _finish(nursery, [(child, {"gpus": chosen})])[0]
    return driver


def _start_watch(nursery: Nursery, settings: Settings, driver: Driver, account: Account, host: Host) -> Child | None:
    """NVML looks on while the GPUs work, where the level gives them enough to do."""
    if not judge.includes(settings.level, "full") or not driver.usable():
        return None
    return nursery.start(_system_python(host, settings), source_of(watch), {}, account, float("inf"))


def _system_python(host: Host, settings: Settings) -> list[str]:
    """The system's own Python works also when the environment does not."""
    return ["/usr/bin/python3" if host.runnable("/usr/bin/python3") else settings.python, "-I", "-S", "-B"]


def driver_absent(host: Host) -> tuple[str, str] | None:
    """Why there is no driver to prove with, or None: code and sentence."""
    if host.exists("/dev/dxg") or _device_nodes(host):
        return None
    loaded = sysfs.module_loaded(host, "nvidia")
    if loaded and sysfs.virtualization(host) != "container":
        return None  # libcuda makes missing device nodes through nvidia-modprobe
    present = sysfs.pci_gpus(host, [])
    if not present:
        return "no_gpu", "there is no NVIDIA GPU on this host"
    if loaded:
        return (
            "no_device_nodes",
            "the NVIDIA kernel module is loaded, but this container has no device node of a GPU (/dev/nvidia0)",
        )
    names = ", ".join(f"{gpu['pci_address']} {gpu.get('name') or ''}".rstrip() for gpu in present)
    return "no_driver", f"the NVIDIA kernel module is not loaded; on PCI there is {names}"


def _device_nodes(host: Host) -> list[str]:
    return [name for name in host.names("/dev") if name.startswith("nvidia") and name[len("nvidia") :].isdigit()]


def _shown(child: Child) -> list[dict[str, Any]] | None:
    return next((list(record["gpus"]) for record in child.records if record.get("event") == "gpus"), None)


def _choose(driver: Driver, settings: Settings, child: Child, host: Host) -> None:
    """Which GPUs are left alone or treated with care, and which are missing."""
    addresses = [gpu["pci_address"] for gpu in driver.gpus]
    wanted = settings.gpus
    if wanted is None:
        driver.missing = [address for address in _served(host) if address not in addresses]
    else:
        driver.missing = [address for address in wanted if address not in addresses]
        driver.gpus = [gpu for gpu in driver.gpus if gpu["pci_address"] in wanted]
    driver.skipped.update({address: settings.lost[address] for address in addresses if address in settings.lost})
    used = driver.shared if settings.when_busy == "run" else driver.skipped
    for gpu in driver.gpus:
        processes = _computing(gpu.get("processes"), host, [os.getpid(), child.pid or 0])
        if processes is None and settings.when_busy != "run" and judge.includes(settings.level, "full"):
            driver.skipped[gpu["pci_address"]] = (
                "users_unknown",
                "neither NVML nor this host's processes tell who uses it",
            )
        elif processes:
            used[gpu["pci_address"]] = ("busy", f"in use by {', '.join(processes[:5])}")


def _gone(settings: Settings, driver: Driver, host: Host) -> list[str]:
    """The GPUs that should be here and are not, each in a sentence. Who names GPUs means those alone."""
    try:
        return [gpu["text"] for gpu in expected.missing_now(host, driver.gpus)] if settings.gpus is None else []
    except (OSError, ValueError, Unreadable):  # gpu_info says what cannot be read
        return []


def _served(host: Host) -> list[str]:
    """The GPUs that the kernel module serves and that have a device node here (a container has nodes of its own alone)."""
    nodes = _device_nodes(host)
    found = []
    for address in host.names("/proc/driver/nvidia/gpus"):
        text = host.text(f"/proc/driver/nvidia/gpus/{address}/information") or ""
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if "nvidia" + fields.get("Device Minor", "").strip() in nodes:
            found.append(address)
    return found


def _computing(pids: list[int] | None, host: Host, own: list[int]) -> list[str] | None:
    """The processes that compute on a GPU, by name; where NVML does not tell, whoever holds nvidia-uvm on this host; None where
    nobody can tell.
    """
    if pids is None:
        try:
            holders = proc.gpu_processes(host, (), own)
        except (OSError, Unreadable):  # not root
            return None
        return [f"{holder['command']} ({holder['pid']})" for holder in holders if holder["kind"] == "compute"]
    found = []
    for pid in pids:
        command = (host.text(f"/proc/{pid}/comm") or "").strip()
        if not command or not proc.may_hold_gpu(host, pid):
            found.append(f"a process of another container ({pid})")
        elif proc.kind_of(command, ("/dev/nvidia-uvm",)) == "compute":
            found.append(f"{command} ({pid})")
    return found


# ---- judging --------------------------------------------------------------------------------------------------------


def problem_of(child: Child) -> tuple[str, str] | None:
    """Why a process did not come to a good end: code and sentence."""
    said = child.output.text().strip()
    last = f" It said last: {' | '.join(said.splitlines()[-3:])[-600:]}" if said else ""
    if child.start_error is not None:
        return "no_start", f"the interpreter did not start: {child.start_error}"
    if child.unkillable:
        return "unkillable", f"process {child.pid} did not end within {KILL_PATIENCE:g} s of SIGKILL"
    if child.overdue is not None:
        where = f" on {child.overdue.gpu}" if child.overdue.gpu else ""
        return "hung", f"{child.overdue.name}{where} did not end within its limit and was killed.{last}"
    if child.timed_out:
        return "timed_out", f"killed at the time limit.{last}"
    if child.signal_name():
        return "crashed", f"ended by {child.signal_name()}.{last}"
    if child.garbage is not None:
        return "garbage", f"the record descriptor carried something else: {child.garbage!r}"
    if child.returncode != 0 or not child.ended:
        return "ended_early", f"ended with status {child.returncode} before its work was done.{last}"
    return None


def _judged(
    settings: Settings,
    account: Account,
    torch: Torch,
    driver: Driver | None,
    all_reduce: Callable[[Sequence[dict[str, Any]]], list[judge.Check]],
    host: Host,
) -> dict[str, Any]:
    """The result; `all_reduce` is called with the GPUs that have passed, where there are several."""
    sm = settings.sm or (sorted({gpu["sm"] for gpu in driver.gpus}) if driver is not None else [])
    checks, facts, companions = judge.static_checks(torch.outcome, settings.expect, sm)
    gpus: list[dict[str, Any]] = []
    if driver is not None:
        gpus = judge.judged_gpus(
            torch.of_gpu,
            driver.outcome,
            driver.gpus,
            driver.skipped,
            lambda each: judge.gpu_checks(each, settings.level, settings.companions, facts.get("version")),
            driver.shared,
        )
        for gpu in gpus:
            seen = torch.observed.get(gpu["pci_address"])
            gpu["checks"] = judge.with_observations(
                gpu["checks"], seen if isinstance(seen, dict) else {}, settings.level
            )
            gpu["verdict"] = judge.verdict(gpu["checks"])
        checks += _host_checks(torch.outcome, driver)
        checks += _checks_of_several(settings, torch.outcome, driver, gpus, all_reduce)
    end = _end_check("python.end", torch.outcome)
    shown = driver or Driver()
    prefix = os.path.dirname(os.path.realpath(os.path.dirname(settings.python)))
    told = causes.seen([*torch.outcome.records, *shown.outcome.records], account.name, shown.missing, prefix)
    causes.narrow(host, told, [*checks, end], gpus)
    everything = [*checks, *(check for gpu in gpus for check in gpu["checks"])]
    verdict = judge.verdict([*everything, end])
    checks.append(end)
    reason, remedy = _reason(checks, gpus)
    return {
        "name": settings.name,
        "python": settings.python,
        "user": account.name,
        "verdict": verdict,
        "level": settings.level,
        "proven": settings.level if verdict == "passed" else judge.proven(settings.level, everything),
        "reason": reason,
        "remedy": remedy,
        "checks": checks,
        "gpus": gpus,
        "torch": {key: facts[key] for key in ("version", "distribution_version", "cuda", "arch_flags")}
        if facts
        else None,
        "companions": companions,
    }


def _checks_of_several(
    settings: Settings,
    outcome: judge.Outcome,
    driver: Driver,
    gpus: Sequence[dict[str, Any]],
    all_reduce: Callable[[Sequence[dict[str, Any]]], list[judge.Check]],
) -> list[judge.Check]:
    """torch.compile, and what takes more than one GPU."""
    names = judge.host_checks(settings.level, [gpu["sm"] for gpu in gpus])
    checks = {check["id"]: check for check in judge.from_records(outcome, names)}
    if "gpus.all_reduce" in checks:
        good = [gpu["pci_address"] for gpu in gpus if not any(check["status"] == "failed" for check in gpu["checks"])]
        usable = [gpu for gpu in driver.usable() if gpu["pci_address"] in good]
        if len(usable) < 2:
            text = "fewer than two GPUs were left to prove on"
            if checks["gpus.peer"]["status"] == "not_run":
                checks["gpus.peer"] = judge.not_run("gpus.peer", "stopped", text)
            checks["gpus.all_reduce"] = judge.not_run("gpus.all_reduce", "stopped", text)
        elif checks["gpus.peer"]["status"] == "failed":
            checks["gpus.all_reduce"] = judge.not_run("gpus.all_reduce", "stopped", "gpus.peer failed before it")
        else:
            checks["gpus.all_reduce"] = judge.joined("gpus.all_reduce", all_reduce(usable))
    return list(checks.values())


def _host_checks(outcome: judge.Outcome, driver: Driver) -> list[judge.Check]:
    names = ("driver.init", "driver.gpus", "driver.end", "torch.devices")
    gone = judge.failed("driver.gpus", "gpu_missing", "; ".join(driver.gone)) if driver.gone else None
    if driver.absent is not None:
        checks = [judge.not_run(name, *driver.absent) for name in names]
        return [gone if gone and check["id"] == gone["id"] else check for check in checks]
    init = judge.from_records(driver.outcome, ["driver.init"])[0]
    end = _end_check("driver.end", driver.outcome)
    if init["status"] != "passed":
        seen, devices = (
            judge.not_run(name, "stopped", "the driver did not start") for name in ("driver.gpus", "torch.devices")
        )
        return [init, seen, end, devices]
    if gone:
        seen = gone
    elif driver.missing:
        seen = judge.failed("driver.gpus", "gpu_missing", f"CUDA does not show {', '.join(driver.missing)}")
    elif not driver.gpus:
        seen = judge.failed("driver.gpus", "gpu_missing", "CUDA shows no GPU")
    else:
        seen = judge.passed("driver.gpus", f"CUDA shows {', '.join(gpu['name'] for gpu in driver.gpus)}")
    if driver.usable():
        devices = judge.from_records(outcome, ["torch.devices"])[0]
    else:
        devices = judge.not_run("torch.devices", "stopped", "no GPU was left to prove on")
    return [init, seen, end, devices]


def _end_check(name: str, outcome: judge.Outcome) -> judge.Check:
    if outcome.problem is not None:
        return judge.failed(name, *outcome.problem)
    return judge.passed(name, "the process ended by itself")


def _reason(checks: Sequence[judge.Check], gpus: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The first failure in a sentence, else the first thing that did not run, with what to do."""
    everything = [("", check) for check in checks]
    everything += [(f" on {gpu['pci_address']}", check) for gpu in gpus for check in gpu["checks"]]
    for status in ("failed", "not_run"):
        for where, check in everything:
            if check["status"] == status and not (status == "not_run" and check["code"] == "stopped"):
                return f"{check['id']}{where}: {check['evidence']}", str(check["remedy"])
    return "", ""


def _unproven(settings: Settings, check: judge.Check) -> dict[str, Any]:
    return {
        "name": settings.name,
        "python": settings.python,
        "user": None,
        "verdict": "not_run",
        "level": settings.level,
        "proven": None,
        "reason": check["evidence"],
        "remedy": check["remedy"],
        "checks": [check],
        "gpus": [],
        "torch": None,
        "companions": {},
    }


def source_of(module: Any) -> str:
    """A module's source text, also when it lies in the archive that Ansible sends."""
    source = module.__loader__.get_source(module.__name__)
    return source.decode("utf-8") if isinstance(source, bytes) else str(source)  # the controller's loader returns bytes
