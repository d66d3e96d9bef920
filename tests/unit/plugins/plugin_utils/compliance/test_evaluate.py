"""A host is ready only where it was observed now and every rule that counts was seen to be met."""

from __future__ import annotations

import datetime
import json
import types
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import evaluate, policies
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.timezone.utc)
AT, EARLIER = "2026-11-23T12:00:00Z", "2026-11-20T12:00:00Z"
RULES = """\
- {id: os.clock, title: The clock is right, severity: high, expect: health.clock_synchronized, evidence: {clock: health.clock_synchronized},
   rationale: Times are compared., remedy: Start chrony.}
- {id: gpu.width, title: The link is as wide as the slot, severity: critical, for_each: gpus, name_of: item.pci_address,
   applies: item.kernel_driver == 'nvidia', possible: '!(item.busy)', expect: item.width >= params.width, params: {width: 16},
   evidence: {width: item.width}, rationale: Narrow links are slow., remedy: Reseat the card.}
- {id: os.note, title: Nobody is told, severity: low, expect: os.kernel == '6.2',
   evidence: {kernel: os.kernel, gone: os.nowhere, odd: os.kernel.x},
   rationale: None., remedy: None.}
"""


@pytest.fixture(autouse=True)
def plain_documents(monkeypatch):
    """The document is the observation: what else is joined to it is not the engine's."""
    monkeypatch.setattr(
        evaluate.documents, "build", lambda host, state, groups, now, level: dict(state["planned"]["observation"])
    )
    monkeypatch.setattr(evaluate.documents, "facts", lambda document: {"kernel": document["os"]["kernel"]})


def gpu(address: str = "0000:01:00.0", **more: Any) -> dict[str, Any]:
    return {"pci_address": address, "kernel_driver": "nvidia", "busy": False, "width": 16, **more}


def observation(**more: Any) -> dict[str, Any]:
    return {"schema": 1, "os": {"kernel": "6.1"}, "health": {"clock_synchronized": True}, "gpus": [gpu()], **more}


def state(found: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "planned": {"observation": observation() if found is None else found},
        "proof": {},
        "unreachable": False,
        "asked": True,
        **more,
    }


@pytest.fixture
def rules(tmp_path) -> list[policies.Rule]:
    (tmp_path / "rules.yml").write_text(RULES)
    return policies.load([tmp_path / "rules.yml"], {}, "tuning")


def assess(
    rules: list[policies.Rule], hosts: dict[str, Any], waivers: Any = (), previous: Any = None
) -> dict[str, Any]:
    loaded = policies.load_waivers(list(waivers), rules, hosts, {}, NOW.date())
    document = evaluate.assess(rules, loaded, hosts, NOW, previous, "high", "0.5.0")
    json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    return document


def one(rules: list[policies.Rule], found: Any = None, **more: Any) -> dict[str, Any]:
    host: dict[str, Any] = assess(rules, {"h": state(found)}, **more)["hosts"][0]
    return host


def statuses(host: dict[str, Any]) -> list[str]:
    return [result["status"] for result in host["results"].values()]


def test_a_host_on_which_every_rule_that_counts_is_met_is_ready(rules):
    host = one(rules)
    assert (host["outcome"], statuses(host)) == ("ready", ["passed", "passed", "failed"])
    assert host["results"]["os.clock"]["items"] == [
        {"name": "", "status": "passed", "evidence": {"clock": True}, "message": ""}
    ]
    assert host["results"]["gpu.width"]["items"] == []


def test_evidence_that_cannot_be_shown_decides_nothing(rules):
    (item,) = one(rules)["results"]["os.note"]["items"]
    assert item["evidence"]["kernel"] == "6.1"
    assert item["evidence"]["gone"] is None
    assert "not an object" in item["evidence"]["odd"]


@pytest.mark.parametrize(
    ("gpus", "status"),
    [
        ([gpu(), gpu(width=8)], "failed"),
        ([gpu(), gpu(width=None), gpu(width=8)], "failed"),
        ([gpu(), gpu(width=None), gpu(busy=True)], "error"),
        ([gpu(), gpu(busy=True)], "not_run"),
        ([gpu(), gpu(kernel_driver="nouveau")], "passed"),
        ([gpu(kernel_driver="nouveau")], "not_applicable"),
        ([gpu(kernel_driver=None)], "error"),
        ([gpu(busy=None)], "error"),
        ([{}], "error"),
        ([None], "error"),
        ([], "not_applicable"),
        (None, "error"),
        ({}, "error"),
        ("", "error"),
        ([gpu()] * 1001, "error"),
    ],
)
def test_the_worst_element_is_the_rules_status_and_no_list_is_an_error(rules, gpus, status):
    host = one(rules, observation(gpus=gpus))
    assert host["results"]["gpu.width"]["status"] == status
    assert host["outcome"] == ("ready" if status in ("passed", "not_applicable") else "not_ready")


def test_elements_are_named_and_say_what_met_what(rules):
    host = one(rules, observation(gpus=[gpu(), gpu("0000:02:00.0", width=8), gpu("x" * 500, width="8"), {}]))
    items = host["results"]["gpu.width"]["items"]
    assert [item["name"] for item in items] == ["0000:02:00.0", "x" * 120, "[3]"]
    assert [item["status"] for item in items] == ["failed", "error", "error"]
    assert items[0]["evidence"] == {"width": 8}
    assert "not both numbers" in items[1]["message"]
    assert "gpu.width failed" in host["reason"]


@pytest.mark.parametrize("value", [None, 1, "true", [], {}, [True]])
def test_only_true_passes_and_only_false_fails(rules, value):
    host = one(rules, observation(health={"clock_synchronized": value}))
    assert host["results"]["os.clock"]["status"] == "error"
    assert host["outcome"] == "not_ready"


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ({"asked": False}, "not_asked"),
        ({**state(), "asked": False}, "not_asked"),
        ({**state(), "unreachable": True}, "unreachable"),
        ({**state(), "unreachable": "yes"}, "unreachable"),
        ({"planned": {"unreachable": True, "msg": "ssh: no route"}}, "unreachable"),
        ({"planned": {**state()["planned"], "unreachable": 1}}, "unreachable"),
        ({}, "unknown"),
        (None, "unknown"),
        ([], "unknown"),
        ({"planned": None}, "unknown"),
        ({"planned": {"observation": {}}}, "unknown"),
        ({"planned": {"observation": None}}, "unknown"),
        ({"planned": {"observation": [observation()]}}, "unknown"),
        ({"planned": {"observation": {**observation(), "schema": 2}}}, "unknown"),
        ({"planned": {"observation": {**observation(), "schema": True}}}, "unknown"),
        ({"planned": {"observation": {**observation(), "os": None}}}, "unknown"),
        ({"planned": {**state()["planned"], "failed": True}}, "unknown"),
    ],
)
def test_a_host_that_was_not_observed_is_never_ready_and_no_rule_was_run(rules, state, outcome):
    waiver = {"rule": "os.clock", "hosts": "*", "owner": "x", "reason": "x", "ticket": "x", "expires": "2026-12-31"}
    document = assess(rules, {"h": state, "other": {}}, [waiver])
    host = document["hosts"][0]
    assert (host["outcome"], statuses(host)) == (outcome, ["not_run"] * 3)
    assert host["reason"]
    assert document["totals"][outcome] >= 1
    assert document["totals"]["ready"] == 0
    assert document["waivers"][0]["state"] == "active"  # nobody knows whether it is needed


def test_the_reason_of_an_unreachable_host_is_what_ssh_said(rules):
    host = assess(rules, {"h": {"planned": {"unreachable": True, "msg": "no \x1b[2Jroute"}}})["hosts"][0]
    assert host["reason"] == "no  [2Jroute"


def test_where_nothing_that_counts_was_judged_nobody_is_ready(rules):
    assert one([])["outcome"] == "unknown"
    assert one([rules[2]])["outcome"] == "unknown"
    assert one([rules[1]], observation(gpus=[]))["outcome"] == "unknown"


def test_a_waiver_keeps_what_was_found_and_lets_the_host_be_ready(rules):
    waiver = {"rule": "gpu.width", "hosts": "h", "owner": "x", "reason": "x", "ticket": "T", "expires": "2026-12-31"}
    document = assess(rules, {"h": state(observation(gpus=[gpu(width=8)])), "i": state()}, [waiver])
    result = document["hosts"][0]["results"]["gpu.width"]
    assert (document["hosts"][0]["outcome"], result["status"], result["items"][0]["status"]) == (
        "ready",
        "waived",
        "failed",
    )
    assert document["waivers"][0] == {**waiver, "days_left": 38, "state": "active", "waives": 1}
    assert document["history"][-1]["failing"] == {"os.note": 2}
    assert (document["errors"], document["notes"]) == ([], [])


def test_waivers_that_are_orphaned_expired_unneeded_or_about_to_end_are_said(rules):
    base = {"rule": "gpu.width", "hosts": "h", "owner": "x", "reason": "x", "ticket": "T", "expires": "2026-12-31"}
    document = assess(
        rules,
        {"h": state(observation(health={"clock_synchronized": False}))},
        [
            base,
            {**base, "rule": "gpu.wide"},
            {**base, "hosts": "nobody"},
            {**base, "rule": "os.clock", "expires": "2026-11-22"},
            {**base, "rule": "os.note", "expires": "2026-12-07"},
        ],
    )
    assert [waiver["state"] for waiver in document["waivers"]] == [
        "unneeded",
        "orphaned",
        "orphaned",
        "expired",
        "active",
    ]
    assert ["did you mean gpu.width" in document["errors"][0], "nobody" in document["errors"][1]] == [True, True]
    assert [word for note, word in zip(document["notes"], ("removed", "expired on", "in 14 days")) if word in note] == [
        "removed",
        "expired on",
        "in 14 days",
    ]
    assert document["hosts"][0]["outcome"] == "not_ready"


def test_since_and_what_changed_come_from_earlier_runs(rules):
    last = {
        "outcome": "not_ready",
        "since": EARLIER,
        "results": {
            "os.clock": {"status": "failed", "since": EARLIER},
            "gpu.width": {"status": "failed", "since": EARLIER},
        },
        "facts": {"kernel": "6.0", "gone": 1},
    }
    previous = types.SimpleNamespace(
        hosts={"h": last},
        provisioned={"h": {"at": EARLIER, "facts": {"kernel": "6.1"}}},
        series=[{"at": EARLIER}],
        problems=["a file is damaged"],
    )
    document = assess(rules, {"h": state(observation(health={"clock_synchronized": False}))}, previous=previous)
    host = document["hosts"][0]
    assert (host["outcome"], host["since"]) == ("not_ready", EARLIER)
    assert {key: result["since"] for key, result in host["results"].items()} == {
        "os.clock": EARLIER,
        "gpu.width": AT,
        "os.note": AT,
    }
    assert host["drift"]["since_last"] == [
        {"what": "gone", "before": 1, "after": None},
        {"what": "kernel", "before": "6.0", "after": "6.1"},
    ]
    assert host["drift"]["since_provisioned"] == []
    assert [run["at"] for run in document["history"]] == [EARLIER, AT]
    assert document["notes"] == ["a file is damaged"]


def test_a_host_that_was_not_observed_has_not_changed(rules):
    previous = types.SimpleNamespace(hosts={"h": {"facts": {"kernel": "6.0"}}}, provisioned={}, series=[], problems=[])
    assert assess(rules, {"h": {"unreachable": True}}, previous=previous)["hosts"][0]["drift"]["since_last"] == []


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("\udc80"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("planned", "observation", "plan", "gpus", "os", "kernel", "schema", "environments"), inner
            ),
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(ANY, ANY, ANY)
def test_whatever_a_hosts_state_is_it_is_judged_and_not_ready(tmp_path_factory, found, planned, unreachable):
    rules = policies.load([_rules(tmp_path_factory)], {}, "tuning")
    hosts = {
        "a": found,
        "b": {"planned": planned, "unreachable": unreachable},
        "c": {"planned": {"observation": found, "plan": planned}},
    }
    document = assess(rules, hosts)
    assert document["totals"]["hosts"] == 3
    assert document["totals"]["ready"] == 0


def _rules(factory: pytest.TempPathFactory) -> Path:
    path = factory.getbasetemp() / "rules.yml"
    path.write_text(RULES)
    return path
