"""Generator and discriminator: the DCGAN of Radford et al. 2016 (arXiv:1511.06434) for one grey channel.

Shapes: B images, Z numbers of noise, S x S pixels (a power of two, 8 at least).

    noise_BZ  standard normal
    x_B1SS    images in -1 … 1
    logits_B  above 0: real
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

START = 4
"""Side of the first map of the generator and of the last of the discriminator."""
MOST_DOUBLINGS = 3
"""Channels double from layer to layer up to 8 times the width, as in the paper's network for 64 pixels."""
LEAK = 0.2


def channels(size: int, width: int) -> list[int]:
    """Channels of the maps from side 4 up to side ``size / 2``, the widest first.

    Raises:
        ValueError: ``size`` is not a power of two of at least 8.
    """
    if size < 2 * START or size & (size - 1):
        raise ValueError(f"expected a power of two of at least {2 * START}, got {size}")
    layers = (size // START).bit_length() - 1
    return [width << min(layer, MOST_DOUBLINGS) for layer in reversed(range(layers))]


class Generator(nn.Module):
    """Noise -> images, by transposed convolutions with batch norm and ReLU; tanh at the end.

    Args:
        size: S, side of the images.
        latent_size: Z.
        width: Channels of the last hidden map.
    """

    def __init__(self, size: int, latent_size: int, width: int) -> None:
        super().__init__()
        self.size, self.latent_size = size, latent_size
        maps = channels(size, width)
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_size, maps[0], START, bias=False), nn.BatchNorm2d(maps[0]), nn.ReLU()]
        for wide, narrow in pairwise(maps):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
        layers += [nn.ConvTranspose2d(maps[-1], 1, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_start)

    def forward(self, noise_BZ: Tensor) -> Tensor:
        """(B, Z) -> (B, 1, S, S) in -1 … 1."""
        return self.layers(noise_BZ[:, :, None, None])  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """Images -> is it real? By strided convolutions with batch norm (not on the first, as in the paper) and leaky ReLU.

    Args:
        size: S, side of the images.
        width: Channels of the first map.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        maps = channels(size, width)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(1, maps[0], 4, 2, 1), nn.LeakyReLU(LEAK)]
        for narrow, wide in pairwise(maps):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(LEAK)]
        layers.append(nn.Conv2d(maps[-1], 1, START))
        self.layers = nn.Sequential(*layers)
        self.apply(_start)

    def forward(self, x_B1SS: Tensor) -> Tensor:
        """(B, 1, S, S) in -1 … 1 -> logits (B,)."""
        return self.layers(x_B1SS).flatten()  # type: ignore[no-any-return]


def _start(module: nn.Module) -> None:
    """Weights of N(0, 0.02); scales of batch norm of N(1, 0.02), as the paper's code has it; biases zero."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
