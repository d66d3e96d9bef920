"""dnf and rpm behind the flow's interface. What they print was recorded from dnf 4.23 and rpm 4.20 with a small repository.

A real solver cannot run here; what is decided inside dnf's own session is tested on simulated hosts (tests/drivers).
"""

from __future__ import annotations

import inspect
import json
import sqlite3
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import dnf, dnf_session
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import Done
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.dnf import Dnf
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import (
    Change,
    DriverError,
    Package,
    Request,
    Transaction,
)
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.packages import is_driver_package

RECORDED = Path(__file__).parent / "recorded/dnf"
URL = "https://developer.download.nvidia.com/compute/cuda/repos/rhel9/x86_64"
CONTENT = f"[gpufleet-nvidia]\nname=NVIDIA driver\nbaseurl={URL}\nenabled=1\ngpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia\n"
KEY_PATH = "/etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-nvidia"
COMPUTE = Transaction(("nvidia-driver-cuda", "kmod-nvidia-open-dkms"))
REQUEST = Request(
    branch=580,
    flavor="open",
    source="nvidia",
    package_set="compute",
    transaction=COMPUTE,
    version="580.*",
    repository={"url": URL, "path": dnf.REPOSITORY_PATH, "content": CONTENT, "key_path": KEY_PATH},
    key="a key",
    pin={"kind": "module_stream", "packages": "nvidia-driver:580-open"},
)
OLD, NEW = "3:580.178.04-1.el9", "3:595.71.05-1.el9"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def answer(**values) -> Done:
    return Done(1 if "error" in values else 0, dnf_session.ANSWER + json.dumps(values) + "\n")


class Commands:
    """Runs nothing: answers by the program, and dnf's sessions by their operation."""

    def __init__(self, rpms: list[Package] | None = None, **sessions: Done) -> None:
        self.rpms = rpms if rpms is not None else []
        self.sessions = sessions
        self.keys: list[str] = []
        self.failing: dict[str, str] = {}
        self.files: dict[str, Package] = {}
        self.calls: list[list[str]] = []
        self.requests: list[dict] = []
        self.environments: list[dict] = []

    def __call__(self, argv, time_limit, environment=None, text=""):
        argv = list(argv)
        if "-c" in argv:
            self.requests.append(json.loads(text))
            self.environments.append(dict(environment or {}))
            self.calls.append([argv[0], "session"])
            return self.sessions[self.requests[-1]["operation"]]
        self.calls.append(argv)
        command = " ".join(argv[:2])
        if command in self.failing:
            return Done(1, self.failing[command])
        if command == "rpm -qa":
            return Done(0, "".join(map(row, self.rpms)))
        if command == "rpm -q":
            return Done(0 if self.keys else 1, "\n".join(self.keys) or "package gpg-pubkey is not installed")
        if command == "rpm --import":
            self.keys.append("gpg-pubkey-5df40d24-6b037abb")
        if command == "rpm -qp":
            return Done(0, row(self.files[Path(argv[-1]).name]))
        if command == "rpm -U":
            for path in argv:
                if path.endswith(".rpm"):
                    package = self.files[Path(path).name]
                    self.rpms = [there for there in self.rpms if there.name != package.name] + [package]
        if command == "rpm -e":
            self.rpms = [there for there in self.rpms if spec(there) not in argv]
        if argv[0] == "rpmrebuild":
            return Done(127, "rpmrebuild is not installed")
        return Done(0, "")

    def did(self, *words: str) -> list[list[str]]:
        return [call for call in self.calls if call[: len(words)] == list(words)]


def row(package: Package) -> str:
    epoch, _colon, version = package.version.rpartition(":")
    return f"{package.name}\t{epoch or 0}\t{version}\t{package.architecture}\n"


def spec(package: Package) -> str:
    return f"{package.name}-{package.version.rpartition(':')[2]}.{package.architecture}"


def driver(version: str) -> list[Package]:
    return [
        Package("kmod-nvidia-open-dkms", version, "noarch"),
        Package("libnvidia-ml", version, "x86_64"),
        Package("nvidia-driver-cuda", version, "x86_64"),
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, content in {
        "/usr/bin/dnf": "#!/usr/bin/python3\nimport dnf\n",
        "/etc/dnf/plugins/versionlock.conf": "[main]\nenabled = 1\nlocklist = /etc/dnf/plugins/versionlock.list\n",
        "/etc/dnf/plugins/versionlock.list": "",
    }.items():
        put(tmp_path, path, content)
    return tmp_path


def put(root: Path, path: str, content: str) -> Path:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    return place


def keep_files(root: Path, folder: str, packages: list[Package], commands: Commands) -> None:
    for package in packages:
        commands.files[put(root, f"{folder}/{spec(package)}.rpm", spec(package)).name] = package


def history(
    root: Path, state: int, incoming: list[Package], outgoing: list[Package], action_in=6, action_out=7
) -> None:
    """dnf's history in its own schema, with one transaction."""
    path = put(root, "/var/lib/dnf/history.sqlite", "")
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE trans (id INTEGER PRIMARY KEY AUTOINCREMENT, dt_begin INTEGER NOT NULL, state INTEGER NOT NULL);"
        "CREATE TABLE trans_item (id INTEGER PRIMARY KEY AUTOINCREMENT, trans_id INTEGER, item_id INTEGER, action INTEGER NOT NULL);"
        "CREATE TABLE rpm (item_id INTEGER UNIQUE NOT NULL, name TEXT NOT NULL, epoch INTEGER NOT NULL, version TEXT NOT NULL,"
        " release TEXT NOT NULL, arch TEXT NOT NULL);"
    )
    connection.execute("INSERT INTO trans VALUES (7, 0, ?)", (state,))
    pairs = [(action_in, package) for package in incoming] + [(action_out, package) for package in outgoing]
    for number, (action, package) in enumerate(pairs):
        epoch, _colon, rest = package.version.rpartition(":")
        version, _dash, release = rest.partition("-")
        connection.execute("INSERT INTO trans_item VALUES (NULL, 7, ?, ?)", (number, action))
        connection.execute(
            "INSERT INTO rpm VALUES (?, ?, ?, ?, ?, ?)",
            (number, package.name, int(epoch or 0), version, release, package.architecture),
        )
    connection.commit()
    connection.close()


# What is installed


def test_installed_are_the_drivers_packages_with_their_epoch(root):
    commands = Commands(rpms=dnf.parse_packages(recorded("rpm-qa")))
    assert Dnf(commands, str(root)).installed() == [
        Package("kmod-nvidia-open-dkms", OLD, "noarch"),
        Package("libnvidia-cfg", OLD, "x86_64"),
        Package("libnvidia-ml", OLD, "x86_64"),
        Package("nvidia-driver-cuda", OLD, "x86_64"),
        Package("nvidia-driver-cuda-libs", OLD, "x86_64"),
        Package("nvidia-kmod-common", OLD, "noarch"),
        Package("nvidia-modprobe", OLD, "x86_64"),
        Package("nvidia-persistenced", OLD, "x86_64"),
    ]


def test_keys_in_the_rpm_database_are_no_packages():
    assert "gpg-pubkey" in recorded("rpm-qa")
    assert "gpg-pubkey" not in {package.name for package in dnf.parse_packages(recorded("rpm-qa"))}


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("nvidia-driver", "580.178.04-1.el9"),
        ("nvidia-open", "595.71.05-1.el10"),
        ("cuda-drivers", "580.178.04-1.el9"),
        ("kmod-nvidia-latest-dkms", "580.178.04-1.el9"),
        ("kmod-nvidia-580.178.04-5.14.0-611.el9", "580.178.04-3.el9"),
        ("xorg-x11-nvidia", "580.178.04-1.el9"),
        ("nvidia-fabricmanager", "580.178.04-1"),
        ("nvidia-libXNVCtrl", "580.178.04-1.el9"),
    ],
)
def test_parts_of_the_driver_are_recognised_as_the_probe_does(name, version):
    assert dnf_session.is_driver(name, version)
    assert is_driver_package(name)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("dnf-plugin-nvidia", "2.1-2.el9"),
        ("nvidia-container-toolkit", "1.18.0-1"),
        ("libnvidia-container1", "1.18.0-1"),
        ("nvidia-gds", "13.0.1-1"),
        ("cuda-toolkit-13-0", "13.0.1-1"),
        ("egl-gbm", "1.1.2.1-1.el9"),
        ("kernel-core", "5.14.0-611.el9"),
        ("dkms", "3.2.2-1.el9"),
    ],
)
def test_what_has_versions_of_its_own_is_left_alone(name, version):
    assert not dnf_session.is_driver(name, version)


# The source


def test_the_repository_and_its_key_are_written_once(root):
    commands = Commands()
    manager = Dnf(commands, str(root))
    assert manager.describe_repository(REQUEST)
    assert (root / dnf.REPOSITORY_PATH.lstrip("/")).read_text() == CONTENT
    assert (root / KEY_PATH.lstrip("/")).stat().st_mode & 0o777 == 0o644
    assert commands.did("rpm", "--import") == [["rpm", "--import", f"{root}{KEY_PATH}"]]
    again = Known()
    again.keys = commands.keys
    assert not Dnf(again, str(root)).describe_repository(REQUEST)


class Known(Commands):
    """rpm knows the key already: importing it once more adds nothing."""

    def __call__(self, argv, time_limit, environment=None, text=""):
        if list(argv[:2]) == ["rpm", "--import"]:
            return Done(0, "")
        return super().__call__(argv, time_limit, environment, text)


def test_a_key_that_rpm_refuses_leaves_no_repository(root):
    commands = Commands()
    commands.failing["rpm --import"] = f"error: {KEY_PATH}: key 1 import failed."
    with pytest.raises(DriverError, match=r"rpm does not accept the key.*nvidia_driver_repository_key"):
        Dnf(commands, str(root)).describe_repository(REQUEST)
    assert not (root / dnf.REPOSITORY_PATH.lstrip("/")).exists()
    assert not (root / KEY_PATH.lstrip("/")).exists()


def test_an_adopted_repository_is_not_rewritten_and_its_own_name_is_asked_for(root):
    path = "/etc/yum.repos.d/cuda-rhel9.repo"
    put(root, path, "[cuda-rhel9-x86_64]\nbaseurl=" + URL + "\n")
    request = replace(REQUEST, repository={"path": path}, key="")
    commands = Commands(refresh=answer(streams=[]))
    manager = Dnf(commands, str(root))
    assert not manager.describe_repository(request)
    manager.refresh(request)
    assert commands.requests[0]["repositories"] == ["cuda-rhel9-x86_64"]
    assert not (root / dnf.REPOSITORY_PATH.lstrip("/")).exists()


def test_only_the_drivers_own_repository_is_read_anew(root):
    commands = Commands(refresh=Done(0, recorded("refresh")))
    Dnf(commands, str(root)).refresh(REQUEST)
    assert commands.requests[0]["only_ours"]
    assert commands.requests[0]["repositories"] == ["gpufleet-nvidia"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refresh-unreachable", r"cannot be reached \(Curl error \(7\).*gpufleet_proxy"),
        ("refresh-no-host", r"cannot be reached \(Curl error \(6\): Could not resolve"),
        ("refresh-not-found", r"dnf cannot use it \(Status code: 404.*nvidia_driver_repository_url"),
        ("refresh-unknown-ca", r"certificate is not trusted here.*gpufleet_proxy.ca_file.*clock"),
        ("refresh-expired", r"not valid at this host's time, \d{4}-.* UTC .*Set the host's clock"),
    ],
)
def test_an_unusable_source_is_explained_and_taken_away_again(root, name, said):
    manager = Dnf(Commands(refresh=Done(1, recorded(name))), str(root))
    manager.describe_repository(REQUEST)
    with pytest.raises(DriverError, match=said) as caught:
        manager.refresh(REQUEST)
    assert URL in str(caught.value)
    assert not (root / dnf.REPOSITORY_PATH.lstrip("/")).exists()


def test_a_repository_that_was_there_before_comes_back_when_the_new_one_is_unusable(root):
    put(root, dnf.REPOSITORY_PATH, "[gpufleet-nvidia]\nbaseurl=https://mirror.example/nvidia\n")
    manager = Dnf(Commands(refresh=Done(1, recorded("refresh-unreachable"))), str(root))
    manager.describe_repository(REQUEST)
    with pytest.raises(DriverError):
        manager.refresh(REQUEST)
    assert "mirror.example" in (root / dnf.REPOSITORY_PATH.lstrip("/")).read_text()


def test_the_lock_plugin_and_epel_are_added_where_they_are_missing(root):
    (root / "etc/dnf/plugins/versionlock.conf").unlink()
    files = [{"name": dnf.LOCK_PLUGIN, "version": "4.3.0-24", "arch": "noarch", "path": str(put(root, "/x.rpm", "x"))}]
    commands = Commands(refresh=answer(streams=[]), download=answer(changes=[], files=files), apply=answer(changes=[]))
    Dnf(commands, str(root)).refresh(replace(REQUEST, headers=("epel-release", "kernel-devel")))
    assert [request["install"] for request in commands.requests if request["operation"] == "download"] == [
        ["epel-release"],
        ["python3-dnf-plugin-versionlock"],
    ]


def test_what_is_added_is_known_to_be_ours_also_when_the_run_is_killed_while_it_is_installed(root):
    class Killed(Commands):
        def __call__(self, argv, time_limit, environment=None, text=""):
            done = super().__call__(argv, time_limit, environment, text)
            if self.requests and self.requests[-1]["operation"] == "apply":
                raise KeyboardInterrupt
            return done

    files = [{"name": "epel-release", "version": "10-7", "arch": "noarch", "path": str(put(root, "/x.rpm", "x"))}]
    commands = Killed(refresh=answer(streams=[]), download=answer(changes=[], files=files), apply=answer(changes=[]))
    with pytest.raises(KeyboardInterrupt):
        Dnf(commands, str(root)).refresh(replace(REQUEST, headers=("epel-release",)))
    later = Commands()
    Dnf(later, str(root)).forget()
    assert later.did("rpm", "-e") == [["rpm", "-e", "epel-release"]]


def test_what_a_killed_transaction_has_brought_all_the_same_is_ours(root):
    epel = Package("epel-release", "10-7", "noarch")

    class Interrupted(Commands):
        def __call__(self, argv, time_limit, environment=None, text=""):
            done = super().__call__(argv, time_limit, environment, text)
            if self.requests and self.requests[-1]["operation"] == "apply" and epel not in self.rpms:
                self.rpms.append(epel)
            return done

    files = [{"name": "epel-release", "version": "10-7", "arch": "noarch", "path": str(put(root, "/x.rpm", "x"))}]
    commands = Interrupted(
        refresh=answer(streams=[]), download=answer(changes=[], files=files), apply=Done(-9, "Killed")
    )
    with pytest.raises(DriverError):
        Dnf(commands, str(root)).refresh(replace(REQUEST, headers=("epel-release",)))
    later = Commands([epel])
    Dnf(later, str(root)).forget()
    assert later.did("rpm", "-e") == [["rpm", "-e", "epel-release"]]


def test_what_could_not_be_added_is_not_ours_when_the_user_adds_it_later(root):
    commands = Commands(refresh=answer(streams=[]), download=answer(error="missing", text="epel-release"))
    with pytest.raises(DriverError):
        Dnf(commands, str(root)).refresh(replace(REQUEST, headers=("epel-release",)))
    later = Commands()
    Dnf(later, str(root)).forget()
    assert not later.did("rpm", "-e")


def test_passwords_of_a_proxy_are_on_no_command_line(root):
    commands = Commands(refresh=answer(streams=[]))
    proxy = {"https": "http://user:geheim@proxy:3128", "no_proxy": "localhost", "ca_file": "/etc/pki/ca.pem"}
    Dnf(commands, str(root)).refresh(replace(REQUEST, proxy=proxy))
    assert commands.environments[0] == {"https_proxy": "http://user:geheim@proxy:3128", "no_proxy": "localhost"}
    assert commands.requests[0]["ca_file"] == "/etc/pki/ca.pem"
    assert "geheim" not in json.dumps([commands.calls, commands.requests])


# The branch


def test_before_the_window_only_the_solver_hears_of_the_branch(root):
    commands = Commands(refresh=Done(0, recorded("refresh")), solve=Done(0, recorded("solve-fresh")))
    manager = Dnf(commands, str(root))
    manager.refresh(REQUEST)
    assert not manager.choose(REQUEST, lasting=False)
    assert not (root / dnf.STREAM_PATH.lstrip("/")).exists()
    manager.simulate(COMPUTE)
    assert commands.requests[-1]["version"] == "580.*"


def test_the_stream_is_switched_whichever_was_enabled_and_given_back(root):
    former = "[nvidia-driver]\nname=nvidia-driver\nstream=550-open\nprofiles=\nstate=enabled\n"
    stream = put(root, dnf.STREAM_PATH, former)
    manager = Dnf(Commands(refresh=Done(0, recorded("refresh"))), str(root))
    manager.refresh(REQUEST)
    assert manager.read_configuration() == {dnf.STREAM_PATH: former}
    assert manager.choose(REQUEST, lasting=True)
    assert "stream=580-open\n" in stream.read_text()
    assert not manager.choose(REQUEST, lasting=True)
    assert dnf.STREAM_PATH in manager.forget()
    assert stream.read_text() == former


def test_a_driver_that_is_only_frozen_gets_its_stream_though_nothing_was_read_anew(root):
    stream = put(root, dnf.STREAM_PATH, dnf._STREAM.format(stream="open-dkms"))
    commands = Commands(refresh=answer(error="repository", text="Curl error (7)"))
    assert not Dnf(commands, str(root)).choose(REQUEST, lasting=True)
    assert "stream=open-dkms\n" in stream.read_text()
    commands.sessions["refresh"] = Done(0, recorded("refresh"))
    assert Dnf(commands, str(root)).choose(REQUEST, lasting=True), "a failure is not taken for an answer"
    assert "stream=580-open\n" in stream.read_text()
    assert not Dnf(commands, str(root)).choose(REQUEST, lasting=True)
    assert len(commands.requests) == 2


def test_a_repository_without_streams_gets_none(root):
    manager = Dnf(Commands(refresh=answer(streams=[])), str(root))
    request = replace(REQUEST, pin={"kind": "versionlock", "packages": "*nvidia*580*"})
    manager.refresh(request)
    assert not manager.choose(request, lasting=True)
    assert not (root / dnf.STREAM_PATH.lstrip("/")).exists()


def test_enterprise_linux_10_with_module_metadata_gets_its_stream(root):
    manager = Dnf(Commands(refresh=Done(0, recorded("refresh"))), str(root))
    request = replace(REQUEST, flavor="proprietary", pin={"kind": "versionlock", "packages": "*nvidia*580*"})
    manager.refresh(request)
    assert manager.choose(request, lasting=True)
    assert "stream=580-dkms\n" in (root / dnf.STREAM_PATH.lstrip("/")).read_text()


def test_the_configuration_of_a_generation_comes_back(root):
    manager = Dnf(Commands(refresh=Done(0, recorded("refresh"))), str(root))
    manager.refresh(REQUEST)
    before = manager.read_configuration()
    manager.choose(REQUEST, lasting=True)
    manager.write_configuration(before)
    assert manager.read_configuration() == before == {}


def test_a_stream_that_the_user_enabled_is_not_taken_away(root):
    stream = put(root, dnf.STREAM_PATH, dnf._STREAM.format(stream="open-dkms"))
    Dnf(Commands(), str(root)).write_configuration({})
    assert stream.exists()


# Transactions


def test_the_solvers_answer_names_who_publishes_what(root):
    manager = Dnf(Commands(solve=Done(0, recorded("solve-flavor"))), str(root))
    manager.choose(REQUEST, lasting=False)
    changes = manager.simulate(Transaction(("cuda-drivers",)))
    assert Change("kmod-nvidia-open-dkms", OLD, None, "unknown") in changes
    assert Change("kmod-nvidia-latest-dkms", None, OLD, "nvidia") in changes
    assert Change("libglvnd", None, "1:1.7.0-1.el9", "distro") in changes


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"error": "missing", "text": "dkms"}, r"No enabled repository has dkms \(driver 580\.\*\).*excludepkgs.*EPEL"),
        ({"error": "solver", "text": "\n Problem: a\n  - b"}, r"no way to install nvidia-driver-cuda.*: Problem: a; b"),
        (
            {"error": "signature", "text": "Public key for x is not installed"},
            "not signed with a key.*nvidia_driver_repository_key",
        ),
        ({"error": "other", "text": "OSError: full"}, "could not prepare.*OSError: full. Nothing was installed"),
    ],
)
def test_what_dnf_cannot_do_is_said_with_a_way_out(root, tmp_path, values, said):
    manager = Dnf(Commands(download=answer(**values)), str(root))
    manager.choose(REQUEST, lasting=False)
    with pytest.raises(DriverError, match=said):
        manager.download(COMPUTE, tmp_path / "staged")


def test_metadata_that_mirrors_left_behind_is_read_anew_before_giving_up(root, tmp_path):
    class Stale(Commands):
        def __call__(self, argv, time_limit, environment=None, text=""):
            if '"refresh": true' in text:
                self.sessions["download"] = answer(changes=[], files=[])
            return super().__call__(argv, time_limit, environment, text)

    commands = Stale(download=answer(error="download", text="dkms: all mirrors were already tried"))
    assert Dnf(commands, str(root)).download(COMPUTE, tmp_path / "staged") == []
    assert [request.get("refresh") for request in commands.requests] == [None, True]


def test_exactly_what_was_downloaded_is_installed(root, tmp_path):
    folder = tmp_path / "staged"
    stale = put(folder, "/stale.rpm", "from an earlier run")
    new = put(folder, "/new.rpm", "new")
    files = [{"name": "nvidia-driver-cuda", "version": OLD, "arch": "x86_64", "path": str(new)}]
    changes = [
        {"name": "nvidia-driver-cuda", "before": None, "after": OLD},
        {"name": "kmod-nvidia-latest-dkms", "before": OLD, "after": None},
    ]
    package = Package("nvidia-driver-cuda", OLD, "x86_64")
    commands = Commands([package], download=answer(changes=changes, files=files), apply=answer(changes=changes))
    manager = Dnf(commands, str(root))
    fetched = manager.download(COMPUTE, folder)
    assert [(file.package, file.path) for file in fetched] == [(package, new)]
    manager.install(COMPUTE, folder)
    assert commands.requests[-1]["files"] == [str(new)]
    assert commands.requests[-1]["removals"] == ["kmod-nvidia-latest-dkms"]
    assert stale.exists()


def test_a_host_that_changed_since_the_download_is_not_touched(root, tmp_path):
    put(tmp_path, f"/{dnf.PLAN_NAME}", json.dumps({"files": [], "removals": []}))
    manager = Dnf(Commands(apply=answer(error="surprise", text="gnome-shell")), str(root))
    with pytest.raises(DriverError, match=r"gnome-shell would be removed now, too. Nothing was changed"):
        manager.install(COMPUTE, tmp_path)


def test_a_package_that_rpm_skipped_is_a_failure_though_dnf_calls_it_done(root, tmp_path):
    put(tmp_path, f"/{dnf.PLAN_NAME}", json.dumps({"files": [], "removals": []}))
    manager = Dnf(Commands(driver(OLD), apply=Done(0, recorded("apply-failed-pre"))), str(root))
    with pytest.raises(
        DriverError, match=r"rpm did not install .*nvidia-driver-cuda.*%prein\(nvidia-driver-cuda"
    ) as caught:
        manager.install(COMPUTE, tmp_path)
    assert "install failed" in caught.value.facts["output"]


def test_a_failed_build_in_a_script_is_in_what_install_returns(root, tmp_path):
    put(tmp_path, f"/{dnf.PLAN_NAME}", json.dumps({"files": [], "removals": []}))
    text = recorded("apply-failed-scriptlet")
    entries = json.loads(text.rpartition(dnf_session.ANSWER)[2])["changes"]
    there = [Package(entry["name"], entry["after"], "x86_64") for entry in entries]
    output = Dnf(Commands(there, apply=Done(0, text)), str(root)).install(COMPUTE, tmp_path)
    assert "nv-pci.c:12: error: too few arguments" in output
    assert dnf_session.ANSWER not in output


def test_files_of_exact_versions_are_taken_from_the_host_first(root, tmp_path):
    commands = Commands(fetch=answer(error="repository", text="offline"))
    kept, asked = driver(OLD)[0], driver(OLD)[1]
    keep_files(root, "/var/lib/gpufleet/generations/1/packages", [kept], commands)
    found = Dnf(commands, str(root)).fetch([kept, asked], tmp_path / "way")
    assert [file.package for file in found] == [kept]
    assert found[0].path == tmp_path / "way" / f"{spec(kept)}.rpm"
    assert [request["packages"] for request in commands.requests] == [[["libnvidia-ml", OLD, "x86_64"]]]
    assert commands.did("rpmrebuild")


def test_a_file_that_was_cut_off_is_not_a_way_back(root, tmp_path):
    commands = Commands(fetch=answer(files=[]))
    commands.failing["rpm -K"] = "DIGESTS NOT OK"
    keep_files(root, "/var/cache/dnf/x/packages", driver(OLD), commands)
    assert Dnf(commands, str(root)).fetch(driver(OLD), tmp_path / "way") == []


# Locks


def test_frozen_packages_are_locked_at_their_exact_version(root):
    manager = Dnf(Commands(driver(OLD)), str(root))
    assert manager.freeze(driver(OLD), [package.name for package in driver(OLD)])
    assert (root / "etc/dnf/plugins/versionlock.list").read_text().splitlines() == [
        "kmod-nvidia-open-dkms-3:580.178.04-1.el9.*",
        "libnvidia-ml-3:580.178.04-1.el9.*",
        "nvidia-driver-cuda-3:580.178.04-1.el9.*",
    ]
    assert not manager.freeze(driver(OLD), [package.name for package in driver(OLD)])


def test_freezing_again_follows_the_new_version(root):
    manager = Dnf(Commands(), str(root))
    names = [package.name for package in driver(OLD)]
    manager.freeze(driver(OLD), names)
    assert manager.freeze(driver(NEW), names)
    text = (root / "etc/dnf/plugins/versionlock.list").read_text()
    assert "595.71.05" in text
    assert "580.178.04" not in text


def test_locks_of_the_user_survive_freezing_and_thawing(root):
    users = "\n# Added lock on Mon\nkernel-core-0:5.14.0-611.el9.*\n!nvidia-settings-3:595.71.05-1.el9.*\n"
    users += "libnvidia-ml-3:580.178.04-1.el9.*\n"
    path = put(root, "/etc/dnf/plugins/versionlock.list", users)
    manager = Dnf(Commands(driver(OLD)), str(root))
    holds = ["kmod-nvidia-open-dkms", "nvidia-driver-cuda"]
    manager.freeze(driver(OLD), holds)
    assert (
        path.read_text()
        == users + "kmod-nvidia-open-dkms-3:580.178.04-1.el9.*\nnvidia-driver-cuda-3:580.178.04-1.el9.*\n"
    )
    manager.thaw(holds)
    assert path.read_text() == users


def test_held_names_every_locked_package(root):
    put(
        root,
        "/etc/dnf/plugins/versionlock.list",
        "kernel-core-0:5.14.0-611.el9.*\n!nvidia-driver-c*-3:595.71.05-1.el9.*\n",
    )
    assert Dnf(Commands(driver(OLD)), str(root)).held() == ["kernel-core", "nvidia-driver-cuda"]


def test_locks_that_dnf_does_not_read_are_no_locks(root):
    put(root, "/etc/dnf/plugins/versionlock.conf", "[main]\nenabled = 0\n")
    with pytest.raises(DriverError, match=r"enabled=0. Set enabled=1"):
        Dnf(Commands(), str(root)).freeze(driver(OLD), ["libnvidia-ml"])


def test_without_the_lock_plugin_nobody_says_frozen(root):
    (root / "etc/dnf/plugins/versionlock.conf").unlink()
    commands = Commands(download=answer(error="missing", text=dnf.LOCK_PLUGIN))
    with pytest.raises(DriverError, match=r"cannot be kept at its version.*next upgrade of the system may replace it"):
        Dnf(commands, str(root)).freeze(driver(OLD), ["libnvidia-ml"])


# Removal


def test_forget_leaves_nothing_of_ours(root):
    commands = Commands(refresh=answer(streams=[]))
    manager = Dnf(commands, str(root))
    manager.describe_repository(REQUEST)
    manager.refresh(REQUEST)
    assert manager.forget() == [dnf.REPOSITORY_PATH, KEY_PATH, dnf.STATE_PATH]
    assert ["rpm", "-e", "gpg-pubkey-5df40d24-6b037abb"] in commands.calls
    assert not list((root / "etc/yum.repos.d").iterdir())
    assert Dnf(commands, str(root)).forget() == []


def test_what_could_not_be_removed_is_still_known_to_be_ours(root):
    commands = Commands(refresh=answer(streams=[]))
    manager = Dnf(commands, str(root))
    manager.describe_repository(REQUEST)
    manager.refresh(REQUEST)
    commands.failing["rpm -e"] = "error: can't create transaction lock on /var/lib/rpm/.rpm.lock (Permission denied)"
    with pytest.raises(DriverError, match=r"gpg-pubkey-5df40d24-6b037abb, which came for the driver.*transaction lock"):
        manager.forget()
    assert json.loads((root / dnf.STATE_PATH.lstrip("/")).read_text())["keys"] == ["gpg-pubkey-5df40d24-6b037abb"]
    del commands.failing["rpm -e"]
    assert dnf.STATE_PATH in Dnf(commands, str(root)).forget()


@pytest.mark.parametrize(
    "said", ["epel-release is needed by (installed) remi-release-9.5-1.noarch", "package epel-release is not installed"]
)
def test_what_others_need_by_now_or_took_away_does_not_stop_a_removal(root, said):
    put(root, dnf.STATE_PATH, json.dumps({"added": ["epel-release"]}))
    commands = Commands()
    commands.failing["rpm -e"] = f"error: Failed dependencies:\n\t{said}\n"
    assert Dnf(commands, str(root)).forget() == [dnf.STATE_PATH]


def test_a_key_that_was_there_before_us_stays(root):
    commands = Known(refresh=answer(streams=[]))
    commands.keys = ["gpg-pubkey-5df40d24-6b037abb"]
    manager = Dnf(commands, str(root))
    manager.describe_repository(REQUEST)
    manager.forget()
    assert not commands.did("rpm", "-e")


# Interruption


def test_a_consistent_host_has_nothing_interrupted(root):
    history(root, 1, driver(OLD), [])
    manager = Dnf(Commands(driver(OLD)), str(root))
    assert manager.interrupted() == []
    assert manager.repair() == []


def test_an_interrupted_transaction_of_somebody_else_is_not_ours(root):
    history(root, 0, [Package("gnome-shell", "40.10-1.el9", "x86_64")], [])
    assert Dnf(Commands(), str(root)).interrupted() == []


def test_two_versions_of_a_package_and_the_open_transaction_are_named(root):
    history(root, 0, driver(NEW), driver(OLD))
    found = Dnf(Commands([*driver(OLD), driver(NEW)[1]]), str(root)).interrupted()
    assert found == [
        f"libnvidia-ml.x86_64 is installed in 2 versions: {OLD}, {NEW}",
        "dnf transaction 7 was interrupted: kmod-nvidia-open-dkms, libnvidia-ml, nvidia-driver-cuda",
    ]


def test_an_interrupted_upgrade_is_finished_from_the_staged_files(root):
    commands = Commands([*driver(OLD), driver(NEW)[1]])
    history(root, 0, driver(NEW), driver(OLD))
    keep_files(root, dnf.STAGED, driver(NEW), commands)
    manager = Dnf(commands, str(root))
    assert manager.repair()[0] == "finished transaction 7, which was interrupted: 3 packages"
    first, second = commands.did("rpm", "-U")
    assert not [word for word in first if word.startswith("--nopre")]
    assert {Path(word).name for word in second if word.endswith(".rpm")} == {f"{spec(driver(NEW)[1])}.rpm"}
    assert {"--nopreun", "--nopostun"} <= set(second)
    assert manager.installed() == driver(NEW)
    assert manager.interrupted() == []
    assert manager.repair() == []


def test_an_interrupted_downgrade_ends_at_the_older_version(root):
    commands = Commands([*driver(OLD), *driver(NEW)])
    history(root, 0, driver(OLD), driver(NEW), action_in=2, action_out=3)
    manager = Dnf(commands, str(root))
    assert manager.repair() == [
        f"removed what it had left: kmod-nvidia-open-dkms {NEW}, libnvidia-ml {NEW}, nvidia-driver-cuda {NEW}"
    ]
    assert manager.installed() == driver(OLD)


def test_what_was_to_be_removed_stays_until_what_replaces_it_is_there(root):
    old, new = Package("kmod-nvidia-latest-dkms", OLD, "noarch"), Package("kmod-nvidia-open-dkms", OLD, "noarch")
    commands = Commands([old])
    history(root, 0, [new], [old], action_in=1, action_out=8)
    Dnf(commands, str(root)).repair()
    assert commands.rpms == [old]


def test_duplicates_without_a_history_end_at_the_newer_version(root):
    commands = Commands([*driver(OLD), *driver(NEW)])
    assert f"nvidia-driver-cuda {OLD}" in Dnf(commands, str(root)).repair()[0]
    assert sorted({package.version for package in commands.rpms}) == [NEW]


def test_a_damaged_database_is_rebuilt(root):
    commands = Commands(driver(OLD))
    commands.failing["rpmdb --verifydb"] = "rpmdb: damaged header #4 retrieved -- skipping."
    manager = Dnf(commands, str(root))
    assert manager.interrupted() == ["the rpm database is damaged: rpmdb: damaged header #4 retrieved -- skipping."]
    assert manager.repair() == ["rebuilt the rpm database"]


def test_going_back_works_from_the_middle_of_a_transaction(root):
    commands = Commands([*driver(OLD), driver(NEW)[1]])
    history(root, 0, driver(NEW), driver(OLD))
    keep_files(root, "/way", driver(OLD), commands)
    manager = Dnf(commands, str(root))
    manager.install_files(sorted((root / "way").iterdir()), ["nvidia-settings"])
    assert manager.installed() == driver(OLD)
    assert not commands.requests
    assert manager.interrupted() == []


def test_a_newer_version_is_one_with_larger_numbers_not_with_later_letters():
    versions = ["3:580.95.05-1.el9", "3:580.178.04-1.el9", "590.1-1.el9", "3:595.71.05-1.el9"]
    assert sorted(versions, key=dnf.version_key) == [
        "590.1-1.el9",
        "3:580.95.05-1.el9",
        "3:580.178.04-1.el9",
        "3:595.71.05-1.el9",
    ]


# Locks of package managers, interpreters


def test_waiting_ends_with_the_name_of_who_holds_the_lock(root):
    put(root, "/var/lib/dnf/rpmdb_lock.pid", "4711")
    put(root, "/proc/4711/comm", "dnf-automatic\n")
    with pytest.raises(DriverError, match=r"dnf-automatic \(process 4711\) has held /var/lib/dnf/rpmdb_lock.pid"):
        Dnf(Commands(), str(root)).wait(0.1)


def test_a_lock_of_a_process_that_is_gone_holds_nobody(root):
    put(root, "/var/lib/dnf/rpmdb_lock.pid", "4711")
    Dnf(Commands(), str(root)).wait(0.1)


def test_the_lock_of_the_change_itself_holds_nobody(root, monkeypatch):
    monkeypatch.setattr(dnf.health, "_flock_holder", lambda host, path: 1)
    Dnf(Commands(), str(root)).wait(0.1)


def test_the_session_runs_in_the_interpreter_that_dnf_names(root):
    put(root, "/usr/bin/dnf", "#! /usr/libexec/platform-python -s\n")
    commands = Commands(solve=answer(changes=[]))
    Dnf(commands, str(root)).simulate(COMPUTE)
    assert commands.calls == [["/usr/libexec/platform-python", "session"]]


def test_dnf_5_is_refused_before_anything_changes(root):
    put(root, "/usr/bin/dnf", "\x7fELF")
    with pytest.raises(DriverError, match=r"dnf 5 is not supported.*Nothing was changed"):
        Dnf(Commands(), str(root)).simulate(COMPUTE)


def test_a_session_that_dies_says_so(root):
    with pytest.raises(DriverError, match=r"without an answer \(solve, status -9\): Importing"):
        Dnf(Commands(solve=Done(-9, "Importing\n")), str(root)).simulate(COMPUTE)


def test_the_sessions_program_can_be_read_from_ansibles_zip(tmp_path, monkeypatch):
    source = Path(dnf_session.__file__).read_text()
    with zipfile.ZipFile(tmp_path / "payload.zip", "w") as archive:
        archive.writestr("packed_session.py", source)
    monkeypatch.syspath_prepend(str(tmp_path / "payload.zip"))
    packed = __import__("packed_session")
    try:
        assert inspect.getsource(packed) == source
    finally:
        sys.modules.pop("packed_session")
