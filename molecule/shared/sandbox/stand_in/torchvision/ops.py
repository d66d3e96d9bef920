# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One operation of torchvision, in plain Python."""

from torch import Tensor


def _area(box: list[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the best of every group of boxes that overlap."""
    all_boxes, all_scores = boxes.tolist(), scores.tolist()
    kept: list[int] = []
    for one in sorted(range(len(all_scores)), key=lambda index: -all_scores[index]):
        box = all_boxes[one]
        for other in (all_boxes[index] for index in kept):
            shared = _area([max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])])
            if shared > iou_threshold * (_area(box) + _area(other) - shared):
                break
        else:
            kept.append(one)
    return Tensor(kept)
