# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every role promises: declared variables, equal defaults, prefixed names, a licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.playbook.block import Block
from ansible.playbook.task import Task
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof.judge import LEVELS

ROLES = sorted(path.parent.parent for path in Path(__file__).parents[2].glob("roles/*/meta/main.yml"))
UNPLANNED = {"wheel_mirror"}
"""Roles that serve the fleet and need no plan of their host."""
each_role = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: Path) -> dict[str, dict[str, Any]]:
    return load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]


def leaves(role: Path, option: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return an option and everything nested in it, with dotted names."""
    found = [(name, option)]
    for inner, spec in option.get("options", {}).items():
        found += leaves(role, spec, f"{name}.{inner}")
    return found


def tasks_of(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all tasks of a file, those in blocks included."""
    found = []
    for entry in entries:
        found.append(entry)
        for section in ("block", "rescue", "always"):
            found += tasks_of(entry.get(section, []))
    return found


def all_tasks(role: Path) -> list[tuple[Path, dict[str, Any]]]:
    files = sorted((role / "tasks").rglob("*.yml"))
    assert files, f"{role.name} has no tasks"
    return [(path, task) for path in files for task in tasks_of(load(path) or [])]


def test_there_are_roles_to_check() -> None:
    assert {"nvidia_driver", "runtime_env"} <= {role.name for role in ROLES}


@each_role
def test_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    declared = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert load(role / "defaults" / "main.yml") == declared


@each_role
def test_every_variable_is_typed_described_and_prefixed(role: Path) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role.name}_")
        for dotted, leaf in leaves(role, option, name):
            assert leaf.get("type"), f"{dotted} has no type"
            assert leaf.get("description"), f"{dotted} has no description"
            if leaf["type"] == "list":
                assert leaf.get("elements"), f"{dotted} does not say what it is a list of"


@each_role
def test_a_default_is_one_of_the_choices(role: Path) -> None:
    for name, option in options(role).items():
        for dotted, leaf in leaves(role, option, name):
            if "choices" in leaf and "default" in leaf:
                values = leaf["default"] if leaf["type"] == "list" else [leaf["default"]]
                assert set(values) <= set(leaf["choices"]), dotted


@pytest.mark.parametrize("role", [role for role in ROLES if role.name not in UNPLANNED], ids=lambda role: role.name)
def test_a_plan_can_be_handed_in_and_is_optional(role: Path) -> None:
    plan = options(role)[f"{role.name}_plan"]
    assert plan["type"] == "dict"
    assert "default" not in plan
    assert not plan.get("required", False)


@each_role
def test_metadata_names_the_licence_and_the_oldest_ansible(role: Path) -> None:
    info = load(role / "meta" / "main.yml")["galaxy_info"]
    assert info["license"] == "GPL-3.0-or-later"
    assert info["min_ansible_version"] == "2.19"
    assert info["description"].endswith(".")


@each_role
def test_registers_and_facts_carry_the_roles_prefix(role: Path) -> None:
    for path, task in all_tasks(role):
        names = [task["register"]] if "register" in task else []
        names += [name for name in task.get("ansible.builtin.set_fact", {}) if name != "cacheable"]
        names += list(task.get("vars", {}))
        for name in names:
            internal = name.startswith(f"__{role.name}_")
            assert internal or name.startswith(f"{role.name}_"), f"{path.name}: {name} lacks the prefix __{role.name}_"


@each_role
def test_internal_variables_carry_the_roles_prefix(role: Path) -> None:
    path = role / "vars" / "main.yml"
    for name in load(path) if path.exists() else {}:
        assert name.startswith(f"__{role.name}_"), name


@each_role
def test_every_task_has_a_name_and_a_fully_qualified_module(role: Path) -> None:
    keywords = {*Block.fattributes, *Task.fattributes}
    for path, task in all_tasks(role):
        assert task.get("name"), f"{path}: a task without a name"
        modules = [key for key in task if key not in keywords]
        assert "block" in task or len(modules) == 1, f"{path}: {task['name']}: {modules}"
        for module in modules:
            assert module.startswith(("ansible.builtin.", "gpufleet.workstation.")), f"{path}: {module}"


@each_role
def test_without_an_action_no_task_reaches_the_host(role: Path) -> None:
    """Every entry of a role is bound to a condition or a loop over actions, so that a converged host costs nothing.

    What a proof comes to is put together in every run, on the controller.
    """
    unbound = [entry for entry in load(role / "tasks" / "main.yml") if not (entry.get("when") or entry.get("loop"))]
    due = ["ansible.builtin.set_fact"] if role.name == "gpu_proof" else []
    assert [key for entry in unbound for key in entry if key.startswith(("gpufleet.", "ansible."))] == due


def test_the_levels_of_a_proof_are_those_of_the_proof_in_its_order() -> None:
    role = next(role for role in ROLES if role.name == "gpu_proof")
    for name in ("gpu_proof_level", "gpu_proof_required_level"):
        assert options(role)[name]["choices"] == list(LEVELS)
    assert load(role / "vars" / "main.yml")["__gpu_proof_levels"] == list(LEVELS)
