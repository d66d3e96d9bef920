"""Who is train-ready and who is not, since when and why: told of a fleet that broke, without touching it."""

from __future__ import annotations

import json
import stat

import pytest
from checks.hosts import fingerprint

pytestmark = pytest.mark.timeout(900)

CHECK = "playbooks/check_compliance.yml"
READY, BROKEN = ["ws-5070"], ["ws-1080ti", "ws-mixed", "ws-wsl"]
ASKED = [*READY, *BROKEN, "ws-clash", "ws-dead"]


@pytest.fixture(scope="module")
def judged(play, host_named, tmp_path_factory):
    """Judge the fleet once, a dead host included, and see that nothing changed anywhere."""
    folder = tmp_path_factory.mktemp("judged")
    inventory = folder / "dead.yml"
    inventory.write_text("all: {hosts: {ws-dead: {ansible_host: 127.0.0.1, ansible_port: 9}}}\n", encoding="utf-8")
    hosts = {name: host_named(name) for name in ASKED if name != "ws-dead"}
    before = {name: fingerprint(host) for name, host in hosts.items()}
    options = ["-i", str(inventory), "-e", f"gpufleet_hosts={','.join(ASKED)}"]
    done = play(CHECK, *options, "-e", f"gpu_compliance_directory={folder}/report")
    assert {name: fingerprint(host) for name, host in hosts.items()} == before
    report = folder / "report/report.json"
    assert report.is_file(), done.stdout + done.stderr
    document = json.loads(report.read_text(encoding="utf-8"))
    return done, {host["name"]: host for host in document["hosts"]}, document, folder / "report"


def missed(host) -> set[str]:
    return {rule for rule, result in host["results"].items() if result["status"] in ("failed", "error", "not_run")}


def test_the_run_fails_and_names_who_is_not_ready(judged):
    done, _hosts, document, _folder = judged
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{len(READY)} of {len(ASKED)} hosts train-ready" in done.stdout
    counted = {outcome: count for outcome, count in document["totals"].items() if count}
    assert counted == {"hosts": 6, "ready": 1, "not_ready": 4, "unreachable": 1}


def test_a_host_that_meets_every_rule_stays_ready(judged):
    assert missed(judged[1]["ws-5070"]) == set()
    assert judged[1]["ws-5070"]["outcome"] == "ready"


@pytest.mark.parametrize(
    ("name", "rule", "evidence"),
    [
        ("ws-1080ti", "environment.intact", "version.py"),
        ("ws-mixed", "gpu.missing", "0000:21:00.0"),
        ("ws-wsl", "runtime.tokenizers_pam", "true"),
        ("ws-clash", "plan.feasible", "open"),
    ],
)
def test_what_broke_is_found_with_evidence_and_remedy(judged, name, rule, evidence):
    host = judged[1][name]
    assert host["outcome"] == "not_ready"
    assert rule in missed(host)
    assert evidence in json.dumps(host["results"][rule]["items"])
    assert next(row["remedy"] for row in judged[2]["rules"] if row["id"] == rule)


def test_the_dead_host_counts_and_is_not_ready(judged):
    assert judged[1]["ws-dead"]["outcome"] == "unreachable"


@pytest.mark.parametrize(("name", "what"), [("ws-mixed", "gpus"), ("ws-wsl", "variables of ")])
def test_drift_says_what_changed_since_provisioning(judged, name, what):
    changes = judged[1][name]["drift"]["since_provisioned"]
    assert [change for change in changes if change["what"].startswith(what)]


def test_reports_are_whole_and_for_their_owner_alone(judged):
    folder = judged[3]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes == {
        "report": 0o700,
        **dict.fromkeys((".lock", "report.json", "report.txt", "index.html", "junit.xml", "gpufleet.prom"), 0o600),
    }
    junit = (folder / "junit.xml").read_text(encoding="utf-8")
    assert [name for name in ASKED if f'<testsuite name="{name}"' not in junit] == []
    assert 'gpufleet_train_ready{host="ws-mixed"} 0' in (folder / "gpufleet.prom").read_text(encoding="utf-8")


def test_a_second_run_says_since_when(judged, play, tmp_path):
    hosts = ",".join([*READY, *BROKEN])
    options = ["-e", f"gpufleet_hosts={hosts}", "--check", "-e", f"gpu_compliance_directory={tmp_path}"]
    again = play(CHECK, *options)
    assert again.returncode == 2, again.stdout + again.stderr
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["hosts"]
    assert {host["name"]: host["since"] for host in told} == {
        name: judged[1][name]["since"] for name in [*READY, *BROKEN]
    }
    assert not any(host["drift"]["since_last"] for host in told)


def test_limit_leaves_hosts_out_but_not_of_the_count(play, tmp_path):
    options = ["-e", "gpufleet_hosts=ws-5070,ws-wsl", "-l", "ws-5070", "-e", f"gpu_compliance_directory={tmp_path}"]
    done = play(CHECK, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 hosts train-ready" in done.stdout


def test_provisioning_mends_what_a_variable_broke(play, tmp_path):
    mended = play("provision-gpu.yml", "-e", "gpufleet_hosts=ws-wsl")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    done = play(CHECK, "-e", "gpufleet_hosts=ws-wsl", "-e", f"gpu_compliance_directory={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ws-wsl is train-ready" in done.stdout
