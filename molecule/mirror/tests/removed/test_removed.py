"""The mirror can be carried, and goes without a trace."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from checks.hosts import variables

pytestmark = pytest.mark.timeout(600)
MIRROR = ("playbooks/mirror.yml", "-e", "gpufleet_hosts=ws-nogpu", "-e", "gpufleet_state_dir=.state/molecule-mirror")


def changed(run) -> int:
    assert run.returncode == 0, run.stdout
    return int(re.search(r"^ws-nogpu\s.*changed=(\d+)", run.stdout, re.MULTILINE)[1])


def test_a_carried_folder_fills_another_without_network_and_without_root(play, host_named):
    host = host_named("ws-nogpu")
    carried = ("-e", "wheel_mirror_source=directory", "-e", "wheel_mirror_directory=/srv/gpufleet/www/files")
    elsewhere = ("-e", "wheel_mirror_path=/home/admin/second", "-e", "wheel_mirror_serve=false")
    host.check_output("ip route add blackhole %s", urlsplit(variables(host)["torch_env_package_index_url"]).hostname)
    assert changed(play(*MIRROR, *carried, *elsewhere)) > 0
    assert host.check_output("diff -r /srv/gpufleet/www /home/admin/second --exclude=.incoming") == ""
    assert host.file("/home/admin/second/packages/simple/index.html").user == "admin"
    assert changed(play(*MIRROR, *carried, *elsewhere)) == 0


def test_removal_is_predicted_and_leaves_nothing(play, host_named):
    host = host_named("ws-nogpu")
    absent = ("-e", "wheel_mirror_state=absent")
    assert changed(play(*MIRROR, *absent, "--check")) > 0
    assert host.file("/srv/gpufleet/www/packages/simple/index.html").exists
    assert changed(play(*MIRROR, *absent)) > 0
    for path in ("/srv/gpufleet", "/etc/nginx", "/var/log/nginx", "/var/lib/gpufleet", "/usr/sbin/nginx"):
        assert not host.file(path).exists, path
    assert "nginx" not in host.check_output("dpkg-query -W")
    assert changed(play(*MIRROR, *absent)) == 0
