"""Debian 13's own driver on the kernel that the archive has today: it builds and is proven, or it is refused honestly.

On 2026-11-22 it was refused: nvidia-open-kernel-dkms 550.163.01-2 does not compile on 6.12.107 and 6.12.117. Takes some minutes: a real
compiler builds real sources.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import debian13_host

pytestmark = [
    pytest.mark.skipif(bool(debian13_host.lacking()), reason=debian13_host.lacking()),
    pytest.mark.timeout(1800),
]

DRIVER = "nvidia-open-kernel-dkms"
HEAD = """
from pathlib import Path
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver import commands, initramfs, kernel_modules, secure_boot
from ansible_collections.gpufleet.workstation.plugins.module_utils._driver.model import Package, PackageFile
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
"""
TRIAL = (
    HEAD
    + """
files = [PackageFile(Package(values["name"], values["version"]), Path(values["path"]), "")]
failures = kernel_modules.trial_build(commands.run, files, [values["kernel"]], Path("/var/lib/gpufleet/trial"), 900)
print(json.dumps({"failures": [vars(failure) for failure in failures], "message": kernel_modules.explain(failures)}))
"""
)
BUILD = (
    HEAD
    + """
failures = kernel_modules.build(commands.run, [values["kernel"]], values["version"], 900)
lacking = kernel_modules.lacking(Host(), [values["kernel"]], values["version"], "open", values["secure_boot"])
proven = [vars(module) for module in kernel_modules.proven(Host(), [values["kernel"]])]
print(json.dumps({"message": kernel_modules.explain(failures), "lacking": lacking, "proven": proven}))
"""
)

PROVEN = (
    HEAD
    + """
print(json.dumps(kernel_modules.lacking(Host(), [values["kernel"]], values["version"], "open")))
"""
)
STAGE = (
    HEAD
    + """
staged = secure_boot.stage(Host(), lambda argv, limit, environment=None, text="": commands.run(
    argv, limit, {**(environment or {}), "EFIVARFS_PATH": values["variables"]}, text), "correct horse")
print(json.dumps(vars(staged) | {"key": vars(staged.key)}))
"""
)


@pytest.fixture(scope="module")
def stand_in(host) -> str:
    """A package with three modules named as the driver's are, which a real compiler builds in seconds."""
    names = ["nvidia", "nvidia-modeset", "nvidia-uvm"]
    conf = [
        'PACKAGE_NAME="nvidia"',
        'PACKAGE_VERSION="580.99.99"',
        'MAKE[0]="make -C $kernel_source_dir M=$dkms_tree/nvidia/580.99.99/build modules"',
    ]
    for number, name in enumerate(names):
        conf += [f'BUILT_MODULE_NAME[{number}]="{name}"', f'DEST_MODULE_LOCATION[{number}]="/updates/dkms"']
    source = ["#include <linux/module.h>", 'MODULE_LICENSE("Dual MIT/GPL");', 'MODULE_VERSION("580.99.99");']
    source += ['MODULE_DESCRIPTION("stand-in");']
    control = ["Package: nvidia-kernel-open-dkms", "Version: 580.99.99-1", "Architecture: all"]
    control += ["Maintainer: stand-in <root@localhost>", "Description: stand-in"]
    folder = "/root/stand-in/usr/src/nvidia-580.99.99"
    files = {f"{folder}/dkms.conf": conf, f"{folder}/Makefile": [f"obj-m += {name}.o" for name in names]}
    files |= {f"{folder}/{name}.c": source for name in names}
    for path, lines in {**files, "/root/stand-in/DEBIAN/control": control}.items():
        host.write(path, "\n".join([*lines, ""]).encode())
    host.run("dpkg-deb --build /root/stand-in /root/stand-in.deb")
    return "/root/stand-in.deb"


NOUVEAU = (
    HEAD
    + """
print(json.dumps(initramfs.loads_nouveau(Host(), commands.run, values["kernel"])))
"""
)


@pytest.fixture(scope="module")
def host() -> Iterator[debian13_host.Archive]:
    """The host, made once."""
    with debian13_host.archive() as made:
        yield made


def test_debians_own_driver_ends_in_a_proven_module_or_an_honest_refusal(host):
    name = DRIVER
    host.run(f"mkdir -p /root/fetched && cd /root/fetched && apt-get -qq download {name}")
    path = host.run("ls /root/fetched/*.deb").strip()
    version = host.run(f"dpkg-deb --field {path} Version").strip()
    outcome = host.python(TRIAL, name=name, version=version, path=path, kernel=host.kernel)
    print(f"\n{name} {version} on {host.kernel}: {outcome['message'] or 'it builds'}")

    assert host.audit() == ""
    assert host.modules() == []  # a trial installs nothing
    assert host.run("ls /var/lib/dkms /var/lib/gpufleet").split().count("trial") == 0
    if outcome["failures"]:
        (failure,) = outcome["failures"]
        log = host.run(f"cat {failure['log']}")
        for line in failure["compiler"]:
            file, number, words = line.split(":", 2)
            assert any(f"/{file}:{number}:" in said and words.strip() in said for said in log.splitlines())
        for part in (host.kernel, version.partition("-")[0], failure["compiler"][0], failure["log"], "Ways out"):
            assert part in outcome["message"]
    else:
        upstream = version.partition("-")[0]
        host.run(f"apt-get -qq --yes --no-install-recommends install {name}")
        built = host.python(BUILD, kernel=host.kernel, version=upstream, secure_boot=False)
        assert (built["message"], built["lacking"]) == ("", {})
        assert host.audit() == ""
        host.run(f"apt-get -qq --yes purge {name}")


def test_the_role_repairs_a_users_attempt_and_ends_as_honestly(host):
    version = host.run(f"apt-cache policy {DRIVER}").partition("Candidate: ")[2].split()[0]
    # What somebody did by hand before us. Where it does not compile, apt is of no use any more.
    host.run(f"apt-get -qq --yes --no-install-recommends install {DRIVER} > /root/by-hand.log 2>&1 || true")
    status, said = host.play("--tags", "driver")

    assert host.audit() == "", said[-3000:]
    host.run("apt-get check")
    if host.modules():
        assert host.python(PROVEN, kernel=host.kernel, version=version.partition("-")[0]) == {}
    else:
        assert status != 0
        found = re.search(r"The compiler says: (\S+):(\d+): (error: .+?)\. The whole log is (\S+\.log)\.", said)
        assert found, said[-3000:]
        print("\n" + said[max(0, found.start() - 400) : found.end() + 400])
        assert f"/{found[1]}:{found[2]}:" in host.run(f'grep --fixed-strings "{found[3]}" {found[4]}')
        for part in (host.kernel, version.partition("-")[0], "Ways out"):
            assert part in said
        # What the repair kept of the attempt counts as what serves; without that, nothing is left of ours.
        assert "was not touched" in said or "were removed again" in said


def test_sources_that_compile_are_tried_without_a_trace_then_built_signed_and_proven(host, stand_in):
    made = {
        "name": "nvidia-kernel-open-dkms",
        "version": "580.99.99-1",
        "path": stand_in,
        "kernel": host.kernel,
    }
    host.run("rm -f /var/lib/dkms/mok.key /var/lib/dkms/mok.pub")  # DKMS made them in the attempt by hand
    assert host.python(TRIAL, **made) == {"failures": [], "message": ""}
    assert host.modules() == []
    assert host.run("ls /var/lib/dkms").split() == []  # no key either
    host.run(f"dpkg --install {stand_in}")
    built = host.python(BUILD, kernel=host.kernel, version="580.99.99", secure_boot=True)
    assert (built["message"], built["lacking"]) == ("", {})
    assert [(module["release"], module["version"], module["flavor"]) for module in built["proven"]] == [
        (host.kernel, "580.99.99", "open")
    ]
    assert host.run(f"modinfo --field vermagic -k {host.kernel} nvidia").startswith(f"{host.kernel} ")
    assert "DKMS" in host.run(f"modinfo --field signer -k {host.kernel} nvidia-uvm")

    # What an interrupted run leaves: DKMS takes the module for installed, and its file is gone.
    host.run(f"rm /lib/modules/{host.kernel}/updates/dkms/nvidia.ko*")
    again = host.python(BUILD, kernel=host.kernel, version="580.99.99", secure_boot=True)
    assert (again["message"], again["lacking"]) == ("", {})


def test_a_kernel_without_headers_is_named_with_the_package_that_is_missing(host, stand_in):
    release = "6.1.0-0-amd64"
    made = {
        "name": "nvidia-kernel-open-dkms",
        "version": "580.99.99-1",
        "path": stand_in,
        "kernel": release,
    }
    (failure,) = host.python(TRIAL, **made)["failures"]
    assert failure["why"] == "the kernel's headers are not installed"
    assert f"linux-headers-{release}" in failure["remedy"]


def test_the_key_is_staged_with_debians_mokutil_in_simulated_firmware(host):
    folder, variable = "/root/efivars/", "8be4df61-93ca-11d2-aa0d-00e098032b8c"
    host.run(f"mkdir {folder} && cd {folder} && printf '\\006\\000\\000\\000\\001' > SecureBoot-{variable}"
             f" && printf '\\006\\000\\000\\000\\000' > SetupMode-{variable}")  # fmt: skip
    staged = host.python(STAGE, variables=folder)
    assert (staged["state"], staged["changed"]) == ("pending", True)
    assert staged["key"]["certificate"] == "/var/lib/dkms/mok.pub"
    assert "already in the enrollment request" in staged["text"]
    assert [name for name in host.run(f"ls {folder}").split() if name.startswith("Mok")] != []
    assert host.python(STAGE, variables=folder)["changed"] is False


def test_a_real_image_loads_nouveau_until_it_holds_the_block_list(host):
    image = f"/boot/initrd.img-{host.kernel}"
    make = f"mkinitramfs -o {image} {host.kernel} 2>/root/mkinitramfs.log"
    host.run("cp -a /etc/initramfs-tools /root/initramfs-tools")
    host.run(
        "sed -i 's/^MODULES=.*/MODULES=list/' /etc/initramfs-tools/initramfs.conf && echo nouveau >> /etc/initramfs-tools/modules"
    )
    try:
        host.run(make)
        assert host.python(NOUVEAU, kernel=host.kernel) is True
        host.write("/etc/modprobe.d/gpufleet-nouveau.conf", b"blacklist nouveau\nblacklist nova_core\n")
        assert host.python(NOUVEAU, kernel=host.kernel) is True  # on the host, and not yet in the image
        host.run(make)
        assert host.python(NOUVEAU, kernel=host.kernel) is False
    finally:
        host.run(
            "rm -rf /etc/initramfs-tools /etc/modprobe.d/gpufleet-nouveau.conf && mv /root/initramfs-tools /etc/initramfs-tools"
        )
        host.run(f"update-initramfs -u -k {host.kernel}")
