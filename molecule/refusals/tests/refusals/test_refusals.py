"""What cannot work is said before anything changes: which host or variable, why, and what to do."""

from __future__ import annotations

import json

import pytest
from checks import driver
from checks.hosts import fingerprint

pytestmark = pytest.mark.timeout(600)  # whole provisioning runs, also on a machine that has more to do

PROVISION = "provision-gpu.yml"
HOSTS = "ws-clash,ws-nogpu,ws-1080ti"


@pytest.fixture
def unchanged(host_named):
    """Fail the test when it changed one of the hosts."""
    hosts = {name: host_named(name) for name in HOSTS.split(",")}
    before = {name: fingerprint(host) for name, host in hosts.items()}
    yield
    assert {name: fingerprint(host) for name, host in hosts.items()} == before


@pytest.mark.usefixtures("unchanged")
def test_impossible_hosts_are_refused_with_reason_and_remedy(play):
    done = play(PROVISION, "--limit", "ws-clash,ws-nogpu")
    assert done.returncode != 0
    assert "0 of 2 hosts train-ready." in done.stdout
    for host in ("ws-clash", "ws-nogpu"):
        assert f"{host} refused: " in done.stdout
    assert done.stdout.count("what to do: ") == 2
    assert "proprietary" in done.stdout
    assert "open" in done.stdout


BAD_INPUT = {
    "wrong type": ({"torch_env_environments": "base"}, "torch_env_environments"),
    "misspelt variable": ({"torch_env_verison": "2.9.1"}, "did you mean torch_env_version"),
    "not a choice": ({"nvidia_driver_flavor": "closed"}, "nvidia_driver_flavor"),
    "unknown torch": ({"torch_env_version": "2.9.7"}, "2.9.1"),
    "unknown tag": ({"torch_env_cuda": "cu999"}, "cu128"),
    "unknown branch": ({"nvidia_driver_branch": "581"}, "580"),
    "root of the system": ({"torch_env_root": "/usr"}, "torch_env_root"),
    "relative root": ({"torch_env_root": "envs"}, "torch_env_root"),
    "climbing root": ({"torch_env_root": "/opt/../etc"}, "torch_env_root"),
    "shell in a name": ({"torch_env_environments": [{"name": "a; reboot"}]}, "a; reboot"),
    "path in a name": ({"torch_env_environments": [{"name": "../etc"}]}, "../etc"),
    "two of one name": ({"torch_env_environments": [{"name": "a"}, {"name": "a"}]}, "a"),
    "option as requirement": (
        {"torch_env_environments": [{"name": "a", "requirements": ["--index-url=x"]}]},
        "--index-url",
    ),
    "truthy garbage": ({"runtime_env_variables": {"TOKENIZERS_PARALLELISM": "flase"}}, "TOKENIZERS_PARALLELISM"),
    "line break in a value": ({"runtime_env_variables": {"A": "x\ny"}}, "A"),
    "shell in a variable's name": ({"runtime_env_variables": {"A;B": "x"}}, "A;B"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_stops_the_run_before_anything_changes(play, host_named, case):
    variables, words = BAD_INPUT[case]
    host = host_named("ws-1080ti")
    before = fingerprint(host)
    # Given to one host only: the others must not be changed either.
    done = play(PROVISION, "--limit", HOSTS, "-e", json.dumps(variables))
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert "TASK [Environments" not in done.stdout
    assert fingerprint(host) == before


@pytest.mark.usefixtures("unchanged")
def test_dead_host_is_reported_and_does_not_hide_the_others(play, tmp_path):
    inventory = tmp_path / "dead.yml"
    inventory.write_text("all: {hosts: {ws-dead: {ansible_host: 127.0.0.1, ansible_port: 9}}}\n", encoding="utf-8")
    done = play(PROVISION, "-i", str(inventory), "--limit", "ws-dead,ws-nogpu")
    assert done.returncode != 0
    assert "ws-dead unreachable: " in done.stdout
    assert "ws-nogpu refused: " in done.stdout


@pytest.mark.usefixtures("unchanged")
def test_host_without_root_is_left_out_and_told_so(play):
    done = play(PROVISION, "--limit", "ws-1080ti", "-e", "ansible_become=false")
    assert done.returncode != 0
    assert "ws-1080ti refused: " in done.stdout
    assert "root" in done.stdout


def test_unreachable_index_leaves_what_served_before(play, host_named):
    host = host_named("ws-1080ti")
    first = play(PROVISION, "--limit", "ws-1080ti")
    assert "1 of 1 hosts train-ready." in first.stdout, first.stdout
    before = host.check_output("readlink -f /opt/gpufleet/envs/base/current")
    done = play(
        PROVISION,
        "--limit",
        "ws-1080ti",
        "-e",
        "torch_env_version=2.9.0",
        "-e",
        "torch_env_index_base_url=http://127.0.0.1:9",
    )
    assert done.returncode != 0
    assert "http://127.0.0.1:9" in done.stdout
    assert host.check_output("readlink -f /opt/gpufleet/envs/base/current") == before
    assert host.check_output("ls /opt/gpufleet/envs/base/releases").split() == [before.rpartition("/")[2]]
    assert host.check_output("gpu-env run base python -c 'import torch; print(torch.__version__)'") == "2.9.1+cu126"
    driver.is_consistent(host)


def test_what_if_needs_no_host(play, tmp_path):
    playbook = tmp_path / "ask.yml"
    playbook.write_text(
        """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "{{ {'os': {'id': 'debian', 'version_id': '12', 'arch': 'x86_64'}, 'gpus': [{'pci_device_id': '2f04'}]}
                 | gpufleet.workstation.resolve_stack({'torch': {'version': '2.6.0+cu124'}}) | to_json }}"
""",
        encoding="utf-8",
    )
    done = play(str(playbook))
    assert done.returncode == 0
    assert "sm_120" in done.stdout
    assert "torch_arch" in done.stdout
