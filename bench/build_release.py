#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What do proven releases cost beside a bare `uv pip install --compile-bytecode` of the same lock?

Both use the same index, uv and interpreter, before everything else that the machine has to do; the runs alternate. Ours executes the module
as Ansible does on a host: checks, hand-over to the build's own process, RECORD, bytecode, ownership, manifest, static proof, syncfs, stamp,
switch. Three figures:

* first: a release from an empty cache, against uv with an empty cache;
* second: another environment of the same lock, against uv that copies from a full cache, which is what the releases' way of sharing costs;
* rollback: seconds of `state: previous` beside its proof.

Runs as root, prints one JSON object with {ours_s, bare_s, ratio, target} or {seconds, target} for each, and ends with 1 where a
target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "collections"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, tool
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import digest
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks

FIRST_TARGET = 1.15  # of the bare command's time
SECOND_TARGET = 1.3
ROLLBACK_TARGET = 1.0  # s, beside the proof
ROLLBACKS = 4
SM = ["sm_120"]
MODULE = Path(__file__).resolve().parents[1] / "tests/faults/module_driver.py"
SERVE = """
import functools, http.server, sys
sys.path.insert(0, sys.argv[1])
import server
handler = functools.partial(server.Handler, directory=sys.argv[2])
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), handler).serve_forever()
"""
"""The sandbox's server for a folder of wheels, on a port of this machine alone."""


def main() -> int:
    """Measure, print, judge."""
    arguments = parse()
    with index(arguments), tempfile.TemporaryDirectory(prefix="gpufleet-bench-", dir=arguments.directory) as directory:
        Path(directory).chmod(0o755)
        place = Path(directory)
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        rounds = []
        for number in range(arguments.rounds):
            if number:
                shutil.rmtree(place / "envs")
            rounds.append(measure_round(place, arguments, ours_first=number % 2 == 0))
            print({name: rounds[-1][name] for name in ("first", "second")}, file=sys.stderr, flush=True)
        rollback = measure_rollback(place, arguments)
    found = {
        "first": ratio([each["first"] for each in rounds], FIRST_TARGET),
        "second": ratio([each["second"] for each in rounds], SECOND_TARGET),
        "rollback": {"seconds": round(statistics.median(rollback), 3), "target": ROLLBACK_TARGET, "all": rollback},
        "steps": {name: rounds[-1][f"{name}_steps"] for name in ("first", "second")},
        "torch": arguments.torch,
    }
    print(json.dumps(found))
    met = all(found[name]["ratio"] <= found[name]["target"] for name in ("first", "second"))
    return 0 if met and found["rollback"]["seconds"] <= ROLLBACK_TARGET else 1


def ratio(pairs: list[tuple[float, float]], target: float) -> dict[str, Any]:
    """The medians of ours and of the bare command, and their ratio."""
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    figures = {"ours_s": ours, "bare_s": bare, "ratio": ours / bare, "target": target}
    return {**{name: round(value, 3) for name, value in figures.items()}, "all": pairs}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "index_url", nargs="?", help="torch index; without it the sandbox's copy of torch's own wheels is served"
    )
    parser.add_argument("--package-index-url", default="", help="index of everything else; empty: the one that uv uses")
    parser.add_argument("--torch", default="2.9.1+cu128")
    parser.add_argument("--companions", type=json.loads, default={"torchvision": "0.24.1", "torchaudio": "2.9.1"})
    parser.add_argument("--interpreter", default="/usr/bin/python3")
    parser.add_argument("--uv", default=shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"))
    parser.add_argument("--uv-wheel", help="the collection's uv as a wheel; without it, that of the sandbox's index")
    parser.add_argument("--directory", default="/var/tmp", help="where to build; four releases must fit")  # noqa: S108
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if os.geteuid() != 0 or not arguments.uv:
        parser.error("run this as root, with uv on PATH or named with --uv")
    return arguments


@contextlib.contextmanager
def index(arguments: argparse.Namespace) -> Iterator[None]:
    """Serve what the sandbox has downloaded, unless an index was named."""
    if arguments.index_url:
        yield
        return
    served = Path(os.environ.get("GPUFLEET_CACHE") or "/var/cache/gpufleet") / "www"
    if not (served / "real" / ".complete").exists():
        sys.exit(f"{served} has no copy of torch's own wheels: run bin/provision --sandbox, or name an index")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sandbox = Path(__file__).resolve().parents[1] / "molecule/shared/sandbox/gpufleet_sandbox"
    command = [sys.executable, "-c", SERVE, sandbox, served, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _attempt in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            else:
                sys.exit("the index did not start")
            arguments.index_url = f"http://127.0.0.1:{port}/real/cu128"
            arguments.package_index_url = f"http://127.0.0.1:{port}/packages"
            name = f"uv-{tool.UV_VERSION}-*{platform.machine()}.whl"
            arguments.uv_wheel = arguments.uv_wheel or str(next((served / "packages").glob(name)))
            yield
        finally:
            process.kill()


def specification(
    arguments: argparse.Namespace, name: str, companions: dict[str, str]
) -> tuple[dict[str, Any], lock.Lock]:
    """An environment's specification, and its lock."""
    python = subprocess.run(
        [arguments.interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        stdout=-1,
        text=True,
        check=True,
    )
    spec = {
        "name": name,
        "python": python.stdout.strip(),
        "torch": arguments.torch,
        "companions": companions,
        "requirements": [],
        "arch": platform.machine(),
        "schema": 1,
    }
    indexes = locks.Indexes(arguments.index_url, arguments.package_index_url)
    locked = locks.resolve(spec, indexes, None, lambda: arguments.uv)
    return {**spec, "lock": lock.digest(locked.render())}, locked


def measure_round(place: Path, arguments: argparse.Namespace, ours_first: bool) -> dict[str, Any]:
    """Seconds (ours, bare) of a first and of a second environment, and the steps of ours. Leaves ours on the disk, not the bare ones."""
    found: dict[str, Any] = {}
    for name in ("first", "second"):
        spec, locked = specification(arguments, name, arguments.companions)
        seconds = {}
        for ours in (ours_first, not ours_first) if name == "first" else (not ours_first, ours_first):
            # A disk that has to write what came before would be charged to whoever comes next.
            os.sync()
            if ours:
                seconds["ours"], result = execute(place, arguments, present(arguments, spec, locked))
                found[f"{name}_steps"] = result["steps"]
            elif name == "first":
                seconds["bare"] = measure_bare(place / name, place / "cache", arguments, locked, copies=False)
                shutil.rmtree(place / "cache")
            else:  # both copy from the cache that our first environment filled
                seconds["bare"] = measure_bare(place / name, place / "envs/.cache/uv", arguments, locked, copies=True)
        found[name] = (seconds["ours"], seconds["bare"])
    return found


def measure_bare(place: Path, cache: Path, arguments: argparse.Namespace, locked: lock.Lock, copies: bool) -> float:
    """Seconds that uv takes for a virtual environment with the lock's packages and their bytecode."""
    environment = {**os.environ, "UV_CACHE_DIR": str(cache), "UV_INDEX": arguments.index_url}
    if copies:
        environment["UV_LINK_MODE"] = "copy"
    if arguments.package_index_url:
        environment["UV_DEFAULT_INDEX"] = arguments.package_index_url
    python = str(place / "venv" / "bin" / "python")
    place.mkdir()
    (place / "lock.txt").write_text(locked.part(True) + locked.part(False), encoding="utf-8")
    install = [arguments.uv, "pip", "install", "-q", "--compile-bytecode", "--no-deps", "--require-hashes"]
    # The rest of the family's needs may come from either index here: a bare command does not part them.
    install += ["--python", python, "--index-strategy", "unsafe-best-match", "-r", str(place / "lock.txt")]
    begin = time.monotonic()
    subprocess.run(
        [arguments.uv, "venv", "-q", "--python", arguments.interpreter, str(place / "venv")],
        env=environment,
        check=True,
    )
    subprocess.run(install, env=environment, check=True)
    seconds = time.monotonic() - begin
    shutil.rmtree(place)
    return seconds


def present(arguments: argparse.Namespace, spec: dict[str, Any], locked: lock.Lock) -> dict[str, Any]:
    """The module's options for an environment."""
    return {
        "name": spec["name"],
        "spec": spec,
        "spec_digest": digest(spec),
        "release_base": f"{arguments.torch.replace('+', '-')}-{digest(spec)[:8]}",
        "index_url": arguments.index_url,
        "package_index_url": arguments.package_index_url,
        "lock": locked.render(),
        "interpreter": arguments.interpreter,
        "sm": SM,
        "disk_required": 1,
        "uv_archive": arguments.uv_wheel,
    }


def execute(place: Path, arguments: argparse.Namespace, options: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Execute the module until it has a result, as its action does; seconds and result."""
    options = {**options, "root": str(place / "envs"), "launcher": str(place / "gpu-env")}
    begin = time.monotonic()
    while True:
        done = subprocess.run(
            [sys.executable, str(MODULE), json.dumps(options)], stdout=subprocess.PIPE, text=True, check=False
        )
        result = json.loads(done.stdout)
        if done.returncode:
            sys.exit(f"venv_release failed: {result.get('msg')}")
        if not result.get("running"):
            return time.monotonic() - begin, result
        options["follow"] = result["follow"]


def measure_rollback(place: Path, arguments: argparse.Namespace) -> list[float]:
    """Seconds of going back and forth between two releases of an environment, without the proof of the one that is to serve."""
    companions = dict(list(arguments.companions.items())[:1])
    execute(place, arguments, present(arguments, *specification(arguments, "first", companions)))
    seconds = []
    for _time in range(ROLLBACKS):
        taken, result = execute(place, arguments, {"name": "first", "state": "previous", "sm": SM})
        proof = next(step["seconds"] for step in result["steps"] if step["step"] == "prove")
        seconds.append(round(taken - proof, 3))
    return seconds


if __name__ == "__main__":
    sys.exit(main())
