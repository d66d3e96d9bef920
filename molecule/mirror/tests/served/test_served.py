"""Each file came over the outer link once, hosts got theirs from the mirror, and a mistake in a setting changes nothing."""

from __future__ import annotations

import re
import subprocess
import urllib.error
import urllib.request
from collections import Counter

import pytest
from checks.hosts import CONTAINER_PREFIX, variables

LOG = "/var/log/nginx/gpufleet-wheels.log"
SITE = "/etc/nginx/conf.d/gpufleet-wheels.conf"
ROOT = "/srv/gpufleet/www"
CLIENTS = ("ws-wsl", "ws-mixed")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def mirror(host_named):
    return host_named("ws-nogpu")


def address(host) -> str:
    return variables(host)["ansible_host"]


def status(host, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address(host)}:8080{path}") as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def upstream(mirror) -> list[tuple[str, str]]:
    """(who, what) of everything that the real indexes served since the mirror's host was made."""
    since = mirror.check_output("stat -c @%Y /run/systemd/system")
    since = mirror.check_output("date -u -d %s +%%Y-%%m-%%dT%%H:%%M:%%SZ", since)
    command = ["podman", "logs", "--since", since, f"{CONTAINER_PREFIX}index"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r'^(\S+) "GET (/(?:stand-in|packages)/\S*) HTTP/1\.1" 200', log, re.MULTILINE)


def test_the_real_indexes_served_each_file_once_and_the_mirror_alone(mirror, host_named, upstream):
    wheels = Counter(path for who, path in upstream if path.endswith(".whl"))
    stored = mirror.check_output(f"find {ROOT}/files -name '*.whl' -printf '%f\\n'").splitlines()
    assert sorted(path.rpartition("/")[2].replace("%2B", "+") for path in wheels) == sorted(stored)
    assert set(wheels.values()) == {1}
    assert len(stored) == 7  # torch, torchvision and torchaudio for two Pythons, and uv
    clients = {address(host_named(name)) for name in CLIENTS}
    assert not [path for who, path in upstream if who in clients]


@pytest.mark.parametrize("name", CLIENTS)
def test_a_host_got_its_environment_from_the_mirror(mirror, host_named, name):
    client = host_named(name)
    assert (
        client.check_output("gpu-env run base python -I -c 'import torch; print(torch.__version__)'") == "2.9.1+cu128"
    )
    lines = [line.split() for line in mirror.file(LOG).content_string.splitlines()]
    sent = {line[6] for line in lines if line[0] == address(client) and line[6].endswith(".whl") and line[8] == "200"}
    projects = {path.rpartition("/")[2].partition("-")[0] for path in sent}
    assert projects == {"torch", "torchvision", "torchaudio"}


@pytest.mark.parametrize("name", CLIENTS)
def test_what_users_take_away_names_the_mirror(mirror, host_named, name):
    folder = "/opt/gpufleet/envs/base/takeaway"
    text = host_named(name).file(f"{folder}/requirements-torch.txt").content_string
    assert f"--index-url http://{address(mirror)}:8080/whl/cu128\n" in text
    assert "torch==2.9.1+cu128" in text


def test_only_what_is_complete_is_served_and_by_an_unprivileged_process(mirror):
    mirror.check_output(f"mkdir -p {ROOT}/.incoming && cp {ROOT}/files/*/uv-*.whl {ROOT}/.incoming/uv.whl.partial")
    assert status(mirror, "/packages/simple/uv/") == 200
    for hidden in ("/.incoming/uv.whl.partial", "/.lock", "/files/", "/"):
        assert status(mirror, hidden) in (403, 404), hidden
    workers = [process for process in mirror.process.filter(comm="nginx") if "worker" in process.args]
    assert workers
    assert "root" not in {process.user for process in workers}
    assert mirror.check_output(f"find {ROOT} ! -user root -o -perm /022 ! -type l") == ""


def test_a_setting_that_nginx_cannot_read_changes_nothing(mirror, play, upstream):
    before = mirror.file(SITE).content_string
    options = ("-e", "gpufleet_hosts=ws-nogpu", "-e", "gpufleet_state_dir=.state/molecule-mirror")
    tls = ("-e", "wheel_mirror_tls_certificate=/gone.pem", "-e", "wheel_mirror_tls_key=/gone.key")
    done = play("playbooks/mirror.yml", *options, *tls)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "the site of the mirror was not changed" in said
    assert "/gone.pem" in said
    assert mirror.file(SITE).content_string == before
    assert mirror.check_output("ls /etc/nginx/conf.d") == "gpufleet-wheels.conf"
    assert status(mirror, "/packages/simple/uv/") == 200


def test_locks_are_made_from_the_indexes_although_hosts_use_the_mirror(mirror, play):
    """From the mirror they would lack every file that no lock named before."""
    url = f"http://{address(mirror)}:8080"
    options = ("-e", "gpufleet_hosts=ws-wsl,ws-mixed", "-e", "gpufleet_state_dir=.state/molecule-mirror")
    hosts_use = ("-e", f"torch_env_mirror_index_base_url={url}/whl")
    done = play("playbooks/lock.yml", *options, *hosts_use)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("unchanged\n") == 2  # one lock for each of the two Pythons
    refused = play("playbooks/lock.yml", *options, "-e", f"torch_env_index_base_url={url}/whl")
    assert refused.returncode != 0
    assert "is a mirror that the role wheel_mirror keeps" in " ".join(refused.stdout.split())


def test_contradicting_settings_are_refused_before_anything_is_done(mirror, play):
    done = play("playbooks/mirror.yml", "-e", "gpufleet_hosts=ws-nogpu", "-e", "wheel_mirror_tls_key=/etc/key.pem")
    assert done.returncode != 0
    assert "belong together. Nothing was changed." in " ".join(done.stdout.split())
    assert "changed=0" in done.stdout
