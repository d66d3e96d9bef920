#!/usr/bin/env python3
"""Measure the proof against `import torch` of the same interpreter; print one JSON document.

    bench/proof.py [PYTHON]     PYTHON: one with torch; else GPUFLEET_TORCH_PYTHON, else python3

Medians of several rounds, in milliseconds of wall time. `*_over_import_ms` is what the proof costs beyond the import. The quick
level is measured where there is a driver.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "collections"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner

ROUNDS = 5


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time in milliseconds, and what the function returned."""
    started = time.monotonic()
    result = function()
    return (time.monotonic() - started) * 1000, result


def main() -> int:
    """Measure and print."""
    python = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("GPUFLEET_TORCH_PYTHON") or shutil.which("python3")
    if not python:
        print("bench: name a Python with torch", file=sys.stderr)
        return 2
    levels = ["static"] + ([] if runner.driver_absent(Host()) else ["quick"])
    walls: dict[str, list[float]] = {name: [] for name in ("import", *levels)}
    results: dict[str, dict[str, Any]] = {}
    command = [python, "-I", "-B", "-c", "import torch"]
    for number in range(ROUNDS + 1):  # by turns, so that a slow moment of the machine hits all alike
        wall, _done = timed(lambda: subprocess.run(command, check=True, stderr=subprocess.DEVNULL))
        rounds = {"import": wall}
        for level in levels:
            rounds[level], results[level] = timed(
                lambda level=level: runner.run_checks(python, {"level": level}, None, 300)
            )
        if number:  # the first one fills the page cache
            for name, value in rounds.items():
                walls[name].append(value)
    report: dict[str, Any] = {"python": python, "rounds": ROUNDS}
    median = {name: statistics.median(values) for name, values in walls.items()}
    report["import_ms"] = round(median["import"], 1)
    for level in levels:
        result = results[level]
        checks = [*result["checks"], *(check for gpu in result["gpus"] for check in gpu["checks"])]
        report[f"{level}_ms"] = round(median[level], 1)
        report[f"{level}_over_import_ms"] = round(median[level] - median["import"], 1)
        report[f"{level}_over_import_ratio"] = round(median[level] / median["import"], 3)
        report[f"{level}_verdict"] = result["verdict"]
        report[f"{level}_reason"] = result["reason"]
        report[f"{level}_checks_ms"] = {check["id"]: check["ms"] for check in checks if check["ms"] is not None}
    report["torch"] = results["static"]["torch"]
    report["gpus"] = [gpu["name"] for gpu in results.get("quick", {}).get("gpus", [])]
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
