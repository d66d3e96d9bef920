"""The flow: what it asks of the package manager in which order, and what it leaves behind when something fails or is killed."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import change, generations, kernel_modules
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.change import Flow, Options, Result
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import Done
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.kernel_modules import Failure, Module
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import (
    Change,
    DriverError,
    Package,
    PackageFile,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

K1, K2 = "6.12.107+deb13-amd64", "6.12.94+deb13-amd64"
NAMES = ("libcuda1", "nvidia-kernel-open-dkms")


class Killed(BaseException):
    """kill -9 of the module."""


class FakeManager:
    """A package manager whose packages are a dictionary. ``target`` is what the solver would make of it."""

    name = "apt"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages: dict[str, str] = {}
        self.target: dict[str, str] = {}
        self.holds: set[str] = set()
        self.pin: str | None = None
        self.calls: list[str] = []
        self.left: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.fetchable = True
        self.half = False

    def _note(self, call: str) -> None:
        self.calls.append(call)
        error = self.fail.get(call)
        if error is not None and call != "install":
            raise self.fail.pop(call)

    def wait(self, limit):
        self._note("wait")

    def interrupted(self):
        return list(self.left)

    def repair(self):
        self._note("repair")
        self.left = []
        return ["configured it"]

    def describe_repository(self, request):
        self._note("describe")
        return True

    def refresh(self, request):
        self._note("refresh")

    def choose(self, request, lasting):
        self._note("choose for good" if lasting else "choose")
        if lasting:
            self.pin = request.version
        return lasting

    def simulate(self, transaction):
        self._note("simulate")
        names = [name for name in dict.fromkeys([*self.packages, *self.target]) if self._wanted(transaction, name)]
        found = []
        for name in names:
            before, after = self.packages.get(name), self.target.get(name)
            if before != after:
                found.append(Change(name, before, after, "nvidia"))
        return found

    def _wanted(self, transaction, name):
        headers = name.startswith("linux-headers")
        return headers == any(word.startswith("linux-headers") for word in (*transaction.install, *transaction.remove))

    def _file(self, folder, name, version):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}_{version}_amd64.deb"
        path.write_text(f"{name} {version}")
        return PackageFile(Package(name, version, "amd64"), path, generations.sha256(path))

    def download(self, transaction, folder):
        self._note("download")
        return [self._file(folder, one.name, one.after) for one in self.simulate(transaction) if one.after]

    def fetch(self, packages, folder):
        self._note("fetch")
        return [self._file(folder, one.name, one.version) for one in packages] if self.fetchable else []

    def install(self, transaction, folder):
        self._note("install")
        error = self.fail.pop("install", None)
        for one in self.simulate(transaction):
            if one.after is None:
                del self.packages[one.name]
            else:
                assert (folder / f"{one.name}_{one.after}_amd64.deb").is_file(), "offline"
                self.packages[one.name] = one.after
            if error is not None:
                self.left = ["half done"]
                raise error
        return ""

    def install_files(self, files, remove):
        self._note("install files")
        for name in remove:
            self.packages.pop(name, None)
        for path in files:
            name, version, _rest = path.name.split("_")
            self.packages[name] = version
        return ""

    def installed(self):
        return [Package(n, v, "amd64") for n, v in sorted(self.packages.items()) if n.startswith(("lib", "nvidia"))]

    def held(self):
        return sorted(self.holds)

    def freeze(self, packages, holds):
        self._note("freeze")
        before = (self.pin, set(self.holds))
        self.pin = ",".join(f"{one.name}={one.version}" for one in packages)
        self.holds |= set(holds)
        return before != (self.pin, self.holds)

    def thaw(self, holds):
        self._note("thaw")
        self.holds -= set(holds)

    def forget(self):
        self._note("forget")
        self.pin = None
        return ["/etc/apt/preferences.d/gpufleet-nvidia"]

    def read_configuration(self):
        return {} if self.pin is None else {"pin": self.pin}

    def write_configuration(self, files):
        self._note("write configuration")
        self.pin = files.get("pin")


@pytest.fixture
def manager(tmp_path):
    return FakeManager(tmp_path)


@pytest.fixture(autouse=True)
def modules(monkeypatch, manager, tmp_path):
    """Kernels and their modules: a module is there in the version of the installed DKMS package, unless it does not build."""
    state = type("State", (), {"bad": {}, "trial": [], "built": [], "rebuilt": []})()

    def lacking(_host, releases, version, flavor, secure_boot=False):
        there = manager.packages.get(NAMES[1])
        return {
            release: "it has no NVIDIA module"
            for release in releases
            if there != f"{version}-1" or (release, version) in state.bad
        }

    def build(_run, releases, version, time_limit, root=""):
        state.built.append((list(releases), version))
        return [
            Failure(
                release,
                f"nvidia {version}",
                "it does not compile",
                compiler=("nv-pci.c:212: error: too few arguments",),
            )
            for release in releases
            if (release, version) in state.bad
        ]

    def proven(_host, releases):
        version = manager.packages.get(NAMES[1])
        return [
            Module(r, version.rpartition("-")[0], "open", f"/lib/modules/{r}/nvidia.ko") for r in releases if version
        ]

    monkeypatch.setattr(kernel_modules, "lacking", lacking)
    monkeypatch.setattr(kernel_modules, "build", build)
    monkeypatch.setattr(kernel_modules, "left_behind", lambda _root="": [])
    monkeypatch.setattr(kernel_modules, "proven", proven)
    monkeypatch.setattr(kernel_modules, "trial_build", lambda *_args, **_more: list(state.trial))
    monkeypatch.setattr(
        change.initramfs, "rebuild", lambda _h, _r, releases, _t: state.rebuilt.extend(releases) or list(releases)
    )
    dkms = tmp_path / "usr/sbin/dkms"
    dkms.parent.mkdir(parents=True)
    dkms.write_text("")
    return state


def plan(version="580.*", **data):
    branch = int(version[:3])
    packages = {"packages": list(NAMES), "remove": [], "version": version}
    actions = {
        "driver.repository": {"path": "/etc/x.sources", "content": "x", "key_path": "/etc/x.asc"},
        "driver.stage": packages,
        "driver.packages": packages,
        "driver.modules": {"kernels": [K1, K2], "flavor": "open", "branch": branch, "build": "dkms"},
        "driver.nouveau": {"path": "/etc/modprobe.d/gpufleet-nouveau.conf", "content": "blacklist nouveau\n"},
        "driver.freeze": {"version": version},
        **data,
    }
    return {
        "branch": branch,
        "flavor": "open",
        "source": "nvidia",
        "package_set": "compute",
        "actions": [{"id": name, "what": name, "data": value} for name, value in actions.items() if value is not None],
    }


def plan_actions() -> set[str]:
    return {action["id"] for action in plan()["actions"]}


@pytest.fixture
def flow(manager, tmp_path):
    """Makes a call of the module."""

    def make(wanted=None, **options) -> Flow:
        wanted = plan() if wanted is None else wanted
        downgrade = options.pop("downgrade", False)
        settings = Options(wait_limit=0.0, environments_root="/envs", **options)
        host = Host(root=str(tmp_path), release=K1)
        request = change.request_of(wanted, "KEY", downgrade)
        return Flow(
            manager, request, change.actions_of(wanted), settings, lambda *_a, **_k: Done(0, ""), host, Result()
        )

    return make


def serve(manager, version="580.105.08"):
    manager.packages = dict.fromkeys(NAMES, f"{version}-1")


def aim(manager, version):
    manager.target = {
        **{n: v for n, v in manager.packages.items() if n not in NAMES},
        **dict.fromkeys(NAMES, f"{version}-1"),
    }


def journal(tmp_path):
    return json.loads((tmp_path / "var/lib/gpufleet/driver.json").read_text())


def run(one, state):
    getattr(one, state)()
    return one.result


def ids(result):
    return [step["id"] for step in result.done]


def upgrade(manager, flow, before="580.105.08", after="595.71.05"):
    """A host that serves one driver under our care and has the next one staged."""
    aim(manager, before)
    run(flow(plan(f"{before[:3]}.*")), "staged")
    run(flow(plan(f"{before[:3]}.*")), "installed")
    aim(manager, after)
    run(flow(plan(f"{after[:3]}.*")), "staged")
    manager.calls.clear()
    return flow(plan(f"{after[:3]}.*"))


# -- what goes well -----------------------------------------------------------------------------------------------------


def test_the_block_list_is_complete_before_the_images_that_hold_it(manager, flow, tmp_path, monkeypatch):
    path = tmp_path / "etc/modprobe.d/gpufleet-nouveau.conf"
    seen = []
    monkeypatch.setattr(change.initramfs, "rebuild", lambda *_all: seen.append(path.stat()) or [])
    aim(manager, "580.105.08")
    run(flow(), "staged")
    run(flow(), "installed")
    (then,) = seen
    assert then.st_mode & 0o777 == 0o644
    assert path.stat().st_ctime_ns == then.st_ctime_ns, "the images would be older than the list"


def test_a_fresh_host_gets_driver_pin_holds_block_list_and_a_generation(manager, flow, tmp_path, modules):
    aim(manager, "580.105.08")
    staged = run(flow(), "staged")
    assert ids(staged) == ["driver.repository", "refresh", "simulate", "driver.stage"]
    assert staged.transaction["install"] == list(NAMES)
    assert manager.packages == {}
    result = run(flow(), "installed")
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")
    assert manager.holds == set(NAMES)
    assert manager.pin == "libcuda1=580.105.08-1,nvidia-kernel-open-dkms=580.105.08-1"
    assert result.changed
    assert result.generation == 1
    assert result.restored is None
    assert [kernel["release"] for kernel in result.kernels] == [K1, K2]
    assert (tmp_path / "etc/modprobe.d/gpufleet-nouveau.conf").read_text() == "blacklist nouveau\n"
    assert modules.rebuilt == [K1, K2]
    noted = journal(tmp_path)
    assert noted["holds"] == list(NAMES)
    assert noted["present"]["version"] == "580.105.08"
    assert noted["before"] == {"generation": None, "packages": []}
    assert not (tmp_path / "var/lib/gpufleet/staged").exists()
    assert all(step["s"] >= 0 for step in result.done)


def test_staging_twice_changes_nothing_the_second_time(manager, flow, tmp_path):
    aim(manager, "580.105.08")
    without = plan(**{"driver.repository": None})
    assert run(flow(without), "staged").changed
    again = run(flow(without), "staged")
    assert not again.changed
    assert again.done[-1]["what"] == "everything is staged already"
    record = json.loads((tmp_path / "var/lib/gpufleet/staged/transaction.json").read_text())
    assert (record["branch"], record["flavor"], record["version"]) == (580, "open", "580.105.08")
    assert record["packages"] == change.digest(flow(without).request.transaction)


def test_a_damaged_staged_file_is_fetched_again(manager, flow, tmp_path):
    aim(manager, "580.105.08")
    run(flow(), "staged")
    path = tmp_path / "var/lib/gpufleet/staged/libcuda1_580.105.08-1_amd64.deb"
    path.write_text("damaged")
    manager.calls.clear()
    run(flow(), "installed")
    assert manager.calls.count("download") == 1
    assert manager.packages["libcuda1"] == "580.105.08-1"


def test_what_is_not_staged_yet_is_staged_by_the_installation(manager, flow):
    aim(manager, "580.105.08")
    run(flow(), "installed")
    assert manager.calls.index("download") < manager.calls.index("thaw") < manager.calls.index("install")


def test_an_upgrade_is_chosen_for_good_only_in_the_window(manager, flow, tmp_path):
    one = upgrade(manager, flow)
    proof = tmp_path / "var/lib/gpufleet/proof/base.json"
    proof.parent.mkdir()
    proof.touch()
    assert manager.pin == "libcuda1=580.105.08-1,nvidia-kernel-open-dkms=580.105.08-1"  # staged: nothing moves it
    assert manager.holds == set(NAMES)
    result = run(one, "installed")
    assert not proof.exists()
    order = [call for call in manager.calls if call in ("thaw", "choose for good", "install", "freeze")]
    assert order == ["thaw", "choose for good", "install", "freeze"]
    assert manager.packages == dict.fromkeys(NAMES, "595.71.05-1")
    assert result.generation == 2
    noted = journal(tmp_path)
    assert (noted["previous"]["version"], noted["present"]["version"]) == ("580.105.08", "595.71.05")
    assert "under_way" not in noted["before"]


def test_the_driver_that_was_there_before_us_is_kept_before_the_first_step(manager, flow, tmp_path):
    serve(manager, "550.163.01")
    aim(manager, "580.105.08")
    result = run(flow(), "staged")
    assert "way back" in ids(result)
    kept = generations.Store(tmp_path / "var/lib/gpufleet/generations").read(1)
    assert [item["version"] for item in kept.packages] == ["550.163.01-1"] * 2
    run(flow(), "installed")
    assert journal(tmp_path)["before"]["generation"] == 1


def test_what_comes_along_is_noted_and_removed_with_the_driver(manager, flow, tmp_path):
    wanted = plan(**{"driver.headers": {"packages": ["linux-headers-amd64"]}})
    aim(manager, "580.105.08")
    manager.target["linux-headers-amd64"] = "6.12"
    run(flow(wanted), "staged")
    assert manager.packages == {"linux-headers-amd64": "6.12"}
    assert not (tmp_path / "var/lib/gpufleet/headers").exists()
    run(flow(wanted), "installed")
    assert journal(tmp_path)["before"]["brought"] == ["linux-headers-amd64"]
    manager.target = {}
    (tmp_path / "var/lib/gpufleet/proof").mkdir()
    (tmp_path / "var/lib/gpufleet/gpus.json").touch()
    result = run(
        flow(
            {
                "actions": [
                    {
                        "id": "driver.remove",
                        "data": {"packages": list(NAMES), "paths": ["/etc/modprobe.d/gpufleet-nouveau.conf"]},
                    }
                ]
            }
        ),
        "absent",
    )
    assert manager.packages == {}
    assert manager.holds == set()
    assert manager.pin is None
    assert "initramfs" in ids(result)
    assert not (tmp_path / "etc/modprobe.d/gpufleet-nouveau.conf").exists()
    assert not (tmp_path / "var/lib/gpufleet").exists()


def test_removal_brings_back_the_driver_that_was_there_before_us(manager, flow, tmp_path):
    serve(manager, "550.163.01")
    aim(manager, "580.105.08")
    run(flow(), "staged")
    run(flow(), "installed")
    run(flow({"actions": [{"id": "driver.remove", "data": {"packages": list(NAMES), "paths": []}}]}), "absent")
    assert manager.packages == dict.fromkeys(NAMES, "550.163.01-1")
    assert manager.holds == set()


def test_removal_names_also_what_an_earlier_change_replaced(manager, flow, monkeypatch):
    aim(manager, "580.105.08")
    manager.target["nvidia-open-kernel-support"] = "580.105.08-1"
    run(flow(), "staged")
    run(flow(), "installed")
    manager.target = dict.fromkeys(NAMES, "595.71.05-1")
    run(flow(plan("595.*")), "staged")
    run(flow(plan("595.*")), "installed")
    manager.packages.pop("nvidia-open-kernel-support", None)
    asked = []
    monkeypatch.setattr(manager, "install_files", lambda _files, remove: asked.extend(remove) or "")
    run(flow({"actions": [{"id": "driver.remove", "data": {"packages": list(NAMES), "paths": []}}]}), "absent")
    assert asked == [*NAMES, "nvidia-open-kernel-support"]


def test_a_generation_comes_back_without_network(manager, flow, tmp_path):
    run(upgrade(manager, flow), "installed")
    manager.calls.clear()
    one = flow({})
    one.generation(1, check=True)
    assert one.result.changed
    assert one.result.transaction["downgrade"] == list(NAMES)
    assert manager.packages == dict.fromkeys(NAMES, "595.71.05-1")
    one = flow({})
    one.generation(1)
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")
    assert manager.holds == set(NAMES)
    assert manager.pin.startswith("libcuda1=580.105.08-1")
    assert {"refresh", "download", "fetch"}.isdisjoint(manager.calls)
    noted = journal(tmp_path)
    assert (noted["generation"], noted["present"]["version"]) == (1, "580.105.08")
    again = flow({})
    again.generation(1)
    assert not again.result.changed


def test_a_generation_that_does_not_exist_names_those_that_do(manager, flow):
    run(upgrade(manager, flow), "installed")
    with pytest.raises(DriverError, match=r"Generation 7 cannot be used.*Other generations: 1, 2"):
        flow({}).generation(7)


@pytest.mark.parametrize("with_nouveau", [True, False])
@pytest.mark.parametrize("older", [True, False])
def test_after_a_change_images_are_renewed_that_would_load_something_else(
    manager, flow, modules, monkeypatch, with_nouveau, older
):
    monkeypatch.setattr(change.boot_files, "nouveau_in_initramfs", lambda _h, _r: {K1: with_nouveau, K2: None})
    monkeypatch.setattr(change.initramfs, "holds_older_driver", lambda _h, _r, release: older and release == K2)
    aim(manager, "580.105.08")
    run(flow(), "staged")
    result = run(flow(plan(**{"driver.nouveau": None})), "installed")
    assert modules.rebuilt == [K1] * with_nouveau + [K2] * older
    assert ("initramfs" in ids(result)) is (with_nouveau or older)


def test_a_stream_that_drifted_is_chosen_again_where_only_that_is_to_be_kept(manager, flow):
    aim(manager, "580.105.08")
    run(flow(), "staged")
    run(flow(), "installed")
    manager.calls.clear()
    only = plan(**dict.fromkeys(plan_actions() - {"driver.freeze"}))
    run(flow(only), "installed")
    assert "choose for good" not in manager.calls
    run(flow({**only, "pin": {"kind": "module_stream", "packages": "nvidia-driver:580-open"}}), "installed")
    assert manager.calls.index("choose for good") < manager.calls.index(
        "freeze", manager.calls.index("choose for good")
    )


def test_old_generations_go_but_not_the_one_that_was_there_before_us(manager, flow, tmp_path):
    serve(manager, "550.163.01")
    for version in ("570.1.1", "580.105.08", "595.71.05", "615.71.09"):
        aim(manager, version)
        run(flow(plan(f"{version[:3]}.*"), keep=2), "installed")
    assert generations.Store(tmp_path / "var/lib/gpufleet/generations").numbers() == [1, 4, 5]


def test_only_the_plans_actions_are_carried_out(manager, flow):
    serve(manager)
    aim(manager, "580.105.08")
    nothing = {"branch": 580, "flavor": "open", "source": "nvidia", "package_set": "compute", "actions": []}
    assert not run(flow(nothing), "staged").changed
    assert not run(flow(nothing), "installed").changed
    assert {"refresh", "simulate", "install", "freeze"}.isdisjoint(manager.calls)


def test_missing_modules_alone_are_built(manager, flow, modules, monkeypatch):
    serve(manager)
    only = plan(
        **dict.fromkeys(["driver.repository", "driver.stage", "driver.packages", "driver.nouveau", "driver.freeze"])
    )
    modules.bad[(K2, "580.105.08")] = 1
    monkeypatch.setattr(kernel_modules, "build", lambda *_args: modules.bad.clear() or [])
    result = run(flow(only), "installed")
    assert result.done == [{"id": "driver.modules", "what": result.done[0]["what"], "changed": True, "s": 0.0}]


# -- refused before anything changes ------------------------------------------------------------------------------------


def test_a_transaction_that_costs_the_desktop_is_refused_and_shown(manager, flow, tmp_path):
    serve(manager)
    manager.packages["gdm3"] = "48"
    manager.target = dict.fromkeys(NAMES, "580.178.04-1")
    one = flow()
    with pytest.raises(
        DriverError, match=r"is refused: it would remove the display manager gdm3.*Nothing of the driver was changed"
    ):
        one.staged()
    assert one.result.transaction["others"] == [{"name": "gdm3", "before": "48", "after": None}]
    assert "download" not in manager.calls


def test_what_the_user_holds_stops_the_change_and_what_we_hold_does_not(manager, flow):
    one = upgrade(manager, flow)
    manager.holds.add("libcuda1")
    run(one, "installed")  # ours
    aim(manager, "615.71.09")
    manager.packages["libnvidia-ml1"] = "595.71.05-1"
    manager.target["libnvidia-ml1"] = "615.71.09-1"
    manager.holds.add("libnvidia-ml1")
    with pytest.raises(DriverError, match="libnvidia-ml1, held or locked by somebody else"):
        run(flow(plan("615.*")), "staged")
    assert "libnvidia-ml1" in manager.holds


def test_the_users_hold_is_never_noted_as_ours(manager, flow, tmp_path):
    serve(manager)
    manager.holds = {"libcuda1"}
    only = plan(
        **dict.fromkeys(["driver.repository", "driver.stage", "driver.packages", "driver.modules", "driver.nouveau"])
    )
    run(flow(only), "installed")
    assert journal(tmp_path)["holds"] == ["nvidia-kernel-open-dkms"]


def test_a_trial_build_that_fails_leaves_the_driver_alone_and_nothing_counts_as_staged(
    manager, flow, modules, tmp_path
):
    serve(manager)
    aim(manager, "595.71.05")
    modules.trial = [Failure(K1, "nvidia 595.71.05", "it does not compile", compiler=("nv.c:1: error: no",))]
    one = flow(plan("595.*"))
    with pytest.raises(
        DriverError,
        match=rf"do not build, so the driver that serves was not touched.*{K1[:6]}.*nv.c:1: error: no.*Ways out",
    ):
        one.staged()
    assert one.result.compiler == ["nv.c:1: error: no"]
    assert not (tmp_path / "var/lib/gpufleet/staged/transaction.json").exists()
    assert manager.packages["libcuda1"] == "580.105.08-1"


def test_modules_that_come_compiled_are_not_tried(manager, flow, modules):
    serve(manager)
    aim(manager, "580.178.04")
    modules.trial = [Failure(K1, "x", "y")]
    wanted = plan(**{"driver.modules": {"kernels": [K1], "flavor": "open", "branch": 580, "build": "prebuilt"}})
    manager.target.pop(NAMES[1])
    manager.packages.pop(NAMES[1])
    assert "trial build" not in ids(run(flow(wanted), "staged"))


def test_without_a_way_back_nothing_is_replaced_unless_that_is_allowed(manager, flow):
    serve(manager)
    aim(manager, "595.71.05")
    manager.fetchable = False
    with pytest.raises(
        DriverError, match=r"way back cannot be secured: libcuda1 580.105.08-1.*way_back_required: false"
    ):
        run(flow(plan("595.*")), "staged")
    result = run(flow(plan("595.*"), way_back_required=False), "staged")
    assert result.warnings[0].startswith("There is no way back to the driver that serves now: libcuda1")


def test_headers_that_drag_the_driver_along_or_do_not_exist_are_refused(manager, flow, monkeypatch):
    wanted = plan(**{"driver.headers": {"packages": [f"linux-headers-{K1}"]}})
    monkeypatch.setattr(manager, "simulate", lambda _t: [Change("libcuda1", "580.1-1", "595.1-1")])
    with pytest.raises(DriverError, match="it would change libcuda1 of the driver"):
        run(flow(wanted), "staged")

    def missing(_transaction):
        raise DriverError("Unable to locate package.")

    monkeypatch.setattr(manager, "simulate", missing)
    with pytest.raises(
        DriverError, match=r"headers cannot be installed: Unable to locate package\..*install a current kernel"
    ):
        run(flow(wanted), "staged")


HEADERS = {"driver.headers": {"packages": [f"linux-headers-{K2}", "linux-headers-amd64"]}}


@pytest.mark.parametrize(
    ("metapackage", "installed"),
    [
        (None, False),
        (("linux-image-amd64", None, "6.12.107-1"), False),
        (("linux-image-amd64", "6.12.94-1", "6.12.107-1"), True),
    ],
)
def test_headers_of_a_kernel_that_does_not_come_here_are_left_out(manager, flow, monkeypatch, metapackage, installed):
    parts = {
        f"linux-headers-{K2}": [f"linux-headers-{K2}", "linux-headers-6.12.94+deb13-common"],
        "linux-headers-amd64": ["linux-headers-amd64", f"linux-headers-{K1}"],
    }
    asked = []

    def simulate(transaction):
        if "linux-image-amd64" in transaction.install:
            if metapackage is None:
                raise DriverError("Unable to locate package linux-image-amd64.")
            return [Change(*metapackage)]
        asked.append(transaction.install)
        return [Change(name, None, "1") for word in transaction.install for name in parts.get(word, ())]

    monkeypatch.setattr(manager, "simulate", simulate)
    result = run(flow(plan(**HEADERS, **dict.fromkeys(("driver.stage", "driver.repository")))), "staged")
    names = HEADERS["driver.headers"]["packages"]
    assert list(asked[-1]) == (names if installed else names[:1])
    assert bool(result.warnings) is not installed
    if not installed:
        assert f"it brings linux-headers-{K1}, and that kernel is not installed" in result.warnings[0]


def test_headers_that_follow_the_kernels_that_are_here_are_installed(manager, flow):
    manager.target = dict.fromkeys([*HEADERS["driver.headers"]["packages"]], "6.12.94-1")
    result = run(flow(plan(**HEADERS, **dict.fromkeys(("driver.stage", "driver.repository")))), "staged")
    assert "linux-headers-amd64" in manager.packages
    assert result.warnings == []


def test_only_one_call_changes_a_host(manager, flow, tmp_path):
    path = tmp_path / "run/gpufleet-driver.lock"
    path.parent.mkdir()
    with path.open("w") as other:
        other.write("4711\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DriverError, match=r"Another run .*process 4711"):
            run(flow(), "staged")
    assert manager.calls == []


# -- what fails in the window -------------------------------------------------------------------------------------------


def test_a_failing_package_script_puts_packages_pin_holds_and_journal_back(manager, flow, tmp_path, modules):
    one = upgrade(manager, flow)
    before = (dict(manager.packages), manager.pin, set(manager.holds), journal(tmp_path))
    modules.bad[(K2, "595.71.05")] = 1
    output = f"Error! Bad return status for module build on kernel: {K2} (x86_64)"
    manager.fail["install"] = DriverError("Installing the packages failed: Error!", output=output)
    with pytest.raises(DriverError) as caught:
        one.installed()
    assert one.result.restored is True
    assert (dict(manager.packages), manager.pin, set(manager.holds), journal(tmp_path)) == before
    text = str(caught.value)
    for words in (K2, "too few arguments", "that were there before are installed again", "Ways out"):
        assert words in text
    assert one.result.compiler == ["nv-pci.c:212: error: too few arguments"]
    assert one.result.changed


def test_a_module_that_is_missing_after_the_installation_puts_the_old_driver_back(manager, flow, modules):
    one = upgrade(manager, flow)
    modules.bad[(K2, "595.71.05")] = 1
    with pytest.raises(
        DriverError, match=r"no open NVIDIA module 595.71.05 for kernel 6.12.94.*it has no NVIDIA module"
    ) as caught:
        one.installed()
    assert one.result.restored is True
    assert modules.built == [([K2], "595.71.05")]
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")
    assert str(caught.value).count("Ways out") == 1
    assert one.result.kernels[0]["version"] == "595.71.05"


def test_on_a_fresh_host_the_packages_of_the_attempt_are_removed_with_all_that_came(manager, flow, modules, tmp_path):
    aim(manager, "580.105.08")
    manager.target["dkms"] = "3.3.0-1"
    modules.bad[(K1, "580.105.08")] = 1
    run(flow(), "staged")
    one = flow()
    with pytest.raises(DriverError, match="The packages of this attempt were removed again"):
        one.installed()
    assert one.result.restored is True
    assert manager.packages == {}
    assert manager.pin is None
    assert not (tmp_path / "var/lib/gpufleet/driver.json").exists()


def test_a_build_for_a_kernel_of_which_only_headers_are_here_names_them(manager, flow, modules, monkeypatch):
    gone = "6.12.200+deb13-amd64"
    monkeypatch.setattr(
        kernel_modules, "left_behind", lambda _root="": [Failure(gone, "nvidia 580.105.08", "it does not compile")]
    )
    aim(manager, "580.105.08")
    run(flow(), "staged")
    output = f"Error! Bad return status for module build on kernel: {gone} (x86_64)\n"
    manager.fail["install"] = DriverError("Installing the packages failed: Error!", output=output)
    with pytest.raises(DriverError) as caught:
        flow().installed()
    assert f"Kernel {gone} is not installed, only its headers are" in str(caught.value)
    assert f"apt-get purge linux-headers-{gone}" in str(caught.value)


def test_another_branch_than_planned_is_never_called_done(manager, flow, monkeypatch):
    one = upgrade(manager, flow)
    real = manager.install

    def other(transaction, folder):
        real(transaction, folder)
        manager.packages = dict.fromkeys(NAMES, "615.71.09-1")

    monkeypatch.setattr(manager, "install", other)
    with pytest.raises(DriverError, match=r"Branch 595 is planned, but driver 615.71.09 is installed now"):
        one.installed()
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")


def test_a_full_disk_in_the_window_is_put_back_too(manager, flow):
    one = upgrade(manager, flow)
    manager.fail["install"] = OSError(28, "No space left on device")
    with pytest.raises(DriverError, match=r"No space left on device.*installed again"):
        one.installed()
    assert one.result.restored is True
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")


def test_what_could_not_be_put_back_is_said_and_no_branch_stays_open(manager, flow, modules):
    one = upgrade(manager, flow)
    modules.bad[(K2, "595.71.05")] = 1
    manager.fail["install files"] = DriverError("dpkg is stuck", output="build on kernel: x")
    with pytest.raises(DriverError, match=r"could not be put back completely \(dpkg is stuck\)"):
        one.installed()
    assert one.result.restored is False
    assert "repair" in manager.calls
    assert "595.*" not in str(manager.pin)


def test_putting_back_is_tried_again_after_a_repair(manager, flow, modules):
    one = upgrade(manager, flow)
    modules.bad[(K2, "595.71.05")] = 1
    manager.fail["install files"] = DriverError("apt is confused")
    with pytest.raises(DriverError, match="installed again"):
        one.installed()
    assert manager.calls.count("install files") == 2


def test_module_files_that_serve_are_put_back_where_nothing_compiles_any_more(
    manager, flow, modules, tmp_path, monkeypatch
):
    one = upgrade(manager, flow)
    for release in (K1, K2):
        folder = tmp_path / f"lib/modules/{release}"
        folder.mkdir(parents=True)
        for name in ("nvidia.ko", "nvidia-uvm.ko"):
            (folder / name).write_text(f"{name} 580")
    modules.bad[(K2, "595.71.05")] = 1
    real = manager.install

    def replacing(transaction, folder):
        real(transaction, folder)
        (tmp_path / f"lib/modules/{K2}/nvidia.ko").unlink()

    monkeypatch.setattr(manager, "install", replacing)
    lacking = kernel_modules.lacking
    monkeypatch.setattr(
        kernel_modules,
        "lacking",
        lambda host, releases, version, flavor, secure=False: {
            **lacking(host, releases, version, flavor),
            **{r: "gone" for r in releases if not (tmp_path / f"lib/modules/{r}/nvidia.ko").exists()},
        },
    )
    with pytest.raises(DriverError, match="every kernel that had a module has it again"):
        one.installed()
    assert (tmp_path / f"lib/modules/{K2}/nvidia.ko").read_text() == "nvidia.ko 580"
    assert not (tmp_path / "var/lib/gpufleet/modules").exists()


def test_a_generation_that_cannot_be_installed_leaves_the_driver_that_serves(manager, flow, modules):
    run(upgrade(manager, flow), "installed")
    modules.bad[(K1, "580.105.08")] = 1
    one = flow({})
    with pytest.raises(DriverError, match=r"no open NVIDIA module 580.105.08"):
        one.generation(1)
    assert one.result.restored is True
    assert manager.packages == dict.fromkeys(NAMES, "595.71.05-1")
    assert manager.holds == set(NAMES)


# -- what a kill leaves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["choose", "simulate", "thaw", "choose for good", "install", "freeze"])
def test_a_kill_at_any_point_leaves_what_the_next_run_finishes(manager, flow, tmp_path, call):
    one = upgrade(manager, flow)
    manager.fail[call] = Killed()
    with pytest.raises(Killed):
        one.installed()
    manager.fail.clear()
    result = run(flow(plan("595.*")), "installed")
    assert manager.packages == dict.fromkeys(NAMES, "595.71.05-1")
    assert manager.holds == set(NAMES)
    assert result.generation == 2
    noted = journal(tmp_path)
    assert noted["before"] == {"generation": None, "packages": []}
    assert noted["holds"] == list(NAMES)
    assert noted["present"]["version"] == "595.71.05"


def test_after_a_kill_the_way_back_leads_before_the_interrupted_change(manager, flow, modules):
    one = upgrade(manager, flow)
    manager.fail["install"] = Killed()
    with pytest.raises(Killed):
        one.installed()
    assert set(manager.packages.values()) == {"580.105.08-1", "595.71.05-1"}  # half of each
    modules.bad[(K2, "595.71.05")] = 1
    again = flow(plan("595.*"))
    with pytest.raises(DriverError, match="installed again"):
        again.installed()
    assert "repair" in manager.calls
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")
    assert again.result.restored is True


def test_a_way_back_that_was_killed_before_it_was_frozen_is_finished(manager, flow, tmp_path):
    run(upgrade(manager, flow), "installed")
    manager.fail["freeze"] = Killed()
    with pytest.raises(Killed):
        flow({}).generation(1)
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")
    assert manager.holds == set()
    flow({}).generation(1)
    assert manager.holds == set(NAMES)
    assert journal(tmp_path)["present"]["version"] == "580.105.08"


def test_a_removal_that_was_killed_after_its_generations_were_gone_keeps_what_was_there_before_us(
    manager, flow, tmp_path, monkeypatch
):
    serve(manager, "550.163.01")
    aim(manager, "580.105.08")
    run(flow(), "staged")
    run(flow(), "installed")
    remove = {"actions": [{"id": "driver.remove", "data": {"packages": list(NAMES), "paths": []}}]}
    one = flow(remove)

    def killed() -> None:
        raise Killed

    monkeypatch.setattr(one, "_drop_journal", killed)
    with pytest.raises(Killed):
        one.absent()
    run(flow(remove), "absent")
    assert manager.packages == dict.fromkeys(NAMES, "550.163.01-1")
    assert not (tmp_path / "var/lib/gpufleet/driver.json").exists()


def test_a_pin_that_cannot_be_written_back_does_not_keep_the_packages_from_coming_back(manager, flow):
    one = upgrade(manager, flow)
    manager.fail["install"] = DriverError("dpkg failed")
    manager.fail["write configuration"] = OSError(28, "No space left on device")
    with pytest.raises(DriverError, match=r"could not be put back completely \(.*No space left on device"):
        one.installed()
    assert one.result.restored is False
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")


def test_holds_that_cannot_be_put_back_do_not_hide_what_failed_first(manager, flow):
    one = upgrade(manager, flow)
    manager.fail["install"] = DriverError("dpkg failed")
    manager.fail["freeze"] = DriverError("apt-mark failed")
    with pytest.raises(DriverError, match=r"dpkg failed.*could not be put back completely \(apt-mark failed"):
        one.installed()
    assert one.result.restored is False
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")


def test_an_interrupted_change_whose_way_back_is_damaged_goes_on_only_where_that_is_permitted(manager, flow, tmp_path):
    one = upgrade(manager, flow)
    manager.fail["install"] = Killed()
    with pytest.raises(Killed):
        one.installed()
    manager.fail.clear()
    shutil.rmtree(tmp_path / "var/lib/gpufleet/generations/1/packages")
    with pytest.raises(DriverError, match="generation 1, the way back to what served before it, is damaged"):
        flow(plan("595.*")).installed()
    manager.fail["install"] = DriverError("dpkg failed")
    again = flow(plan("595.*"), way_back_required=False)
    with pytest.raises(DriverError, match="could not be put back completely"):
        again.installed()
    assert again.result.restored is False


def test_a_removal_that_cannot_put_back_what_was_there_before_us_is_refused(manager, flow, tmp_path):
    serve(manager, "550.163.01")
    aim(manager, "580.105.08")
    run(flow(), "staged")
    run(flow(), "installed")
    remove = {"actions": [{"id": "driver.remove", "data": {"packages": list(NAMES), "paths": []}}]}
    shutil.rmtree(tmp_path / "var/lib/gpufleet/generations/1")
    with pytest.raises(DriverError, match=r"damaged or gone.*Nothing was removed"):
        flow(remove).absent()
    assert manager.packages == dict.fromkeys(NAMES, "580.105.08-1")
    result = run(flow(remove, way_back_required=False), "absent")
    assert "damaged or gone" in result.warnings[0]


# -- plan and check mode ------------------------------------------------------------------------------------------------


def test_check_mode_names_the_actions_of_each_state():
    wanted = plan(**{"driver.load": {"modules": ["nvidia"]}})
    assert [row["id"] for row in change.predicted(wanted, "staged")] == ["driver.repository", "driver.stage"]
    installed = [row["id"] for row in change.predicted(wanted, "installed")]
    assert installed == ["driver.packages", "driver.modules", "driver.nouveau", "driver.freeze"]
    assert change.predicted(wanted, "absent") == []
    assert all(row["changed"] for row in change.predicted(wanted, "staged"))


def test_a_plan_that_only_stages_says_what_kernels_and_modules_are_for():
    packages = {"packages": ["a"], "remove": ["b"], "version": "580.*", "kernels": [K1], "build": "prebuilt"}
    request = change.request_of(
        {
            "branch": 580,
            "flavor": "open",
            "source": "distro",
            "package_set": "desktop",
            "repository": {"adopt": "/etc/apt/x.list"},
        }
        | {"actions": [{"id": "driver.stage", "data": packages}]},
        key="K",
        proxy={"http": "http://p"},
    )
    assert (request.kernels, request.module_build) == ((K1,), "prebuilt")
    assert request.transaction.install == ("a",)
    assert request.transaction.remove == ("b",)
    assert request.transaction.recommends
    assert request.repository == {"path": "/etc/apt/x.list", "signed_by": None}
    assert request.proxy == {"http": "http://p"}
    assert dataclasses.asdict(request)["key"] == "K"
