"""What the service says, as JSON: answers, explanations, refusals, health. The client reads with the same models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Verdict = Literal["ok", "flagged", "refused"]
ExplanationMethod = Literal["gradcam", "integrated"]
"""Of ``evaluation.explain``, those that answer within a deadline."""
EngineChoice = Literal["auto", "torch", "onnx", "compile"]
"""What may be asked to compute the forward pass."""


class Decision(BaseModel):
    """What is made of one label's probability."""

    probability: float = Field(ge=0, le=1)
    threshold: float | None = Field(description="The label is called at or above it; null where the largest probability decides.")
    called: bool


class GateCheck(BaseModel):
    """One question that the input gate asks of an image."""

    name: str
    verdict: Verdict
    value: float
    threshold: float
    message: str


class GateAnswer(BaseModel):
    """Whether the image is one that the model can be asked about."""

    verdict: Verdict
    checks: list[GateCheck]


class Provenance(BaseModel):
    """Which bytes, which model, which request."""

    model: str = Field(description="Name of the bundle.", examples=["cnn-lstm"])
    model_version: str = Field(description="12 hex digits of a SHA-256 over all that answers follow from.", examples=["3f9a1c0b77de"])
    image_sha256: str = Field(description="SHA-256 of the bytes that were received.")
    request_id: str = Field(description="Also in the header X-Request-ID.")
    milliseconds: float = Field(description="Time in the service, decoding and queueing included.", ge=0)
    gate: GateAnswer | None = Field(default=None, description="null: the bundle has no gate, or the service has it off.")


class Answer(Provenance):
    """The answer of ``POST /v1/predict`` for one image."""

    labels: list[str] = Field(
        description="What the model calls; one name for a multiclass model, any number for a multilabel one.", examples=[["normal"]]
    )
    probabilities: dict[str, float] = Field(
        description="Every label with its probability, 0..1.", examples=[{"covid": 0.02, "normal": 0.95, "pneumonia": 0.03}]
    )
    decision: dict[str, Decision] = Field(description="Every label with what was decided.")
    calibrated: bool = Field(description="Whether the probabilities were calibrated on held-out images.")


class Refusal(BaseModel):
    """Why a request got no answer. Never holds a file name, a DICOM value or the text of a foreign exception."""

    reason: str = Field(description="Stable code.", examples=["not-an-image"])
    message: str = Field(description="A sentence for a person.", examples=["the bytes are neither PNG, JPEG nor DICOM"])
    request_id: str


class ImageRefusal(Refusal):
    """Why one image got no answer."""

    gate: GateAnswer | None = Field(default=None, description="Where the input gate refused it.")


class IndexedRefusal(ImageRefusal):
    """Why one of several images got no answer."""

    index: int = Field(description="Its place in the form, from 0.", ge=0)


class Answers(BaseModel):
    """The answer of ``POST /v1/predict`` for several images, in the order of the form."""

    answers: list[Answer | IndexedRefusal]
    request_id: str


class Picture(BaseModel):
    """A grey PNG of known size."""

    width: int
    height: int
    png: str = Field(description="Base64.")


class Explanation(Provenance):
    """The answer of ``POST /v1/explain``: where the model looked."""

    label: str
    probability: float = Field(ge=0, le=1)
    method: ExplanationMethod
    heat_map: Picture = Field(description="0..255: the influence of each place on the label's score.")
    overlay: str = Field(description="Base64 of a PNG: the heat over the image.")
    image: str = Field(description="Base64 of a grey PNG: the image as the model saw it.")


class Health(BaseModel):
    """``/healthz``: the service answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """``/readyz``: whether this replica can classify now."""

    status: Literal["ready", "not-ready"]


class EngineInfo(BaseModel):
    """What computes the model's forward pass in the replica that is asked."""

    name: Literal["torch", "onnx", "compile"]
    reason: str = Field(description="Why this one.")
    milliseconds: dict[str, dict[int, float]] = Field(
        default={}, description="Engine -> images of a batch -> median time of a pass, measured at the start."
    )


class ModelInfo(BaseModel):
    """``GET /v1/model``: what is being served."""

    name: str
    version: str
    task: Literal["multiclass", "multilabel"]
    labels: list[str]
    thresholds: list[float | None] | None
    image_height: int
    image_width: int
    preprocessing_fingerprint: str
    dataset_fingerprint: str
    unsound: str | None = Field(default=None, description="Why this model must not be used; null: nothing is known against it.")
    calibrated: bool = False
    manifest_sha256: str = Field(description="SHA-256 of bundle.json; stands in the audit log.")
    card: str = Field(description="The model card, Markdown.")
    metrics: dict[str, Any] | None = Field(default=None, description="metrics.json of its evaluation; null: not evaluated.")
    engine: EngineInfo | None = None
    gate: dict[str, Any] | None = Field(default=None, description="What the input gate was fitted on and how often it errs; null: no gate.")


class ModelSummary(BaseModel):
    """One of the models of a service."""

    name: str = Field(description="For ?model= and for /v2/models/NAME.")
    version: str
    task: Literal["multiclass", "multilabel"]
    labels: list[str]
    manifest_sha256: str
    default: bool = Field(description="Whether it answers where a request names none.")


class ModelList(BaseModel):
    """``GET /v1/models``."""

    models: list[ModelSummary]
