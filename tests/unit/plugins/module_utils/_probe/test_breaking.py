# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What harms CUDA programs is found wherever everybody gets it from, and nothing else is."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat import breaking as rows
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import breaking


def found(tree, path, text):
    unknown = []
    result = breaking.system_wide(tree.file(path, text).host(), unknown)
    assert unknown == []
    assert {row["where"] for row in result} <= {path}
    return {row["name"]: row["value"] for row in result}


SHELL = "export CUDA_LAUNCH_BLOCKING=1\n"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/environment", "CUDA_LAUNCH_BLOCKING=1\n"),
        ("/etc/environment", 'CUDA_LAUNCH_BLOCKING="1"\n'),
        ("/etc/security/pam_env.conf", "# c\nCUDA_LAUNCH_BLOCKING DEFAULT=1\n"),
        ("/etc/security/pam_env.conf", 'CUDA_LAUNCH_BLOCKING\tDEFAULT="" OVERRIDE="1"\n'),
        ("/etc/profile", SHELL),
        ("/etc/profile.d/cuda.sh", "CUDA_LAUNCH_BLOCKING=1; export CUDA_LAUNCH_BLOCKING\n"),
        ("/etc/profile.d/cuda.sh", "if [ -d /x ]; then export A='b c' CUDA_LAUNCH_BLOCKING=1; fi\n"),
        ("/etc/profile.d/cuda.sh", "test -d /x && declare -x CUDA_LAUNCH_BLOCKING='1' # slow\n"),
        ("/etc/bash.bashrc", SHELL),
        ("/etc/bashrc", SHELL),
        ("/etc/zsh/zshenv", SHELL),
        ("/etc/zshenv", SHELL),
        ("/etc/environment.d/90-cuda.conf", "CUDA_LAUNCH_BLOCKING=1\n"),
        ("/usr/lib/environment.d/90-cuda.conf", "CUDA_LAUNCH_BLOCKING=1\n"),
        ("/etc/systemd/system.conf", "[Manager]\nDefaultEnvironment=CUDA_LAUNCH_BLOCKING=1\n"),
        ("/etc/systemd/user.conf.d/cuda.conf", '[Manager]\nDefaultEnvironment="CUDA_LAUNCH_BLOCKING=1"\n'),
        ("/run/systemd/system.conf.d/cuda.conf", "[Manager]\nDefaultEnvironment=A=1 CUDA_LAUNCH_BLOCKING=1\n"),
    ],
)
def test_every_place_that_everybody_gets_variables_from_is_read(tree, path, text):
    assert found(tree, path, text) == {"CUDA_LAUNCH_BLOCKING": "1"}


@pytest.mark.parametrize(
    ("setting", "harmful"),
    [
        ("CUDA_LAUNCH_BLOCKING=1", True),
        ("CUDA_LAUNCH_BLOCKING=0", False),
        ("CUDA_LAUNCH_BLOCKING=", False),
        ("CUDA_DEVICE_WAITS_ON_EXCEPTION=1", True),
        ("CUDA_FORCE_PTX_JIT=1", True),
        ("CUDA_FORCE_JIT=1", True),
        ("CUDA_DISABLE_PTX_JIT=1", True),
        ("CUDA_INJECTION64_PATH=/opt/nsight/libToolsInjection64.so", True),
        ("NVTX_INJECTION64_PATH=/x.so", True),
        ("CUDA_VISIBLE_DEVICES=0", True),
        ("CUDA_VISIBLE_DEVICES=", True),
        ("CUDA_VISIBLE_DEVICES=-1", True),
        ("NVIDIA_VISIBLE_DEVICES=all", False),
        ("NVIDIA_VISIBLE_DEVICES=void", True),
        ("LD_LIBRARY_PATH=/usr/local/cuda-11.8/lib64:$LD_LIBRARY_PATH", True),
        ("LD_LIBRARY_PATH=/opt/oracle/lib", False),
        ("LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", False),
        ("LD_PRELOAD=/usr/lib/libcuda.so.1", True),
        ("CUDA_HOME=/usr/local/cuda", False),
        ("TORCH_CUDA_ARCH_LIST=8.9", False),
        ("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", False),
        ("CUDA_DEVICE_ORDER=PCI_BUS_ID", False),
        ("PYTHONPATH=/opt/x", False),
    ],
)
def test_what_counts_is_the_variable_and_its_value(tree, setting, harmful):
    name, _equals, value = setting.partition("=")
    assert found(tree, "/etc/profile.d/x.sh", f"export {setting}\n") == ({name: value} if harmful else {})


@pytest.mark.parametrize(
    "text",
    [
        "# export CUDA_LAUNCH_BLOCKING=1\n",
        "CUDA_LAUNCH_BLOCKING=1 /usr/local/bin/selftest\n",
        "alias slow='CUDA_LAUNCH_BLOCKING=1 python'\n",
        'if [ "$CUDA_LAUNCH_BLOCKING" = 1 ]; then echo slow; fi\n',
        "export CUDA_LAUNCH_BLOCKING=1\nexport CUDA_LAUNCH_BLOCKING=0\n",
        "unset CUDA_LAUNCH_BLOCKING\n",
        "echo CUDA_LAUNCH_BLOCKING=1\n",
    ],
)
def test_what_sets_nothing_that_lasts_is_no_finding(tree, text):
    assert found(tree, "/etc/profile.d/x.sh", text) == {}


def test_our_own_files_are_no_finding(tree):
    tree.file("/etc/profile.d/gpufleet.sh", SHELL)
    tree.file("/etc/systemd/system.conf.d/50-gpufleet.conf", "[Manager]\nDefaultEnvironment=CUDA_LAUNCH_BLOCKING=1\n")
    text = "# BEGIN gpufleet.workstation\nCUDA_LAUNCH_BLOCKING=1\n# END gpufleet.workstation\nCUDA_VISIBLE_DEVICES=0\n"
    assert found(tree, "/etc/environment", text) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_a_link_to_etc_environment_is_not_told_twice(tree):
    tree.link("/usr/lib/environment.d/99-environment.conf", "../../../etc/environment")
    assert found(tree, "/etc/environment", "CUDA_LAUNCH_BLOCKING=1\n") == {"CUDA_LAUNCH_BLOCKING": "1"}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        (
            "/etc/ld.so.conf.d/cuda.conf",
            "/usr/local/cuda/lib64\n/usr/local/cuda/lib64/stubs\n",
            "/usr/local/cuda/lib64/stubs",
        ),
        ("/etc/ld.so.conf.d/compat.conf", "# c\n/usr/local/cuda-12.8/compat/\n", "/usr/local/cuda-12.8/compat/"),
        ("/etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n/usr/local/cuda/compat\n", "/usr/local/cuda/compat"),
        ("/etc/ld.so.conf.d/cuda.conf", "/usr/local/cuda/targets/x86_64-linux/lib\n/opt/other/compat\n", None),
    ],
)
def test_library_folders_with_another_libcuda_are_found(tree, path, text, value):
    assert found(tree, path, text) == ({"ld.so.conf": value} if value else {})


def test_a_preloaded_library_of_cuda_is_found(tree):
    path = "/usr/local/cuda/lib64/libcupti.so"
    assert found(tree, "/etc/ld.so.preload", f"/usr/lib/libsafe.so\n{path}\n") == {"ld.so.preload": path}


def test_a_file_that_cannot_be_read_is_unknown_and_hides_no_other(tree):
    tree.folder("/etc/profile").file("/etc/environment", "CUDA_LAUNCH_BLOCKING=1\n")
    unknown = []
    assert len(breaking.system_wide(tree.host(), unknown)) == 1
    assert [row["what"] for row in unknown] == ["runtime.breaking[/etc/profile]"]


def test_of_processes_only_names_are_told_and_not_what_a_launcher_sets(tree):
    secret = b"LD_PRELOAD=/home/ann/nsys/secret.so\0CUDA_VISIBLE_DEVICES=1\0CUDA_LAUNCH_BLOCKING=1\0API_TOKEN=hunter2\0"
    tree.file("/proc/4711/environ", secret)
    processes = [{"pid": 4711, "command": "python"}, {"pid": 4712, "command": "gone"}]
    result = breaking.of_processes(tree.host(), processes)
    assert [(row["where"], row["name"], row["value"]) for row in result] == [
        ("process 4711 (python)", "LD_PRELOAD", None),
        ("process 4711 (python)", "CUDA_LAUNCH_BLOCKING", None),
    ]
    assert "secret" not in str(result)


def test_every_row_says_why_and_from_where_that_is_known():
    for row in rows.BREAKING:
        assert len(row.why) > 20
        assert len(row.source) > 5
