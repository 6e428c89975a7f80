"""Ray Train against plain PyTorch: images a second after the first epoch, one worker, same network, same data, same cores.

``ray`` is ``cxr_ray.training.trainer.train`` over a DATASET (Ray Data materialised, Ray Train worker, checkpoint every epoch). ``loop`` is
our loop without Ray over arrays in memory. ``plain`` is a training loop as a user would write it: forward, loss, backward, step
over tensors in memory, in the same channels-last format. Each runs in a process of its own, the peers by turns in every round, and
Ray is not up while the other two run.

A rate is that of the fastest epoch but the first of each round (as ``timeit`` does: what slows an epoch down is other work on the
machine); ``ratio`` = ray / plain. On a machine that is busy with other work look at ``ratio_cpu``: images a second of processor time
after the first epoch, all processes of Ray counted to ``ray``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cxr_ray.cluster import prepare_environment

PEERS = ("plain", "loop", "ray")


def recipe(arguments: argparse.Namespace) -> Any:
    """The experiment that all peers run."""
    from cxr_ray.config import BackboneConfig, ModelConfig, Recipe, RnnConfig, TrainingConfig

    return Recipe(
        name="train-overhead",
        model=ModelConfig(backbone=BackboneConfig(name=arguments.backbone), rnn=RnnConfig(hidden_size=64)),
        training=TrainingConfig(epochs=arguments.epochs, batch_size=arguments.batch_size, monitor="last"),
    )


def data(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """(N, size, size) uint8 of noise and (N,) labels: what is in the pixels does not change the speed."""
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (arguments.images, arguments.size, arguments.size), dtype=np.uint8)
    return images, generator.integers(0, 2, arguments.images)


Measured = dict[str, list[float]]
"""``rates``: images a second of each epoch. ``cpu``: seconds of processor time used until the end of each epoch."""


def plain(arguments: argparse.Namespace) -> Measured:
    """A hand-written loop."""
    import torch

    from cxr_ray.models.classifier import build_classifier
    from cxr_ray.training.worker import use_device

    use_device(torch.device("cpu"), 1)
    settings = recipe(arguments)
    pixels, labels = data(arguments)
    images, targets = torch.from_numpy(pixels), torch.from_numpy(labels)
    model = build_classifier(settings.model, 2, mean=0.5, std=0.3, image_size=(arguments.size, arguments.size))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.training.optimizer.lr, weight_decay=0.0)
    loss_function = torch.nn.CrossEntropyLoss()
    rates, cpu = [], []
    for _ in range(arguments.epochs):
        started = time.perf_counter()
        model.train()
        for rows in torch.split(torch.randperm(len(images)), arguments.batch_size):
            optimizer.zero_grad()
            loss_function(model(images[rows]), targets[rows]).backward()
            optimizer.step()
        rates.append(len(images) / (time.perf_counter() - started))
        cpu.append(time.process_time())
    return {"rates": rates, "cpu": cpu}


def loop(arguments: argparse.Namespace) -> Measured:
    """Our loop, without Ray."""
    import torch

    from cxr_ray.data.batches import MemoryFeed
    from cxr_ray.labels import LabelSet
    from cxr_ray.models.classifier import build_classifier
    from cxr_ray.training.loop import fit
    from cxr_ray.training.worker import use_device

    use_device(torch.device("cpu"), 1)
    settings, cpu = recipe(arguments), []
    images, targets = data(arguments)
    model = build_classifier(settings.model, 2, mean=0.5, std=0.3, image_size=(arguments.size, arguments.size))
    feed = MemoryFeed(images, targets, arguments.batch_size, threads=settings.feed.augment_threads)
    labels = LabelSet(("no", "yes"), "multiclass")
    fitted = fit(model, feed, None, settings.training, labels=labels, report=lambda *_: cpu.append(time.process_time()))
    return {"rates": [record.images_per_second for record in fitted.history], "cpu": cpu}


def ray(arguments: argparse.Namespace) -> Measured:
    """``cxr-ray train``."""
    from cxr_ray.training.trainer import train

    cpu: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(arguments, folder)
        result = train(recipe(arguments), dataset, os.path.join(folder, "run"), report=lambda _: cpu.append(cpu_of_all()))
        return {"rates": [record.images_per_second for record in result.run.history()], "cpu": cpu}


def cpu_of_all() -> float:
    """Seconds of processor time of this process and all that descend from it."""
    parents, seconds = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return sum(used for pid, used in seconds.items() if ours(pid))


def write_dataset(arguments: argparse.Namespace, folder: str) -> str:
    """The same images as a DATASET with a training part alone."""
    import numpy as np
    import pyarrow as pa

    from cxr_ray.data import columns, manifest, shards
    from cxr_ray.imaging.preprocess import PreprocessSpec
    from cxr_ray.labels import LabelSet

    images, targets = data(arguments)
    count, size, labels = len(images), arguments.size, LabelSet(("no", "yes"), "multiclass")
    names = pa.array([f"{row:064x}" for row in range(count)])
    known: dict[str, Any] = {"image_id": names, "patient_id": names, "group_id": names, "source": pa.array(["noise"] * count)}
    known |= {"label": columns.targets_column(targets, labels), "synthetic": pa.array([True] * count)}
    known["image"] = pa.array([image.tobytes() for image in images], pa.binary(size * size))
    schema = columns.shard_schema(labels, size, size)
    table = pa.table([known.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema)
    location = os.path.join(folder, "dataset")
    parts = [shards.write_shard(location, "train/part-00000.parquet", table)]
    index = shards.write_shard(location, manifest.INDEX, table.drop_columns(["image"]))
    pixels = manifest.Normalization(mean=0.5, std=float(np.std(images[:32] / 255)))
    preprocess = manifest.PreprocessInfo.of(PreprocessSpec(height=size, width=size))
    described = manifest.DatasetManifest(
        name="noise",
        task=labels.task,
        labels=labels.names,
        image=manifest.ImageInfo(height=size, width=size),
        preprocess=preprocess,
        normalization=pixels,
        partitions={"train": manifest.PartitionInfo(images=count, patients=count, per_label={}, pixels=pixels)},
        seed=0,
        policy="grouped",
        sources=(),
        shards=tuple(parts),
        index=index,
        quarantined=0,
        copies=manifest.CopyInfo(searched=False),
        split={},
        request="0" * 64,
        fingerprint=manifest.fingerprint(labels.task, labels.names, preprocess.fingerprint, parts),
    )
    return str(shards.seal(location, described).location)


def measure(peer: str, arguments: argparse.Namespace) -> Measured:
    """Run a peer in a process of its own."""
    options = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("images", "size", "backbone", "batch-size", "epochs")]
    done = subprocess.run([sys.executable, __file__, f"--peer={peer}", *options], stdout=subprocess.PIPE, text=True, check=True)
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def facts() -> dict[str, Any]:
    """Hardware, versions and date."""
    from cxr_ray.training.run import hardware, versions

    named = {f"{name}_version": version for name, version in versions().items()}
    return {"date": time.strftime("%Y-%m-%d"), **hardware(), **named}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one flat object on stdout")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    prepare_environment()
    if arguments.peer:
        print(json.dumps(globals()[arguments.peer](arguments)))
        return
    rates: dict[str, list[float]] = {peer: [] for peer in PEERS}
    cpu: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for _ in range(arguments.rounds):
        for peer in PEERS:
            found = measure(peer, arguments)
            rates[peer] += found["rates"][1:]
            cpu[peer].append(arguments.images * (arguments.epochs - 1) / (found["cpu"][-1] - found["cpu"][0]))
    result: dict[str, Any] = {peer: round(max(values), 2) for peer, values in rates.items()}
    result |= {"ratio": round(result["ray"] / result["plain"], 3), "ratio_loop": round(result["loop"] / result["plain"], 3)}
    result |= {f"ratio_cpu{mark}": round(max(cpu[peer]) / max(cpu["plain"]), 3) for mark, peer in (("", "ray"), ("_loop", "loop"))}
    settings = {name: getattr(arguments, name) for name in ("images", "size", "backbone", "batch_size", "epochs", "rounds")}
    if arguments.json:
        print(json.dumps({**result, **settings, **facts()}))
        return
    print(f"{arguments.backbone}, {arguments.images} images of {arguments.size} x {arguments.size}, batches of {arguments.batch_size}")
    for peer in PEERS:
        spread = f"{min(rates[peer]):.1f} … {max(rates[peer]):.1f}"
        print(f"  {peer:6}{result[peer]:8.1f} images/s ({spread}), {max(cpu[peer]):.1f} a second of processor time")
    print(f"  ratio ray / plain {result['ratio']:.3f}, loop / plain {result['ratio_loop']:.3f}")
    print(f"  by processor time {result['ratio_cpu']:.3f}, {result['ratio_cpu_loop']:.3f}")


if __name__ == "__main__":
    main()
