#!/usr/bin/env python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many bytes cross the outer link when a fleet installs torch's own wheels through the mirror?

A server that stands for the internet shows the sandbox's copy of torch's wheels and counts every byte of every answer: the pages, the
metadata for the lock and the wheels. The role wheel_mirror fills and serves a host of the sandbox; then each client, a uv with an empty
cache of its own, installs the lock from the mirror. Prints one JSON object: outer_bytes, copy_bytes (the files of the lock and uv,
once), ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "collections"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "molecule/shared/sandbox"))

from ansible_collections.gpufleet.workstation.plugins.module_utils._release import lock, tool
from ansible_collections.gpufleet.workstation.plugins.plugin_utils import locks, uv
from gpufleet_sandbox.server import Handler
from gpufleet_sandbox.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
SPEC = {
    "name": "bench",
    "python": "3.11",
    "torch": "2.9.1+cu128",
    "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"},
    "arch": "x86_64",
}
PORT = 8080


def main() -> int:
    """Fill, install, count."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--host", default="ws-nogpu", help="host of the sandbox that becomes the mirror")
    parser.add_argument("--directory", default="/var/tmp", help="where clients install, one after the other: 8 GB")  # noqa: S108
    arguments = parser.parse_args()
    settings = Settings()
    if not (settings.served / "real/.complete").exists() or not settings.inventory.exists():
        sys.exit("there are no torch wheels or no hosts: run bin/provision --sandbox first")
    inventory = yaml.safe_load(settings.inventory.read_text(encoding="utf-8"))
    host = inventory["all"]["hosts"][arguments.host]["ansible_host"]
    with (
        tempfile.TemporaryDirectory(prefix="gpufleet-bench-", dir=arguments.directory) as scratch,
        counted(settings.served, host) as (upstream, sent),
    ):
        indexes = locks.Indexes(f"{upstream}/real/cu128", f"{upstream}/packages")
        locked = locks.resolve(SPEC, indexes, None)
        path = Path(scratch) / "torch-bench.txt"
        path.write_text(locked.render(), encoding="utf-8")
        fill = {
            "gpufleet_hosts": arguments.host,
            "wheel_mirror_locks": [str(path)],
            "wheel_mirror_torch_index_base_url": f"{upstream}/real",
            "wheel_mirror_package_index_url": f"{upstream}/packages",
            "wheel_mirror_port": PORT,
        }
        empty = {"gpufleet_hosts": arguments.host, "wheel_mirror_state": "absent"}
        play(settings, empty)
        try:
            play(settings, fill)
            for _client in range(arguments.clients):
                install(locked, f"http://{host}:{PORT}", Path(scratch))
        finally:
            play(settings, empty)
    copy = one_copy(settings.served, locked)
    wheels = [path for path in sent if path.endswith(".whl")]
    outer = sum(sent.values())
    result = {"clients": arguments.clients, "wheels": len(wheels), "outer_bytes": outer, "copy_bytes": copy}
    print(json.dumps({**result, "ratio": round(outer / copy, 5)}))
    return 0


@contextlib.contextmanager
def counted(folder: Path, peer: str) -> Iterator[tuple[str, Counter[str]]]:
    """Serve a folder to the sandbox; (URL, bytes of the answers by path)."""
    sent: Counter[str] = Counter()
    guard = threading.Lock()

    class Counting(Handler):
        def send_header(self, keyword: str, value: str) -> None:
            super().send_header(keyword, value)
            if keyword == "Content-Length" and self.command == "GET":
                with guard:
                    sent[self.path] += int(value)

        def log_message(self, *_arguments: object) -> None:
            return

    def handler(*arguments: Any) -> Handler:
        return Counting(*arguments, directory=str(folder))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect((peer, 9))
        address = route.getsockname()[0]
    ThreadingHTTPServer.daemon_threads = True
    with ThreadingHTTPServer((address, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_address[1]}", sent
        server.shutdown()


def play(settings: Settings, variables: dict[str, Any]) -> None:
    """Run playbooks/mirror.yml as a user would."""
    command = [ROOT / ".venv/bin/ansible-playbook", "-i", settings.inventory, "-e", json.dumps(variables)]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [str(part) for part in (*command, ROOT / "playbooks/mirror.yml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-1000:])


def install(locked: lock.Lock, mirror: str, scratch: Path) -> None:
    """One host of the fleet: both parts of the lock, each from its own index, with an empty cache."""
    place = scratch / "client"
    for torch_index, url in ((True, f"{mirror}/whl/cu128"), (False, f"{mirror}/packages/simple")):
        place.mkdir(exist_ok=True)
        requirements = place / "lock.txt"
        requirements.write_text(locked.part(torch_index), encoding="utf-8")
        command = [
            uv.program(),
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--require-hashes",
            "--python-version",
            SPEC["python"],
        ]
        command += ["--python-platform", locks.PLATFORMS["x86_64"], "--no-build", "--no-config", "--default-index", url]
        command += ["--target", str(place / "site"), "-r", str(requirements)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(place), "UV_CACHE_DIR": str(place / "cache")}
        subprocess.run([str(part) for part in command], env=environment, check=True)
    shutil.rmtree(place)


def one_copy(served: Path, locked: lock.Lock) -> int:
    """Bytes of the files that the lock and uv consist of, each once."""
    wanted = {value for item in locked.packages for value in item.hashes} | {tool.WHEELS["x86_64"].sha256}
    sizes = {}
    for described in [*served.glob("real/cu128/*.whl.json"), *served.glob("packages/*.whl.json")]:
        sha256 = json.loads(described.read_text(encoding="utf-8"))["sha256"]
        wheel = described.with_suffix("")
        if sha256 in wanted and not other_python(wheel.name):
            sizes[sha256] = wheel.stat().st_size
    return sum(sizes.values())


def other_python(file: str) -> bool:
    """Whether a wheel is for another Python than the lock's: locks name the hashes of all."""
    own = "cp" + str(SPEC["python"]).replace(".", "")
    return file.split("-")[-3].startswith("cp") and file.split("-")[-3] != own


if __name__ == "__main__":
    sys.exit(main())
