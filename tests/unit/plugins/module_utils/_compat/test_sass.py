# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine code runs on which device."""

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.workstation.plugins.module_utils._compat.sass import runs_on, serving_code


@pytest.mark.parametrize(
    ("code", "device", "cuda", "expected"),
    [
        ("12.0", "12.0", "12.8", True),
        ("12.0", "12.1", "12.8", True),
        ("12.1", "12.0", "12.8", False),
        ("9.0", "12.0", "12.8", False),
        ("9.0", "10.0", "12.8", False),
        ("10.0", "10.3", "12.8", True),
        ("10.0", "12.0", "12.8", False),
        ("8.6", "8.9", "12.8", True),
        ("8.0", "8.6", "12.6", True),
        ("8.6", "8.0", "12.6", False),
        ("7.0", "7.5", "12.6", True),
        ("6.0", "6.1", "12.6", True),
        # integrated GPUs
        ("8.0", "8.7", "13.0", False),
        ("8.6", "8.7", "13.0", False),
        ("8.0", "8.7", "13.2", True),
        ("8.6", "8.7", "13.4", True),
        ("8.7", "8.7", "12.6", True),
        ("7.0", "7.2", "12.6", False),
        ("7.0", "7.2", "13.2", True),
        ("5.0", "5.3", "13.2", False),
        ("5.2", "5.3", "12.6", False),
        ("6.0", "6.2", "13.2", False),
        ("6.1", "6.2", "12.6", False),
        # one device with two names
        ("11.0", "11.0", "13.0", True),
        ("10.1", "11.0", "12.8", True),
        ("11.0", "10.1", "13.0", True),
        ("10.0", "10.1", "12.8", False),
        ("10.0", "11.0", "13.0", False),
    ],
)
def test_code_runs_on_the_same_major_version_from_its_minor_version_on(
    code: str, device: str, cuda: str, expected: bool
) -> None:
    assert runs_on(code, device, cuda) is expected


def test_the_closest_code_serves() -> None:
    assert serving_code(("8.0", "8.6", "9.0"), "8.9", "12.8") == "8.6"
    assert serving_code(("5.0", "6.0", "7.0"), "6.1", "12.6") == "6.0"
    assert serving_code(("8.0", "9.0", "10.0", "12.0"), "11.0", "12.8") is None
    assert serving_code((), "8.0", "12.8") is None
