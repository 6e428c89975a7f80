"""Feeds through Ray: materialized and streamed, in this process and in Ray Train workers that hold every CPU."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from cxr_ray.config import FeedConfig
from cxr_ray.data import stream
from cxr_ray.data.augment import build_augmentation
from cxr_ray.data.batches import Batch, MemoryFeed
from cxr_ray.data.columns import target_field, targets_column
from cxr_ray.data.manifest import DatasetManifest, ImageInfo, Normalization, PartitionInfo, PreprocessInfo, fingerprint
from cxr_ray.data.shards import Dataset, write_shard
from cxr_ray.data.stream import plan_feed
from cxr_ray.errors import DatasetError
from cxr_ray.imaging.preprocess import PreprocessSpec
from cxr_ray.labels import LabelSet

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

HEIGHT, WIDTH = 24, 32
SHARDS = (70, 41, 33, 80)  # the last one is the validation part
ROWS = sum(SHARDS[:-1])
LABELS = LabelSet(("normal", "pneumonia", "covid"), "multiclass")
FINDINGS = LabelSet(("effusion", "mass"), "multilabel")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and tasks of a few rows each, as large data would have."""
    monkeypatch.setattr(stream, "AHEAD_BYTES", 90 * HEIGHT * WIDTH)


def write(folder: Path, labels: LabelSet) -> tuple[Dataset, NDArray[np.uint8], NDArray[Any]]:
    """A DATASET of random pixels in ``train`` and ``val``, and the pixels and targets of ``train``."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (sum(SHARDS), HEIGHT, WIDTH), dtype=np.uint8)
    targets: NDArray[Any] = random.integers(0, 3, sum(SHARDS))
    if labels.task == "multilabel":
        targets = random.choice([0.0, 1.0, np.nan], (sum(SHARDS), len(labels))).astype(np.float32)
    shards, end = [], 0
    for number, rows in enumerate(SHARDS):
        part, end = slice(end, end + rows), end + rows
        pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(HEIGHT * WIDTH), rows, [None, pa.py_buffer(images[part].tobytes())])
        extra = pa.array([f"text that no feed reads {row}" for row in range(rows)])
        fields = [pa.field("image", pixels.type, nullable=False), target_field(labels), pa.field("source", pa.string())]
        table = pa.table([pixels, targets_column(targets[part], labels), extra], pa.schema(fields))
        path = f"{'val' if number == len(SHARDS) - 1 else 'train'}/part-{number:05d}.parquet"
        shards.append(write_shard(str(folder), path, table, row_group_rows=16))
    grey = Normalization(mean=0.5, std=0.25)
    counts = {"train": ROWS, "val": SHARDS[-1]}
    spec = PreprocessInfo.of(PreprocessSpec(height=HEIGHT, width=WIDTH))
    manifest = DatasetManifest(
        name="random",
        task=labels.task,
        labels=labels.names,
        image=ImageInfo(height=HEIGHT, width=WIDTH),
        preprocess=spec,
        normalization=grey,
        partitions={name: PartitionInfo(images=count, patients=count, per_label={}, pixels=grey) for name, count in counts.items()},
        seed=0,
        policy="grouped",
        sources=(),
        shards=tuple(shards),
        index=shards[0],
        quarantined=0,
        copies={},
        split={},
        request="",
        fingerprint=fingerprint(labels.task, labels.names, spec.fingerprint, shards),
    )
    return Dataset(str(folder), manifest), images[:ROWS], targets[:ROWS]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, NDArray[np.uint8], NDArray[Any]]:
    return write(tmp_path_factory.mktemp("dataset"), LABELS)


STREAMED = FeedConfig(mode="streamed", shuffle_window=48)


def same(ours: Batch, theirs: Batch) -> bool:
    equal = all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("images", "targets", "rows"))
    return equal and ours.global_size == theirs.global_size


def rows_of(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_materialized_feed_gives_the_batches_of_memory(data: Any, shuffle: bool, rank: int, world_size: int) -> None:
    dataset, images, targets = data
    plan = plan_feed(dataset, ["train"], FeedConfig(mode="materialized"))
    assert len(plan.blocks) > 2
    options: dict[str, Any] = {"seed": 5, "shuffle": shuffle, "augmentation": build_augmentation("light"), "threads": 2}
    ours = plan.open(rank, world_size, 16, **options)
    theirs = MemoryFeed(images, targets, 16, rank=rank, world_size=world_size, **options)
    assert (ours.rows, ours.steps_per_epoch, ours.dropped) == (theirs.rows, theirs.steps_per_epoch, theirs.dropped)
    for epoch in (0, 7):
        assert all(same(*pair) for pair in zip(ours.epoch(epoch), theirs.epoch(epoch), strict=True))


def check(batch: Batch, images: NDArray[np.uint8], targets: NDArray[Any]) -> None:
    rows = batch.rows.numpy()
    assert np.array_equal(batch.images.numpy(), images[rows])
    assert np.array_equal(batch.targets.numpy(), targets[rows], equal_nan=targets.ndim == 2)


def test_streamed_ranks_share_the_rows_and_keep_step(data: Any) -> None:
    dataset, images, targets = data
    plan = plan_feed(dataset, ["train"], STREAMED)
    assert plan.blocks == ()
    feeds = [plan.open(rank, 2, 16, seed=3) for rank in range(2)]
    assert len({feed.steps_per_epoch for feed in feeds}) == 1
    orders = []
    for epoch in (0, 1):
        ranks = [list(feed.epoch(epoch)) for feed in feeds]
        assert [len(batches) for batches in ranks] == [feeds[0].steps_per_epoch] * 2
        for batches in ranks:
            for batch in batches:
                check(batch, images, targets)
        seen = [row for batches in ranks for batch in batches for row in batch.rows.tolist()]
        assert sorted(seen) == list(range(ROWS))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_streamed_epochs_are_the_same_after_a_resume_and_after_a_break(data: Any) -> None:
    plan = plan_feed(data[0], ["train"], STREAMED)
    through = plan.open(0, 1, 16, seed=3)
    epochs = [rows_of(through.epoch(epoch)) for epoch in range(3)]  # one pipeline reads all three
    assert rows_of(plan.open(0, 1, 16, seed=3).epoch(2)) == epochs[2]
    broken = through.epoch(3)
    next(broken)
    broken.close()
    assert rows_of(through.epoch(1)) == epochs[1]
    assert rows_of(through.epoch(2)) == epochs[2]


def test_one_pipeline_serves_several_epochs(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    pipeline = stream._pipeline
    monkeypatch.setattr(stream, "_pipeline", lambda *args, **options: started.append(1) or pipeline(*args, **options))
    monkeypatch.setattr(stream, "PIPELINE_BYTES", 3 * ROWS * (HEIGHT * WIDTH + 16))
    feed = plan_feed(data[0], ["train"], STREAMED).open(0, 1, 16)
    for epoch in range(4):
        list(feed.epoch(epoch))
    assert len(started) == 2


def test_a_dropped_feed_stops_reading_at_once(data: Any) -> None:
    """Without waiting for the garbage collector: a pipeline that outlives Ray's session fails when it is collected."""
    gc.collect()
    gc.disable()
    try:
        feed = plan_feed(data[0], ["train"], STREAMED).open(0, 1, 16)
        list(feed.epoch(0))
        assert pipelines() == 1
        feed.close()
        assert pipelines() == 0
        batches = feed.epoch(1)
        next(batches)
        assert pipelines() == 1
        del batches
        assert pipelines() == 0
        list(feed.epoch(0))
        del feed
        assert pipelines() == 0
    finally:
        gc.enable()


def pipelines() -> int:
    """Ray Data executions that somebody holds."""
    return sum(type(each).__name__ == "_ClosingIterator" for each in gc.get_objects())


def test_streamed_validation_counts_every_row_once_whatever_the_ranks(data: Any) -> None:
    plan = plan_feed(data[0], ["val"], STREAMED)
    assert plan.rows == SHARDS[-1]
    for world_size in (1, 3):
        feeds = [plan.open(rank, world_size, 32, shuffle=False) for rank in range(world_size)]
        seen = [row for feed in feeds for batch in rows_of(feed.epoch(0)) for row in batch]
        assert seen == list(range(SHARDS[-1]))


def test_partitions_are_numbered_one_after_the_other(data: Any) -> None:
    plan = plan_feed(data[0], ["val", "train"], STREAMED)
    assert plan.rows == sum(SHARDS)
    train = {batch.rows[place].item(): batch.images[place] for batch in plan.open().epoch(0) for place in range(len(batch.rows))}
    assert np.array_equal(train[SHARDS[-1] + 5].numpy(), data[1][5])


@pytest.mark.parametrize("mode", ["materialized", "streamed"])
def test_multilabel_targets_keep_unknowns(tmp_path: Path, mode: Any) -> None:
    dataset, images, targets = write(tmp_path, FINDINGS)
    feed = plan_feed(dataset, ["train"], FeedConfig(mode=mode)).open(0, 1, 32)
    for batch in feed.epoch(0):
        assert batch.targets.dtype == torch.float32
        check(batch, images, targets)


def test_auto_materializes_what_fits_a_part_of_the_object_store(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_feed(data[0], ["train"]).mode == "materialized"
    monkeypatch.setattr(stream, "STORE_PART", 1e9)
    assert plan_feed(data[0], ["train"]).mode == "streamed"


def test_a_lost_shard_is_a_data_error_before_and_in_an_epoch(tmp_path: Path) -> None:
    dataset, _, _ = write(tmp_path, LABELS)
    plan = plan_feed(dataset, ["train"], STREAMED)
    (tmp_path / "train" / "part-00001.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DatasetError, match="part-00001"):
        plan_feed(dataset, ["train"], STREAMED)
    with pytest.raises(DatasetError, match="cannot be read"):
        list(plan.open(0, 1, 16).epoch(0))


def test_a_partition_that_is_not_there_is_refused(data: Any) -> None:
    with pytest.raises(DatasetError, match="no part 'test'"):
        plan_feed(data[0], ["test"])


def test_blocks_live_as_long_as_the_plan_not_as_the_pipeline(data: Any) -> None:
    plan = plan_feed(data[0], ["train"], FeedConfig(mode="materialized"))
    gc.collect()
    feed = pickle.loads(pickle.dumps(plan)).open(0, 1, 16)
    assert sum(len(batch.rows) for batch in feed.epoch(0)) == ROWS


def consume(config: dict[str, Any]) -> None:
    """Runs in a Ray Train worker: of each plan two epochs of training and one of validation, written as rows."""
    from ray import train

    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    seen = {}
    for mode, plan in config["plans"].items():
        feed = plan.open(rank, world_size, 16, seed=2, augmentation=build_augmentation("flip"), threads=1)
        training = [rows_of(feed.epoch(epoch)) for epoch in range(2)]
        seen[mode] = training, rows_of(plan.open(rank, world_size, 16, shuffle=False).epoch(0))
    Path(config["out"], f"{rank}.pickle").write_bytes(pickle.dumps(seen))
    train.report({"rank": rank})


def test_train_workers_that_hold_all_cpus_are_fed(data: Any, tmp_path: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    modes: tuple[Any, ...] = ("materialized", "streamed")
    plans = {mode: plan_feed(data[0], ["train"], FeedConfig(mode=mode, shuffle_window=48)) for mode in modes}
    TorchTrainer(
        consume,
        train_loop_config={"plans": plans, "out": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 2}),
        run_config=RunConfig(name="feeds", storage_path=str(tmp_path / "ray"), failure_config=FailureConfig(controller_failure_limit=2)),
    ).fit()
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for mode, plan in plans.items():
        for epoch in range(2):
            there = [seen[mode][0][epoch] for seen in ranks]
            assert there == [rows_of(plan.open(rank, 2, 16, seed=2).epoch(epoch)) for rank in range(2)]
            assert sorted(row for rows in there for batch in rows for row in batch) == list(range(ROWS))
        assert sorted(row for seen in ranks for batch in seen[mode][1] for row in batch) == list(range(ROWS))
