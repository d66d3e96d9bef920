"""The numbers of the proof, with a real torch on the CPU: what is right passes with room, what is wrong does not.

Runs where the Python of these tests has torch, as on the machines of tests/gpu.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._proof import judge, runner, torch_checks

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def given():
    references = Future()
    references.set_result(torch_checks.make_references())
    return torch_checks.Given(references, burn_seconds=0.2)


ON_CPU = sorted(set(torch_checks.GPU_CHECKS) - {"gpu.memory", "gpu.burn", *torch_checks.COMPANIONS})


@pytest.mark.parametrize("name", ON_CPU)
def test_right_numbers_pass_with_room(given, name):
    _text, values = torch_checks.GPU_CHECKS[name]("cpu", given)
    rounded = name in ("gpu.matmul_fp16", "gpu.matmul_bf16")  # rounding the result takes all that is allowed
    assert values.get("largest_error_of_allowed", 0.0) <= (1.0 if rounded else 0.6)


def test_the_checks_of_the_level_quick_import_nothing_after_torch():
    names = [check.name for check in judge.GPU_CHECKS if check.level == "quick" and check.name in ON_CPU]
    program = (
        "import sys, types\n"
        "checks = types.ModuleType('checks')\n"
        "sys.modules['checks'] = checks\n"
        "exec(sys.stdin.read(), vars(checks))\n"
        "import torch\n"
        "given = checks.Given(checks.Future(), 0.0)\n"
        "given.references.set_result(checks.make_references())\n"
        "before = set(sys.modules)\n"
        "for name in sys.argv[1:]:\n"
        "    checks.GPU_CHECKS[name]('cpu', given)\n"
        "print(*set(sys.modules) - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *names],
        input=runner.source_of(torch_checks),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "gpu.conv2d" in names
    assert (done.returncode, done.stdout.split()) == (0, []), done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(torch_checks.COMPANIONS))
def test_the_kernels_of_companions_pass_on_the_cpu(given, name):
    pytest.importorskip(torch_checks.COMPANIONS[name])
    assert torch_checks.GPU_CHECKS[name]("cpu", given)[0]


def test_an_optimizer_that_changes_no_weight_is_found(given, monkeypatch):
    step = torch.optim.AdamW.step

    def only_in_float64(self):
        return step(self) if self.param_groups[0]["params"][0].dtype == torch.float64 else None

    monkeypatch.setattr(torch.optim.AdamW, "step", only_in_float64)
    with pytest.raises(torch_checks.WrongResult, match="change of weights: 2048 of 2048"):
        torch_checks.check_optimizer("cpu", given)


def test_one_wrong_value_of_an_fp8_product_is_found(given, monkeypatch):
    genuine = torch._scaled_mm

    def one_wrong(*arguments, **options):
        out = genuine(*arguments, **options)
        out[5, 7] += 2.0
        return out

    monkeypatch.setattr(torch, "_scaled_mm", one_wrong)
    with pytest.raises(torch_checks.WrongResult, match="FP8: 1 of"):
        torch_checks.check_fp8("cpu", given)


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_memory_that_keeps_what_is_written_has_no_wrong_word():
    assert torch_checks.fill_and_verify("cpu", 10_000, 1000) == (0, 10_000)


def test_no_two_words_of_the_pattern_are_alike():
    words = torch.arange(1 << 20).mul_(torch_checks.KNUTH)
    assert len(words.unique()) == 1 << 20


def test_two_places_that_share_their_memory_are_found(monkeypatch):
    genuine = torch.empty
    chunks = []

    def aliased(*size, **options):
        chunks.append(genuine(*size, **options))
        return chunks[1] if len(chunks) == 4 else chunks[-1]  # the first one is the expectation, not memory under test

    monkeypatch.setattr(torch, "empty", aliased)
    wrong, filled = torch_checks.fill_and_verify("cpu", 5000, 1000)
    assert (wrong > 900, filled) == (True, 5000)


def test_one_bit_that_does_not_change_with_the_others_is_found(monkeypatch):
    genuine = torch.Tensor.bitwise_not_
    inverted = []

    def stuck(self):
        inverted.append(1)
        genuine(self)
        if len(inverted) == 2:  # the chunks come first, then what is expected of them
            self[123] ^= 1 << 17
        return self

    monkeypatch.setattr(torch.Tensor, "bitwise_not_", stuck)
    assert torch_checks.fill_and_verify("cpu", 4000, 1000) == (1, 4000)


def test_a_comparison_that_does_nothing_does_not_pass(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "sum", lambda self, *arguments: torch.zeros(()))
    assert torch_checks.fill_and_verify("cpu", 2000, 1000)[0] == 4000


# ---- the burn -------------------------------------------------------------------------------------------------------


def test_a_burn_counts_its_products_and_their_speed():
    text, values = torch_checks.burn("cpu", 0.3, 512, ["bfloat16", "float32"])
    assert min(values["products"].values()) >= torch_checks.PRODUCTS
    assert values["tflop_s"].keys() == {"bfloat16", "float32"}
    assert "without a wrong bit" in text


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_one_bit_that_changes_in_the_burn_is_found(monkeypatch, kind):
    genuine = torch.matmul
    calls = []

    def late_error(left, right, out):
        genuine(left, right, out=out)
        calls.append(1)
        if len(calls) == 6:  # the first product is the one that all others are compared with
            bits = out.view(torch.int32 if kind == "float32" else torch.int16)
            bits[3, 4] ^= 1
        return out

    monkeypatch.setattr(torch, "matmul", late_error)
    with pytest.raises(torch_checks.WrongResult, match=r"^1 values of") as found:
        torch_checks.burn("cpu", 5.0, 512, [kind])
    assert found.value.values["wrong"] == 1


def test_a_burn_whose_first_product_is_wrong_does_not_start(monkeypatch):
    genuine = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda left, right, out: genuine(left, right, out=out).mul_(1.01))
    with pytest.raises(torch_checks.WrongResult, match="first product float32"):
        torch_checks.burn("cpu", 5.0, 512, ["float32"])


def test_a_product_that_is_not_computed_again_is_found(monkeypatch):
    genuine = torch.matmul
    calls = []

    def lazy(left, right, out):
        calls.append(1)
        return genuine(left, right, out=out) if len(calls) < 8 else out

    monkeypatch.setattr(torch, "matmul", lazy)
    with pytest.raises(torch_checks.WrongResult, match="differ from those of the first"):
        torch_checks.burn("cpu", 5.0, 512, ["float32"])


# ---- the compiler ---------------------------------------------------------------------------------------------------


def test_a_compiled_function_is_compared_and_its_own_error_is_kept(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda x, y: function(x, y) * 1.001)
    with pytest.raises(torch_checks.WrongResult, match="compiled function"):
        torch_checks.check_compile("cpu")

    def broken(function):
        raise RuntimeError("what the compiler says")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(torch_checks, "compiler_problem", lambda: None)
    with pytest.raises(RuntimeError, match="what the compiler says"):
        torch_checks.check_compile("cpu")


def test_a_function_of_the_script_can_be_compiled_although_it_has_no_file():
    source = Path(torch_checks.__file__).read_text(encoding="utf-8").partition('\n\nif __name__ == "__main__":')[0]
    source += (
        "\nimport torch\ngenuine = torch.compile\n"
        "torch.compile = lambda f: genuine(f, backend='aot_eager', fullgraph=True)\nprint(check_compile('cpu')[0])\n"
    )
    command = [sys.executable, "-I", "-B", "-"]
    done = subprocess.run(
        command, input=source, capture_output=True, text=True, env=dict(os.environ, HOME="/nonexistent")
    )
    assert "compiled function: 384 values" in done.stdout, done.stderr[-2000:]
