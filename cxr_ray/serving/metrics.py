"""What Prometheus reads at ``/metrics``. Labels are routes, codes and replicas, never what a client sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one replica, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("cxr_ray_requests", "Requests by route and HTTP status.", ["route", "status"], registry=registry)
        self.latency = Histogram(
            "cxr_ray_request_seconds", "From the request's head to the end of the answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter(
            "cxr_ray_images", "Images by what came of them: answered, or the refusal's reason.", ["outcome"], registry=registry
        )
        self.decode = Histogram(
            "cxr_ray_decode_seconds", "File bytes to the model's pixels, waiting included.", buckets=_SECONDS, registry=registry
        )
        self.infer = Histogram("cxr_ray_infer_seconds", "One forward pass of a batch.", buckets=_SECONDS, registry=registry)
        self.batch = Histogram("cxr_ray_batch_images", "Images of a batch.", buckets=_IMAGES, registry=registry)
        self.engine = Info("cxr_ray_engine", "What computes the forward pass, and why.", registry=registry)
        self.verdicts = Counter("cxr_ray_gate_verdicts", "What the input gate said.", ["verdict"], registry=registry)
        self.replaced = Counter(
            "cxr_ray_decoders_replaced", "Decoding processes that were killed or died, and replaced.", registry=registry
        )
        self.rollout = Gauge(
            "cxr_ray_rollout", "Percent of requests that the candidate sees.", ["id", "mode", "state", "cause"], registry=registry
        )
        self.candidate = Counter("cxr_ray_candidate_requests", "Requests that the candidate saw.", ["outcome"], registry=registry)
        self.versions = Histogram(
            "cxr_ray_version_seconds", "One request during a rollout.", ["version"], buckets=_SECONDS, registry=registry
        )
        self.compared = Counter("cxr_ray_compared", "Answers of both versions that were compared.", ["outcome"], registry=registry)
        self.difference = Gauge(
            "cxr_ray_largest_difference", "Largest difference between both versions' probabilities of a label.", registry=registry
        )
        self.audit_failures = Counter("cxr_ray_audit_failures", "Requests whose audit lines could not be written.", registry=registry)

    def families(self) -> list[Metric]:
        """A copy of all figures that can be sent to another process."""
        return list(self._registry.collect())


def exposition(replicas: Mapping[str, list[Metric]]) -> bytes:
    """The text format, each replica's samples under a label ``replica``."""

    class Together(Collector):
        def collect(self) -> Iterator[Metric]:
            merged: dict[str, Metric] = {}
            for replica, families in replicas.items():
                for family in families:
                    whole = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                    whole.samples += [_labelled(sample, replica) for sample in family.samples]
            yield from merged.values()

    registry = CollectorRegistry()
    registry.register(Together())
    return generate_latest(registry)


def _labelled(sample: Any, replica: str) -> Sample:
    return Sample(sample.name, {**sample.labels, "replica": replica}, sample.value, sample.timestamp, sample.exemplar)
