"""``select``: train several recipes on the same data and keep the best by validation ("Algorithm 1" of paper 003; the ablation of 004).

Paper 003 tests each network on the test part and keeps the one that did best there, which spends the test part on the choice. Here
validation chooses, and the test part is left for ``evaluate``. ``OUT/<name>`` are RUNs, ``OUT/select.json`` says how each did.
"""

from __future__ import annotations

import fnmatch
import itertools
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxr_ray import storage
from cxr_ray.cluster import connected
from cxr_ray.config import FeedConfig, Recipe, load_recipe, recipe_names
from cxr_ray.data.shards import open_dataset
from cxr_ray.data.stream import FeedPlan
from cxr_ray.errors import ConfigError, CxrRayError, RunError
from cxr_ray.training.progress import TrainProgress
from cxr_ray.training.run import Run
from cxr_ray.training.trainer import plan_feeds, train

logger = logging.getLogger(__name__)

SCHEMA = "cxr-ray/select/1"
SUMMARY = "select.json"
METRICS = ("val_loss", "val_accuracy", "val_macro_f1", "val_macro_auroc")


@dataclass(frozen=True)
class Candidate:
    """One training among several.

    Args:
        name: Recipe, and what was varied; the name of its RUN.
        recipe: Resolved.
    """

    name: str
    recipe: Recipe


def candidates(recipes: Sequence[str], overrides: Sequence[str] = (), vary: Mapping[str, Sequence[str]] | None = None) -> list[Candidate]:
    """Every recipe with every combination of the varied settings.

    Args:
        recipes: Names, files, or patterns such as ``*-rnn`` over the built-in names.
        overrides: ``key=value`` for all of them.
        vary: Key -> values as they would stand after ``key=``.

    Raises:
        ConfigError: A pattern without a match, faults in a recipe, or two candidates of one name.
    """
    names: list[str] = []
    for wanted in recipes:
        found = fnmatch.filter(recipe_names(), wanted) if re.search(r"[*?\[]", wanted) else [wanted]
        if not found:
            raise ConfigError(
                [f"no recipe fits {wanted!r}; there are: {', '.join(recipe_names())}"], where="--recipe", hint="cxr-ray recipes"
            )
        names += found
    varied = {key: list(values) for key, values in (vary or {}).items()}
    listed: list[Candidate] = []
    for name, values in itertools.product(dict.fromkeys(names), itertools.product(*varied.values())):
        settings = [f"{key}={value}" for key, value in zip(varied, values, strict=True)]
        recipe = load_recipe(name, [*overrides, *settings])
        parts = [recipe.name, *(f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in zip(varied, values, strict=True))]
        listed.append(Candidate(re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)), recipe))
    twice = {item.name for item in listed if [other.name for other in listed].count(item.name) > 1}
    if twice:
        raise ConfigError([f"several candidates are called {', '.join(sorted(twice))}"], where="--recipe and --vary")
    return listed


def parse_vary(entries: Sequence[str]) -> dict[str, list[str]]:
    """``["training.optimizer.lr=0.001,0.01"]`` -> ``{"training.optimizer.lr": ["0.001", "0.01"]}``.

    Raises:
        ConfigError: No ``=``, or no values.
    """
    found: dict[str, list[str]] = {}
    for entry in entries:
        key, _, values = entry.partition("=")
        listed = [value.strip() for value in values.split(",") if value.strip()]
        if not key.strip() or not listed:
            raise ConfigError([f"{entry!r}: expected key=value,value, such as training.optimizer.lr=0.001,0.01"], where="--vary")
        found[key.strip()] = listed
    return found


def select(
    listed: Sequence[Candidate],
    dataset: str,
    out: str,
    *,
    metric: str = "val_macro_f1",
    workers: int = 1,
    use_gpu: bool = False,
    fold: int | None = None,
    address: str | None = None,
    report: Callable[[str, TrainProgress], None] | None = None,
) -> dict[str, Any]:
    """Train each candidate, or go on where an earlier call stopped, and say which did best on the validation part.

    One that fails (its weights cannot be had, its loss is not finite) is recorded with its reason and does not end the others.

    Args:
        listed: See :func:`candidates`.
        dataset: DATASET.
        out: Directory to write.
        metric: One of :data:`METRICS`, of the epoch that the candidate's own monitor chose.
        workers: Training processes of each run.
        use_gpu: One GPU a worker.
        fold: Hold this fold out for validation. None: partitions ``train`` and ``val``.
        address: Ray cluster; see :func:`cxr_ray.cluster.connect`.
        report: Called with the candidate's name after each of its epochs.

    Returns:
        ``select.json``: ``{schema, metric, dataset_fingerprint, best, candidates: [{name, run, value, epoch, epochs,
        seconds_per_epoch, error}]}``, best first.

    Raises:
        ConfigError: Unknown metric.
        RunError: No candidate could be trained.
    """
    if metric not in METRICS:
        raise ConfigError([f"unknown metric {metric!r}; valid: {', '.join(METRICS)}"], where="--metric")
    data = open_dataset(dataset)
    out = storage.absolute(out)
    plans: dict[FeedConfig, tuple[FeedPlan, FeedPlan | None]] = {}
    facts: list[dict[str, Any]] = []
    with connected(address):
        for candidate in listed:
            location = storage.join(out, candidate.name)
            told = None if report is None else _of(report, candidate.name)
            try:
                feed = candidate.recipe.feed
                if feed not in plans:
                    plans[feed] = plan_feeds(data, candidate.recipe, fold)  # one copy of the images for all of them
                result = train(
                    candidate.recipe, dataset, location, workers=workers, use_gpu=use_gpu, fold=fold, report=told, plans=plans[feed]
                )
                facts.append(_facts(candidate.name, result.run, metric))
            except CxrRayError as error:
                logger.warning("%s: %s", candidate.name, error.message)
                facts.append({"name": candidate.name, "run": candidate.name, "value": None, "error": error.message})
    if all(fact["value"] is None for fact in facts):
        raise RunError("no candidate could be trained:" + "".join(f"\n  - {fact['name']}: {fact['error']}" for fact in facts))
    sign = 1 if metric == "val_loss" else -1
    facts.sort(key=lambda fact: math.inf if fact["value"] is None else sign * fact["value"])
    summary = {
        "schema": SCHEMA,
        "metric": metric,
        "dataset_fingerprint": data.manifest.fingerprint,
        "best": facts[0]["name"],
        "candidates": facts,
    }
    storage.write_json(storage.join(out, SUMMARY), summary)
    return summary


def _of(report: Callable[[str, TrainProgress], None], name: str) -> Callable[[TrainProgress], None]:
    return lambda progress: report(name, progress)


def _facts(name: str, run: Run, metric: str) -> dict[str, Any]:
    history, best = run.history(), run.best()
    chosen = next(record for record in history if record.epoch == best.epoch)
    value = getattr(chosen, metric)
    return {
        "name": name,
        "run": name,
        "value": value,
        "epoch": best.epoch,
        "epochs": len(history),
        "seconds_per_epoch": sum(record.seconds for record in history) / len(history),
        "error": None if value is not None else f"{metric} is undefined on the validation part",
    }
