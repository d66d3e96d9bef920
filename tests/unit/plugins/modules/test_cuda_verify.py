"""The module's own part: values that it refuses, and what it makes of a verdict."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner
from ansible_collections.gpufleet.workstation.plugins.modules import cuda_verify

ENVIRONMENT = {"name": "base", "python": "/opt/gpufleet/envs/base/current/bin/python"}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the module; the proof answers with a verdict, and what it was asked is in `asked`."""
    asked = []

    def call(verdict="passed", **parameters):
        def prove(environments, **options):
            asked.append((environments, options))
            result = {
                "name": "base",
                "verdict": verdict,
                "reason": "torch.arch: no code for sm_120",
                "remedy": "Rebuild.",
            }
            return {"verdict": verdict, "level": options["level"], "environments": [result]}

        monkeypatch.setattr(runner, "prove", prove)
        with patch_module_args(parameters), pytest.raises(SystemExit) as ended:
            cuda_verify.main()
        return ended.value.code, json.loads(capsys.readouterr().out)

    call.asked = asked
    return call


def test_a_passed_proof_changes_nothing(run):
    status, result = run(environments=[ENVIRONMENT], sm=["sm_120"])
    assert (status, result["changed"], result["verdict"]) == (0, False, "passed")
    environments, options = run.asked[0]
    assert environments[0]["python"] == ENVIRONMENT["python"]
    assert options["sm"] == ["sm_120"]
    assert (options["level"], options["gpus"], options["when_busy"], options["time_limit"]) == (
        "quick",
        None,
        "skip",
        None,
    )
    assert (options["gpu_limit"], options["burn_seconds"]) == (60, 60)


@pytest.mark.parametrize("level", ["static", "quick", "full", "stress"])
def test_every_level_is_accepted_with_its_limits(run, level):
    run(environments=[ENVIRONMENT], level=level, time_limit=900, gpu_limit=30, burn_seconds=600)
    options = run.asked[0][1]
    assert (options["level"], options["time_limit"], options["gpu_limit"], options["burn_seconds"]) == (
        level,
        900,
        30,
        600,
    )


def test_a_failed_proof_fails_the_task_with_reason_and_remedy(run):
    status, result = run("failed", environments=[ENVIRONMENT])
    assert status == 1
    assert result["failed"]
    assert "base is not proven. torch.arch: no code for sm_120. What to do: Rebuild." in result["msg"]
    assert result["environments"][0]["verdict"] == "failed"


def test_a_failed_proof_is_a_result_where_the_user_says_so(run):
    status, result = run("failed", environments=[ENVIRONMENT], fail_on_verdict=False)
    assert (status, result["verdict"]) == (0, "failed")


def test_what_could_not_run_does_not_fail_the_task(run):
    assert run("not_run", environments=[ENVIRONMENT])[0] == 0


def test_one_python_is_an_environment_named_after_its_path(run):
    run(python="/usr/bin/python3", level="static")
    assert run.asked[0][0] == [{"name": "/usr/bin/python3", "python": "/usr/bin/python3"}]


def test_addresses_are_taken_in_any_usual_spelling(run):
    run(environments=[ENVIRONMENT], gpus=["00000000:01:00.0", "0000:C1:00.0"])
    assert run.asked[0][1]["gpus"] == ["0000:01:00.0", "0000:c1:00.0"]


def test_it_proves_in_check_mode_as_well(run):
    assert run(environments=[ENVIRONMENT], _ansible_check_mode=True)[1]["verdict"] == "passed"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"environments": [ENVIRONMENT], "sm": ["120"]}, "sm: '120'"),
        ({"environments": [{**ENVIRONMENT, "sm": ["sm_120; reboot"]}]}, "sm: 'sm_120; reboot'"),
        ({"environments": [ENVIRONMENT], "gpus": ["GPU-1"]}, "gpus: 'GPU-1'"),
        ({"environments": [ENVIRONMENT], "time_limit": 0}, "time_limit is 0"),
        ({"environments": [ENVIRONMENT], "gpu_limit": 0}, "gpu_limit is 0"),
        ({"environments": [ENVIRONMENT], "level": "stress", "time_limit": 60}, "the burn alone takes 60 s"),
        ({"environments": [ENVIRONMENT], "burn_seconds": 86401}, "burn_seconds is 86401"),
        ({"environments": [ENVIRONMENT], "level": "thorough"}, "level"),
        ({"environments": [{"name": "base"}]}, "python"),
        ({"environments": [ENVIRONMENT], "python": "/usr/bin/python3"}, "mutually exclusive"),
        ({}, "one of the following is required"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_nothing_is_run(run, parameters, message):
    status, result = run(**parameters)
    assert status == 1
    assert message in result["msg"]
    assert not run.asked


def test_while_the_hosts_own_timer_proves_nothing_is_proven(run, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_verify.os, "geteuid", lambda: 0)
    monkeypatch.setattr(cuda_verify.stamp, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(cuda_verify, "PATIENCE", 0.0)
    with cuda_verify.stamp.alone(cuda_verify.Host()):
        status, result = run(environments=[ENVIRONMENT])
    assert (status, run.asked) == (1, [])
    assert "nothing was proven: another proof runs on this host" in result["msg"]
    assert run(environments=[ENVIRONMENT])[0] == 0
