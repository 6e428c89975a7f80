from __future__ import annotations

import pytest
import torch

from cxr_ray.synthesis.networks import Discriminator, Generator, channels


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_shapes(size: int) -> None:
    images = Generator(size, 10, 4)(torch.randn(3, 10))
    assert images.shape == (3, 1, size, size)
    assert images.min() >= -1
    assert images.max() <= 1
    assert Discriminator(size, 4)(images).shape == (3,)


def test_channels_are_those_of_the_paper_at_64_pixels() -> None:
    assert channels(64, 64) == [512, 256, 128, 64]
    assert channels(128, 64) == [512, 512, 256, 128, 64]
    for size in (4, 48, 0):
        with pytest.raises(ValueError, match="power of two"):
            channels(size, 64)


def test_every_parameter_learns_and_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(64, 20, 16), Discriminator(64, 16)
    discriminator(generator(torch.randn(4, 20))).sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            if parameter.ndim == 4 and parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
                assert parameter.mean().item() == pytest.approx(0.0, abs=0.002), name
