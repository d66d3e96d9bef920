# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the flat role variables of one host to its desired state.

PRIVATE to the collection. The roles' meta/argument_specs.yml are the only place where variables, types and defaults are
declared; this reads them, so that every value of every host can be checked before anything changes anywhere.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load

ROLES = ("nvidia_driver", "torch_env", "runtime_env", "gpu_proof")
STEPS = ("driver", "torch", "runtime", "proof")
"""What a run may do, in order. Each is a tag of the playbook as well."""

_PLAYBOOK_SPEC: dict[str, Any] = {
    "gpufleet_batches": {"type": "raw"},
    "gpufleet_max_failed": {"type": "int"},
    "gpufleet_confirm": {"type": "bool"},
    "gpufleet_remove": {"type": "bool"},
    "gpufleet_prove": {"type": "bool"},
    "gpufleet_to": {"type": "int"},
    "gpufleet_env": {"type": "list", "elements": "str"},
    "gpufleet_proxy": {"type": "dict"},
    "gpufleet_knowledge": {"type": "dict"},
    "gpufleet_integrity": {"type": "str", "choices": ["sizes", "hashes"]},
}
"""Variables of the playbooks that would otherwise be misread in silence: Jinja's int makes 0 of "10%", its bool False of "ja"."""

_PLAYBOOK_NAMES = (*_PLAYBOOK_SPEC, "gpufleet_hosts", "gpufleet_note", "gpufleet_steps")
"""What a user may set; the playbooks have more of the prefix for themselves."""
_PROXY_KEYS = ("http", "https", "no_proxy", "ca_file")
_PROXY_URL = re.compile(r"https?://[^\s/\"';]+/?")
_ENVIRONMENTS = "torch_env_environments"
"""With an underscore and a word of the user's appended, the same once more, so that every group can have its own."""
_MOK_PASSWORD = re.compile(r"[!-~]{1,256}")

_COLLECTION_PATH = Path(__file__).resolve().parents[2]


class InvalidVariables(ValueError):
    """A variable of this host is misspelt, of the wrong type or not an allowed value."""


@functools.cache
def argument_spec(role: str) -> dict[str, Any]:
    """Return the options of a role's entry point ``main``, without its internal ``<role>_plan``."""
    text = (_COLLECTION_PATH / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    options = yaml_load(text)["argument_specs"]["main"].get("options", {})
    return {name: _spec(option) for name, option in options.items() if name != f"{role}_plan"}


@functools.cache
def _used_names() -> frozenset[str]:
    """Return every name with the prefix gpufleet_ that the playbooks and roles use, for themselves too."""
    files = (path for folder in ("playbooks", "roles") for path in (_COLLECTION_PATH / folder).rglob("*.yml"))
    found = (re.findall(r"\bgpufleet_\w+", path.read_text(encoding="utf-8")) for path in files)
    return frozenset({*_PLAYBOOK_NAMES, *(name for names in found for name in names)})


@functools.cache
def _spec_text(role: str) -> str:
    return json.dumps(argument_spec(role))


def _spec(option: dict[str, Any]) -> dict[str, Any]:
    spec = {key: value for key, value in option.items() if key not in ("description", "version_added", "options")}
    if "options" in option:
        spec["options"] = {name: _spec(inner) for name, inner in option["options"].items()}
    return spec


def check_and_complete(role: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all variables of ``role``: the given ones, type-checked, and the defaults of the others.

    Raises InvalidVariables with every problem that was found.
    """
    spec = json.loads(_spec_text(role))  # a copy: the validator fills in defaults of defaults, in place
    result = ArgumentSpecValidator(spec).validate({name: given[name] for name in spec if name in given})
    if result.error_messages:
        raise InvalidVariables("; ".join(result.error_messages))
    return result.validated_parameters


def misspelt(names: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each variable that carries a role's prefix and is almost one of its variables."""
    problems = []
    for role in (*ROLES, "gpu_compliance"):
        known = [*argument_spec(role), f"{role}_plan"]
        for name in names:
            if not name.startswith(f"{role}_") or name in known or name.startswith(f"{_ENVIRONMENTS}_"):
                continue
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if nearest:
                problems.append(f"{name} is not a variable of the role {role}; did you mean {nearest[0]}?")
    public = {name.partition("_")[2]: name for name in _PLAYBOOK_NAMES}
    for name in names:
        prefix, _underscore, rest = name.partition("_")
        if prefix == "gpufleet" and name not in _used_names():
            nearest = difflib.get_close_matches(rest, public, n=1, cutoff=0.8)
            if nearest:
                problems.append(f"{name} is not a variable of the playbooks; did you mean {public[nearest[0]]}?")
    return problems


def desired_state(variables: Mapping[str, Any], template: Callable[[Any], Any], steps: list[str]) -> dict[str, Any]:
    """Compose the desired state (docs/architecture.md) of one host from its Ansible variables.

    ``template`` resolves a raw variable. Raises InvalidVariables.
    """
    problems = misspelt(variables)
    values: dict[str, Any] = {}
    for role in ROLES:
        try:
            given = _templated(argument_spec(role), variables, template)
            problems += [text for name, value in given.items() for text in _ambiguous(name, value)]
            values.update(check_and_complete(role, given))
        except InvalidVariables as error:
            problems.append(str(error))
    try:
        playbook = _check_playbook(_templated(_PLAYBOOK_SPEC, variables, template))
    except InvalidVariables as error:
        problems.append(str(error))
        playbook = {}
    problems += _driver_problems(values)
    environments: list[dict[str, Any]] = []
    try:
        environments = _merged(_environment_lists(variables, template, values.get(_ENVIRONMENTS)))
    except InvalidVariables as error:
        problems.append(str(error))
    if problems:
        raise InvalidVariables("; ".join(problems))
    alone = [name.strip() for name in playbook.get("gpufleet_env") or []]
    if alone:
        environments = _chosen(environments, alone, steps)
        steps = [step for step in steps if step != "driver"]
    return {
        "driver": {
            **{key: values[f"nvidia_driver_{key}"] for key in _DRIVER_KEYS},
            "repository_key": _read_key(values["nvidia_driver_repository_key"]),
            # The plan only has to know whether there is one.
            "mok_password_set": bool(values["nvidia_driver_mok_password"]),
            "drains": bool(values["nvidia_driver_drain_command"]),
        },
        "torch": {
            "version": values["torch_env_version"],
            "cuda": values["torch_env_cuda"],
            "index_base_url": values["torch_env_index_base_url"],
        },
        "python": values["torch_env_python"],
        "environments": [_environment(item, values) for item in environments],
        "environments_alone": bool(alone),
        "root": values["torch_env_root"],
        "package_index_url": values["torch_env_package_index_url"],
        "mirror": {key: values[f"torch_env_mirror_{key}"] for key in ("index_base_url", "package_index_url")},
        "keep": values["torch_env_keep"],
        "smoke": values["torch_env_smoke"],
        "switch_after": values["torch_env_switch_after"],
        "integrity": playbook.get("gpufleet_integrity") or "sizes",
        "runtime": {key: values[f"runtime_env_{key}"] for key in ("state", "scope", "variables")},
        "proof": {key: values[f"gpu_proof_{key}"] for key in ("level", "required_level", "time_limit", "max_age")},
        "steps": steps,
        "knowledge": playbook.get("gpufleet_knowledge"),
    }


def _templated(names: Iterable[str], variables: Mapping[str, Any], template: Callable[[Any], Any]) -> dict[str, Any]:
    given = {}
    for name in names:
        if name in variables:
            try:
                given[name] = template(variables[name])
            except AnsibleError as error:
                raise InvalidVariables(f"{name} cannot be templated: {error}") from error
    return given


def _ambiguous(name: str, value: Any) -> list[str]:
    """Say what is no longer what was written: YAML reads 3.10 as the number 3.1, and no variable takes a fraction."""
    if isinstance(value, float):
        return [f"{name} is the fraction {value}: put a version in quotes, because YAML reads 3.10 as 3.1"]
    if name.rpartition(".")[2] in ("torch_env_smoke", "smoke") and isinstance(value, str):
        return [
            f"{name} is text: it must be a list, a program and its arguments, such as [python, -c, 'import mypackage']"
        ]
    if isinstance(value, list):
        rows = [(f"{name}[{n}]", row) for n, row in enumerate(value) if isinstance(row, dict)]
        return [text for where, row in rows for key in row for text in _ambiguous(f"{where}.{key}", row[key])]
    return []


def _check_playbook(given: dict[str, Any]) -> dict[str, Any]:
    """Return the playbooks' variables with their types; raises InvalidVariables."""
    result = ArgumentSpecValidator(copy.deepcopy(_PLAYBOOK_SPEC)).validate(given)
    if result.error_messages:
        raise InvalidVariables("; ".join(result.error_messages))
    if (result.validated_parameters.get("gpufleet_max_failed") or 0) < 0:
        raise InvalidVariables("gpufleet_max_failed is negative; it is the number of hosts that may fail")
    generation = result.validated_parameters.get("gpufleet_to")
    if generation is not None and generation < 1:
        raise InvalidVariables("gpufleet_to is the number of a generation of the host, such as 2")
    _check_proxy(result.validated_parameters.get("gpufleet_proxy") or {})
    batches = given.get("gpufleet_batches", [])
    for batch in batches if isinstance(batches, list) else [batches]:
        if isinstance(batch, bool) or not re.fullmatch(r"[0-9]+%?", str(batch)):
            raise InvalidVariables(
                f"gpufleet_batches is {batches!r}; it is a number of hosts, a share such as 10%, or a list of these, which "
                'on the command line has to be JSON: -e \'{"gpufleet_batches": [1, "10%"]}\''
            )
    return result.validated_parameters


def _check_proxy(proxy: Mapping[str, Any]) -> None:
    """Check the proxy's description; what it says may hold a password and is never repeated."""
    for key, value in proxy.items():
        if key not in _PROXY_KEYS:
            raise InvalidVariables(f"gpufleet_proxy has no {key!r}; its keys are {', '.join(_PROXY_KEYS)}")
        if not isinstance(value, str):
            raise InvalidVariables(f"gpufleet_proxy.{key} must be a string")
        if key in ("http", "https") and value and not _PROXY_URL.fullmatch(value):
            raise InvalidVariables(
                f"gpufleet_proxy.{key} must be the URL of a proxy such as http://proxy.example:3128; quotes, semicolons and slashes in "
                "name or password are written as %22, %3B and %2F"
            )
        if key == "no_proxy" and re.search(r"[\s\"';]", value):
            raise InvalidVariables(
                "gpufleet_proxy.no_proxy must be names with commas between them, such as .example.org,10.0.0.1"
            )
        if key == "ca_file" and value and not value.startswith("/"):
            raise InvalidVariables(
                "gpufleet_proxy.ca_file must be the absolute path of a file of PEM certificates on the host"
            )


def _driver_problems(values: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with values of the driver's role that its argument_specs cannot express."""
    problems = []
    for name, least in (
        ("nvidia_driver_keep", 1),
        ("nvidia_driver_reboot_notice", 0),
        ("nvidia_driver_reboot_timeout", 1),
    ):
        if values.get(name, least) < least:
            problems.append(f"{name} is {values[name]}; it must be at least {least}")
    for name in ("nvidia_driver_drain_command", "nvidia_driver_undrain_command"):
        words = values.get(name) or []
        if not all(words):
            problems.append(
                f"{name} has an empty word; it is a program and its arguments, such as [/usr/local/sbin/drain, now]"
            )
    password = values.get("nvidia_driver_mok_password") or ""
    if password and not _MOK_PASSWORD.fullmatch(password):
        problems.append(
            "nvidia_driver_mok_password must be 1 to 256 plain ASCII characters without spaces: it is typed at the console, on a keyboard "
            "that the firmware takes for a US one"
        )
    return problems


_DRIVER_KEYS = (
    "state",
    "minimum",
    "branch",
    "branch_preferred",
    "flavor",
    "source",
    "package_set",
    "repository_url",
    "reboot_allowed",
    "downgrade_allowed",
    "gpus_exclude",
    "accept_missing_gpus",
)


def _environment_lists(
    variables: Mapping[str, Any], template: Callable[[Any], Any], first: list[dict[str, Any]] | None
) -> dict[str, list[dict[str, Any]]]:
    """Return each variable that lists environments with its checked value; ``first`` is that of the role's own variable."""
    names = sorted(name for name in variables if name.startswith(f"{_ENVIRONMENTS}_"))
    given = _templated(names, variables, template)
    problems = [text for name in names for text in _ambiguous(name, given[name])]
    spec = {name: copy.deepcopy(argument_spec("torch_env")[_ENVIRONMENTS]) for name in names}
    result = ArgumentSpecValidator(spec).validate(given)
    problems += result.error_messages
    if problems:
        raise InvalidVariables("; ".join(problems))
    lists = {_ENVIRONMENTS: first, **{name: result.validated_parameters[name] for name in names}}
    return {name: items or [] for name, items in lists.items()}


def _merged(lists: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the environments of all variables, one of each name. What several say of one of them must be the same."""
    merged: dict[str, dict[str, Any]] = {}
    said_by: dict[tuple[str, str], str] = {}
    for variable, items in lists.items():
        names = [item["name"] for item in items]
        for name in {name for name in names if names.count(name) > 1}:
            raise InvalidVariables(f"{variable}: there are two environments named {name}")
        for item in items:
            known = merged.setdefault(item["name"], {})
            for key, value in item.items():
                if value is None:
                    continue
                if known.setdefault(key, value) != value:
                    raise InvalidVariables(
                        f"{said_by[item['name'], key]} and {variable} disagree about {key} of the environment {item['name']}: "
                        f"{known[key]!r} and {value!r}"
                    )
                said_by.setdefault((item["name"], key), variable)
    return list(merged.values())


def _chosen(environments: list[dict[str, Any]], names: list[str], steps: list[str]) -> list[dict[str, Any]]:
    """Return the environments that gpufleet_env names; raises InvalidVariables for others, and where it would not be obeyed."""
    there = [item["name"] for item in environments]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise InvalidVariables(
            f"gpufleet_env: this host has no environment {', '.join(map(repr, unknown))}; it has {', '.join(there) or 'none'}. "
            "Where only some hosts have it, name these with --limit"
        )
    if "torch" not in steps:
        raise InvalidVariables("gpufleet_env: this run does nothing to single environments; leave it out")
    return [item for item in environments if item["name"] in names]


def _environment(item: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    filled = {key: value for key, value in item.items() if value is not None}
    return {"owner": values["torch_env_owner"], "group": values["torch_env_group"], **filled}


def _read_key(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).expanduser().read_text(encoding="ascii")
    except (OSError, UnicodeError) as error:
        raise InvalidVariables(
            f"nvidia_driver_repository_key: cannot read {path} on the controller as an ASCII-armoured key: {error}"
        ) from error


def wanted_steps(run_tags: list[str], skip_tags: list[str], asked: list[str] | None = None) -> list[str]:
    """Return which of STEPS this run may do, from --tags and --skip-tags, or ``asked`` where a task names them."""
    if asked is not None:
        unknown = sorted(set(asked) - set(STEPS))
        if unknown:
            raise InvalidVariables(f"steps: {', '.join(unknown)} is none of {', '.join(STEPS)}")
        return [step for step in STEPS if step in asked]
    everything = not run_tags or {"all", "tagged", "untagged"} & set(run_tags)
    return [step for step in STEPS if (everything or step in run_tags) and step not in skip_tags]
