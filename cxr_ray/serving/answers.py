"""What was scored becomes an answer, an explanation, or a refusal: the one place that applies the gate's policy."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cxr_ray.errors import ImageError
from cxr_ray.serving.audit import RequestFacts
from cxr_ray.serving.engine import Explained, Scored
from cxr_ray.serving.schema import Answer, Decision, Explanation, GateAnswer, GateCheck, ModelInfo, Picture

if TYPE_CHECKING:
    from cxr_ray.models.gate import GateVerdict

GatePolicy = Literal["refuse", "flag", "off"]
"""What becomes of an image that the input gate refuses: no answer, an answer that is flagged, or the gate is not asked."""
ANSWERED = "answered"


class GateRefused(ImageError):
    """The input gate refuses an image, and the service follows it.

    Args:
        reason: Of the first check that refuses.
        message: Its sentence.
        gate: All that it found.
    """

    def __init__(self, reason: str, message: str, gate: GateAnswer) -> None:
        super().__init__(reason, message)
        self.gate = gate


@dataclass(frozen=True)
class Images:
    """Scores of one request's images into what the client reads; each is noted for the audit log.

    Args:
        info: The model.
        policy: Of the input gate.
        facts: Of the request.
        start: ``time.perf_counter()`` at which its body was complete.
    """

    info: ModelInfo
    policy: GatePolicy
    facts: RequestFacts
    start: float

    def refused(self, data: bytes, error: ImageError) -> None:
        """Note an image that gets no answer."""
        self.facts.inputs.append((_sha256(data), error.reason))

    def answer(self, data: bytes, scored: Scored) -> Answer:
        """One image's answer.

        Raises:
            GateRefused: The gate refuses it.
        """
        gate = judged(scored.verdict, self.policy)
        said = scored.prediction
        return Answer(
            **self._provenance(data, gate),
            labels=list(said.labels),
            probabilities=said.probabilities,
            decision=_decisions(said.labels, said.probabilities, self.info.thresholds),
            calibrated=self.info.calibrated,
        )

    def explanation(self, data: bytes, found: Explained) -> Explanation:
        """One image's explanation.

        Raises:
            GateRefused: The gate refuses it.
        """
        gate = judged(found.scored.verdict, self.policy)
        height, width = found.scored.pixels.shape
        return Explanation(
            **self._provenance(data, gate),
            label=found.label,
            probability=found.scored.prediction.probabilities[found.label],
            method=found.method,
            heat_map=Picture(width=width, height=height, png=_base64(found.heat)),
            overlay=_base64(found.overlay),
            image=_base64(found.image),
        )

    def _provenance(self, data: bytes, gate: GateAnswer | None) -> dict[str, Any]:
        digest = _sha256(data)
        self.facts.inputs.append((digest, ANSWERED))
        return {
            "model": self.info.name,
            "model_version": self.info.version,
            "image_sha256": digest,
            "request_id": self.facts.request_id,
            "milliseconds": round(1000 * (time.perf_counter() - self.start), 2),
            "gate": gate,
        }


def judged(verdict: GateVerdict | None, policy: GatePolicy) -> GateAnswer | None:
    """What a client is told of the gate's verdict (None: no gate).

    Raises:
        GateRefused: It is a refusal, and the policy is to refuse.
    """
    if verdict is None or policy == "off":
        return None
    checks = [GateCheck.model_validate(check, from_attributes=True) for check in verdict.checks]
    gate = GateAnswer(verdict=verdict.verdict, checks=checks)
    if verdict.refusal is None or verdict.reason is None:
        return gate
    if policy == "refuse":
        raise GateRefused(verdict.reason, verdict.refusal.message, gate)
    return gate.model_copy(update={"verdict": "flagged"})


def _decisions(called: Sequence[str], probabilities: dict[str, float], thresholds: Sequence[float | None] | None) -> dict[str, Decision]:
    cuts: Sequence[float | None] = thresholds or [None] * len(probabilities)
    return {
        name: Decision(probability=value, threshold=cut, called=name in called)
        for (name, value), cut in zip(probabilities.items(), cuts, strict=True)
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
