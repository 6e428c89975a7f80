"""Feature maps computed once: what a wholly frozen backbone makes of an image is the same in every epoch.

Shapes: B images, C x h x w the feature map, N images of the partitions.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from cxr_ray.data.batches import Batch
from cxr_ray.errors import RunError
from cxr_ray.models.classifier import Classifier

LARGEST_SHARE = 0.5
"""So much of the machine's memory may the maps of a part take in one worker."""


class FeatureCache:
    """Feature maps by row id, filled as the images come by; on the CPU, in the precision that computed them.

    Args:
        model: Its backbone must be frozen for the whole run, in evaluation mode, and see the images as they are (no augmentation).
        rows: N, images of the partitions, over all ranks: which rank sees which image changes from epoch to epoch.

    Raises:
        RunError: The backbone learns something, or the maps would take more than half of the memory.
    """

    def __init__(self, model: Classifier, rows: int) -> None:
        if not model.backbone.is_constant:
            raise RunError(
                "training.cache_features needs a backbone that is frozen for the whole run",
                hint="model.backbone.freeze_stages=-1, without unfreeze_epoch and train_norms; or training.cache_features=false",
            )
        self.model, self.rows = model, rows
        self.filled: Tensor | None = None
        self.maps_NCHW: Tensor | None = None

    def maps(self, batch: Batch, device: torch.device) -> Tensor:
        """(B, C, h, w) on ``device``; computes those that are not there yet."""
        missing = torch.ones(len(batch.rows), dtype=torch.bool) if self.filled is None else ~self.filled[batch.rows]
        if missing.any():
            with torch.no_grad():
                found_BCHW = self.model.feature_map(batch.images[missing].to(device, non_blocking=True)).cpu()
            self._store(batch.rows[missing], found_BCHW)
        assert self.maps_NCHW is not None
        return self.maps_NCHW[batch.rows].to(device, non_blocking=True)

    def _store(self, rows: Tensor, found_BCHW: Tensor) -> None:
        if self.maps_NCHW is None or self.filled is None:
            need = found_BCHW.element_size() * found_BCHW[0].numel() * self.rows
            there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if need > LARGEST_SHARE * there:
                raise RunError(
                    f"the feature maps of {self.rows} images take {need / 2**30:.1f} GiB; this machine has {there / 2**30:.1f} GiB",
                    hint="training.cache_features=false, or smaller images",
                )
            self.maps_NCHW = torch.empty((self.rows, *found_BCHW.shape[1:]), dtype=found_BCHW.dtype)
            self.filled = torch.zeros(self.rows, dtype=torch.bool)
        self.maps_NCHW[rows] = found_BCHW
        self.filled[rows] = True
