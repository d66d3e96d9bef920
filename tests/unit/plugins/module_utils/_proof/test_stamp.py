"""The stamp of a proof: what it covers, what is doubted, and how it is kept on the host."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import expected
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge, stamp

AT = "2026-11-22T19:00:00Z"
LATER = "2026-11-24T07:30:00Z"  # 36.5 hours
SET = {"mig": "disabled", "compute_mode": "default"}
GPU = {"uuid": "GPU-1", "pci_address": "0000:01:00.0", "name": "NVIDIA GeForce RTX 5070", **SET}
OTHER = {"uuid": "GPU-2", "pci_address": "0000:02:00.0", "name": "NVIDIA GeForce RTX 3090", **SET}
NOW: dict[str, Any] = {
    "release": "2.9.1-cu128-1a2b3c4d",
    "release_digest": "a" * 64,
    "variables": "b" * 64,
    "driver": "580.95.05",
    "flavor": "open",
    "userspace": "580.95.05",
    "boot_id": "1f3f0bd4-5f1f-4c9b-8a52-0ff25cb5d1ad",
    "sm": ["sm_120"],
    "wish": "c" * 64,
    "burn_seconds": 60,
    "gpus": [GPU],
    "at": AT,
}
PASSED = {"id": "torch.import", "status": "passed", "code": None, "evidence": "torch 2.9.1+cu128"}
BUSY = {"id": "gpu.copy", "status": "not_run", "code": "busy", "evidence": "in use by python (42)"}
WRONG = {"id": "gpu.copy", "status": "failed", "code": "wrong_numbers", "evidence": "4 of 100 numbers differ"}


def proven(check: dict[str, Any] = PASSED, level: str = "quick", **changes: Any) -> dict[str, Any]:
    """One environment's result of cuda_verify, whose GPU has this check."""
    verdict = check["status"]
    result = {
        "name": "base",
        "verdict": verdict,
        "level": level,
        "proven": level if verdict == "passed" else "static",
        "reason": "" if verdict == "passed" else f"{check['id']}: {check['evidence']}",
        "remedy": "" if verdict == "passed" else "Run again.",
        "torch": {"version": "2.9.1+cu128"},
        "checks": [PASSED],
        "gpus": [] if level == "static" else [{**GPU, "verdict": verdict, "checks": [check]}],
    }
    return {**result, **changes}


def stamped(*arguments: Any, **changes: Any) -> dict[str, Any]:
    return stamp.document(proven(*arguments, **changes), NOW)


def why(document: Any, level: str = "quick", max_age: int = 168, **now: Any) -> str | None:
    return stamp.uncovered(document, "base", {**NOW, **now}, level, max_age)


# ---- what it covers -------------------------------------------------------------------------------------------------


def test_a_proof_covers_the_host_as_it_was() -> None:
    assert why(stamped()) is None
    assert why(stamped(), at=LATER) is None
    assert why(stamped(), level="static") is None
    assert why(stamped(level="static"), level="static") is None


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"release": "2.10.0-cu128-5e6f7a8b"}, "since its proof: release 2.9.1-cu128-1a2b3c4d -> 2.10.0-cu128-5e6f7a8b"),
        ({"release_digest": "c" * 64}, "since its proof: the release's own stamp was written anew"),
        ({"variables": None}, "since its proof: the environment's variables changed"),
        ({"driver": "580.105.08"}, "since its proof: driver 580.95.05 -> 580.105.08"),
        ({"driver": None, "flavor": None}, "since its proof: driver 580.95.05 -> none, open -> none kernel modules"),
        ({"flavor": "proprietary"}, "since its proof: open -> proprietary kernel modules"),
        ({"userspace": "580.105.08"}, "since its proof: installed driver 580.95.05 -> 580.105.08"),
        ({"boot_id": "another"}, "since its proof: rebooted"),
        ({"driver": "590.48.01", "boot_id": "x"}, "since its proof: driver 580.95.05 -> 590.48.01, rebooted"),
        ({"sm": ["sm_120", "sm_86"]}, "since its proof: GPUs of sm_120 -> sm_120 sm_86"),
        ({"wish": "d" * 64}, "since its proof: what is expected of it or who runs it changed"),
        ({"gpus": [{**GPU, "mig": "MIG-1"}]}, "since its proof: MIG of NVIDIA GeForce RTX 5070 at 0000:01:00.0: disabled -> MIG-1"),
        ({"gpus": [{**GPU, "mig": None}]}, "since its proof: MIG of NVIDIA GeForce RTX 5070 at 0000:01:00.0 is not known"),
        ({"gpus": [{**GPU, "compute_mode": "prohibited"}]},
         "since its proof: compute mode of NVIDIA GeForce RTX 5070 at 0000:01:00.0: default -> prohibited"),
        ({"gpus": []}, "since its proof: NVIDIA GeForce RTX 5070 at 0000:01:00.0 is gone"),
        ({"gpus": [GPU, OTHER]}, "since its proof: NVIDIA GeForce RTX 3090 at 0000:02:00.0 was not proven"),
        ({"gpus": None}, "since its proof: which GPUs the driver serves is not known"),
        ({"at": "2026-11-29T19:00:00Z"}, "its proof of 2026-11-22T19:00:00Z is older than 168 hours"),
        ({"at": "2026-11-22T18:59:59Z"}, "its proof is dated 2026-11-22T19:00:00Z, which is still to come by the host's clock"),
        ({"at": None}, "the age of its proof is not known"),
    ],
)  # fmt: skip
def test_what_changed_is_named(now: dict[str, Any], told: str) -> None:
    assert why(stamped(), **now) == told


@pytest.mark.parametrize("key", [*(key for key, _text in stamp._COMPARED), "gpus", "at"])
def test_what_is_not_known_of_the_host_covers_nothing(key: str) -> None:
    now = {name: value for name, value in NOW.items() if name != key}
    assert stamp.uncovered(stamped(), "base", now, "quick", 168)


@pytest.mark.parametrize(("hours", "covered"), [(0, False), (1, False), (36, False), (37, True), (10**12, True)])
def test_the_greatest_age_is_in_hours_and_0_covers_nothing(hours: int, covered: bool) -> None:
    assert (why(stamped(), max_age=hours, at=LATER) is None) is covered
    assert why(stamped(), max_age=0)


def test_a_level_below_the_wished_one_covers_nothing_and_says_why_it_was_not_more() -> None:
    assert why(stamped(level="static")) == "level quick is wanted, level static was proven"
    assert why(stamped(BUSY)) == "level quick is wanted, level static was proven (gpu.copy: in use by python (42))"
    assert why(stamped(BUSY), level="static") is None


def test_a_failure_covers_nothing_not_even_the_level_below_it() -> None:
    document = stamped(WRONG)
    assert (document["verdict"], document["level"]) == ("failed", "quick")
    assert why(document, level="static") == "its last proof failed: gpu.copy: 4 of 100 numbers differ"


def test_what_could_not_run_at_all_covers_nothing() -> None:
    document = stamped(BUSY, proven=None, reason="python.start: there is no account ada")
    assert document["verdict"] == "not_run"
    assert why(document, level="static") == "its last proof could not run: python.start: there is no account ada"


def test_at_level_static_other_gpus_of_the_same_architecture_change_nothing() -> None:
    assert why(stamped(level="static"), level="static", gpus=[OTHER]) is None


def test_settings_that_were_not_known_when_it_was_proven_are_not_the_same_now() -> None:
    dark = [{**GPU, "mig": None, "compute_mode": None}]
    document = stamp.document(proven(), {**NOW, "gpus": dark})
    told = "MIG of {0} {1} not known, compute mode of {0} {1} not known"
    named = "NVIDIA GeForce RTX 5070 at 0000:01:00.0"
    assert why(document) == "since its proof: " + told.format(named, "was")
    assert why(document, gpus=dark) == "since its proof: " + told.format(named, "is")
    assert why(stamp.document(proven(), {**NOW, "gpus": None}))


def test_what_a_card_does_not_have_is_as_it_was() -> None:
    gpus = [{**GPU, "mig": "not_applicable", "compute_mode": "not_applicable"}]
    assert why(stamp.document(proven(), {**NOW, "gpus": gpus}), gpus=gpus) is None


@pytest.mark.parametrize(
    ("mig", "told"),
    [
        ("not_applicable", "not_applicable"),
        ({"enabled": False, "pending": True, "instances": []}, "disabled"),
        ({"enabled": True, "pending": True, "instances": []}, "no instances"),
        ({"enabled": True, "instances": [{"uuid": "MIG-2"}, {"uuid": "MIG-1"}]}, "MIG-1 MIG-2"),
        ({"enabled": True, "instances": [{"uuid": "MIG-2"}, {"uuid": None}]}, None),
        ({"enabled": True, "instances": [7]}, None),
        ({"enabled": True, "instances": None}, None),
        ({"enabled": None, "instances": []}, None),
        ({"enabled": 1, "instances": []}, None),
        *((odd, None) for odd in (None, {}, [], True, "disabled", 7)),
    ],
)
def test_mig_is_what_nvml_says_or_not_known(mig: Any, told: str | None) -> None:
    assert stamp.settings({"mig": mig, "compute_mode": "default"}) == {"mig": told, "compute_mode": "default"}


@pytest.mark.parametrize("odd", [None, [], "not_applicable", 7, {}, {"compute_mode": None}, {"compute_mode": [1]}])
def test_no_odd_health_is_a_setting(odd: Any) -> None:
    assert stamp.settings(odd) == {"mig": None, "compute_mode": None}


def test_of_a_gpu_that_is_shared_out_the_names_of_the_whole_one_are_kept() -> None:
    part = {**GPU, "uuid": "GPU-of-a-part", "verdict": "passed", "checks": [PASSED]}
    assert [gpu["uuid"] for gpu in stamped(gpus=[part])["gpus"]] == ["GPU-1"]


def test_a_stamp_holds_what_failed_and_what_did_not_run_and_counts_the_rest() -> None:
    assert stamped(BUSY)["checks"] == {
        "passed": 1,
        "failed": [],
        "not_run": [{"id": "gpu.copy", "gpu": "0000:01:00.0", "code": "busy", "evidence": "in use by python (42)"}],
    }


def test_as_a_result_it_says_that_it_is_one_of_before_and_claims_no_more_than_it_proved() -> None:
    result = stamp.as_result(stamped(), "quick")
    assert (result["verdict"], result["proven"], result["stamped"], result["proven_at"]) == (
        "passed",
        "quick",
        True,
        AT,
    )
    short = stamp.as_result(stamped(BUSY), "quick")
    assert (short["verdict"], short["proven"]) == ("not_run", "static")
    assert short["reason"] == "gpu.copy: in use by python (42)"


# ---- doubt ----------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 1.0, float("nan"), float("inf"), 10**400, "", " ", "passed", "quick", "\x00", "\u0661"),
    *("2026-11-22", "9999-99-99T99:99:99Z", "\uff12\uff10\uff12\uff16-11-22T19:00:00Z", "2026-1-2T3:4:5Z", "a" * 64 + "\n"),
    *([], [None], [[]], ["sm_120", 1], {}, {"": None}, {"passed": True}, [GPU], [{**GPU, "verdict": "passed", "more": 1}]),
]  # fmt: skip
FIELDS = sorted(stamped())


def as_it_may_be(document: dict[str, Any], key: str) -> bool:
    """Whether a value is one that a stamp of this host could hold as well, so that it covers rightly."""
    return document[key] == stamped()[key] or key in ("reason", "remedy", "torch", "asked")


@pytest.mark.parametrize("field", FIELDS)
def test_without_one_of_its_fields_it_covers_nothing(field: str) -> None:
    document = stamped()
    del document[field]
    assert "unusable" in str(why(document, level="static"))
    assert field in str(why(document))


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("field", FIELDS)
def test_no_odd_value_makes_it_cover(field: str, value: Any) -> None:
    document = {**stamped(), field: value}
    for level in judge.LEVELS:
        if why(document, level=level) is None:
            assert as_it_may_be(document, field), f"{field}: {value!r} covers {level}"


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("part", ["uuid", "pci_address", "name", "mig", "compute_mode", "verdict"])
def test_no_odd_value_of_a_gpu_makes_it_cover(part: str, value: Any) -> None:
    document = stamped()
    document["gpus"][0][part] = value
    covers = why(document) is None
    # An address and a name are for people; any text will do.
    assert not covers or document == stamped() or (part in ("pci_address", "name") and isinstance(value, str))
    del document["gpus"][0][part]
    assert why(document)


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("part", ["passed", "failed", "not_run"])
def test_no_odd_list_of_checks_makes_it_cover(part: str, value: Any) -> None:
    document = stamped()
    document["checks"][part] = value
    well_formed = (
        value in ([],) if part != "passed" else isinstance(value, int) and not isinstance(value, bool) and value >= 0
    )
    assert (why(document) is None) is well_formed
    del document["checks"][part]
    assert why(document)


def test_a_field_too_many_an_other_schema_or_environment_covers_nothing() -> None:
    assert "not the keys of a stamp of schema 1: more" in str(why({**stamped(), "more": 1}))
    assert why({**stamped(), 1: 2})
    assert why({**stamped(), "schema": 2})
    assert why({**stamped(), "schema": True})
    assert "it is of the environment vision" in str(why({**stamped(), "environment": "vision"}))


def test_one_that_says_passed_and_holds_a_failure_covers_nothing() -> None:
    failure = {"id": "gpu.copy", "gpu": None, "code": None, "evidence": ""}
    document = stamped()
    document["checks"]["failed"] = [failure]
    assert why(document)
    document = stamped()
    document["gpus"][0]["verdict"] = "failed"
    assert why(document)
    assert why({**stamped(), "gpus": []}, gpus=[])


@pytest.mark.parametrize("document", [None, {}, [], "", 0])
def test_none_is_none(document: Any) -> None:
    assert why(document) == "no proof is on record"


@pytest.mark.parametrize("document", ["passed", 1, [stamped()], {"verdict": "passed"}])
def test_what_is_no_stamp_covers_nothing(document: Any) -> None:
    assert "unusable" in str(why(document))


def test_a_shorter_burn_covers_no_longer_one() -> None:
    short = stamp.document(proven(level="stress"), {**NOW, "burn_seconds": 1})
    assert why(short, level="stress", burn_seconds=600) == "a burn of 600 s is wanted, one of 1 s was run"
    assert why(short, level="stress") == "a burn of 60 s is wanted, one of 1 s was run"
    assert why(short, level="stress", burn_seconds=1) is None
    assert why(short, level="full", burn_seconds=600) is None
    assert stamp.document(proven(level="full"), {**NOW, "burn_seconds": 600})["burn_seconds"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"expect": {"torch": "2.10.0+cu130"}},
        {"expect": {"torch": "2.9.1+cu128", "companions": {"torchvision": "0.24.1"}}},
        {"user": "ada"},
    ],
)
def test_a_proof_of_other_expectations_or_of_another_account_covers_nothing(
    host: Host, changes: dict[str, Any]
) -> None:
    prover = Prover(host)
    asked = {**ENVIRONMENT, "expect": {"torch": "2.9.1+cu128", "companions": {}}, "user": ""}
    prover.prove(asked)
    assert prover.prove({**asked, "user": None})["environments"][0]["stamped"] is True
    prover.looks = False
    assert prover.prove({**asked, **changes}, keep=False)["environments"][0]["stamped"] is False
    assert prover.asked == ["base", "base"]


# ---- on the host ----------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path, monkeypatch) -> Host:
    """A host with a release of the environment base and a loaded driver; whoever runs the tests is root to it."""
    monkeypatch.setattr(stamp, "OWNER", os.getuid())
    home = "opt/gpufleet/envs/base"
    for path, text in {
        f"{home}/releases/r1/bin/python": "",
        f"{home}/releases/r2/bin/python": "",
        f"{home}/stamps/r1.json": "{}",
        f"{home}/stamps/r2.json": "{ }",
        f"{home}/runtime.env": "A=1\n",
        "var/lib/dpkg/status": "",
        "proc/sys/kernel/random/boot_id": "boot-1\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / home / "current").symlink_to("releases/r1")
    return Host(root=str(tmp_path))


ENVIRONMENT = {"name": "base", "python": "/opt/gpufleet/envs/base/current/bin/python", "sm": ["sm_120"]}
OPTIONS: dict[str, Any] = {"level": "static", "sm": [], "gpus": None, "when_busy": "skip", "time_limit": 300}


class Prover:
    """Plays runner.prove: counts, looks at the stamp meanwhile, and does what a test asks for in between."""

    def __init__(self, host: Host, looks: bool = True, **result: Any) -> None:
        self.host, self.looks, self.result = host, looks, result
        self.asked: list[str] = []
        self.meanwhile: Callable[[], Any] = lambda: None
        self.warnings: list[str] = []

    def __call__(self, environments: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        for environment in environments:
            self.asked.append(environment["name"])
            if self.looks:
                assert stamp.read(self.host, environment["name"]) is None, "a stamp was there while its proof ran"
        self.meanwhile()
        result = {**proven(level=options["level"]), **self.result}
        return {"environments": [{**result, "name": environment["name"]} for environment in environments]}

    def prove(self, *environments: dict[str, Any], at: float = 1763838000.0, **changes: Any) -> dict[str, Any]:
        given = {"keep": True, "max_age": 168, **changes}
        options = {**OPTIONS, **{key: given.pop(key) for key in list(given) if key in OPTIONS}}
        return stamp.prove(
            self, list(environments or (ENVIRONMENT,)), options, warn=self.warnings.append, host=self.host,
            clock=lambda: at, **given,
        )  # fmt: skip


def test_what_was_proven_is_kept_and_not_run_again(host: Host) -> None:
    prover = Prover(host)
    first = prover.prove()["environments"][0]
    again = prover.prove(at=1763838000.0 + 3600)
    assert prover.asked == ["base"]
    assert (first["stamped"], again["environments"][0]["stamped"]) == (False, True)
    assert again["verdict"] == "passed"
    assert again["environments"][0]["proven_at"] == first["proven_at"] == "2025-11-22T19:00:00Z"
    assert again["environments"][0]["python"] == ENVIRONMENT["python"]
    assert prover.warnings == []


def test_what_the_driver_logs_while_something_is_proven_ends_the_trust_in_the_proof(host: Host) -> None:
    clock = iter(range(1763838000, 1763838600, 60)).__next__
    result = stamp.prove(
        Prover(host), [ENVIRONMENT], OPTIONS, keep=True, max_age=0, warn=lambda _text: None, host=host, clock=clock
    )
    proven_at = result["environments"][0]["proven_at"]
    assert proven_at == "2025-11-22T19:00:00Z", "not when it began"
    event = {"this_boot": True, "action": "reset", "number": 48, "title": "memory error", "pci_address": "0000:01:00.0"}
    assert stamp.error_since([{**event, "last_at": "2025-11-22T19:00:00Z"}], proven_at)
    assert stamp.error_since([{**event, "last_at": "2025-11-22T18:59:59Z"}], proven_at) is None


@pytest.mark.parametrize(("doubt", "left"), [(True, False), (False, True)])
def test_a_failure_of_which_nothing_is_kept_ends_what_was_believed_before(host: Host, doubt: bool, left: bool) -> None:
    Prover(host).prove()
    failing = Prover(host, looks=False, verdict="failed")
    failing.prove(keep=False, max_age=0, doubt=doubt)
    assert (stamp.read(host, "base") is not None) is left
    Prover(host, looks=False).prove(keep=False, max_age=0, doubt=doubt)
    assert (stamp.read(host, "base") is not None) is left, "only a failure does"


def test_a_kept_verdict_is_complete_and_readable_by_everybody(host: Host) -> None:
    previous = os.umask(0o077)
    try:
        Prover(host).prove()
    finally:
        os.umask(previous)
    path = host.root + stamp.FOLDER + "/base.json"
    assert os.stat(path).st_mode & 0o777 == 0o644
    assert os.listdir(host.root + stamp.FOLDER) == ["base.json"]
    document = stamp.read(host, "base")
    assert document is not None
    assert (document["release"], document["boot_id"], document["driver"]) == ("r1", "boot-1", None)
    with open(path, encoding="utf-8") as file:
        assert json.load(file) == document


def kept_gpus(host: Host) -> dict[str, Any]:
    with open(host.root + expected.PATH, encoding="utf-8") as file:
        return json.load(file)


def test_the_gpus_that_passed_are_remembered_with_when(host: Host) -> None:
    stamp.write(host, stamped())
    kept = kept_gpus(host)
    assert [(gpu["uuid"], gpu["pci_address"], gpu["name"]) for gpu in kept["gpus"]] == [
        tuple(GPU[key] for key in ("uuid", "pci_address", "name"))
    ]
    assert (kept["seen_at"], kept["boot_id"]) == (stamped()["proven_at"], stamped()["boot_id"])
    assert expected.read(host, None) == kept
    assert os.stat(host.root + expected.PATH).st_mode & 0o777 == 0o644


def test_no_stamp_is_written_where_nobody_can_tell_which_gpus_the_host_should_have(host: Host) -> None:
    stamp.write(host, stamped())
    Path(host.root + expected.PATH).write_text("{")
    stamp.forget(host, "base")
    with pytest.raises(stamp.NoStamp, match="delete it if those that are there are all"):
        stamp.write(host, stamped())
    assert Path(host.root + expected.PATH).read_text() == "{"
    assert stamp.read(host, "base") is None


@pytest.mark.parametrize(
    "document", [stamped(WRONG), stamped(level="static"), stamped(BUSY)], ids=["failed", "static", "busy"]
)
def test_what_did_not_pass_on_a_gpu_changes_nothing_of_what_is_remembered(host: Host, document: dict[str, Any]) -> None:
    stamp.write(host, stamped())
    before = kept_gpus(host)
    stamp.write(host, document)
    assert kept_gpus(host) == before


@pytest.mark.parametrize(
    "change",
    [
        {"max_age": 0},
        {"level": "quick"},
        {"at": 1763838000.0 + 168 * 3600},
        {"at": 1763838000.0 - 1},
    ],
)
def test_what_is_not_covered_is_run(host: Host, change: dict[str, Any]) -> None:
    prover = Prover(host)
    prover.prove()
    prover.prove(**change)
    assert prover.asked == ["base", "base"]


def test_another_release_boot_or_variable_is_proven_anew(host: Host) -> None:
    prover = Prover(host)
    prover.prove()
    current = host.root + "/opt/gpufleet/envs/base/current"
    os.unlink(current)
    os.symlink("releases/r2", current)
    assert prover.prove()["environments"][0]["stamped"] is False
    for path in ("/proc/sys/kernel/random/boot_id", "/opt/gpufleet/envs/base/runtime.env"):
        with open(host.root + path, "a", encoding="utf-8") as file:
            file.write("2\n")
        assert prover.prove()["environments"][0]["stamped"] is False
    assert prover.prove()["environments"][0]["stamped"] is True


def test_without_being_asked_nothing_is_kept_and_nothing_deleted(host: Host) -> None:
    prover = Prover(host)
    prover.prove()
    before = stamp.read(host, "base")
    prover.looks = False
    assert prover.prove(keep=False, max_age=0)["environments"][0]["stamped"] is False
    assert stamp.read(host, "base") == before


def test_of_several_environments_only_the_uncovered_ones_run_and_the_order_stays(host: Host) -> None:
    shutil.copytree(host.root + "/opt/gpufleet/envs/base", host.root + "/opt/gpufleet/envs/vision", symlinks=True)
    vision = {**ENVIRONMENT, "name": "vision", "python": "/opt/gpufleet/envs/vision/current/bin/python"}
    prover = Prover(host)
    prover.prove()
    result = prover.prove(vision, ENVIRONMENT)
    assert prover.asked == ["base", "vision"]
    assert [(one["name"], one["stamped"]) for one in result["environments"]] == [("vision", False), ("base", True)]


def test_a_proof_that_dies_leaves_no_stamp(host: Host) -> None:
    prover = Prover(host)
    prover.prove()

    def die() -> None:
        raise KeyboardInterrupt

    prover.meanwhile = die
    with pytest.raises(KeyboardInterrupt):
        prover.prove(max_age=0)
    assert os.listdir(host.root + stamp.FOLDER) == []


def test_what_changed_while_it_was_proven_gets_no_stamp_and_that_is_said(host: Host) -> None:
    def switch() -> None:
        current = host.root + "/opt/gpufleet/envs/base/current"
        os.unlink(current)
        os.symlink("releases/r2", current)

    prover = Prover(host)
    prover.meanwhile = switch
    assert prover.prove()["verdict"] == "passed"
    assert stamp.read(host, "base") is None
    assert "release, release_digest changed while it was proven" in prover.warnings[0]


def test_a_failure_is_kept_as_one(host: Host) -> None:
    prover = Prover(host, verdict="failed", proven=None, reason="torch.arch: no code for sm_120")
    prover.prove()
    document = stamp.read(host, "base")
    assert document is not None
    assert document["verdict"] == "failed"
    prover.prove()
    assert prover.asked == ["base", "base"]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"name": "../../etc/passwd"}, "belongs to no release of an environment ../../etc/passwd"),
        ({"name": "vision"}, "belongs to no release of an environment vision"),
        ({"name": "/usr/bin/python3", "python": "/usr/bin/python3"}, "belongs to no release"),
    ],
)
def test_what_is_no_release_of_ours_is_proven_and_never_kept(
    host: Host, environment: dict[str, Any], told: str
) -> None:
    before = sorted(os.walk(host.root + "/var"))
    prover = Prover(host, looks=False)
    assert prover.prove({**ENVIRONMENT, **environment})["verdict"] == "passed"
    assert told in prover.warnings[0]
    assert sorted(os.walk(host.root + "/var")) == before


def test_a_disk_that_is_full_costs_the_stamp_and_not_the_verdict(host: Host, monkeypatch) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stamp.os, "fsync", full)
    prover = Prover(host)
    assert prover.prove()["verdict"] == "passed"
    assert "No space left on device" in prover.warnings[0]
    assert os.listdir(host.root + stamp.FOLDER) == []


def test_an_old_stamp_that_cannot_be_deleted_stops_the_proof(host: Host, monkeypatch) -> None:
    prover = Prover(host)
    prover.prove()

    def refuse(*_arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(stamp.os, "unlink", refuse)
    with pytest.raises(PermissionError):
        prover.prove(max_age=0)
    assert prover.asked == ["base"]


def _put(host: Host, content: bytes) -> str:
    os.makedirs(host.root + stamp.FOLDER, exist_ok=True)
    path = host.root + stamp.FOLDER + "/base.json"
    with open(path, "wb") as file:
        file.write(content)
    return path


WHOLE = json.dumps(stamped()).encode()


def test_what_others_could_have_written_is_not_read(host: Host, monkeypatch) -> None:
    path = _put(host, WHOLE)
    assert stamp.read(host, "base") == stamped()
    folder = os.path.dirname(path)
    for where, mode, good in (
        (path, 0o664, 0o644),
        (path, 0o646, 0o644),
        (folder, 0o775, 0o755),
        (folder, 0o777, 0o755),
    ):
        os.chmod(where, mode)
        with pytest.raises(stamp.NoStamp, match="nobody else can write"):
            stamp.read(host, "base")
        os.chmod(where, good)
    monkeypatch.setattr(stamp, "OWNER", os.getuid() + 1)
    with pytest.raises(stamp.NoStamp, match="of root's"):
        stamp.read(host, "base")


def test_a_link_a_folder_or_a_pipe_in_its_place_is_not_read(host: Host) -> None:
    path = _put(host, WHOLE)
    os.rename(path, path + ".real")
    os.symlink("base.json.real", path)
    with pytest.raises(stamp.NoStamp, match="no regular file"):
        stamp.read(host, "base")
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(stamp.NoStamp, match="no regular file"):
        stamp.read(host, "base")
    os.unlink(path)
    os.mkdir(path)
    with pytest.raises(stamp.NoStamp, match="no regular file"):
        stamp.read(host, "base")
    folder = os.path.dirname(path)
    os.rmdir(path)
    os.rename(path + ".real", path)
    os.rename(folder, folder + ".real")
    os.symlink("proof.real", folder)
    with pytest.raises(stamp.NoStamp, match="no directory"):
        stamp.read(host, "base")


@pytest.mark.parametrize(
    "content",
    [
        *(WHOLE[:length] for length in (0, 1, 10, len(WHOLE) // 2, len(WHOLE) - 1)),
        *(b"\xff\xfe", b"\x00" * 1000, b"[" * 100000, b"null", b"[]", b"NaN", b"1e999", WHOLE + b"}", b"\xef\xbb\xbf" + WHOLE),
        WHOLE.replace(b'"passed": 2', b'"passed": NaN'),
        WHOLE.replace(b'"environment": "base"', b'"environment": "vision"'),
    ],
    ids=lambda content: repr(content[:20]) + str(len(content)),
)  # fmt: skip
def test_what_is_cut_short_or_garbled_is_not_read(host: Host, content: bytes) -> None:
    _put(host, content)
    with pytest.raises(stamp.NoStamp, match=r"base\.json: "):
        stamp.read(host, "base")
    prover = Prover(host)
    os.unlink(host.root + stamp.FOLDER + "/base.json")
    assert prover.prove()["environments"][0]["stamped"] is False


def test_every_bit_that_flips_makes_it_unreadable_or_leaves_what_it_says_of_the_host(host: Host) -> None:
    """A flipped bit cannot make a stamp that covers say something else of release, driver, boot or verdict."""
    same = ("verdict", "level", *(key for key, _text in stamp._COMPARED))
    for number in range(0, len(WHOLE) * 8, 7):
        flipped = bytearray(WHOLE)
        flipped[number // 8] ^= 1 << number % 8
        _put(host, bytes(flipped))
        try:
            document = stamp.read(host, "base")
        except stamp.NoStamp:
            continue
        if why(copy.deepcopy(document)) is None:
            assert document is not None
            assert {key: document[key] for key in same} == {key: stamped()[key] for key in same}


def test_a_folder_of_somebody_else_is_not_written_to(host: Host, monkeypatch) -> None:
    os.makedirs(host.root + stamp.FOLDER)
    Path(host.root + stamp.FOLDER).chmod(0o775)
    prover = Prover(host)
    prover.prove()
    assert "no directory of root's" in prover.warnings[0]
    assert os.listdir(host.root + stamp.FOLDER) == []


def test_forgetting_what_is_not_there_is_no_error(host: Host) -> None:
    stamp.forget(host, "base")
    assert stamp.read(host, "base") is None


def test_the_stamp_of_an_environment_that_goes_goes_with_the_folders_that_are_empty_then(host: Host) -> None:
    Prover(host).prove()
    other = Path(host.root + stamp.FOLDER + "/other.json")
    other.write_text("{}")
    gpus = Path(host.root + expected.PATH)
    gpus.write_text("{}")
    stamp.remove(host, "base")
    assert os.listdir(host.root + stamp.FOLDER) == ["other.json"]
    assert gpus.exists()
    stamp.remove(host, "other")
    assert not Path(host.root + stamp.FOLDER).parent.exists()
