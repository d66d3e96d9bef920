# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as text, JUnit XML and metrics: what it says, that the readers of each format accept it, and that nothing in it is active."""

from __future__ import annotations

import copy
import re
import unicodedata
from pathlib import Path
from typing import Any

import fleet
import hostile
import promtool
import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._report import metrics
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import canonical
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.render_junit import junit
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.render_prometheus import prometheus
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.render_text import text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).with_name("junit.xsd")))
FORMATS = (text, junit, prometheus)
LABEL = r'[a-z_]+="(?:[^"\\\n]|\\[\\"n])*"'
SERIES = re.compile(rf"(gpufleet_[a-z_]+(?:{{{LABEL}(?:,{LABEL})*}})?) (-?[0-9][0-9.e+-]*)")


def parsed(document: Any) -> Any:
    """The JUnit file of a document, as a validating reader takes it."""
    root = etree.fromstring(
        junit(document).encode(), etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
    )
    SCHEMA.assertValid(root)
    return root


def series(document: Any) -> dict[str, float]:
    """The series of a document's metrics, read strictly: anything but a series or a comment of ours is an error, and so is a second one."""
    found: dict[str, float] = {}
    for line in prometheus(document).splitlines():
        if re.match(r"# (HELP|TYPE) gpufleet_[a-z_]+ ", line):
            continue
        match = SERIES.fullmatch(line)
        assert match, line
        assert match[1] not in found, line
        found[match[1]] = float(match[2])
    return found


def checked_by_promtool(content: str) -> None:
    """Fail where promtool complains."""
    try:
        assert promtool.complaints(content) == ""
    except promtool.Missing as error:
        pytest.skip(str(error))


def made(*hosts: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A document with these hosts and one rule of each severity."""
    rules = [
        {
            "id": f"some.{severity}",
            "title": f"The {severity} thing holds",
            "severity": severity,
            "remedy": f"Mend the {severity} thing.",
        }
        for severity in reversed(canonical.SEVERITIES)
    ]
    return {
        "schema": 1,
        "generated_at": "2026-11-23T12:00:00Z",
        "rules": rules,
        "hosts": list(hosts),
        "waivers": [],
        **parts,
    }


def host(name: str, outcome: str = "ready", **statuses: str) -> dict[str, Any]:
    """A host that passes every rule but those named by their severity."""
    results = {}
    for severity in canonical.SEVERITIES:
        status = statuses.get(severity, "passed")
        items = [
            {
                "name": "0000:01:00.0",
                "status": status,
                "evidence": {"loaded": "535.1", "needed": "570.2"},
                "message": "",
            }
        ]
        results[f"some.{severity}"] = {
            "status": status,
            "since": "2026-11-01T09:00:00Z",
            "items": [] if status == "passed" else items,
        }
    return {
        "name": name,
        "outcome": outcome,
        "reason": "",
        "gpu": "RTX 5090",
        "driver": "580.1 open / 580.1",
        "torch": "2.9.1+cu128",
        "since": "2026-11-01T09:00:00Z",
        "observed_at": "2026-11-23T11:59:00Z",
        "proven_at": "2026-11-20T12:00:00Z",
        "results": results,
        "drift": {"since_last": [], "since_provisioned": []},
    }


# ---- text -----------------------------------------------------------------------------------------------------------


def test_last_line_counts_ready_hosts_against_the_whole_inventory():
    hosts = [host(f"ws-{n:02}") for n in range(41)] + [host("a", "not_ready", high="failed")] * 3
    hosts += [host("b", "unreachable")] * 3 + [host("c", "unknown")] + [host("d", "not_asked")] * 2
    assert text(made(*hosts)).splitlines()[-1] == "41 of 50 hosts train-ready (3 unreachable, 1 unknown, 2 not asked)"


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        ("ready", "ws-01 is train-ready"),
        ("not_ready", "ws-01 is not train-ready"),
        ("unreachable", "ws-01 is not train-ready (unreachable)"),
        ("not_asked", "ws-01 is not train-ready (not asked)"),
    ],
)
def test_one_host_is_spoken_of_by_its_name(outcome, line):
    report = text(made(host("ws-01", outcome, critical="failed" if outcome == "not_ready" else "passed")))
    assert report.splitlines()[-1] == line
    assert "hosts" not in report


def test_a_fleet_without_hosts_is_not_ready():
    assert text(made()) == "No hosts, so nothing is train-ready."


def test_table_has_every_column_and_the_hosts_that_need_somebody_first():
    lines = text(
        made(host("ws-01"), host("ws-02", "not_ready", low="failed", critical="error", medium="waived"))
    ).splitlines()
    assert re.split(r" {2,}", lines[0]) == [
        "host",
        "GPU",
        "driver loaded / installed",
        "torch",
        "proof age",
        "outcome",
        "not met (since)",
    ]
    first = re.split(r" {2,}", lines[2])
    assert first == [
        "ws-02",
        "RTX 5090",
        "580.1 open / 580.1",
        "2.9.1+cu128",
        "3 d",
        "NOT READY",
        "some.critical + 1 more (2026-11-01)",
    ]
    assert re.split(r" {2,}", lines[3])[-2:] == ["READY", "-"]


def test_failures_are_told_by_severity_with_since_evidence_and_remedy():
    report = text(made(host("ws-01"), host("ws-02", "not_ready", low="failed", critical="failed", high="not_run")))
    told = [line.split()[0] for line in report.splitlines() if re.match("(CRITICAL|HIGH|MEDIUM|LOW) ", line)]
    assert told == ["CRITICAL", "HIGH", "LOW"]
    assert (
        "CRITICAL some.critical: The critical thing holds\n"
        "  ws-02: failed since 2026-11-01: 0000:01:00.0: loaded: 535.1, needed: 570.2\n"
        "  what to do: Mend the critical thing.\n"
    ) in report
    assert "  ws-02: not run since 2026-11-01" in report


def test_five_hundred_hosts_read_like_the_few_kinds_they_are():
    hosts = [host(f"ws-{n:03}") for n in range(480)] + [
        host(f"old-{n}", "not_ready", critical="failed") for n in range(20)
    ]
    report = text(made(*hosts))
    assert len(report.splitlines()) < 12
    assert "old-0 and 19 more" in report
    assert "  old-0, old-1, old-2, old-3, old-4, old-5, old-6, old-7 and 12 more: failed since 2026-11-01" in report
    assert report.count("Mend the critical thing.") == 1


def test_hosts_that_differ_in_the_evidence_only_do_not_fill_pages():
    hosts = []
    for number in range(300):
        one = host(f"ws-{number:03}", "not_ready", high="failed")
        one["results"]["some.high"]["items"][0]["evidence"] = {"age_hours": number}
        hosts.append(one)
    report = text(made(*hosts))
    assert len(report.splitlines()) < 16
    assert "and, with other evidence or since another day: ws-005, " in report


def test_hosts_that_were_not_judged_are_told_with_the_reason_and_not_rule_by_rule():
    lost = {**host("ws-09", "unreachable", critical="error"), "reason": "No route to host"}
    report = text(made(host("ws-01"), lost))
    assert "UNREACHABLE ws-09 since 2026-11-01: No route to host" in report
    assert "some.critical" not in report


def test_drift_is_told_once_for_the_hosts_it_happened_on():
    change = {"what": "driver loaded", "before": "580.1", "after": None}
    hosts = [{**host(f"ws-{n}"), "drift": {"since_last": [change]}} for n in range(3)]
    assert "Changed since the last verdict:\n  ws-0, ws-1, ws-2: driver loaded: 580.1 -> nothing\n" in text(
        made(*hosts)
    )


def test_waivers_that_need_somebody_are_named_and_others_are_not():
    waiver = {
        "rule": "some.high",
        "hosts": "ws-*",
        "owner": "lab",
        "ticket": "T-1",
        "expires": "2026-11-24",
        "days_left": 1,
        "state": "active",
    }
    cases = [
        waiver,
        {**waiver, "ticket": "T-2", "days_left": -3, "state": "expired", "expires": "2026-11-20"},
        {**waiver, "ticket": "T-3", "state": "orphaned"},
        {**waiver, "ticket": "T-4", "days_left": 60},
        {**waiver, "ticket": "T-5", "days_left": 14},
    ]
    report = text(made(host("ws-01"), host("ws-02"), waivers=cases))
    assert "waiver of some.high for ws-* (lab, T-1): ends tomorrow (2026-11-24)\n" in report
    assert "T-2): expired on 2026-11-20\n" in report
    assert "T-3): waives nothing, its rule or hosts do not exist\n" in report
    assert "T-4" not in report
    assert "T-5): ends in 14 days" in report


def test_errors_and_notes_of_the_run_are_told():
    report = text(made(host("a"), errors=["history/1.json is damaged"], notes=["A waiver waives nothing."]))
    assert "error: history/1.json is damaged\n\nnote: A waiver waives nothing.\n" in report


# ---- what contradicts itself ----------------------------------------------------------------------------------------


def test_a_host_that_calls_itself_ready_beside_a_failed_rule_is_not():
    document = made(host("ws-01", "ready", high="not_run"), host("ws-02"))
    assert text(document).endswith("1 of 2 hosts train-ready")
    assert series(document)['gpufleet_train_ready{host="ws-01"}'] == 0


def test_a_result_that_is_missing_or_of_no_known_status_is_an_error():
    odd = host("ws-01", "ready", critical="splendid")
    del odd["results"]["some.high"]
    cases = {case.get("classname"): case for case in parsed(made(odd)).iter("testcase")}
    assert cases["some.critical"].find("error") is not None
    assert cases["some.high"].find("error").get("message") == "error: it was not judged"


def test_totals_are_counted_and_not_believed():
    assert text(made(host("a", "not_ready", high="failed"), host("b"), totals={"ready": 2, "hosts": 2})).endswith(
        "1 of 2 hosts train-ready"
    )


# ---- JUnit ----------------------------------------------------------------------------------------------------------


def test_junit_has_a_suite_for_each_host_and_a_case_for_each_rule():
    root = parsed(
        made(host("a"), host("b", "not_ready", critical="failed", high="error", medium="not_run", low="waived"))
    )
    assert [suite.get("name") for suite in root] == ["a", "b"]
    by_rule = {case.get("classname"): [child.tag for child in case] for case in root[1]}
    assert by_rule == {
        "some.critical": ["failure"],
        "some.high": ["error"],
        "some.medium": ["skipped"],
        "some.low": ["skipped"],
    }
    assert [len(case) for case in root[0]] == [0, 0, 0, 0]
    assert dict(root[1].attrib) == {
        "name": "b",
        "time": "0",
        "timestamp": "2026-11-23T12:00:00Z",
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "2",
    }
    assert [root.get(key) for key in ("tests", "failures", "errors")] == ["8", "1", "1"]


def test_junit_says_evidence_since_and_remedy_of_a_failure():
    (failure,) = parsed(made(host("a", "not_ready", critical="failed"))).iter("failure")
    assert failure.get("message") == "failed: 0000:01:00.0: loaded: 535.1, needed: 570.2"
    assert failure.get("type") == "critical"
    assert failure.text.splitlines() == [
        "since: 2026-11-01T09:00:00Z",
        "0000:01:00.0: loaded: 535.1, needed: 570.2",
        "what to do: Mend the critical thing.",
    ]


@pytest.mark.parametrize(("outcome", "tag"), [("unreachable", "error"), ("unknown", "error"), ("not_asked", "skipped")])
def test_junit_has_one_case_of_a_host_that_was_not_judged(outcome, tag):
    ((case,),) = parsed(made({**host("a", outcome), "reason": "because"}))
    assert case[0].tag == tag
    assert case[0].get("message") == f"{outcome.replace('_', ' ')}: because"


def test_cases_of_one_rule_have_different_names_on_different_hosts():
    names = [(case.get("classname"), case.get("name")) for case in parsed(made(host("a"), host("b"))).iter("testcase")]
    assert len(set(names)) == 8


def test_schema_refuses_what_is_no_junit():
    for wrong in (
        "<testsuites><testcase/></testsuites>",
        '<testsuites><testsuite name="a"/></testsuites>',
        '<testsuites tests="-1"/>',
    ):
        assert not SCHEMA.validate(etree.fromstring(wrong))


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_tell_who_is_ready_what_fails_and_since_when():
    waiver = {
        "rule": "some.high",
        "hosts": "b",
        "ticket": "T-1",
        "expires": "2026-11-24",
        "state": "active",
        "days_left": 1,
    }
    found = series(
        made(
            host("a"),
            host("b", "not_ready", critical="failed", high="waived"),
            host("c", "unreachable"),
            waivers=[waiver],
        )
    )
    assert found['gpufleet_train_ready{host="a"}'] == 1
    assert found['gpufleet_train_ready{host="b"}'] == 0
    assert found['gpufleet_train_ready{host="c"}'] == 0
    assert found['gpufleet_rule_status{host="b",rule="some.critical",severity="critical",status="failed"}'] == 1
    assert found['gpufleet_rule_status{host="b",rule="some.high",severity="high",status="waived"}'] == 1
    since = [key for key in found if key.startswith("gpufleet_rule_failing_since")]
    assert since == ['gpufleet_rule_failing_since_timestamp_seconds{host="b",rule="some.critical",severity="critical"}']
    assert found[since[0]] == 1793523600
    assert found['gpufleet_rule_hosts{rule="some.critical",severity="critical",status="passed"}'] == 1
    assert found['gpufleet_rule_hosts{rule="some.low",severity="low",status="failed"}'] == 0
    assert found['gpufleet_host_proven_timestamp_seconds{host="b"}'] == 1795176000
    assert found['gpufleet_hosts{outcome="unreachable"}'] == 1
    assert found["gpufleet_report_timestamp_seconds"] == 1795435200
    assert (
        found['gpufleet_waiver_expiry_timestamp_seconds{rule="some.high",hosts="b",ticket="T-1"}'] == 1795564800
    )  # the day included


def test_a_passed_rule_has_no_series_of_its_own_on_each_host():
    assert not [
        key for key in series(made(*(host(f"ws-{n}") for n in range(50)))) if key.startswith("gpufleet_rule_status")
    ]


def test_two_hosts_that_look_the_same_keep_a_series_each():
    found = series(made(host("ws\x1b"), host("ws\x1b", "not_ready", high="failed"), host("W" * 300), host("W" * 301)))
    ready = {key: value for key, value in found.items() if key.startswith("gpufleet_train_ready")}
    assert sorted(ready.values()) == [0, 1, 1, 1]


def test_promtool_has_no_complaint_about_a_fleet_and_about_a_host():
    checked_by_promtool(prometheus(fleet.document()))
    observation = {
        "gpus": [{}],
        "health": {
            "missing_gpus": [],
            "xid": [{"this_boot": True, "count": 2, "number": 79, "pci_address": "0000:01:00.0", "severity": "reset"}],
        },
    }
    stamp = {
        "verdict": "passed",
        "level": "quick",
        "proven_at": "2026-11-23T12:00:00Z",
        "gpus": [{"uuid": "GPU-1", "verdict": "passed"}],
    }
    families = metrics.of_host(
        [{"environment": "base", "stamp": stamp, "covers": True}], observation, "2026-11-23T12:00:00Z"
    )
    assert len(metrics.text(families).splitlines()) == 21  # every metric is there
    checked_by_promtool(metrics.text(families))


def test_promtool_is_asked_and_can_complain():
    try:
        assert "gpufleet_x" in promtool.complaints("gpufleet_x 1\n")  # no help
        assert promtool.complaints('gpufleet_x{host="a} 1\n')
    except promtool.Missing as error:
        pytest.skip(str(error))


def test_files_of_host_and_fleet_have_no_metric_in_common():
    families = {family.name for family in metrics.of_host([], {}, "2026-11-23T12:00:00Z")}
    assert not families & set(re.findall(r"^# TYPE (\S+)", prometheus(fleet.document()), re.MULTILINE))


# ---- the hostile corpus ---------------------------------------------------------------------------------------------

HOSTILE = [pytest.param(document, id=name) for name, document in hostile.documents()]
HARMLESS = hostile.document("harmless")


def unprintable(output: str) -> list[str]:
    """The characters that must not be in any output."""
    return [each for each in output if each != "\n" and unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize("render", FORMATS)
@pytest.mark.parametrize("document", HOSTILE)
def test_no_output_holds_what_cannot_be_seen_or_a_secret_and_the_same_document_gives_the_same(document, render):
    before = copy.deepcopy(document)
    output = render(document)
    assert not unprintable(output)
    assert not [secret for secret in hostile.SECRETS if secret in output]
    assert output == render(document)
    assert document == before
    assert len(output) < 300_000
    output.encode("utf-8")


@pytest.mark.parametrize("document", HOSTILE)
def test_hostile_values_make_no_line_of_the_text(document):
    lines = text(document).splitlines()
    assert not [line for line in lines if line.startswith(hostile.FORGED)]
    assert lines[-1] == "0 of 4 hosts train-ready (1 unreachable, 1 not asked)"


@pytest.mark.parametrize("document", HOSTILE)
def test_hostile_values_make_no_element_of_the_xml(document):
    assert [node.tag for node in parsed(document).iter()] == [node.tag for node in parsed(HARMLESS).iter()]


@pytest.mark.parametrize("document", HOSTILE)
def test_hostile_values_make_no_series_and_take_none_away(document):
    def kinds(found: dict[str, float]) -> dict[str, int]:
        # Times of the corpus are no times, and its hosts' names are what differs: how many there are of each metric stays.
        names = [key.partition("{")[0] for key in found]
        return {name: names.count(name) for name in names}

    assert kinds(series(document)) == kinds(series(HARMLESS))


def test_promtool_has_no_complaint_about_any_hostile_document():
    for _name, document in hostile.documents():
        checked_by_promtool(prometheus(document))


def test_what_a_host_tells_of_its_users_is_in_no_format():
    module = pytest.importorskip("ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance.document")
    document = module.redact(hostile.document("harmless", evidence=hostile.OBSERVATION))
    for render in FORMATS:
        output = render(document)
        assert "LD_PRELOAD" in output or render is prometheus  # the evidence is there
        assert not [each for each in hostile.PRIVATE if each in output]


# ---- any document ---------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from([each[:200] for each in hostile.PAYLOADS.values()])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def odd(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what is right, sometimes anything."""
    return st.one_of(right, right, right, JSON)


def some(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object in which anything may be missing or odd."""
    return odd(st.fixed_dictionaries({}, optional={key: odd(value) for key, value in parts.items()}))


TIMES = (
    st.sampled_from(["2026-11-23T12:00:00Z", "2026-02-30T12:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
    | TEXTS
)
STATUSES = st.sampled_from(canonical.STATUSES)
ITEMS = st.lists(
    some(name=TEXTS, status=STATUSES, evidence=st.dictionaries(TEXTS, JSON, max_size=2), message=TEXTS), max_size=2
)
RESULTS = st.dictionaries(
    st.sampled_from(["a.b", "c.d"]) | TEXTS, some(status=STATUSES, since=TIMES, items=ITEMS), max_size=3
)
CHANGES = st.lists(some(what=TEXTS, before=JSON, after=JSON), max_size=2)
HOSTS = some(
    name=TEXTS,
    groups=st.lists(TEXTS, max_size=2),
    outcome=st.sampled_from(canonical.OUTCOMES),
    **dict.fromkeys(("reason", "gpu", "driver", "torch"), TEXTS),
    **dict.fromkeys(("since", "observed_at", "proven_at"), TIMES),
    results=RESULTS,
    drift=some(since_last=CHANGES),
)
RULES = some(
    id=st.sampled_from(["a.b", "c.d"]), title=TEXTS, severity=st.sampled_from(canonical.SEVERITIES), remedy=TEXTS
)
WAIVERS = some(
    **dict.fromkeys(("rule", "hosts", "owner", "ticket"), TEXTS),
    expires=st.sampled_from(["2026-12-31", "9999-12-31"]) | TEXTS,
    days_left=st.integers(),
    state=st.sampled_from(["active", "expired", "unneeded", "orphaned"]),
)
DOCUMENTS = some(
    generated_at=TIMES,
    rules=st.lists(RULES, max_size=3),
    hosts=st.lists(HOSTS, max_size=4),
    waivers=st.lists(WAIVERS, max_size=2),
    errors=st.lists(TEXTS, max_size=2),
    notes=st.lists(TEXTS, max_size=2),
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(DOCUMENTS, st.integers(-5, 300))
def test_no_document_whatsoever_makes_a_format_raise_or_invalid(document, width):
    hosts = [each for each in canonical.of(document)["hosts"] if each["outcome"] == "ready"]
    assert not unprintable(text(document, width))
    assert not unprintable("".join(parsed(document).itertext()))
    ready = [value for key, value in series(document).items() if key.startswith("gpufleet_train_ready")]
    assert sum(ready) == len(hosts)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(DOCUMENTS)
def test_no_host_becomes_ready_that_did_not_say_so_and_meet_every_severe_rule(document):
    told = document.get("hosts") if isinstance(document, dict) else None
    for host_told, shown in zip(told if isinstance(told, list) else [], canonical.of(document)["hosts"]):
        if shown["outcome"] == "ready":
            assert host_told["outcome"] == "ready"
            severe = {
                rule["id"] for rule in canonical.of(document)["rules"] if rule["severity"] in ("critical", "high")
            }
            assert {shown["results"][rule]["status"] for rule in severe} <= {"passed", "not_applicable", "waived"}
