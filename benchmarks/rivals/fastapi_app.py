"""The bundle behind plain FastAPI and uvicorn. Images are decoded and scored in ``POOL`` threads beside the event loop."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, UploadFile

from cxr_ray.bundle import read_bundle
from cxr_ray.cpu import use_cores
from cxr_ray.serving.predictor import Predictor

use_cores(int(os.environ["THREADS"]))
predictor = Predictor(read_bundle(os.environ["BUNDLE"]))
pool = ThreadPoolExecutor(int(os.environ["POOL"]))
app = FastAPI()


@app.post("/predict")
async def predict(image: UploadFile) -> dict[str, Any]:
    """One X-ray."""
    data = await image.read()
    (answer,) = await asyncio.get_running_loop().run_in_executor(pool, predictor.predict_bytes, [data])
    if isinstance(answer, Exception):
        raise answer
    return {"labels": answer.labels, "probabilities": answer.probabilities}
