# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What the numbers of the driver's Xid messages mean, and what follows from each.

Data and a lookup. An Xid is the kernel module's message that something went wrong on a GPU. Numbers and what to do at once are
those of NVIDIA's Xid documentation; where it names nothing but its support, or a repair that failed, the action is `inspect`.
"""

from __future__ import annotations

from typing import NamedTuple

ACTIONS = {
    "ignore": "Nothing has to be done.",
    "restart_app": "Start the program again. If it happens with other programs too, or on one GPU alone, have the card inspected.",
    "reset": "End what uses the GPU and reset it (nvidia-smi --gpu-reset -i ADDRESS), or reboot. If it returns, have the card inspected.",
    "reboot": "Reboot; where that does not help, switch the machine off and on. If it comes back, have card, slot and power inspected.",
    "inspect": "Have the machine inspected: card, slot, power supply and cooling.",
}
SEVERITIES = ("low", "medium", "high", "critical")

_CATALOG = "docs.nvidia.com/deploy/xid-errors, Xid catalog (Ampere and newer)"
_LISTING = "docs.nvidia.com/deploy/xid-errors, listing of driver 555 (all generations)"


class Xid(NamedTuple):
    """One number: what happened in a few words and in a sentence, what follows, how grave it is, where that is from."""

    title: str
    meaning: str
    action: str
    severity: str
    source: str = _CATALOG

    @property
    def remedy(self) -> str:
        """The action in a sentence."""
        return ACTIONS[self.action]


_BAD_COMMANDS = (
    "A program or the driver gave the GPU commands that it cannot read; rarely they were damaged on the way."
)
_OLD_VIDEO = "An engine for video failed on a program's commands."

CATALOGUE: dict[int, Xid] = {
    1: Xid("invalid commands", _BAD_COMMANDS, "restart_app", "medium", _LISTING),
    2: Xid("invalid commands", _BAD_COMMANDS, "restart_app", "medium", _LISTING),
    3: Xid("invalid commands", _BAD_COMMANDS, "restart_app", "medium", _LISTING),
    4: Xid("invalid commands", _BAD_COMMANDS, "restart_app", "medium", _LISTING),
    6: Xid("invalid commands", _BAD_COMMANDS, "restart_app", "medium", _LISTING),
    7: Xid("invalid address of commands", _BAD_COMMANDS, "restart_app", "medium", _LISTING),
    8: Xid("GPU stopped processing", "The GPU did not get on with a program's work in time.", "restart_app", "medium"),
    9: Xid("driver programmed the GPU wrongly", "The driver and the GPU disagree.", "reboot", "high", _LISTING),
    11: Xid("invalid commands", _BAD_COMMANDS, "restart_app", "medium"),
    12: Xid("driver failed at a GPU exception", "The driver could not handle what the GPU told.", "reboot", "high", _LISTING),
    13: Xid("graphics engine exception", "A kernel did what it must not: it left an array or met an illegal instruction.",
            "restart_app", "medium"),
    16: Xid("display engine hung", "The part of the GPU that feeds the screens stands still.", "reboot", "medium", _LISTING),
    18: Xid("bus mastering is off", "The GPU may not read the host's memory: something changed its PCI configuration.",
            "reboot", "high", _LISTING),
    19: Xid("display engine error", "The part of the GPU that feeds the screens failed.", "reboot", "medium", _LISTING),
    20: Xid("invalid video commands", _OLD_VIDEO, "restart_app", "low", _LISTING),
    21: Xid("invalid motion estimation commands", _OLD_VIDEO, "restart_app", "low", _LISTING),
    22: Xid("invalid video commands", _OLD_VIDEO, "restart_app", "low", _LISTING),
    24: Xid("semaphore timed out", "One part of the GPU waited in vain for another.", "restart_app", "medium", _LISTING),
    25: Xid("invalid commands", _BAD_COMMANDS, "restart_app", "medium"),
    26: Xid("frame buffer timed out", "The GPU's memory did not answer in time.", "reset", "high", _LISTING),
    27: Xid("video processor exception", _OLD_VIDEO, "restart_app", "low", _LISTING),
    28: Xid("video processor exception", _OLD_VIDEO, "restart_app", "low", _LISTING),
    29: Xid("video processor exception", _OLD_VIDEO, "restart_app", "low", _LISTING),
    30: Xid("semaphore access failed", "One part of the GPU could not reach another.", "restart_app", "medium", _LISTING),
    31: Xid("GPU memory page fault", "A program reached for memory that is not its own; mostly an error of the program.",
            "restart_app", "medium"),
    32: Xid("invalid or damaged commands", "Commands arrived damaged: by the program, the driver, or the PCI Express link.",
            "restart_app", "medium"),
    33: Xid("micro-controller error", "A processor inside the GPU failed.", "reset", "high", _LISTING),
    34: Xid("video processor exception", _OLD_VIDEO, "restart_app", "low", _LISTING),
    35: Xid("video processor exception", _OLD_VIDEO, "restart_app", "low", _LISTING),
    36: Xid("video processor exception", _OLD_VIDEO, "restart_app", "low", _LISTING),
    37: Xid("driver firmware error", "The GPU's firmware was asked for something that it does not know.", "ignore", "low"),
    38: Xid("driver firmware error", "The GPU's firmware did not answer its watchdog.", "ignore", "medium"),
    43: Xid("GPU stopped processing", "The work of one program was taken from the GPU after an error of its own; the GPU is well.",
            "ignore", "medium"),
    44: Xid("fault during a context switch", "The GPU failed while it changed from one program to another.", "ignore", "medium"),
    45: Xid("work removed early", "Work was taken from the GPU: a program was killed, or an Xid before tells why.",
            "ignore", "low"),
    46: Xid("GPU stopped processing", "The GPU did not come back from an error by itself.", "reset", "critical"),
    48: Xid("uncorrectable memory error", "Two bits of the GPU's memory or caches flipped at once (double bit ECC error).",
            "reset", "critical"),
    54: Xid("power cable is missing", "The card's own power connector has no power.", "inspect", "critical"),
    56: Xid("display engine error", "The part of the GPU that feeds the screens failed.", "reboot", "medium", _LISTING),
    57: Xid("memory interface not programmed", "The driver could not set the GPU's memory up.", "inspect", "critical", _LISTING),
    58: Xid("unstable memory interface", "The connection to the GPU's memory makes errors.", "inspect", "critical", _LISTING),
    59: Xid("micro-controller error", "The GPU's power management processor failed.", "reset", "high", _LISTING),
    60: Xid("video processor exception", "An engine for video and encryption failed on a program's commands.", "restart_app", "medium"),
    61: Xid("micro-controller breakpoint", "The GPU's power management processor stopped to warn.", "reset", "high", _LISTING),
    62: Xid("micro-controller halt", "The GPU's power management processor stopped.", "reset", "critical"),
    63: Xid("memory remapping recorded", "A bad row of the GPU's memory was noted and is replaced at the next reset.", "ignore", "medium"),
    64: Xid("memory remapping failed", "A bad row of the GPU's memory could not be replaced.",
            "reset", "critical"),
    66: Xid("illegal access by the driver", "The driver reached for a register that is closed to it.", "ignore", "medium"),
    67: Xid("illegal access by the driver", "The firmware refused what the driver asked for.", "ignore", "medium"),
    69: Xid("graphics engine class error", "A program used a function of the GPU wrongly.", "restart_app", "medium"),
    74: Xid("NVLink error", "A link between GPUs failed: bridge, connector or the GPU itself.", "reset", "high"),
    78: Xid("vGPU did not start", "Host and guest of a virtual GPU have drivers that do not fit together.", "inspect", "high"),
    79: Xid("GPU has fallen off the bus", "The GPU does not answer on PCI Express: power, heat, slot or card.", "reboot", "critical"),
    80: Xid("damaged data sent to the GPU", "Commands changed on their way to the GPU.", "restart_app", "high"),
    81: Xid("VGA subsystem error", "The old VGA part of the GPU failed.", "reboot", "medium", _LISTING),
    92: Xid("many corrected memory errors", "Single bits of the GPU's memory flip unusually often, and are corrected.", "ignore", "medium"),
    93: Xid("InfoROM wears out", "The GPU's small permanent memory was written more often than it is made for.", "ignore", "medium"),
    94: Xid("contained memory error", "An uncorrectable memory error was kept to the program that met it.", "restart_app", "high"),
    95: Xid("uncontained memory error", "An uncorrectable memory error can have reached every program on the GPU.", "reset", "critical"),
    106: Xid("test message", "A test of the management bus.", "ignore", "low"),
    107: Xid("test message", "A silent test of the management bus.", "ignore", "low"),
    108: Xid("address of another GPU not translated", "A GPU reached over NVLink for memory that is not shared.", "ignore", "medium"),
    109: Xid("context switch timed out", "The GPU could not change from one program to another in time.", "reset", "high"),
    110: Xid("security fault", "A security check inside the GPU failed.", "reset", "high"),
    119: Xid("GSP did not answer", "The GPU's system processor (GSP) did not answer the driver in time.", "reset", "critical"),
    120: Xid("GSP error", "The GPU's system processor (GSP) failed.", "reset", "critical"),
    121: Xid("chip-to-chip link error", "The link between CPU and GPU corrected or retried a transfer.", "ignore", "medium"),
    122: Xid("firmware memory not read", "The GPU's flash memory could not be read.", "inspect", "high", _LISTING),
    123: Xid("firmware memory not written", "The GPU's flash memory could not be written.", "inspect", "high", _LISTING),
    124: Xid("firmware memory not erased", "The GPU's flash memory could not be erased.", "inspect", "high", _LISTING),
    125: Xid("InfoROM file system error", "The GPU's small permanent memory is damaged.", "inspect", "high", _LISTING),
    136: Xid("NVLink did not train", "A link between GPUs could not be brought up.", "reset", "high"),
    137: Xid("NVLink privilege error", "A program reached over NVLink for what is closed to it.", "ignore", "medium"),
    140: Xid("unrecovered memory error", "An ECC error was left over that the GPU could not handle.", "reset", "critical"),
    141: Xid("CUDA fast path error", "A program's direct way to the GPU failed.", "ignore", "medium"),
    143: Xid("GPU did not start", "The GPU failed while the driver brought it up.", "reset", "critical"),
    151: Xid("key rotation failed", "Confidential computing could not change its keys.", "reboot", "high"),
    152: Xid("accelerator address error", "The deep learning accelerator reached for memory that is not its own.", "ignore", "low"),
    153: Xid("accelerator timed out", "The deep learning accelerator did not finish in time.", "ignore", "low"),
    154: Xid("recovery action changed", "The driver says what another Xid asks for; the message itself names it (reset, reboot, drain).",
             "inspect", "high"),
    155: Xid("NVLink error found by software", "The driver took a link between GPUs down.", "reset", "high"),
    156: Xid("part of the GPU retired", "A failing part of the GPU is to be switched off at the next reset.", "reset", "high"),
    157: Xid("part of the GPU not retired", "A failing part of the GPU could not be switched off.", "inspect", "critical"),
    158: Xid("GPU timed out for good", "A part of the GPU never answered.", "reset", "critical"),
    159: Xid("coherent link error", "A transfer between CPU and GPU memory failed.", "restart_app", "high"),
    160: Xid("memory channel retired", "A failing channel of the GPU's memory is to be switched off.", "ignore", "medium"),
    161: Xid("memory channel not retired", "A failing channel of the GPU's memory could not be switched off.", "inspect", "critical"),
    162: Xid("power smoothing back on", "The circuit that smooths the GPU's power draw works again.", "ignore", "low"),
    163: Xid("power smoothing off", "The circuit that smooths the GPU's power draw was switched off.", "ignore", "low"),
    164: Xid("power smoothing wears out", "The circuit that smooths the GPU's power draw is near the end of its life.", "ignore", "medium"),
    165: Xid("power smoothing worn out", "The circuit that smooths the GPU's power draw is at the end of its life.", "inspect", "medium"),
    166: Xid("NVLink without encryption", "Traffic came before the link was set up for encryption.", "reset", "high"),
    167: Xid("PCI Express timed out", "A transfer over PCI Express never ended.", "reboot", "critical"),
    168: Xid("less GPU memory", "A protected part of the GPU's memory has errors: the GPU goes on with less.", "inspect", "high"),
    169: Xid("micro-controller halt", "The GPU's security processor stopped.", "reset", "critical"),
    170: Xid("NVLink interrupt in confidential mode", "A link between GPUs reported an error while it was encrypted.", "reset", "high"),
    171: Xid("uncorrectable error in memory", "Tells about an Xid 48 that it was in the GPU's memory chips.", "reset", "critical"),
    172: Xid("uncorrectable error in a cache", "Tells about an Xid 48 that it was inside the GPU itself.", "reset", "critical"),
}  # fmt: skip
_ENGINES = (  # engines of which a GPU has several: (numbers, name)
    ((39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)), "copy engine"),
    ((68, 83, 84, 88, 89, 96, 97, 98), "video decoder"),
    ((47, 65, 73, 142), "video encoder"),
    ((82, *range(99, 106)), "JPEG decoder"),
    ((86, 139), "optical flow engine"),
    ((42,), "image compositor"),
)
_NVLINK5 = {144: "SAW", 145: "RLW", 146: "TLW", 147: "TREX", 148: "control", 149: "network", 150: "MSE"}
for _numbers, _engine in _ENGINES:
    for _number in _numbers:
        CATALOGUE[_number] = Xid(
            f"{_engine} exception", f"A {_engine} of the GPU failed on a program's commands.", "restart_app", "medium"
        )
for _number, _unit in _NVLINK5.items():
    CATALOGUE[_number] = Xid(
        f"NVLink error ({_unit})", f"The {_unit} unit of a link between GPUs reported an error.", "reset", "high"
    )

UNKNOWN = Xid(
    "not in the catalogue",
    "This version of the collection does not know the number; the message says what it can.",
    "inspect",
    "high",
    "none",
)


def describe(number: int) -> Xid:
    """What an Xid means; a number that is newer than the catalogue is taken as grave."""
    return CATALOGUE.get(number, UNKNOWN)
