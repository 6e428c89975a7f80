"""How often 95 % intervals hold the truth, on simulated patients with several images: ``python benchmarks/coverage.py --json``.

A patient has a disease or not, 1 to 6 images, and a level of its own that all of them share; an image's score is the patient's level, plus
the disease's effect, plus noise. The true figures of such scores are known in closed form, so that intervals can be judged. Beside the
bootstrap over patients that ``evaluate`` uses stand, on the same data, a bootstrap over images (too narrow), and DeLong's interval by
patients and by images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from cxr_ray.evaluation.delong import auroc_of_labels
from cxr_ray.evaluation.metrics import compute_metrics
from cxr_ray.labels import LabelSet

LABELS = LabelSet(("disease",), "multilabel")
EFFECT, MOST_IMAGES = 1.5, 6
FIGURES = ("sensitivity", "specificity", "auroc", "accuracy")


def simulate(generator: np.random.Generator, patients: int, shared: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(N, 1) probabilities, (N, 1) truth, (N,) patients; ``shared`` is the standard deviation of the patients' own level, noise has 1."""
    images = generator.integers(1, MOST_IMAGES + 1, patients)
    patient = np.repeat(np.arange(patients), images)
    disease = (generator.random(patients) < 0.4)[patient]
    score = EFFECT * disease + shared * generator.normal(size=patients)[patient] + generator.normal(size=len(patient))
    return norm.cdf(score - EFFECT / 2)[:, None], disease[:, None].astype(np.float64), patient


def truth(shared: float) -> dict[str, float]:
    """True figures at a threshold of 0.5, which lies midway between the two groups."""
    spread = (1 + shared**2) ** 0.5
    right = float(norm.cdf(EFFECT / 2 / spread))
    return {"sensitivity": right, "specificity": right, "accuracy": right, "auroc": float(norm.cdf(EFFECT / spread / 2**0.5))}


def covered(repeats: int, patients: int, shared: float, resamples: int, seed: int) -> tuple[dict[str, float], float]:
    """Share of the intervals that hold the truth, by ``method.figure``, and the mean number of images."""
    generator, true = np.random.default_rng(seed), truth(shared)
    hits: dict[str, list[bool]] = defaultdict(list)
    images = 0
    for repeat in range(repeats):
        said, so, patient = simulate(generator, patients, shared)
        images += len(said)
        for unit, names in (("patients", patient), ("images", np.arange(len(patient)))):
            found = compute_metrics(said, so, names, LABELS, split="simulated", seed=repeat, resamples=resamples)["per_label"]["disease"]
            for name in FIGURES:
                low, high = found[name]["ci95"]
                hits[f"bootstrap_{unit}.{name}"].append(low <= true[name] <= high)
        area = auroc_of_labels(said, so, patient, LABELS)["disease"]
        for unit in ("patients", "images"):
            low, high = area[unit]["ci95"]
            hits[f"delong_{unit}.auroc"].append(low <= true["auroc"] <= high)
    return {name: float(np.mean(values)) for name, values in hits.items()}, images / repeats


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="simulated studies")
    parser.add_argument("--patients", type=int, default=150, help="patients of each")
    parser.add_argument("--shared", type=float, default=1.0, help="standard deviation of a patient's own level; an image's noise has 1")
    parser.add_argument("--resamples", type=int, default=500, help="of each bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    start = time.perf_counter()
    shares, images = covered(arguments.repeats, arguments.patients, arguments.shared, arguments.resamples, arguments.seed)
    facts = {name: getattr(arguments, name) for name in ("repeats", "patients", "shared", "resamples", "seed")}
    by_patient = [share for name, share in shares.items() if name.startswith("bootstrap_patients")]
    summary = {"images": images, "least": min(by_patient), "most": max(by_patient), "seconds": time.perf_counter() - start}
    if arguments.json:
        print(json.dumps({**facts, **summary, **shares}))
        return
    print(f"{arguments.repeats} studies of {arguments.patients} patients, {images:.0f} images on average; {summary['seconds']:.0f} s")
    for name, share in shares.items():
        print(f"{name:32} {share:.1%}")


if __name__ == "__main__":
    main()
