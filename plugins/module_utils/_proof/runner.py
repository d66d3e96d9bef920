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
from typing import Any, Sequence

from .._probe import proc, sysfs
from .._probe.host import Host, Unreadable
from . import causes, driver_kernel, judge, torch_checks
from .child import KILL_PATIENCE, Account, AccountError, Child, Nursery, choose_account

DRIVER_LIMIT = (
    60.0  # seconds for libcuda and one kernel per GPU; without persistence mode a GPU takes up to 3 s to start
)


class Driver:
    """What the driver showed without torch: found out once per host, however many environments are proven."""

    def __init__(self) -> None:
        self.absent: tuple[str, str] | None = None  # why there is nothing to prove on: code and sentence
        self.outcome = judge.Outcome([], None)
        self.gpus: list[dict[str, Any]] = []  # those that CUDA shows and that were asked for
        self.missing: list[str] = []  # addresses that were asked for, or that the kernel module serves, and CUDA lacks
        self.skipped: dict[str, tuple[str, str]] = {}  # by address: why a GPU was left alone

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

    `request`: level (`static` or `quick`), expect ({torch, companions: {name: version}}), sm (what the host's GPUs
    need), gpus (PCI addresses, None: all), when_busy (`skip` or `run`).
    """
    environment = {"name": python, "python": python, "user": user}
    result = prove(
        [{**environment, "expect": request.get("expect"), "sm": request.get("sm")}],
        level=request.get("level") or "static",
        gpus=request.get("gpus"),
        when_busy=request.get("when_busy") or "skip",
        time_limit=time_limit,
        host=host,
    )
    return result["environments"][0]


def prove(
    environments: Sequence[dict[str, Any]],
    level: str = "quick",
    sm: Sequence[str] = (),
    gpus: Sequence[str] | None = None,
    when_busy: str = "skip",
    time_limit: float = 300.0,
    host: Host | None = None,
) -> dict[str, Any]:
    """Prove environments one after the other: {verdict, level, environments: [...]}, as cuda_verify documents it."""
    host = host or Host()
    driver: Driver | None = None
    results = []
    for environment in environments:
        started = time.monotonic()
        settings = {**environment, "sm": list(environment.get("sm") or sm), "gpus": gpus, "when_busy": when_busy}
        result, driver = _prove_one(settings, level, driver, started + time_limit, host)
        result["ms"] = round((time.monotonic() - started) * 1000)
        results.append(result)
    return {
        "verdict": judge.combine([result["verdict"] for result in results]),
        "level": level,
        "environments": results,
    }


def _prove_one(
    settings: dict[str, Any], level: str, driver: Driver | None, deadline: float, host: Host
) -> tuple[dict[str, Any], Driver | None]:
    try:
        account = choose_account(settings.get("user"))
    except AccountError as error:
        return _unproven(settings, level, judge.not_run("python.start", "no_account", str(error))), driver
    with Nursery() as nursery:
        child = _start_torch(nursery, settings, account, deadline)
        if level == "static":
            assigned = []
        else:
            # The driver is tried while torch is being imported; torch waits for the answer before it touches a GPU.
            driver = driver or _try_driver(nursery, settings["python"], settings, account, deadline, host)
            assigned = driver.usable()
        outcome = _finish_torch(nursery, child, assigned)
        outcomes = {gpu["pci_address"]: outcome for gpu in assigned}
        if child.signal_name() and len(assigned) > 1:
            # Any of the GPUs can have crashed the process: alone, each one tells for itself.
            for gpu in judge.unfinished(outcome, assigned):
                alone = _start_torch(nursery, {**settings, "expect": None}, account, deadline)
                outcomes[gpu["pci_address"]] = _finish_torch(nursery, alone, [gpu])
    return _judged(settings, level, account, outcome, outcomes, driver, host), driver


def _start_torch(nursery: Nursery, settings: dict[str, Any], account: Account, deadline: float) -> Child:
    folder, name = os.path.split(settings["python"])
    # A link such as `current` is followed once, here: Python imports late, and the link can be switched meanwhile.
    python = os.path.join(os.path.realpath(folder), name)
    request = {"companions": sorted((settings.get("expect") or {}).get("companions") or {})}
    return nursery.start([python, "-I", "-B"], source_of(torch_checks), request, account, deadline)


def _finish_torch(nursery: Nursery, child: Child, gpus: Sequence[dict[str, Any]]) -> judge.Outcome:
    child.tell({"gpus": [{**gpu, "checks": judge.gpu_checks(gpu["sm"])} for gpu in gpus]})
    nursery.run_until(lambda: child.done)
    return judge.Outcome(child.records, problem_of(child))


# ---- the driver without torch ---------------------------------------------------------------------------------------


def _try_driver(
    nursery: Nursery, python: str, settings: dict[str, Any], account: Account, deadline: float, host: Host
) -> Driver:
    driver = Driver()
    driver.absent = driver_absent(host)
    if driver.absent is not None:
        return driver
    # The system's own Python works also when the environment does not.
    command = ["/usr/bin/python3" if host.runnable("/usr/bin/python3") else python, "-I", "-S", "-B"]
    now = time.monotonic()
    limit = now + min(DRIVER_LIMIT, max(0.0, deadline - now) / 2)
    child = nursery.start(command, source_of(driver_kernel), {"devices": host.at("/dev")}, account, limit)
    nursery.run_until(lambda: child.done or _shown(child) is not None)
    driver.gpus = _shown(child) or []
    _choose(driver, settings, child, host)
    child.tell({"gpus": [gpu["pci_address"] for gpu in driver.gpus if gpu["pci_address"] not in driver.skipped]})
    nursery.run_until(lambda: child.done)
    driver.outcome = judge.Outcome(child.records, problem_of(child))
    return driver


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


def _choose(driver: Driver, settings: dict[str, Any], child: Child, host: Host) -> None:
    """Which GPUs are left alone, and which are missing."""
    addresses = [gpu["pci_address"] for gpu in driver.gpus]
    wanted = settings["gpus"]
    if wanted is None:
        driver.missing = [address for address in _served(host) if address not in addresses]
    else:
        driver.missing = [address for address in wanted if address not in addresses]
        driver.gpus = [gpu for gpu in driver.gpus if gpu["pci_address"] in wanted]
    if settings["when_busy"] == "run":
        return
    for gpu in driver.gpus:
        processes = _computing(gpu.get("processes"), host, [os.getpid(), child.pid or 0])
        if processes:
            driver.skipped[gpu["pci_address"]] = ("busy", f"in use by {', '.join(processes[:5])}")


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


def _computing(pids: list[int] | None, host: Host, own: list[int]) -> list[str]:
    """The processes that compute on a GPU, by name; where NVML does not tell, whoever holds nvidia-uvm on this host."""
    if pids is None:
        try:
            holders = proc.gpu_processes(host, (), own)
        except (OSError, Unreadable):  # not root: nobody can tell, and what the proof needs is small
            return []
        return [f"{holder['command']} ({holder['pid']})" for holder in holders if holder["kind"] == "compute"]
    found = []
    for pid in pids:
        command = (host.text(f"/proc/{pid}/comm") or "").strip() or "a process of another container"
        if proc.kind_of(command, ("/dev/nvidia-uvm",)) == "compute":
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
    settings: dict[str, Any],
    level: str,
    account: Account,
    outcome: judge.Outcome,
    outcomes: dict[str, judge.Outcome],
    driver: Driver | None,
    host: Host,
) -> dict[str, Any]:
    sm = list(settings["sm"])
    if not sm and driver is not None:
        sm = sorted({gpu["sm"] for gpu in driver.gpus})
    static, torch, companions = judge.static_checks(outcome, settings.get("expect") or {}, sm)
    checks = list(static)
    gpus: list[dict[str, Any]] = []
    if level != "static" and driver is not None:
        checks += _host_checks(outcome, driver)
        gpus = judge.judged_gpus(outcomes, driver.outcome, driver.gpus, driver.skipped)
    checks.append(_end_check("python.end", outcome))
    shown = driver or Driver()
    told = causes.seen([*outcome.records, *shown.outcome.records], account.name, shown.missing)
    causes.narrow(host, told, checks, gpus)
    verdict = judge.verdict([*checks, *(check for gpu in gpus for check in gpu["checks"])])
    proven = "static" if judge.verdict(static) == "passed" else None
    reason, remedy = _reason(checks, gpus)
    return {
        "name": settings["name"],
        "python": settings["python"],
        "user": account.name,
        "verdict": verdict,
        "level": level,
        "proven": level if verdict == "passed" else proven,
        "reason": reason,
        "remedy": remedy,
        "checks": checks,
        "gpus": gpus,
        "torch": {key: torch[key] for key in ("version", "distribution_version", "cuda", "arch_flags")}
        if torch
        else None,
        "companions": companions,
    }


def _host_checks(outcome: judge.Outcome, driver: Driver) -> list[judge.Check]:
    names = ("driver.init", "driver.gpus", "driver.end", "torch.devices")
    if driver.absent is not None:
        return [judge.not_run(name, *driver.absent) for name in names]
    init = judge.from_records(driver.outcome, ["driver.init"])[0]
    end = _end_check("driver.end", driver.outcome)
    if init["status"] != "passed":
        seen, devices = (
            judge.not_run(name, "stopped", "the driver did not start") for name in ("driver.gpus", "torch.devices")
        )
        return [init, seen, end, devices]
    if driver.missing:
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


def _unproven(settings: dict[str, Any], level: str, check: judge.Check) -> dict[str, Any]:
    return {
        "name": settings["name"],
        "python": settings["python"],
        "user": None,
        "verdict": "not_run",
        "level": level,
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
