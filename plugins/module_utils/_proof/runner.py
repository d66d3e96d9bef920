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
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .._probe import proc, sysfs
from .._probe.host import Host, Unreadable
from . import driver_kernel, judge, torch_checks
from .child import KILL_PATIENCE, Account, AccountError, Child, Nursery, choose_account

DRIVER_LIMIT = 60.0  # seconds for libcuda and one kernel per GPU; without persistence mode a GPU takes up to 3 s to start
ENDING = 1.0  # seconds of the time limit kept for the torch process to end when the driver used up its part


class Driver:
    """What the driver showed without torch: once per host, however many environments are proven."""

    def __init__(self) -> None:
        self.outcome = judge.Outcome([], None)
        self.gpus: List[Dict[str, Any]] = []
        self.skipped: Dict[str, Tuple[str, str]] = {}
        self.absent: Optional[Tuple[str, str]] = None  # why there is nothing to prove on: code and sentence
        self.missing: List[str] = []  # addresses that were asked for, or that the kernel module serves, and CUDA lacks

    def usable(self) -> List[Dict[str, Any]]:
        """The GPUs on which the driver's own kernel passed."""
        result = []
        for gpu in self.gpus:
            if gpu["pci_address"] in self.skipped:
                continue
            check = judge.from_records(self.outcome, ["gpu.driver_kernel"], gpu["pci_address"])[0]
            if check["status"] == "passed":
                result.append(gpu)
        return result


def run_checks(
    python: str, request: Dict[str, Any], user: Optional[str], time_limit: float, host: Optional[Host] = None
) -> Dict[str, Any]:
    """Prove one interpreter; the result is that of one environment, see `prove`.

    `request`: level (`static` or `quick`), expect ({torch, companions: {name: version}}), sm (what the host's GPUs
    need), gpus (PCI addresses, None: all), when_busy (`skip` or `run`), roots (directories beside the environment that
    torch may come from).
    """
    environment = {"name": python, "python": python, "user": user, "expect": request.get("expect"), "sm": request.get("sm")}
    environment["roots"] = request.get("roots")
    result = prove(
        [environment],
        level=request.get("level") or "static",
        gpus=request.get("gpus"),
        when_busy=request.get("when_busy") or "skip",
        time_limit=time_limit,
        host=host,
    )
    return result["environments"][0]


def prove(
    environments: Sequence[Dict[str, Any]],
    level: str = "quick",
    sm: Sequence[str] = (),
    gpus: Optional[Sequence[str]] = None,
    when_busy: str = "skip",
    time_limit: float = 300.0,
    host: Optional[Host] = None,
) -> Dict[str, Any]:
    """Prove environments one after the other: {verdict, level, environments: [...]}, as cuda_verify documents it."""
    host = host or Host()
    driver: Optional[Driver] = None
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
    settings: Dict[str, Any], level: str, driver: Optional[Driver], deadline: float, host: Host
) -> Tuple[Dict[str, Any], Optional[Driver]]:
    expect = settings.get("expect") or {}
    try:
        account = choose_account(settings.get("user"))
    except AccountError as error:
        return _unproven(settings, level, judge.not_run("python.start", "no_account", str(error))), driver
    python = [settings["python"], "-I", "-B"]
    request = {"companions": sorted(expect.get("companions") or {})}
    with Nursery() as nursery:
        child = nursery.start("torch", python, source_of(torch_checks), request, account, deadline)
        if level != "static" and driver is None:
            driver = _try_driver(nursery, settings, account, deadline, host)
        child.tell({"gpus": _assigned(driver) if driver is not None else []})
        nursery.run_until(lambda: child.done)
    outcome = judge.Outcome(child.records, problem_of(child))
    return _judged(settings, level, account, outcome, driver), driver


def _assigned(driver: Driver) -> List[Dict[str, Any]]:
    return [{**gpu, "checks": judge.gpu_checks(gpu["sm"])} for gpu in driver.usable()]


# ---- the driver without torch ---------------------------------------------------------------------------------------


def _try_driver(nursery: Nursery, settings: Dict[str, Any], account: Account, deadline: float, host: Host) -> Driver:
    """Run the kernel without torch, unless there is no driver to run it on; torch's import goes on meanwhile."""
    driver = Driver()
    driver.absent = driver_absent(host)
    if driver.absent is not None:
        return driver
    python = [_plain_python(settings["python"], host), "-I", "-S", "-B"]
    now = time.monotonic()
    limit = min(now + DRIVER_LIMIT, now + max(0.0, deadline - now) / 2, deadline - ENDING)
    child = nursery.start("driver", python, source_of(driver_kernel), {}, account, limit)
    nursery.run_until(lambda: child.done or _seen(child) is not None)
    driver.gpus = list(_seen(child) or [])
    _choose(driver, settings, child, host)
    child.tell({"gpus": [gpu["pci_address"] for gpu in driver.gpus if gpu["pci_address"] not in driver.skipped]})
    nursery.run_until(lambda: child.done)
    driver.outcome = judge.Outcome(child.records, problem_of(child))
    if not driver.gpus and not host.names("/proc/driver/nvidia/gpus") and not _device_nodes(host):
        driver.absent = ("no_device_nodes", "the NVIDIA kernel module is loaded, but there is no /dev/nvidia* for a GPU here")
    return driver


def driver_absent(host: Host) -> Optional[Tuple[str, str]]:
    """Why there is no GPU to prove on, or None: code and sentence."""
    if host.exists("/dev/dxg") or _device_nodes(host):
        return None
    if sysfs.module_loaded(host, "nvidia"):
        return None
    unknown: List[Dict[str, str]] = []
    present = sysfs.pci_gpus(host, unknown)
    if not present:
        return "no_gpu", "there is no NVIDIA GPU on this host"
    return "no_driver", "the NVIDIA kernel module is not loaded; on PCI there is %s" % (
        ", ".join("%s %s" % (gpu["pci_address"], gpu.get("name") or "") for gpu in present)
    )


def _device_nodes(host: Host) -> List[str]:
    return [name for name in host.names("/dev") if name.startswith("nvidia") and name[len("nvidia") :].isdigit()]


def _plain_python(python: str, host: Host) -> str:
    """The system's own Python where there is one: it works also when the environment does not."""
    return "/usr/bin/python3" if host.runnable("/usr/bin/python3") else python


def _seen(child: Child) -> Optional[List[Dict[str, Any]]]:
    return next((record["gpus"] for record in child.records if record.get("event") == "gpus"), None)


def _choose(driver: Driver, settings: Dict[str, Any], child: Child, host: Host) -> None:
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
            driver.skipped[gpu["pci_address"]] = ("busy", "in use by %s" % ", ".join(processes[:5]))


def _served(host: Host) -> List[str]:
    """The GPUs that the kernel module serves and that have a device node here (a container shows only its own)."""
    nodes = _device_nodes(host)
    found = []
    for address in host.names("/proc/driver/nvidia/gpus"):
        text = host.text("/proc/driver/nvidia/gpus/%s/information" % address) or ""
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if "nvidia" + fields.get("Device Minor", "").strip() in nodes:
            found.append(address)
    return found


def _computing(pids: Optional[List[int]], host: Host, own: List[int]) -> List[str]:
    """The processes that compute on a GPU, by name; where NVML does not tell, whoever holds nvidia-uvm on this host."""
    if pids is None:
        try:
            holders = proc.gpu_processes(host, (), own)
        except (OSError, Unreadable):  # not root: nobody can tell, and the proof is small
            return []
        return ["%s (%d)" % (item["command"], item["pid"]) for item in holders if item["kind"] == "compute"]
    found = []
    for pid in pids:
        command = (host.text("/proc/%d/comm" % pid) or "").strip() or "a process of another container"
        if proc.kind_of(command, ("/dev/nvidia-uvm",)) == "compute":
            found.append("%s (%d)" % (command, pid))
    return found


# ---- judging --------------------------------------------------------------------------------------------------------


def problem_of(child: Child) -> Optional[Tuple[str, str]]:
    """Why a process did not come to a good end: code and sentence."""
    said = child.output.text().strip()
    last = " It said last: %s" % " | ".join(said.splitlines()[-3:])[-600:] if said else ""
    if child.start_error is not None:
        return "no_start", "the interpreter did not start: %s" % child.start_error
    if child.unkillable:
        return "unkillable", "process %s did not end within %g s of SIGKILL" % (child.pid, KILL_PATIENCE)
    if child.timed_out:
        return "timed_out", "killed at the time limit.%s" % last
    if child.signal_name():
        return "crashed", "ended by %s.%s" % (child.signal_name(), last)
    if child.garbage is not None:
        return "garbage", "the record descriptor carried something else: %r" % child.garbage
    if child.returncode != 0 or not child.ended:
        return "ended_early", "ended with status %s before its work was done.%s" % (child.returncode, last)
    return None


def _judged(
    settings: Dict[str, Any], level: str, account: Account, outcome: judge.Outcome, driver: Optional[Driver]
) -> Dict[str, Any]:
    sm = list(settings["sm"])
    if not sm and driver is not None:
        sm = sorted({gpu["sm"] for gpu in driver.gpus})
    static, torch, companions = judge.static_checks(
        outcome, settings.get("expect") or {}, sm, settings.get("roots") or ()
    )
    checks = list(static)
    gpus: List[Dict[str, Any]] = []
    if level != "static":
        assert driver is not None
        checks += _host_checks(outcome, driver)
        gpus = judge.judged_gpus(outcome, driver.outcome, driver.gpus, driver.skipped)
    checks.append(_end_check(outcome))
    verdict = judge.verdict([*checks, *(check for gpu in gpus for check in gpu["checks"])])
    proven = None
    if verdict == "passed":
        proven = level
    elif judge.verdict(static) == "passed":
        proven = "static"
    reason, remedy = _reason(checks, gpus)
    return {
        "name": settings["name"],
        "python": settings["python"],
        "user": account.name,
        "verdict": verdict,
        "level": level,
        "proven": proven,
        "reason": reason,
        "remedy": remedy,
        "checks": checks,
        "gpus": gpus,
        "torch": {key: torch.get(key) for key in ("version", "distribution_version", "cuda", "arch_flags")} if torch else None,
        "companions": {name: facts.get("version") for name, facts in companions.items()},
    }


def _host_checks(outcome: judge.Outcome, driver: Driver) -> List[judge.Check]:
    names = ("driver.init", "driver.gpus", "torch.devices")
    if driver.absent is not None:
        return [judge.not_run(name, *driver.absent) for name in names]
    init = judge.from_records(driver.outcome, ["driver.init"])[0]
    if init["status"] != "passed":
        return [init, *(judge.not_run(name, "stopped", "the driver did not start") for name in names[1:])]
    if driver.missing:
        text = "CUDA does not show %s" % ", ".join(driver.missing)
        seen = judge.failed("driver.gpus", "gpu_missing", text)
    elif not driver.gpus:
        seen = judge.failed("driver.gpus", "gpu_missing", "CUDA shows no GPU")
    else:
        seen = judge.passed("driver.gpus", "CUDA shows every GPU: %s" % ", ".join(gpu["name"] for gpu in driver.gpus))
    if driver.usable():
        devices = judge.from_records(outcome, ["torch.devices"])[0]
    else:
        devices = judge.not_run("torch.devices", "stopped", "no GPU was left to prove on")
    return [init, seen, devices]


def _end_check(outcome: judge.Outcome) -> judge.Check:
    if outcome.problem is not None:
        return judge.failed("python.end", *outcome.problem)
    return judge.passed("python.end", "the process ended by itself")


def _reason(checks: Sequence[judge.Check], gpus: Sequence[Dict[str, Any]]) -> Tuple[str, str]:
    """The first failure in a sentence, else the first thing that did not run, with what to do."""
    everything = [("", check) for check in checks]
    everything += [(" on %s" % gpu["pci_address"], check) for gpu in gpus for check in gpu["checks"]]
    for status in ("failed", "not_run"):
        for where, check in everything:
            if check["status"] == status and not (status == "not_run" and check["code"] == "stopped"):
                return "%s%s: %s" % (check["id"], where, check["evidence"]), str(check["remedy"])
    return "", ""


def _unproven(settings: Dict[str, Any], level: str, check: judge.Check) -> Dict[str, Any]:
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
    assert source is not None
    return source
