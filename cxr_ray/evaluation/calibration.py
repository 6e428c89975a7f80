"""Fit a calibration on held-out images, and say by cross-fitting what it is worth; :mod:`cxr_ray.models.calibration` applies it.

Held-out images are the only ones a calibration may be fitted on: on those it was trained on a network is too sure of itself. What a
calibration improves is measured by cross-fitting, patient by patient: each image is calibrated by what was fitted without its patient.

Shapes: N images, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

from cxr_ray.errors import DatasetError
from cxr_ray.evaluation.metrics import one_hot
from cxr_ray.evaluation.thresholds import without_contrast
from cxr_ray.evaluation.weighted import CalibrationError, Floats
from cxr_ray.labels import LabelSet, Task
from cxr_ray.models.calibration import Calibration, CalibrationScores, Method, at_temperature

Choice = Literal["auto", "temperature", "isotonic", "none"]
CHOICES: Final[tuple[str, ...]] = get_args(Choice)
LEAST: Final = 50
"""Images with, and without, every label that ``auto`` asks for before it tries isotonic regression, which has many free numbers."""
FOLDS: Final = 5
_TEMPERATURES: Final = (0.05, 20.0)
_TINY: Final = 1e-12
_GAIN: Final = 1e-6
"""What log-loss must fall by, so that rounding is no gain."""


def calibrate(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    patients: Sequence[str] | NDArray[Any],
    labels: LabelSet,
    *,
    choice: Choice = "auto",
    part: str,
    seed: int = 0,
) -> Calibration | None:
    """A calibration, or None.

    Args:
        probabilities: (N, K) of images that were held out of training.
        targets: (N,) label index for multiclass; (N, K) of 1, 0 or NaN for multilabel.
        patients: (N,)
        labels: The K names and the task.
        choice: ``auto``: the method with the smallest cross-fitted log-loss, and none where neither has a smaller one than the
            probabilities as they are; isotonic regression only where :data:`LEAST` allows.
        part: Where the images come from, in words.
        seed: Of the folds.

    Returns:
        None for ``none``, and for ``auto`` where nothing is gained, or where all images are of one patient.

    Raises:
        DatasetError: A method was asked for by name, and all images are of one patient.
    """
    if choice == "none":
        return None
    said, truth = np.asarray(probabilities, dtype=np.float64), one_hot(targets, labels)
    count = len(np.unique(np.asarray(patients, dtype=str)))
    if count < 2:
        if choice == "auto":
            return None
        raise DatasetError(f"{part} has images of {count} patient(s): a calibration needs two at least", hint="--calibrate none")
    methods: Sequence[Method] = _methods(truth) if choice == "auto" else (choice,)
    before = calibration_scores(said, truth, labels.task)
    crossed = {method: _cross_fitted(said, truth, patients, labels, method, part, seed) for method in methods}
    after = {method: calibration_scores(found, truth, labels.task) for method, found in crossed.items()}
    best = min(after, key=lambda method: after[method].log_loss)
    if choice == "auto" and before.log_loss - after[best].log_loss < _GAIN:
        return None
    facts = {"fitted_on": part, "n": len(said), "patients": count, "before": before, "after": after[best]}
    return Calibration(method=best, **_fitted(said, truth, labels.task, best), **facts)  # type: ignore[arg-type]


def calibration_scores(probabilities: NDArray[Any], truth: Floats, task: Task) -> CalibrationScores:
    """Of (N, K) probabilities; ``truth`` is (N, K) of 1, 0 and NaN (unknown, left out)."""
    said = np.asarray(probabilities, dtype=np.float64)
    found = CalibrationError(said, truth, task)(np.ones((1, len(said))))
    return CalibrationScores(**{name: float(found[name][0]) for name in CalibrationScores.model_fields})


def _methods(truth: Floats) -> tuple[Method, ...]:
    enough = min((truth == 1).sum(0).min(), (truth == 0).sum(0).min()) >= LEAST
    return ("temperature", "isotonic") if enough else ("temperature",)


def _log_loss(said: Floats, truth: Floats, task: Task) -> float:
    inside = np.clip(said, _TINY, 1 - _TINY)
    if task == "multiclass":
        return float(-np.log((inside * truth).sum(1)).mean())
    return float(-np.nanmean(truth * np.log(inside) + (1 - truth) * np.log1p(-inside)))


def _cross_fitted(
    said: Floats, truth: Floats, patients: Sequence[str] | NDArray[Any], labels: LabelSet, method: Method, part: str, seed: int
) -> Floats:
    """Each image by a calibration that was fitted without its patient."""
    found = np.empty_like(said)
    names = np.asarray(patients, dtype=str)
    folds = GroupKFold(min(FOLDS, len(np.unique(names))), shuffle=True, random_state=seed)
    nothing = CalibrationScores(ece=0.0, brier=0.0, log_loss=0.0)
    for rest, held in folds.split(said, groups=names):
        fitted = _fitted(said[rest], truth[rest], labels.task, method)
        calibration = Calibration(method=method, **fitted, fitted_on=part, n=len(rest), patients=1, before=nothing, after=nothing)
        found[held] = calibration.apply(said[held], labels.task)
    return found


def _fitted(said: Floats, truth: Floats, task: Task, method: Method) -> dict[str, Any]:
    if method == "isotonic":
        missing = without_contrast(truth)
        return {"knots": tuple(() if gone else _knots(said[:, k], truth[:, k]) for k, gone in enumerate(missing))}
    if task == "multiclass":
        return {"temperatures": (_temperature(lambda t: _log_loss(at_temperature(said, np.array([t]), task), truth, task)),)}
    return {"temperatures": tuple(_label_temperature(said[:, [k]], truth[:, [k]]) for k in range(said.shape[1]))}


def _label_temperature(said_N1: Floats, truth_N1: Floats) -> float:
    if without_contrast(truth_N1)[0]:
        return 1.0
    return _temperature(lambda t: _log_loss(at_temperature(said_N1, np.array([t]), "multilabel"), truth_N1, "multilabel"))


def _temperature(loss: Callable[[float], float]) -> float:
    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(lambda power: loss(float(np.exp(power))), bounds=(low, high), method="bounded").x))


def _knots(said: Floats, truth: Floats) -> tuple[tuple[float, float], ...]:
    """Of the known answers; never surer than Laplace's rule allows of so many images, 1 / (n + 2)."""
    known = ~np.isnan(truth)
    least = 1.0 / (known.sum() + 2)
    fitted = IsotonicRegression(y_min=least, y_max=1 - least).fit(said[known], truth[known])
    return tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True))
