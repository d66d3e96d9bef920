# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Environment variables: who gets them, that every file says the same to the program that really reads it, and what is refused."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import runtime
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.breaking import BREAKING, judge
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.desired import parse
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.model import InvalidDesired
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.resolve import resolve
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import files
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import startup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Make = Callable[..., dict[str, Any]]
RTX_5070 = "2f04"


def ids(plan: dict[str, Any], step: str) -> list[str]:
    return [action["id"] for action in plan["actions"] if action["step"] == step]


def wish(scope: str = "host", environments: Any = None, **variables: Any) -> dict[str, Any]:
    desired: dict[str, Any] = {"runtime": {"scope": scope, "variables": variables}}
    return desired if environments is None else {**desired, "environments": environments}


def contents(desired: dict[str, Any]) -> dict[str, str]:
    return {file.path: file.content for file in runtime.runtime_files(parse(desired))}


# ---- who gets them ------------------------------------------------------------------------------------------------------


def test_for_the_environments_alone_nothing_else_is_written() -> None:
    desired = wish("environment", TOKENIZERS_PARALLELISM="false")
    assert list(contents(desired)) == ["/opt/gpufleet/envs/base/runtime.env"]
    assert runtime.environment_block(parse(desired)) == ""


def test_what_the_whole_host_had_is_removed_when_it_is_for_the_environments_alone(full: Make, carry_out: Make) -> None:
    observation = full(RTX_5070)
    seen = carry_out(observation, resolve(observation))
    plan = resolve(seen, {"runtime": {"scope": "environment"}})
    assert ids(plan, "runtime") == [
        *(f"runtime.file:{path}" for path in runtime.SYSTEM_PATHS),
        "runtime.block:/etc/environment",
    ]
    for action in plan["actions"]:
        if action["step"] == "runtime":
            assert (action["data"]["state"], action["why"]) == (
                "absent",
                "the variables are for processes of the environments only",
            )
    assert plan["runtime"]["scope"] == "environment"
    again = resolve(carry_out(seen, plan), {"runtime": {"scope": "environment"}})
    assert ids(again, "runtime") == []


@pytest.mark.parametrize("scope", ["host", "environment"])
def test_the_plan_says_who_gets_them(full: Make, scope: str) -> None:
    plan = resolve(full(RTX_5070), wish(scope, OMP_NUM_THREADS="8"))
    assert [
        reason
        for reason in plan["reasons"]
        if f"(runtime_env_scope: {scope})" in reason and "OMP_NUM_THREADS" in reason
    ]


def test_an_environment_may_have_variables_of_its_own(full: Make) -> None:
    environments = [{"name": "a", "variables": {"HF_HOME": "/data/a"}}, {"name": "b"}]
    for scope in ("host", "environment"):
        plan = resolve(full(RTX_5070), wish(scope, environments, OMP_NUM_THREADS="8"))
        assert [item["variables"] for item in plan["environments"]] == [
            {"HF_HOME": "/data/a", "OMP_NUM_THREADS": "8"},
            {"OMP_NUM_THREADS": "8"},
        ]
        written = {row["path"]: row["content"] for row in plan["runtime"]["files"]}
        assert [path for path, content in written.items() if "HF_HOME" in content] == [
            "/opt/gpufleet/envs/a/runtime.env"
        ]


def test_an_environment_s_own_value_comes_first_where_the_host_s_processes_do_not_have_another() -> None:
    environments = [{"name": "a", "variables": {"OMP_NUM_THREADS": "2"}}]
    (a,) = parse(wish("environment", environments, OMP_NUM_THREADS="8")).environments
    assert a.variables == {"OMP_NUM_THREADS": "2"}
    with pytest.raises(
        InvalidDesired, match=r"torch_env_environments.*OMP_NUM_THREADS is '2' there and '8' in runtime_env_variables"
    ):
        parse(wish("host", environments, OMP_NUM_THREADS="8"))
    assert parse(wish("host", environments, OMP_NUM_THREADS="2"))


def test_without_variables_an_environment_has_none_of_its_own_either() -> None:
    desired = {"runtime": {"state": "absent"}, "environments": [{"name": "a", "variables": {"A": "1"}}]}
    assert parse(desired).environments[0].variables == {}
    assert runtime.runtime_files(parse(desired)) == []


@pytest.mark.parametrize("name", ["nobody", "Host", 1, True])
def test_an_unknown_scope_stops_the_run(name: Any) -> None:
    with pytest.raises(InvalidDesired, match="runtime_env_scope"):
        parse({"runtime": {"scope": name}})


# ---- every reader gets the same -----------------------------------------------------------------------------------------

text = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\"'`\\$%#\u2028\u2029"), min_size=1, max_size=60
).filter(lambda value: value == value.strip())
names = st.from_regex(r"[A-Z][A-Z0-9_]{3,12}", fullmatch=True).map(lambda name: f"V_{name}")
values = st.dictionaries(names, text, min_size=1, max_size=4)
# Each example starts programs, and each example overwrites the files of the one before.
thorough = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TRICKY = {"V_TRICKY": "a  b;c|d&e=f:g,h~!*?[x]{y}<z>@^ (é) \u00a0\u3000x -"}


def printed(command: list[str], variables: dict[str, str], environment: dict[str, str] | None = None) -> dict[str, str]:
    done = subprocess.run(command, env=environment or {}, capture_output=True, check=True, timeout=20)
    pairs = (entry.partition("=") for entry in done.stdout.decode().split("\0"))
    return {name: value for name, _equals, value in pairs if name in variables}


@pytest.mark.parametrize("shell", ["/bin/dash", "/bin/bash", "/bin/zsh"])
def test_shells_read_from_the_profile_what_was_wanted(tmp_path: Path, shell: str) -> None:
    if not os.access(shell, os.X_OK):
        pytest.skip(f"needs {shell}")

    @thorough
    @given(values)
    def check(variables: dict[str, str]) -> None:
        (tmp_path / "profile").write_text(contents(wish(**variables))[runtime.PROFILE_PATH])
        command = [shell, "-c", '. "$1"; exec env -0', "sh", str(tmp_path / "profile")]
        assert printed(command, variables) == variables
        mine = dict.fromkeys(variables, "of mine")
        assert printed(command, variables, mine) == mine

    check()


def test_python_and_activated_shells_read_from_runtime_env_what_was_wanted(tmp_path: Path) -> None:
    packages = tmp_path / "releases" / "one" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "module.py").write_text(startup.MODULE)
    (tmp_path / "releases/one/bin").mkdir()
    (tmp_path / "releases/one/bin/activate").write_text("")
    (tmp_path / "current").symlink_to("releases/one")
    activate = tmp_path / "activate"
    activate.write_text(
        startup.environment_files(str(tmp_path.parent), tmp_path.name)[str(tmp_path / "bin/activate")][1]
    )
    start = f"import os, sys; sys.path.insert(0, {str(packages)!r}); import module; os.execvp('env', ['env', '-0'])"
    program = [sys.executable, "-I", "-S", "-B", "-c", start]

    @thorough
    @given(values)
    def check(variables: dict[str, str]) -> None:
        (tmp_path / "runtime.env").write_text(contents(wish(**variables))["/opt/gpufleet/envs/base/runtime.env"])
        path = {"PATH": "/usr/bin:/bin"}
        assert printed(program, variables, path) == variables
        assert printed(["/bin/sh", "-c", '. "$1"; exec env -0', "sh", str(activate)], variables, path) == variables
        mine = dict.fromkeys(variables, "of mine")
        assert printed(program, variables, {**path, **mine}) == mine

    check()


def test_pam_reads_from_etc_environment_what_was_wanted(pam_session: Callable[[str], dict[str, str]]) -> None:
    @thorough
    @given(values)
    def check(variables: dict[str, str]) -> None:
        block = runtime.environment_block(parse(wish(**variables)))
        assert pam_session(f"PATH=/bin\n# BEGIN gpufleet.workstation\n{block}# END gpufleet.workstation\n") == {
            "PATH": "/bin",
            **variables,
        }

    check()


def test_pam_would_cut_what_is_refused(pam_session: Callable[[str], dict[str, str]]) -> None:
    """So that the test above can fail, and the refusals are for a reason."""
    assert pam_session("A=a#b\nB='quoted'\n") == {"A": "a", "B": "quoted"}


GENERATOR = "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator"


@pytest.mark.skipif(not os.access(GENERATOR, os.X_OK), reason="needs systemd's generator for environment.d")
def test_systemd_reads_from_environment_d_what_was_wanted(tmp_path: Path) -> None:
    place = tmp_path / ".config/environment.d/50-gpufleet.conf"
    place.parent.mkdir(parents=True)

    @thorough
    @given(values)
    def check(variables: dict[str, str]) -> None:
        place.write_text(contents(wish(**variables))[runtime.USER_ENVIRONMENT_PATH])
        done = subprocess.run([GENERATOR], env={"HOME": str(tmp_path)}, capture_output=True, check=True, timeout=20)
        assert {key: value for key, value in assigned(done.stdout.decode()).items() if key in variables} == variables

    check()


def assigned(text: str) -> dict[str, str]:
    """The lines NAME=value in which the generator quotes as a shell does, $'' for what is not ASCII included."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -a\n{text}\nexec /usr/bin/env -0"], env={}, capture_output=True, check=True
    )
    pairs = (entry.partition("=") for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, _equals, value in pairs}


@thorough
@given(values)
def test_our_own_reader_and_the_documented_rules_agree_with_every_writer(variables: dict[str, str]) -> None:
    """systemd-system.conf(5): words, in double quotes as they are; the sandbox asks systemd itself."""
    written = contents(wish(**variables))
    assert dict(files.default_environment(written[runtime.SYSTEM_ENVIRONMENT_PATH])) == variables
    assert dict(files.assignments(written[runtime.USER_ENVIRONMENT_PATH])) == variables
    line = written[runtime.SYSTEM_ENVIRONMENT_PATH].splitlines()[2]
    assert shlex.split(line.partition("=")[2]) == [f"{name}={value}" for name, value in sorted(variables.items())]


@pytest.fixture
def pam_session(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that opens a session of PAM with a given /etc/environment, and says what pam_env makes of it."""
    library = ctypes.util.find_library("pam")
    pam = ctypes.CDLL(library) if library else None
    if pam is None or not hasattr(pam, "pam_start_confdir"):
        pytest.skip("needs Linux-PAM 1.4")
    conversation_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

    class Conversation(ctypes.Structure):
        _fields_ = [("function", conversation_type), ("data", ctypes.c_void_p)]

    pam.pam_getenvlist.restype = ctypes.POINTER(ctypes.c_char_p)
    place = tmp_path / "environment"
    (tmp_path / "test").write_text(f"session required pam_env.so conffile=/dev/null readenv=1 envfile={place}\n")
    conversation = Conversation(conversation_type(lambda *_arguments: 0), None)

    def session(text: str) -> dict[str, str]:
        place.write_text(text)
        handle = ctypes.c_void_p()
        arguments = (b"test", b"root", ctypes.byref(conversation), str(tmp_path).encode(), ctypes.byref(handle))
        assert pam.pam_start_confdir(*arguments) == 0
        assert pam.pam_open_session(handle, 0) == 0
        listed, found = pam.pam_getenvlist(handle), {}
        for entry in iter(iter(listed).__next__, None):  # a pointer has no end of its own, the list has
            name, _equals, value = entry.decode().partition("=")
            found[name] = value
        pam.pam_end(handle, 0)
        return found

    return session


# ---- what is refused, and what is only said -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x\ny", "line ends"),
        ("nul\0", "control characters"),
        ("\x7f", "control characters"),
        ("\x85x", "control characters"),
        ("a\u2028b", "line ends"),
        ("\ud800", "control characters"),
        ("a'b", "quotes"),
        ('a"b', "quotes"),
        ("`id`", "quotes"),
        ("back\\slash", "backslashes"),
        ("$HOME", r"'\$', which shells"),
        ("50%", "'%', which systemd"),
        ("a#b", "'#', at which pam_env"),
        (" a", "space"),
        ("", "empty"),
        ("x" * 1000, "longer than 1000 bytes"),
        ("é" * 499, "longer than 1000 bytes"),
    ],
)
def test_a_value_that_some_file_cannot_hold_is_refused_with_the_reason(value: str, reason: str) -> None:
    with pytest.raises(InvalidDesired, match=rf"runtime_env_variables.*value of AB.*{reason}"):
        parse(wish(AB=value))
    with pytest.raises(InvalidDesired, match=rf"torch_env_environments.*value of AB.*{reason}"):
        parse({"environments": [{"name": "a", "variables": {"AB": value}}]})


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "USER",
        "SHELL",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "LD_AUDIT",
        "PYTHONPATH",
        "PYTHONHOME",
        "BASH_ENV",
    ],
)
def test_what_the_login_the_loader_or_python_decides_on_is_refused(name: str) -> None:
    with pytest.raises(InvalidDesired, match=f"{name} cannot be set here"):
        parse(wish(**{name: "/x"}))


@pytest.mark.parametrize("name", ["PYTHONUNBUFFERED", "MY_PATH", "XDG_DATA_HOME", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"])
def test_names_that_only_look_like_these_are_set(name: str) -> None:
    assert parse(wish(**{name: "1"})).runtime.variables == {name: "1"}


@pytest.mark.parametrize("name", ["CUDA_FORCE_PTX_JIT", "CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH"])
def test_what_keeps_cuda_from_working_is_refused_with_the_reason(name: str) -> None:
    row = judge(name, "1")
    assert row is not None
    with pytest.raises(InvalidDesired, match=f"{name} is not set for everybody, because {row.why[:30]}"):
        parse(wish(**{name: "1"}))


def test_what_slows_or_limits_cuda_is_set_with_a_warning(full: Make) -> None:
    plan = resolve(full(RTX_5070), wish(CUDA_LAUNCH_BLOCKING="1", CUDA_VISIBLE_DEVICES="0"))
    assert plan["feasible"]
    said = [warning for warning in plan["warnings"] if "as the inventory wants it" in warning]
    assert [warning.split("=")[0] for warning in said] == ["CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES"]
    assert not [
        warning for warning in resolve(full(RTX_5070), wish(OMP_NUM_THREADS="8"))["warnings"] if "inventory" in warning
    ]


def test_what_others_set_is_said_once_for_all_places_and_left_alone(full: Make) -> None:
    observation = full(RTX_5070)
    plain = resolve(observation)
    row = {"name": "CUDA_LAUNCH_BLOCKING", "value": "1", "why": "it is slow"}
    observation["runtime"]["breaking"] = [
        {**row, "where": "/etc/environment"},
        {**row, "where": "/etc/profile.d/x.sh"},
        {**row, "where": "process 7 (python)", "value": None},
    ]
    plan = resolve(observation)
    assert plan["actions"] == plain["actions"]
    assert [warning for warning in plan["warnings"] if warning not in plain["warnings"]] == [
        "Found and left alone: CUDA_LAUNCH_BLOCKING=1 (/etc/environment and /etc/profile.d/x.sh): it is slow. Remove it there.",
        "Found and left alone: CUDA_LAUNCH_BLOCKING (process 7 (python)): it is slow. Remove it there.",
    ]


def test_nothing_that_is_refused_could_be_asked_for_with_another_value() -> None:
    """A row whose harmless values are of use (0 of a switch) refuses only the harmful ones."""
    assert parse(wish(CUDA_FORCE_PTX_JIT="0")).runtime.variables == {"CUDA_FORCE_PTX_JIT": "0"}
    assert {row.names for row in BREAKING if row.refused and row.single} == set()
