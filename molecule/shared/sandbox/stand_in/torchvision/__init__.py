# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIMULATED stand-in for torchvision, made by the gpufleet sandbox."""

from . import ops

__version__ = "@VERSION@"
__all__ = ["__version__", "ops"]
