"""The rollback, made without network: the generation that served before serves again, with the release that it had."""

from __future__ import annotations

from checks import driver


def test_old_driver_is_loaded_and_pinned_again(host_named):
    host = host_named("ws-mixed")
    version = driver.installed(host, "580", "open")
    driver.modules(host, host.check_output("ls /lib/modules").split(), version, "open")
    driver.loaded(host, version, "open")
    driver.pinned(host, "580")
    assert driver.journal(host)["generation"] == 1


def test_old_torch_serves_again_and_the_new_release_is_kept(host_named):
    host = host_named("ws-mixed")
    assert host.check_output("gpu-env run base python -I -c 'import torch; print(torch.__version__)'") == "2.9.0+cu128"
    assert "2.9.1" in host.check_output("readlink -f /opt/gpufleet/envs/base/previous")
