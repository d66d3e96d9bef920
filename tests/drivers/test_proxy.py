# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose only way out is a proxy with an authority of its own: the driver comes through it, and nothing of the proxy stays."""

from __future__ import annotations

import checks
import harness
import pytest
from harness import Host

pytestmark = [pytest.mark.skipif(bool(harness.lacking()), reason=harness.lacking()), pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def host() -> Host:
    """The host, added to those that are up."""
    present = harness.addresses() if harness.INVENTORY.exists() else {}
    harness.up([*present, "drv-proxy"])
    return Host("drv-proxy")


def test_driver_comes_through_a_proxy_with_its_own_authority(host: Host) -> None:
    program = f"import socket; socket.create_connection(('{harness.server_address()}', 80), timeout=5)"
    assert "Error" in host.run(f'python3 -c "{program}" 2>&1 || true'), "the host has another way out"

    run = harness.play("provision_gpu.yml", [host.name])
    assert run[host.name].ready, run[host.name].message
    checks.serves(host, host.look(), "580", "open")
    assert host.run("grep -rlsi ':3128' /etc/apt /etc/environment /run/gpufleet-apt-* /var/lib/gpufleet || true") == ""

    again = harness.play("provision_gpu.yml", [host.name])[host.name]
    assert (again.planned, again.changed) == ([], False)
