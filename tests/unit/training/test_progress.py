from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cxr_ray.training import progress
from cxr_ray.training.checkpoint import EpochRecord
from cxr_ray.training.progress import HistoryWatch, TensorBoard, TrainProgress, read_history, write_history


def record(epoch: int, seconds: float = 2.0) -> EpochRecord:
    return EpochRecord(epoch, 0.5, 0.1, seconds, 10.0, val_loss=0.4)


def test_history_is_written_whole(tmp_path: Path) -> None:
    assert read_history(str(tmp_path)) == []
    write_history(str(tmp_path), [record(0), record(1)])
    write_history(str(tmp_path), [record(0), record(1), record(2)])
    assert [line.epoch for line in read_history(str(tmp_path))] == [0, 1, 2]
    assert read_history(str(tmp_path))[2] == record(2)


def test_the_watch_tells_each_new_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOCAL_POLL_SECONDS", 0.01)
    told: list[TrainProgress] = []
    second = threading.Event()

    def report(news: TrainProgress) -> None:
        told.append(news)
        if news.record.epoch == 1:
            second.set()

    write_history(str(tmp_path), [record(0)])
    with HistoryWatch(str(tmp_path), 4, report):
        write_history(str(tmp_path), [record(0), record(1, 4.0)])
        assert second.wait(10)
        write_history(str(tmp_path), [record(0), record(1, 4.0), record(2, 3.0), record(3)])
    assert [news.record.epoch for news in told] == [1, 2, 3]
    assert told[0].seconds_left == pytest.approx(2 * 3.0)
    assert told[-1].seconds_left == 0


def test_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, epochs in ((0, [0, 1]), (1, [1, 2])):
        board = TensorBoard(str(tmp_path), start)
        for epoch in epochs:
            board.write(record(epoch))
        board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["images_per_second", "loss/train", "loss/val", "lr"]
    assert [event.step for event in events.Scalars("loss/val")] == [0, 1, 2]
    with caplog.at_level("INFO"):
        TensorBoard("s3://bucket/run", 0).write(record(0))
    assert "local directory" in caplog.text
