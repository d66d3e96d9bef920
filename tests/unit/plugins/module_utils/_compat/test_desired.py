# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The desired state: what is completed, what is accepted, and what stops the run with a message that names the variable."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import normal_pci_address, parse
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired


def environment(**keys: Any) -> dict[str, Any]:
    return {"environments": [{"name": "base", **keys}]}


def variables(**values: Any) -> dict[str, Any]:
    return {"runtime": {"variables": values}}


def test_an_empty_desired_state_is_one_environment_with_the_defaults() -> None:
    for given in (None, {}):
        wanted = parse(given)
        (base,) = wanted.environments
        assert (base.name, base.torch.version, base.torch.tag, base.python) == ("base", "2.9.1", None, None)
        assert base.companions == ("torchvision", "torchaudio")
        assert wanted.driver.minimum == "550"
        assert (wanted.driver.branch, wanted.driver.flavor, wanted.driver.source) == (None, None, None)
        assert wanted.steps == ("driver", "torch", "runtime", "proof")
        assert wanted.runtime.variables == {"TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.parametrize(
    ("torch", "version", "tag"),
    [
        ({"version": "2.9.1+cu128"}, "2.9.1", "cu128"),
        ({"version": "2.9.1", "cuda": "cu126"}, "2.9.1", "cu126"),
        ({"version": "2.9.1+cu126", "cuda": "cu126"}, "2.9.1", "cu126"),
        ({"version": "2.9.1+cu126", "cuda": "auto"}, "2.9.1", "cu126"),
        ({"index_url": "https://mirror.example/whl/cu130/"}, "2.9.1", "cu130"),
        ({"index_url": "https://mirror.example/simple"}, "2.9.1", None),
    ],
)
def test_a_tag_may_be_said_in_the_version_the_tag_or_the_index(
    torch: dict[str, str], version: str, tag: str | None
) -> None:
    (base,) = parse({"torch": torch}).environments
    assert (base.torch.version, base.torch.tag) == (version, tag)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, ("2.9.1", "cu128")),
        ({"torch": "2.8.0"}, ("2.8.0", None)),
        ({"torch": "2.8.0+cu126"}, ("2.8.0", "cu126")),
        ({"cuda": "auto"}, ("2.9.1", None)),
        ({"cuda": "cu130"}, ("2.9.1", "cu130")),
    ],
)
def test_an_environment_takes_from_the_defaults_what_it_does_not_say(
    own: dict[str, str], expected: tuple[str, str]
) -> None:
    (base,) = parse({"torch": {"version": "2.9.1+cu128"}, **environment(**own)}).environments
    assert (base.torch.version, base.torch.tag) == expected


def test_a_tag_of_all_environments_holds_for_versions_of_their_own() -> None:
    (base,) = parse({"torch": {"cuda": "cu126"}, **environment(torch="2.8.0")}).environments
    assert base.torch.tag == "cu126"


def test_requirements_are_sorted_and_said_once() -> None:
    (base,) = parse(
        environment(requirements=["numpy<3", "einops", "numpy<3", "a[b,c]>=1 ; python_version < '3.12'"])
    ).environments
    assert base.requirements == ("a[b,c]>=1 ; python_version < '3.12'", "einops", "numpy<3")


@pytest.mark.parametrize("value", ["", "off", "FALSE", "f", "No", "n", "0", 0, False])
def test_every_documented_false_value_is_written_as_false(value: Any) -> None:
    assert parse(variables(TOKENIZERS_PARALLELISM=value)).runtime.variables == {"TOKENIZERS_PARALLELISM": "false"}


@pytest.mark.parametrize("value", ["true", "1", "yes", "flase", True, 1, None, ["false"]])
def test_any_other_value_of_tokenizers_parallelism_stops_the_run(value: Any) -> None:
    with pytest.raises(
        InvalidDesired, match=r"runtime_env_variables.*TOKENIZERS_PARALLELISM must be \"false\".*deadlocks"
    ):
        parse(variables(TOKENIZERS_PARALLELISM=value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0000:01:00.0", "0000:01:00.0"),
        ("00000000:0A:00.0", "0000:0a:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("0001:c1:00.1", "0001:c1:00.1"),
        ("1:0.0", None),
        ("0000:01:00.8", None),
    ],
)
def test_pci_addresses_are_written_as_sysfs_does(text: str, expected: str | None) -> None:
    assert normal_pci_address(text) == expected


@pytest.mark.parametrize("word", ["true", "yes", "on", "1", True])
def test_a_switch_given_on_the_command_line_is_a_switch(word: Any) -> None:
    assert parse({"driver": {"reboot_allowed": word}}).driver.reboot_allowed is True


@pytest.mark.parametrize(
    ("desired", "message"),
    [
        ([], "the desired state must be a mapping, not a list"),
        ("x", "must be a mapping"),
        ({"drivers": {}}, "no 'drivers'; did you mean driver"),
        ({"driver": {"branc": 1}}, "driver: there is no 'branc'; did you mean branch"),
        ({"driver": []}, "driver must be a mapping"),
        ({"driver": {"branch": "58O"}}, "nvidia_driver_branch .*must be auto or the number of a branch"),
        ({"driver": {"branch": "580; reboot"}}, "nvidia_driver_branch"),
        ({"driver": {"branch": ["580"]}}, "nvidia_driver_branch .*must be a string"),
        ({"driver": {"branch": True}}, "nvidia_driver_branch .*must be a string"),
        (
            {"driver": {"branch_preferred": "auto"}},
            "nvidia_driver_branch_preferred .*must be empty or the number of a branch",
        ),
        (
            {"driver": {"branch_preferred": "595", "branch": "580"}},
            "asks for 580 on every host .*leave one of them out",
        ),
        ({"driver": {"accept_missing_gpus": "perhaps"}}, "nvidia_driver_accept_missing_gpus .*true or false"),
        ({"driver": {"minimum": "newest"}}, "nvidia_driver_minimum"),
        ({"driver": {"flavor": "opne"}}, "nvidia_driver_flavor .*must be one of auto, open, proprietary; it is 'opne'"),
        ({"driver": {"source": "debian"}}, "nvidia_driver_source"),
        ({"driver": {"state": "latest"}}, "nvidia_driver_state"),
        ({"driver": {"package_set": "all"}}, "nvidia_driver_package_set"),
        ({"driver": {"reboot_allowed": "maybe"}}, "nvidia_driver_reboot_allowed .*true or false"),
        ({"driver": {"gpus_exclude": "0000:01:00.0"}}, "nvidia_driver_gpus_exclude .*must be a list"),
        ({"driver": {"gpus_exclude": ["gpu0"]}}, "nvidia_driver_gpus_exclude .*PCI addresses"),
        ({"driver": {"repository_url": "http://x y"}}, "nvidia_driver_repository_url"),
        ({"driver": {"repository_url": "http://x\nDeb: y"}}, "nvidia_driver_repository_url"),
        ({"driver": {"repository_key": "not a key"}}, "nvidia_driver_repository_key"),
        ({"torch": {"version": "latest"}}, "torch_env_version"),
        ({"torch": {"version": "2.9.1; import os"}}, "torch_env_version"),
        ({"torch": {"version": 2.9}}, "torch_env_version .*must be a string"),
        ({"torch": {"cuda": "12.8"}}, "torch_env_cuda"),
        ({"torch": {"cuda": "$(id)"}}, "torch_env_cuda"),
        ({"torch": {"version": "2.9.1+cu126", "cuda": "cu128"}}, "asks for cu126 and torch_env_cuda .* for cu128"),
        ({"torch": {"index_url": "https://x/cu126", "cuda": "cu128"}}, "index of cu126, but cu128"),
        ({"torch": {"index_url": "ftp://x"}}, "torch_env_index_url .*http, https or file"),
        ({"torch": {"index_base_url": "https://x/'"}}, "torch_env_index_base_url"),
        ({"python": 3.1}, "torch_env_python .*must be a string"),
        ({"python": "python3"}, "torch_env_python"),
        ({"python": "2.7"}, "torch_env_python"),
        ({"package_index_url": "pypi"}, "torch_env_package_index_url"),
        ({"mirror": {"index_base_url": "mirror/whl"}}, "torch_env_mirror_index_base_url .*http, https or file"),
        ({"mirror": {"url": "https://m"}}, "there is no 'url'"),
        (
            {"torch": {"index_base_url": "https://m/whl"}, "mirror": {"index_base_url": "https://m/whl/"}},
            "torch_env_mirror_index_base_url .*and torch_env_index_base_url name the same place",
        ),
        (
            {"package_index_url": "https://m/simple", "mirror": {"package_index_url": "https://m/simple"}},
            "torch_env_mirror_package_index_url .*and torch_env_package_index_url name the same place",
        ),
        ({"keep": 1}, "torch_env_keep .*at least 2"),
        ({"keep": "many"}, "torch_env_keep"),
        ({"root": "envs"}, "torch_env_root .*absolute"),
        ({"root": "/"}, "torch_env_root"),
        ({"root": "/opt"}, "torch_env_root"),
        ({"root": "/opt/../etc"}, "torch_env_root"),
        ({"root": "/opt/./envs"}, "torch_env_root"),
        ({"root": "/usr/lib/envs"}, "torch_env_root .*of its own"),
        ({"root": "/etc/envs"}, "torch_env_root .*of its own"),
        ({"root": "/proc/1/root"}, "torch_env_root"),
        ({"root": "/opt/a b"}, "torch_env_root"),
        ({"root": "/opt/$(reboot)"}, "torch_env_root"),
        ({"environments": "base"}, "torch_env_environments .*must be a list"),
        ({"environments": ["base"]}, r"environments\[0\].*must be a mapping"),
        ({"environments": [{}]}, "torch_env_environments .*name"),
        ({"environments": [{"name": "a"}, {"name": "a"}]}, "two environments named a"),
        ({"environments": [{"name": "../a"}]}, "torch_env_environments"),
        ({"environments": [{"name": "A"}]}, "torch_env_environments"),
        ({"environments": [{"name": ".cache"}]}, "torch_env_environments"),
        ({"environments": [{"name": "a" * 64}]}, "at most 63"),
        ({"environments": [{"name": "a;reboot"}]}, "torch_env_environments"),
        ({"environments": [{"name": "a\n"}, {"name": "a"}]}, "two environments"),
        (environment(versoin="2"), "there is no .versoin.; known are name"),
        (environment(requirements="numpy"), "must be a list"),
        (environment(requirements=[1]), "list of strings"),
        (environment(requirements=["--index-url http://evil.example"]), "neither options"),
        (environment(requirements=["-r x"]), "neither options"),
        (environment(requirements=["numpy\n--pre"]), "neither options"),
        (environment(requirements=["x @ https://evil.example/x.whl"]), "nor URLs"),
        (environment(requirements=["./x"]), "nor paths"),
        (environment(requirements=[""]), "may hold names"),
        (environment(requirements=["torch==2.0"]), "torch has one version that fits"),
        (environment(requirements=["Torch_Audio"], companions=[]), None),
        (environment(requirements=["torchvision"]), "torchvision has one version"),
        (environment(companions=["torchtext"]), "torchvision and torchaudio, not 'torchtext'"),
        (environment(owner="a b"), "name of an account"),
        (environment(group="x:y"), "name of a group"),
        ({"runtime": {"variables": ["A=1"]}}, "must be a mapping of names"),
        (variables(**{"A B": "1"}), "no name of a variable"),
        (variables(**{"1A": "1"}), "no name of a variable"),
        (variables(**{"A;reboot": "1"}), "no name of a variable"),
        (variables(A="x\ny"), "runtime_env_variables .*value of A"),
        (variables(A="$(id)"), "value of A"),
        (variables(A='"'), "value of A"),
        (variables(A="a'b"), "value of A"),
        (variables(A="`id`"), "value of A"),
        (variables(A="50%"), "value of A"),
        (variables(A="back\\slash"), "value of A"),
        (variables(A="nul\0"), "value of A"),
        (variables(A="a#b"), "value of A"),
        (variables(A=" a"), "value of A"),
        (variables(A=""), "value of A"),
        (variables(A=True), "string in quotes"),
        (variables(A=["x"]), "string in quotes"),
        (variables(A=3.1), "string in quotes"),
        ({"proof": {"level": "paranoid"}}, "gpu_proof_level .*static, quick"),
        ({"proof": {"time_limit": -1}}, "gpu_proof_time_limit"),
        ({"proof": {"max_age": -1}}, "gpu_proof_max_age"),
        ({"proof": {"max_age": 1.5}}, "gpu_proof_max_age"),
        ({"steps": ["drive"]}, "steps may hold"),
        ({"steps": "driver"}, "steps must be a list"),
    ],
)
def test_what_no_host_could_have_stops_the_run_and_names_the_variable(desired: Any, message: str | None) -> None:
    if message is None:
        assert parse(desired).environments
        return
    with pytest.raises(InvalidDesired, match=message):
        parse(desired)


def test_a_message_is_short_whatever_was_given() -> None:
    with pytest.raises(InvalidDesired) as caught:
        parse({"root": "x" * 100000})
    assert len(str(caught.value)) < 400


def test_steps_come_in_their_order() -> None:
    assert parse({"steps": ["runtime", "driver"]}).steps == ("driver", "runtime")
