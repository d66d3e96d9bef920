"""After the removal the host is as it was before: no package, file or account of ours, and all of its users' own."""

from __future__ import annotations

from checks import driver, runtime


def test_driver_left_nothing_behind(host_named):
    driver.untouched(host_named("ws-mixed"))


def test_environments_left_nothing_behind(host_named):
    host = host_named("ws-mixed")
    assert not host.file("/opt/gpufleet").exists
    assert not host.file("/usr/local/bin/gpu-env").exists
    assert host.run("pgrep -u gpufleet").stdout == ""


def test_variables_are_the_users_own_again(host_named):
    host = host_named("ws-mixed")
    assert [path for path in runtime.FILES if host.file(path).exists] == []
    assert host.file("/etc/environment").content_string == "# ours\nEDITOR=vi\nTOKENIZERS_PARALLELISM=0\n"
    assert runtime.value_of(runtime.over_ssh(host, "env")) == "0"
    assert runtime.in_system_service(host) is None
