"""What the tests of the proof on a real GPU have in common."""

from __future__ import annotations

import time

from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner


def prove(python, described, level="quick", time_limit=120.0, **request):
    request = {"level": level, "expect": {"torch": described["version"]}, "sm": [described["sm"]], **request}
    started = time.monotonic()
    result = runner.run_checks(python, request, None, time_limit)
    assert time.monotonic() - started < time_limit + 6
    return result


def checks_of(result):
    found = {check["id"]: check for check in result["checks"]}
    for gpu in result["gpus"]:
        found.update({check["id"]: check for check in gpu["checks"]})
    return found
