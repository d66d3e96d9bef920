# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stub packages of the driver hold: programs, units, configuration, maintainer scripts."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .debs import Package
from .native import compile_library
from .settings import SANDBOX

SIMULATOR = "/usr/lib/gpufleet-sandbox/simulator.py"
NOTE = "SIMULATED by the gpufleet sandbox"

NVIDIA_SMI = f'''\
#!/usr/bin/python3 -I
"""nvidia-smi, {NOTE}: -L, --query-gpu=... --format=csv, and a short table."""

import ctypes
import sys

CODES = {{9: "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest"
             " NVIDIA driver is installed and running.",
         18: "Failed to initialize NVML: Driver/library version mismatch"}}


def nvml():
    for name in ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    print("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.")
    sys.exit(12)


def text(function, *before):
    buffer = ctypes.create_string_buffer(96)
    function(*before, buffer, ctypes.c_uint(96))
    return buffer.value.decode()


library = nvml()
code = library.nvmlInit_v2()
if code:
    print(CODES.get(code, f"NVML error {{code}}"))
    sys.exit(code)
number = ctypes.c_uint()
library.nvmlDeviceGetCount_v2(ctypes.byref(number))
gpus = []
for index in range(number.value):
    device = ctypes.c_void_p()
    library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device))
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
    memory = (ctypes.c_ulonglong * 3)()
    library.nvmlDeviceGetMemoryInfo(device, memory)
    pci = ctypes.create_string_buffer(68)
    library.nvmlDeviceGetPciInfo_v3(device, pci)
    gpus.append({{
        "index": str(index), "name": text(library.nvmlDeviceGetName, device),
        "uuid": text(library.nvmlDeviceGetUUID, device),
        "driver_version": text(library.nvmlSystemGetDriverVersion), "compute_cap": f"{{major.value}}.{{minor.value}}",
        "memory.total": f"{{memory[0] >> 20}} MiB", "pci.bus_id": pci.raw[36:68].split(b"\\0")[0].decode(),
        "persistence_mode": "Disabled", "count": str(number.value),
    }})
query = next((word.partition("=")[2] for word in sys.argv[1:] if word.startswith("--query-gpu=")), None)
style = next((word.partition("=")[2] for word in sys.argv[1:] if word.startswith("--format=")), "csv").split(",")
if "-L" in sys.argv:
    for gpu in gpus:
        print(f"GPU {{gpu['index']}}: {{gpu['name']}} (UUID: {{gpu['uuid']}})")
elif query:
    names = [name.strip() for name in query.split(",")]
    for name in names:
        if gpus and name not in gpus[0]:
            print(f'Field "{{name}}" is not a valid field to query.')
            sys.exit(2)
    if "noheader" not in style:
        print(", ".join(names))
    for gpu in gpus:
        values = [gpu[name] for name in names]
        print(", ".join(value.removesuffix(" MiB") if "nounits" in style else value for value in values))
else:
    print(f"NVIDIA-SMI ({NOTE})    Driver Version: {{gpus[0]['driver_version'] if gpus else '-'}}")
    for gpu in gpus:
        print(f"  {{gpu['index']}}  {{gpu['name']}}  {{gpu['pci.bus_id']}}  {{gpu['memory.total']}}")
'''

DAEMON = f"""\
#!/usr/bin/python3 -I
# nvidia-persistenced, {NOTE}: does nothing for as long as it runs, but only where a driver is loaded.
import ctypes, os, signal, sys
if not os.path.exists("/proc/driver/nvidia/version"):
    sys.exit("nvidia-persistenced failed to initialize. Check syslog for more details.")
ctypes.CDLL(None).prctl(15, b"nvidia-persistenced", 0, 0, 0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    signal.pause()
"""

UNIT = f"""\
[Unit]
Description=NVIDIA Persistence Daemon ({NOTE})
Wants=syslog.target

[Service]
ExecStart=/usr/bin/nvidia-persistenced --verbose
Restart=no

[Install]
WantedBy=multi-user.target
"""

MODPROBE = f"""\
# {NOTE}
blacklist nouveau
options nvidia NVreg_PreserveVideoMemoryAllocations=1
"""

# Real hosts must never get these packages, whatever repository they end up in.
ONLY_HERE = f"""\
#!/bin/sh
if [ ! -e {SIMULATOR} ]; then
  echo "This package is {NOTE}: it must not be installed anywhere else." >&2
  exit 1
fi
"""

DKMS = f"""\
#!/bin/sh
exec /usr/bin/python3 -I {SIMULATOR} dkms "$@"
"""

DKMS_CONF = """\
# SIMULATED by the gpufleet sandbox: nothing is compiled.
PACKAGE_NAME="{name}"
PACKAGE_VERSION="{version}"
AUTOINSTALL="yes"
SANDBOX_FLAVOR={flavor}
SANDBOX_FAILS_ON="{fails_on}"
"""


@dataclass(frozen=True)
class Layout:
    """Where a family of systems puts things, and how its packages' scripts are called."""

    libraries: str
    modprobe: str
    """The file with the driver's module options."""
    scripts: dict[str, str]
    """What a script is for -> what this package format calls it."""
    starts_persistenced: bool = True
    """Whether the daemon's unit has an [Install] section; Ubuntu's is started by udev."""


_DEB = {"before": "preinst", "after": "postinst", "removing": "prerm", "removed": "postrm"}
_RPM = {"before": "pre", "after": "post", "removing": "preun", "removed": "postun"}
DEBIAN = Layout("/usr/lib/x86_64-linux-gnu", "/etc/modprobe.d/nvidia.conf", _DEB)
UBUNTU = Layout(
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/modprobe.d/nvidia-graphics-drivers.conf", _DEB, starts_persistenced=False
)
EL = Layout("/usr/lib64", "/usr/lib/modprobe.d/nvidia.conf", _RPM)


DEBIAN_NAMES = {"open": "nvidia-current-open", "proprietary": "nvidia-current"}


@functools.cache
def simulator() -> ModuleType:
    """Return the simulator as a module: it knows what a kernel module looks like."""
    spec = importlib.util.spec_from_file_location("simulator", SANDBOX / "rootfs" / SIMULATOR.lstrip("/"))
    if spec is None or spec.loader is None:
        raise ImportError(SIMULATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _play(command: str) -> str:
    return f"/usr/bin/python3 -I {SIMULATOR} {command}"


def _build_modules(layout: Layout, name: str, version: str) -> dict[str, str]:
    """Scripts of a package that brings DKMS modules."""
    if layout is EL:
        # As published: for the running kernel only, and a failure is no failure of the transaction.
        build = f"dkms add -m {name} -v {version} -q --rpm_safe_upgrade || :\n"
        build += f"dkms build -m {name} -v {version} -q || :\ndkms install -m {name} -v {version} -q --force || :\n"
        return {"post": build, "preun": f"dkms remove -m {name} -v {version} -q --all --rpm_safe_upgrade || :\n"}
    return {
        "postinst": f"""\
#!/bin/sh
[ "$1" = configure ] || exit 0
dkms add -m {name} -v {version} || exit $?
status=0
for folder in /lib/modules/*; do
  kernel=${{folder##*/}}
  if [ ! -e "$folder/build" ]; then
    echo "It is likely that $kernel belongs to a chroot's host or has no headers: no module for it" >&2
    continue
  fi
  dkms install -m {name} -v {version} -k "$kernel" || status=$?
done
exit $status
""",
        "prerm": f"""\
#!/bin/sh
case "$1" in
  remove|upgrade|deconfigure) dkms remove -m {name} -v {version} --all || true ;;
esac
""",
    }


def _service(layout: Layout) -> dict[str, str]:
    """Scripts of the package with the persistence daemon."""
    unit = "nvidia-persistenced.service"
    if layout is EL:
        on = f"systemctl daemon-reload || :\nsystemctl preset --quiet {unit} || :\n"
        off = f'if [ "$1" = 0 ]; then systemctl disable --now --quiet {unit} || :; fi\n'
        return {"post": f"if [ -d /run/systemd/system ]; then\n{on}fi\n", "preun": off}
    # Ubuntu's unit is not enabled: udev starts it when a GPU appears, which the simulator plays.
    begin = (
        f"systemctl enable --quiet {unit} || true\n  systemctl restart"
        if layout.starts_persistenced
        else "systemctl try-restart"
    )
    return {
        "postinst": f"""\
#!/bin/sh
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
  {begin} {unit} || true
fi
""",
        "prerm": f"""\
#!/bin/sh
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now --quiet {unit} || systemctl stop {unit} || true
fi
""",
    }


def _choose_configuration(path: str) -> dict[str, str]:
    """Scripts of Debian's packages with modprobe's words, of which both flavors may be there: here the newest one is used."""
    link = "/etc/modprobe.d/nvidia.conf"
    return {
        "postinst": f'#!/bin/sh\n[ "$1" != configure ] || ln -sfn {path} {link}\n',
        "postrm": f'#!/bin/sh\n[ "$(readlink {link})" != {path} ] || rm {link}\n',
    }


def _kernel(layout: Layout, what: str, release: str) -> dict[str, str]:
    """Scripts of a package with a kernel or its headers: the files come from the simulator, as for the first kernel."""
    add, remove = f"{_play(f'kernel add-{what}')} {release}\n", f"{_play(f'kernel remove-{what}')} {release} || :\n"
    if layout is EL:
        return {"post": add, "postun": remove}
    return {
        "postinst": f'#!/bin/sh\nset -e\n[ "$1" = configure ] || exit 0\n{add}',
        "postrm": f'#!/bin/sh\n[ "$1" = remove ] || exit 0\n{remove}',
    }


EPEL = """\
[epel]
name=Extra Packages for Enterprise Linux {major} (SIMULATED by the gpufleet sandbox)
baseurl=http://$sandbox/el/{major}/EPEL/
enabled=1
gpgcheck=1
gpgkey=http://$sandbox/nvidia/repository.asc
"""


def fill(package: Package, kinds: list[str], layout: Layout, words: dict[str, Any], cuda: int) -> None:
    """Put the stub content of these kinds into a package. Whatever it is, it installs on sandbox hosts only."""
    version = words["v"]
    before = ONLY_HERE if layout is not EL else ONLY_HERE.partition("\n")[2]
    package.scripts[layout.scripts["before"]] = before

    def dkms_source(name: str, flavor: str) -> None:
        text = DKMS_CONF.format(name=name, version=version, flavor=flavor, fails_on=words.get("fails_on", ""))
        package.files[f"/usr/src/{name}-{version}/dkms.conf"] = text.encode()

    def library(source: str, name: str) -> None:
        content = compile_library(source, f"{name}.so.1", version, cuda)
        package.files[f"{layout.libraries}/{name}.so.{version}"] = content
        package.links[f"{layout.libraries}/{name}.so.1"] = f"{name}.so.{version}"
        if layout is EL:
            package.scripts |= {"post": "/sbin/ldconfig\n", "postun": "/sbin/ldconfig\n"}
        else:
            package.triggers = "activate-noawait ldconfig\n"

    for kind in kinds:
        if kind == "nvidia_smi":
            package.programs["/usr/bin/nvidia-smi"] = NVIDIA_SMI.encode()
        elif kind in ("open_modules", "proprietary_modules", "open_source", "proprietary_source"):
            flavor, _, part = kind.partition("_")
            dkms_source("nvidia", flavor)
            if part == "modules":
                package.scripts |= _build_modules(layout, "nvidia", version)
        elif kind in ("debian_open_modules", "debian_proprietary_modules"):
            flavor = kind.split("_")[1]
            dkms_source(DEBIAN_NAMES[flavor], flavor)
            package.scripts |= _build_modules(layout, DEBIAN_NAMES[flavor], version)
        elif kind in ("debian_open_configuration", "debian_proprietary_configuration"):
            name = DEBIAN_NAMES[kind.split("_")[1]]
            aliases = "".join(f"alias nvidia{part} {name}{part}\n" for part in simulator().DKMS_MODULES)
            package.files[f"/etc/nvidia/{name}/nvidia-modprobe.conf"] = f"{MODPROBE}{aliases}".encode()
            package.scripts |= _choose_configuration(f"/etc/nvidia/{name}/nvidia-modprobe.conf")
        elif kind in ("prebuilt_open_modules", "prebuilt_proprietary_modules"):
            flavor = kind.split("_")[1]
            folder = f"/lib/modules/{words['k']}/kernel/nvidia-{words['branch']}{'-open' * (flavor == 'open')}"
            for name in (f"nvidia{part}" for part in simulator().DKMS_MODULES):
                fields = simulator().modinfo_fields(name, words["k"], flavor, version)
                module = simulator().elf_module(fields)
                package.files[f"{folder}/{name}.ko"] = simulator().signed(module, simulator().UBUNTU_SIGNER)
            index = f"#!/bin/sh\n[ ! -d /lib/modules/{words['k']}/kernel ] || depmod {words['k']}\n"
            package.scripts |= {"postinst": index, "postrm": index}
        elif kind == "dkms_hook":
            package.scripts |= _build_modules(layout, "nvidia", version)
        elif kind == "modprobe_configuration":
            package.files[layout.modprobe] = MODPROBE.encode()
            if layout is UBUNTU:
                package.programs["/usr/sbin/ub-device-create"] = DKMS.replace(" dkms ", " ub-device-create ").encode()
        elif kind == "libcuda":
            library("cuda.c", "libcuda")
        elif kind == "libnvidia_ml":
            library("nvml.c", "libnvidia-ml")
        elif kind == "libnvidia_ptxjitcompiler":
            library("empty.c", "libnvidia-ptxjitcompiler")
        elif kind == "firmware":
            for name in ("gsp_ga10x.bin", "gsp_tu10x.bin"):
                package.files[f"/usr/lib/firmware/nvidia/{version}/{name}"] = f"{NOTE}\n".encode()
        elif kind == "persistence_daemon":
            package.programs["/usr/bin/nvidia-persistenced"] = DAEMON.encode()
            folder, name, unit = "/usr/lib/systemd/system", "nvidia-persistenced.service", UNIT
            if not layout.starts_persistenced:
                unit = UNIT.partition("\n[Install]")[0].replace(
                    "Wants=", "ConditionPathExists=/proc/driver/nvidia/version\nWants="
                )
                package.links[f"{folder}/multi-user.target.wants/{name}"] = f"../{name}"
            package.files[f"{folder}/{name}"] = unit.encode()
            package.scripts |= _service(layout)
        elif kind == "dkms":
            package.programs["/usr/sbin/dkms"] = DKMS.encode()
        elif kind == "nvidia_modprobe":
            package.programs["/usr/bin/nvidia-modprobe"] = DKMS.replace(" dkms ", " nvidia-modprobe ").encode()
        elif kind in ("kernel", "kernel_headers"):
            release = f"{words['k']}.x86_64" if layout is EL else words["k"]
            package.scripts |= _kernel(layout, kind.removeprefix("kernel_"), release)
        elif kind == "pin_file":
            package.files["/etc/apt/preferences.d/nvidia-driver-pin"] = pin_file(words["pattern"]).encode()
        elif kind == "epel":
            text = EPEL.format(major=words["tag"].removeprefix("el"))
            package.files["/etc/yum.repos.d/epel.repo"] = text.encode()
        else:
            raise ValueError(f"a file in packages/ names the content {kind!r}, which stubs.py does not know")


def pin_file(pattern: str) -> str:
    """/etc/apt/preferences.d/nvidia-driver-pin of a pinning package."""
    groups = (
        "cuda-drivers* src:nvidia-open*:any",
        "nvidia-* libnvidia-* libcuda1 libcudadebugger1 libxnvctrl0 firmware-nvidia-gsp xserver-xorg-video-nvidia*",
    )
    return "\n".join(f"Package: {group}\nPin: version {pattern}\nPin-Priority: 1000\n" for group in groups)
