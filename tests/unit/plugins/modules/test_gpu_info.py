"""The module: documentation, validation, and that it changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.observe import Request, observe
from ansible_collections.gpufleet.workstation.plugins.modules import gpu_info

COLLECTIONS = Path(__file__).resolve().parents[4] / "collections"


def _run(arguments, check=False):
    """Run the module as Ansible would, in a process of its own."""
    program = "\n".join(
        [
            "import json, sys",
            "from ansible.module_utils import basic",
            "from ansible.module_utils.testing import patch_module_args",
            "from ansible_collections.gpufleet.workstation.plugins.modules import gpu_info",
            "with patch_module_args(json.loads(sys.argv[1])):",
            "    gpu_info.main()",
        ]
    )
    parameters = json.dumps({**arguments, "_ansible_check_mode": check})
    done = subprocess.run(
        [sys.executable, "-c", program, parameters],
        env={"PYTHONPATH": str(COLLECTIONS), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("check", [False, True])
def test_it_answers_with_an_observation_and_without_a_change(check):
    code, result = _run({"files": ["/etc/hostname"]}, check)
    assert code == 0
    assert result["changed"] is False
    assert result["observation"]["schema"] == 1
    assert set(result["observation"]["files"]) == {"/etc/hostname"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": "envs"}, "'envs' is not an absolute path"),
        ({"root": "/opt/../etc"}, "not an absolute path in its shortest form"),
        ({"root": "/opt/gpufleet/"}, "not an absolute path in its shortest form"),
        ({"files": ["/etc/hosts", "x"]}, "'x' is not an absolute path"),
        ({"environments": ["../../etc"]}, "no name of an environment"),
        ({"environments": ["base\n"]}, "no name of an environment"),
        ({"variables": ["A-B"]}, "no name of an environment variable"),
        ({"time_limit": 0}, "not between 1 and 300"),
        ({"time_limit": "soon"}, "time_limit"),
    ],
)
def test_bad_options_fail_with_the_option_and_the_value(arguments, message):
    code, result = _run(arguments)
    assert code == 1
    assert message in result["msg"]


def _documented(contains, path=""):
    for key, value in contains.items():
        yield f"{path}{key}"
        yield from _documented(value.get("contains", {}), f"{path}{key}.")


def test_every_key_of_the_observation_is_documented_and_every_documented_key_is_there():
    documented = yaml.safe_load(gpu_info.RETURN)["observation"]["contains"]
    seen = observe(Host(), Request(urls=["http://127.0.0.1:9/"]))
    assert set(documented) == set(seen)
    for part in ("os", "driver", "health"):
        assert set(documented[part]["contains"]) == set(seen[part]), part


def test_the_keys_of_gpus_and_environments_are_documented(tmp_path):
    documented = yaml.safe_load(gpu_info.RETURN)["observation"]["contains"]
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    for name, value in (("vendor", "0x10de"), ("class", "0x030000"), ("device", "0x2f04")):
        (device / name).write_text(f"{value}\n")
    (tmp_path / "opt/gpufleet/envs/base/releases").mkdir(parents=True)
    seen = observe(Host(root=str(tmp_path)), Request())
    assert set(documented["gpus"]["contains"]) == set(seen["gpus"][0])
    assert set(documented["environments"]["contains"]) == set(seen["environments"][0])


def test_every_documented_key_has_a_type_and_a_sample():
    def check(contains, path):
        for key, value in contains.items():
            assert "type" in value, f"{path}.{key}"
            assert "description" in value, f"{path}.{key}"
            assert "sample" in value or "contains" in value, f"{path}.{key}"
            check(value.get("contains", {}), f"{path}.{key}")

    check(yaml.safe_load(gpu_info.RETURN), "")


def test_documentation_and_arguments_agree():
    options = yaml.safe_load(gpu_info.DOCUMENTATION)["options"]
    assert set(options) == set(gpu_info.ARGUMENTS)
    for name, argument in gpu_info.ARGUMENTS.items():
        for key, value in argument.items():
            assert options[name].get(key) == value, f"{name}.{key}"


def test_defaults_agree_with_the_request():
    defaults = {name: argument["default"] for name, argument in gpu_info.ARGUMENTS.items()}
    assert Request(**defaults) == Request()
