"""Several bundles in one service: the one it is named for, and others that a replica loads when they are asked for. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from cxr_ray.errors import ImageError
from cxr_ray.serving.audit import RequestFacts
from cxr_ray.serving.engine import Engine
from cxr_ray.serving.schema import ModelInfo

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a model of a service may be called: it stands in paths and headers."""
Load = Callable[[str], Awaitable[Engine]]


@dataclass(frozen=True)
class Fleet:
    """The models of a service.

    Args:
        engine: Of the model that the service is named for.
        info: What it is.
        others: Further models, by the name that a request gives; ``ModelInfo.name`` is that name.
        load: The engine of one of them, from memory or from its bundle.
    """

    engine: Engine
    info: ModelInfo
    others: Mapping[str, ModelInfo] = field(default_factory=dict)
    load: Load | None = None

    def all(self) -> list[ModelInfo]:
        """Every model; the one that the service is named for comes first."""
        return [self.info, *self.others.values()]

    def about(self, name: str | None, facts: RequestFacts | None = None) -> ModelInfo:
        """What is known of a model (None: the one the service is named for), noted as the one that a request asked.

        Raises:
            ImageError: ``unknown-model``.
        """
        if name is None or name == self.info.name:
            return self.info
        if name not in self.others:
            raise ImageError("unknown-model", f"the models of this service are {', '.join(info.name for info in self.all())}")
        info = self.others[name]
        if facts is not None:
            facts.model_version, facts.model_sha256 = info.version, info.manifest_sha256
        return info

    async def asked(self, info: ModelInfo) -> Engine:
        """The engine of one of its models. A caller who no longer waits does not stop it from being loaded."""
        if info is self.info or self.load is None:
            return self.engine
        return await asyncio.shield(self.load(info.name))
