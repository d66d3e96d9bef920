"""The service under systemd, hardened as it is installed: it proves, keeps the stamp, writes the metrics, and waits for others."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from pathlib import Path

import pytest

SERVICE = "gpufleet-proof.service"
STAMP = "/var/lib/gpufleet/proof/base.json"
TEXTFILE = "/var/lib/prometheus/node-exporter/gpufleet_host.prom"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def host(host_named):
    return host_named("ws-5070")


@pytest.fixture(scope="module")
def promtool() -> str:
    """Prometheus' own checker of metrics, on the controller."""
    path = Path(__file__).resolve().parents[4] / "tests/compliance/promtool.py"
    spec = importlib.util.spec_from_file_location("promtool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.path()
    except module.Missing as error:
        pytest.skip(str(error))


def shown(host, unit: str, name: str) -> str:
    return host.check_output("systemctl show -p %s --value %s", name, unit)


def metrics(host) -> dict[str, str]:
    """The series of the textfile, with their values."""
    lines = [line for line in host.file(TEXTFILE).content_string.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines}


@pytest.mark.parametrize("unit", ["gpufleet-proof.timer", "gpufleet-proof.path"])
def test_timer_and_path_run_and_come_back_after_a_restart(host, unit):
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled


def test_the_timer_knows_when_it_elapses_next(host):
    assert shown(host, "gpufleet-proof.timer", "NextElapseUSecRealtime") not in ("", "0")


def test_without_a_stamp_the_service_proves_as_the_environments_account(host):
    host.check_output("rm -f %s", STAMP)
    host.check_output("systemctl start %s", SERVICE)
    assert shown(host, SERVICE, "ExecMainStatus") == "0"
    stamp = json.loads(host.file(STAMP).content_string)
    assert (stamp["verdict"], stamp["level"]) == ("passed", "static")
    assert (host.file(STAMP).user, host.file(STAMP).mode) == ("root", 0o644)


def test_the_stamp_is_one_that_provisioning_accepts(host, play):
    done = play("playbooks/provision_gpu.yml", "-e", "gpufleet_hosts=ws-5070", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 hosts train-ready." in done.stdout


def test_a_run_without_anything_to_prove_leaves_the_stamp_and_replaces_the_textfile(host):
    before, written = host.file(STAMP).content_string, host.file(TEXTFILE).mtime
    time.sleep(1.1)
    host.check_output("systemctl start %s", SERVICE)
    assert host.file(STAMP).content_string == before
    assert host.file(TEXTFILE).mtime > written


def test_the_textfile_is_what_prometheus_reads(host, promtool):
    file = host.file(TEXTFILE)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=file.content_string, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert metrics(host)['gpufleet_proof_passed{environment="base",level="static"}'] == "1"
    assert metrics(host)["gpufleet_gpus"] == "1"
    assert host.check_output("ls -A %s", TEXTFILE.rpartition("/")[0]) == "gpufleet_host.prom"


def test_beside_another_proof_it_proves_nothing_and_says_so(host):
    host.check_output("rm -f %s", STAMP)
    host.check_output("flock /run/gpufleet-proof.lock systemctl start %s", SERVICE)
    assert not host.file(STAMP).exists
    assert metrics(host)['gpufleet_proof_passed{environment="base",level=""}'] == "0"
    assert "another proof runs on this host" in host.check_output("journalctl -u %s -n 20 -o cat", SERVICE)


def test_after_a_change_of_packages_it_looks_without_being_asked(host):
    before = shown(host, SERVICE, "InactiveEnterTimestampMonotonic")
    host.check_output("touch /var/lib/dpkg/status")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (
            shown(host, SERVICE, "ActiveState") == "inactive"
            and shown(host, SERVICE, "InactiveEnterTimestampMonotonic") != before
        ):
            break
        time.sleep(2)
    else:
        pytest.fail("it did not run")
    assert json.loads(host.file(STAMP).content_string)["verdict"] == "passed"
    assert host.service("gpufleet-proof.path").is_running
