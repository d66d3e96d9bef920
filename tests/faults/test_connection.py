# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real ssh connection is cut, a real ansible-playbook is killed, while a simulated host with systemd builds an environment.

The build is a unit of the host's systemd; it is stopped (SIGSTOP) while the connection or the controller goes, so that each really hits it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faulty
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "drivers"))
import harness

CHECKOUT = Path(__file__).resolve().parents[2]
FLEET = os.environ.get("GPUFLEET_FLEET") or "connection"
HOST = "ws-wsl"  # the one that needs no driver, so that a run is short
INVENTORY = CHECKOUT / f".state/sandbox-{FLEET}/inventory.yml"
PROJECT = "gpufleet-sandbox-extra"
HOME = "/opt/gpufleet/envs/base"
UNIT = "gpufleet-build-base-*"
LIMIT = 300  # s, for a run of the playbook
# What serves has to be a proven release at every instant, and a fresh process imports torch from it.
WATCH = r"""
looks=0; wrong=0
trap 'echo "$looks $wrong"; exit' TERM
while :; do
  serves=$(readlink /opt/gpufleet/envs/base/current)
  [ -e "/opt/gpufleet/envs/base/stamps/${serves#releases/}.json" ] || wrong=$((wrong + 1))
  /opt/gpufleet/envs/base/current/bin/python -I -c 'import torch' || wrong=$((wrong + 1))
  looks=$((looks + 1))
done
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to make containers"),
    pytest.mark.timeout(1200),
]


def fleet(*words: str) -> None:
    """The sandbox's command, for a fleet of this file's own."""
    command = [CHECKOUT / "molecule/shared/sandbox/fleet", *words]
    subprocess.run(command, env={**os.environ, "GPUFLEET_FLEET": FLEET}, check=True, timeout=1500)


def podman(*arguments: str) -> list[str]:
    return ["podman", *arguments]


def on_host(script: str) -> str:
    """What a shell script prints that root runs on the host."""
    done = subprocess.run(
        podman("exec", "-i", f"gpufleet-{FLEET}-{HOST}", "sh", "-eu"),
        input=script,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT,
        env=containers(),
    )
    return done.stdout.strip()


def containers() -> dict[str, str]:
    return {**os.environ, "CONTAINERS_CONF": "/run/gpufleet-sandbox/containers.conf"}


def provision(requirement: str) -> subprocess.Popen[str]:
    """Start ansible-playbook as a person would, in a session of its own."""
    environments = [{"name": "base", "requirements": [requirement]}]
    settings = {"gpufleet_hosts": HOST, "torch_env_environments": environments}
    command = [CHECKOUT / ".venv/bin/ansible-playbook", "-i", INVENTORY, "-e", json.dumps(settings)]
    return subprocess.Popen(
        [*map(str, command), str(CHECKOUT / "playbooks/provision_gpu.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a run printed that ended well."""
    out, _err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out
    return out


HOLD = f"""
for _ in $(seq 10000); do
  if grep -qs '"pid"' /opt/gpufleet/envs/.jobs/base/status.json; then
    systemctl kill --signal=STOP '{UNIT}'
    exec systemctl is-active '{UNIT}'
  fi
  sleep 0.01
done
"""


def stop_the_build() -> None:
    """Wait until the unit that builds holds the lock and is at work, then stop it."""
    assert on_host(HOLD) == "active", "the build could not be held"


def followers() -> set[str]:
    """Who has followed the build, by the files that they leave beside it while they do."""
    return set(on_host("cd /opt/gpufleet/envs/.jobs/base && ls").split()) - {
        "log",
        "status.json",
        "worker.zip",
        "result.json",
    }


def go_on() -> None:
    on_host(f"systemctl kill --signal=CONT '{UNIT}'")


@pytest.fixture(scope="module")
def converged() -> Iterator[None]:
    """The host with an environment that serves."""
    fleet("up", "--only-tiny", "--fresh", "--hosts", HOST)
    finished(provision(f"{PROJECT}==1.0"))
    yield
    if not os.environ.get("GPUFLEET_KEEP"):
        fleet("destroy")


@contextlib.contextmanager
def watched(tally: faulty.Tally) -> Iterator[None]:
    """A process on the host uses the environment all the time."""
    command = podman("exec", "-i", f"gpufleet-{FLEET}-{HOST}", "sh", "-c", f"echo $$; {WATCH}")
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=containers())
    assert watcher.stdout is not None
    pid = watcher.stdout.readline().strip()
    begin = time.monotonic()
    try:
        yield
    finally:
        on_host(f"kill -TERM {pid}")
        looks, wrong = map(int, watcher.communicate(timeout=60)[0].split())
        tally.observations += looks
        tally.failures += wrong
        tally.seconds += time.monotonic() - begin
    assert looks > 0
    assert wrong == 0


def serving() -> dict[str, Any]:
    """The stamp of the release that serves."""
    return json.loads(on_host(f"cat {HOME}/stamps/$(basename $(readlink {HOME}/current)).json"))


@pytest.mark.fault("real ssh connections cut while a host builds")
def test_a_build_goes_on_when_ssh_is_cut_and_the_same_run_follows_it_again(
    converged: None, tally: faulty.Tally
) -> None:
    with watched(tally):
        tally.runs += 1
        before = serving()
        process = provision(f"{PROJECT}==1.1")
        stop_the_build()
        # Every session of sshd on the host: Ansible's persistent connection goes as well.
        on_host("pkill -KILL -f '^sshd(-session)?: '")
        tally.hit += 1
        assert serving() == before
        go_on()
        out = finished(process)
        tally.recoveries += 1
    assert serving()["spec"]["requirements"] == [f"{PROJECT}==1.1"], out
    tally.converged += 1


@pytest.mark.fault("a real ansible-playbook killed while a host builds")
def test_a_build_goes_on_without_its_controller_and_the_next_run_adopts_it(
    converged: None, tally: faulty.Tally
) -> None:
    with watched(tally):
        tally.runs += 1
        before = serving()
        process = provision(f"{PROJECT}>=1.0")
        stop_the_build()
        harness.kill_controller(process.pid)
        process.communicate(timeout=LIMIT)
        tally.hit += 1
        assert serving() == before
        # The next run has to be there as a follower of its own before the build may go on: then it cannot have built anything itself.
        others = followers()
        following = provision(f"{PROJECT}>=1.0")
        end = time.monotonic() + LIMIT
        while followers() <= others:
            assert following.poll() is None, following.communicate()[0]
            assert time.monotonic() < end, "the next run does not follow the build"
            time.sleep(0.05)
        go_on()
        out = finished(following)
        tally.recoveries += 1
    assert "adopted the build" in out
    assert serving()["spec"]["requirements"] == [f"{PROJECT}>=1.0"], out
    tally.converged += 1
