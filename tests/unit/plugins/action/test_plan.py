"""What a person reads about a host that could not be observed."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.action import plan

NO_JSON = "Module result deserialization failed: No start of json char found"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"msg": "Missing sudo password"}, "Missing sudo password"),
        ({"msg": NO_JSON, "module_stderr": "/bin/sh: 1: python3: not found\n\nA hint.\n"}, "python3: not found"),
        ({"msg": NO_JSON, "module_stderr": "Traceback (most recent call last):\n  ...\nMemoryError\n"}, "MemoryError"),
        ({}, "gave no answer"),
    ],
)
def test_an_unobserved_host_is_refused_with_the_line_that_says_why(answer, reason):
    refusal = plan._unobserved(answer)["refusals"][0]
    assert refusal["code"] == "unobserved"
    assert reason in refusal["reason"]
    assert "\n" not in refusal["reason"]


def test_an_unobserved_host_has_nothing_to_do():
    refused = plan._unobserved({"msg": "Missing sudo password"})
    assert (refused["feasible"], refused["actions"]) == (False, [])
