# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of the test fleet: a fleet that lies would make every test on it worthless."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

SANDBOX = Path(__file__).resolve().parents[3] / "molecule/shared/sandbox"
sys.path.insert(0, str(SANDBOX))

from gpufleet_sandbox import catalogue, debs, hosts, podman, rpms, torch_index, wheels  # noqa: E402
from gpufleet_sandbox.machine import allow_inotify, apt_sources, debian_mirrors  # noqa: E402
from gpufleet_sandbox.settings import SandboxError, Settings, load_yaml  # noqa: E402


def simulator():
    """The program that runs inside the containers."""
    path = SANDBOX / "rootfs/usr/lib/gpufleet-sandbox/simulator.py"
    spec = importlib.util.spec_from_file_location("gpufleet_simulator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record_problems(path: Path) -> list[str]:
    """What RECORD says and the wheel's content does not, or the other way round."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = {name for name in archive.namelist() if not name.endswith("/")}
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
        problems = sorted(names ^ {row[0] for row in rows})
        for name, digest, size in rows:
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            if name != record and (digest, size) != (f"sha256={expected}", str(len(data))):
                problems.append(name)
    return problems


@pytest.fixture
def wheel(tmp_path):
    """A wheel as setuptools makes it: content first, dist-info last."""
    name, data = wheels.make_wheel(
        "torch", "2.9.1", "cp311-cp311-manylinux_2_28_x86_64", "x", {"torch/__init__.py": "a = 1\n"}, ["filelock"]
    )
    path = tmp_path / name
    path.write_bytes(data)
    return path


def test_a_retagged_wheel_has_the_tag_in_name_metadata_and_record(wheel):
    path = wheels.retag(wheel, "2.9.1+cu128")
    assert path.name == "torch-2.9.1+cu128-cp311-cp311-manylinux_2_28_x86_64.whl"
    assert record_problems(path) == []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert "torch-2.9.1+cu128.dist-info/METADATA" in names
        assert not [name for name in names if name.startswith("torch-2.9.1.dist-info/")]
        assert archive.read("torch/__init__.py") == b"a = 1\n"
    assert b"\nVersion: 2.9.1+cu128\n" in wheels.wheel_metadata(path)


def test_retagging_leaves_no_trace_of_the_old_entries(wheel):
    """uv refuses archives in which local headers and the central directory disagree."""
    path = wheels.retag(wheel, "2.9.1+cu128")
    with zipfile.ZipFile(path) as archive:
        assert path.read_bytes().count(b"PK\x03\x04") == len(archive.infolist())


def test_a_wheel_with_content_behind_its_metadata_is_not_retagged(wheel):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("torch/late.py", "")
    with pytest.raises(wheels.Unexpected, match="not the last ones"):
        wheels.retag(wheel, "2.9.1+cu128")


def test_stand_ins_say_what_they_are_and_keep_torchs_facts(tmp_path):
    described = load_yaml("torch_index.yml")["stand_in"]
    made = torch_index.stand_in_wheels(described, "cu126")
    name = "torch-2.9.1+cu126-cp311-cp311-manylinux_2_28_x86_64.whl"
    path = tmp_path / name
    path.write_bytes(made[name])
    assert record_problems(path) == []
    assert b"SIMULATED" in wheels.wheel_metadata(path)
    with zipfile.ZipFile(path) as archive:
        assert b"__version__ = '2.9.1+cu126'" in archive.read("torch/version.py")
        assert b"'12.6'" in archive.read("torch/version.py")
        assert b"sm_61" not in archive.read("torch/_C.py")
        assert b"sm_60" in archive.read("torch/_C.py")
        assert b"sm_120" not in archive.read("torch/_C.py")
    assert not [file for file, data in made.items() if b"@VERSION@" in data]


def test_an_index_page_quotes_the_local_version_and_carries_hashes():
    listed = wheels.Listed("../", "torch-2.9.1+cu128-cp311-cp311-linux_x86_64.whl", "ab" * 32, "cd" * 32, ">=3.10")
    page = wheels.project_page("torch", [listed])
    assert f'href="../torch-2.9.1%2Bcu128-cp311-cp311-linux_x86_64.whl#sha256={"ab" * 32}"' in page
    assert 'data-requires-python="&gt;=3.10"' in page
    assert f'data-core-metadata="sha256={"cd" * 32}"' in page


def test_names_of_projects_are_normalized():
    assert wheels.Listed("", "typing_extensions-4.0-py3-none-any.whl", "").project == "typing-extensions"


@pytest.fixture
def no_compiler(monkeypatch):
    """Packages without their compiled stubs."""
    monkeypatch.setattr("gpufleet_sandbox.stubs.compile_library", lambda *_arguments, **_options: b"library")


def in_repository(file, name):
    """The packages of one repository, by (name, version)."""
    found = {made.name: made for made in catalogue.describe(catalogue.FOLDER / f"{file}.yml")}
    return {(package.name, package.version): package for package in found[name].packages}


@pytest.mark.usefixtures("no_compiler")
def test_every_dependency_of_a_driver_for_debian_is_in_the_repository():
    made = in_repository("nvidia-debian", "debian12")
    provided = {name for name, _version in made} | {"python3", "kmod"}
    for package in made.values():
        for relation in package.relations.get("Depends", []):
            assert any(word.split(" ")[0] in provided for word in relation.split(" | ")), (package.name, relation)
    assert all("SIMULATED" in package.description for package in made.values())


@pytest.mark.usefixtures("no_compiler")
def test_the_newest_branch_has_no_proprietary_modules():
    made = in_repository("nvidia-debian", "debian13")
    newest = made["nvidia-kernel-dkms", "615.71.09-2"]
    assert newest.relations["Depends"] == ["nvidia-kernel-open-dkms (= 615.71.09-2)"]
    assert not newest.files
    text = made["nvidia-kernel-dkms", "580.178.04-1"].files["/usr/src/nvidia-580.178.04/dkms.conf"].decode()
    assert "SANDBOX_FLAVOR=proprietary" in text


@pytest.mark.usefixtures("no_compiler")
def test_every_stub_refuses_to_be_installed_anywhere_else():
    for path in sorted(catalogue.FOLDER.glob("*.yml")):
        for made in catalogue.describe(path):
            for package in made.packages:
                script = package.scripts["preinst" if made.format == "deb" else "pre"]
                assert "must not be installed anywhere else" in script, package.name


@pytest.mark.usefixtures("no_compiler")
def test_ubuntu_names_lose_the_branch_with_590():
    names = {name for name, version in in_repository("nvidia-ubuntu", "ubuntu2404") if version.startswith("580.")}
    later = {name for name, version in in_repository("nvidia-ubuntu", "ubuntu2404") if version.startswith("595.")}
    assert {"nvidia-open-580", "libnvidia-compute-580"} <= names
    assert not {"nvidia-open", "libnvidia-compute"} & names
    assert {"nvidia-open", "libnvidia-compute"} <= later
    assert {branch.partition(".")[0] for _name, branch in in_repository("nvidia-ubuntu", "ubuntu2604")} >= {
        "595",
        "610",
    }


@pytest.mark.usefixtures("no_compiler")
def test_module_streams_hold_their_branch_and_flavor_only():
    found = {made.name: made for made in catalogue.describe(catalogue.FOLDER / "nvidia-el.yml")}
    streams = {
        name: {(package.name, package.version) for package in packages}
        for name, packages in found["rhel9"].streams.items()
    }
    assert ("kmod-nvidia-open-dkms", "3:580.178.04-1.el9") in streams["580-open"]
    assert {name for name, _version in streams["580-open"]}.isdisjoint({"kmod-nvidia-latest-dkms", "cuda-drivers"})
    assert {name for name, _version in streams["580-dkms"]}.isdisjoint({"kmod-nvidia-open-dkms", "nvidia-open"})
    assert {version.partition(".")[0] for name, version in streams["580-dkms"]} == {"3:580"}
    assert ("kmod-nvidia-open-dkms", "3:595.71.05-1.el9") in streams["open-dkms"]
    assert found["rhel10"].streams == {}


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(
    ("file", "name", "known"), [("debian", "bookworm", ()), ("debian", "trixie", ()), ("ubuntu", "noble", ())]
)
def test_every_dependency_in_a_simulated_archive_is_in_it(file, name, known):
    made = in_repository(file, name)
    provided = {name for name, _version in made}
    for package in made.values():
        provided |= {relation.split(" ")[0] for relation in package.relations.get("Provides", [])}
    for package in made.values():
        for relation in [*package.relations.get("Depends", []), *package.relations.get("Pre-Depends", [])]:
            assert any(word.split(" ")[0] in provided for word in relation.split(" | ")), (package.name, relation)


@pytest.mark.usefixtures("no_compiler")
def test_debians_own_modules_have_debians_names_and_are_known_not_to_compile():
    source = in_repository("debian", "trixie")["nvidia-open-kernel-dkms", "550.163.01-2"]
    text = source.files["/usr/src/nvidia-current-open-550.163.01/dkms.conf"].decode()
    assert 'PACKAGE_NAME="nvidia-current-open"' in text
    assert 'SANDBOX_FAILS_ON="6.12.107*"' in text
    assert ("nvidia-kernel-open-dkms", "550.163.01-2") not in in_repository("debian", "trixie")


@pytest.mark.usefixtures("no_compiler")
def test_debians_flavors_can_be_unpacked_beside_each_other():
    made = in_repository("debian", "trixie")
    one, other = made["nvidia-kernel-support", "550.163.01-2"], made["nvidia-open-kernel-support", "550.163.01-2"]
    assert one.files
    assert not set(one.files) & set(other.files)
    (words,) = (path for path in other.files if path.startswith("/etc/"))
    assert f"ln -sfn {words} /etc/modprobe.d/nvidia.conf" in other.scripts["postinst"]


@pytest.mark.usefixtures("no_compiler")
def test_ubuntus_compiled_modules_are_signed_and_dkms_ones_are_not():
    player, made = simulator(), in_repository("ubuntu", "noble")
    package = made["linux-modules-nvidia-580-open-6.8.0-90-generic", "6.8.0-90.91"]
    module = package.files["/lib/modules/6.8.0-90-generic/kernel/nvidia-580-open/nvidia.ko"]
    assert player.signer_of(module) == player.UBUNTU_SIGNER
    assert player.signer_of(player.elf_module({"version": "580.1"})) == ""
    newest = [v for name, v in made if name == "linux-modules-nvidia-580-open-generic"]
    assert newest == ["6.8.0-88.89", "6.8.0-90.91"]


def test_an_rpm_is_named_with_its_epoch():
    package = debs.Package("nvidia-open", "3:580.178.04-1.el9", "noarch", "A stub. SIMULATED")
    assert rpms.nevra(package) == "nvidia-open-3:580.178.04-1.el9.noarch"


def test_packages_that_share_a_path_are_built_apart():
    one, two, three = (
        debs.Package(name, "1-1", "noarch", "A stub. SIMULATED", files={path: b""})
        for name, path in (("a", "/usr/src/x"), ("b", "/usr/src/x"), ("c", "/usr/src/y"))
    )
    assert rpms.batches([one, two, three]) == [[one, three], [two]]


def test_a_package_is_one_that_dpkg_reads(tmp_path):
    package = debs.Package(
        "nvidia-open",
        "580.178.04-1",
        "amd64",
        "A stub. SIMULATED",
        relations={"Depends": ["dkms (>= 3.1.8)"], "Conflicts": []},
        files={"/etc/modprobe.d/nvidia.conf": b"blacklist nouveau\n"},
        links={"/usr/lib/libcuda.so.1": "libcuda.so.580"},
        scripts={"postinst": "#!/bin/sh\n"},
    )
    data = debs.build(package)
    assert data.startswith(b"!<arch>\ndebian-binary")
    entry = debs.index_entry(package, data)
    assert f"\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n" in entry
    assert "Conflicts" not in entry
    if not shutil.which("dpkg-deb"):
        return
    path = tmp_path / package.filename
    path.write_bytes(data)
    fields = subprocess.run(["dpkg-deb", "-f", path, "Package", "Depends"], capture_output=True, text=True, check=True)
    assert fields.stdout == "Package: nvidia-open\nDepends: dkms (>= 3.1.8)\n"
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(listing)) as tar:
        assert tar.getmember("./usr/lib/libcuda.so.1").linkname == "libcuda.so.580"
        assert tar.getmember("./etc/modprobe.d").isdir()


def test_release_carries_nvidias_origin_and_the_indexes_hashes():
    text = debs.release(
        {"Packages": b"abc"}, "Sun, 22 Nov 2026 20:00:00 UTC", {"Origin": "NVIDIA", "Label": "NVIDIA CUDA"}
    )
    assert "Origin: NVIDIA\nLabel: NVIDIA CUDA\n" in text
    assert f" {hashlib.sha256(b'abc').hexdigest()}                3 Packages\n" in text


def test_mirrors_come_from_both_formats_of_apts_configuration():
    deb822 = "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm bookworm-updates\n"
    off = "Types: deb\nURIs: http://off.example/debian\nSuites: bookworm-security\nEnabled: no\n"
    line = (
        "# deb http://comment.example x main\ndeb [signed-by=/k.asc] http://security.example/d bookworm-security main\n"
    )
    sources = apt_sources([("a.sources", f"{off}\n{deb822}"), ("b.list", line), ("c.bak", line)])
    mirrors = debian_mirrors(sources, "bookworm")
    assert (mirrors.main, mirrors.security) == ("http://mirror.example/debian", "http://security.example/d")
    assert mirrors.lines("trixie")[-1] == "deb http://security.example/d trixie-security main contrib"
    with pytest.raises(SandboxError, match="no source for trixie"):
        debian_mirrors(sources, "trixie")


def test_simulated_modules_are_read_by_the_simulator_as_they_were_written():
    play = simulator()
    data = play.elf_module(play.modinfo_fields("nvidia-uvm", "6.1.0", "proprietary", "580.178.04"))
    assert data.startswith(b"\x7fELF\x02\x01\x01")
    assert b"license=NVIDIA\0version=580.178.04\0depends=nvidia\0name=nvidia_uvm\0vermagic=6.1.0 SMP" in data


@pytest.mark.parametrize(
    ("device", "flavor", "drives"),
    [
        ("2f04", "open", True),
        ("2f04", "proprietary", False),
        ("1b06", "open", False),
        ("1b06", "proprietary", True),
        ("2684", "open", True),
        ("2684", "proprietary", True),
    ],
)
def test_the_simulated_module_drives_what_the_real_one_drives(device, flavor, drives):
    assert simulator().drivable({"device": device}, flavor) is drives


def test_hosts_have_a_sound_function_and_the_machine_around_the_gpu():
    settings = Settings()
    described = hosts.hardware(settings, "ws-mixed")
    assert [gpu["device"] for gpu in described["gpus"]] == ["2b85", "2204"]
    assert "0000:21:00.1" in {device["address"] for device in described["other_devices"]}
    assert hosts.hardware(settings, "ws-mixed") == described
    assert hosts.hardware(settings, "ws-wsl")["other_devices"] == []


def test_every_persona_says_what_to_expect_and_what_is_simulated():
    settings = Settings()
    for name, persona in settings.personas.items():
        assert persona["expected"] in ("ready", "refused"), name
        assert persona["torch"] in ("real", "stand-in"), name
        assert "simulated" in persona["note"], name
        for slot in persona["gpus"]:
            assert slot["model"] in settings.fleet["models"], name


def test_unknown_hosts_are_named_with_the_known_ones():
    with pytest.raises(SandboxError, match=r"no host ws-x.*ws-5070"):
        Settings().select(["ws-5070", "ws-x"])


def test_the_inventory_gives_tiny_wheels_where_the_real_ones_are_not_there(tmp_path):
    settings = Settings(checkout=tmp_path)
    settings.state.mkdir(parents=True)
    tiny = hosts.inventory(settings, ["ws-5070", "ws-1080ti"], real=False)
    real = hosts.inventory(settings, ["ws-5070", "ws-1080ti"], real=True)

    def kinds(text):
        places = (
            "torch_env_index_base_url",
            "gpufleet_state_dir",
        )  # wheels of one version and two hashes need two locks
        hosts_there = yaml.safe_load(text)["all"]["hosts"].values()
        return [[host[place].rpartition("/")[2] for place in places] for host in hosts_there]

    assert kinds(tiny) == [["stand-in", "stand-in"]] * 2
    assert kinds(real) == [["real", "real"], ["stand-in", "stand-in"]]
    assert "{{" not in real
    assert "ansible_become_password" in real


def test_a_group_has_a_host_for_each_system_and_source():
    names = Settings().select(None, "drivers")
    assert {"drv-debian12-distro", "drv-ubuntu2604-nvidia", "drv-alma10-nvidia"} <= set(names)
    assert not set(names) & set(Settings().select(None))
    with pytest.raises(SandboxError, match="no host is in a group 'nothing'"):
        Settings().select(None, "nothing")


def test_no_two_hosts_share_an_address_and_the_proxied_ones_are_apart():
    settings = Settings()
    addresses = [settings.address(name) for name in settings.personas]
    assert len(set(addresses)) == len(addresses)
    assert settings.address("drv-proxy").rpartition(".")[0] != settings.address("ws-mixed").rpartition(".")[0]


def test_a_host_that_is_made_anew_keeps_its_hardware_address(monkeypatch):
    calls = []
    monkeypatch.setattr(podman, "podman", lambda *arguments, **_: calls.append(arguments))
    for address in ("10.213.77.11", "10.213.77.11", "10.213.77.12"):
        podman.create("ws", "image", {"net": address}, {}, [], [])
    first, again, other = (call[call.index("--network") + 1] for call in calls)
    assert first == again == "net:ip=10.213.77.11,mac=02:67:0a:d5:4d:0b"
    assert other == "net:ip=10.213.77.12,mac=02:67:0a:d5:4d:0c"


def test_keys_wait_until_somebody_enrolls_them(tmp_path, monkeypatch):
    player = simulator()
    monkeypatch.setattr(player, "FIRMWARE", tmp_path)
    assert not player.secure_boot_on()
    player.secure_boot(["on"])
    assert player.secure_boot_on()
    player.set_certificates("MokNew", [b"one", b"another"])
    assert player.certificates("MokListRT") == []
    player.secure_boot(["enroll"])
    assert player.certificates("MokListRT") == [b"one", b"another"]
    with pytest.raises(player.Refused, match="no key waits"):
        player.secure_boot(["enroll"])


def test_a_build_fails_where_the_version_is_known_to_fail_or_a_test_wants_it(tmp_path, monkeypatch):
    player = simulator()
    monkeypatch.setattr(player, "module_folder", lambda kernel: tmp_path / "lib" / kernel)
    source = tmp_path / "src/nvidia-595.71.05"
    source.mkdir(parents=True)
    (source / "dkms.conf").write_text('SANDBOX_FAILS_ON="6.12.107*"\n')
    (tmp_path / "lib/6.1").mkdir(parents=True)
    build = player.Build("nvidia", "595.71.05", tmp_path / "src", tmp_path / "dkms")
    assert build.fails("6.12.107+deb13-amd64")
    assert not build.fails("6.1")
    (tmp_path / "lib/6.1/SIMULATE_DKMS_FAILURE").write_text("580.*\n")
    assert not build.fails("6.1")
    (tmp_path / "lib/6.1/SIMULATE_DKMS_FAILURE").write_text("580.* 595.*\n")
    assert build.fails("6.1")


@pytest.mark.parametrize(("allowed", "new_hosts", "after"), [(1, 0, 1), (1, 2, 1024), (1 << 20, 2, 1 << 20)])
def test_inotify_limit_is_raised_only_for_new_hosts_that_would_exceed_it(
    tmp_path: Path, allowed: int, new_hosts: int, after: int
) -> None:
    limit = tmp_path / "max_user_instances"
    limit.write_text(f"{allowed}\n")
    allow_inotify(new_hosts, limit)
    assert int(limit.read_text()) == after


def test_inotify_limit_that_cannot_be_raised_is_said_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "max_user_instances"
    limit.write_text("1\n")
    monkeypatch.setattr(
        Path, "write_text", lambda *_given: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(SandboxError, match=r"sysctl fs\.inotify\.max_user_instances=1024"):
        allow_inotify(1, limit)
