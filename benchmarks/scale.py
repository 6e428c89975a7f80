"""What more workers cost: images a second with one and two on this machine, and a model on paper for 8 to 64 GPUs.

    cxr-ray ingest DATA/kermany_train --out km64 --format kermany --size 64 --split 0.35,0.15,0.5
    python benchmarks/scale.py --data km64 --work work/scale

Measured: the product's own ``train``, one core a worker, so that two workers have twice the machine of one. The rates are those of
``history.jsonl`` (training images a second over all workers); ``epoch_overhead`` is what an epoch takes beside its batches: validation,
checkpoint, report.

The model, all of it assumptions that stand in :class:`Cluster` and :class:`Network`: a step is the forward and backward pass of 64 images a
GPU at a rate that others measured on one GPU, then a ring all-reduce of the gradient over the slowest link; either none of that is hidden
behind the backward pass (two thirds of the step) or all that fits. An epoch adds the overhead measured here. Left out are
stragglers, synchronised batch norms, the first epoch's reading from object storage, and GPUs faster than the feed (``benchmarks/feed.py``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_ray.cluster import connected, prepare_environment
from cxr_ray.config import load_recipe


@dataclass(frozen=True)
class Network:
    """A network on one GPU. The rates are timm's published ones (RTX 3090, mixed precision, channels last, 224 pixels)."""

    name: str
    parameters: float
    images_per_second: float


@dataclass(frozen=True)
class Cluster:
    """The machines of ``cluster.yaml`` and the like."""

    gpus_a_node: int = 1
    link_bytes_per_second: float = 10e9 / 8
    """Between nodes: 10 Gbit/s, what the smaller GPU instances sustain."""
    latency_seconds: float = 50e-6
    """Of one message between nodes."""


NETWORKS = (Network("MobileNetV3-L", 5.5e6, 2732), Network("DenseNet-121", 8.0e6, 914), Network("VGG-19", 143.7e6, 457))
GPUS = (1, 8, 16, 32, 64)


def model(network: Network, cluster: Cluster, gpus: int, *, batch: int, hidden: bool) -> float:
    """Images a second of all GPUs together."""
    compute = batch / network.images_per_second
    exchange = 0.0
    if gpus > cluster.gpus_a_node:
        ring = 2 * (gpus - 1)
        exchange = ring / gpus * network.parameters * 4 / cluster.link_bytes_per_second + ring * cluster.latency_seconds
    exposed = max(0.0, exchange - compute * 2 / 3) if hidden else exchange
    return gpus * batch / (compute + exposed)


def with_overhead(rate: float, images: int, overhead: float) -> float:
    """The rate over a whole epoch of ``images``."""
    return images / (images / rate + overhead)


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Rates of one worker with one core, two with one each, and one with two."""
    prepare_environment()  # before anything imports Ray
    from cxr_ray.data.shards import open_dataset
    from cxr_ray.training.trainer import train

    images = open_dataset(arguments.data).manifest.partitions["train"].images
    settings = [f"training.epochs={arguments.epochs}", "training.monitor=last", "training.patience=null", "augment=none"]
    recipe = load_recipe(arguments.recipe, [*settings, f"training.batch_size={arguments.batch_size}"])
    found: dict[str, float] = {}
    with connected("local", num_cpus=4):
        for name, workers, sharing in (("one", 1, 2), ("two", 2, 1), ("one_with_both_cores", 1, 1)):
            run = train(recipe, arguments.data, str(work / name), workers=workers, sharing=sharing, overwrite=True).run
            later = run.history()[1:]
            found[name] = statistics.median(record.images_per_second for record in later)
            found[f"epoch_overhead_{name}"] = statistics.median(record.seconds - images / record.images_per_second for record in later)
    return found


def table(overhead: float, images: int, batch: int, cluster: Cluster) -> list[dict[str, Any]]:
    """A row a network and number of GPUs."""
    rows = []
    for network in NETWORKS:
        alone = with_overhead(model(network, cluster, 1, batch=batch, hidden=False), images, overhead)
        for gpus in GPUS:
            low, high = (
                with_overhead(model(network, cluster, gpus, batch=batch, hidden=hidden), images, overhead) for hidden in (False, True)
            )
            row = {"network": network.name, "gpus": gpus, "low": round(low), "high": round(high)}
            rows.append({**row, "efficiency_low": round(low / alone / gpus, 2), "efficiency_high": round(high / alone / gpus, 2)})
    return rows


def main() -> None:
    """Measure, model, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="DATASET")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--modelled-images", type=int, default=86_524, help="an epoch in the model; default: ChestX-ray14's training part")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with redirect_stdout(sys.stderr):  # Ray prints its warnings to stdout
        measured = measure(arguments.work, arguments)
    rows = table(measured["epoch_overhead_two"], arguments.modelled_images, 64, Cluster())
    facts = {name: round(value, 3) for name, value in measured.items()} | {"ratio": round(measured["two"] / measured["one"], 3)}
    if arguments.json:
        print(json.dumps(facts | {f"{row['network']}_{row['gpus']}": [row["low"], row["high"]] for row in rows}))
        return
    for name, value in facts.items():
        print(f"{name:34} {value}", file=sys.stderr)
    print("| network | GPUs | images/s | share of linear |\n|---|---|---|---|")
    for row in rows:
        rates = f"{row['low']:,} – {row['high']:,}" if row["gpus"] > 1 else f"{row['low']:,}"
        share = f"{row['efficiency_low']:.2f} – {row['efficiency_high']:.2f}" if row["gpus"] > 1 else "1"
        print(f"| {row['network']} | {row['gpus']} | {rates} | {share} |")


if __name__ == "__main__":
    main()
