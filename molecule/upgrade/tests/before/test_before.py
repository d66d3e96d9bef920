"""What serves before the upgrade."""

from __future__ import annotations

from checks import driver


def test_old_driver_and_old_torch_serve(host_named):
    host = host_named("ws-mixed")
    driver.loaded(host, driver.installed(host, "580", "open"), "open")
    driver.pinned(host, "580")
    assert host.check_output("gpu-env run base python -I -c 'import torch; print(torch.__version__)'") == "2.9.0+cu128"
