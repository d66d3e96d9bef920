"""What a release has to pass before it serves, what it waits for meanwhile, and what is known of its contents."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import (
    contents,
    gate,
    manifest,
    model,
    store,
)

BUSY = {
    "verdict": "not_run",
    "proven": "static",
    "reason": "gpu.driver_kernel on 0000:01:00.0: in use by python (4711)",
    "remedy": "Prove again when the job has ended.",
    "gpus": [
        {"pci_address": "0000:01:00.0", "checks": [{"id": "gpu.driver_kernel", "status": "not_run", "code": "busy"}]}
    ],
}
IDLE = {"verdict": "passed", "proven": "quick"}
NEWER: dict[str, Any] = {"torch": "2.9.0+cu128", "companions": {"torchvision": "0.24.0", "torchaudio": "2.9.0"}}


def failing(code: str, where: str = "gpus") -> dict[str, Any]:
    check = {
        "id": "gpu.matmul_fp32",
        "status": "failed",
        "code": code,
        "evidence": "off by 12",
        "remedy": "Inspect the card.",
    }
    after = {"id": "gpu.conv2d", "status": "not_run", "code": "stopped", "evidence": "stopped", "remedy": "None."}
    parts = (
        {"gpus": [{"pci_address": "0000:01:00.0", "checks": [check, after]}]}
        if where == "gpus"
        else {"checks": [check]}
    )
    return {"verdict": "failed", "proven": "static", "reason": "it failed", "remedy": "Inspect the card.", **parts}


@pytest.fixture
def built(bench: Any) -> Any:
    """The bench with one release that serves."""
    bench.operation().present()
    return bench


def serving(bench: Any) -> str | None:
    link = bench.home / "current"
    return link.resolve().name if link.exists() else None


def steps_of(result: dict[str, Any]) -> list[str]:
    return [step["step"] for step in result["steps"]]


def stamp_of(bench: Any, release: str) -> dict[str, Any]:
    return json.loads((bench.home / "stamps" / f"{release}.json").read_text())


# ---- the smoke command ------------------------------------------------------------------------------------------------


def test_the_smoke_command_finds_the_release_the_variables_and_nothing_of_the_callers(
    built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (built.home / "runtime.env").write_text("# ours\nTOKENIZERS_PARALLELISM=false\nNCCL_DEBUG=WARN\n")
    monkeypatch.setenv("SECRET", "of the caller")
    base = built.request(**NEWER).release_base
    script = (
        "import os, stat, sys\n"
        f"assert sys.prefix.endswith('/{base}'), sys.prefix\n"
        "assert os.environ['VIRTUAL_ENV'] == sys.prefix\n"
        "assert os.environ['PATH'].startswith(sys.prefix + '/bin:/usr/'), os.environ['PATH']\n"
        "assert (os.environ['TOKENIZERS_PARALLELISM'], os.environ['NCCL_DEBUG']) == ('false', 'INFO'), os.environ\n"
        "assert 'SECRET' not in os.environ\n"
        "here = os.stat(os.getcwd())\n"
        "assert os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']\n"
        f"assert here.st_uid == os.getuid() == {pwd.getpwnam('nobody').pw_uid}\n"
        "assert stat.S_IMODE(here.st_mode) == 0o700\n"
        "assert os.getgroups() and 0 not in os.getgroups()\n"
        "print(os.getcwd(), file=open('trace', 'w'))\n"
        "import torch\n"
        "assert torch.__version__ == '2.9.0+cu128'\n"
    )
    before = set(os.listdir("/tmp"))
    result = built.operation(**NEWER, smoke=("python", "-c", script), variables={"NCCL_DEBUG": "INFO"}).present()
    assert serving(built) == base
    assert steps_of(result)[-5:] == ["stamp", "smoke", "launchers", "switch", "prune"]
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith("gpufleet-smoke-")]


def test_a_failing_smoke_command_gates_the_switch_and_says_what_it_said(built: Any) -> None:
    older = serving(built)
    script = (
        "import sys; print('\\n'.join(f'line {n}' for n in range(20)), 'no \\x1b[31mlibrary', sep='\\n'); sys.exit(3)"
    )
    with pytest.raises(model.ReleaseError) as caught:
        built.operation(**NEWER, smoke=("python", "-c", script)).present()
    assert serving(built) == older
    assert caught.value.step == "run the smoke command"
    assert caught.value.cause.startswith("python -c 'import sys")
    assert "as nobody in 2.9.0-cu128-" in caught.value.cause
    assert "ended with status 3. It said last: line 11 | line 12" in caught.value.cause
    assert caught.value.cause.endswith("line 19 | no  [31mlibrary")
    staged = caught.value.details["staged"]
    assert stamp_of(built, staged)["proof"]["level"] == "static"
    result = built.operation(**NEWER, smoke=("python", "-c", "pass")).present()
    assert (result["release"], result["previous"]) == (staged, older)
    assert "install" not in steps_of(result)


def test_the_first_release_of_an_environment_does_not_serve_either_before_its_smoke_command_succeeds(
    bench: Any,
) -> None:
    with pytest.raises(model.ReleaseError, match="ended with status 1 and said nothing"):
        bench.operation(smoke=("false",)).present()
    assert serving(bench) is None
    assert bench.operation(smoke=("true",)).present()["release"] == serving(bench)
    assert len(os.listdir(bench.home / "releases")) == 1


def test_another_smoke_command_alone_changes_nothing(built: Any) -> None:
    assert not built.operation(smoke=("false",)).present()["changed"]


def test_every_switch_runs_the_smoke_command_a_rollback_too(built: Any) -> None:
    first = serving(built)
    second = built.operation(**NEWER).present()["release"]
    for failing_switch in (built.operation(smoke=("false",)).present, built.operation(smoke=("false",)).previous):
        with pytest.raises(model.ReleaseError, match="run the smoke command"):
            failing_switch()
        assert serving(built) == second
    assert built.operation(smoke=("true",)).previous()["release"] == first


def test_a_smoke_command_that_takes_too_long_is_killed_with_all_that_it_started(built: Any) -> None:
    script = "setsid sleep 4711.25 & sleep 4711.5"
    begin = time.monotonic()
    with pytest.raises(model.ReleaseError, match="was killed at its time limit of 1 s"):
        built.operation(**NEWER, smoke=("sh", "-c", script), proof_time_limit=1).present()
    assert time.monotonic() - begin < 60
    left = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in left if b"sleep\x004711" in command]


@pytest.mark.parametrize(
    ("command", "problem"),
    [(("no-such-program",), "cannot be started: No such file"), (("sh", "-c", "kill -9 $$"), "was ended by SIGKILL")],
)
def test_how_a_smoke_command_failed_is_said(built: Any, command: tuple[str, ...], problem: str) -> None:
    with pytest.raises(model.ReleaseError, match=problem):
        built.operation(**NEWER, smoke=command).present()
    assert serving(built) is not None


def test_the_smoke_command_runs_as_the_owner(built: Any) -> None:
    uid = pwd.getpwnam("daemon").pw_uid
    built.operation(
        **NEWER, owner="daemon", smoke=("python", "-c", f"import os; assert os.getuid() == {uid}")
    ).present()
    assert built.proofs[-1]["user"] == "daemon"


@pytest.mark.parametrize("words", [("",), ("python", ""), ("python", "a\0b")])
def test_a_command_that_is_none_is_refused_before_anything_changes(bench: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(model.BadInput, match="empty word"):
        bench.operation(smoke=words).present()
    assert not bench.root.exists()


# ---- the quick proof ---------------------------------------------------------------------------------------------------


def test_a_busy_host_stages_the_release_and_switches_when_idle(built: Any) -> None:
    older = serving(built)
    built.answer = BUSY
    staged = built.operation(**NEWER, switch_after="quick", smoke=("true",), gpus=("0000:01:00.0",)).present()
    assert staged["changed"]
    assert "smoke" not in steps_of(staged)
    assert (built.proofs[-1]["level"], built.proofs[-1]["gpus"]) == ("quick", ["0000:01:00.0"])
    assert serving(built) == older
    (waiting,) = set(os.listdir(built.home / "releases")) - {older}
    assert staged["pending"] == {
        "what": f"switch the environment base to {waiting}",
        "why": "gpu.driver_kernel on 0000:01:00.0: in use by python (4711)",
        "remedy": "Prove again when the job has ended",
    }
    assert stamp_of(built, waiting)["proof"]["level"] == "static"
    assert all(check["status"] == "passed" for check in stamp_of(built, waiting)["proof"]["checks"])

    before = sorted((path, path.lstat().st_mtime_ns) for path in built.home.rglob("*"))
    again = built.operation(**NEWER, switch_after="quick").present()
    assert not again["changed"]
    assert again["pending"]["what"].endswith(waiting)
    assert sorted((path, path.lstat().st_mtime_ns) for path in built.home.rglob("*")) == before

    built.answer = IDLE
    result = built.operation(**NEWER, switch_after="quick").present()
    assert result["changed"]
    assert result["pending"] is None
    assert "install" not in steps_of(result)
    assert serving(built) == waiting
    assert stamp_of(built, waiting)["proof"]["level"] == "quick"
    assert not built.operation(**NEWER, switch_after="quick").present()["changed"]


def test_a_quick_proof_that_fails_is_a_failure_that_names_the_gpu(built: Any) -> None:
    older = serving(built)
    built.answer = failing("wrong_result")
    with pytest.raises(model.ReleaseError) as caught:
        built.operation(**NEWER, switch_after="quick").present()
    assert "gpu.matmul_fp32 on 0000:01:00.0: off by 12" in caught.value.cause
    assert "conv2d" not in caught.value.cause
    assert caught.value.remedy == "Inspect the card."
    assert serving(built) == older


def test_a_staged_release_that_still_waits_has_what_a_removal_left_removed(built: Any) -> None:
    built.answer = BUSY
    built.operation(**NEWER, switch_after="quick").present()
    left = built.home / "releases" / ".2.8.0-cu128-11111111"
    left.mkdir()
    result = built.operation(**NEWER, switch_after="quick").present()
    assert result["pending"] is not None
    assert (result["changed"], result["removed"]) == (True, [left.name[1:]])
    assert not built.operation(**NEWER, switch_after="quick").present()["changed"]


def test_a_staged_release_whose_quick_proof_fails_stays_staged(built: Any) -> None:
    older = serving(built)
    built.answer = BUSY
    built.operation(**NEWER, switch_after="quick").present()
    built.answer = failing("wrong_result")
    with pytest.raises(model.ReleaseError, match="off by 12"):
        built.operation(**NEWER, switch_after="quick").present()
    assert serving(built) == older


@pytest.mark.parametrize(
    ("proof", "waits"),
    [
        (BUSY, True),
        (IDLE, False),
        (failing("cuda_803", where="checks"), True),
        (failing("cuda_803"), True),
        (failing("cuda_700"), False),
        ({**BUSY, "proven": None}, False),
        ({"verdict": "not_run"}, False),
    ],
)
def test_only_what_says_nothing_of_the_release_is_waited_for(proof: dict[str, Any], waits: bool) -> None:
    assert (gate.waits_for(proof) is not None) is waits


def test_without_the_static_proof_nothing_is_staged(bench: Any) -> None:
    bench.answer = {**BUSY, "proven": None}
    with pytest.raises(model.ReleaseError, match="not proven"):
        bench.operation(switch_after="quick").present()
    assert os.listdir(bench.home / "releases") == []


def test_a_rollback_that_needs_a_busy_gpu_is_refused_with_who_is_busy(built: Any) -> None:
    newer = built.operation(**NEWER).present()["release"]
    built.answer = BUSY
    with pytest.raises(model.ReleaseError, match=r"in use by python \(4711\).*torch_env_switch_after: static"):
        built.operation(switch_after="quick").previous()
    assert serving(built) == newer
    built.answer = IDLE
    assert built.operation(switch_after="quick").previous()["previous"] == newer


def test_a_staged_release_is_kept_and_those_staged_before_it_go(built: Any) -> None:
    built.operation(requirements=["plainpkg==1.0"]).present()
    built.answer = BUSY
    for requirements in (["plainpkg==2.0"], ["plainpkg<2"], ["plainpkg>1"]):
        result = built.operation(requirements=requirements, switch_after="quick").present()
    kept = set(os.listdir(built.home / "releases"))
    assert kept == {result["release"], result["previous"], result["pending"]["what"].rpartition(" ")[2]}


# ---- overlays ----------------------------------------------------------------------------------------------------------


def with_overlays(operation: Any, pinned: dict[str, list[str]] | None) -> Any:
    operation.host = dataclasses.replace(operation.host, pinned=lambda _root, _say: pinned)
    return operation


def test_a_release_that_an_overlay_sees_is_not_pruned(built: Any) -> None:
    first = str((built.home / "current").resolve())
    built.operation(requirements=["plainpkg==1.0"]).present()
    pinned = {first: ["/home/ann/envs/mine"]}
    result = with_overlays(built.operation(requirements=["plainpkg==2.0"]), pinned).present()
    assert result["warnings"] == [f"{os.path.basename(first)} is kept, because overlays see it: /home/ann/envs/mine"]
    assert os.path.isdir(first)
    assert built.operation(requirements=["plainpkg"]).present()["removed"]
    assert not os.path.isdir(first)


def test_where_it_cannot_be_said_which_overlays_there_are_nothing_is_pruned(built: Any) -> None:
    first = serving(built)
    built.operation(requirements=["plainpkg==1.0"]).present()
    result = with_overlays(built.operation(requirements=["plainpkg==2.0"]), None).present()
    assert result["removed"] == []
    assert result["warnings"] == [f"{first} is kept, because it cannot be said which overlays see it"]


def test_an_environment_that_an_overlay_sees_is_not_removed(built: Any) -> None:
    first = str((built.home / "current").resolve())
    with pytest.raises(model.ReleaseError, match="1 overlays use the environment: /home/ann/envs/mine"):
        with_overlays(built.operation(), {first: ["/home/ann/envs/mine"]}).absent()
    with pytest.raises(model.ReleaseError, match="it cannot be said which overlays"):
        with_overlays(built.operation(), None).absent()
    assert serving(built) == os.path.basename(first)
    other = first.replace("/base/", "/other/")
    assert with_overlays(built.operation(), {other: ["/home/ann/envs/mine"]}).absent()["changed"]


# ---- contents ----------------------------------------------------------------------------------------------------------


def rewrite(path: Path) -> None:
    """Other contents of the same size, at the same time of change."""
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "file",
    [
        *("lib/python3*/site-packages/torch/version.py", "lib/python3*/site-packages/torch-*.dist-info/RECORD"),
        *(
            "lib/python3*/site-packages/torch/__pycache__/version.*.pyc",
            "lib/python3*/site-packages/gpufleet_runtime.pth",
        ),
        *("lib/python3*/site-packages/_gpufleet_runtime.py", "bin/activate", "pyvenv.cfg"),
    ],
)
def test_other_contents_of_the_same_size_are_found_on_request_and_never_pass_again(built: Any, file: str) -> None:
    assert not built.operation(integrity="hashes").present()["changed"]
    release = (built.home / "current").resolve()
    rewrite(next(release.glob(file)))
    assert not built.operation().present()["changed"]  # sizes do not tell
    result = built.operation(integrity="hashes").present()
    assert result["release"] == f"{release.name}.2"
    assert "files hold something else, for example " in result["what"]
    assert str(next(release.glob(file)).relative_to(release)) in result["what"]
    with pytest.raises(model.ReleaseError, match=r"cannot serve: \d files hold something else"):
        built.operation().previous()
    assert not built.operation(integrity="hashes").present()["changed"]


def test_a_list_of_hashes_that_was_exchanged_is_damage(built: Any) -> None:
    release = serving(built)
    path = built.home / "stamps" / f"{release}.hashes"
    path.write_bytes(path.read_bytes() + b"\n")
    assert "list of hashes is not the one" in built.operation(integrity="hashes").present()["what"]


def test_the_list_holds_what_no_record_has_a_hash_for_as_sha256sum_writes_it(built: Any) -> None:
    release = (built.home / "current").resolve()
    lines = (built.home / "stamps" / f"{release.name}.hashes").read_text().splitlines()
    listed = {path: digest for digest, _two, path in (line.partition("  ") for line in lines)}
    assert list(listed) == sorted(listed)
    assert {Path(path).name for path in listed} >= {"RECORD", "pyvenv.cfg", "gpufleet_runtime.pth"}
    assert not [path for path in listed if path.endswith("torch/version.py")]
    for path, digest in listed.items():
        assert hashlib.sha256((release / path).read_bytes()).hexdigest() == digest
    tree = manifest.scan(str(release))
    assert contents.changed(str(release), tree, "".join(line + "\n" for line in lines)) == []


def test_names_with_tabs_and_line_feeds_are_read_and_compared(built: Any) -> None:
    release = (built.home / "current").resolve()
    odd = release / "a\tb\\t\nc"
    odd.write_text("x")
    tree = manifest.scan(str(release))
    text = contents.render(str(release), tree)
    assert contents.changed(str(release), tree, text) == []
    odd.write_text("y")
    assert contents.changed(str(release), tree, text) == ["a\\tb\\\\t\\nc"]


def test_a_record_that_cannot_be_read_any_more_is_the_one_that_is_named(built: Any) -> None:
    release = (built.home / "current").resolve()
    tree = manifest.scan(str(release))
    text = contents.render(str(release), tree)
    record = next(release.glob("lib/python3*/site-packages/torch-*.dist-info/RECORD"))
    record.write_bytes(b"\xff" * record.stat().st_size)
    assert str(record.relative_to(release)) in contents.changed(str(release), tree, text)
    with pytest.raises(ValueError, match="codec"):
        contents.render(str(release), tree)


# ---- clocks ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_went_back_does_not_change_which_release_is_newer(built: Any) -> None:
    first = serving(built)
    releases = [first]
    for year, requirements in ((2025, ["plainpkg==1.0"]), (2031, ["plainpkg==2.0"]), (1970, ["plainpkg<2"])):
        operation = built.operation(requirements=requirements, keep=3)
        operation.host = dataclasses.replace(operation.host, now=lambda year=year: f"{year}-01-01T00:00:00Z")
        releases.append(operation.present()["release"])
    state = store.read_state(built.request().layout)
    assert list(state.stamped) == releases[1:]
    assert [stamp["serial"] for stamp in state.stamped.values()] == [2, 3, 4]
    assert store.prunable(state, 2) == [releases[1]]
    assert (
        built.operation().present()["release"] == first
    )  # pruned, so it is built anew, under a name that is free again
    assert stamp_of(built, first)["serial"] == 5


def test_stamps_from_before_they_were_numbered_are_older_than_the_numbered_ones(tmp_path: Path) -> None:
    layout = model.Layout(str(tmp_path), "base")
    stamps = {"new": {"serial": 1, "built_at": "1999"}, "old": {"built_at": "2030"}, "older": {"built_at": "2026"}}
    os.makedirs(layout.stamps)
    for name, stamp in stamps.items():
        os.makedirs(layout.release(name))
        store.write_stamp(layout, {"schema": 1, "id": name, "spec": {}, "proof": {}, **stamp})
    state = store.read_state(layout)
    assert list(state.stamped) == ["older", "old", "new"]
    assert store.next_serial(state) == 2
