"""Without the timer nothing of it is left, and the environment and its stamp stay."""

from __future__ import annotations


def test_units_program_configuration_and_metrics_are_gone(host_named):
    host = host_named("ws-5070")
    assert host.run("systemctl list-unit-files --no-legend 'gpufleet-proof*'").stdout == ""
    assert host.check_output("systemctl list-units --all --no-legend 'gpufleet-proof*'") == ""
    for path in (
        "/usr/local/libexec/gpufleet",
        "/etc/gpufleet",
        "/var/lib/prometheus/node-exporter/gpufleet_host.prom",
        "/etc/systemd/system/timers.target.wants/gpufleet-proof.timer",
    ):
        assert not host.file(path).exists, path


def test_what_was_proven_stays(host_named):
    host = host_named("ws-5070")
    assert host.file("/var/lib/gpufleet/proof/base.json").exists
    assert host.check_output("gpu-env run base python -I -c 'import torch; print(torch.__version__)'") == "2.9.1+cu128"
