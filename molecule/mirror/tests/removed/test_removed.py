"""The mirror can be carried, and goes without a trace."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.timeout(600)
MIRROR = ("playbooks/mirror.yml", "-e", "gpufleet_hosts=ws-nogpu", "-e", "gpufleet_state_dir=.state/molecule-mirror")


def changed(run) -> int:
    assert run.returncode == 0, run.stdout
    return int(re.search(r"^ws-nogpu\s.*changed=(\d+)", run.stdout, re.MULTILINE)[1])


def test_a_carried_folder_fills_a_mirror_without_network(play, host_named):
    host = host_named("ws-nogpu")
    host.check_output("cp -r /srv/gpufleet/www/files /root/carried")
    carried = ("-e", "wheel_mirror_source=directory", "-e", "wheel_mirror_directory=/root/carried")
    elsewhere = ("-e", "wheel_mirror_path=/srv/second", "-e", "wheel_mirror_serve=false", "--become")
    assert changed(play(*MIRROR, *carried, *elsewhere)) > 0
    assert host.check_output("diff -r /srv/gpufleet/www /srv/second --exclude=.incoming") == ""
    assert changed(play(*MIRROR, *carried, *elsewhere)) == 0
    host.check_output("rm -r /root/carried /srv/second")


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
