"""Every value is checked for every host before anything changes; the message names the variable."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleError
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.variables import (
    ROLES,
    STEPS,
    InvalidVariables,
    argument_spec,
    desired_state,
    wanted_steps,
)


def desired(**variables):
    return desired_state(variables, lambda value: value, list(STEPS))


def test_defaults_come_from_the_roles_alone():
    state = desired()
    assert state["driver"]["branch"] == "auto"
    assert state["torch"]["version"] == "2.9.1"
    assert state["runtime"]["variables"] == {"TOKENIZERS_PARALLELISM": "false"}
    assert [environment["name"] for environment in state["environments"]] == ["base"]
    assert state["steps"] == list(STEPS)


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_of_a_role_carries_its_name(role):
    assert argument_spec(role)
    assert all(name.startswith(f"{role}_") for name in argument_spec(role))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch_env_environments", "base"),
        ("torch_env_environments", [{"name": "a", "colour": "red"}]),
        ("torch_env_environments", [{}]),
        ("torch_env_keep", "many"),
        ("nvidia_driver_flavor", "closed"),
        ("nvidia_driver_reboot_allowed", "perhaps"),
        ("nvidia_driver_gpus_exclude", {"a": 1}),
        ("runtime_env_variables", "TOKENIZERS_PARALLELISM"),
        ("gpu_proof_level", "fast"),
        ("gpu_proof_time_limit", "soon"),
    ],
)
def test_wrong_value_is_refused_and_named(name, value):
    with pytest.raises(InvalidVariables) as error:
        desired(**{name: value})
    assert name in str(error.value) or "colour" in str(error.value) or "name" in str(error.value)


def test_text_from_the_command_line_becomes_the_declared_type():
    assert desired(nvidia_driver_reboot_allowed="true")["driver"]["reboot_allowed"] is True
    assert desired(torch_env_keep="3")["keep"] == 3
    assert desired(nvidia_driver_branch=580)["driver"]["branch"] == "580"


def test_misspelt_variable_is_refused_with_the_nearest():
    with pytest.raises(InvalidVariables, match="did you mean torch_env_version"):
        desired(torch_env_verison="2.9.1")


def test_unrelated_variable_with_the_same_prefix_is_left_alone():
    assert desired(torch_env_site_of_our_wiki="x")["torch"]["version"] == "2.9.1"


def test_all_problems_are_said_at_once():
    with pytest.raises(InvalidVariables) as error:
        desired(nvidia_driver_flavor="closed", gpu_proof_level="fast")
    assert "nvidia_driver_flavor" in str(error.value)
    assert "gpu_proof_level" in str(error.value)


def test_environment_inherits_owner_and_keeps_its_own():
    state = desired(torch_env_owner="ada", torch_env_environments=[{"name": "a"}, {"name": "b", "owner": "bob"}])
    assert [environment["owner"] for environment in state["environments"]] == ["ada", "bob"]


class TestMerging:
    """A group adds environments without repeating those of others."""

    def names(self, **variables):
        return [environment["name"] for environment in desired(**variables)["environments"]]

    def test_every_variable_with_the_prefix_adds_its_environments(self):
        more = {
            "torch_env_environments_vision": [{"name": "seeing"}],
            "torch_env_environments_audio": [{"name": "hearing"}],
        }
        assert self.names(**more) == ["base", "hearing", "seeing"]
        assert self.names(torch_env_environments=[{"name": "main"}], **more) == ["main", "hearing", "seeing"]
        assert self.names(torch_env_environments=[], **more) == ["hearing", "seeing"]

    def test_what_several_say_of_one_environment_comes_together(self):
        state = desired(
            torch_env_owner="ann",
            torch_env_environments=[{"name": "base", "python": "3.12"}],
            torch_env_environments_a=[{"name": "base", "requirements": ["numpy"]}],
            torch_env_environments_b=[{"name": "base", "python": "3.12", "owner": "bob"}],
        )
        expected = {"name": "base", "python": "3.12", "requirements": ["numpy"], "owner": "bob", "group": "root"}
        assert state["environments"] == [expected]

    def test_disagreement_names_both_variables_and_values(self):
        with pytest.raises(InvalidVariables) as error:
            desired(
                torch_env_environments_a=[{"name": "x", "torch": "2.9.1"}],
                torch_env_environments_b=[{"name": "x", "torch": "2.9.0"}],
            )
        for word in (
            "torch_env_environments_a",
            "torch_env_environments_b",
            "torch of the environment x",
            "2.9.1",
            "2.9.0",
        ):
            assert word in str(error.value)

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("text", "torch_env_environments_x"),
            ([{"name": "a", "colour": "red"}], "colour"),
            ([{"python": "3.12"}], "torch_env_environments_x"),
            ([{"name": "a", "python": 3.10}], r"torch_env_environments_x\[0\].python is the fraction"),
            ([{"name": "a"}, {"name": "a"}], "torch_env_environments_x: there are two environments named a"),
        ],
    )
    def test_each_variable_is_checked_like_the_role_s_own(self, value, words):
        with pytest.raises(InvalidVariables, match=words):
            desired(torch_env_environments_x=value)

    def test_a_misspelt_prefix_is_noticed(self):
        with pytest.raises(InvalidVariables, match="did you mean torch_env_environments"):
            desired(torch_env_enviroments_x=[{"name": "a"}])


class TestOneEnvironmentAlone:
    there = ({"name": "base"}, {"name": "vision"})

    @pytest.mark.parametrize(
        ("asked", "names"), [("vision", ["vision"]), (["vision"], ["vision"]), ("vision, base", ["base", "vision"])]
    )
    def test_only_what_is_named_is_wanted_and_the_driver_is_left_alone(self, asked, names):
        state = desired(torch_env_environments=list(self.there), gpufleet_env=asked)
        assert [environment["name"] for environment in state["environments"]] == names
        assert state["environments_alone"] is True
        assert state["steps"] == ["torch", "runtime", "proof"]

    def test_without_a_name_everything_is_wanted(self):
        state = desired(torch_env_environments=list(self.there))
        assert (len(state["environments"]), state["environments_alone"], state["steps"]) == (2, False, list(STEPS))

    def test_a_group_s_environment_can_be_named(self):
        state = desired(torch_env_environments_x=[{"name": "team"}], gpufleet_env="team")
        assert [environment["name"] for environment in state["environments"]] == ["team"]

    def test_an_unknown_name_is_refused_with_those_that_are_there(self):
        with pytest.raises(InvalidVariables, match=r"no environment 'visoin'; it has base, vision.*--limit"):
            desired(torch_env_environments=list(self.there), gpufleet_env="visoin")

    def test_an_empty_name_is_not_everything(self):
        with pytest.raises(InvalidVariables, match="no environment ''; it has base"):
            desired(gpufleet_env="")

    def test_a_run_that_would_touch_everything_refuses_the_name_instead_of_ignoring_it(self):
        with pytest.raises(InvalidVariables, match="gpufleet_env"):
            desired_state({"gpufleet_env": "base"}, lambda value: value, [])


def test_key_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InvalidVariables, match="nvidia_driver_repository_key"):
        desired(nvidia_driver_repository_key=str(tmp_path / "absent.asc"))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"torch_env_python": 3.10}, "torch_env_python is the fraction 3.1: put a version in quotes"),
        ({"nvidia_driver_minimum": 570.10}, "nvidia_driver_minimum is the fraction 570.1"),
        (
            {"torch_env_environments": [{"name": "base", "python": 3.10}]},
            r"torch_env_environments\[0\].python is the fraction 3.1",
        ),
        ({"gpufleet_max_failed": "10%"}, "gpufleet_max_failed"),
        ({"gpufleet_max_failed": -1}, "gpufleet_max_failed is negative"),
        ({"gpufleet_batches": '[1, "50%"]'}, "gpufleet_batches"),
        ({"gpufleet_batches": [1, "half"]}, "gpufleet_batches"),
        ({"gpufleet_confirm": "ja"}, "gpufleet_confirm"),
        ({"gpufleet_remove": "doch"}, "gpufleet_remove"),
        ({"gpufleet_to": "last"}, "gpufleet_to"),
        ({"gpufleet_to": 0}, "gpufleet_to is the number of a generation"),
        ({"gpufleet_prxy": {}}, "gpufleet_prxy is not a variable of the playbooks; did you mean gpufleet_proxy"),
        ({"gpufleet_proxy": "http://proxy.example:3128"}, "gpufleet_proxy"),
        (
            {"gpufleet_proxy": {"htps": "http://proxy.example"}},
            "gpufleet_proxy has no 'htps'; its keys are http, https, no_proxy, ca_file",
        ),
        ({"gpufleet_proxy": {"http": "proxy.example:3128"}}, "gpufleet_proxy.http must be the URL of a proxy"),
        (
            {"gpufleet_proxy": {"https": 'http://ann:a"b@proxy.example'}},
            "gpufleet_proxy.https must be the URL of a proxy",
        ),
        ({"gpufleet_proxy": {"no_proxy": "a, b"}}, "gpufleet_proxy.no_proxy must be names with commas"),
        ({"gpufleet_proxy": {"ca_file": "ca.pem"}}, "gpufleet_proxy.ca_file must be the absolute path"),
        ({"nvidia_driver_keep": 0}, "nvidia_driver_keep is 0; it must be at least 1"),
        ({"nvidia_driver_reboot_notice": -1}, "nvidia_driver_reboot_notice is -1; it must be at least 0"),
        ({"nvidia_driver_drain_command": ["scontrol", ""]}, "nvidia_driver_drain_command has an empty word"),
        ({"nvidia_driver_mok_password": "geheim und lang"}, "nvidia_driver_mok_password must be 1 to 256 plain ASCII"),
    ],
)
def test_what_would_be_misread_in_silence_is_refused(variables, words):
    with pytest.raises(InvalidVariables, match=words):
        desired(**variables)


@pytest.mark.parametrize(("password", "good"), [("s3cret!", True), ("geheim und lang", False)])
def test_a_password_is_neither_repeated_nor_handed_to_the_planner(password, good):
    if good:
        driver = desired(nvidia_driver_mok_password=password)["driver"]
        assert driver["mok_password_set"] is True
        assert password not in str(driver)
    else:
        with pytest.raises(InvalidVariables) as error:
            desired(nvidia_driver_mok_password=password, gpufleet_proxy={"http": "http://ann:hush hush@proxy"})
        assert "geheim" not in str(error.value)
        assert "hush" not in str(error.value)
    assert desired()["driver"]["mok_password_set"] is False


def test_a_proxy_with_a_password_and_a_ca_of_its_own_is_fine():
    proxy = {
        "http": "http://ann:p%22w@proxy.example:3128/",
        "https": "",
        "no_proxy": ".example.org,10.0.0.1",
        "ca_file": "/etc/ca.pem",
    }
    assert desired(gpufleet_proxy=proxy, gpufleet_to="2", gpufleet_host="of the playbook")


def test_strings_of_the_command_line_are_read_as_what_they_mean():
    assert (
        desired(gpufleet_batches="50%", gpufleet_max_failed="3", gpufleet_confirm="true", torch_env_keep="3")["keep"]
        == 3
    )


def test_variable_that_cannot_be_templated_is_named():
    def template(_value):
        raise AnsibleError("'nothing' is undefined")

    with pytest.raises(InvalidVariables, match="torch_env_root cannot be templated: 'nothing' is undefined"):
        desired_state({"torch_env_root": "{{ nothing }}"}, template, [])


@pytest.mark.parametrize(
    ("run", "skip", "asked", "steps"),
    [
        (["all"], [], None, ["driver", "torch", "runtime", "proof"]),
        ([], [], None, ["driver", "torch", "runtime", "proof"]),
        (["torch"], [], None, ["torch"]),
        (["torch", "runtime"], [], None, ["torch", "runtime"]),
        (["all"], ["driver"], None, ["torch", "runtime", "proof"]),
        (["all"], [], ["runtime", "driver"], ["driver", "runtime"]),
        (["all"], [], [], []),
    ],
)
def test_tags_decide_what_may_be_planned(run, skip, asked, steps):
    assert wanted_steps(run, skip, asked) == steps


def test_unknown_step_is_refused():
    with pytest.raises(InvalidVariables, match="drivers"):
        wanted_steps(["all"], [], ["drivers"])


def test_rows_for_the_knowledge_base_are_part_of_the_desired_state():
    rows = {"torch": {"2.16.0": {"source": "https://example.org"}}}
    assert desired(gpufleet_knowledge=rows)["knowledge"] == rows
    assert desired()["knowledge"] is None
    with pytest.raises(InvalidVariables, match="gpufleet_knowledge"):
        desired(gpufleet_knowledge=[1])
    with pytest.raises(InvalidVariables, match="did you mean gpufleet_knowledge"):
        desired(gpufleet_knowlege=rows)


def test_what_gates_a_switch_reaches_the_desired_state():
    state = desired(
        torch_env_smoke=["python", "-c", "import mine"],
        torch_env_switch_after="quick",
        torch_env_environments=[{"name": "a", "smoke": ["true"], "switch_after": "static"}, {"name": "b"}],
        gpufleet_integrity="hashes",
    )
    assert (state["smoke"], state["switch_after"], state["integrity"]) == (
        ["python", "-c", "import mine"],
        "quick",
        "hashes",
    )
    first, second = state["environments"]
    assert (first["smoke"], first["switch_after"]) == (["true"], "static")
    assert "smoke" not in second
    assert desired()["integrity"] == "sizes"


@pytest.mark.parametrize(
    "variables",
    [
        {"torch_env_smoke": "python -c 'import mine'"},
        {"torch_env_environments": [{"name": "a", "smoke": "python -c 'import mine'"}]},
    ],
)
def test_a_smoke_command_in_one_text_is_refused_because_it_would_be_split_at_commas(variables):
    with pytest.raises(InvalidVariables, match="smoke is text: it must be a list, a program and its arguments"):
        desired(**variables)
