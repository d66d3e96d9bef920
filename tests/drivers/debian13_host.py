"""A real Debian 13 in a container: real kernel image, headers, compiler, dkms and driver packages of the archive's day.

Simulated are the GPU, the release that the kernel in use tells, loading of modules, and update-initramfs. Everything that decides
whether Debian's driver compiles is real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "archive"
UNDER_TEST = "/opt/under-test"
GPU = "rtx-3090"  # the archive's driver is older than Blackwell
os.environ["GPUFLEET_FLEET"] = "debian13"  # its own fleet: it neither finds nor disturbs another one
sys.path.insert(0, str(CHECKOUT / "molecule/shared/sandbox"))


def lacking() -> str:
    """Why this machine cannot run the tests; nothing where it can."""
    if os.geteuid() != 0:
        return "root is needed to make containers"
    missing = [name for name in ("podman", "mmdebstrap") if not shutil.which(name)]
    return f"{' and '.join(missing)} not installed (molecule/shared/sandbox/fleet up installs them)" if missing else ""


class Archive:
    """The host, with the commands that tests need."""

    def __init__(self, container: str, configuration: Path, inventory: Path) -> None:
        self.container, self.configuration, self.inventory = container, configuration, inventory
        self.kernel = ""

    def podman(self, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Run podman with the sandbox's configuration."""
        environment = {**os.environ, "CONTAINERS_CONF": str(self.configuration)}
        done = subprocess.run(["podman", *arguments], input=data, capture_output=True, check=False, env=environment)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def run(self, command: str, data: bytes | None = None) -> str:
        """Run a shell command as root; one that fails fails the test."""
        words = [
            "exec",
            *(["--interactive"] if data is not None else []),
            "--env=DEBIAN_FRONTEND=noninteractive",
            self.container,
        ]
        done = self.podman(*words, "sh", "-c", command, data=data)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def write(self, path: str, content: bytes) -> None:
        """Write a file and the folders above it."""
        self.run(f"mkdir -p {path.rpartition('/')[0]} && cat > {path}", content)

    def python(self, program: str, **values: Any) -> Any:
        """Run a program that has the collection's modules, `values` by name, and prints JSON on its last line."""
        head = f"import json, sys\nsys.path.insert(0, {UNDER_TEST!r})\nvalues = json.loads({json.dumps(values)!r})\n"
        return json.loads(self.run("python3 -B -", (head + program).encode()).splitlines()[-1])

    def play(self, *options: str) -> tuple[int, str]:
        """Provision the host as a user would; return the exit status and what was said, without line breaks."""
        command = [
            str(CHECKOUT / ".venv/bin/ansible-playbook"),
            "-i",
            str(self.inventory),
            str(CHECKOUT / "provision-gpu.yml"),
            *options,
        ]
        environment = {**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False
        )
        return done.returncode, " ".join(f"{done.stdout} {done.stderr}".split()).replace("''", "'")

    def audit(self) -> str:
        """What dpkg finds unfinished."""
        return self.run("dpkg --audit").strip()

    def modules(self) -> list[str]:
        """Module files that the kernel did not bring, looked for without the collection."""
        return self.run("find /lib/modules/ -path '*/updates/*.ko*'").split()


@contextlib.contextmanager
def archive() -> Iterator[Archive]:
    """Make the host, with the archive's newest kernel and its headers; take it away afterwards."""
    from gpufleet_sandbox import fleet, hosts, images, machine, podman
    from gpufleet_sandbox.settings import NETWORK, Settings, container_name
    from gpufleet_sandbox.shell import locked

    settings = Settings()
    persona = {
        "image": "debian13",
        "torch": "stand-in",
        "kernels": [{"release": "@running"}],
        "expected": "ready",
        "note": "simulated GPU",
    }
    settings.fleet["hosts"] = {NAME: {**persona, "gpus": [{"model": GPU, "address": "0000:01:00.0"}]}}
    mirrors = machine.this_machines_mirrors()
    with locked(settings.cache / "lock"):
        image = images.image(settings, "debian13", mirrors)
        if not images.have(image):
            images.make(image, mirrors)
    podman.ensure_network(NETWORK, str(settings.subnet))
    try:
        fleet.start_hosts(settings, [NAME], {"debian13": image.tag}, fresh=True)
        tree = yaml.safe_load(hosts.inventory(settings, [NAME], real=False))
        for variables in (
            tree["all"]["vars"],
            tree["all"]["hosts"][NAME],
        ):  # no simulated repository is made for this host
            for name in ("nvidia_driver_repository_key", "nvidia_driver_repository_url"):
                variables.pop(name, None)
        settings.inventory.write_text(yaml.safe_dump(tree))
        host = Archive(container_name(NAME), podman.configuration(), settings.inventory)
        prepare(host)
        yield host
    finally:
        fleet.destroy(settings, cache=False)


def pretend_to_run(host: Archive, release: str) -> None:
    """Make uname(2) and /proc tell this release, which the sandbox's simulator does for kernels that it knows beforehand."""
    from gpufleet_sandbox import systems
    from gpufleet_sandbox.native import compile_library

    state = "/var/lib/gpufleet-sandbox/osrelease"
    host.write(systems.PRELOADED, compile_library("uname.c", "libuname.so", "", 0))
    host.run(f"echo {release} > {state} && mount --bind {state} /proc/sys/kernel/osrelease")
    host.run(f"echo {systems.PRELOADED} > /etc/ld.so.preload && test $(uname -r) = {release}")


def prepare(host: Archive) -> None:
    """Install the real kernel, make it the one that runs, and lay the collection beside it."""
    host.run(
        "sed -i 's/main contrib$/main contrib non-free non-free-firmware/' /etc/apt/sources.list && apt-get -qq update"
    )
    made_up = host.run("ls /lib/modules").split()
    apt = "apt-get -qq --yes --no-install-recommends install"
    # initramfs-tools brings update-initramfs, which the image plays; dkms, gcc and the headers are the real ones.
    host.run(f"{apt} linux-image-amd64 linux-headers-amd64 initramfs-tools dkms mokutil openssl")
    for release in made_up:
        host.run(f"rm -rf /boot/*-{release} /lib/modules/{release} /usr/src/linux-headers-{release}")
    (host.kernel,) = re.findall(r"vmlinuz-(\S+)", host.run("ls /boot"))
    pretend_to_run(host, host.kernel)
    folder = f"{UNDER_TEST}/ansible_collections/gpufleet/workstation/plugins/module_utils"
    host.run(f"mkdir -p {folder}")
    done = host.podman("cp", f"{CHECKOUT}/plugins/module_utils/.", f"{host.container}:{folder}")
    assert done.returncode == 0, done.stderr
