"""A network as an ONNX graph: images in, probabilities and the pooled feature map out, for any batch size; and ONNX Runtime, which runs it.

The normalisation, all members of an ensemble, and softmax or sigmoid are inside. It takes the packages
``onnxruntime`` and ``onnxscript``.
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_ray.errors import ModelError
from cxr_ray.labels import Task
from cxr_ray.models.classifier import Classifier
from cxr_ray.models.ensemble import Ensemble
from cxr_ray.models.forward import EngineName, Scores
from cxr_ray.models.inference import evaluating, to_probabilities

INPUT, OUTPUTS = "images", ("probabilities", "pooled")
_PACKAGES = "pip install onnxruntime onnxscript"


class _Answering(nn.Module):
    """(B, H, W) uint8 -> probabilities (B, K) and pooled_BC, as ``inference.predict_with_pooled`` computes them."""

    def __init__(self, model: Classifier | Ensemble, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits_BK, pooled_BC = self.model.logits_and_pooled(images)
        return to_probabilities(logits_BK, self.task), pooled_BC


def to_onnx(model: Classifier | Ensemble, task: Task) -> bytes:
    """The whole network as an ONNX file; takes some ten seconds. The network is left as it was.

    Raises:
        ModelError: The packages are missing, or the network has something that ONNX cannot say.
    """
    images = torch.zeros((2, *model.image_size), dtype=torch.uint8, device=model.mean.device)
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), evaluating(model), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                _Answering(model, task).eval(),
                (images,),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=2**16)}},
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
        except ImportError as error:
            raise ModelError(f"no ONNX graph without the package {error.name}", hint=_PACKAGES) from None
        except Exception as error:  # the exporter raises of many kinds what a network has that it does not know
            raise ModelError(f"the network cannot be written as an ONNX graph: {type(error).__name__}") from error
        finally:
            logging.getLogger("torch.onnx").setLevel(level)


class OnnxForward:
    """ONNX Runtime on the CPU.

    Args:
        graph: What :func:`to_onnx` made.
        threads: Cores it may use.

    Raises:
        ModelError: The package is missing, or the graph cannot be run.
    """

    name: EngineName = "onnx"

    def __init__(self, graph: bytes, *, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ModelError("ONNX Runtime is not installed", hint=_PACKAGES) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to decoding
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base but this
            raise ModelError(f"ONNX Runtime refuses the graph: {type(error).__name__}") from error

    def __call__(self, images: NDArray[np.uint8]) -> Scores:
        """See :class:`cxr_ray.models.forward.Forward`."""
        probabilities_NK, pooled_NC = self._session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(images)})
        return probabilities_NK, pooled_NC
