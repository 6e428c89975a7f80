"""The bundle behind LitServe."""

import os
from typing import Any

import litserve
import numpy as np
from starlette.requests import Request

from cxr_ray.bundle import read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.serving.predictor import Predictor

BATCH, PORT, WORKERS = (int(os.environ[name]) for name in ("BATCH", "PORT", "WORKERS"))


class Rival(litserve.LitAPI):
    """Decodes and scores in its worker; batches where ``BATCH`` is above 1."""

    def setup(self, device: str) -> None:
        """In each worker."""
        use_cores(int(os.environ["THREADS"]))
        self.predictor = Predictor(read_bundle(os.environ["BUNDLE"]))

    def decode_request(self, request: Request) -> Any:
        """Form -> pixels. (LitServe reads from the annotation that it shall leave the form as it is.)"""
        form: Any = request
        return self.predictor.decode(form["image"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        """Pixels -> (N, H, W)."""
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        """Pixels of one or of several -> answers."""
        answers = [self.predictor.call(row) for row in self.predictor.predict_arrays(x if x.ndim == 3 else x[None])]
        return answers if x.ndim == 3 else answers[0]

    def unbatch(self, output: Any) -> Any:
        """As they are."""
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        """One answer."""
        return {"labels": output.labels, "probabilities": output.probabilities}


if __name__ == "__main__":
    api = Rival(max_batch_size=BATCH, batch_timeout=0.005 if BATCH > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
