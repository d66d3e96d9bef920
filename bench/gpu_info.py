#!/usr/bin/env python3
"""Time gpu_info on this host, and what it is compared with. Prints one JSON object; all times are medians in ms.

observe_ms          the whole observation without environments and without libcuda, in this process
observe_cuda_ms     the same with libcuda
cuinit_ms           a fresh child that loads libcuda and calls cuInit, nothing else; measured in turn with the former
cuda_ratio          observe_cuda_ms / cuinit_ms
nvml_ms             a child that asks NVML everything, health included: load, initialise, read
import_ms           compiling and importing the package from source, as Ansible ships it, after what Ansible itself imports
environment_ms      one environment of --files files: integrity against its manifest, versions, stamp

Where there is no driver the cuda figures are null and "cuda_why" says so. Needs Python 3.9 and this checkout, nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "collections"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import child, driver, libcuda, nvml  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe  # noqa: E402
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import manifest  # noqa: E402

# What ansible.module_utils.basic has imported before a module's own imports begin (ansible-core 2.19).
ANSIBLE_IMPORTS = (
    "ctypes dataclasses datetime errno fcntl fnmatch grp hashlib json locale lzma pwd re select selectors shlex signal"
    " struct subprocess tempfile threading typing zlib"
)
IMPORT = """
import sys, time
for name in sys.argv[2].split(): __import__(name)
sys.path.insert(0, sys.argv[1])
started = time.perf_counter()
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import observe
print((time.perf_counter() - started) * 1000)
"""


def timed(function) -> float:
    """Milliseconds of one call; then wait until its children are gone, so that they do not disturb the next one."""
    started = time.perf_counter()
    function()
    taken = (time.perf_counter() - started) * 1000
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return taken


def initialise_cuda() -> int:
    """The baseline: load the library and initialise it."""
    return Host().load_library(libcuda.LIBRARIES).cuInit(0)


def with_cuda(request: Request, rounds: int) -> dict:
    """Measure the observation with libcuda and the bare cuInit in turn, so that both see the same machine."""
    observed = observe(Host(), request)
    said = observed["driver"]["libcuda"]
    if said is None or said["result"] != 0:
        why = [entry["why"] for entry in observed["unknown"] if "libcuda" in entry["what"]]
        why = said["error"] if said else "; ".join(why) or "libcuda was not asked"
        return {"observe_cuda_ms": None, "cuinit_ms": None, "cuda_ratio": None, "nvml_ms": None, "cuda_why": why}
    ours, bare, asked = [], [], []
    for _ in range(rounds):
        asked.append(timed(lambda: child.start(lambda: nvml.read(Host()), 60).answer()))
        bare.append(timed(lambda: child.start(initialise_cuda, 60).answer()))
        ours.append(timed(lambda: observe(Host(), request)))
    ours_ms, bare_ms = statistics.median(ours), statistics.median(bare)
    return {
        "observe_cuda_ms": round(ours_ms, 2),
        "cuinit_ms": round(bare_ms, 2),
        "cuda_ratio": round(ours_ms / bare_ms, 3),
        "nvml_ms": round(statistics.median(asked), 2),
        "cuda_why": None,
    }


def import_ms(rounds: int) -> float:
    """Import the package in fresh interpreters that find no bytecode."""
    taken = []
    with tempfile.TemporaryDirectory() as nothing:
        environment = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": nothing, "PATH": "/usr/bin:/bin"}
        for _ in range(rounds):
            command = [sys.executable, "-c", IMPORT, str(REPOSITORY / "collections"), ANSIBLE_IMPORTS]
            taken.append(float(subprocess.run(command, env=environment, check=True, capture_output=True).stdout))
    return statistics.median(taken)


def make_environment(root: Path, files: int) -> None:
    """An environment with so many files, stamped, as venv_release leaves it."""
    release = root / "bench" / "releases" / "r"
    site = release / "lib" / "python3.11" / "site-packages"
    for number in range(0, files, 100):
        folder = site / "package" / f"part{number}"
        folder.mkdir(parents=True)
        for name in range(min(100, files - number)):
            (folder / f"module_{name}.py").write_bytes(b"x" * name)
    (root / "bench" / "stamps").mkdir()
    text = manifest.encode(manifest.render(manifest.scan(str(release))))
    (root / "bench" / "stamps" / "r.manifest").write_bytes(text)
    stamp = {"id": "r", "manifest_sha256": hashlib.sha256(text).hexdigest()}
    (root / "bench" / "stamps" / "r.json").write_text(json.dumps(stamp), encoding="utf-8")
    (root / "bench" / "current").symlink_to("releases/r")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="repetitions of each measurement (default 15)")
    parser.add_argument("--files", type=int, default=30000, help="files in the made-up environment (default 30000)")
    options = parser.parse_args()
    host = Host()
    with tempfile.TemporaryDirectory() as folder:
        empty = str(Path(folder) / "empty")
        plain = Request(root=empty, time_limit=60)
        seen = observe(host, plain)
        timed(lambda: None)
        observe_ms = statistics.median(timed(lambda: observe(host, plain)) for _ in range(options.rounds))
        make_environment(Path(folder) / "envs", options.files)
        one = Request(root=str(Path(folder) / "envs"), time_limit=60)
        (environment,) = observe(host, one)["environments"]
        if environment["integrity"]["status"] != "ok":
            sys.exit(f"gpu_info bench: the made-up environment is {environment['integrity']}")
        whole_ms = statistics.median(timed(lambda: observe(host, one)) for _ in range(5))
        cuda = with_cuda(Request(root=empty, cuda=True, time_limit=60), options.rounds)
    print(
        json.dumps(
            {
                "python": sys.version.split()[0],
                "gpus": [f"{gpu['name']} ({gpu['source']})" for gpu in seen["gpus"]],
                "driver": seen["driver"]["loaded_version"],
                "persistence_mode": [gpu["persistence_mode"] for gpu in seen["gpus"]],
                "userspace": driver.userspace_version(host),
                "rounds": options.rounds,
                "import_ms": round(import_ms(min(options.rounds, 7)), 2),
                "observe_ms": round(observe_ms, 2),
                **cuda,
                "environment_files": options.files,
                "environment_ms": round(whole_ms - observe_ms, 2),
                "unknown": seen["unknown"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
