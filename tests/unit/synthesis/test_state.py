"""Checkpoints that are torn are passed over; a run goes on only as what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cxr_ray.errors import RunError
from cxr_ray.synthesis.config import GanConfig
from cxr_ray.synthesis.gan import Gan
from cxr_ray.synthesis.sample import make_images
from cxr_ray.synthesis.state import GanManifest, GanRun, claim, load_state, read_history, refuse_foreign, save_state, write_history
from cxr_ray.training.checkpoint import newest_valid


def described(config: GanConfig, **changes: object) -> GanManifest:
    facts = {"label": "rare", "dataset": "tiny", "dataset_fingerprint": "f", "real_images": 40, "size": 16, "workers": 1, "use_gpu": False}
    return GanManifest.model_validate({"config": config.model_dump(), "versions": {}, "hardware": {}, **facts, **changes})


@pytest.fixture
def run(tmp_path: Path, halves: np.ndarray, small: GanConfig) -> GanRun:
    """Trained for four epochs, a checkpoint after each."""
    there = claim(str(tmp_path / "run"), described(small))
    gan = Gan(halves, small)
    gan.run(lambda _: save_state(there.checkpoints, gan.state()) and None)
    write_history(there.location, gan.history)
    return there


def test_what_is_read_is_what_was_written(run: GanRun, halves: np.ndarray, small: GanConfig) -> None:
    gan = Gan(halves, small)
    gan.run()
    newest = run.newest()
    assert newest is not None
    read, written = load_state(newest), gan.state()
    assert [record.generator_loss for record in read.history] == [record.generator_loss for record in written.history]
    for name in ("generator", "discriminator", "average"):
        for key, value in getattr(written, name).items():
            assert torch.equal(getattr(read, name)[key], value), (name, key)
    generator, _ = run.load_generator()
    assert np.array_equal(make_images(generator, 5, seed=0), make_images(gan.averaged, 5, seed=0))
    assert run.epochs == 4
    assert read_history(run.location) == list(read.history)


def test_only_the_newest_two_are_kept_and_a_torn_one_is_passed_over(run: GanRun) -> None:
    kept = sorted(path.name for path in Path(run.checkpoints).iterdir())
    assert kept == ["epoch-0002", "epoch-0003"]
    torn = Path(run.checkpoints, "epoch-0003", "state.pt")
    torn.write_bytes(torn.read_bytes()[:-10])
    newest = newest_valid(run.checkpoints)
    assert newest is not None
    assert newest.endswith("epoch-0002")
    assert run.epochs == 3
    Path(run.checkpoints, "epoch-0002", "manifest.json").unlink()
    assert run.epochs == 0
    with pytest.raises(RunError, match="no whole checkpoint"):
        run.load_generator()


def test_a_run_goes_on_only_as_what_it_was(run: GanRun, small: GanConfig) -> None:
    longer = small.model_copy(update={"epochs": 9})
    assert claim(run.location, described(longer)).manifest.launches == 2
    with pytest.raises(RunError, match="label: rare -> other"):
        claim(run.location, described(small, label="other"))
    with pytest.raises(RunError, match=r"config.lr: 0.0002 -> 0.1"):
        claim(run.location, described(small.model_copy(update={"lr": 0.1})))
    with pytest.raises(RunError, match="trained for 4 epochs, more than 3"):
        claim(run.location, described(small.model_copy(update={"epochs": 3})))


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    refuse_foreign(str(tmp_path / "absent"))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="left alone"):
        refuse_foreign(str(tmp_path))
