"""One Ray cluster for all integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cxr_ray.cluster import connect


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of four logical CPUs, shared by the session."""
    import ray

    connect("local", num_cpus=4, object_store_bytes=1 << 30)
    yield
    ray.shutdown()
