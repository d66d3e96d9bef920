# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIMULATED stand-in for torch, made by the gpufleet sandbox. It knows its version and multiplies small matrices, slowly."""

from __future__ import annotations

from . import _C, cuda, version
from .version import __version__

float32 = "torch.float32"


class Tensor:
    """Numbers in a list, or rows of numbers: as much of a tensor as the proof without a GPU asks for."""

    def __init__(self, values: list) -> None:
        self._values = values

    def reshape(self, rows: int, columns: int) -> Tensor:
        return Tensor([self._values[row * columns : (row + 1) * columns] for row in range(rows)])

    def __mod__(self, divisor: int) -> Tensor:
        return Tensor([[value % divisor for value in row] for row in self._values])

    def __matmul__(self, other: Tensor) -> Tensor:
        columns = list(zip(*other._values, strict=True))
        return Tensor(
            [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in self._values]
        )

    def tolist(self) -> list:
        return self._values


def arange(stop: int, dtype: str = float32) -> Tensor:
    return Tensor([float(value) for value in range(stop)])


def tensor(values: list) -> Tensor:
    return Tensor(values)


__all__ = ["_C", "Tensor", "__version__", "arange", "cuda", "float32", "tensor", "version"]
