# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the stub packages of the driver hold: programs, units, configuration, maintainer scripts."""

from __future__ import annotations

from .debs import Package
from .native import compile_library

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
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
PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{version}"
AUTOINSTALL="yes"
SANDBOX_FLAVOR={flavor}
"""


def _every_kernel(version: str) -> str:
    """postinst of a DKMS package: build for every kernel whose modules are here, fail if one fails."""
    return f"""\
#!/bin/sh
[ "$1" = configure ] || exit 0
dkms add -m nvidia -v {version} || exit $?
status=0
for folder in /lib/modules/*; do
  kernel=${{folder##*/}}
  if [ ! -e "$folder/build" ]; then
    echo "It is likely that $kernel belongs to a chroot's host or has no headers: no module for it" >&2
    continue
  fi
  dkms install -m nvidia -v {version} -k "$kernel" || status=$?
done
exit $status
"""


def _leave(version: str) -> str:
    """prerm of a DKMS package."""
    return f"""\
#!/bin/sh
case "$1" in
  remove|upgrade|deconfigure) dkms remove -m nvidia -v {version} --all || true ;;
esac
"""


SERVICE_ON = """\
#!/bin/sh
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
  systemctl enable --quiet nvidia-persistenced.service || true
  systemctl restart nvidia-persistenced.service || true
fi
"""
SERVICE_OFF = """\
#!/bin/sh
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now --quiet nvidia-persistenced.service || true
fi
"""


def fill(package: Package, kind: str | None, version: str, cuda: int) -> None:
    """Put the stub content of this kind into a package."""

    def library(source: str, name: str) -> None:
        package.files[f"{LIBRARIES}/{name}.so.{version}"] = compile_library(source, f"{name}.so.1", version, cuda)
        package.links[f"{LIBRARIES}/{name}.so.1"] = f"{name}.so.{version}"
        package.triggers = "activate-noawait ldconfig\n"

    if kind == "nvidia_smi":
        package.programs["/usr/bin/nvidia-smi"] = NVIDIA_SMI.encode()
    elif kind in ("open_modules", "proprietary_modules"):
        flavor = kind.partition("_")[0]
        text = DKMS_CONF.format(version=version, flavor=flavor)
        package.files[f"/usr/src/nvidia-{version}/dkms.conf"] = text.encode()
        package.scripts |= {"preinst": ONLY_HERE, "postinst": _every_kernel(version), "prerm": _leave(version)}
    elif kind == "modprobe_configuration":
        package.files["/etc/modprobe.d/nvidia.conf"] = MODPROBE.encode()
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
        package.files["/usr/lib/systemd/system/nvidia-persistenced.service"] = UNIT.encode()
        package.scripts |= {"postinst": SERVICE_ON, "prerm": SERVICE_OFF}
    elif kind is not None:
        raise ValueError(f"nvidia_packages.yml names the content {kind!r}, which stubs.py does not know")
