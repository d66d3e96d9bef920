#!/usr/bin/env python3
"""Measure the proof against its targets; print one JSON document; exit status 1 when a target is missed or was not measured.

    bench/proof.py [PYTHON]     PYTHON: one with torch; else GPUFLEET_TORCH_PYTHON, else python3

Medians of several rounds, in milliseconds of wall time; whatever is compared is measured by turns, so that a slow moment of the
machine hits all alike. `figures` stand beside their upper limits; those that need a GPU are left out where there is no driver. The
driver kernel is compared with bench/driver_kernel.c, compiled here, or beforehand and named in GPUFLEET_DRIVER_KERNEL. Needs
Python 3.9 and this checkout, nothing else; changes nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH.parent / "collections"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import system  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import child, driver_kernel, runner, stamp  # noqa: E402

ROUNDS = 5
STAMPED = """
import sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import stamp
stamp.FOLDER, stamp.OWNER = sys.argv[2], int(sys.argv[3])
environment = {"name": "bench", "python": sys.argv[4], "sm": [sys.argv[5]]}
options = {"level": "static", "sm": [], "gpus": None}
(result,) = stamp.prove(None, [environment], options, False, 1, print)["environments"]
sys.exit(0 if result["stamped"] and result["verdict"] == "passed" else str(result))
"""
SYSTEM_PYTHON = "/usr/bin/python3"


def medians(rounds: int, **functions: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of wall time of each function, taken by turns; the first round fills the page cache and does not count."""
    walls: dict[str, list[float]] = {name: [] for name in functions}
    for _round in range(rounds + 1):
        for name, function in functions.items():
            started = time.monotonic()
            function()
            walls[name].append((time.monotonic() - started) * 1000)
    return {name: statistics.median(values[1:]) for name, values in walls.items()}


class Report:
    """What was measured."""

    def __init__(self, python: str) -> None:
        self.document: dict[str, Any] = {"python": python, "rounds": ROUNDS, "figures": []}

    def figure(self, name: str, value: float | None, target: float, unit: str, how: str) -> None:
        """Note a figure beside its upper limit; None was not measured."""
        met = value is not None and value <= target
        shown = None if value is None else round(value, 3)
        self.document["figures"].append(
            {"name": name, "value": shown, "target": target, "unit": unit, "met": met, "how": how}
        )


def levels(python: str, report: Report, gpus: bool, folder: Path) -> None:
    """The levels against the import of torch."""
    results = {"static": runner.run_checks(python, {"level": "static"}, None, 300)}
    flags = (results["static"]["torch"] or {}).get("arch_flags") or []
    sm = next(flag for flag in flags if flag.startswith("sm_"))

    def prove(level: str, sm: list[str]) -> None:
        results[level] = runner.run_checks(python, {"level": level, "sm": sm}, None, 300)

    prove("static", [sm])
    command = [python, "-I", "-B", "-c", "import torch"]
    functions: dict[str, Callable[[], Any]] = {
        "import": lambda: subprocess.run(command, check=True, stderr=subprocess.DEVNULL),
        "static": lambda: prove("static", [sm]),
        "stamped": stamped(folder, results["static"], sm),
    }
    if gpus:
        functions["quick"] = lambda: prove("quick", [])
    wall = medians(ROUNDS, **functions)
    for level, result in results.items():
        checks = [*result["checks"], *(check for gpu in result["gpus"] for check in gpu["checks"])]
        report.document[level] = {
            "ms": round(wall[level], 1),
            **{key: result[key] for key in ("verdict", "reason")},
            "checks_ms": {check["id"]: check["ms"] for check in checks if check["ms"] is not None},
        }
    report.document["import_ms"] = round(wall["import"], 1)
    report.document["torch"] = results["static"]["torch"]
    against = f"ms against {wall['import']:.0f} ms"
    ratio = wall["static"] / wall["import"] if results["static"]["verdict"] == "passed" else None
    how = f"{wall['static']:.0f} {against}" if ratio is not None else f"static: {results['static']['reason']}"
    report.figure("static / import torch", ratio, 1.2, "x", how)
    report.figure("static where a stamp covers it", wall["stamped"] / 1000, 0.3, "s", "with the start of its Python")
    if gpus:
        shown = results["quick"]
        names = [gpu["name"] for gpu in shown["gpus"]]
        beyond = (wall["quick"] - wall["import"]) / 1000 if shown["verdict"] == "passed" else None
        how = f"{wall['quick']:.0f} {against}, {len(names)} GPUs" if beyond is not None else f"quick: {shown['reason']}"
        report.figure("quick beyond import torch, all GPUs", beyond, 1.5, "s", how)
        report.document["gpus"] = names


def stamped(folder: Path, result: dict[str, Any], sm: str) -> Callable[[], Any]:
    """Keep a result as cuda_verify does, for a release that is nothing but its name; return the proof that finds it covered."""
    python = folder / "bench/releases/release/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (folder / "bench/stamps").mkdir()
    (folder / "bench/stamps/release.json").write_text("{}", encoding="ascii")
    stamp.FOLDER, stamp.OWNER = str(folder / "proof"), os.geteuid()
    host = Host()
    now = stamp.present(host, stamp.state_of(host, "bench", str(python)), [sm], None, system.utc(time.time()), 60)
    now.update(wish=stamp.wish({}), burn_seconds=0)
    stamp.write(host, stamp.document({**result, "name": "bench"}, now))
    # A copy without bytecode, as Ansible sends modules.
    collections = folder / "collections"
    plugins = "ansible_collections/gpufleet/workstation/plugins"
    shutil.copytree(BENCH.parent / "plugins", collections / plugins, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-B", "-c", STAMPED, str(collections), stamp.FOLDER, str(stamp.OWNER)]
    return lambda: subprocess.run([*command, str(python), sm], check=True)


def driver(report: Report) -> None:
    """The kernel through libcuda alone against a C program that does the same."""
    name = "driver kernel / C program doing the same"
    account, source = child.choose_account(None), runner.source_of(driver_kernel)
    python = SYSTEM_PYTHON if os.path.exists(SYSTEM_PYTHON) else sys.executable
    with tempfile.TemporaryDirectory() as folder, child.Nursery() as nursery:
        given, compiler = os.environ.get("GPUFLEET_DRIVER_KERNEL"), shutil.which("cc")
        program, ptx = Path(folder, "driver_kernel"), Path(folder, "kernel.ptx")
        if given:
            shutil.copy(given, program)
        elif compiler:
            options = ["-O2", "-o", str(program), str(BENCH / "driver_kernel.c"), "-ldl", "-lpthread"]
            subprocess.run([compiler, *options], check=True)
        else:
            report.figure(name, None, 1.2, "x", "no C compiler here: compile it elsewhere, see the head of its source")
            return
        ptx.write_bytes(driver_kernel.PTX.rstrip(b"\0"))
        os.chmod(folder, 0o755)  # noqa: S103 (the account runs the program)
        identity: dict[str, Any] = {}
        if account.switch:
            identity = {"user": account.uid, "group": account.gid, "extra_groups": account.groups}

        def theirs() -> None:
            home = nursery.directory(account)  # a new one each time: the driver keeps compiled kernels there
            command = [str(program), str(ptx), str(driver_kernel.COUNT)]
            subprocess.run(command, check=True, cwd=home, env=child.clean_environment(home), **identity)

        def ours() -> None:
            limit = time.monotonic() + 60
            process = nursery.start([python, "-I", "-S", "-B"], source, {}, account, limit)

            def shown() -> list[dict[str, Any]] | None:
                return next((record["gpus"] for record in process.records if record["event"] == "gpus"), None)

            nursery.run_until(lambda: process.done or shown() is not None)
            gpus = shown() or []
            process.tell({"gpus": [gpu["pci_address"] for gpu in gpus]})
            nursery.run_until(lambda: process.done)
            said = [record["status"] for record in process.records if record["event"] == "check"]
            if said != ["passed"] * (1 + len(gpus)) or not process.ended:
                raise RuntimeError(f"the driver kernel did not pass: {process.records} {process.output.text()}")

        wall = medians(3 * ROUNDS, ours=ours, theirs=theirs)
    how = f"{wall['ours']:.0f} ms against {wall['theirs']:.0f} ms, each with its start"
    report.figure(name, wall["ours"] / wall["theirs"], 1.2, "x", how)


def main() -> int:
    """Measure and print."""
    python = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("GPUFLEET_TORCH_PYTHON") or shutil.which("python3")
    if not python or subprocess.run([python, "-I", "-c", "import torch"], capture_output=True, check=False).returncode:
        print(f"bench: {python} has no torch: name a Python with torch", file=sys.stderr)
        return 2
    report = Report(python)
    gpus = runner.driver_absent(Host()) is None
    with tempfile.TemporaryDirectory() as folder:
        levels(python, report, gpus, Path(folder).resolve())
    if gpus:
        driver(report)
    print(json.dumps(report.document, indent=1))
    return 0 if all(figure["met"] for figure in report.document["figures"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
