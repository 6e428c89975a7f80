"""What an image has that its blurred copy lacks, and what each of these details does to a label's logit.

Integrated gradients (Sundararajan 2017) along the straight path from the strongly blurred image to the image, taken at the network's first
convolution and smoothed. Class activation maps are blind where an RNN reads the evidence: its states spread over all later pixels, and
gates that are saturated have no gradient left at the end of the path (benchmarks/pointing.py). At the first convolution a map has the
resolution of the image and the whole network in it.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_ray.models.classifier import Classifier

BLUR: Final = 1 / 10
"""Standard deviation of the blur as a share of the image's longer side."""
SMOOTHING: Final = 1 / 20
"""The same of the map."""
STEPS: Final = 4


def integrated(classifier: Classifier, image_1HW: Tensor, label: int) -> NDArray[np.float32]:
    """Where the details stand that speak for a label.

    Args:
        classifier: In evaluation mode, its weights without gradients.
        image_1HW: uint8, on the network's device.
        label: 0 … K - 1.

    Returns:
        (H, W), 0 … 1; all 0 where nothing speaks for the label.
    """
    height, width = image_1HW.shape[1:]
    side = max(height, width)
    grey = image_1HW[0].cpu().numpy()
    blurred_1HW = torch.from_numpy(cv2.GaussianBlur(grey, (0, 0), BLUR * side)).to(image_1HW.device)[None].float()
    ends = torch.cat([blurred_1HW, image_1HW.float()])
    along_T11 = ((torch.arange(STEPS, device=ends.device) + 0.5) / STEPS)[:, None, None]
    first = next(module for module in classifier.backbone.modules() if isinstance(module, nn.Conv2d))
    seen: list[Tensor] = []

    def listen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # what follows may change it in place

    handle = first.register_forward_hook(listen)
    try:
        with torch.no_grad():
            classifier(ends)
        logits_TK = classifier(ends[0] + (ends[1] - ends[0]) * along_T11)
    finally:
        handle.remove()
    (gradient_TChw,) = torch.autograd.grad(logits_TK[:, label].sum(), seen[1])
    details_Chw = seen[0][1] - seen[0][0]
    coarse_hw = (details_Chw * gradient_TChw.mean(0)).sum(0).float().detach().cpu().numpy()
    fine_HW = cv2.resize(coarse_hw, (width, height), interpolation=cv2.INTER_LINEAR)
    heat_HW = np.maximum(cv2.GaussianBlur(fine_HW, (0, 0), SMOOTHING * side), 0.0)
    return np.asarray(heat_HW / max(float(heat_HW.max()), 1e-12), dtype=np.float32)
