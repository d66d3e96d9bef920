"""The upgrade: new driver loaded, new torch current, the old release kept beside it."""

from __future__ import annotations

from checks import driver


def test_new_driver_is_loaded_and_pinned(host_named):
    host = host_named("ws-mixed")
    version = driver.installed(host, "595", "open")
    driver.modules(host, host.check_output("ls /lib/modules").split(), version, "open")
    driver.loaded(host, version, "open")
    driver.pinned(host, "595")
    journal = driver.journal(host)
    assert (journal["previous"]["branch"], journal["present"]["branch"], journal["generation"]) == (580, 595, 2)
    assert not host.file("/var/lib/gpufleet/staged").exists


def test_new_torch_serves_and_the_old_release_is_kept(host_named):
    host = host_named("ws-mixed")
    assert host.check_output("gpu-env run base python -I -c 'import torch; print(torch.__version__)'") == "2.9.1+cu128"
    assert "2.9.0" in host.check_output("readlink -f /opt/gpufleet/envs/base/previous")
