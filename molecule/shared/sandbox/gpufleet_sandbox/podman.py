# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that play hosts. systemd as PID 1, also on machines with cgroup v1 and without CAP_SYS_RESOURCE."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from .settings import LABEL, SandboxError
from .shell import run

# crun refuses hybrid cgroups; the default limits cannot be set without CAP_SYS_RESOURCE.
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
"""


@functools.cache
def configuration() -> Path:
    """The configuration file that every podman call of ours uses."""
    folder = Path("/run/gpufleet-sandbox")
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "containers.conf"
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        file.write(CONFIGURATION)
    Path(file.name).replace(path)
    return path


def podman(*arguments: str, data: bytes | None = None, check: bool = True) -> str:
    """Run podman."""
    return run("podman", *arguments, data=data, check=check, env={"CONTAINERS_CONF": str(configuration())})


def unpack(archive: bytes, container: str) -> None:
    """Unpack a tar archive at the root of a container that does not run yet.

    Tried three times: podman 4.3's own helper ends early now and then, with "broken pipe".
    """
    for last in (False, False, True):
        try:
            podman("cp", "--archive=false", "-", f"{container}:/", data=archive)
            return
        except SandboxError:
            if last:
                raise


def containers() -> dict[str, dict[str, Any]]:
    """The sandbox's containers by name, whichever checkout made them."""
    found = json.loads(podman("ps", "--all", "--format", "json", "--filter", f"label={LABEL}") or "[]")
    return {item["Names"][0]: item for item in found}


def ensure_network(name: str, subnet: str, *options: str) -> None:
    """Make one of the fleet's own networks; one with another range is replaced, hosts and all."""
    if name in podman("network", "ls", "--format", "{{.Name}}").split():
        described = json.loads(podman("network", "inspect", name))[0]
        if described["subnets"][0]["subnet"] == subnet:
            return
        podman("network", "rm", "--force", name)
    try:
        podman("network", "create", *options, "--subnet", subnet, "--label", LABEL, name)
    except SandboxError as error:
        raise SandboxError(f"{error}\nRemedy: name a free range in GPUFLEET_SUBNET, such as 10.214.0.0/24.") from error


def hardware_address(address: str) -> str:
    """The network card's address that goes with an IPv4 address.

    A host that is made anew keeps it. With a random one, everybody who had talked to the host before goes on talking to the card that
    is gone: for up to a minute nothing answers, and then comes "No route to host".
    """
    return ":".join(["02", "67", *(f"{int(part):02x}" for part in address.split("."))])


def create(
    name: str, image: str, networks: dict[str, str], labels: dict[str, str], options: list[str], command: list[str]
) -> None:
    """Create a container with fixed addresses (network -> address) that podman starts again whenever its PID 1 ends."""
    marks = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    places = [
        word
        for network, address in networks.items()
        for word in ("--network", f"{network}:ip={address},mac={hardware_address(address)}")
    ]
    podman("create", "--name", name, *marks, *places, "--restart", "always", *options, image, *command)


def remove(*names: str) -> None:
    """Remove containers, running or not. One that is just being restarted can escape the first attempt."""
    for attempt in range(3):
        if not names:
            return
        podman("rm", "--force", "--time", "0", "--ignore", *names, check=attempt == 2)
        left = podman("ps", "--all", "--format", "{{.Names}}").split()
        names = tuple(name for name in names if name in left)
