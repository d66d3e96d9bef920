# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter: plain types in, a plan out, people's errors as errors of the template."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleTemplatePluginError
from ansible.template import trust_as_template
from ansible_collections.gpufleet.workstation.plugins.filter import resolve_stack as plugin
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import parse
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve

HOST = {"os": {"id": "debian", "version_id": "13", "arch": "x86_64"}, "gpus": [{"pci_device_id": "2f04"}]}
resolve_stack = plugin.FilterModule().filters()["resolve_stack"]


def test_the_filter_is_the_resolver() -> None:
    wanted = {"torch": {"version": "2.7.0+cu128"}}
    assert resolve_stack(HOST) == resolve(HOST)
    assert resolve_stack(HOST, wanted) == resolve(HOST, wanted)


class Lazy(dict):  # type: ignore[type-arg]
    """A container whose items are templated on access, as Ansible's are."""

    def items(self) -> Any:
        return [(key, "2f04" if value == "{{ device }}" else value) for key, value in super().items()]


def plain_types(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and plain_types(item) for key, item in value.items())
    if isinstance(value, list):
        return type(value) is list and all(map(plain_types, value))
    return type(value) in (str, int, bool, type(None))


def test_tagged_and_lazy_values_of_a_template_become_plain() -> None:
    tagged = {trust_as_template("os"): {"id": trust_as_template("debian"), "version_id": trust_as_template("13")}}
    assert type(tagged[trust_as_template("os")]["id"]) is not str
    plan = resolve_stack(
        {**tagged, "gpus": [Lazy(pci_device_id="{{ device }}")]}, {"driver": {"branch": trust_as_template("595")}}
    )
    assert plan["gpus"][0]["name"] == "GeForce RTX 5070"
    assert plan["driver"]["branch"] == 595
    assert plain_types(plan)


@pytest.mark.parametrize(
    ("observation", "desired", "message"),
    [
        ([], {}, "a mapping with os and gpus, not list"),
        ("debian", {}, "not str"),
        (HOST, {"root": "/etc/x"}, r"torch_env_root \(root\)"),
        (HOST, ["x"], "must be a mapping"),
    ],
)
def test_input_that_no_host_could_have_is_an_error_of_the_template(
    observation: Any, desired: Any, message: str
) -> None:
    with pytest.raises(AnsibleTemplatePluginError, match=message):
        resolve_stack(observation, desired)


def test_the_input_is_left_as_it_is() -> None:
    before = copy.deepcopy(HOST)
    resolve_stack(HOST)
    assert before == HOST


def test_every_documented_default_is_the_real_one() -> None:
    options = yaml.safe_load(plugin.DOCUMENTATION)["options"]["desired"]["suboptions"]
    documented: dict[str, Any] = {}
    for name, option in options.items():
        if "suboptions" in option and option["type"] == "dict":
            documented[name] = {key: inner["default"] for key, inner in option["suboptions"].items()}
        else:
            documented[name] = option["default"]
    assert parse(documented) == parse({})
    (environment,) = documented["environments"]
    inner = options["environments"]["suboptions"]
    environment.update({key: option["default"] for key, option in inner.items() if "default" in option})
    assert parse(documented) == parse({})


def test_the_plan_has_the_documented_keys() -> None:
    documented = yaml.safe_load(plugin.RETURN)["_value"]["contains"]
    assert list(resolve_stack(HOST)) == list(documented)


def test_the_examples_say_what_the_filter_answers() -> None:
    first, second, third = yaml.safe_load(plugin.EXAMPLES)
    assert resolve_stack(first["vars"]["host"])["feasible"]
    (refusal,) = resolve_stack(second["vars"]["host"], second["vars"]["wanted"])["refusals"]
    assert "2.7.0+cu128" in refusal["remedy"]
    wanted = {"torch": {"version": "2.16.0"}, "knowledge": third["vars"]["gpufleet_knowledge"]}
    newer = resolve_stack(third["vars"]["host"], wanted)
    assert (newer["torch"]["build"], newer["gpus"][0]["runs_on"]) == ("2.16.0+cu132", "sm_120")
