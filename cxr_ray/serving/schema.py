"""What the service says, as JSON: answers, refusals, health."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Answer(BaseModel):
    """The answer of ``POST /v1/predict`` for one image."""

    labels: list[str] = Field(
        description="What the model calls; one name for a multiclass model, any number for a multilabel one.", examples=[["normal"]]
    )
    probabilities: dict[str, float] = Field(
        description="Every label with its probability, 0..1.", examples=[{"covid": 0.02, "normal": 0.95, "pneumonia": 0.03}]
    )
    model: str = Field(description="Name of the bundle.", examples=["cnn-lstm"])
    model_version: str = Field(description="12 hex digits of a SHA-256 over weights and thresholds.", examples=["3f9a1c0b77de"])
    image_sha256: str = Field(description="SHA-256 of the bytes that were received.")
    request_id: str = Field(description="Also in the header X-Request-ID.")
    milliseconds: float = Field(description="Time in the service, decoding and queueing included.", ge=0)


class Refusal(BaseModel):
    """Why a request got no answer. Never holds a file name, a DICOM value or the text of a foreign exception."""

    reason: str = Field(description="Stable code.", examples=["not-an-image"])
    message: str = Field(description="A sentence for a person.", examples=["the bytes are neither PNG, JPEG nor DICOM"])
    request_id: str


class Health(BaseModel):
    """``/healthz``: the service answers."""

    status: Literal["ok"] = "ok"


class ModelInfo(BaseModel):
    """``GET /v1/model``: what is being served."""

    name: str
    version: str
    task: Literal["multiclass", "multilabel"]
    labels: list[str]
    thresholds: list[float] | None
    image_height: int
    image_width: int
    preprocessing_fingerprint: str
    dataset_fingerprint: str
    unsound: str | None = Field(default=None, description="Why this model must not be used; null: nothing is known against it.")
