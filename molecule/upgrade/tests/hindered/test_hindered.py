"""What stands in the way of an upgrade leaves the old driver serving and is named; the next run goes on from there."""

from __future__ import annotations

import re

import pytest
from checks import driver

pytestmark = pytest.mark.timeout(600)  # whole provisioning runs, also on a machine that has more to do

STAGED = "/var/lib/gpufleet/staged/transaction.json"
UPGRADE = (
    *("provision-gpu.yml", "--limit", "ws-mixed", "--tags", "driver"),
    *("-e", "nvidia_driver_branch=595", "-e", "torch_env_version=2.9.0"),
)


@pytest.fixture
def host(host_named):
    host = host_named("ws-mixed")
    yield host
    version = driver.installed(host, "580", "open")
    driver.modules(host, host.check_output("ls /lib/modules").split(), version, "open")
    driver.loaded(host, version, "open")
    driver.pinned(host, "580")


def changed(run) -> int:
    return int(re.search(r"^ws-mixed\s.*changed=(\d+)", run.stdout, re.MULTILINE)[1])


def test_module_that_does_not_build_is_found_before_anything_is_replaced(play, host):
    kernel = host.check_output("uname -r")
    marker = f"/lib/modules/{kernel}/SIMULATE_DKMS_FAILURE"
    host.check_output("touch %s", marker)
    try:
        done = play(*UPGRADE)
    finally:
        host.check_output("rm %s", marker)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "ws-mixed failed: " in said
    assert kernel in said
    assert "the driver that serves was not touched" in said


def test_busy_host_is_staged_and_a_second_run_changes_nothing(play, host):
    # No device stands behind the simulated node, so it is held without being opened.
    program = "import os, time; held = os.open('/dev/nvidia-uvm', os.O_PATH); time.sleep(3600)"
    host.check_output("systemd-run --unit=gpufleet-busy python3 -c %s", program)
    try:
        first, second = play(*UPGRADE), play(*UPGRADE)
    finally:
        host.check_output("systemctl stop gpufleet-busy")
    for done in (first, second):
        said = " ".join(done.stdout.split())
        assert "ws-mixed pending: " in said, said
        assert "the GPU is busy: python3" in said
    assert host.file(STAGED).exists
    assert (changed(first) > 0, changed(second)) == (True, 0)
