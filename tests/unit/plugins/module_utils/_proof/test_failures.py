"""The table of failures: complete, without doubles, and found by numbers and words."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import failures, judge

# cuda.h of CUDA 13.0 (CUresult); 12.8 has the same but 912 to 916 in part.
CUDA_H = [
    *range(1, 9), 34, 36, 46, 100, 101, 102, 200, 201, 202, *range(205, 227), *range(300, 305), 400, 401, 402, 500, 600,
    *range(700, 706), *range(708, 722), *range(800, 813), *range(900, 917), 999,
]  # fmt: skip
# driver_types.h of CUDA 13.0 (cudaError_t): what torch can raise besides. Its deprecated numbers (emulation, before CUDA 4) are left out.
DRIVER_TYPES_H = [
    9, 12, 13, *range(16, 22), 26, 27, 35, 37, 43, 44, 45, 49, 52, 53, *range(65, 70), 98, 103, 127,
]  # fmt: skip
NVML_H = [*range(1, 31), 999]


@pytest.mark.parametrize(
    "code", [f"cuda_{number}" for number in CUDA_H + DRIVER_TYPES_H] + [f"nvml_{number}" for number in NVML_H]
)
def test_every_number_of_nvidias_headers_has_a_row(code):
    row = failures.TABLE[code]
    assert ": " in row.title
    assert failures.remedy(code).lower().startswith(row.cause[:20].lower())
    assert failures.remedy(code).endswith(row.remedy)


@pytest.mark.parametrize("row", failures.TABLE.values(), ids=list(failures.TABLE))
def test_every_row_says_why_and_what_to_do(row):
    assert len(row.cause) > 10
    assert not row.cause.endswith(".")
    assert row.remedy.endswith((".", ")"))
    assert len(row.remedy) > 15
    assert "look up" not in row.remedy.lower()
    assert row.source
    assert row.tested in ("gpu", "stub", "unit")


def test_no_two_rows_say_the_same():
    rows = failures.TABLE.values()
    for field in ("title", "cause"):
        said = [getattr(row, field) for row in rows]
        assert len(set(said)) == len(said), [text for text in said if said.count(text) > 1]


def test_no_words_lead_to_two_failures():
    rows = [row for row in failures.TABLE.values() if row.texts]
    for row in rows:
        for words in row.texts:
            others = [
                other.code
                for other in rows
                if other is not row
                for text in other.texts
                if text.lower() in words.lower()
            ]
            assert others == [], words


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=pytest.mark.failure(row.code), id=row.code)
        for row in failures.TABLE.values()
        if row.code.startswith("cuda_")
    ],
)
@pytest.mark.parametrize("prefix", ["CUDA error: ", "CUDA driver error: ", "Triton Error [CUDA]: "])
def test_every_error_of_cuda_is_recognised_by_nvidias_words(row, prefix):
    name, words = row.title.split(": ", 1)
    code = failures.code_of(
        "gpu.copy", None, "RuntimeError", f"{prefix}{words}\nCUDA kernel errors might be reported later"
    )
    assert code == ("cuda_200" if row.code == "cuda_300" else row.code)  # NVIDIA has the same words for both
    if name.startswith("CUDA_ERROR_"):
        number = int(row.code[len("cuda_") :])
        assert failures.code_of("driver.init", None, "CudaError", f"cuInit: {name} ({number})") == row.code


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("CUDA error: no kernel image is available for execution on the device", 209),
        ("No CUDA GPUs are available", 100),
        ("CUDA error: no CUDA-capable device is detected", 100),
        ("The NVIDIA driver on your system is too old (found version 12040).", 35),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver / cuda driver combination",
            803,
        ),
        ("Error 802: system not yet initialized", 802),
        ("Error 804: forward compatibility was attempted on non supported HW", 804),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", 999),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", 46),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", 46),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", 2),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 2),
        ("CUDA error: an illegal memory access was encountered", 700),
        ("CUDA error: an illegal instruction was encountered", 715),
        ("cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)", 803),
        ("cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", 222),
    ],
)
def test_an_error_of_cuda_is_recognised_by_its_words(text, number):
    code = failures.code_of("gpu.copy", None, "RuntimeError", text)
    assert code == f"cuda_{number}"
    assert len(failures.remedy(code)) > 40


def test_what_torch_says_where_there_is_no_driver_is_not_blamed_on_one_that_is_loaded():
    text = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
    assert failures.code_of("torch.devices", None, "RuntimeError", text) == "no_driver"


def test_the_number_that_an_exception_carries_decides():
    assert failures.code_of("gpu.copy", 803, "AcceleratorError", "out of memory") == "cuda_803"
    assert "12345" in failures.remedy(failures.code_of("gpu.copy", 12345, "AcceleratorError", "new"))


def test_words_that_belong_to_no_error_of_cuda_are_not_guessed():
    assert failures.code_of("gpu.copy", None, "RuntimeError", "shape mismatch") == "failed"


def proof_sources():
    for path in sorted(Path(judge.__file__).parent.glob("*.py")):
        if path.name not in ("failures.py", "stamp.py"):
            yield ast.parse(path.read_text(encoding="utf-8"))


def test_every_code_given_to_a_check_has_a_remedy():
    used = set()
    for tree in proof_sources():
        for node in ast.walk(tree):
            code = None
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                place = {"failed": 1, "not_run": 1, "Failed": 0}.get(name)
                code = node.args[place] if place is not None and len(node.args) > place else None
            elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and is_text(node.elts[1]):
                code = node.elts[0]  # a code with its sentence, on its way to a check
            if isinstance(code, ast.Constant):
                used.add(code.value)
    assert {"no_start", "timed_out", "busy", "not_installed", "no_gpu", "gpu_missing"} <= used
    assert used <= set(failures.TABLE), used - set(failures.TABLE)


def is_text(node):
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and " " in str(node.value))


def test_every_word_is_given_to_a_check_somewhere():
    constants = {node.value for tree in proof_sources() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    words = {code for code in failures.TABLE if not code.rpartition("_")[2].isdecimal()}
    assert (
        words - constants - {"import_failed", "damaged_library", "damaged_driver", "library_missing"} == set()
    )  # code_of gives these


@pytest.mark.parametrize("code", ["cuda_12345", "nvml_777"])
def test_a_number_that_is_newer_than_the_table_names_where_to_look(code):
    assert code.split("_")[1] in failures.remedy(code)


@pytest.mark.parametrize("code", ["cuda_", "cuda_x", "something", ""])
def test_a_code_that_nobody_gives_is_a_mistake(code):
    with pytest.raises(KeyError):
        failures.remedy(code)


# ---- libraries that do not load -------------------------------------------------------------------------------------

SITE = "/opt/gpufleet/envs/base/releases/2.9.1-cu128-1a2b3c4d/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    "said",
    [
        "{0}/torch/lib/libtorch_cuda.so: file too short",
        "{0}/nvidia/cudnn/lib/libcudnn.so.9: invalid ELF header",
        "{0}/torch/lib/libtorch_cpu.so: cannot read file data: Is a directory",
        "{0}/torch/_C.cpython-311-x86_64-linux-gnu.so: ELF load command past end of file",
    ],
)
def test_a_library_that_is_not_whole_is_damaged_and_not_only_not_importable(said):
    text = said.format(SITE)
    assert failures.code_of("torch.import", None, "ImportError", f"ImportError: {text}") == "damaged_library"
    assert failures.code_of("gpu.conv2d", None, "OSError", text) == "damaged_library"


def test_a_library_that_is_not_there_is_no_damaged_one():
    text = "libcudnn.so.9: cannot open shared object file: No such file or directory"
    assert failures.code_of("torch.import", None, "ImportError", text) == "import_failed"
    assert (
        failures.code_of("driver.init", None, "OSError", "libcuda.so.1" + text[len("libcudnn.so.9") :])
        == "library_missing"
    )


def test_the_drivers_own_library_is_the_drivers_to_mend():
    code = failures.code_of("driver.init", None, "OSError", "/usr/lib/x86_64-linux-gnu/libcuda.so.1: file too short")
    assert code == "damaged_driver"
    assert "nvidia_driver" in failures.remedy(code)


@pytest.mark.parametrize(
    "text",
    [
        "cuDNN version incompatibility: PyTorch was compiled against (9, 10, 2) but found runtime version (8, 9, 7).",
        "cuDNN error: CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH",
        "Unable to load any of {libcudnn_engines_precompiled.so.9.10.2, libcudnn_engines_precompiled.so.9}",
    ],
)
def test_libraries_of_two_versions_in_one_process_come_from_two_places(text):
    assert failures.code_of("gpu.conv2d", None, "RuntimeError", text) == "shadowed_library"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\x1b[2J" * 50,
        "CUDA error: " * 5000,
        "(" * 100_000,
        "CUDA_ERROR_" + "A" * 100_000,
        ": ".join(["x.so"] * 20_000),
        "CUDA error: \n",
    ],
    ids=["empty", "control characters", "repeated", "brackets", "long name", "many files", "nothing after it"],
)
def test_hostile_words_are_some_failure_and_take_no_time(text):
    assert failures.code_of("gpu.copy", None, "OSError", text) == "failed"


@pytest.mark.failure("failed")
def test_what_is_no_error_of_cuda_is_not_taken_for_one():
    for text in (
        "[Errno 22] Invalid argument",
        "[Errno 95] Operation not supported",
        "file not found",
        "unknown error",
        "out of memory",
    ):
        assert failures.code_of("gpu.copy", None, "RuntimeError", text) == "failed"
