"""After how many epochs does TPE with ASHA reach what random search without early stopping reaches at the end of its budget?

    cxr-ray ingest DATA/kermany_train --out km --format kermany --size 64 --split 0.35,0.15,0.5
    python benchmarks/search.py --data km --work work/search --seeds 0 1 --figure docs/images/search.svg --json

Both search ``benchmarks/search.yaml`` with the same seeds. Epochs are counted in the order in which they ended, over all trials; the score
is the best ``val_macro_f1`` so far. A killed run goes on with the same command. Prints one flat object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import redirect_stdout
from itertools import accumulate
from pathlib import Path

from cxr_ray.cli import run_inside

SWEEP = Path(__file__).with_suffix(".yaml")
ARMS = {"tpe_asha": [], "random": ["search.algorithm=random", "stopping.kind=none"]}


def curve(out: Path) -> list[float]:
    """The best score so far, after each epoch of any trial."""
    lines = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
    return list(accumulate((line["value"] if line["value"] is not None else 0.0 for line in lines), max))


def epochs_to(best_so_far: list[float], score: float) -> int | None:
    """Epochs until ``score`` is reached; None: never."""
    return next((epoch + 1 for epoch, value in enumerate(best_so_far) if value >= score), None)


def run(arm: str, seed: int, trials: int, data: str, work: Path) -> list[float]:
    """One search, or what is left of it."""
    out = work / f"{arm}-{seed}"
    settings = [*ARMS[arm], f"search.seed={seed}", f"trials={trials}"]
    run_inside(["tune", str(SWEEP), *settings, "--data", data, "--out", str(out), "--resume"])
    return curve(out)


def draw(curves: dict[int, dict[str, list[float]]], path: Path) -> None:
    """Best score over epochs, a panel a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.2), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, (seed, arms) in zip(panels, curves.items(), strict=True):
        for arm, values in arms.items():
            panel.step(range(1, len(values) + 1), values, where="post", label={"tpe_asha": "TPE + ASHA", "random": "random"}[arm])
        panel.axhline(arms["random"][-1], color="grey", linewidth=0.8, linestyle=":")
        panel.set(title=f"seed {seed}", xlabel="epochs, all trials together")
    panels[0].set_ylabel("best macro F1 (validation)")
    panels[0].set_ylim(bottom=0.4)
    panels[0].legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run both searches with each seed and say when one caught up with the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="DATASET")
    parser.add_argument("--work", type=Path, required=True, help="where the sweeps are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--random-trials", type=int, default=20)
    parser.add_argument("--asha-trials", type=int, default=60)
    parser.add_argument("--figure", type=Path, help="SVG to write")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    curves: dict[int, dict[str, list[float]]] = {}
    with redirect_stdout(sys.stderr):  # Ray prints its warnings to stdout
        for seed in arguments.seeds:
            curves[seed] = {
                "random": run("random", seed, arguments.random_trials, arguments.data, arguments.work),
                "tpe_asha": run("tpe_asha", seed, arguments.asha_trials, arguments.data, arguments.work),
            }
    facts: dict[str, object] = {"seeds": len(curves)}
    ratios = []
    for seed, arms in curves.items():
        budget, best = len(arms["random"]), arms["random"][-1]
        reached = epochs_to(arms["tpe_asha"], best)
        ratios.append(reached / budget if reached is not None else None)
        facts |= {
            f"random_epochs_{seed}": budget,
            f"random_best_{seed}": round(best, 4),
            f"random_best_after_{seed}": epochs_to(arms["random"], best),
            f"tpe_asha_epochs_{seed}": len(arms["tpe_asha"]),
            f"tpe_asha_best_{seed}": round(arms["tpe_asha"][-1], 4),
            f"tpe_asha_reached_after_{seed}": reached,
            f"ratio_{seed}": None if reached is None else round(reached / budget, 3),
        }
    known = [ratio for ratio in ratios if ratio is not None]
    facts["ratio"] = round(statistics.fmean(known), 3) if len(known) == len(ratios) else None
    if arguments.figure:
        draw(curves, arguments.figure)
    if arguments.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:28} {value}", file=sys.stderr)


if __name__ == "__main__":
    main()
