# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No false green: whatever a host does not say, says null, says in another type or says to deceive, nobody takes for "all is well"."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import healthy
import pytest
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import evaluate, policies
from corpus import GONE, broken, false_greens, replaced
from hypothesis import given, settings
from hypothesis import strategies as st

SHIPPED = Path(__file__).resolve().parents[2] / "roles/gpu_compliance/files/policies"
RESULTS = SHIPPED.parents[3] / ".state/test/compliance.txt"
NOW = datetime.datetime.fromisoformat(healthy.NOW)

ENGINE = """\
- {id: t.floor, expect: "ver(driver.loaded_version, '>=', params.floor)", params: {floor: '570.1'}}
- {id: t.same, expect: driver.loaded_version == driver.userspace_version}
- {id: t.nouveau, expect: "!(driver.nouveau_loaded) && !(driver.nova_core_loaded)"}
- {id: t.bound, for_each: gpus, expect: item.kernel_driver == 'nvidia'}
- {id: t.lost, for_each: gpus, expect: item.lost == `null`}
- {id: t.width, for_each: gpus, applies: item.kernel_driver == 'nvidia', expect: item.pcie.width == item.pcie.max_width}
- {id: t.ecc, for_each: gpus, expect: item.health.ecc.uncorrected_volatile == `0`}
- {id: t.none_lost, expect: "length(gpus[?kernel_driver != 'nvidia' || lost != `null`]) == `0`"}
- {id: t.modules, expect: "all(map(&(version == '580.95.05'), values(driver.modules_by_kernel)))"}
- {id: t.arch, for_each: environments, expect: "contains(item.torch.arch_flags, 'sm_120')"}
- {id: t.intact, for_each: environments, expect: "item.integrity.status == 'ok' && item.integrity.missing == `0`"}
- {id: t.age, for_each: environments, expect: age_hours(item.verdict.proven_at) < params.hours, params: {hours: 168}}
- {id: t.proven, for_each: environments, expect: item.verdict.verdict == 'passed'}
- {id: t.xid, expect: "length(health.xid[?this_boot && severity != 'low']) == `0`"}
- {id: t.disk, expect: "min(health.disk.*.free_mib) > `20000`"}
- {id: t.clock, expect: health.clock_synchronized}
- {id: t.tokenizers, expect: "matches(runtime.etc_environment.values.TOKENIZERS_PARALLELISM, 'false|0')"}
- {id: t.unknown, expect: length(unknown) == `0`}
"""


def rules_of(text: str, folder: Path) -> list[policies.Rule]:
    """Rules of one line each, with the texts that every rule has."""
    whole = {"title": "x", "severity": "high", "rationale": "x", "remedy": "x", "evidence": "{host: host}"}
    lines = [
        line[:-1] + "".join(f", {key}: {value}" for key, value in whole.items()) + "}" for line in text.splitlines()
    ]
    path = folder / "rules.yml"
    path.write_text("\n".join(lines))
    return policies.load([path], {}, "tuning")


def statuses(rules: list[policies.Rule]) -> Any:
    return lambda document: {rule.id: evaluate.judge(rule, document)["status"] for rule in rules}


@pytest.fixture(scope="module")
def shipped() -> list[policies.Rule]:
    files = sorted(SHIPPED.glob("*.yml"))
    assert files, f"no rules are shipped: {SHIPPED} has no *.yml"
    return policies.load(files, {}, "tuning")


@pytest.fixture
def say(capsys):
    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    return line


def observation() -> dict[str, Any]:
    return {**healthy.state()["planned"]["observation"], "now": healthy.NOW, "host": "h"}


def outcome(rules: list[policies.Rule]) -> Any:
    def judged(planned: Any) -> Mapping[str, str]:
        hosts = {"h": {**healthy.state(), "planned": planned}}
        return {"h": evaluate.assess(rules, [], hosts, NOW, None, "high", "0")["hosts"][0]["outcome"]}

    return judged


def test_rules_of_the_engines_own_stay_green_on_nothing_that_is_broken(tmp_path, say):
    rules = rules_of(ENGINE, tmp_path)
    document = observation()
    assert set(statuses(rules)(document).values()) == {"passed"}
    ways = broken(document)
    found = false_greens(document, "passed", statuses(rules), ways)
    say(
        f"corpus: {sum(map(len, ways.values()))} broken observations x {len(rules)} rules of the engine's own, {len(found)} false greens"
    )
    assert found == []


@pytest.mark.parametrize(
    "expect",
    [
        "defined(driver.loaded_version)",
        "driver.loaded_version != `null`",
        "driver.loaded_version != '470.1'",
        "length(unknown) == `0` || defined(os.kernel)",
    ],
)
def test_the_corpus_finds_a_rule_that_takes_anything_for_an_answer(tmp_path, expect):
    rules = rules_of(f'- {{id: t.loose, expect: "{expect}"}}\n', tmp_path)
    document = observation()
    assert false_greens(document, "passed", statuses(rules), broken(document))


def test_no_shipped_rule_stays_green_on_what_is_broken(shipped, say):
    document = {**evaluate.documents.build("h", healthy.state(), ["workstations"], NOW, "quick"), "now": healthy.NOW}
    document = evaluate.plain(document)
    before = statuses(shipped)(document)
    assert {name: status for name, status in before.items() if status not in ("passed", "not_applicable")} == {}
    ways = broken(document)
    found = false_greens(document, "passed", statuses(shipped), ways)
    say(f"corpus: {sum(map(len, ways.values()))} broken observations x {len(shipped)} rules, {len(found)} false greens")
    assert found == []


def test_no_host_is_ready_of_which_a_rule_that_counts_cannot_know(shipped, say):
    planned = healthy.state()["planned"]
    assert outcome(shipped)(planned) == {"h": "ready"}
    ways = broken(planned)
    found = false_greens(planned, "ready", outcome(shipped), ways)
    say(
        f"corpus: {sum(map(len, ways.values()))} broken results of the plan, {len(found)} hosts ready that are not known to be"
    )
    assert found == []


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_no_combination_of_what_is_broken_makes_a_host_ready(shipped, data):
    planned = healthy.state()["planned"]
    judged = outcome(shipped)
    ways = [(path, value) for path, values in broken(planned).items() for value in values]
    chosen = data.draw(st.lists(st.sampled_from(ways), min_size=1, max_size=5))
    alone = [judged(replaced(planned, path, value))["h"] for path, value in chosen]
    together = planned
    for path, value in chosen:
        together = replaced(together, path, value)
    if any(found != "ready" for found in alone) and all(_there(together, path, value) for path, value in chosen):
        assert judged(together)["h"] != "ready"


def _there(document: Any, path: tuple[Any, ...], value: Any) -> bool:
    """Whether what was broken still is, and was not replaced with something else."""
    try:
        for key in path[:-1]:
            document = document[key]
        return path[-1] not in document if value is GONE else document[path[-1]] is value
    except (KeyError, IndexError, TypeError):
        return False
