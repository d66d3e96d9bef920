"""apt: what it is asked, in which words, and what is made of its answers."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import apt
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.apt import Apt
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.commands import Done
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import (
    Change,
    DriverError,
    Package,
    Request,
    Transaction,
)

REQUEST = Request(
    branch=580,
    flavor="open",
    source="nvidia",
    package_set="compute",
    transaction=Transaction(("nvidia-driver-cuda",)),
    version="580.*",
    repository={
        "path": "/etc/apt/sources.list.d/gpufleet-nvidia.sources",
        "content": "Types: deb\nURIs: https://mirror/\n",
        "key_path": "/etc/apt/keyrings/gpufleet-nvidia.asc",
    },
    key="-----BEGIN PGP PUBLIC KEY BLOCK-----\n",
)
# Recorded with apt 3.0 on Debian 13 (simulated repository), apart from the last four lines.
SIMULATION = """\
Reading package lists...
The following held packages will be changed:
  libcuda1
Inst dkms (3.3.0-1 NVIDIA CUDA:10.213.176.2 [all])
Inst libcuda1 [580.105.08-1] (595.71.05-1 NVIDIA CUDA:10.213.176.2 [amd64]) []
Inst libnvidia-ml1:i386 [580.105.08-1] (595.71.05-1 NVIDIA CUDA [i386])
Inst gcc (4:14.2.0-1 Debian:13.2/stable, Debian-Security:13/stable-security [amd64]) [base-files:amd64 ]
Inst local (1.0 [amd64])
Remv nvidia-kernel-dkms [580.105.08-1]
Purg nvidia-kernel-dkms [580.105.08-1]
Conf libcuda1 (595.71.05-1 NVIDIA CUDA:10.213.176.2 [amd64])
"""


class FakeRun:
    """Answers commands by their words; the first rule whose words are all there counts."""

    def __init__(self) -> None:
        self.rules: list[tuple[tuple[str, ...], object]] = []
        self.asked: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.rows: list[tuple[str, ...]] = []

    def on(self, *words, answer=("", 0)):
        self.rules.insert(0, (words, answer))

    def __call__(self, argv, time_limit, environment=None, text=""):
        self.asked.append(list(argv))
        self.environments.append(dict(environment or {}))
        for words, answer in self.rules:
            if all(word in argv for word in words):
                if callable(answer):
                    answer = answer(argv)
                return Done(answer[1], answer[0])
        if argv[0] == "dpkg-query":
            return Done(0, "".join("\t".join(row) + "\n" for row in self.rows))
        return Done(0, "")

    def calls(self, *words):
        return [argv for argv in self.asked if all(word in argv for word in words)]


@pytest.fixture
def run():
    return FakeRun()


@pytest.fixture
def manager(run, tmp_path):
    return Apt(run, root=str(tmp_path))


def row(name, version="580.105.08-1", want="install", state="installed", architecture="amd64"):
    return (name, version, architecture, want, state)


# -- text -------------------------------------------------------------------------------------------------------------


def test_a_simulation_is_read_with_origins_architectures_and_removals():
    assert apt.parse_simulation(SIMULATION) == [
        Change("dkms", None, "3.3.0-1", "nvidia"),
        Change("libcuda1", "580.105.08-1", "595.71.05-1", "nvidia"),
        Change("libnvidia-ml1:i386", "580.105.08-1", "595.71.05-1", "nvidia"),
        Change("gcc", None, "4:14.2.0-1", "distro"),
        Change("local", None, "1.0", "unknown"),
        Change("nvidia-kernel-dkms", "580.105.08-1", None),
    ]


def test_exact_pins_name_every_package_once_by_version():
    packages = [
        Package("libcuda1", "580.1-1", "amd64"),
        Package("libcuda1:i386", "580.1-1", "i386"),
        Package("nvidia-settings", "575-1"),
    ]
    assert apt.exact_preferences(packages) == (
        "# Written by gpufleet.workstation; changes are overwritten.\n"
        "Package: libcuda1\nPin: version 580.1-1\nPin-Priority: 1001\n\n"
        "Package: nvidia-settings\nPin: version 575-1\nPin-Priority: 1001\n"
    )


@pytest.mark.parametrize(("version", "pinned"), [("580.*", "580.*"), ("580.105.08", "580.105.08*"), ("", "580.*")])
def test_the_branch_pin_outranks_nvidias_pinning_packages(version, pinned):
    text = apt.branch_preferences(dataclasses.replace(REQUEST, version=version, pin={"packages": "nvidia-* libcuda1"}))
    assert "Package: nvidia-* libcuda1\n" in text
    assert f"Pin: version {pinned}\nPin-Priority: 1001\n" in text


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("W: GPG error: The following signatures couldn't be verified: NO_PUBKEY A4B469963BF863CC",
         ["key A4B469963BF863CC", "which /etc/apt/keyrings/gpufleet-nvidia.asc does not hold", "nvidia_driver_repository_key"]),
        ("W: OpenPGP signature verification failed: Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key"
         " EB693B3035CD5710E231E123A4B469963BF863CC, which is needed to verify signature.",
         ["key EB693B3035CD5710E231E123A4B469963BF863CC"]),
        ("Err: sqv returned an error code (1), error message is: Signing key on EB69 is not bound:\n  because: Policy rejected"
         " non-revocation signature (PositiveCertification)\n  because: SHA1 is not considered secure since"
         " 2026-02-01T00:00:00Z", ["bound with SHA-1", "sqv (Debian 13)", "since 2026-02-01"]),
        ("W: An error occurred: EXPKEYSIG 4B469963BF863CC cudatools", ["the key 4B469963BF863CC in", "has expired"]),
        ("E: REVKEYSIG 4B46 x", ["was revoked"]),
        ("E: Release file for http://m/InRelease is not valid yet (invalid for another 5h).", ["clock is behind"]),
        ("E: Release file for http://m/InRelease is expired (invalid since 3d).", ["clock is ahead", "mirror"]),
        ("Err:1 http://m\n  407  Proxy Authentication Required", ["the proxy asks for a password"]),
        ("Err:1 x Certificate verification failed: The certificate is NOT trusted.", ["ca_file"]),
        ("E: Failed to fetch  Temporary failure resolving 'm'", ["cannot be resolved"]),
        ("E: Failed to fetch http://m  Could not connect to m:80 (1.2.3.4), connection timed out", ["does not reach it"]),
        ("E: Failed to fetch http://m/Release  404  Not Found", ["no repository at this address (404)"]),
        ("E: Conflicting values set for option Signed-By regarding source http://m/ /", ["another file describes the same"]),
        ("E: The repository 'http://m  Release' is not signed.", ["An unsigned repository is not used"]),
        ("E: BADSIG 3BF8", ["its signature is wrong"]),
        ("E: Failed to fetch  Hash Sum mismatch", ["mirror is being updated"]),
        ("E: write (28: No space left on device)", ["the disk is full"]),
        ("E: something new", ["E: something new", "its clock, and the key that signs it"]),
    ],
)  # fmt: skip
def test_why_a_repository_cannot_be_read_is_said_with_what_to_do(output, said):
    text = apt.explain_refresh(output, REQUEST)
    for words in said:
        assert words in text


# -- how apt is asked ---------------------------------------------------------------------------------------------------


def test_the_same_words_simulate_download_and_install_and_nobody_is_asked_anything(manager, run, tmp_path):
    run.on("--simulate", answer=("Inst libcuda1 (580.1-1 NVIDIA CUDA [amd64])", 0))
    transaction = Transaction(("libcuda1",), ("old",), recommends=False, downgrade=True)
    deb(run, tmp_path / "staged", "libcuda1", "580.1-1")
    assert manager.simulate(transaction) == [Change("libcuda1", None, "580.1-1", "nvidia")]
    manager.download(transaction, tmp_path / "staged")
    manager.install(transaction, tmp_path / "staged")
    words = [
        "install",
        "--no-install-recommends",
        "--allow-downgrades",
        "--ignore-hold",
        "--allow-change-held-packages",
        "libcuda1",
        "old-",
    ]
    asked = [argv for argv in run.asked if argv[0] == "apt-get"]
    assert all(argv[-len(words) :] == words for argv in asked)
    assert "--no-download" in asked[-1]
    assert f"--option=Dir::Cache::archives={tmp_path / 'staged'}" in asked[-1]
    for name in ("--option=Dpkg::Options::=--force-confdef", "--option=Dpkg::Options::=--force-confold", "--yes"):
        assert all(name in argv for argv in asked)
    environment = run.environments[run.asked.index(asked[-1])]
    assert environment["NEEDRESTART_SUSPEND"] == "1"
    assert environment["DEBIAN_FRONTEND"] == "noninteractive"
    assert environment["APT_LISTCHANGES_FRONTEND"] == "none"


def test_a_failed_simulation_quotes_apt_and_says_that_nothing_changed(manager, run):
    run.on("--simulate", answer=("E: Unable to locate package libcuda1\n", 100))
    with pytest.raises(
        DriverError, match=r"E: Unable to locate package libcuda1 .*apt-cache policy libcuda1.*Nothing of the driver"
    ):
        manager.simulate(Transaction(("libcuda1",)))


def test_a_failed_installation_quotes_dkms_and_hands_over_the_output(manager, run, tmp_path):
    output = (
        "Get:1 x\nError! Bad return status for module build on kernel: 6.12 (x86_64)\ndpkg: error processing nvidia-x\n"
    )
    run.on("--no-download", answer=(output, 100))
    with pytest.raises(DriverError, match="Installing the packages failed: Error! Bad return") as caught:
        manager.install(Transaction(("nvidia-x",)), tmp_path)
    assert caught.value.facts["output"] == output


def test_a_proxy_is_in_a_file_for_root_only_and_gone_afterwards(run, tmp_path):
    proxy = {"http": "http://user:s3cret@proxy:3128", "no_proxy": ".intern, mirror", "ca_file": "/etc/ca.pem"}
    manager = Apt(run, proxy, root=str(tmp_path))
    manager.simulate(Transaction(("x",)))
    argv = run.calls("--simulate")[0]
    path = next(word.partition("=")[2] for word in argv if word.startswith("--config-file="))
    assert not any("s3cret" in word for word in argv)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    text = Path(path).read_text()
    assert 'Acquire::http::Proxy "http://user:s3cret@proxy:3128";' in text
    assert 'Acquire::https::Proxy::intern "DIRECT";' in text
    assert 'Acquire::https::CaInfo "/etc/ca.pem";' in text
    del manager
    assert not os.path.exists(path)


def test_a_run_that_waits_leaves_the_folder_of_the_one_that_works_alone_and_removes_those_of_killed_ones(run, tmp_path):
    working = tmp_path / f"run/gpufleet-apt-{os.getppid()}"
    killed = tmp_path / "run/gpufleet-apt-999999999"
    for folder in (working, killed):
        folder.mkdir(parents=True)
    manager = Apt(run, root=str(tmp_path))
    assert working.exists()
    assert not killed.exists()
    del manager
    assert [path.name for path in (tmp_path / "run").iterdir()] == [working.name]


def test_a_proxy_that_apt_would_misread_is_refused(run, tmp_path):
    with pytest.raises(DriverError, match="gpufleet_proxy holds a quote"):
        Apt(run, {"http": 'http://a";DPkg::Pre-Invoke {"x'}, root=str(tmp_path))


# -- locks and half-done work -------------------------------------------------------------------------------------------


def test_who_holds_the_lock_is_named_after_a_bounded_wait(run, tmp_path, monkeypatch):
    locks = [[{"path": "/var/lib/dpkg/lock-frontend", "holder": "unattended-upgr (process 7)"}]] * 3
    monkeypatch.setattr(apt.health, "package_locks", lambda _host, _unknown: locks.pop() if locks else [])
    now = [0.0]
    manager = Apt(run, root=str(tmp_path), sleep=lambda s: now.__setitem__(0, now[0] + s), clock=lambda: now[0])
    manager.wait(10)
    assert now == [6.0]
    locks += [[{"path": "/var/lib/dpkg/lock-frontend", "holder": "unattended-upgr (process 7)"}]] * 9
    with pytest.raises(
        DriverError, match=r"held by unattended-upgr \(process 7\) for more than 10 s.*Nothing was changed"
    ):
        manager.wait(10)


def test_nothing_is_interrupted_where_all_is_installed(manager, run):
    run.rows = [row("libcuda1")]
    assert manager.interrupted() == []


def test_half_done_packages_dpkgs_own_notes_and_broken_dependencies_are_named(manager, run, tmp_path):
    run.rows = [row("libcuda1"), row("nvidia-kernel-open-dkms", state="half-configured")]
    updates = tmp_path / "var/lib/dpkg/updates"
    updates.mkdir(parents=True)
    (updates / "0001").write_text("")
    assert manager.interrupted() == [
        "nvidia-kernel-open-dkms is half-configured",
        "dpkg was interrupted while it wrote down what it did",
    ]
    run.rows = []
    (updates / "0001").unlink()
    run.on(
        "check",
        answer=(" nvidia-driver-cuda : Depends: libcuda1 (= 1) but it is not installed\nE: Unmet dependencies.\n", 100),
    )
    assert manager.interrupted() == ["nvidia-driver-cuda : Depends: libcuda1 (= 1) but it is not installed"]


def test_what_was_unpacked_is_configured(manager, run):
    run.rows = [row("libcuda1", state="unpacked")]
    run.on("--configure", answer=lambda _argv: run.rows.__setitem__(0, row("libcuda1")) or ("", 0))
    assert manager.repair() == ["configured what was unpacked"]
    assert run.calls("--remove") == []


def test_a_driver_package_that_cannot_be_configured_goes_with_what_depends_on_it(manager, run):
    run.rows = [row("nvidia-kernel-open-dkms", state="half-configured"), row("nvidia-driver-cuda")]
    run.on("--configure", answer=("Error! Bad return status for module build on kernel: 6.12", 1))

    def check(_argv):
        names = [entry[0] for entry in run.rows]
        broken = "nvidia-driver-cuda" in names and "nvidia-kernel-open-dkms" not in names
        return (" nvidia-driver-cuda : Depends: nvidia-kernel-open-dkms\n", 100) if broken else ("", 0)

    def remove(argv):
        run.rows = [entry for entry in run.rows if entry[0] not in argv]
        return ("", 0)

    run.on("check", answer=check)
    run.on("--remove", answer=remove)
    did = manager.repair()
    assert did == ["removed nvidia-kernel-open-dkms, nvidia-driver-cuda, which could not be configured"]
    assert "--force-remove-reinstreq" in run.calls("--remove")[0]
    first = run.asked.index(run.calls("--remove")[0])
    assert not any("--fix-broken" in argv for argv in run.asked[:first])  # it would be built, and fail, once more


def test_settling_dependencies_neither_removes_a_desktop_nor_brings_another_driver(manager, run):
    run.rows = [row("foo", state="unpacked"), row("libcuda1", "580.105.08-1")]
    run.on("--fix-broken", "--simulate", answer=("Remv gdm3 [46.0]\n", 0))
    with pytest.raises(DriverError, match="display manager gdm3"):
        manager.repair()
    run.rows = [row("libcuda1", "580.105.08-1")]
    run.on("--fix-broken", "--simulate", answer=("Inst libcuda1 [580.105.08-1] (615.71.09-2 NVIDIA CUDA [amd64])\n", 0))
    manager.repair()
    assert [argv for argv in run.calls("--fix-broken") if "--simulate" not in argv] == []


def test_a_mix_of_two_versions_is_brought_to_one(manager, run):
    run.rows = [row("libcuda1", "580.105.08-1"), row("libnvidia-ml1", "595.71.05-1")]
    run.on("--fix-broken", "--simulate", answer=("Inst libcuda1 [580.105.08-1] (595.71.05-1 NVIDIA CUDA [amd64])\n", 0))
    run.on("--fix-broken", "--simulate", answer=("Inst libcuda1 [580.105.08-1] (595.71.05-1 NVIDIA CUDA [amd64])\n", 0))
    assert "let apt settle libcuda1" in manager.repair()


def test_what_cannot_be_finished_at_all_stops_with_its_names(manager, run):
    run.rows = [row("postgresql", state="half-configured")]
    run.on("--configure", answer=("dpkg: error processing package postgresql (--configure):", 1))
    with pytest.raises(DriverError, match=r"cannot be finished: postgresql is half-configured.*dpkg: error processing"):
        manager.repair()


# -- the repository -----------------------------------------------------------------------------------------------------


def test_repository_and_key_are_written_once(manager, tmp_path):
    assert manager.describe_repository(REQUEST)
    assert (tmp_path / "etc/apt/keyrings/gpufleet-nvidia.asc").read_text() == REQUEST.key
    path = tmp_path / "etc/apt/sources.list.d/gpufleet-nvidia.sources"
    assert path.read_text() == REQUEST.repository["content"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert not manager.describe_repository(REQUEST)


def test_our_own_list_is_read_alone_where_others_are_broken(manager, run, tmp_path):
    manager.describe_repository(REQUEST)
    run.on("update", answer=("E: Failed to fetch http://broken.example/ 404  Not Found\n", 100))
    run.on("update", "--error-on=any", answer=("", 0))
    manager.refresh(REQUEST)
    alone = run.calls("--error-on=any")[0]
    assert "--option=APT::Get::List-Cleanup=0" in alone
    folder = next(word.partition("sourceparts=")[2] for word in alone if "sourceparts=" in word)
    assert os.listdir(folder) == ["gpufleet-nvidia.sources"]


def test_the_description_of_an_unusable_repository_is_taken_away_again(manager, run, tmp_path):
    key = tmp_path / "etc/apt/keyrings/gpufleet-nvidia.asc"
    key.parent.mkdir(parents=True)
    key.write_text("the old key")
    manager.describe_repository(REQUEST)
    run.on("update", answer=("E: Failed to fetch http://m  Could not connect to m\n", 100))
    with pytest.raises(
        DriverError, match=r"cannot be used: the host does not reach it.*taken away again; nothing of the driver"
    ):
        manager.refresh(REQUEST)
    assert not (tmp_path / "etc/apt/sources.list.d/gpufleet-nvidia.sources").exists()
    assert key.read_text() == "the old key"


def test_where_the_distributions_own_lists_serve_a_warning_is_enough(manager, run):
    request = dataclasses.replace(REQUEST, repository=None)
    run.on("update", answer=("W: Some index files failed to download\n", 0))
    manager.refresh(request)
    run.on("update", answer=("E: The repository is not signed.\n", 100))
    with pytest.raises(DriverError, match="The package lists cannot be read: it is not signed"):
        manager.refresh(request)


# -- pins and holds -----------------------------------------------------------------------------------------------------


def test_before_the_window_the_pin_is_this_calls_own(manager, run, tmp_path):
    folder = tmp_path / "etc/apt/preferences.d"
    folder.mkdir(parents=True)
    (folder / "gpufleet-nvidia").write_text("the exact pin")
    (folder / "others").write_text("x")
    assert not manager.choose(REQUEST, lasting=False)
    assert (folder / "gpufleet-nvidia").read_text() == "the exact pin"
    manager.simulate(Transaction(("x",)))
    parts = Path(
        next(w.partition("PreferencesParts=")[2] for w in run.calls("--simulate")[0] if "PreferencesParts=" in w)
    )
    assert "Pin: version 580.*" in (parts / "gpufleet-nvidia").read_text()
    assert (parts / "others").read_text() == "x"
    assert manager.choose(REQUEST, lasting=True)
    assert "Pin: version 580.*" in (folder / "gpufleet-nvidia").read_text()
    manager.simulate(Transaction(("x",)))
    assert not any("PreferencesParts" in word for word in run.calls("--simulate")[-1])


def test_the_driver_is_frozen_once_and_thawed_without_what_the_user_holds(manager, run, tmp_path):
    run.rows = [
        row("libcuda1"),
        row("firefox", "1", want="hold"),
        row("linux-modules-nvidia-580-open-generic", "6.8"),
        row("cuda-keyring", "1.1-1"),
    ]
    packages = manager.installed()
    assert [package.name for package in packages] == ["libcuda1", "linux-modules-nvidia-580-open-generic"]
    holds = [package.name for package in packages]
    assert manager.freeze(packages, holds)
    assert run.calls("apt-mark", "hold") == [["apt-mark", "hold", "libcuda1"]]  # signed modules follow new kernels
    assert "linux-modules" not in (tmp_path / "etc/apt/preferences.d/gpufleet-nvidia").read_text()
    run.rows[0] = row("libcuda1", want="hold")
    assert not manager.freeze(packages, holds)
    assert manager.held() == ["libcuda1", "firefox"]
    manager.thaw(["libcuda1", "libnvidia-ml1"])
    assert run.calls("unhold") == [["apt-mark", "unhold", "libcuda1"]]


def test_configuration_is_given_back_and_every_trace_removed(manager, tmp_path):
    manager.describe_repository(REQUEST)
    manager.choose(REQUEST, lasting=True)
    kept = manager.read_configuration()
    assert list(kept) == [apt.PREFERENCES]
    assert sorted(manager.forget()) == sorted([apt.PREFERENCES, apt.SOURCES[0], apt.KEY])
    assert manager.read_configuration() == {}
    manager.write_configuration(kept)
    assert manager.read_configuration() == kept
    manager.write_configuration({})
    assert manager.read_configuration() == {}


def test_packages_of_a_foreign_architecture_keep_it_in_their_name(manager, run):
    run.rows = [
        row("libcuda1:amd64"),
        row("libcuda1:i386", architecture="i386"),
        row("old-nvidia", state="config-files"),
    ]
    assert [package.name for package in manager.installed()] == ["libcuda1", "libcuda1:i386"]


# -- files --------------------------------------------------------------------------------------------------------------


def deb(run, folder, name, version, content=b"deb", published=True):
    """Put a package file into a folder; dpkg-deb and apt-cache know it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{version}_amd64.deb"
    path.write_bytes(content)
    run.on("dpkg-deb", str(path), answer=(f"{name}\t{version}\tamd64", 0))
    if published:
        stanza = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nSHA256: {apt._sha256(path)}\n"
        run.on("apt-cache", f"{name}={version}", answer=(stanza, 0))
    return path


def test_a_download_is_compared_with_the_repository_and_rid_of_what_is_old(manager, run, tmp_path):
    folder = tmp_path / "staged"
    run.on("--simulate", answer=("Inst libcuda1 (580.1-1 NVIDIA CUDA [amd64])", 0))
    old = deb(run, folder, "libcuda1", "570.1-1")
    path = deb(run, folder, "libcuda1", "580.1-1")
    (folder / "partial").mkdir()
    (folder / "lock").write_text("")
    files = manager.download(Transaction(("libcuda1",)), folder)
    assert [(file.package, file.path) for file in files] == [(Package("libcuda1", "580.1-1", "amd64"), path)]
    assert not old.exists()
    assert sorted(os.listdir(folder)) == [path.name]
    path.write_bytes(b"xxx")
    with pytest.raises(DriverError, match="is damaged: its checksum is not what the repository says"):
        manager.download(Transaction(("libcuda1",)), folder)
    assert not path.exists()


def test_a_download_that_something_emptied_is_noticed(manager, run, tmp_path):
    run.on("--simulate", answer=("Inst libcuda1 (580.1-1 NVIDIA CUDA [amd64])", 0))
    with pytest.raises(DriverError, match=r"libcuda1 is not in .*Post-Invoke"):
        manager.download(Transaction(("libcuda1",)), tmp_path / "staged")


def test_a_serving_package_comes_from_the_cache_a_repository_or_is_repacked(manager, run, tmp_path):
    folder = tmp_path / "kept"
    cached = deb(run, tmp_path / "var/cache/apt/archives", "libcuda1", "580.1-1", b"cached")
    for name in ("libcuda1", "libnvidia-ml1", "nvidia-smi"):
        run.on("dpkg-deb", str(folder / f"{name}_580.1-1_amd64.deb"), answer=(f"{name}\t580.1-1\tamd64", 0))
    stanzas = "".join(
        f"Package: {name}\nVersion: 580.1-1\nArchitecture: amd64\nSHA256: {value}\n\n"
        for name, value in (("libcuda1", apt._sha256(cached)), ("libnvidia-ml1", "0" * 64))
    )
    run.on("apt-cache", answer=(stanzas, 0))

    def make(argv):
        for word in argv:
            name = word.partition("=")[0]
            if name in ("libnvidia-ml1", "nvidia-smi"):
                (folder / f"{name}_580.1-1_amd64.deb").write_bytes(b"x")
        return ("", 0)

    run.on("download", answer=make)
    run.on("sh", 'cd "$1" && exec dpkg-repack "$2"', answer=make)
    run.rows = [row("nvidia-smi", "580.1-1"), row("libgone", "1", state="config-files")]
    repack = tmp_path / "usr/bin/dpkg-repack"
    repack.parent.mkdir(parents=True)
    repack.write_text("")
    repack.chmod(0o755)
    wanted = [Package(name, "580.1-1", "amd64") for name in ("libcuda1", "libnvidia-ml1", "nvidia-smi", "libgone")]
    found = manager.fetch(wanted, folder)
    assert [file.package.name for file in found] == ["libcuda1", "libnvidia-ml1", "nvidia-smi"]
    assert (folder / "libcuda1_580.1-1_amd64.deb").read_bytes() == b"cached"
    assert run.calls("download")[0][-1] == "libnvidia-ml1=580.1-1"  # only what a repository has and the cache has not


def test_files_replace_in_one_go_and_what_was_automatic_stays_so(manager, run, tmp_path):
    path = deb(run, tmp_path / "kept", "libcuda1", "580.1-1")
    run.rows = [row("libcuda1", "595-1"), row("nvidia-new", "595-1")]
    run.on("showauto", answer=("libcuda1\nother\n", 0))
    manager.install_files([path], ["nvidia-new", "not-there"])
    (install,) = [argv for argv in run.calls("install", "--purge") if "--simulate" not in argv]
    assert install[-2:] == [str(path), "nvidia-new-"]
    assert "--allow-downgrades" in install
    assert "--ignore-hold" in install
    assert run.calls("apt-mark", "auto") == [["apt-mark", "auto", "libcuda1"]]


def test_dpkg_puts_files_in_place_where_apt_refuses(manager, run, tmp_path):
    path = deb(run, tmp_path / "kept", "libcuda1", "580.1-1")
    run.rows = [row("nvidia-new", "595-1")]
    run.on("install", "--purge", answer=("E: Unmet dependencies.", 100))
    manager.install_files([path], ["nvidia-new"])
    assert run.calls("dpkg", "--purge")[0][-1] == "nvidia-new"
    assert run.calls("dpkg", "--install")[0][-1] == str(path)
    run.on(
        "dpkg",
        "--install",
        answer=lambda _argv: run.rows.append(row("libcuda1", state="half-configured")) or ("Error! x", 1),
    )
    with pytest.raises(DriverError, match="could not be put in place: libcuda1 is half-configured"):
        manager.install_files([path], ["nvidia-new"])


def test_files_that_would_cost_the_desktop_are_not_put_in_place(manager, run, tmp_path):
    path = deb(run, tmp_path / "kept", "libcuda1", "580.1-1")
    run.on("install", "--purge", "--simulate", answer=("Remv gnome-shell [48]\n", 0))
    with pytest.raises(DriverError, match=r"gnome-shell.*Nothing was changed"):
        manager.install_files([path], [])
    assert [argv for argv in run.calls("--purge") if "--simulate" not in argv] == []


def test_headers_go_where_they_are_named_and_only_there(manager, run):
    run.rows = [row("linux-headers-amd64"), row("dkms")]
    run.on("install", "--purge", "--simulate", answer=("Purg dkms [3.2]\nPurg linux-headers-amd64 [6.12]\n", 0))
    manager.install_files([], ["dkms", "linux-headers-amd64"])
    (done,) = [argv for argv in run.calls("install", "--purge") if "--simulate" not in argv]
    assert done[-2:] == ["dkms-", "linux-headers-amd64-"]
    with pytest.raises(DriverError, match="linux-headers-amd64"):
        manager.install_files([], ["dkms"])


def test_left_configuration_of_removed_packages_is_purged(manager, run):
    run.rows = [row("nvidia-kernel-support", state="config-files"), row("foreign", state="config-files")]
    manager.install_files([], ["nvidia-kernel-support"])
    assert run.calls("dpkg", "--purge") == [["dpkg", "--purge", "nvidia-kernel-support"]]
