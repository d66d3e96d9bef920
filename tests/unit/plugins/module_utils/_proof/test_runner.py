"""The proof as a whole, on environments with a pretended torch and with real processes."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import expected
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import (
    child,
    driver_kernel,
    runner,
    torch_checks,
    watch,
)

EXPECTED = {"torch": "2.9.1+cu128", "companions": {}}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def static(environment, time_limit=30.0, user=None, **request):
    request = {"level": "static", "expect": EXPECTED, "sm": ["sm_120"], **request}
    return runner.run_checks(environment.python, request, user, time_limit)


def check(result, name, gpu=None):
    checks = result["checks"] if gpu is None else next(g for g in result["gpus"] if g["pci_address"] == gpu)["checks"]
    return next(item for item in checks if item["id"] == name)


def processes_with(text):
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if text in Path(path).read_bytes().decode(errors="replace"):
                found.append(path)
        except OSError:
            continue
    return found


# ---- static: what is found ------------------------------------------------------------------------------------------


def test_an_environment_as_expected_passes_with_all_its_facts(environment):
    result = static(environment)
    assert result["verdict"] == "passed"
    assert result["proven"] == "static"
    assert result["reason"] == ""
    assert result["torch"]["version"] == "2.9.1+cu128"
    assert result["torch"]["cuda"] == "12.8"
    assert result["torch"]["arch_flags"][-1] == "sm_120"
    assert {item["status"] for item in result["checks"]} == {"passed"}


@pytest.mark.parametrize(
    ("more", "name", "code", "evidence"),
    [
        pytest.param(*case, marks=pytest.mark.failure(case[2]))
        for case in [
            ("__version__ = '2.9.0+cu128'", "torch.version", "wrong_version", "2.9.0+cu128"),
            ("__version__ = '2.9.1+cu126'; version.cuda = '12.6'", "torch.version", "wrong_index", "2.9.1+cu126"),
            ("__version__ = '2.9.1+cpu'; version.cuda = None", "torch.version", "cpu_build", "2.9.1+cpu"),
            ("__version__ = '2.9.1+cpu'; version.cuda = None", "torch.cuda", "cpu_build", "CPU-only"),
            ("version.cuda = None; version.hip = '6.4'", "torch.cuda", "rocm_build", "ROCm 6.4"),
            ("version.cuda = '12.6'", "torch.cuda", "wrong_version", "12.6"),
            ("_C._cuda_getArchFlags = lambda: 'sm_80 sm_90 compute_90'", "torch.arch", "arch_missing", "sm_120"),
            ("_C._cuda_getArchFlags = lambda: 'sm_120a'", "torch.arch", "arch_missing", "sm_120a"),
            (
                "raise OSError('libcudart.so.12: cannot open shared object file')",
                "torch.import",
                "import_failed",
                "libcudart",
            ),
            ("import torch_that_is_absent", "torch.import", "import_failed", "torch_that_is_absent"),
            ("Matrix.tolist = lambda self: [[7.0]]", "torch.cpu", "wrong_result", "wrong"),
        ]
    ],
)
def test_what_is_wrong_is_named_with_a_code_and_a_remedy(environment, more, name, code, evidence):
    environment.torch(more)
    result = static(environment)
    found = check(result, name)
    assert (result["verdict"], result["proven"]) == ("failed", None)
    assert (found["status"], found["code"]) == ("failed", code)
    assert evidence in found["evidence"]
    assert found["remedy"]


# ---- static: libraries ----------------------------------------------------------------------------------------------


def a_library():
    """Any library of this system that does not mind to be loaded under another name."""
    ctypes.CDLL("libm.so.6")
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return next(line.split()[-1] for line in lines if re.search(r"/libm\.so\.6|/libm-[\d.]+\.so", line))


LOADING = "import ctypes; ctypes.CDLL({!r})"


@pytest.mark.failure("damaged_library")
@pytest.mark.parametrize("kept", [20, 3000, 0.5, 0.9], ids=["no header", "headers", "half", "most"])
def test_a_library_that_is_cut_short_is_named(environment, kept):
    library = environment.site / "torch/lib/libtorch_cpu.so"
    library.parent.mkdir()
    content = Path(a_library()).read_bytes()
    library.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    environment.torch(LOADING.format(str(library)) + "._nobody_has_this")
    found = check(static(environment), "torch.import")
    assert (found["status"], found["code"]) == ("failed", "damaged_library")
    assert str(library) in found["evidence"]


@pytest.mark.failure("shadowed_library")
def test_a_library_of_another_place_is_a_failure_where_the_environment_has_its_own(environment):
    outside = environment.root.parent / f"{environment.root.name}-toolkit"
    own = environment.site / "nvidia/cublas/lib/libcublas.so.12"
    other = outside / "libcublas.so.12.4.5.8"
    outside.mkdir(mode=0o755)
    try:
        shutil.copy(a_library(), other)
        environment.torch(LOADING.format(str(other)))
        assert check(static(environment), "torch.libraries")["status"] == "passed"  # torch was built for this one
        own.parent.mkdir(parents=True)
        shutil.copy(other, own)
        found = check(static(environment), "torch.libraries")
        assert (found["status"], found["code"]) == ("failed", "shadowed_library")
        assert f"{other} was loaded in place of {own}" in found["evidence"]
        own.unlink()
        own.symlink_to(other)  # as uv does with --link-mode=symlink
        assert check(static(environment), "torch.libraries")["status"] == "passed"
    finally:
        shutil.rmtree(outside)


@pytest.mark.failure("cpu_build")
def test_a_version_without_a_tag_accepts_every_cuda_build_but_no_cpu_build(environment):
    expect = {"torch": "2.9.1"}
    assert static(environment, expect=expect)["verdict"] == "passed"
    environment.torch("__version__ = '2.9.1+cpu'; version.cuda = None")
    assert static(environment, expect=expect)["verdict"] == "failed"


@pytest.mark.failure("not_installed")
def test_a_missing_torch_is_reported_and_nothing_after_it_ran(environment):
    (environment.site / "torch" / "__init__.py").unlink()
    (environment.site / "torch").rmdir()
    result = static(environment)
    assert check(result, "torch.import")["code"] == "not_installed"
    assert check(result, "torch.arch")["status"] == "not_run"


@pytest.mark.failure("outside")
def test_torch_from_outside_the_environment_does_not_pass(environment):
    elsewhere = environment.root.parent / (environment.root.name + "-elsewhere")
    elsewhere.mkdir(mode=0o755)
    (environment.site / "torch").rename(elsewhere / "torch")
    (environment.site / "leads-out.pth").write_text(f"{elsewhere}\n", encoding="ascii")
    try:
        assert check(static(environment), "torch.origin")["code"] == "outside"
    finally:
        (elsewhere / "torch").rename(environment.site / "torch")
        elsewhere.rmdir()


@pytest.mark.failure("arch_unknown")
def test_without_a_known_gpu_the_architecture_is_not_proven(environment):
    result = static(environment, sm=[])
    assert result["verdict"] == "not_run"
    assert check(result, "torch.arch")["status"] == "not_run"


@pytest.mark.failure("companion_build")
def test_a_companion_must_be_there_in_its_version_and_for_torchs_cuda(environment):
    expect = {"torch": "2.9.1+cu128", "companions": {"torchaudio": "2.9.1"}}
    missing = check(static(environment, expect=expect), "companion.torchaudio")
    assert (missing["status"], missing["code"]) == ("failed", "not_installed")
    environment.install("torchaudio", "__version__ = '2.11.0'")
    assert check(static(environment, expect=expect), "companion.torchaudio")["code"] == "wrong_version"
    environment.install("torchaudio", "__version__ = '2.9.1+cpu'")
    assert check(static(environment, expect=expect), "companion.torchaudio")["code"] == "companion_build"
    environment.install("torchaudio", "raise OSError('Could not load this library: _torchaudio.abi3.so')")
    assert check(static(environment, expect=expect), "companion.torchaudio")["code"] == "import_failed"
    environment.install("torchaudio", "__version__ = '2.9.1+cu128'")
    result = static(environment, expect=expect)
    assert (result["verdict"], result["companions"]) == ("passed", {"torchaudio": "2.9.1+cu128"})


def test_a_link_to_the_release_is_followed_before_python_starts(environment):
    link = environment.root.parent / (environment.root.name + "-current")
    os.symlink(environment.root, link)
    environment.torch("import sys\nassert '-current' not in sys.prefix, sys.prefix")
    try:
        result = runner.run_checks(f"{link}/bin/python", {"expect": EXPECTED, "sm": ["sm_120"]}, None, 30)
    finally:
        link.unlink()
    assert result["verdict"] == "passed", result["reason"]


# ---- processes that misbehave ---------------------------------------------------------------------------------------


@pytest.mark.failure("timed_out")
@pytest.mark.parametrize(
    "more",
    [
        "import time; time.sleep(3600)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import signal\nfor s in (signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    ],
    ids=["hung", "stopped", "busy"],
)
def test_what_does_not_end_is_killed_at_the_limit_and_named(environment, more):
    environment.torch(more)
    started = time.monotonic()
    result = static(environment, time_limit=1.0)
    assert time.monotonic() - started < 6
    assert result["verdict"] == "failed"
    assert check(result, "torch.import")["code"] == "timed_out"
    assert not processes_with(environment.python)


@pytest.mark.failure("crashed")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGABRT", "SIGKILL"])
def test_a_crash_is_named_by_its_signal(environment, name):
    environment.torch(f"import os, signal; print('last words', flush=True); os.kill(os.getpid(), signal.{name})")
    found = check(static(environment), "torch.import")
    assert (found["status"], found["code"]) == ("failed", "crashed")
    assert name in found["evidence"]
    assert "last words" in found["evidence"]


@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.failure("ended_early")
def test_a_process_that_leaves_before_its_work_is_done_does_not_pass(environment, status):
    environment.torch(f"import os; os._exit({status})")
    result = static(environment)
    assert result["verdict"] == "failed"
    assert check(result, "python.end")["code"] == "ended_early"


def test_a_crash_after_the_last_check_does_not_pass(environment):
    environment.torch("import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))")
    result = static(environment)
    assert result["verdict"] == "failed"
    assert check(result, "python.end")["code"] == "crashed"


@pytest.mark.failure("garbage")
def test_garbage_among_the_records_does_not_pass(environment):
    write = "import os\nfor fd in range(3, 20):\n  try: os.write(fd, b'\\x00{garbage\\n')\n  except OSError: pass\n"
    environment.torch(write)
    result = static(environment)
    assert result["verdict"] == "failed"
    assert check(result, "python.end")["code"] == "garbage"


def records(*lines):
    """Code that writes these records into whatever pipe is open."""
    text = "\n".join(lines).encode() + b"\n"
    return f"import os\nfor fd in range(3, 20):\n  try: os.write(fd, {text!r})\n  except OSError: pass\n"


def test_facts_of_the_wrong_shape_do_not_break_the_judge(environment):
    environment.torch(records('{"event": "torch", "facts": [1]}', '{"event": "companions", "facts": 3}'))
    result = static(environment)  # the genuine records come later and count
    assert (result["verdict"], result["companions"]) == ("passed", {})


@pytest.mark.parametrize(
    "line",
    [
        "[" * 60_000,
        '{"event": "check", "id": 7, "status": []}',
        '{"event": "begin", "id": [1]}',
        '{"event": ["check"], "id": "torch.cpu"}',
        '{"event": "check", "id": "torch.cpu", "gpu": {}, "status": "passed"}',
    ],
    ids=["deep", "a number for an id", "a list for an id", "a list for an event", "an object for a GPU"],
)
@pytest.mark.failure("garbage")
def test_what_is_no_record_of_ours_fails_and_breaks_nothing(environment, line):
    environment.torch(records(line))
    result = static(environment)
    assert result["verdict"] == "failed"
    assert check(result, "python.end")["code"] == "garbage"


@pytest.mark.parametrize("number", ["E42", -1, 1.5, True, [], 10**30])
def test_what_a_library_calls_an_errors_code_can_be_anything(environment, number):
    environment.torch(f"class Odd(ImportError):\n    error_code = {number!r}\nraise Odd('no')\n")
    result = static(environment)
    assert result["verdict"] == "failed"
    assert check(result, "torch.import")["code"] == "failed", check(result, "torch.import")


def test_a_flood_of_output_neither_blocks_nor_fills_anything(environment):
    environment.torch("import sys\nfor _ in range(320): sys.stdout.write('x' * 65536); sys.stderr.write('y' * 65536)\n")
    result = static(environment)
    assert result["verdict"] == "passed", result["reason"]
    assert len(str(result)) < 20000


def test_folders_nested_deeper_than_python_follows_are_removed(tmp_path):
    place = str(tmp_path / "private")
    os.mkdir(place)
    code = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    subprocess.run([sys.executable, "-c", code], cwd=place, check=True)
    child.remove(place)
    assert not os.path.exists(place)


def test_a_process_that_detached_itself_is_not_left_behind(environment):
    environment.torch(
        "import os\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.execv('/bin/sleep', ['sleep', '86399.25'])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    result = static(environment)
    assert result["verdict"] == "passed", result["reason"]
    assert not processes_with("86399.25")


def test_nothing_is_left_in_the_temporary_directory(environment):
    before = set(glob.glob("/tmp/gpufleet-proof-*"))
    environment.torch("import os, pathlib; pathlib.Path(os.environ['HOME'], 'cache').mkdir()")
    assert static(environment)["verdict"] == "passed"
    assert set(glob.glob("/tmp/gpufleet-proof-*")) <= before


def test_a_killed_runner_takes_its_child_along(environment):
    environment.torch("import time; time.sleep(3600)")
    collections = next(path for path in sys.path if path.endswith("/collections"))
    code = (
        f"import sys; sys.path.insert(0, {collections!r})\n"
        "from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import runner\n"
        f"runner.run_checks({environment.python!r}, {{}}, None, 60)\n"
    )
    before = set(glob.glob("/tmp/gpufleet-proof-*"))
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(lambda: len(processes_with(environment.python)) == 2)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not processes_with(environment.python))
    for directory in set(glob.glob("/tmp/gpufleet-proof-*")) - before:  # nobody was left to remove it
        shutil.rmtree(directory)


def wait_for(condition):
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.failure("unkillable")
def test_a_process_that_cannot_be_killed_is_reported_and_not_waited_for(environment, monkeypatch):
    environment.torch("import time; time.sleep(3600)")
    monkeypatch.setattr(child, "KILL_PATIENCE", 0.3)
    monkeypatch.setattr(child.os, "killpg", lambda group, number: None)
    pids = []
    start = child.Child.start

    def remember(self, *arguments):
        start(self, *arguments)
        pids.append(self.pid)

    monkeypatch.setattr(child.Child, "start", remember)
    started = time.monotonic()
    result = static(environment, time_limit=0.5)
    try:
        assert time.monotonic() - started < 4
        assert check(result, "torch.import")["code"] == "unkillable"
        assert result["verdict"] == "failed"
    finally:
        os.kill(pids[0], signal.SIGKILL)
        os.waitpid(pids[0], 0)


@pytest.mark.failure("no_start")
def test_an_interpreter_that_does_not_start_is_a_failure_with_the_reason(environment):
    os.unlink(environment.python)
    result = static(environment)
    assert check(result, "python.start")["code"] == "no_start"
    assert "No such file" in result["reason"]


# ---- who runs it, and with what -------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("user", [None, "", "root", "nobody"])
def test_an_environments_python_never_runs_as_root(environment, user):
    environment.torch(
        "import os\n"
        "assert 0 not in os.getresuid() + os.getresgid() + tuple(os.getgroups()), os.getresuid()\n"
        "assert os.stat('.').st_mode & 0o777 == 0o700 and os.stat('.').st_uid == os.getuid()\n"
    )
    result = static(environment, user=user)
    assert result["verdict"] == "passed", result["reason"]
    assert result["user"] not in (None, "root")


@needs_root
@pytest.mark.failure("no_account")
def test_an_account_that_does_not_exist_proves_nothing(environment):
    result = static(environment, user="no-such-account")
    assert (result["verdict"], result["checks"][0]["code"]) == ("not_run", "no_account")


@needs_root
def test_an_environment_that_the_account_may_not_enter_says_so(environment):
    environment.root.chmod(0o700)
    result = static(environment, user="nobody")
    assert result["verdict"] == "failed"
    assert "ermission denied" in result["reason"]


def test_another_account_cannot_be_taken_without_root(monkeypatch):
    monkeypatch.setattr(child.os, "geteuid", lambda: 65534)
    assert not child.choose_account("nobody").switch
    with pytest.raises(child.AccountError, match="running as 'nobody'"):
        child.choose_account("root")


def test_nothing_of_the_callers_environment_leaks_in(environment, monkeypatch):
    for name in (
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD_NOT",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "NVIDIA_TF32_OVERRIDE",
    ):
        monkeypatch.setenv(name, "0")
    environment.torch(
        "import os, sys\n"
        "allowed = {'PATH', 'LANG', 'HOME', 'TMPDIR', 'CUDA_DEVICE_ORDER', 'LC_CTYPE'}\n"
        "assert set(os.environ) <= allowed, set(os.environ) - allowed\n"
        "assert sys.flags.isolated and sys.dont_write_bytecode\n"
    )
    result = static(environment)
    assert result["verdict"] == "passed", result["reason"]


# ---- GPUs: with a pretended driver and pretended kernels ------------------------------------------------------------

FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"
DRIVER = """
import json, os, sys
def write(**record): os.write(int(sys.argv[2]), (json.dumps(record) + chr(10)).encode())
gpus = [
    dict(index=i, name="RTX 5070", sm="sm_120", uuid="GPU-%d" % i, pci_address="0000:0%d:00.0" % (i + 1), processes=[])
    for i in range(2)
]
write(event="begin", id="driver.init", gpu=None)
write(event="check", id="driver.init", gpu=None, status="passed", evidence="libcuda", ms=1)
for pid in {processes}: gpus[0]["processes"].append(pid)
write(event="gpus", gpus=gpus)
for address in json.loads(os.fdopen(int(sys.argv[3])).readline())["gpus"]:
    write(event="begin", id="gpu.driver_kernel", gpu=address)
    {act}
    write(event="check", id="gpu.driver_kernel", gpu=address, status="passed", evidence="exact", ms=1)
write(event="end")
"""
QUIET = {"xid": [], "uncorrected_ecc_errors": 0, "link": [5, 16]}
TORCH_ON_GPU = """
import os, signal, time

def pretended(label):
    def run(device=None, *more):
        {act}
        return label, dict(to_gpu_gb_s=50.0, from_gpu_gb_s=50.0) if label == "gpu.bandwidth" else {{}}
    return run

def describe_devices():
    return [
        dict(index=i, name="RTX 5070", sm="sm_120", uuid=str(i), pci_address=None, memory_mib=12288) for i in range(2)
    ]

import contextlib
precise_arithmetic = tf32_arithmetic = contextlib.nullcontext
make_references = dict
GPU_CHECKS = {{name: pretended(name) for name in GPU_CHECKS}}
check_peers, check_compile, check_all_reduce = map(pretended, ("gpus.peer", "torch.compile", "gpus.all_reduce"))
"""
WATCH = """
import json, os, sys
os.read(int(sys.argv[3]), 1)
os.write(int(sys.argv[2]), (json.dumps(dict(event="watched", gpus={seen})) + chr(10)).encode())
"""
CUDA = (
    "import contextlib\n"
    "cuda = types.SimpleNamespace(device=lambda i: contextlib.nullcontext(), synchronize=lambda i: None)\n"
    "_scaled_mm = None\n"
)


@pytest.fixture
def quick(environment, monkeypatch):
    """Prove at level quick, or another one, with two pretended GPUs.

    `act` is what each torch kernel does, `driver` what the driver's does, `seen` what NVML tells.
    """
    environment.torch(CUDA)
    genuine = runner.source_of

    def prove(act="pass", driver="pass", processes=(), time_limit=30.0, seen=None, **request):
        def source_of(module):
            if module is watch:
                return WATCH.replace("{seen}", repr({**dict.fromkeys((FIRST, SECOND), QUIET), **(seen or {})}))
            if module is driver_kernel:
                return DRIVER.replace("{act}", driver).replace("{processes}", repr(list(processes)))
            assert module is torch_checks
            before, main, after = genuine(module).partition('\n\nif __name__ == "__main__":')
            assert main
            return before + TORCH_ON_GPU.format(act=act) + main + after

        monkeypatch.setattr(runner, "source_of", source_of)
        monkeypatch.setattr(runner, "driver_absent", lambda host: None)
        monkeypatch.setattr(runner, "_served", lambda host: [FIRST])
        request = {"level": "quick", "expect": EXPECTED, **request}
        return runner.run_checks(environment.python, request, None, time_limit)

    return prove


def test_quick_passes_when_every_kernel_of_every_gpu_passes(quick):
    result = quick()
    assert result["verdict"] == "passed", result["reason"]
    assert result["proven"] == "quick"
    assert [gpu["pci_address"] for gpu in result["gpus"]] == [FIRST, SECOND]
    ids = [item["id"] for item in result["gpus"][0]["checks"]]
    assert ids[:3] == ["gpu.driver_kernel", "gpu.identity", "gpu.copy"]
    assert "gpu.matmul_tf32" in ids


def test_a_wrong_number_on_one_gpu_fails_that_gpu_alone(quick):
    result = quick(
        act="if device == 'cuda:1' and label.endswith('fp16'): raise WrongResult('3 of 9 values are wrong', dict(wrong=3))"
    )
    assert [gpu["verdict"] for gpu in result["gpus"]] == ["passed", "failed"]
    found = check(result, "gpu.matmul_fp16", SECOND)
    assert (found["code"], found["values"]) == ("wrong_result", {"wrong": 3})
    assert check(result, "gpu.conv2d", SECOND)["status"] == "passed"
    assert (result["verdict"], result["proven"]) == ("failed", "static")


def test_a_cuda_error_carries_its_number_and_ends_the_checks_of_that_gpu(quick):
    text = "CUDA error: no kernel image is available for execution on the device"
    result = quick(act=f"if device == 'cuda:0': raise RuntimeError('{text}')")
    found = check(result, "gpu.copy", FIRST)
    assert found["code"] == "cuda_209"
    assert "no code for this GPU" in found["remedy"]
    assert check(result, "gpu.conv2d", FIRST)["status"] == "not_run"
    assert result["gpus"][1]["verdict"] == "passed"


def test_after_a_crash_each_gpu_answers_for_itself(quick):
    result = quick(act="if device == 'cuda:1': os.kill(os.getpid(), signal.SIGSEGV)\n        time.sleep(0.05)")
    assert [gpu["verdict"] for gpu in result["gpus"]] == ["passed", "failed"]
    assert "SIGSEGV" in check(result, "gpu.copy", SECOND)["evidence"]
    assert result["verdict"] == "failed"


def test_a_kernel_that_hangs_is_killed_and_named(quick):
    started = time.monotonic()
    result = quick(act="if device == 'cuda:1': time.sleep(3600)", time_limit=2.0)
    assert time.monotonic() - started < 8
    assert check(result, "gpu.copy", SECOND)["code"] == "timed_out"
    assert check(result, "gpu.copy", FIRST)["status"] == "passed"
    assert check(result, "gpu.matmul_tf32", FIRST)["status"] == "not_run"
    assert result["verdict"] == "failed"


def test_a_gpu_whose_driver_kernel_fails_is_not_given_to_torch(quick):
    result = quick(driver="if address == '0000:02:00.0': continue")
    assert check(result, "gpu.driver_kernel", SECOND)["status"] == "not_run"
    assert check(result, "gpu.copy", SECOND)["status"] == "not_run"
    assert result["gpus"][0]["verdict"] == "passed"
    assert result["verdict"] == "not_run"


def test_a_driver_that_hangs_is_killed_and_the_static_checks_still_count(quick):
    result = quick(driver="import time; time.sleep(3600)", time_limit=3.0)
    assert result["verdict"] == "failed"
    assert result["proven"] == "static"
    assert check(result, "gpu.driver_kernel", FIRST)["code"] == "timed_out"
    assert check(result, "python.end")["status"] == "passed"


@pytest.mark.failure("busy")
def test_a_gpu_in_use_is_left_alone_and_not_passed(quick, monkeypatch):
    result = quick(processes=[os.getpid()])
    assert [gpu["verdict"] for gpu in result["gpus"]] == ["not_run", "passed"]
    assert check(result, "gpu.copy", FIRST)["code"] == "busy"
    assert (result["verdict"], result["proven"]) == ("not_run", "static")
    assert "in use by" in result["reason"]


def test_a_gpu_in_use_is_proven_when_the_user_says_so(quick):
    assert quick(processes=[os.getpid()], when_busy="run")["verdict"] == "passed"


@pytest.mark.failure("users_unknown")
def test_what_disturbs_others_waits_where_nobody_can_tell_who_computes(quick, monkeypatch):
    monkeypatch.setattr(runner, "_computing", lambda *_arguments: None)
    result = quick(level="full")
    assert {check["code"] for gpu in result["gpus"] for check in gpu["checks"]} == {"users_unknown"}
    assert (result["verdict"], result["proven"]) == ("not_run", "static")
    assert quick()["verdict"] == "passed"
    assert quick(level="full", when_busy="run")["verdict"] != "not_run"


def test_only_the_named_gpus_are_proven(quick):
    result = quick(gpus=[SECOND])
    assert [gpu["pci_address"] for gpu in result["gpus"]] == [SECOND]
    assert result["verdict"] == "passed"


def test_a_named_gpu_that_cuda_does_not_show_fails(quick):
    result = quick(gpus=[SECOND, "0000:41:00.0"])
    assert check(result, "driver.gpus")["code"] == "gpu_missing"
    assert "0000:41:00.0" in result["reason"]
    assert result["verdict"] == "failed"


def remember(root, monkeypatch, *addresses):
    """The host remembers GPUs at these addresses; the way to its list."""
    rows = [{"pci_address": address, "uuid": f"GPU-{address}", "name": "RTX 3090"} for address in addresses]
    path = root / "gpus.json"
    path.write_text(json.dumps(expected.document(rows, "2026-11-22T09:30:00Z", "another")))
    monkeypatch.setattr(expected, "PATH", str(path))


@pytest.mark.failure("gpu_missing")
def test_a_gpu_that_was_proven_here_before_and_is_gone_fails(quick, tmp_path, monkeypatch):
    remember(tmp_path, monkeypatch, FIRST, SECOND, "0000:41:00.0")
    result = quick()
    gone = check(result, "driver.gpus")
    assert (gone["status"], gone["code"]) == ("failed", "gpu_missing")
    assert gone["evidence"].startswith("RTX 3090 at 0000:41:00.0 is missing since the boot of 20")
    assert result["verdict"] == "failed"
    assert quick(gpus=[FIRST, SECOND])["verdict"] == "passed"  # who names GPUs means those alone
    remember(tmp_path, monkeypatch, FIRST, SECOND)
    assert quick()["verdict"] == "passed"


def two_environments(environment):
    return [{"name": name, "python": environment.python, "expect": EXPECTED} for name in ("a", "b")]


def test_a_job_that_starts_between_two_environments_is_left_alone(quick, environment, monkeypatch):
    quick()
    answers = [[], [], ["job (7)"], []]
    monkeypatch.setattr(runner, "_computing", lambda *_arguments: answers.pop(0))
    first, second = runner.prove(two_environments(environment), time_limit=30.0)["environments"]
    assert (first["name"], first["verdict"]) == ("a", "passed")
    assert (second["name"], second["verdict"], check(second, "gpu.copy", FIRST)["code"]) == ("b", "not_run", "busy")
    assert check(second, "gpu.copy", SECOND)["status"] == "passed"


def test_a_gpu_that_hung_holds_the_task_once(quick, environment, monkeypatch):
    monkeypatch.setattr(runner, "AGAIN_LIMIT", 1.0)
    quick(act="if device == 'cuda:0' and label == 'gpu.copy': time.sleep(60)", gpu_limit=3.0)
    started = time.monotonic()
    result = runner.prove(two_environments(environment), time_limit=30.0, gpu_limit=3.0)
    first, second = result["environments"]
    assert check(first, "gpu.copy", FIRST)["code"] == "hung"
    assert check(second, "gpu.copy", FIRST)["code"] == "stopped"
    assert "hung when a was proven" in check(second, "gpu.copy", FIRST)["evidence"]
    assert check(first, "gpu.copy", SECOND)["status"] == check(second, "gpu.copy", SECOND)["status"] == "passed"
    assert time.monotonic() - started < 3.0 + 6.0  # the limit once, and the starts of four interpreters


def test_a_driver_that_hangs_is_tried_once(quick, environment, monkeypatch):
    quick(driver="import time; time.sleep(60)", gpu_limit=1.0)
    tried = []
    genuine = runner._try_driver
    monkeypatch.setattr(runner, "_try_driver", lambda *arguments: tried.append(1) or genuine(*arguments))
    result = runner.prove(two_environments(environment), time_limit=30.0, gpu_limit=1.0)
    assert (result["verdict"], len(tried)) == ("failed", 1)


def test_one_bad_environment_decides_the_verdict(environment):
    good = {"name": "good", "python": environment.python, "expect": EXPECTED, "sm": ["sm_120"]}
    bad = {**good, "name": "bad", "expect": {"torch": "2.6.0+cu124"}}
    assert runner.prove([good, bad], level="static")["verdict"] == "failed"
    assert runner.prove([], level="static")["verdict"] == "not_run"


# ---- full and stress ------------------------------------------------------------------------------------------------


def test_full_runs_what_quick_does_not_and_a_check_for_several_gpus_once(quick):
    result = quick(level="full")
    assert (result["verdict"], result["proven"]) == ("passed", "full"), result["reason"]
    ids = [item["id"] for item in result["gpus"][0]["checks"]]
    assert ids[-5:] == ["gpu.matmul_fp8", "gpu.optimizer_step", "gpu.bandwidth", "gpu.memory", "gpu.hardware"]
    ids = [item["id"] for item in result["checks"]]
    assert ids[-5:] == ["torch.devices", "gpus.peer", "gpus.all_reduce", "torch.compile", "python.end"]


def test_stress_is_full_and_a_burn(quick):
    result = quick(level="stress", burn_seconds=1)
    assert (result["verdict"], result["proven"]) == ("passed", "stress"), result["reason"]
    assert [item["id"] for item in result["gpus"][1]["checks"]][-2:] == ["gpu.burn", "gpu.hardware"]


def test_one_gpu_has_no_check_for_several(quick):
    result = quick(level="full", gpus=[SECOND])
    assert result["verdict"] == "passed", result["reason"]
    assert not [item for item in result["checks"] if item["id"].startswith("gpus.")]


def test_kernels_of_companions_are_proven_where_the_companions_are_expected(quick, environment):
    environment.install("torchaudio", "__version__ = '2.9.1+cu128'")
    expect = {**EXPECTED, "companions": {"torchaudio": "2.9.1", "torchvision": "0.24.1"}}
    result = quick(level="full", expect=expect)
    assert check(result, "gpu.torchaudio_lfilter", FIRST)["status"] == "passed"
    assert check(result, "gpu.torchvision_nms", FIRST)["status"] == "not_run"  # it could not be imported
    assert check(result, "gpu.memory", FIRST)["status"] == "passed"
    assert result["reason"].startswith("companion.torchvision")


def test_what_fails_in_full_alone_leaves_quick_proven(quick):
    result = quick(level="full", act="if label == 'gpu.memory': raise WrongResult('3 words', {})")
    assert (result["verdict"], result["proven"]) == ("failed", "quick")


def test_what_cannot_run_is_not_run_and_named(quick):
    result = quick(
        level="full", act="if label == 'torch.compile': raise NotRun('compiler_missing', 'there is no compiler')"
    )
    found = check(result, "torch.compile")
    assert (found["status"], found["code"], result["verdict"], result["proven"]) == (
        "not_run",
        "compiler_missing",
        "not_run",
        "quick",
    )
    assert "gcc" in result["remedy"]


@pytest.mark.failure("hung")
@pytest.mark.parametrize("label", ["gpu.copy", "gpu.optimizer_step", "gpu.memory"])
def test_a_gpu_that_hangs_is_ended_at_its_limit_and_the_others_are_proven_without_it(quick, environment, label):
    started = time.monotonic()
    result = quick(level="full", act=f"if device == 'cuda:1' and label == '{label}': time.sleep(3600)", gpu_limit=2.0)
    assert time.monotonic() - started < 10
    assert [gpu["verdict"] for gpu in result["gpus"]] == ["passed", "failed"]
    found = check(result, label, SECOND)
    assert (found["status"], found["code"]) == ("failed", "hung")
    assert label in found["evidence"]
    assert SECOND in found["evidence"]
    assert check(result, "gpus.all_reduce")["status"] == "not_run"
    assert not processes_with(environment.python)


def test_two_gpus_that_hang_at_once_are_both_named(quick):
    started = time.monotonic()
    result = quick(act="if label == 'gpu.conv2d': time.sleep(3600)", gpu_limit=2.0)
    assert time.monotonic() - started < 12
    assert [check(result, "gpu.conv2d", gpu)["code"] for gpu in (FIRST, SECOND)] == ["hung", "hung"]


def test_a_process_that_hangs_after_its_work_is_ended_at_the_limit_of_a_step(quick, environment):
    environment.torch(CUDA + "import atexit, time; atexit.register(time.sleep, 3600)")
    started = time.monotonic()
    result = quick(gpu_limit=1.0)
    assert time.monotonic() - started < 8
    assert check(result, "python.end")["code"] == "hung"
    assert result["verdict"] == "failed"


def test_a_step_that_is_known_to_take_longer_may(quick):
    result = quick(level="stress", act="if label == 'gpu.burn': time.sleep(3)", gpu_limit=2.0, burn_seconds=2.0)
    assert result["verdict"] == "passed", result["reason"]


def test_a_crash_of_the_compiler_keeps_no_gpu_from_being_proven(quick):
    result = quick(level="full", act="if label == 'torch.compile': os.kill(os.getpid(), signal.SIGSEGV)")
    assert [gpu["verdict"] for gpu in result["gpus"]] == [
        "not_run",
        "not_run",
    ]  # both again, but the link at the same time
    left = [item["id"] for item in result["gpus"][0]["checks"] if item["status"] != "passed"]
    assert left == ["gpu.bandwidth"]
    assert check(result, "torch.compile")["code"] == "crashed"
    assert check(result, "gpus.all_reduce")["status"] == "passed"


def test_lost_data_between_gpus_keeps_nccl_from_being_started(quick):
    result = quick(level="full", act="if label == 'gpus.peer': raise WrongResult('9 words', {})")
    assert check(result, "gpus.peer")["code"] == "wrong_result"
    assert (check(result, "gpus.all_reduce")["status"], check(result, "gpus.all_reduce")["code"]) == (
        "not_run",
        "stopped",
    )


@pytest.mark.parametrize(
    ("act", "code"),
    [
        ("raise WrongResult('1 of 9 values is wrong', {})", "wrong_result"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed"),
        ("time.sleep(3600)", "hung"),
        ("raise RuntimeError('CUDA error: an illegal memory access was encountered')", "cuda_700"),
    ],
)
def test_the_process_that_spoils_an_all_reduce_is_named_and_the_others_are_ended(quick, environment, act, code):
    started = time.monotonic()
    wait = "time.sleep(3600 if device == 'cuda:0' else 0)"
    result = quick(
        level="full",
        act=f"if label == 'gpus.all_reduce':\n            if device == 'cuda:1': {act}\n            {wait}",
        gpu_limit=3.0,
    )
    assert time.monotonic() - started < 12
    assert check(result, "gpus.all_reduce")["code"] == code
    assert (result["verdict"], result["proven"]) == ("failed", "quick")
    assert not processes_with(environment.python)


def test_a_gpu_in_use_keeps_its_memory_when_the_user_has_it_proven(quick):
    act = "if device == 'cuda:0' and label in ('gpu.memory', 'gpu.bandwidth'): os.abort()"
    result = quick(level="full", processes=[os.getpid()], when_busy="run", act=act)
    assert check(result, "gpu.memory", FIRST)["code"] == "busy"
    assert check(result, "gpu.bandwidth", FIRST)["code"] == "busy"
    assert check(result, "gpu.optimizer_step", FIRST)["status"] == "passed"
    assert check(result, "gpu.memory", SECOND)["status"] == "passed"
    assert (result["verdict"], result["proven"]) == ("not_run", "quick")


@pytest.mark.failure("xid")
def test_an_error_of_the_hardware_during_the_proof_fails_its_gpu(quick):
    result = quick(level="stress", seen={SECOND: {"xid": [79], "temperature_c": 91, "throttled": ["hw_slowdown"]}})
    found = check(result, "gpu.hardware", SECOND)
    assert (found["status"], found["code"]) == ("failed", "xid")
    assert check(result, "gpu.burn", SECOND)["values"]["temperature_c"] == 91
    assert [gpu["verdict"] for gpu in result["gpus"]] == ["passed", "failed"]


# ---- hosts without a driver -----------------------------------------------------------------------------------------


def made_up_host(root, *paths):
    for path, text in paths:
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")
    return Host(root=str(root))


@pytest.mark.failure("no_gpu")
def test_without_a_gpu_quick_is_not_run_and_static_still_counts(environment, tmp_path):
    request = {"level": "quick", "expect": EXPECTED, "sm": ["sm_120"]}
    result = runner.run_checks(environment.python, request, None, 30, host=made_up_host(tmp_path))
    assert (result["verdict"], result["proven"]) == ("not_run", "static")
    assert check(result, "driver.init")["code"] == "no_gpu"
    assert "no NVIDIA GPU" in result["reason"]


@pytest.mark.failure("gpu_missing")
def test_a_host_whose_only_gpu_is_gone_is_not_one_without_a_gpu(environment, tmp_path, monkeypatch):
    host = made_up_host(tmp_path, ("/proc/uptime", "100.0 1.0\n"))
    remember(tmp_path, monkeypatch, FIRST)
    monkeypatch.setattr(expected, "PATH", "/gpus.json")
    request = {"level": "quick", "expect": EXPECTED, "sm": ["sm_120"]}
    result = runner.run_checks(environment.python, request, None, 30, host=host)
    assert (result["verdict"], check(result, "driver.gpus")["code"]) == ("failed", "gpu_missing")
    assert "is missing since the boot of" in result["reason"]
    static = runner.run_checks(environment.python, {**request, "level": "static"}, None, 30, host=host)
    assert static["verdict"] == "passed"


def test_a_list_of_gpus_that_cannot_be_read_fails_no_proof(environment, tmp_path, monkeypatch):
    host = made_up_host(tmp_path, ("/gpus.json", "{"))
    monkeypatch.setattr(expected, "PATH", "/gpus.json")
    request = {"level": "quick", "expect": EXPECTED, "sm": ["sm_120"]}
    assert runner.run_checks(environment.python, request, None, 30, host=host)["verdict"] == "not_run"


PCI = "/sys/bus/pci/devices/0000:01:00.0/"
RTX_5070 = (
    (PCI + "vendor", "0x10de\n"),
    (PCI + "device", "0x2f04\n"),
    (PCI + "class", "0x030000\n"),
    (PCI + "subsystem_vendor", "0x1043\n"),
    (PCI + "subsystem_device", "0x0001\n"),
)
LOADED = ("/sys/module/nvidia/version", "580.95.05\n")


@pytest.mark.failure("no_driver")
def test_a_gpu_without_a_loaded_driver_is_named(tmp_path):
    absent = runner.driver_absent(made_up_host(tmp_path, *RTX_5070))
    assert absent is not None
    assert absent[0] == "no_driver"
    assert "0000:01:00.0" in absent[1]


@pytest.mark.failure("no_device_nodes")
def test_a_container_without_device_nodes_has_no_gpu_although_the_module_is_loaded(tmp_path):
    absent = runner.driver_absent(made_up_host(tmp_path, *RTX_5070, LOADED, ("/.dockerenv", "")))
    assert absent is not None
    assert absent[0] == "no_device_nodes"


@pytest.mark.parametrize("file", [("/dev/nvidia0", ""), ("/dev/dxg", ""), LOADED], ids=["node", "wsl", "module"])
def test_a_driver_is_recognised_by_module_device_node_or_wsl(tmp_path, file):
    assert runner.driver_absent(made_up_host(tmp_path, *RTX_5070, file)) is None


@pytest.mark.skipif(bool(glob.glob("/dev/nvidia[0-9]*")), reason="this machine has a driver")
def test_a_missing_libcuda_fails_before_torch_gets_a_gpu(environment, monkeypatch):
    monkeypatch.setattr(runner, "driver_absent", lambda host: None)
    result = runner.run_checks(environment.python, {"level": "quick", "expect": EXPECTED, "sm": ["sm_120"]}, None, 30)
    found = check(result, "driver.init")
    assert (found["status"], found["code"]) == ("failed", "library_missing")
    assert "libcuda.so.1" in found["evidence"]
    assert (result["verdict"], result["proven"]) == ("failed", "static")


def test_gpus_that_the_module_serves_count_only_with_a_device_node(tmp_path):
    information = "Model: \t\t NVIDIA H100\nDevice Minor: \t {}\n"
    host = made_up_host(
        tmp_path,
        ("/proc/driver/nvidia/gpus/0000:01:00.0/information", information.format(0)),
        ("/proc/driver/nvidia/gpus/0000:02:00.0/information", information.format(1)),
        ("/dev/nvidia0", ""),
    )
    assert runner._served(host) == ["0000:01:00.0"]


def holding(host, *pids):
    """Let these processes have a GPU's device node open."""
    for pid in pids:
        folder = Path(host.root, f"proc/{pid}/fd")
        folder.mkdir(parents=True)
        (folder / "5").symlink_to("/dev/nvidia-uvm")
    return host


def test_a_desktop_program_does_not_count_as_computing(tmp_path):
    host = made_up_host(
        tmp_path, ("/proc/11/comm", "firefox\n"), ("/proc/12/comm", "python\n"), ("/proc/13/comm", "nvidia-cuda-mps\n")
    )
    holding(host, 11, 12, 13)
    assert runner._computing([11, 12], host, []) == ["python (12)"]
    assert runner._computing([13], host, []) == [
        "nvidia-cuda-mps (13)"
    ]  # the server of MPS, cut off as the kernel does
    assert "another container" in runner._computing([99], host, [])[0]


@pytest.mark.parametrize(
    "command", ["chromosome_fold", "steamflow", "opera_train", "swayam-train", "kwinfer", "Xorgan"]
)
def test_a_job_whose_name_begins_like_a_desktop_programs_is_a_job(tmp_path, command):
    host = holding(made_up_host(tmp_path, ("/proc/11/comm", f"{command}\n")), 11)
    assert runner._computing([11], host, []) == [f"{command} (11)"]


def test_a_process_that_holds_no_gpu_here_does_not_excuse_one_that_nvml_numbers_so(tmp_path):
    host = made_up_host(tmp_path, ("/proc/11/comm", "firefox\n"))
    Path(host.root, "proc/11/fd").mkdir()
    assert runner._computing([11], host, []) == ["a process of another container (11)"]
