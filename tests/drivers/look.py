# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a host: prints as JSON what its own package manager, modinfo, systemctl and files say. Nothing of the collection takes part."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import subprocess

ENVIRONMENT = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
FOLDERS = (
    "/etc",
    "/usr/src",
    "/var/lib/gpufleet",
    "/var/lib/dkms",
    "/usr/share/keyrings",
    "/boot",
    "/usr/local",
    "/root",
)
# What a working system writes by itself, and what only counts where it is.
RESTLESS = re.compile(
    r"/etc/(gpufleet-sandbox|mtab|resolv\.conf|hosts|ld\.so\.cache|machine-id|\.updated|hostname|alternatives/)"
    r"|\.pyc$|/boot/initr|/etc/ssl|/root/\.|-$|/etc/lvm"
)


def run(*argv: str) -> tuple[int, str]:
    """A command's status and what it says; 127 where it is not there."""
    if not shutil.which(argv[0]):
        return 127, ""
    done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, check=False)
    return done.returncode, done.stdout + (done.stderr if done.returncode else "")


def read(path: str) -> str:
    """A file's text; nothing where it is not there."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def apt() -> dict:
    """dpkg's and apt's word."""
    packages = {}
    fields = "${db:Status-Abbrev}\t${binary:Package}\t${Version}\t${Source}\n"
    for line in run("dpkg-query", "-W", "-f", fields)[1].splitlines():
        state, name, version, _source = line.split("\t")
        packages[name.partition(":")[0]] = {"version": version, "state": state.strip()}
    broken = run("apt-get", "-qq", "check")
    return {
        "packages": {name: facts for name, facts in packages.items() if facts["state"] != "un"},
        "problems": [
            text for text in (run("dpkg", "--audit")[1].strip(), broken[1].strip() if broken[0] else "") if text
        ],
        "holds": sorted(run("apt-mark", "showhold")[1].split()),
    }


def rpm() -> dict:
    """rpm's and dnf's word."""
    packages: dict = {}
    problems = []
    for line in run("rpm", "-qa", "--qf", "%{NAME}\t%{EVR}\t%{ARCH}\n")[1].splitlines():
        name, version, architecture = line.split("\t")
        many = name.startswith(("kernel", "gpg-pubkey"))
        key = f"{name}-{version}" if many else name
        if key in packages and architecture != "i686":
            problems.append(f"{name} is installed as {packages[key]['version']} and as {version}")
        packages[key] = {"version": version, "state": "ii"}
    status, said = run("rpm", "-Va", "--nofiles", "--nodigest", "--nosignature")
    if status:
        problems.append(said.strip())
    lock = read("/etc/dnf/plugins/versionlock.list")
    lines = [line.strip() for line in lock.splitlines() if line.strip() and not line.startswith("#")]
    return {"packages": packages, "problems": problems, "holds": sorted(lines)}


def modules() -> dict:
    """The nvidia module file of every kernel that has a folder."""
    found: dict = {}
    for kernel in sorted(os.listdir("/lib/modules")) if os.path.isdir("/lib/modules") else []:
        paths = [
            path
            for path in glob.glob(f"/lib/modules/{kernel}/**/nvidia*.ko*", recursive=True)
            if re.search(r"/nvidia(-current)?(-open)?\.ko(\.\w+)?$", path)
        ]
        found[kernel] = [
            {field: run("modinfo", "-F", field, path)[1].strip() for field in ("version", "license", "vermagic")}
            for path in paths
        ]
    return found


def loaded() -> dict:
    """What /proc and /sys say."""
    text = read("/proc/driver/nvidia/version")
    return {
        "version": read("/sys/module/nvidia/version").strip(),
        "flavor": "open" if "Open Kernel Module" in text else "proprietary" if text else "",
        "answers": text.splitlines()[0] if text else "",
        "nouveau": os.path.isdir("/sys/module/nouveau"),
        "uvm": os.path.isdir("/sys/module/nvidia_uvm"),
        "nodes": sorted(glob.glob("/dev/nvidia*")),
        "boot_id": read("/proc/sys/kernel/random/boot_id").strip(),
    }


def files() -> dict:
    """Path -> a hash of the content, of everything that a driver's change could leave behind."""
    found = {}
    for folder in FOLDERS:
        for base, _folders, names in os.walk(folder):
            for name in names:
                path = os.path.join(base, name)
                if RESTLESS.search(path):
                    continue
                if os.path.islink(path):
                    found[path] = f"-> {os.readlink(path)}"
                elif os.path.isfile(path):
                    with open(path, "rb") as file:
                        found[path] = hashlib.sha256(file.read()).hexdigest()[:16]
    for path in glob.glob("/lib/modules/**/nvidia*.ko*", recursive=True):
        found[path] = "module"
    return found


def main() -> None:
    """Look everywhere and print it."""
    manager = rpm() if shutil.which("rpm") and os.path.isdir("/etc/yum.repos.d") else apt()
    units = {
        word: run("systemctl", f"is-{word}", "nvidia-persistenced.service")[1].strip() for word in ("enabled", "active")
    }
    initramfs = {}
    for path in glob.glob("/boot/initr*"):
        text = read(path)
        initramfs[path] = {"nouveau_blocked": bool(re.search(r"\"blocked\": \[[^]]*\"nouveau\"", text))}
    print(
        json.dumps(
            {
                **manager,
                "modules": modules(),
                "boots": sorted(path.rpartition("vmlinuz-")[2] for path in glob.glob("/boot/vmlinuz-*")),
                "running": os.uname().release,
                "loaded": loaded(),
                "persistence": units,
                "initramfs": initramfs,
                "files": files(),
                "journal": json.loads(read("/var/lib/gpufleet/driver.json") or "null"),
            }
        )
    )


main()
