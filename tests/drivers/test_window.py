# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a change has to wait: for somebody who computes, or for somebody at the console."""

from __future__ import annotations

from collections.abc import Iterator

import checks
import harness
import pytest
from harness import Host

pytestmark = [pytest.mark.skipif(bool(harness.lacking()), reason=harness.lacking()), pytest.mark.timeout(1800)]

HOSTS = [name for name in ("drv-debian12-nvidia", "drv-rocky9-nvidia") if name in harness.driver_hosts()]
PASSWORD = "correct-horse"  # noqa: S105  # for the simulated firmware

each_host = pytest.mark.parametrize("name", HOSTS)


@pytest.fixture(scope="module")
def served() -> Iterator[None]:
    """Both hosts have 580."""
    harness.up(HOSTS)
    harness.play("remove.yml", HOSTS, gpufleet_remove=True)
    run = harness.play("provision_gpu.yml", HOSTS)
    for name in HOSTS:
        assert run[name].ready, run[name].message
    yield
    harness.play("remove.yml", HOSTS, gpufleet_remove=True)


@each_host
def test_busy_host_is_staged_named_and_left_alone(served: None, name: str) -> None:
    host = Host(name)
    before = host.look()
    # The nodes have no driver behind them here; a descriptor that only names the node holds it as well.
    program = "import os, time; held = [os.open(f'/dev/{n}', os.O_PATH) for n in ('nvidia0', 'nvidiactl', 'nvidia-uvm')]; time.sleep(600)"
    host.run(f'cp -L /usr/bin/python3 /tmp/train; systemd-run --quiet --collect --unit train /tmp/train -c "{program}"')
    try:
        first = harness.play("provision_gpu.yml", [name], nvidia_driver_branch="595")[name]
        assert not first.ready
        assert "train" in first.message + first.pending
        assert "driver.stage" in [step["id"] for step in first.done]
        assert "driver.packages" not in first.planned
        assert host.run("cat /var/lib/gpufleet/staged/transaction.json")
        checks.same_driver(before, host.look())

        second = harness.play("provision_gpu.yml", [name], nvidia_driver_branch="595")[name]
        assert (second.planned, second.done, second.changed) == ([], [], False)
        assert "train" in second.message + second.pending
    finally:
        host.run("systemctl stop train; rm /tmp/train")
    third = harness.play("provision_gpu.yml", [name], nvidia_driver_branch="595")[name]
    assert third.ready, third.message
    checks.serves(host, host.look(), "595", host.flavor)


@each_host
def test_secure_boot_keeps_the_old_driver_until_somebody_was_at_the_console(served: None, name: str) -> None:
    host = Host(name)
    before = host.look()
    branch, other = ("580", "595") if checks.version_of(before).startswith("595") else ("595", "580")
    wish = {
        "nvidia_driver_branch": branch,
        "nvidia_driver_downgrade_allowed": True,
        "nvidia_driver_mok_password": PASSWORD,
    }
    host.run("gpufleet-sandbox secure-boot on")
    try:
        first = harness.play("provision_gpu.yml", [name], **wish)
        played = first[name]
        assert not played.ready
        assert "console" in played.message + played.pending
        assert "driver.keys" in [step["id"] for step in played.done]
        assert PASSWORD not in first.output
        checks.same_driver(before, host.look())

        second = harness.play("provision_gpu.yml", [name], **wish)[name]
        assert not second.ready
        assert not second.changed
        assert checks.version_of(host.look()).startswith(other)

        host.run("gpufleet-sandbox secure-boot enroll")
        third = harness.play("provision_gpu.yml", [name], **wish)[name]
        assert third.ready, third.message
        checks.serves(host, host.look(), branch, host.flavor)
    finally:
        host.run("gpufleet-sandbox secure-boot off")
