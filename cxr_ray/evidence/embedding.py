"""The features of the images on a plane, coloured by label, source and patient: what lies together looks alike to the network.

t-SNE (van der Maaten & Hinton 2008) always, UMAP (McInnes 2018) where the extra ``umap`` is installed. Distances between clusters, their
sizes, and the axes mean nothing. Shapes: N images, C features.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from cxr_ray.evaluation.figures import COLOURS, GREY, Picture
from cxr_ray.evidence.sample import Sample

LEAST: Final = 12
"""Images below which there is nothing to lay out."""
_COMPONENTS: Final = 50
_READ: Final = "Each dot is an image; dots that lie together look alike to the network. Distances between groups and the axes mean nothing."


def embeddings(sample: Sample, classes: NDArray[np.str_]) -> Iterator[Picture]:
    """One picture a method.

    Args:
        sample: The images with their features.
        classes: (N,) name of each image's label.
    """
    if len(sample) < LEAST:
        return
    features = StandardScaler().fit_transform(sample.pooled.astype(np.float64))
    if min(features.shape) > _COMPONENTS:
        features = PCA(_COMPONENTS, random_state=sample.seed).fit_transform(features)
    yield _picture("tsne", "t-SNE of the features", _tsne(features, sample.seed), sample, classes)
    if find_spec("umap") is not None:
        yield _picture("umap", "UMAP of the features", _umap(features, sample.seed), sample, classes)


def _tsne(features: NDArray[Any], seed: int) -> NDArray[np.float64]:
    perplexity = min(30.0, (len(features) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features), dtype=np.float64)


def _umap(features: NDArray[Any], seed: int) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that a seed means one thread, and that TensorFlow is not installed
        from umap import UMAP

        found = UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1).fit_transform(features)
    return np.asarray(found, dtype=np.float64)


def _picture(name: str, title: str, places: NDArray[np.float64], sample: Sample, classes: NDArray[np.str_]) -> Picture:
    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    patients = np.array(sample.about.column("patient_id").to_pylist(), dtype=str)
    for axes, told, values in zip(figure.subplots(1, 3), ("label", "source", "patient"), (classes, sample.sources, patients), strict=True):
        _scatter(axes, places, values, "patients with several images" if told == "patient" else told, named=told != "patient")
    ids = sample.about.column("image_id").to_pylist()
    columns = (ids, places[:, 0].round(4), places[:, 1].round(4), classes, sample.sources, patients)
    caption = f"{_READ} Sources, or patients, that form islands of their own are a sign that the network tells them apart."
    return Picture(name, title, caption, figure, ("image_id", "x", "y", "label", "source", "patient_id"), list(zip(*columns, strict=True)))


def _scatter(axes: Axes, places: NDArray[np.float64], values: NDArray[np.str_], title: str, *, named: bool) -> None:
    """Dots in the colours of the most frequent values; of patients those with at least two images, without their names."""
    kinds = [kind for kind, count in Counter(values.tolist()).most_common(len(COLOURS)) if named or count > 1]
    others = ~np.isin(values, kinds)
    axes.scatter(
        places[others, 0], places[others, 1], s=5, color=GREY, alpha=0.35, linewidths=0, rasterized=True, label="others" if named else None
    )
    for place, kind in enumerate(kinds):
        mine = values == kind
        axes.scatter(
            places[mine, 0], places[mine, 1], s=9, color=COLOURS[place], linewidths=0, rasterized=True, label=kind if named else None
        )
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#d5dae0")
    if named:
        handles = [handle for handle in axes.collections if len(np.asarray(handle.get_offsets()))]
        axes.legend(handles=handles, frameon=False, fontsize=7, loc="best")
