#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What does a proven release cost beside a bare `uv pip install --compile-bytecode` of the same lock?

Both start with an empty cache and use the same index, uv and interpreter, before everything else that the machine has to do; the
runs alternate. Ours includes everything that the module
does on the host: RECORD, bytecode, ownership, manifest, static proof, syncfs, stamp, switch. Runs as root, prints one JSON
object {ours_s, bare_s, ratio, target, ...} and ends with 1 where the target is missed.
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

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.build import build_account
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.model import Layout, Request, digest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.release import Host, Operation
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks

TARGET = 1.15
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
        shutil.copy(arguments.uv, Path(directory) / "uv")
        spec, locked = specification(arguments)
        ours: list[float] = []
        bare: list[float] = []
        steps: list[dict[str, Any]] = []
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        for number in range(arguments.rounds):
            if number % 2 == 0:
                bare.append(measure_bare(Path(directory), arguments, locked))
            seconds, steps = measure_ours(Path(directory), arguments, spec, locked)
            ours.append(seconds)
            if number % 2 == 1:
                bare.append(measure_bare(Path(directory), arguments, locked))
    ratio = statistics.median(ours) / statistics.median(bare)
    figures = {"ours_s": statistics.median(ours), "bare_s": statistics.median(bare), "ratio": ratio, "target": TARGET}
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({**rounded, "ours": ours, "bare": bare, "torch": arguments.torch, "steps": steps}))
    return 0 if ratio <= TARGET else 1


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
    parser.add_argument("--directory", default="/var/tmp", help="where to build; one release and its cache must fit")  # noqa: S108
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
            yield
        finally:
            process.kill()


def specification(arguments: argparse.Namespace) -> tuple[dict[str, Any], lock.Lock]:
    """The environment that both build, and its lock."""
    python = subprocess.run(
        [arguments.interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        stdout=-1,
        text=True,
        check=True,
    )
    spec = {
        "name": "bench",
        "python": python.stdout.strip(),
        "torch": arguments.torch,
        "companions": arguments.companions,
        "requirements": [],
        "arch": platform.machine(),
        "schema": 1,
    }
    indexes = locks.Indexes(arguments.index_url, arguments.package_index_url)
    locked = locks.resolve(spec, indexes, None, lambda: arguments.uv)
    return {**spec, "lock": lock.digest(locked.render())}, locked


def measure_bare(directory: Path, arguments: argparse.Namespace, locked: lock.Lock) -> float:
    """Seconds that uv takes for a virtual environment with the lock's packages and their bytecode."""
    place = directory / "bare"
    environment = {**os.environ, "UV_CACHE_DIR": str(place / "cache"), "UV_INDEX": arguments.index_url}
    if arguments.package_index_url:
        environment["UV_DEFAULT_INDEX"] = arguments.package_index_url
    uv = str(directory / "uv")
    python = str(place / "venv" / "bin" / "python")
    place.mkdir()
    (place / "lock.txt").write_text(locked.part(True) + locked.part(False), encoding="utf-8")
    install = [uv, "pip", "install", "-q", "--compile-bytecode", "--no-deps", "--require-hashes", "--python", python]
    # The rest of the family's needs may come from either index here: a bare command does not part them.
    install += ["--index-strategy", "unsafe-best-match", "-r", str(place / "lock.txt")]
    os.sync()
    begin = time.monotonic()
    subprocess.run(
        [uv, "venv", "-q", "--python", arguments.interpreter, str(place / "venv")], env=environment, check=True
    )
    subprocess.run(install, env=environment, check=True)
    seconds = time.monotonic() - begin
    shutil.rmtree(place)
    return seconds


def measure_ours(
    directory: Path, arguments: argparse.Namespace, spec: dict[str, Any], locked: lock.Lock
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds and steps that the module's own code takes for a release with the lock's packages."""
    root = directory / "envs"
    request = Request(
        layout=Layout(str(root), "bench"),
        spec=spec,
        spec_digest=digest(spec),
        release_base=f"{arguments.torch.replace('+', '-')}-{digest(spec)[:8]}",
        index_url=arguments.index_url,
        package_index_url=arguments.package_index_url,
        lock=locked.render(),
        interpreter=arguments.interpreter,
        sm=("sm_120",),
        disk_required_mib=1,
        launcher="",
    )
    host = Host(
        account=lambda: build_account(request.layout.cache),
        uv=lambda: str(directory / "uv"),
        prove=runner.run_checks,
        now=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    os.sync()
    begin = time.monotonic()
    result = Operation(request, host).present()
    seconds = time.monotonic() - begin
    shutil.rmtree(root)
    return seconds, result["steps"]


if __name__ == "__main__":
    sys.exit(main())
