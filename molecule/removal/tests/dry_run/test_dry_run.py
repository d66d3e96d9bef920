"""A removal that was only asked about changed nothing."""

from __future__ import annotations

from checks import driver, runtime


def test_everything_still_serves(host_named):
    host = host_named("ws-mixed")
    driver.loaded(host, driver.installed(host, "580", "open"), "open")
    runtime.set_everywhere(host, "admin")
    assert host.check_output("gpu-env run base python -I -c 'import torch; print(torch.__version__)'") == "2.9.1+cu128"
