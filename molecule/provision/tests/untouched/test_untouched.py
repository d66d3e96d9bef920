"""Check mode predicted a complete provisioning, and touched nothing."""

from __future__ import annotations

import pytest
from checks import driver, runtime

FRESH = ("ws-5070", "ws-mixed", "ws-1080ti")


@pytest.mark.parametrize("name", FRESH)
def test_check_mode_leaves_a_host_as_it_was(host_named, name):
    host = host_named(name)
    driver.untouched(host)
    assert [path for path in runtime.FILES if host.file(path).exists] == []
    assert "gpufleet" not in host.file("/etc/environment").content_string
    assert not host.file("/opt/gpufleet").exists
    assert not host.file("/usr/local/bin/gpu-env").exists
    assert not host.user("gpufleet").exists
