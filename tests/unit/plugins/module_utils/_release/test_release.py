"""Real releases from tiny wheels, as root, on this machine's disk; only the proof is told what to say."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._release import (
    build,
    manifest,
    model,
    store,
    takeaway,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._release.processes import Ended


def as_nobody(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    entry = pwd.getpwnam("nobody")
    return subprocess.run(
        [str(word) for word in command],
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=30,
        env={"PATH": "/usr/bin:/bin"},
        **more,
    )


def files_of(directory: Path) -> dict[str, os.stat_result]:
    return {str(path.relative_to(directory)): path.lstat() for path in directory.rglob("*")}


def times_of(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of change of everything below a directory, but for the lock."""
    found = files_of(directory)
    return {
        path: (status.st_ino, status.st_size, status.st_mtime_ns) for path, status in found.items() if path != ".lock"
    }


@pytest.fixture
def built(bench: Any) -> Any:
    """The bench with one release that serves."""
    bench.operation().present()
    return bench


def test_a_release_is_built_proven_stamped_and_switched_to(bench: Any) -> None:
    result = bench.operation().present()
    assert result["changed"]
    assert [step["step"] for step in result["steps"]] == [
        *("lock", "read", "prepare", "prepare", "venv", "install", "record", "compile", "seal", "manifest"),
        *("sync", "prove", "sync", "stamp", "launchers", "switch", "prune"),
    ]
    current = bench.home / "current"
    assert str(current.resolve()) == result["path"]
    assert current.resolve().name == result["release"]
    stamp = json.loads((bench.home / "stamps" / f"{result['release']}.json").read_text())
    assert set(stamp) == {
        *(
            "schema",
            "id",
            "spec",
            "spec_digest",
            "built_at",
            "python",
            "torch",
            "companions",
            "proof",
            "files",
            "bytes",
        ),
        *("manifest_sha256", "hashes_sha256", "serial", "owner", "group"),
    }
    assert stamp["torch"]["version"] == "2.9.1+cu128"
    assert stamp["proof"] == {
        "level": "static",
        "verdict": "passed",
        "sm": ["sm_120"],
        "checks": [{"id": "torch.arch", "status": "passed", "evidence": "sm_120 checked"}],
    }
    assert bench.proofs[0]["user"] == "nobody"
    assert bench.proofs[0]["expect"] == {
        "torch": "2.9.1+cu128",
        "companions": {"torchvision": "0.24.1", "torchaudio": "2.9.1"},
    }
    assert bench.proofs[0]["python"] == f"{result['path']}/bin/python"


def test_a_second_run_changes_nothing(built: Any) -> None:
    before = times_of(built.root)
    result = built.operation().present()
    assert not result["changed"]
    assert times_of(built.root) == before
    assert len(built.proofs) == 1


def test_nothing_in_a_release_can_be_written_by_anybody_but_root(built: Any) -> None:
    for path, status in files_of(built.home).items():
        assert (status.st_uid, status.st_gid) == (0, 0), path
        assert os.path.islink(built.home / path) or not status.st_mode & 0o022, path
        assert not status.st_mode & 0o7000, path
    assert not as_nobody("find", built.home, "-writable", "-not", "-type", "l").stdout


def test_everybody_may_use_a_release_and_its_bytecode_is_there(built: Any) -> None:
    done = as_nobody(built.home / "bin" / "python", "-v", "-c", "import torch; print(torch.__version__)")
    assert done.stdout == "2.9.1+cu128\n"
    assert "torch/__pycache__/__init__.cpython" in done.stderr
    assert "matches " in done.stderr


def test_the_builder_cannot_reach_the_cache_once_a_package_can_run(bench: Any) -> None:
    seen = []
    operation = bench.operation()
    prove = operation.host.prove

    def look(*arguments: Any) -> Any:
        seen.append(as_nobody("ls", bench.root / ".cache" / "uv").returncode)
        return prove(*arguments)

    operation.host = dataclasses.replace(operation.host, prove=look)
    operation.present()
    assert seen == [2]


def test_two_releases_share_no_file_and_the_cache_cannot_be_written_through_one(built: Any) -> None:
    result = built.operation(requirements=["plainpkg==1.0"]).present()
    first, second = (built.home / "releases" / name for name in (result["previous"], result["release"]))
    library = "lib/python3*/site-packages/nvidia/tiny/lib/libtiny.so"
    one, other = next(first.glob(library)), next(second.glob(library))
    assert one.stat().st_ino != other.stat().st_ino
    cached = {path.stat().st_ino: path for path in (built.root / ".cache").rglob("libtiny.so")}
    shared = [path for path in (one, other) if path.stat().st_ino in cached]
    assert len(shared) <= 1
    for path in shared:
        assert cached[path.stat().st_ino].stat().st_uid == 0


@pytest.mark.parametrize(("days", "kept"), [(6, True), (8, False), (-1, False)])
def test_an_old_cache_is_dropped_before_a_build(built: Any, days: int, kept: bool) -> None:
    mark = built.root / ".cache" / "uv" / "CACHEDIR.TAG"
    when = time.time() - days * 24 * 3600
    os.utime(mark, (when, when))
    built.operation(requirements=["plainpkg"]).present()
    assert (abs(mark.stat().st_mtime - when) < 1) == kept


def test_an_upgrade_keeps_the_release_that_served_and_goes_back_to_it(built: Any) -> None:
    older = built.operation().present()["release"]
    result = built.operation(torch="2.9.0+cu128", companions={"torchvision": "0.24.0", "torchaudio": "2.9.0"}).present()
    assert result["previous"] == older
    back = built.operation(sm=("sm_90",)).previous()
    assert back["changed"]
    assert (back["release"], back["previous"]) == (older, result["release"])
    assert built.proofs[-1]["sm"] == ["sm_90"]
    stamp = json.loads((built.home / "stamps" / f"{older}.json").read_text())
    assert stamp["proof"]["sm"] == ["sm_90"]
    assert "install" not in [step["step"] for step in back["steps"]]


def test_a_named_release_is_gone_back_to_wherever_it_stands(built: Any) -> None:
    first = built.operation().present()["release"]
    second = built.operation(requirements=["plainpkg"], keep=3).present()["release"]
    third = built.operation(torch="2.9.0+cu128", companions={"torchvision": "0.24.0", "torchaudio": "2.9.0"}, keep=3)
    assert third.present()["previous"] == second
    back = built.operation(release=first).previous()
    assert back["changed"]
    assert back["release"] == first
    assert (built.home / "current").resolve().name == first
    again = built.operation(release=first).previous()
    assert (again["changed"], again["release"]) == (False, first)
    assert "serves already" in again["what"]


def test_a_named_release_that_is_not_there_is_refused_with_those_that_are(built: Any) -> None:
    serving = built.operation().present()["release"]
    with pytest.raises(model.ReleaseError, match=f"there is no release 2.8.0-x; on this host are: {serving}"):
        built.operation(release="2.8.0-x").previous()
    assert (built.home / "current").resolve().name == serving


def test_without_a_previous_release_there_is_no_way_back(built: Any) -> None:
    with pytest.raises(model.ReleaseError, match="no previous release"):
        built.operation().previous()


def test_an_environment_that_is_not_there_cannot_go_back_and_is_not_begun(bench: Any) -> None:
    with pytest.raises(model.BadInput, match="there is no environment"):
        bench.operation().previous()
    assert not bench.root.exists()


def test_a_previous_release_that_no_longer_proves_is_not_switched_to(built: Any) -> None:
    serving = built.operation(requirements=["plainpkg"]).present()["release"]
    built.verdict = "failed"
    with pytest.raises(model.ReleaseError, match="sm_120 checked"):
        built.operation().previous()
    assert (built.home / "current").resolve().name == serving


def test_a_release_that_is_there_is_proven_and_switched_to_without_a_build(built: Any) -> None:
    first = built.operation().present()["release"]
    second = built.operation(requirements=["plainpkg"]).present()["release"]
    result = built.operation().present()
    assert result["changed"]
    assert (result["release"], result["previous"]) == (first, second)
    assert "install" not in [step["step"] for step in result["steps"]]
    assert len(built.proofs) == 3


def test_a_failing_proof_leaves_what_serves_and_no_trace_of_the_build(built: Any) -> None:
    before = sorted(files_of(built.home))
    built.verdict = "failed"
    with pytest.raises(model.ReleaseError) as caught:
        built.operation(requirements=["plainpkg"]).present()
    assert caught.value.step == "prove the release"
    assert "sm_120 checked" in caught.value.cause
    assert caught.value.remedy == "Choose another build."
    assert caught.value.details["proof"]["verdict"] == "failed"
    assert sorted(files_of(built.home)) == before


@pytest.mark.parametrize("verdict", ["not_run", "", "PASSED"])
def test_only_passed_is_proven(bench: Any, verdict: str) -> None:
    bench.verdict = verdict
    with pytest.raises(model.ReleaseError, match="not proven"):
        bench.operation().present()
    assert not (bench.home / "current").exists()


def test_old_releases_go_but_not_one_that_a_process_uses(built: Any) -> None:
    first = (built.home / "current").resolve()
    with subprocess.Popen([first / "bin" / "python", "-c", "import time; time.sleep(60)"]) as process:
        for requirement in ("plainpkg==1.0", "plainpkg==2.0"):
            result = built.operation(requirements=[requirement]).present()
        assert first.exists()
        assert result["removed"] == []
        assert "may still use it" in result["warnings"][0]
        process.kill()
    result = built.operation(requirements=["plainpkg"]).present()
    assert first.name in result["removed"]
    assert len(os.listdir(built.home / "releases")) == 2
    assert {name.rpartition(".")[0] for name in os.listdir(built.home / "stamps")} == set(
        os.listdir(built.home / "releases")
    )


@pytest.mark.parametrize("harm", ["added", "removed", "changed", "link"])
def test_a_damaged_release_is_replaced_and_never_repaired(built: Any, harm: str) -> None:
    serving = (built.home / "current").resolve()
    packages = next(serving.glob("lib/python3*/site-packages"))
    if harm == "added":
        (packages / "zz.pth").write_text("import os\n")
    elif harm == "removed":
        (packages / "torch" / "version.py").unlink()
    elif harm == "changed":
        with open(packages / "torch" / "_C.py", "a") as file:
            file.write("# more\n")
    else:
        (serving / "bin" / "python").unlink()
        (serving / "bin" / "python").symlink_to("/bin/sh")
    harmed = times_of(serving)
    result = built.operation().present()
    assert result["release"] == serving.name + ".2"
    assert result["previous"] == serving.name
    assert "cannot serve" in result["what"]
    assert times_of(serving) == harmed
    assert (
        store.damage(
            built.request().layout, result["release"], store.read_stamp(built.request().layout, result["release"])
        )
        is None
    )
    with pytest.raises(model.ReleaseError, match="cannot serve"):
        built.operation().previous()


def test_a_poisoned_cache_is_noticed_dropped_and_filled_again(built: Any) -> None:
    poisoned = list((built.root / ".cache").rglob("libtiny.so"))
    assert poisoned
    for path in poisoned:
        path.write_text("evil\n" * 1000)  # the same size: only the hash tells
    result = built.operation(requirements=["plainpkg"]).present()
    assert "cache was damaged" in result["warnings"][0]
    library = next(Path(result["path"]).glob("lib/python3*/site-packages/nvidia/tiny/lib/libtiny.so"))
    assert library.read_text() == "tiny\n" * 1000


def test_what_a_killed_run_left_is_removed_and_never_used(built: Any) -> None:
    request = built.request(requirements=["plainpkg"])
    unfinished = built.home / "releases" / request.release_base
    unfinished.mkdir()
    (unfinished / "pyvenv.cfg").write_text("home = /nowhere\n")
    (built.home / "stamps" / f".{request.release_base}.json.1").write_text("{")
    (built.home / ".current.1").symlink_to("nowhere")
    nobody = pwd.getpwnam("nobody").pw_uid
    with subprocess.Popen(["/bin/sleep", "60"], cwd=unfinished, user=nobody) as orphan:
        result = built.operation(requirements=["plainpkg"]).present()
        orphan.wait(timeout=10)  # far less than it wanted to sleep
    assert request.release_base in result["removed"]
    assert result["release"] == request.release_base + ".2"
    assert not unfinished.exists()
    assert not [name for name in os.listdir(built.home) + os.listdir(built.home / "stamps") if name.startswith(".")]


@pytest.fixture
def left(built: Any) -> Path:
    """What an interrupted removal left beside the release that serves."""
    path = built.home / "releases" / ".2.8.0-cu128-11111111"
    (path / "lib").mkdir(parents=True)
    (path / "lib" / "file").write_text("x")
    return path


def test_what_an_interrupted_removal_left_is_removed_by_a_run_that_has_nothing_else_to_do(
    built: Any, left: Path
) -> None:
    serving = (built.home / "current").resolve()
    unfinished, unreadable = (built.home / "releases" / name for name in ("unfinished", "unreadable"))
    unfinished.mkdir()
    unreadable.mkdir()
    (built.home / "stamps" / "unreadable.json").write_text("{")
    before = times_of(built.root)
    predicted = built.operation(check_mode=True).present()
    assert times_of(built.root) == before
    result = built.operation().present()
    assert result["changed"]
    assert result["removed"] == [left.name[1:]]
    assert result["what"].endswith("it serves already; remove what is left of 2.8.0-cu128-11111111")
    assert result["diff"]["after"].endswith("removed: what was left of 2.8.0-cu128-11111111\n")
    assert [predicted[key] for key in ("changed", "removed", "diff")] == [True, result["removed"], result["diff"]]
    assert set((built.home / "releases").iterdir()) == {serving, unfinished, unreadable}
    assert len(built.proofs) == 1
    assert not built.operation().present()["changed"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_is_left_of_a_release_stays_while_a_process_uses_it(built: Any, left: Path, check_mode: bool) -> None:
    with subprocess.Popen(["/bin/sleep", "60"], cwd=left) as process:
        result = built.operation(check_mode=check_mode).present()
        process.kill()
    assert (result["changed"], result["removed"]) == (False, [])
    assert result["warnings"] == ["2.8.0-cu128-11111111 is kept, because a process may still use it"]
    assert (left / "lib" / "file").exists()


@pytest.mark.parametrize(("overlays", "why"), [(["/home/ann/mine"], "overlays see it: /home/ann/mine"), (None, "said")])
def test_what_is_left_of_a_release_stays_while_an_overlay_may_see_it(
    built: Any, left: Path, overlays: list[str] | None, why: str
) -> None:
    seen = None if overlays is None else {os.path.realpath(left.with_name(left.name[1:])): overlays}
    operation = built.operation()
    operation.host = dataclasses.replace(operation.host, pinned=lambda _root, _say: seen)
    result = operation.present()
    assert not result["changed"]
    assert why in result["warnings"][0]
    assert left.exists()


def test_a_build_and_a_removal_of_everything_take_what_is_left_along(built: Any, left: Path) -> None:
    assert built.operation(requirements=["plainpkg"]).present()["removed"] == [left.name[1:]]
    left.mkdir()
    assert left.name[1:] in built.operation().absent()["removed"]
    assert not built.home.exists()


def test_an_unfinished_release_in_use_by_somebody_is_left_alone(built: Any) -> None:
    request = built.request(requirements=["plainpkg"])
    unfinished = built.home / "releases" / request.release_base
    unfinished.mkdir()
    with subprocess.Popen(["/bin/sleep", "60"], cwd=unfinished) as process:
        result = built.operation(requirements=["plainpkg"]).present()
        assert process.poll() is None
        process.kill()
    assert unfinished.exists()
    assert result["release"] == request.release_base + ".2"


def test_requirements_come_from_the_package_index_and_torch_never_does(bench: Any) -> None:
    result = bench.operation(requirements=["plainpkg<2"]).present()
    done = as_nobody(
        Path(result["path"]) / "bin" / "python",
        "-c",
        "import torch, plainpkg; print(torch.__version__, plainpkg.VALUE)",
    )
    assert done.stdout == "2.9.1+cu128 1\n"


def test_a_wheel_that_is_not_what_the_index_announces_is_not_installed(bench: Any, tmp_path: Path) -> None:
    import tiny_index

    directory = tiny_index.tiny_torch_index(tmp_path / "cu128")
    page = directory / "torch" / "index.html"
    wheel = next(directory.glob("torch/torch-2.9.1*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-40] + bytes(40))
    assert "sha256=" in page.read_text()
    with tiny_index.serve(tmp_path) as url, pytest.raises(model.ReleaseError, match="uv says"):
        bench.operation(index_url=f"{url}/cu128").present()
    assert os.listdir(bench.home / "releases") == []


def test_credentials_in_the_index_url_are_in_no_message_and_on_no_command_line(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def refuse(_account: Any, argv: list[str], *, environment: dict[str, str], **_more: Any) -> Ended:
        commands.append(argv)
        url = environment.get("UV_DEFAULT_INDEX")
        return Ended(2 if url and "mirror" in url else 0, f"error: Failed to fetch: `{url}/torch/`\n", False)

    monkeypatch.setattr(build, "run_as", refuse)
    with pytest.raises(model.ReleaseError) as caught:
        bench.operation(index_url="https://bob:s3cret@mirror/cu128").present()
    assert str(caught.value).startswith("install torch 2.9.1+cu128 from https://mirror/cu128: uv says: Failed to fetch")
    assert "s3cret" not in str(caught.value) + str(commands)
    assert len(commands) == 2


def test_the_time_limit_ends_a_build(bench: Any) -> None:
    with pytest.raises(model.ReleaseError, match="longer than the time limit"):
        bench.operation(index_url="http://127.0.0.1:9/cu128", time_limit=0.5).present()
    assert os.listdir(bench.home / "releases") == []


def test_a_disk_without_room_is_refused_before_the_build(bench: Any) -> None:
    with pytest.raises(model.ReleaseError, match="MiB free, the release needs") as caught:
        bench.operation(disk_required_mib=10**9).present()
    assert "torch_env_root" in caught.value.remedy
    assert not bench.proofs


def test_the_room_is_estimated_from_a_release_with_the_same_torch() -> None:
    stamp = {"spec": {"torch": "2.9.1+cu128", "companions": {}}, "bytes": 4 * 1024**3, "files": 100}
    spec = {"torch": "2.9.1+cu128", "companions": {}}
    assert build.estimate([stamp], spec) == (5 * 1024 + 64, 2200)
    assert build.estimate([stamp], {**spec, "torch": "2.9.0+cu128"})[0] == 8192


def test_check_mode_predicts_and_writes_nothing(bench: Any) -> None:
    result = bench.operation(check_mode=True).present()
    assert result["changed"]
    assert not bench.root.exists()
    real = bench.operation().present()
    assert (result["release"], result["previous"], result["diff"]["after"]) == (
        real["release"],
        real["previous"],
        real["diff"]["after"],
    )
    before = times_of(bench.root)
    assert not bench.operation(check_mode=True).present()["changed"]
    predicted = bench.operation(check_mode=True, requirements=["plainpkg"]).present()
    assert times_of(bench.root) == before
    real = bench.operation(requirements=["plainpkg"]).present()
    assert predicted["diff"] == real["diff"]
    predicted = bench.operation(check_mode=True).previous()
    assert predicted["diff"] == bench.operation().previous()["diff"]


def test_without_uv_the_host_asks_for_it_and_changes_nothing(bench: Any) -> None:
    operation = bench.operation()
    operation.host = dataclasses.replace(operation.host, uv=lambda: None)
    result = operation.present()
    assert result["uv_needed"]
    assert not result["changed"]
    assert not bench.home.exists()


def test_another_owner_means_another_proof_and_no_build(built: Any) -> None:
    result = built.operation(owner="daemon").present()
    assert result["changed"]
    assert built.proofs[-1]["user"] == "daemon"
    assert "install" not in [step["step"] for step in result["steps"]]
    assert not built.operation(owner="daemon").present()["changed"]


def test_a_new_kind_of_gpu_means_another_proof(built: Any) -> None:
    assert built.operation(sm=("sm_120", "sm_86")).present()["changed"]
    assert built.proofs[-1]["sm"] == ["sm_120", "sm_86"]
    assert not built.operation(sm=("sm_86",)).present()["changed"]


def test_a_group_keeps_others_out_and_its_member_in(bench: Any) -> None:
    group = "daemon"
    bench.operation(owner="daemon", group=group).present()
    assert bench.home.stat().st_mode & 0o7777 == 0o750
    assert as_nobody("ls", bench.home).returncode != 0
    daemon = pwd.getpwnam("daemon")
    done = subprocess.run(
        [bench.home / "bin" / "python", "-c", ""], user=daemon.pw_uid, group=daemon.pw_gid, extra_groups=[], check=False
    )
    assert done.returncode == 0
    bench.operation(owner="daemon").present()
    assert bench.home.stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"owner": "no-such-account"}, "no account"),
        ({"group": "no-such-group"}, "no group"),
        ({"group": "daemon"}, "only members of the group"),
        ({"owner": "nobody", "group": "daemon"}, "only members of the group"),
    ],
)
def test_people_who_cannot_serve_are_refused_before_anything_changes(
    bench: Any, changes: dict[str, str], cause: str
) -> None:
    with pytest.raises(model.BadInput, match=cause):
        bench.operation(**changes).present()
    assert not bench.root.exists()


def test_a_drifted_launcher_is_written_again(built: Any) -> None:
    launcher = built.directory / "bin" / "gpu-env"
    launcher.write_text(launcher.read_text() + "# drift\n")
    result = built.operation().present()
    assert result["changed"]
    assert f"written: {launcher}" in result["diff"]["after"]
    assert "drift" not in launcher.read_text()
    assert len(built.proofs) == 1


def taken_away(bench: Any) -> dict[str, str]:
    return {path.name: path.read_text() for path in (bench.home / "takeaway").iterdir()}


def test_what_users_take_away_says_what_serves_and_belongs_to_root(built: Any) -> None:
    found = taken_away(built)
    assert set(found) == set(takeaway.NAMES)
    assert f"--index-url {built.url}/cu128\n" in found["requirements-torch.txt"]
    assert "torch==2.9.1+cu128" in found["constraints.txt"]
    assert str(built.home) in found["kernel.json"]
    for path in (built.home / "takeaway").iterdir():
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o644)


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"index_url": "http://mirror.lan/cu128"}, "requirements-torch.txt", "--index-url http://mirror.lan/cu128\n"),
        (
            {"package_index_url": "http://mirror.lan/simple"},
            "requirements.txt",
            "--index-url http://mirror.lan/simple\n",
        ),
        ({"variables": {"NOTE": "new"}}, "Dockerfile", 'ENV NOTE="new"\n'),
    ],
)
def test_what_users_take_away_follows_mirror_and_variables_without_another_release(
    built: Any, changes: dict[str, Any], name: str, text: str
) -> None:
    predicted = built.operation(check_mode=True, **changes).present()
    assert text not in taken_away(built)[name]
    result = built.operation(**changes).present()
    assert text in taken_away(built)[name]
    assert f"written: {built.home}/takeaway/{name}" in result["diff"]["after"]
    assert (result["changed"], result["release"], result["diff"]) == (True, predicted["release"], predicted["diff"])
    assert built.operation(**changes).present()["changed"] is False
    assert len(built.proofs) == 1


def test_credentials_of_an_index_are_not_written_for_users(built: Any) -> None:
    built.operation(index_url="http://bob:s3cret@mirror.lan/cu128").present()
    assert "http://mirror.lan/cu128" in taken_away(built)["requirements-torch.txt"]
    assert not [name for name, text in taken_away(built).items() if "s3cret" in text]


def test_without_a_lock_what_users_take_away_stays(built: Any) -> None:
    before = taken_away(built)
    assert built.operation(lock="", index_url="http://mirror.lan/cu128").present()["changed"] is False
    assert taken_away(built) == before


def test_a_rollback_takes_away_what_describes_the_release_that_it_leaves(built: Any) -> None:
    built.operation(torch="2.9.0+cu128", companions={}).present()
    assert "torch==2.9.0+cu128" in taken_away(built)["constraints.txt"]
    built.operation().previous()
    assert not (built.home / "takeaway").exists()
    assert built.operation().present()["changed"] is True
    assert "torch==2.9.1+cu128" in taken_away(built)["constraints.txt"]
    assert built.operation().present()["changed"] is False


def test_a_lock_of_another_specification_changes_nothing(built: Any) -> None:
    before = taken_away(built)
    other = built.request(torch="2.9.0+cu128", companions={}).lock
    with pytest.raises(model.BadInput, match="not the lock that the spec names"):
        built.operation(lock=other).present()
    assert taken_away(built) == before


def test_a_foreign_launcher_stops_the_run_before_the_build(bench: Any) -> None:
    (bench.directory / "bin").mkdir()
    (bench.directory / "bin" / "gpu-env").write_text("#!/bin/sh\n")
    with pytest.raises(model.ReleaseError, match="was not written by this collection"):
        bench.operation().present()
    assert not bench.home.exists()


def test_absent_takes_the_environment_and_at_last_the_shared_parts(built: Any) -> None:
    built.operation(name="other").present()
    result = built.operation().absent()
    assert result["changed"]
    assert not built.home.exists()
    assert (built.root / ".cache").exists()
    assert (built.directory / "bin" / "gpu-env").exists()
    forgotten = []
    last = built.operation(name="other")
    last.host = dataclasses.replace(
        last.host, forget_account=lambda: forgotten.append("account"), forget_proof=forgotten.append
    )
    assert last.absent()["warnings"] == []
    assert forgotten == ["other", "account"]
    assert not built.root.exists()
    assert not (built.directory / "bin" / "gpu-env").exists()
    assert not built.operation().absent()["changed"]


def test_an_environment_in_use_is_not_removed(built: Any) -> None:
    python = (built.home / "current").resolve() / "bin" / "python"
    with subprocess.Popen([python, "-c", "import time; time.sleep(60)"]) as process:
        time.sleep(0.3)
        with pytest.raises(model.ReleaseError, match=f"processes use the environment: {process.pid}"):
            built.operation().absent()
        process.kill()
    assert (built.home / "current").exists()


def test_the_runtime_variables_reach_every_start_of_the_environments_python(built: Any) -> None:
    (built.home / "runtime.env").write_text("TOKENIZERS_PARALLELISM=false\n")
    show = "import os; print(os.environ.get('TOKENIZERS_PARALLELISM'))"
    for python in (built.home / "current" / "bin" / "python", built.home / "bin" / "python"):
        assert as_nobody(python, "-c", show).stdout == "false\n"
        assert as_nobody(python, "-I", "-c", show).stdout == "false\n"


def test_a_package_cannot_replace_our_start_up_module(bench: Any, tmp_path: Path) -> None:
    import tiny_index

    directory = tiny_index.tiny_torch_index(tmp_path / "cu128")
    tiny_index.write_wheel(directory / "torch", "torch", "2.9.1+cu128", {"gpufleet_runtime.pth": "import os\n"})
    tiny_index.write_index(directory)
    with (
        tiny_index.serve(tmp_path) as url,
        pytest.raises(model.ReleaseError, match=r"brings its own gpufleet_runtime\.pth"),
    ):
        bench.operation(index=url, companions={}).present()


def test_code_of_a_package_runs_first_in_the_proof_and_never_as_root(bench: Any, tmp_path: Path) -> None:
    import tiny_index

    witness = bench.directory / "witness"
    witness.mkdir()
    witness.chmod(0o777)
    hostile = f"import os; open('{witness}/' + str(os.getuid()), 'a').close()\n"
    directory = tiny_index.tiny_torch_index(tmp_path / "cu128")
    files = {**tiny_index.torch_files("2.9.1+cu128"), "hostile.pth": hostile}
    tiny_index.write_wheel(directory / "torch", "torch", "2.9.1+cu128", files)
    tiny_index.write_index(directory)
    seen = []
    operation = bench.operation()
    prove = operation.host.prove

    def look(python: str, *arguments: Any) -> Any:
        seen.extend(os.listdir(witness))
        as_nobody(python, "-I", "-c", "")
        return prove(python, *arguments)

    operation.host = dataclasses.replace(operation.host, prove=look)
    with tiny_index.serve(tmp_path) as url:
        operation.request = bench.request(index=url, companions={})
        operation.present()
        assert not bench.operation(index=url, companions={}).present()["changed"]
    assert seen == []
    assert os.listdir(witness) == [str(pwd.getpwnam("nobody").pw_uid)]


def test_the_manifest_lists_every_file_that_is_there(built: Any) -> None:
    release_id = (built.home / "current").resolve().name
    listed = manifest.parse((built.home / "stamps" / f"{release_id}.manifest").read_text())
    serving = (built.home / "current").resolve()
    found = as_nobody("find", serving, "-not", "-type", "d", "-printf", "%P\\n").stdout.splitlines()
    assert set(listed) == set(found)
    assert any(path.endswith(".pyc") for path in listed)
    assert any(path.endswith("gpufleet_runtime.pth") for path in listed)


def test_a_signal_is_a_failure_of_the_step_that_cleans_up(bench: Any) -> None:
    operation = bench.operation()

    def interrupted(*_arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    operation.host = dataclasses.replace(operation.host, prove=interrupted)
    with pytest.raises(model.ReleaseError, match="SIGTERM"):
        operation.present()
    assert os.listdir(bench.home / "releases") == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_tree_with_a_way_out_is_not_taken(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to own files")
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "link").symlink_to("/etc/passwd")
    with pytest.raises(model.ReleaseError, match="link is a special file or a link that leads out"):
        build.seal_tree(str(tmp_path / "release"), "/usr/bin/python3")
    (tmp_path / "release" / "link").unlink()
    os.mkfifo(tmp_path / "release" / "pipe")
    with pytest.raises(model.ReleaseError, match="pipe is a special file"):
        build.seal_tree(str(tmp_path / "release"), "/usr/bin/python3")


def test_setuid_and_odd_modes_do_not_survive_the_seal(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to own files")
    top = tmp_path / "release"
    (top / "bin").mkdir(parents=True)
    for name, mode in (("tool", 0o4770), ("data", 0o600), ("open", 0o666)):
        (top / "bin" / name).write_text("")
        (top / "bin" / name).chmod(mode)
        os.chown(top / "bin" / name, 65534, 65534)
    (top / "bin").chmod(0o777)
    build.seal_tree(str(top), "/usr/bin/python3")
    modes = {path: status.st_mode & 0o7777 for path, status in files_of(top).items()}
    assert modes == {"bin": 0o755, "bin/tool": 0o755, "bin/data": 0o644, "bin/open": 0o644}
    assert {status.st_uid for status in files_of(top).values()} == {0}
