#!/usr/bin/env python3
"""Record what NVML answers to gpu_info on this machine: a fixture for the unit tests, printed as JSON.

    python3 tests/gpu/capture.py >tests/unit/plugins/module_utils/_probe/recorded/nvml/<card>-<branch>.json

Reads only. UUIDs are replaced, process ids of the machine are kept. The format: tests/stubs/nvml_answers.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "collections"), str(ROOT / "tests/stubs")]

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import nvml  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host  # noqa: E402
from nvml_answers import Recorder, nameless  # noqa: E402


def main() -> None:
    """Ask as gpu_info does, once, and print question and answer."""
    recorders: list[Recorder] = []

    def load(names: tuple[str, ...]) -> Recorder:
        recorders.append(Recorder(Host().load_library(names)))
        return recorders[0]

    seen = nvml.read(Host(load_library=load))
    recording = recorders[0].recording
    recording["about"] = {
        "simulated": False,
        "cards": [gpu["name"] for gpu in seen["gpus"]],
        "driver": seen["driver_version"],
        "recorded": time.strftime("%Y-%m-%d", time.gmtime()),
        "problems": seen["problems"],
    }
    json.dump(nameless(recording), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
