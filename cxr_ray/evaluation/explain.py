"""Where in an image a model sees what it calls: class activation maps, integrated gradients, occlusion.

The feature map is computed once without gradients; what follows it (sequence, RNN, readout, head) is differentiated with respect to the
map, so a frozen backbone makes no difference. The maps themselves are the package grad-cam's:

========== ==========================================================================================================
gradcam    channels weighted by the mean gradient of the label's logit (Selvaraju 2017)
gradcam++  by the mean of the positive gradients, those that decide alone counted more (Chattopadhay 2018)
hirescam   each element of the map by its own gradient (Draelos 2020): a pixel that the RNN reads otherwise counts otherwise
eigencam   first principal component of the map, whatever the label (Muhammad 2020); its sign, which is arbitrary, is
           chosen here so that the map is hot where the network's response is strong
integrated what the image has that its blurred copy lacks, times what it does to the logit (:mod:`cxr_ray.evaluation.integrated`)
occlusion  what covering a part of the image costs (:mod:`cxr_ray.evaluation.occlusion`); 170 forward passes
========== ==========================================================================================================

A map is as coarse as the feature map and says where evidence stands, not why, nor whether it is right. Shapes: H x W pixels, h x w of
the feature map, C channels.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cxr_ray.errors import ModelError
from cxr_ray.evaluation.integrated import integrated
from cxr_ray.evaluation.occlusion import occlusion
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.inference import evaluating

_lock = threading.Lock()
"""One explanation at a time: gradients are switched off at the weights and cuDNN at large while it lasts."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Where a model sees one label in one image.

    Args:
        heat_HW: (H, W) float32, 0 (nothing) to 1 (most); all 0 where nothing speaks for the label.
        label: Index of the label that is explained.
    """

    heat_HW: NDArray[np.float32]
    label: int


class _OrientedEigenCAM(EigenCAM):
    """EigenCAM with a sign: the principal component must grow with the length of the map's vectors."""

    def get_cam_image(self, *arguments: Any, **keywords: Any) -> NDArray[Any]:
        """Of the package's interface: (B, h, w)."""
        component_Bhw = super().get_cam_image(*arguments, **keywords)
        strength_Bhw = np.linalg.norm(self.activations_and_grads.activations[0].numpy(), axis=1)
        centred_Bhw = strength_Bhw - strength_Bhw.mean(axis=(1, 2), keepdims=True)
        agreement_B = (component_Bhw * centred_Bhw).sum(axis=(1, 2))
        return np.asarray(component_Bhw * np.where(agreement_B < 0, -1.0, 1.0)[:, None, None])


_CAMS: Final[dict[str, Any]] = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM, "eigencam": _OrientedEigenCAM}
OCCLUSION: Final = "occlusion"
INTEGRATED: Final = "integrated"
METHODS: Final = (*_CAMS, INTEGRATED, OCCLUSION)
BEST: Final = INTEGRATED
"""What finds planted lesions best (benchmarks/pointing.py); the service answers with ``gradcam``, a fifth of the work, unless asked."""


class _AfterMap(nn.Module):
    """The network from its feature map on; ``seam`` is where grad-cam listens."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.seam = classifier, nn.Identity()

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return self.classifier.classify_map(self.seam(map_BCHW))


def explain(
    model: Classifier | Ensemble, image_HW: NDArray[np.uint8], label_index: int | None = None, method: str = "gradcam"
) -> Explanation:
    """Where ``model`` sees a label in an image. Safe to call from several threads; they wait for each other.

    Of an ensemble the members' maps are averaged with their weights; occlusion asks the whole.

    Args:
        model: On any device; its mode and its weights are left as they were.
        image_HW: (H, W) uint8, preprocessed.
        label_index: 0 … K - 1. None: the label with the largest probability.
        method: One of :data:`METHODS`.

    Raises:
        ModelError: Unknown method, no such label, or an image of another size than the network's.
    """
    if method not in METHODS:
        raise ModelError(f"unknown method {method!r} of explanation", hint=f"one of {', '.join(METHODS)}")
    if label_index is not None and not 0 <= label_index < model.num_outputs:
        raise ModelError(f"no label {label_index}: the model has {model.num_outputs}")
    if image_HW.ndim != 2 or image_HW.dtype != np.uint8:
        raise ModelError(f"expected one image (H, W) uint8, got {image_HW.shape} {image_HW.dtype}")
    image_1HW = torch.from_numpy(np.array(image_HW))[None].to(model.mean.device)
    with _lock, evaluating(model), _weights_at_rest(model):
        if label_index is None:
            with torch.no_grad():
                label_index = int(model(image_1HW).argmax())
        if method == OCCLUSION:
            coarse_hw: Any = occlusion(model, image_1HW, label_index)
        elif isinstance(model, Ensemble):
            shares = model.log_weights.exp().tolist()
            maps = [_heat(member, image_1HW, label_index, method) for member in model.members]  # type: ignore[arg-type]
            coarse_hw = sum(share * cv2.resize(heat, maps[0].shape[::-1]) for share, heat in zip(shares, maps, strict=True))
        else:
            coarse_hw = _heat(model, image_1HW, label_index, method)
    heat_HW = cv2.resize(np.asarray(coarse_hw, dtype=np.float32), image_HW.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return Explanation(np.clip(heat_HW, 0.0, 1.0), label_index)


def overlay_png(image_HW: NDArray[np.uint8], heat_HW: NDArray[np.float32], alpha: float = 0.45) -> bytes:
    """The image with its heat in colour (Turbo: blue to red) above it, as an RGB PNG.

    Args:
        image_HW: (H, W) uint8.
        heat_HW: (H, W), 0 … 1.
        alpha: Share of the colour, 0 … 1, where the heat is 1; elsewhere in proportion, so that the image stays clear where nothing is.
    """
    return _png(np.ascontiguousarray(overlay(image_HW, heat_HW, alpha)[..., ::-1]))


def overlay(image_HW: NDArray[np.uint8], heat_HW: NDArray[np.float32], alpha: float = 0.45) -> NDArray[np.uint8]:
    """The same as (H, W, 3) uint8, red, green, blue."""
    colour_HW3 = cv2.applyColorMap(_as_grey(heat_HW), cv2.COLORMAP_TURBO)[..., ::-1]
    share_HW1 = alpha * np.sqrt(np.clip(heat_HW, 0.0, 1.0))[..., None]
    return np.asarray(np.rint((1.0 - share_HW1) * image_HW[..., None] + share_HW1 * colour_HW3), np.uint8)


def grey_png(array_HW: NDArray[Any]) -> bytes:
    """(H, W) uint8, or floats 0 … 1, as a grey PNG of 8 bits."""
    return _png(_as_grey(array_HW))


def _as_grey(array_HW: NDArray[Any]) -> NDArray[np.uint8]:
    return array_HW if array_HW.dtype == np.uint8 else np.rint(np.clip(array_HW, 0.0, 1.0) * 255.0).astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    written, data = cv2.imencode(".png", pixels)
    assert written
    return bytes(data)


def _heat(classifier: Classifier, image_1HW: Tensor, label: int, method: str) -> NDArray[np.float32]:
    """(h, w), 0 … 1."""
    if method == INTEGRATED:
        with torch.backends.cudnn.flags(enabled=False):
            return integrated(classifier, image_1HW, label)
    with torch.no_grad():
        map_1CHW = classifier.feature_map(image_1HW)
    after = _AfterMap(classifier)
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN's RNN has no backward pass in evaluation mode
        heat_1hw = _CAMS[method](after, [after.seam])(map_1CHW.requires_grad_(), [ClassifierOutputTarget(label)])
    return np.asarray(heat_1hw[0], dtype=np.float32)


@contextlib.contextmanager
def _weights_at_rest(model: nn.Module) -> Iterator[None]:
    """No gradient is computed for, or left at, any weight within the block."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
