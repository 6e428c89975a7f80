"""Chest X-rays to a served, audited CNN-RNN classifier, on a laptop or a Ray cluster.

Contents, low to high (each layer imports only from those before it; ``tests/unit/test_layers.py`` holds it):

========== ==========================================================================
errors     the exceptions a user can meet, each with what to type instead
labels     the label set of a task
config     every setting as a frozen typed model; YAML in, dotted overrides
storage    local paths and object-store URIs; writes that are whole or absent
cluster    the one place that starts or joins Ray
imaging    bytes -> uint8 grey image: the path that ingest and serving share
data       sources, grouping, split, DATASET shards, augmented batches, phantoms
models     backbones, feature map -> sequence, CNN-RNN classifier, recipes
bundle     the BUNDLE: all that serving gets
training   the loop in plain torch, its checkpoints, and Ray Train around it
evaluation metrics with intervals, the report
serving    predictor, HTTP edge, Ray Serve application
cli        ``cxr-ray``: one sub-command a stage
========== ==========================================================================

Importing this package imports neither torch nor ray.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cxr-ray")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
