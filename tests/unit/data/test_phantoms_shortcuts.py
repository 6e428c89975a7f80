"""The crucial property: a trivial feature stays near chance, while where the grey lies in the picture does tell the label."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cxr_ray.data.phantoms import CLASSES, MULTILABEL, render_phantom, shots

SIZE = 72
COUNTS = {"covid": 210, "croup": 160, "multilabel": 140}
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


class Sample(NamedTuple):
    images: list[np.ndarray]
    labels: np.ndarray
    patients: np.ndarray


def draw(task: str) -> Sample:
    plan = list(shots(task, COUNTS[task], 0, SIZE))
    names = CLASSES.get(task)
    labels = [names.index(shot.label) if names else [name in shot.findings for name in MULTILABEL] for shot in plan]
    return Sample([render_phantom(shot).image for shot in plan], np.array(labels, int), np.array([shot.patient for shot in plan]))


@pytest.fixture(scope="module")
def covid() -> Sample:
    return draw("covid")


@pytest.fixture(scope="module", params=["croup", "multilabel"])
def other(request: pytest.FixtureRequest) -> Sample:
    return draw(request.param)


def histogram(image: np.ndarray) -> np.ndarray:
    return np.bincount(image.ravel() >> 2, minlength=64) / image.size


def statistics(image: np.ndarray) -> np.ndarray:
    return np.array([image.mean(), image.std(), image.min(), image.max(), *np.percentile(image, PERCENTILES)])


def shape(image: np.ndarray) -> np.ndarray:
    return np.array([*image.shape, image.shape[0] / image.shape[1], image.size])


def pixels(image: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.equalizeHist(image), (12, 12), interpolation=cv2.INTER_AREA).ravel() / 255


Feature = Callable[[np.ndarray], np.ndarray]


def predicted(features: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Out-of-fold probabilities of a logistic regression, folds by patient."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with threadpool_limits(1):  # tiny matrices: threads only wait for each other
        return cross_val_predict(model, features, labels, groups=patients, cv=GroupKFold(5), method="predict_proba")


def macro_f1(sample: Sample, feature: Feature) -> float:
    features = np.stack([feature(image) for image in sample.images])
    return float(f1_score(sample.labels, predicted(features, sample.labels, sample.patients).argmax(1), average="macro"))


@pytest.mark.parametrize("feature", [histogram, statistics, shape])
def test_trivial_features_do_not_tell_the_class(covid: Sample, feature: Feature) -> None:
    assert macro_f1(covid, feature) <= 0.43  # three classes: chance is 0.33


def test_where_the_grey_lies_tells_more(covid: Sample) -> None:
    """Else the test above would also pass on pictures that show nothing."""
    assert macro_f1(covid, pixels) > 0.48


@pytest.mark.parametrize("feature", [histogram, statistics])
def test_trivial_features_do_not_tell_other_findings(other: Sample, feature: Feature) -> None:
    features = np.stack([feature(image) for image in other.images])
    columns = other.labels.reshape(len(other.images), -1).T
    areas = [roc_auc_score(column, predicted(features, column, other.patients)[:, 1]) for column in columns]
    assert np.mean(areas) < 0.57
