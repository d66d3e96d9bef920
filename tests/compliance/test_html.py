# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's page in real headless Chromium: what it shows, how it is used, and that nothing a host says can do anything in it.

GPUFLEET_SCREENSHOTS=<folder> keeps pictures of it there.
"""

from __future__ import annotations

import copy
import html.parser
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import browser
import fleet
import hostile
from ansible_collections.gpufleet.workstation.plugins.plugin_utils.compliance import render_html

PAGES = ("view=fleet", "view=rules", "view=drift", "view=waivers", "view=gpus")
HOSTILE = (
    "</script><script>hacked = 1</script>",
    "<!--<script>",
    "<img src=x onerror='hacked = 1'>",
    "<style>*{display:none}</style><base href='//example.invalid/'>",
    "{{data}}{{policy}}{{summary}}",
    "' onfocus='hacked = 1' autofocus='",
    '" onmouseover="hacked = 1" x="',
    "javascript:hacked=1",
    "__proto__",
    "constructor",
    "\x1b[2J\x1b]8;;http://example.invalid\x07click\x1b]8;;\x07",
    "\u202egnp.exe\u2066\u200b\u2028\u2029\ufeff",
    "\ud800lone\udfff",
    "a\x00b\x85c\rd",
    "&lt;b&gt;&amp;#x3c;script&#x3e;",
    "Z̸̨̡͓̻̹̗̤̟͎̀͑̓̿̽͝ä̵́",
    "x" * 1_000_000,
)
# Text whose color is too near to what lies below it. Inputs have their text in a tree of their own: their own color counts.
CONTRAST = """
(() => {
  const parts = (color) => { const n = color.match(/[\\d.]+/g).map(Number); return {rgb: n.slice(0, 3), alpha: n.length > 3 ? n[3] : 1}; };
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => rgb.reduce((sum, c, i) => sum + linear(c / 255) * [0.2126, 0.7152, 0.0722][i], 0);
  const below = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const {rgb, alpha} = parts(getComputedStyle(at).backgroundColor);
      if (alpha > 0) layers.push({rgb, alpha});
      if (alpha === 1) break;
    }
    return layers.reverse().reduce((under, {rgb, alpha}) => rgb.map((c, i) => c * alpha + under[i] * (1 - alpha)), [255, 255, 255]);
  };
  const bad = new Set();
  let seen = 0;
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) || node.matches("input, select");
    if (!own || node.closest("script, noscript") || !node.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const style = getComputedStyle(node), front = parts(node instanceof SVGElement ? style.fill : style.color), back = below(node);
    const color = front.rgb.map((c, i) => c * front.alpha + back[i] * (1 - front.alpha));
    const [high, low] = [light(color), light(back)].sort((a, b) => b - a), ratio = (high + 0.05) / (low + 0.05);
    seen += 1;
    if (ratio < 4.5) bad.add(`${ratio.toFixed(2)} ${node.tagName}.${node.getAttribute("class")} ${node.textContent.slice(0, 30)}`);
  }
  return {seen, bad: [...bad]};
})()
"""


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    if browser.missing():
        pytest.fail(browser.missing())
    with browser.chromium() as opened:
        yield opened


@pytest.fixture(autouse=True)
def calm(page: browser.Page) -> Iterator[None]:
    """Every test starts on a desktop, and none may bring a complaint of the browser or a request to anything but the page."""
    page.size(1440, 900)
    page.media()
    page.complaints.clear()
    page.requests.clear()
    yield
    page.run("0")
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "about:"))] == []
    assert len({url.split("#")[0] for url in page.requests if url.startswith("file:")}) <= 1


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return fleet.document(60)


@pytest.fixture(scope="module")
def path(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page"), document)


@pytest.fixture
def shot(page: browser.Page) -> Callable[[str], None]:
    folder = os.environ.get("GPUFLEET_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(Path(folder, f"{name}.png")) if folder else None


def written(folder: Path, document: Any) -> Path:
    file = folder / "index.html"
    file.write_text(render_html.html(document), encoding="utf-8")
    return file


def shown_hosts(page: browser.Page) -> list[str]:
    return page.run("[...document.querySelectorAll('[role=rowheader] a, .cards .first a')].map((a) => a.textContent)")


def focused(page: browser.Page) -> list[int]:
    """Row and column of the matrix that have the focus."""
    return page.run(
        "[Number(document.activeElement.closest('[data-row]')?.dataset.row), Number(document.activeElement.dataset.column)]"
    )


def names(document: dict[str, Any], wanted: Callable[[dict[str, Any]], bool]) -> set[str]:
    return {host["name"] for host in document["hosts"] if wanted(host)}


def seen(host: dict[str, Any]) -> bool:
    return host["outcome"] in ("ready", "not_ready")


# ---- the matrix


def test_the_matrix_shows_every_host_and_rule_with_its_status(
    page: browser.Page, path: Path, document: dict[str, Any]
) -> None:
    page.open(path)
    assert set(shown_hosts(page)) == names(document, lambda host: True)
    heads = page.run("[...document.querySelectorAll('.h')].map((h) => h.getAttribute('aria-label').split(',')[0])")
    assert heads == [rule["id"] for rule in document["rules"]]
    by_name = {host["name"]: host for host in document["hosts"]}
    rows = page.run(
        "[...document.querySelectorAll('[data-row]:has(.c)')].map((row) => [row.querySelector('a').textContent, "
        "[...row.querySelectorAll('.c')].map((c) => [c.getAttribute('aria-label'), c.textContent])])"
    )
    assert len(rows) > 20
    glyphs = {
        "passed": "✓",
        "failed": "✕",
        "error": "!",
        "not_run": "…",
        "not_applicable": "\N{EN DASH}",
        "waived": "W",
    }
    for name, cells in rows:
        results = {rule: result["status"] for rule, result in by_name[name]["results"].items()}
        assert cells == [[f"{rule} {status.replace('_', ' ')}", glyphs[status]] for rule, status in results.items()]


def test_the_most_urgent_hosts_come_first_and_the_unobserved_say_why(
    page: browser.Page, path: Path, document: dict[str, Any]
) -> None:
    page.open(path)
    outcomes = {host["name"]: host["outcome"] for host in document["hosts"]}
    order = [render_html.OUTCOMES.index(outcomes[name]) for name in shown_hosts(page)]
    assert order == sorted(order)
    assert (
        "No route to host" in page.text(".unseen.value, [data-row]:has(.unseen) + [data-row] .unseen")
        or "No route" in page.text()
    )
    assert f"{document['totals']['ready']} of {document['totals']['hosts']} hosts ready" in page.text(".headline")


# ---- filters


@pytest.mark.parametrize(
    ("fragment", "wanted"),
    [
        ("outcome=not_ready", lambda host: host["outcome"] == "not_ready"),
        ("outcome=unknown,unreachable", lambda host: host["outcome"] in ("unknown", "unreachable")),
        ("status=waived", lambda host: seen(host) and "waived" in {r["status"] for r in host["results"].values()}),
        (
            "rule=gpu.link_width",
            lambda host: seen(host) and host["results"]["gpu.link_width"]["status"] in ("failed", "error", "not_run"),
        ),
        ("group=render", lambda host: "render" in host["groups"]),
        (
            "gpu=NVIDIA+GeForce+RTX+5090",
            lambda host: "NVIDIA GeForce RTX 5090" in {gpu["name"] for gpu in host["gpus"]},
        ),
        ("q=render+5090", lambda host: "render" in host["name"] and "5090" in host["gpu"]),
        ("outcome=nonsense&group=nowhere&view=none", lambda host: True),
    ],
)
def test_the_address_alone_filters(
    page: browser.Page, path: Path, document: dict[str, Any], fragment: str, wanted: Callable[[dict[str, Any]], bool]
) -> None:
    page.open(path, fragment)
    assert set(shown_hosts(page)) == names(document, wanted)
    assert shown_hosts(page)


def test_a_severity_narrows_hosts_and_columns(page: browser.Page, path: Path, document: dict[str, Any]) -> None:
    page.open(path, "severity=critical")
    critical = {rule["id"] for rule in document["rules"] if rule["severity"] == "critical"}
    assert page.run("document.querySelectorAll('.h').length") == len(critical)
    bad = ("failed", "error", "not_run")
    assert set(shown_hosts(page)) == names(
        document, lambda host: seen(host) and any(host["results"][rule]["status"] in bad for rule in critical)
    )


def test_columns_without_findings_can_be_left_out(page: browser.Page, path: Path, document: dict[str, Any]) -> None:
    page.open(path, "columns=findings&group=render")
    found = {
        rule
        for host in document["hosts"]
        if seen(host) and "render" in host["groups"]
        for rule, result in host["results"].items()
        if result["status"] not in ("passed", "not_applicable")
    }
    assert page.run("document.querySelectorAll('.h').length") == len(found) < len(document["rules"])


def test_filters_are_kept_in_the_address_and_cleared(page: browser.Page, path: Path, document: dict[str, Any]) -> None:
    page.open(path)
    page.click("[data-outcome=not_ready]")
    assert page.run("location.hash") == "#outcome=not_ready"
    assert page.run("document.querySelector('[data-outcome=not_ready]').getAttribute('aria-pressed')") == "true"
    assert set(shown_hosts(page)) == names(document, lambda host: host["outcome"] == "not_ready")
    page.key("/", "z", "z", "z")
    assert "q=zzz" in page.run("location.hash")
    assert "No host matches" in page.text(".fleet")
    page.run(
        "[...document.querySelectorAll('.filters .button')].find((b) => b.textContent === 'Clear filters').click()"
    )
    assert set(shown_hosts(page)) == names(document, lambda host: True)
    assert page.run("location.hash") in ("", "#")


# ---- keyboard


def test_the_keyboard_reaches_the_matrix_and_walks_it(
    page: browser.Page, path: Path, shot: Callable[[str], None]
) -> None:
    page.open(path)
    page.key("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.key("Enter")
    assert focused(page) == [1, 0]
    page.key("ArrowRight", "ArrowRight", "ArrowDown")
    assert focused(page) == [2, 2]
    assert page.run("document.querySelectorAll('[role=grid] [tabindex=\"0\"]').length") == 1, "one stop of the tab key"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    label = page.run("document.activeElement.getAttribute('aria-label')").split()
    assert label[0] in page.text(".peek"), "what has the focus is told below the matrix"
    assert label[1] in page.text(".peek")
    shot("keyboard")
    page.key("ArrowUp", "ArrowUp", "ArrowUp")
    assert focused(page) == [0, 2]
    page.key("ArrowDown", "ArrowDown", "ArrowDown", "Enter")
    assert page.run("location.hash").startswith("#host=")
    assert f"at={label[0].rsplit(' ', 1)[0]}" in page.run("location.hash")


def test_a_far_row_gets_its_cells_when_the_keyboard_goes_there(
    page: browser.Page, path: Path, document: dict[str, Any]
) -> None:
    page.open(path)
    page.run("document.querySelector('[role=grid] [tabindex=\"0\"]').focus()")
    page.key("End", control=True)
    assert focused(page) == [len(document["hosts"]), len(document["rules"])]
    # Seen, and not below what sticks.
    inside = (
        "(() => { const r = document.activeElement.getBoundingClientRect(); "
        "return document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2) === document.activeElement; })()"
    )
    assert page.run(inside)
    page.key("Home", control=True)
    assert focused(page) == [1, 0]
    page.key("PageDown", "ArrowRight")
    assert focused(page)[0] > 3
    assert page.run(inside)


def test_rows_out_of_sight_have_no_cells_but_can_be_found_by_the_browser(page: browser.Page, tmp_path: Path) -> None:
    page.open(written(tmp_path, fleet.document(400, 50)))
    assert page.run("document.querySelectorAll('.c').length") < 100 * 50
    last = page.run("document.querySelector('.grid').lastChild.querySelector('a').textContent")
    assert page.run(f"window.find({json.dumps(last)})")
    page.run("document.querySelector('.matrix').scrollTo(0, 1e6)")
    page.until("document.querySelector('.grid').lastChild.querySelectorAll('.c').length === 50")
    page.until("document.querySelector('.grid').children[5].querySelectorAll('.c').length === 0")


def test_every_control_has_a_name(page: browser.Page, path: Path) -> None:
    page.send("Accessibility.enable")
    page.open(path)
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    controls = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in ("button", "link", "searchbox", "combobox", "gridcell")
    ]
    assert len(controls) > 100
    assert [node for node in controls if not node.get("ignored") and not node.get("name", {}).get("value")] == []
    page.send("Accessibility.disable")


# ---- the other pages


def test_a_host_has_a_page_with_evidence_rationale_and_remedy(
    page: browser.Page, path: Path, document: dict[str, Any], shot: Callable[[str], None]
) -> None:
    host = next(host for host in document["hosts"] if host["outcome"] == "not_ready")
    page.open(path, f"host={host['name']}")
    text = page.text("main")
    assert page.run("document.title").startswith(host["name"])
    rules = {rule["id"]: rule for rule in document["rules"]}
    found = {
        rule: result for rule, result in host["results"].items() if result["status"] not in ("passed", "not_applicable")
    }
    assert page.run("[...document.querySelectorAll('.finding')].map((f) => f.dataset.rule).sort()") == sorted(found)
    for rule, result in found.items():
        assert rules[rule]["rationale"] in text
        assert rules[rule]["remedy"] in text
        for item in result["items"]:
            assert item["message"] in text
            for key, value in item["evidence"].items():
                assert key in text
                assert (value if isinstance(value, str) else "") in text
    for gpu in host["gpus"]:
        assert gpu["uuid"] in text
    for moment in (host["proven_at"], host["since"]):
        assert f"{moment[:10]} {moment[11:16]} UTC" in text
    shot("host")
    page.run("document.querySelector('.pager a').click()")
    page.until(f"!document.title.startsWith({json.dumps(host['name'])})")


def test_drift_since_the_last_verdict_and_since_provisioning_is_shown(
    page: browser.Page, path: Path, document: dict[str, Any]
) -> None:
    host = next(
        host for host in document["hosts"] if host["drift"]["since_last"] and host["drift"]["since_provisioned"]
    )
    page.open(path, f"host={host['name']}")
    change = host["drift"]["since_last"][0]
    table = page.run(
        "[...document.querySelectorAll('section')].find((s) => s.innerText.startsWith('Changed since the last')).innerText"
    )
    assert all(change[key] in table for key in ("what", "before", "after"))
    page.go("view=drift")
    assert page.text("main").count("Changed since") == 2
    assert change["after"] in page.text("main")


def test_drift_over_time_is_a_plot_that_the_keyboard_reads(
    page: browser.Page, path: Path, document: dict[str, Any], shot: Callable[[str], None]
) -> None:
    page.open(path, "view=drift")
    assert page.run("document.querySelectorAll('.plot svg path.a0, .plot svg path.a1, .plot svg path.a2').length") == 3
    assert "NaN" not in page.run("document.querySelector('.plot svg').outerHTML")
    shot("drift")
    first = document["history"][0]["totals"]
    page.run("document.querySelector('.plot svg').focus()")
    page.key("Home")
    assert f"{first['ready']} ready, {first['not_ready']} not ready" in page.text(".plot")
    page.key("ArrowRight")
    second = document["history"][1]["totals"]
    assert f"{second['ready']} ready, {second['not_ready']} not ready" in page.text(".plot")


def test_waivers_count_down(
    page: browser.Page, path: Path, document: dict[str, Any], shot: Callable[[str], None]
) -> None:
    page.open(path, "view=waivers")
    text = page.text("main")
    for waiver in document["waivers"]:
        assert all(waiver[key] in text for key in ("rule", "owner", "ticket", "expires", "reason"))
        days = waiver["days_left"]
        assert (f"{days} days left" if days > 0 else f"ended {-days} days ago") in text
    assert "expired" in text
    shot("waivers")


def test_gpus_are_counted_by_model(
    page: browser.Page, path: Path, document: dict[str, Any], shot: Callable[[str], None]
) -> None:
    page.open(path, "view=gpus")
    gpus = [gpu for host in document["hosts"] for gpu in host["gpus"]]
    assert f"{len(gpus)} GPUs on" in page.text("main h2")
    cards = [gpu for gpu in gpus if gpu["name"] == "NVIDIA GeForce RTX 5090"]
    row = page.run(
        "[...document.querySelectorAll('tr')].find((r) => r.innerText.startsWith('NVIDIA GeForce RTX 5090')).innerText"
    )
    assert str(len(cards)) in row.split()
    assert gpus[-1]["uuid"] in page.text("main")
    shot("gpus")


def test_rules_tell_how_many_hosts_fail_and_link_to_them(
    page: browser.Page, path: Path, document: dict[str, Any], shot: Callable[[str], None]
) -> None:
    page.open(path, "view=rules")
    failed = [
        sum(seen(h) and h["results"][r["id"]]["status"] == "failed" for h in document["hosts"])
        for r in document["rules"]
    ]
    assert [
        int(n) for n in page.run("[...document.querySelectorAll('td.number strong')].map((n) => n.textContent)")
    ] == sorted(filter(None, failed), reverse=True)
    shot("rules")
    page.click("tbody a")
    assert 1 <= len(shown_hosts(page)) < len(document["hosts"])


def test_an_unknown_host_in_the_address_is_said_to_be_unknown(page: browser.Page, path: Path) -> None:
    page.open(path, "host=%3Cscript%3Ehacked=1%3C/script%3E")
    assert "There is no host <script>hacked=1</script>" in page.text("main")


# ---- how it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 320])
def test_text_has_contrast(page: browser.Page, path: Path, document: dict[str, Any], scheme: str, width: int) -> None:
    page.size(width, 900)
    page.media(prefers_color_scheme=scheme)
    host = next(host for host in document["hosts"] if host["outcome"] == "not_ready")
    for fragment in (*PAGES, "outcome=not_ready&severity=critical", f"host={host['name']}&at=gpu.link_width"):
        page.open(path, fragment)
        found = page.run(CONTRAST)
        assert found["seen"] > 20
        assert found["bad"] == [], fragment


def test_dark_mode_is_dark(page: browser.Page, path: Path, shot: Callable[[str], None]) -> None:
    page.open(path)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.run(background)
    shot("desktop")
    page.media(prefers_color_scheme="dark")
    assert page.run(background) != light
    assert max(int(part) for part in page.run(background)[4:-1].split(",")) < 60
    shot("dark")


@pytest.mark.parametrize("width", [320, 375, 768, 1024])
def test_no_page_has_to_be_scrolled_sideways(
    page: browser.Page, path: Path, document: dict[str, Any], width: int, shot: Callable[[str], None]
) -> None:
    page.size(width, 640)
    host = next(host for host in document["hosts"] if host["outcome"] == "not_ready")
    for fragment in (*PAGES, f"host={host['name']}"):
        page.open(path, fragment)
        assert page.run("document.documentElement.scrollWidth") <= width, fragment
        assert page.run("innerWidth") == width, fragment
        if width == 320:
            shot(f"phone-{fragment.split('=')[0]}-{fragment.split('=')[1] if fragment in PAGES else 'page'}")


def test_on_a_phone_hosts_are_cards_with_their_findings_in_words(
    page: browser.Page, path: Path, document: dict[str, Any]
) -> None:
    page.size(320, 640)
    page.open(path, "outcome=not_ready")
    assert not page.run("document.querySelector('.matrix')")
    first = page.text(".cards li")
    assert "not ready" in first
    assert "critical" in first or "high" in first
    page.click(".more")
    assert page.run("document.querySelector('.filters fieldset').checkVisibility()")


def test_status_is_never_told_by_color_alone(page: browser.Page, path: Path) -> None:
    page.open(path)
    assert page.run(
        "[...document.querySelectorAll('.c')].every((c) => c.textContent.trim() && c.getAttribute('aria-label').includes(' '))"
    )
    assert page.run(
        "[...document.querySelectorAll('.state')].every((s) => s.children[0].textContent && s.textContent.length > 3)"
    )
    legend = page.text(".legend")
    assert all(
        word in legend for word in ("failed", "error", "not run", "waived", "passed", "not applicable", "not judged")
    )


def test_printed_it_lists_every_host_with_its_findings(
    page: browser.Page, path: Path, document: dict[str, Any]
) -> None:
    page.open(path)
    page.run(
        "printed = ''; addEventListener('beforeprint', () => { printed = document.querySelector('main').textContent; })"
    )
    assert page.pdf().startswith(b"%PDF")
    printed = page.run("printed")
    for host in document["hosts"]:
        assert host["name"] in printed
    for host in (host for host in document["hosts"] if host["outcome"] == "not_ready"):
        assert all(rule in printed for rule, result in host["results"].items() if result["status"] == "failed")
    page.frame()
    assert page.run("Boolean(document.querySelector('.matrix'))"), "afterwards the matrix is there again"


def test_without_scripts_there_is_a_table_of_hosts_outcomes_and_reasons(
    page: browser.Page, path: Path, document: dict[str, Any]
) -> None:
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.send("Page.navigate", url=path.as_uri())
        text = ""
        while "Outcome" not in text:
            tree = page.send("DOMSnapshot.captureSnapshot", computedStyles=[])
            text = "\n".join(tree["strings"])
        for host in document["hosts"]:
            assert host["name"] in text
            assert host["reason"] in text
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)


# ---- safety


def hostile_document() -> dict[str, Any]:
    """A fleet whose every text that a host, a rule or a waiver can bring is hostile, each with another value in turn."""
    document = copy.deepcopy(fleet.document(len(HOSTILE) * 2, 6))
    document["hosts"] = [
        host | {"outcome": ("not_ready", "ready", "unknown")[index % 3]} for index, host in enumerate(document["hosts"])
    ]
    for index, host in enumerate(document["hosts"]):
        evil = HOSTILE[index % len(HOSTILE)]
        host |= dict.fromkeys(
            ("name", "reason", "gpu", "sm", "driver", "torch", "kernel", "since", "observed_at"), evil
        )
        host["groups"] = [evil]
        host["gpus"] = [{"pci_address": evil, "name": evil, "sm": evil, "uuid": evil, "memory_mib": evil}]
        host["facts"] = {evil: evil}
        change = {"what": evil, "before": evil, "after": evil}
        host["drift"] = {"since_last": [change], "since_provisioned": [change]}
        items = [{"name": evil, "status": evil, "evidence": {evil: evil, "list": [evil]}, "message": evil}]
        host["results"] = {rule: {"status": "failed", "since": evil, "items": items} for rule in host["results"]}
    for index, waiver in enumerate(document["waivers"]):
        waiver |= {
            key: HOSTILE[index % len(HOSTILE)] for key in ("rule", "hosts", "owner", "reason", "ticket", "expires")
        }
    document["errors"] = document["notes"] = list(HOSTILE)
    document["rules"][1] |= dict.fromkeys(("title", "rationale", "remedy", "source"), HOSTILE[0])
    return document


def test_hostile_values_are_inert_and_shown_as_text(
    page: browser.Page, tmp_path: Path, shot: Callable[[str], None]
) -> None:
    file = written(tmp_path, hostile_document())
    assert file.stat().st_size < 2_000_000, "a megabyte of text is cut"
    page.open(file)
    hosts = shown_hosts(page)
    assert len(hosts) == len(HOSTILE) * 2
    assert HOSTILE[0] in hosts
    assert f"{HOSTILE[0]} (2)" in hosts, "two hosts of one name have a page each"
    tall = (
        "[...document.querySelectorAll('[role=rowheader] a, .unseen')].filter((node) => node.offsetHeight > 30).length"
    )
    assert page.run(tall) == 0, "a name keeps to its line"
    shot("hostile")
    for fragment in PAGES:
        page.go(fragment)
        assert page.run("document.querySelector('main').children.length") > 0
    page.go("view=fleet")
    for index in range(1, len(hosts), 4):
        page.run(f"document.querySelectorAll('[role=rowheader] a')[{index}].click()")
        page.until("document.querySelector('.title')")
        assert page.run("document.querySelectorAll('.finding').length") == 6
        assert page.run("document.documentElement.scrollWidth") <= 1440
        page.go("view=fleet")
    assert page.run("typeof hacked") == "undefined"
    assert page.run("document.querySelectorAll('img, base, iframe, object, link, script[src]').length") == 0
    assert page.run("document.scripts.length") == 2
    assert page.run("document.querySelectorAll('style').length") == 1
    assert page.run("[...document.querySelectorAll('a')].every((a) => a.getAttribute('href').startsWith('#'))")
    odd = "/[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u200b-\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff]/"
    assert not page.run(f"{odd}.test(document.documentElement.outerHTML)")


def test_the_corpus_of_all_formats_is_inert_too(page: browser.Page, tmp_path: Path) -> None:
    for name, document in hostile.documents():
        file = written(tmp_path, document)
        page.open(file)
        host = shown_hosts(page)[0]
        page.run(f"location.hash = '#' + new URLSearchParams({{host: {json.dumps(host)}}})")
        page.until("document.querySelector('.title')")
        for fragment in PAGES:
            page.go(fragment)
            assert page.run("document.querySelector('main').children.length") > 0, name
        assert page.run(f"typeof {hostile.FORGED}") == "undefined", name
        assert page.run("document.querySelectorAll('img, base, iframe').length") == 0, name
        assert [secret for secret in hostile.SECRETS if secret in file.read_text()] == [], name


def test_the_policy_forbids_what_the_page_does_not_do(page: browser.Page, path: Path) -> None:
    page.open(path)
    blocked = page.run(
        """(async () => {
          const names = [];
          addEventListener("securitypolicyviolation", (event) => names.push(event.violatedDirective));
          const script = document.createElement("script");
          try { script.textContent = "hacked = 1"; document.body.append(script); } catch { names.push("no text for a script"); }
          try { document.body.innerHTML = "<b>x</b>"; } catch { names.push("no innerHTML"); }
          try { eval("hacked = 1"); } catch { names.push("no eval"); }
          const image = document.createElement("img");
          image.src = "data:image/png;base64,AA==";
          document.body.setAttribute("style", "color: red");
          await fetch("data:,x").catch(() => names.push("no fetch"));
          await new Promise((done) => setTimeout(done, 100));
          return names;
        })()"""
    )
    assert {"no text for a script", "no innerHTML", "no eval", "no fetch", "img-src", "style-src-attr"} <= set(blocked)
    assert page.run("typeof hacked") == "undefined"
    page.complaints.clear()
    page.requests.clear()


def test_nothing_in_the_file_points_outside(path: Path) -> None:
    class Parser(html.parser.HTMLParser):
        found: list[tuple[str, str]] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [
                (tag, name)
                for name, value in attrs
                if name in ("src", "href", "style", "srcset") and not str(value).startswith("#")
            ]
            self.found += [(tag, name) for name, _ in attrs if name.startswith("on")]

    parser = Parser()
    parser.feed(path.read_text())
    assert parser.found == []
    assert "@import" not in render_html.TEMPLATE
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "fetch(",
        "XMLHttpRequest",
    ):
        assert word not in render_html.TEMPLATE


# ---- size and time


def test_a_thousand_hosts_and_a_hundred_rules_open_within_two_seconds_in_five_megabytes(
    page: browser.Page, tmp_path: Path, shot: Callable[[str], None], record_property: Callable[[str, object], None]
) -> None:
    file = written(tmp_path, fleet.document(1000, 100, runs=400))
    size = file.stat().st_size
    # The best of three: what else the machine does is not the page's.
    seconds = min(page.open(file) for _ in range(3))
    record_property("bytes", size)
    record_property("seconds", round(seconds, 3))
    print(f"1000 hosts x 100 rules: {size / 1e6:.2f} MB, usable after {seconds:.2f} s")
    assert len(shown_hosts(page)) == 1000
    assert page.run("document.querySelectorAll('.row:nth-child(3) .c').length") == 100
    page.run("document.querySelector('[role=grid] [tabindex=\"0\"]').focus()")
    page.key("ArrowRight", "ArrowDown")
    assert focused(page) == [2, 1]
    shot("desktop-1000")
    assert size < 5_000_000
    assert seconds <= 2


def test_a_fleet_where_everything_fails_with_evidence_of_its_own_stays_below_five_megabytes(
    page: browser.Page, tmp_path: Path
) -> None:
    document = fleet.document(1000, 100, runs=400)
    for number, host in enumerate(document["hosts"]):
        host["outcome"] = "not_ready"
        for rule in host["results"]:
            items = [
                {
                    "name": f"{rule} {number} {n}",
                    "status": "failed",
                    "evidence": {"loaded": "x" * 300},
                    "message": f"{number}",
                }
                for n in range(3)
            ]
            host["results"][rule] = {"status": "failed", "since": None, "items": items}
    file = written(tmp_path, document)
    assert file.stat().st_size < 5_000_000
    seconds = min(page.open(file) for _ in range(3))
    assert "cut to keep this page small" in page.text(".notices")
    assert seconds <= 2


# ---- whatever the document is


@pytest.mark.parametrize(
    "odd",
    [None, [], "text", 7, True, float("nan"), {"hosts": 3}, {"hosts": [None, 3, [], {}]}, {"rules": [{}, None, 3]}],
)
def test_any_document_gives_a_page(page: browser.Page, tmp_path: Path, odd: Any) -> None:
    page.open(written(tmp_path, odd))
    assert "hosts" in page.text("main")
    for fragment in PAGES:
        page.go(fragment)
        assert page.run("document.querySelector('main').children.length") > 0
    assert "0 of" in page.run("location.hash = ''; document.querySelector('.headline')?.innerText ?? '0 of'")


def test_every_part_of_a_document_may_be_missing_or_of_another_type(page: browser.Page, tmp_path: Path) -> None:
    good = fleet.document(3, 4)
    odd: list[Any] = [
        None,
        5,
        -1.5,
        True,
        "text",
        [],
        {},
        [[]],
        [None],
        [{"a": 1}],
        {"a": None},
        10**5000,
        float("inf"),
    ]
    tried = 0

    def spoil(node: Any, depth: int) -> None:
        nonlocal tried
        for key in list(node) if isinstance(node, dict) else range(min(len(node), 1)) if isinstance(node, list) else []:
            kept = node[key]
            for value in odd:
                node[key] = value
                assert render_html.html(good).startswith("<!DOCTYPE html>")
                tried += 1
            node[key] = kept
            spoil(kept, depth + 1)

    spoil(good, 0)
    assert tried > 1000
    page.open(written(tmp_path, good))


def test_what_is_not_known_is_never_ready_or_passed(page: browser.Page, tmp_path: Path) -> None:
    rules = [{"id": f"a.rule{n}", "title": "t", "severity": "high", "rationale": "r", "remedy": "m"} for n in range(5)]
    odd = [{"status": "PASSED"}, {"status": ["passed"]}, {}, None]
    host = {"name": "one", "outcome": "Ready", "results": {f"a.rule{n}": result for n, result in enumerate(odd)}}
    judged = host | {"name": "two", "outcome": "not_ready"}
    contrary = {"name": "three", "outcome": "ready", "results": {f"a.rule{n}": {"status": "failed"} for n in range(5)}}
    page.open(written(tmp_path, {"rules": rules, "hosts": [host, judged, contrary]}))
    assert "0 of 3 hosts ready" in page.text(".headline")
    labels = page.run(
        "[...document.querySelectorAll('.c')].map((c) => c.getAttribute('aria-label').split(' ').slice(1).join(' '))"
    )
    assert sorted(labels) == ["error"] * 4 + ["failed"] * 5 + ["not judged"]
