"""The loaded driver, and who holds GPUs."""

from __future__ import annotations

import os
import pwd

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import proc
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Unreadable

OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder@U22-I3)  Tue Mar 10 2026
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)
"""
PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Thu Jul 17 01:05:27 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)
"""
AARCH64 = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95  Release Build  (x)  Tue Sep 23 2025\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OPEN, ("580.159.04", "open")),
        (PROPRIETARY, ("535.261.03", "proprietary")),
        (AARCH64, ("580.95", "open")),
        ("", (None, None)),
        ("NVRM version: garbage\n", (None, None)),
        ("\n\n" + OPEN, ("580.159.04", "open")),
    ],
)
def test_version_and_flavor_of_the_loaded_module(text, expected):
    assert proc.nvidia_version(text) == expected


@pytest.mark.parametrize(
    ("command", "devices", "kind"),
    [
        ("python3", {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0"}, "compute"),
        ("pt_main_thread", {"/dev/nvidia-uvm"}, "compute"),
        ("Xorg", {"/dev/nvidiactl", "/dev/nvidia-modeset"}, "graphics"),
        ("chrome", {"/dev/nvidiactl", "/dev/nvidia-uvm"}, "graphics"),
        ("gnome-shell", {"/dev/nvidia0"}, "graphics"),
        ("supertuxkart", {"/dev/nvidiactl", "/dev/nvidia-modeset"}, "graphics"),
        ("nvidia-persiste", {"/dev/nvidiactl", "/dev/nvidia0"}, "daemon"),
        ("nv-hostengine", {"/dev/nvidiactl", "/dev/nvidia-uvm"}, "daemon"),
        ("nvtop", {"/dev/nvidiactl", "/dev/nvidia0"}, "daemon"),
        ("python3", {"/dev/dxg"}, "compute"),
    ],
)
def test_kinds_of_processes(command, devices, kind):
    assert proc.kind_of(command, devices) == kind


def _processes(host, compute_pids=(), leave_out=()):
    return proc.gpu_processes(host, compute_pids, leave_out)


def test_processes_that_hold_a_gpu_are_found_by_their_open_files(tree):
    tree.process(1, "systemd", "/dev/null", "socket:[1]").process(2, "kthreadd")
    tree.process(812, "nvidia-persiste", "/dev/nvidiactl").process(4000, "python3", "/dev/nvidia0", "/dev/nvidia-uvm")
    tree.process(4001, "reader", "/home/me/dev/nvidia0.txt")
    found = _processes(tree.host())
    assert [(entry["pid"], entry["command"], entry["kind"]) for entry in found] == [
        (812, "nvidia-persiste", "daemon"),
        (4000, "python3", "compute"),
    ]
    assert found[0]["user"] == pwd.getpwuid(os.getuid()).pw_name


def test_a_device_file_that_was_replaced_still_counts(tree):
    assert _processes(tree.process(7, "x", "/dev/nvidia-uvm (deleted)").host())[0]["kind"] == "compute"


def test_a_process_that_nvml_names_counts_when_it_is_here(tree):
    found = _processes(tree.process(77, "train", "/dev/null").host(), [77, 99999])
    assert [(entry["pid"], entry["kind"]) for entry in found] == [(77, "compute")]


def test_the_probes_own_children_are_left_out(tree):
    tree.process(10, "python3", "/dev/nvidiactl").process(11, "python3", "/dev/nvidiactl")
    assert [entry["pid"] for entry in _processes(tree.host(), leave_out=[10])] == [11]


def test_without_root_the_answer_is_unknown_and_not_partial(tree):
    with pytest.raises(Unreadable, match="only root sees"):
        proc.holders(tree.process(10, "python3", "/dev/nvidia0").host(uid=1000), [])


def test_a_host_with_too_many_open_files_is_given_up(tree, monkeypatch):
    monkeypatch.setattr(proc, "_OPEN_FILES", 5)
    with pytest.raises(Unreadable, match="more than 5 open files"):
        proc.holders(tree.process(10, "x", *["/dev/null"] * 4).process(11, "y", *["/dev/null"] * 4).host(), [])


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("group", "container"),
    [
        (f"0::/system.slice/docker-{HEX}.scope\n", "0123456789ab"),
        (f"12:devices:/docker/{HEX}\n11:cpu:/\n", "0123456789ab"),
        (f"0::/machine.slice/libpod-{HEX}.scope/container\n", "0123456789ab"),
        (f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{HEX}.scope\n", "0123456789ab"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{HEX}.scope\n", "0123456789ab"),
        ("0::/lxc.payload.build/init.scope\n", "build"),
        ("0::/machine.slice/systemd-nspawn@trixie.service/payload\n", "trixie"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
        ("0::/system.slice/docker.service\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_the_container_that_a_process_runs_in(tree, group, container):
    assert proc.container_of(tree.file("/proc/77/cgroup", group).host(), 77) == container


def test_on_a_host_that_is_a_container_itself_only_containers_inside_count(tree):
    ours, inner = f"0::/docker/{HEX}\n", f"0::/docker/{HEX}/docker/{HEX[::-1]}\n"
    tree.process(7, "python", "/dev/nvidia-uvm").process(8, "python", "/dev/nvidia-uvm")
    tree.file("/proc/1/cgroup", ours).file("/proc/7/cgroup", ours).file("/proc/8/cgroup", inner)
    assert [entry["container"] for entry in proc.gpu_processes(tree.host(), [], [])] == [None, "fedcba987654"]
