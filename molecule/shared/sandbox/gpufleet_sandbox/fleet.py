# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet as a whole: make it, look at it, check it, take it away."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from . import hosts, images, podman, tls, wsl
from .machine import Mirrors, allow_inotify, digest, install_requirements, this_machines_mirrors
from .repository import build_repositories
from .settings import INNER_NETWORK, LABEL, NETWORK, PROXY, SERVER, SandboxError, Settings, container_name
from .shell import locked, run, say, step, write_if_changed
from .torch_index import build_index, have_real

BOOT_LIMIT = 180
SERVER_SCRIPT, PROXY_SCRIPT = "server.py", "proxy.py"
SERVER_IMAGE = "debian12"


def up(settings: Settings, names: list[str], only_tiny: bool, fresh: bool) -> None:
    """Make the hosts that are missing or outdated, and everything that they need. Quick when all is there."""
    install_requirements()
    real = not only_tiny and any(settings.personas[name]["torch"] == "real" for name in names)
    with locked(settings.lock):
        take_over(settings)
        mirrors = this_machines_mirrors()
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=4) as pool:
            try:
                index = pool.submit(build_index, settings, real, stop)
                repository = pool.submit(build_repositories, settings)
                make_hosts(settings, names, mirrors, pool, repository, fresh)
                index.result()
            except BaseException:
                stop.set()
                raise
    boxes = podman.containers()
    present = [name for name in settings.personas if container_name(name) in boxes]
    write_if_changed(
        settings.inventory, hosts.inventory(settings, present, not only_tiny and have_real(settings)), mode=0o600
    )
    say(f"{len(names)} hosts are up: ansible-playbook -i {settings.inventory.relative_to(settings.checkout)} ...")


def make_hosts(
    settings: Settings,
    names: list[str],
    mirrors: Mirrors,
    pool: ThreadPoolExecutor,
    repository: Future[None],
    fresh: bool,
) -> None:
    """Images, network and server, then the hosts themselves."""
    needed = sorted({settings.personas[name]["image"] for name in names} | {SERVER_IMAGE})
    made = {name: images.image(settings, name, mirrors) for name in needed}
    jobs = [pool.submit(images.make, image, mirrors) for image in made.values() if not images.have(image)]
    for job in [*jobs, repository]:
        job.result()
    podman.ensure_network(NETWORK, str(settings.subnet))
    start_server(settings, made[SERVER_IMAGE].tag)
    if any(map(settings.behind_proxy, names)):
        podman.ensure_network(INNER_NETWORK, str(settings.inner_subnet), "--disable-dns")
        start_proxy(settings, made[SERVER_IMAGE].tag)
    write_if_changed(settings.state / "nvidia-repository.asc", (settings.served / "nvidia/repository.asc").read_text())
    start_hosts(settings, names, {name: image.tag for name, image in made.items()}, fresh)
    if jobs:
        images.prune(made)


def take_over(settings: Settings) -> None:
    """One fleet per machine: another checkout's containers make room for ours."""
    foreign = {name: box for name, box in podman.containers().items() if box["Labels"][LABEL] != str(settings.checkout)}
    if foreign:
        owner = next(iter(foreign.values()))["Labels"][LABEL]
        say(f"removing the fleet of another checkout ({owner}): there is one per machine")
        podman.remove(*foreign)


def start_server(settings: Settings, image: str) -> None:
    """Run the server of package repository and torch index, in a container of its own."""
    settings.served.mkdir(parents=True, exist_ok=True)
    volumes = [f"--volume={settings.served}:/srv/www:ro", f"--volume={tls.certificate(settings)}:/srv/server.pem:ro"]
    options = [*volumes, "--network-alias=index", f"--network-alias={tls.NAME}", "--log-opt=max-size=1mb"]
    networks = {NETWORK: settings.server_address}
    start_script(settings, SERVER, image, SERVER_SCRIPT, networks, options, ["/srv/www", "/srv/server.pem"])


def start_proxy(settings: Settings, image: str) -> None:
    """Run the proxy between the server's network and that of the hosts which have no other way."""
    networks = {NETWORK: str(settings.subnet[3]), INNER_NETWORK: str(settings.inner_subnet[2])}
    start_script(settings, PROXY, image, PROXY_SCRIPT, networks, ["--log-opt=max-size=1mb"], ["3128"])


def start_script(
    settings: Settings,
    name: str,
    image: str,
    script: str,
    networks: dict[str, str],
    options: list[str],
    arguments: list[str],
) -> None:
    """Keep one of our Python programs running in a container of its own."""
    text = (Path(__file__).parent / script).read_text()
    write_if_changed(settings.cache / script, text)
    version = digest(text, image, str(networks), *options, *arguments)
    box = podman.containers().get(name)
    if box and box["Labels"].get("gpufleet.version") == version:
        if box["State"] != "running":
            podman.podman("start", name)
        return
    podman.remove(name)
    mount = f"--volume={settings.cache / script}:/srv/{script}:ro"
    labels = {LABEL: str(settings.checkout), "gpufleet.version": version}
    command = ["/usr/bin/python3", "-I", f"/srv/{script}", *arguments]
    podman.create(name, image, networks, labels, [*options, mount], command)
    podman.podman("start", name)


def start_hosts(settings: Settings, names: list[str], tags: dict[str, str], fresh: bool) -> None:
    """Create and start what is missing, changed, or to be made anew; wait until every host can be worked with."""
    hosts.ensure_keys(settings, names)
    password = hosts.become_password(settings)
    boxes = podman.containers()
    allow_inotify(sum(boxes.get(container_name(name), {}).get("State") != "running" for name in names))
    booting = []
    for name in names:
        persona = settings.personas[name]
        tag = tags[persona["image"]]
        extra = wsl.libraries(settings, persona["wsl"]) if persona.get("wsl") else {}
        overlay = hosts.contents(settings, name, extra)
        version = digest(overlay, tag, settings.address(name))
        container = container_name(name)
        box = boxes.get(container)
        if box and box["Labels"].get("gpufleet.version") == version and not fresh:
            if box["State"] != "running":
                say(f"starting {name}")
                podman.podman("start", container)
                booting.append(name)
            continue
        if box:
            say(f"{name}: making it anew" + ("" if fresh else ", because its definition changed"))
        podman.remove(container)
        podman.create(
            container,
            tag,
            {INNER_NETWORK if settings.behind_proxy(name) else NETWORK: settings.address(name)},
            {LABEL: str(settings.checkout), "gpufleet.version": version},
            ["--hostname", name, "--network-alias", name, "--systemd=always", "--privileged", "--log-driver=none"],
            ["/usr/bin/python3", "-I", images.SIMULATOR, "init"],
        )
        podman.unpack(overlay, container)
        podman.podman("start", container)
        booting.append(name)
    if booting:
        with step(f"booting {', '.join(booting)}"):
            for name in booting:
                wait_for(settings, name)
                if settings.personas[name].get("sudo") == "password":
                    line = f"{hosts.USER}:{password}\n".encode()
                    podman.podman("exec", "--interactive", container_name(name), "chpasswd", data=line)


def wait_for(settings: Settings, name: str) -> None:
    """Wait until sshd lets the fleet's user in and systemd has started everything."""
    container = container_name(name)
    until = time.monotonic() + BOOT_LIMIT
    while time.monotonic() < until:
        if answers(settings.address(name)):
            state = podman.podman("exec", container, "systemctl", "is-system-running", check=False).strip()
            if state in ("running", "degraded"):
                break
        time.sleep(0.3)
    else:
        jobs = podman.podman("exec", container, "systemctl", "list-jobs", "--no-pager", check=False)
        raise SandboxError(f"{name} did not boot within {BOOT_LIMIT} s. What systemd still waits for:\n{jobs}")
    error = podman.podman("exec", container, "cat", "/var/lib/gpufleet-sandbox/boot-error", check=False)
    if error:
        raise SandboxError(f"{name} booted without its simulated hardware: {error}")
    run(*ssh(settings, name), "true")


def answers(address: str) -> bool:
    """Whether somebody listens on the ssh port."""
    try:
        with socket.create_connection((address, 22), timeout=1):
            return True
    except OSError:
        return False


def ssh(settings: Settings, name: str) -> list[str]:
    """The ssh command that reaches a host as the fleet's user."""
    options = [f"UserKnownHostsFile={settings.state}/known_hosts", "IdentitiesOnly=yes", "BatchMode=yes"]
    words = [word for option in options for word in ("-o", option)]
    return ["ssh", *words, "-i", str(settings.state / "id_ed25519"), f"{hosts.USER}@{settings.address(name)}"]


def destroy(settings: Settings, cache: bool) -> None:
    """Remove containers, network and this checkout's state; images and downloads on request."""
    if shutil.which("podman"):
        with locked(settings.lock):
            boxes = podman.containers()
            podman.remove(*boxes)
            for network in {NETWORK, INNER_NETWORK} & set(
                podman.podman("network", "ls", "--format", "{{.Name}}").split()
            ):
                podman.podman("network", "rm", "--force", network)
            if cache:
                for tag in podman.podman("images", "--format", "{{.Repository}}:{{.Tag}}").split():
                    if tag.startswith("localhost/gpufleet-"):
                        podman.podman("rmi", "--force", tag)
        say(f"removed {len(boxes)} containers and the network")
    shutil.rmtree(settings.state, ignore_errors=True)
    if cache:
        shutil.rmtree(settings.cache, ignore_errors=True)
        say(f"removed {settings.cache}")
    elif settings.cache.exists():
        say(f"kept {settings.cache} (torch's wheels, file systems, packages) for the next time; --cache removes it")


def status(settings: Settings) -> list[tuple[str, str, str, str]]:
    """Host, address, state and note of every host that the sandbox knows."""
    boxes = podman.containers() if shutil.which("podman") else {}
    rows = []
    for name, persona in settings.personas.items():
        box = boxes.get(container_name(name))
        state = "absent" if box is None else box["State"]
        if state == "running" and not answers(settings.address(name)):
            state = "no ssh"
        rows.append((name, settings.address(name), state, persona["note"]))
    return rows


def look(name: str) -> tuple[str, list[str]]:
    """What became of a host, found without the collection: the outcome, and what speaks against 'ready'."""
    script = (
        "import json,os,glob\n"
        "base='/opt/gpufleet/envs/base'\n"
        "current=os.path.realpath(base+'/current')\n"
        "stamp=f'{base}/stamps/{os.path.basename(current)}.json'\n"
        "wsl=os.path.isdir('/usr/lib/wsl/lib')\n"
        "touched=glob.glob('/usr/src/nvidia-*')+glob.glob('/opt/gpufleet*')+glob.glob('/etc/apt/*/gpufleet*')\n"
        "print(json.dumps({'touched':bool(touched),"
        "'environment':os.path.isfile(current+'/bin/python') and os.path.isfile(stamp),"
        "'driver':wsl or os.path.exists('/sys/module/nvidia/version'),"
        "'variable':'TOKENIZERS_PARALLELISM' in open('/etc/environment').read()"
        " if os.path.exists('/etc/environment') else False}))\n"
    )
    found = json.loads(podman.podman("exec", container_name(name), "/usr/bin/python3", "-I", "-c", script))
    if not found["touched"] and not found["environment"]:
        return "refused", []
    lacking = [what for what in ("driver", "environment", "variable") if not found[what]]
    return ("not ready" if lacking else "ready"), lacking


def expect(settings: Settings, status_code: int) -> int:
    """Compare what became of the hosts, and the exit status of the run, with what personas.yml expects."""
    boxes = podman.containers()
    wrong, refused = [], 0
    for name in (name for name in settings.personas if container_name(name) in boxes):
        outcome, lacking = look(name)
        expected = settings.personas[name]["expected"]
        refused += expected == "refused"
        if outcome != expected:
            wrong.append(
                f"{name} should be {expected}, but is {outcome}" + (f" (no {', no '.join(lacking)})" if lacking else "")
            )
    if (status_code != 0) != bool(refused):
        wrong.append(f"the run ended with {status_code}, which does not fit {refused} hosts that have to be refused")
    for text in wrong:
        say(text)
    if not wrong:
        say(f"every host turned out as expected: {len(boxes) - 1 - refused} ready, {refused} refused")
    return 1 if wrong else 0


def execute(name: str, command: list[str]) -> int:
    """Run a command as root on a host, for people and tests."""
    call = ["podman", "exec", "--interactive", container_name(name), *command]
    return subprocess.run(
        call, env={**os.environ, "CONTAINERS_CONF": str(podman.configuration())}, check=False
    ).returncode
