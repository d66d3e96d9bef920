"""Driver packages, sources and pins, from the package managers' own files."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import packages

NVIDIA = "NVIDIA CORPORATION <cudatools@nvidia.com>"
DEBIAN = "Debian NVIDIA Maintainers <pkg-nvidia-devel@lists.alioth.debian.org>"
UBUNTU = "Ubuntu Core Developers <ubuntu-devel-discuss@lists.ubuntu.com>"


def _installed(tree, manager="apt"):
    return packages.inventory(tree.host(), manager, []).packages


def test_driver_packages_are_read_from_dpkgs_status(tree):
    tree.dpkg(
        ("nvidia-open", "install ok installed", "580.95.05-1", NVIDIA),
        ("libcuda1", "hold ok installed", "580.95.05-1", NVIDIA),
        ("nvidia-kernel-dkms", "install ok half-configured", "535.261.03-1~deb12u1", DEBIAN),
        ("nvidia-settings", "deinstall ok config-files", "535.171.04-1~deb12u1", DEBIAN),
        ("nvidia-smi", "purge ok not-installed", "535.261.03-1", DEBIAN),
    )
    assert _installed(tree) == [
        {
            "name": "libcuda1",
            "version": "580.95.05-1",
            "architecture": "amd64",
            "source": "nvidia",
            "held": True,
            "state": "installed",
        },
        {
            "name": "nvidia-kernel-dkms",
            "version": "535.261.03-1~deb12u1",
            "architecture": "amd64",
            "source": "distro",
            "held": False,
            "state": "half-configured",
        },
        {
            "name": "nvidia-open",
            "version": "580.95.05-1",
            "architecture": "amd64",
            "source": "nvidia",
            "held": False,
            "state": "installed",
        },
        {
            "name": "nvidia-settings",
            "version": "535.171.04-1~deb12u1",
            "architecture": "amd64",
            "source": "distro",
            "held": False,
            "state": "config-files",
        },
    ]


@pytest.mark.parametrize(
    "name",
    [
        "nvidia-driver",
        "nvidia-open-580",
        "nvidia-driver-pinning-580",
        "libcuda1",
        "libnvidia-ml1",
        "libnvidia-compute-580",
        "cuda-drivers-580",
        "cuda-keyring",
        "firmware-nvidia-gsp",
        "linux-modules-nvidia-580-open-generic",
        "xserver-xorg-video-nvidia",
        "libgl1-nvidia-glvnd-glx",
        "libegl-nvidia0",
        "libxnvctrl0",
        "nvidia-persistenced",
        "nvidia-cuda-mps",
        "kmod-nvidia-open-dkms",
        "akmod-nvidia",
        "xorg-x11-drv-nvidia-cuda",
    ],
)
def test_parts_of_a_driver(tree, name):
    tree.dpkg((name, "install ok installed", "580.95.05-1", NVIDIA))
    assert packages.is_driver_package(name)
    assert [package["name"] for package in _installed(tree)] == [name]


@pytest.mark.parametrize(
    "name",
    [
        "nvidia-container-toolkit",
        "libnvidia-container1",
        "nvidia-docker2",
        "nvidia-cuda-toolkit",
        "nvidia-cuda-dev",
        "nvidia-cudnn",
        "nvidia-profiler",
        "libnvidia-egl-wayland1",
        "libcuda1-extra",
        "cuda-toolkit-12-8",
        "python3-nvidia",
        "linux-image-amd64",
    ],
)
def test_packages_that_only_sound_like_a_driver(tree, name):
    tree.dpkg((name, "install ok installed", "1-1", NVIDIA))
    assert not packages.is_driver_package(name)
    assert _installed(tree) == []


@pytest.mark.parametrize(
    ("maintainer", "source"),
    [
        (NVIDIA, "nvidia"),
        ("NVIDIA nvidia", "nvidia"),
        (DEBIAN, "distro"),
        (UBUNTU, "distro"),
        ("Red Hat, Inc.", "distro"),
        ("RPM Fusion", "distro"),
        ("Rocky Enterprise Software Foundation", "distro"),
        ("CentOS builder@centos.org", "distro"),
        ("The ELRepo Project", "unknown"),
        ("Somebody <me@example.org>", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_origin_is_told_by_maintainer_or_vendor(maintainer, source):
    assert packages.origin(maintainer) == source


LIST = "/var/lib/apt/lists/mirror.example.org_nvidia_debian12_x86%5f64"
INDEX = """\
Package: libcuda1
Architecture: amd64
Version: 580.105.08-1

Package: libcuda1
Source: nvidia-graphics-drivers
Version: 580.95.05-1
Architecture: amd64

Package: cuda-toolkit-12-8
Version: 12.8.1-1
"""


@pytest.mark.parametrize(
    ("origin", "version", "source"),
    [
        ("NVIDIA", "580.95.05-1", "nvidia"),
        ("NVIDIA", "580.105.08-1", "nvidia"),
        ("NVIDIA", "550.163.01-2", "distro"),
        ("Debian", "580.95.05-1", "distro"),
    ],
)
def test_what_nvidias_repository_lists_is_nvidias_whoever_the_maintainer(tree, origin, version, source):
    tree.file(f"{LIST}_InRelease", f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nOrigin: {origin}\nLabel: x\n")
    tree.file(f"{LIST}_Packages", INDEX)
    tree.dpkg(("libcuda1", "install ok installed", version, DEBIAN))
    assert [package["source"] for package in _installed(tree)] == [source]


def test_nvidias_section_says_it_as_well():
    text = b"Package: libcuda1\nStatus: install ok installed\nSection: NVIDIA\nMaintainer: Me <me@example.org>\nVersion: 1-1\n\n"
    assert [package["source"] for package in packages.dpkg_packages(text)] == ["nvidia"]


def test_rpm_packages_keep_their_epoch_and_name_their_vendor(tree):
    tree.folder("/var/lib/rpm")
    tree.commands["rpm"] = (
        "nvidia-driver-cuda\t3\t580.178.04-1.el9\tx86_64\tNVIDIA cudatools@nvidia.com\n"
        "kmod-nvidia-open-dkms\t3\t580.178.04-1.el9\tx86_64\tNVIDIA x\n"
        "nvidia-container-toolkit\t0\t1.18-1\tx86_64\tNVIDIA x\n"
        "nvidia-gpu-firmware\t0\t20250812-1.el9\tnoarch\tRed Hat, Inc. Red Hat\n"
        "bash\t0\t5.1.8-9.el9\tx86_64\tRocky Enterprise Software Foundation\n"
        "garbage line\n"
    )
    found = _installed(tree, "dnf")
    assert [(package["name"], package["version"], package["architecture"], package["source"]) for package in found] == [
        ("kmod-nvidia-open-dkms", "3:580.178.04-1.el9", "x86_64", "nvidia"),
        ("nvidia-driver-cuda", "3:580.178.04-1.el9", "x86_64", "nvidia"),
        ("nvidia-gpu-firmware", "20250812-1.el9", "noarch", "distro"),
    ]
    assert tree.asked[0][:2] == ["rpm", "-qa"]


def _stanza(name, status, version="580.178.04-1", maintainer=NVIDIA):
    return f"Package: {name}\nStatus: {status}\nMaintainer: {maintainer}\nArchitecture: amd64\nVersion: {version}\n"


def _interrupted(tree):
    return packages.inventory(tree.host(), "apt", []).interrupted


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("install ok half-configured", "x is half-configured"),
        ("install ok unpacked", "x is unpacked"),
        ("install reinstreq half-installed", "x is half-installed and has to be installed again"),
        ("hold ok triggers-pending", "x is triggers-pending"),
        ("install ok triggers-awaited", "x is triggers-awaited"),
        ("install reinstreq installed", "x is installed and has to be installed again"),
    ],
)
def test_a_package_of_any_name_that_is_half_done_is_named(tree, status, words):
    tree.dpkg(("x", status, "1-1", DEBIAN), ("libcuda1", "install ok installed", "1-1", NVIDIA))
    assert _interrupted(tree) == [words]


def test_packages_that_are_installed_held_or_gone_are_not_half_done(tree):
    tree.dpkg(
        ("a", "install ok installed", "1-1", DEBIAN),
        ("b", "hold ok installed", "1-1", DEBIAN),
        ("c", "deinstall ok config-files", "1-1", DEBIAN),
        ("d", "purge ok not-installed", "1-1", DEBIAN),
    )
    assert _interrupted(tree) == []


def test_what_a_killed_dpkg_had_not_merged_yet_is_the_truth(tree):
    tree.dpkg(
        ("libcuda1", "install ok half-configured", "550.163.01-2", DEBIAN),
        ("nvidia-smi", "install ok installed", "550.163.01-2", DEBIAN),
    )
    tree.file("/var/lib/dpkg/updates/0000", _stanza("libcuda1", "install ok unpacked"))
    tree.file("/var/lib/dpkg/updates/0001", _stanza("libcuda1", "install ok installed"))
    tree.file("/var/lib/dpkg/updates/0002", _stanza("nvidia-open", "install reinstreq half-installed"))
    tree.file("/var/lib/dpkg/updates/0003", _stanza("nvidia-smi", "purge ok not-installed"))
    tree.file("/var/lib/dpkg/updates/tmp.i", "#padding\n" * 10)
    assert [(package["name"], package["version"], package["state"]) for package in _installed(tree)] == [
        ("libcuda1", "580.178.04-1", "installed"),
        ("nvidia-open", "580.178.04-1", "half-installed"),
    ]
    assert _interrupted(tree) == [
        "nvidia-open is half-installed and has to be installed again",
        "dpkg was interrupted: 4 changes in /var/lib/dpkg/updates wait to be merged",
    ]


def test_the_same_package_of_two_architectures_is_two_packages(tree):
    text = _stanza("libcuda1", "install ok installed") + "\n"
    tree.file("/var/lib/dpkg/status", text + text.replace("amd64", "i386"))
    assert [package["architecture"] for package in _installed(tree)] == ["amd64", "i386"]


@pytest.mark.parametrize(
    ("family", "files", "manager"),
    [
        ("debian", ["/usr/bin/apt-get", "/var/lib/dpkg/status"], "apt"),
        (
            "redhat",
            ["/usr/bin/apt-get", "/var/lib/dpkg/status", "/usr/bin/dnf"],
            "dnf",
        ),  # a tool for .deb files is there too
        ("debian", ["/usr/bin/apt-get", "/usr/bin/dnf"], "apt"),
        ("suse", ["/usr/bin/zypper"], None),
        ("arch", ["/usr/bin/dnf"], "dnf"),
        ("redhat", [], None),
    ],
)
def test_the_distribution_decides_which_package_manager_counts(tree, family, files, manager):
    for path in files:
        tree.file(path)
    assert packages.manager(tree.host(), family) == manager


def test_of_two_databases_the_package_managers_own_is_read(tree):
    tree.dpkg(("libcuda1", "install ok installed", "1-1", NVIDIA)).folder("/var/lib/rpm")
    tree.commands["rpm"] = "nvidia-driver\t3\t580.178.04-1.el9\tx86_64\tNVIDIA x\n"
    assert [package["name"] for package in _installed(tree, "dnf")] == ["nvidia-driver"]
    assert [package["name"] for package in _installed(tree, "apt")] == ["libcuda1"]


def test_our_own_pin_at_the_exact_version(tree):
    text = "Package: nvidia* libnvidia*\nPin: version 580.178.04-*\nPin-Priority: 1001\n"
    (pin,) = packages.pins(tree.file("/etc/apt/preferences.d/gpufleet-nvidia", text).host())
    assert pin == {
        "file": "/etc/apt/preferences.d/gpufleet-nvidia",
        "packages": "nvidia* libnvidia*",
        "version": "580.178.04-*",
        "pin": "version 580.178.04-*",
        "priority": 1001,
        "from_package": None,
    }


def test_a_host_without_a_package_manager_has_no_packages(tree):
    assert _installed(tree, None) == []
    assert tree.asked == []


def _package(name, version, source="nvidia", state="installed"):
    return {"name": name, "version": version, "source": source, "held": False, "state": state}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], {"version": None, "source": None, "flavor": None}),
        (
            [
                _package("libcuda1", "580.95.05-1"),
                _package("nvidia-kernel-open-dkms", "580.95.05-1"),
                _package("nvidia-settings", "570.1-1", "distro"),
                _package("nvidia-driver-pinning-580", "580-1"),
            ],
            {"version": "580.95.05", "source": "nvidia", "flavor": "open"},
        ),
        (
            [
                _package("libcuda1", "535.261.03-1~deb12u1", "distro"),
                _package("nvidia-kernel-dkms", "535.261.03-1", "distro"),
            ],
            {"version": "535.261.03", "source": "distro", "flavor": "proprietary"},
        ),
        (
            [
                _package("nvidia-driver-cuda-libs", "3:580.178.04-1.el9"),
                _package("kmod-nvidia-open-dkms", "3:580.178.04-1.el9"),
            ],
            {"version": "580.178.04", "source": "nvidia", "flavor": "open"},
        ),
        (
            [_package("libcuda1", "535.261.03-1", "distro", "config-files")],
            {"version": None, "source": None, "flavor": None},
        ),
    ],
)
def test_what_the_packages_say_of_the_installed_driver(found, expected):
    assert packages.summary(found) == expected


ONE_LINE = """\
# deb http://old.example.org x main
deb http://mirror.example.org/debian bookworm main contrib non-free-firmware # the usual
deb-src http://mirror.example.org/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] https://repo.example.org/cuda/debian12/x86_64/ /
deb cdrom:[Debian GNU/Linux 12 _Bookworm_]/ bookworm main
deb [ signed-by=/k.asc ] https://me:secret@repo.example.org/x stable main
nonsense
"""


def test_the_one_line_style():
    assert list(packages.one_line_sources(ONE_LINE)) == [
        {
            "uris": ["http://mirror.example.org/debian"],
            "suites": ["bookworm"],
            "components": ["main", "contrib", "non-free-firmware"],
            "signed_by": None,
        },
        {
            "uris": ["https://repo.example.org/cuda/debian12/x86_64/"],
            "suites": ["/"],
            "components": [],
            "signed_by": "/usr/share/keyrings/cuda-archive-keyring.gpg",
        },
        {
            "uris": ["cdrom:[Debian GNU/Linux 12 _Bookworm_]/"],
            "suites": ["bookworm"],
            "components": ["main"],
            "signed_by": None,
        },
        {"uris": ["https://repo.example.org/x"], "suites": ["stable"], "components": ["main"], "signed_by": "/k.asc"},
    ]


DEB822 = """\
# A comment
Types: deb deb-src
URIs: http://mirror.example.org/debian
 https://me:secret@second.example.org/debian
Suites: trixie trixie-updates
# inside
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://off.example.org/
Suites: /
Enabled: no

types: deb
uris: https://inline.example.org/
suites: /
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----


Types: deb-src
URIs: https://source.example.org/
Suites: trixie
"""


def test_the_deb822_style_with_folded_lines_and_inline_keys():
    assert list(packages.deb822_sources(DEB822)) == [
        {
            "uris": ["http://mirror.example.org/debian", "https://second.example.org/debian"],
            "suites": ["trixie", "trixie-updates"],
            "components": ["main", "contrib"],
            "signed_by": "/usr/share/keyrings/debian-archive-keyring.gpg",
        },
        {"uris": ["https://inline.example.org/"], "suites": ["/"], "components": [], "signed_by": "inline"},
    ]


def test_sources_come_from_the_files_that_apt_reads(tree):
    tree.file("/etc/apt/sources.list", ONE_LINE).file("/etc/apt/sources.list.d/debian.sources", DEB822)
    tree.file("/etc/apt/sources.list.d/old.list.save", ONE_LINE)
    found = packages.apt_sources(tree.host(), [])
    assert [source["file"] for source in found] == ["/etc/apt/sources.list"] * 4 + [
        "/etc/apt/sources.list.d/debian.sources"
    ] * 2


def test_a_source_file_that_cannot_be_read_is_named_and_the_others_count(tree):
    unknown = []
    tree.file("/etc/apt/sources.list", ONE_LINE).link("/etc/apt/sources.list.d/loop.list", "loop.list")
    assert len(packages.apt_sources(tree.host(), unknown)) == 4
    assert [entry["what"] for entry in unknown] == ["os.apt.sources[/etc/apt/sources.list.d/loop.list]"]


PIN = """\
Explanation: ours
Package: cuda-drivers* src:nvidia-open*:any
Pin: version 580.*
Pin-Priority: 1000

Package: *
Pin: release l=NVIDIA CUDA
Pin-Priority: 600

Package: *
Pin: release a=bookworm-backports
Pin-Priority: 100

Package: nvidia-driver
Pin: version 5*
Pin-Priority: much
"""


def test_pins_that_concern_the_driver_with_the_package_that_ships_them(tree):
    path = "/etc/apt/preferences.d/nvidia-driver-pin"
    tree.file(path, PIN).file("/var/lib/dpkg/info/nvidia-driver-pinning-580.list", f"/.\n/etc\n{path}\n")
    tree.file("/etc/apt/preferences.d/ignored.bak", PIN)
    assert packages.pins(tree.host()) == [
        {
            "file": path,
            "packages": "cuda-drivers* src:nvidia-open*:any",
            "version": "580.*",
            "pin": "version 580.*",
            "priority": 1000,
            "from_package": "nvidia-driver-pinning-580",
        },
        {
            "file": path,
            "packages": "*",
            "version": None,
            "pin": "release l=NVIDIA CUDA",
            "priority": 600,
            "from_package": "nvidia-driver-pinning-580",
        },
        {
            "file": path,
            "packages": "nvidia-driver",
            "version": "5*",
            "pin": "version 5*",
            "priority": None,
            "from_package": "nvidia-driver-pinning-580",
        },
    ]


def test_dnf_version_locks_count_as_pins(tree):
    tree.file("/etc/dnf/plugins/versionlock.list", "# nvidia\nnvidia-driver-3:580.178.04-1.el9.*\nkernel-5.14*\n")
    assert packages.pins(tree.host()) == [
        {
            "file": "/etc/dnf/plugins/versionlock.list",
            "packages": "nvidia-driver",
            "version": "3:580.178.04-1.el9",
            "pin": "nvidia-driver-3:580.178.04-1.el9.*",
            "priority": None,
            "from_package": None,
        }
    ]
