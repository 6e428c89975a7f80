"""``Gan``: both networks and their epochs, in plain torch. Needs neither Ray nor a process group.

Everything random in an epoch follows from (seed, epoch) for the global batch, of which each rank takes its part: a run resumed
between two epochs goes on as if it had not stopped, and a number of ranks that divides the batch changes nothing but rounding.

Shapes: B images of a step (over all ranks), R of this rank, S x S pixels, Z numbers of noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxr_ray.errors import RunError
from cxr_ray.synthesis.changes import change, draw_plan
from cxr_ray.synthesis.config import GanConfig
from cxr_ray.synthesis.networks import Discriminator, Generator
from cxr_ray.synthesis.rare import Images
from cxr_ray.training.checkpoint import Tensors, copy_to_cpu
from cxr_ray.training.distributed import World, synchronise_batch_norm
from cxr_ray.training.ema import MovingAverage

_START_STREAM, _EPOCH_STREAM = 0x6A11, 0x6A12
"""Keep the first weights and the epochs apart from each other and from other random numbers of the same seed."""


@dataclass(frozen=True, slots=True)
class GanRecord:
    """One line of ``history.jsonl``."""

    epoch: int
    """From 0."""
    generator_loss: float
    """Mean of -log D(G(z)) over the epoch."""
    discriminator_loss: float
    """Mean of its cross-entropies over real and made images, added."""
    real_score: float
    """Mean probability of being real that the discriminator gives real images."""
    fake_score: float
    """The same, of made ones. Near 0 with a real score near 1: the generator has lost."""
    seconds: float
    """Of the epoch."""


@dataclass(frozen=True, slots=True)
class GanState:
    """All that a run needs to go on after an epoch, on the CPU."""

    generator: Tensors
    discriminator: Tensors
    average: Tensors
    """The moving average of the generator, which makes the images."""
    optimizers: dict[str, Any]
    history: tuple[GanRecord, ...]

    @property
    def epoch(self) -> int:
        """The last epoch."""
        return self.history[-1].epoch


def stream_seed(stream: int, *numbers: int) -> int:
    """A seed for torch that follows from ``numbers`` and is independent of other streams."""
    return int(np.random.SeedSequence([stream, *numbers]).generate_state(1, np.uint64)[0] >> 1)


def build_networks(config: GanConfig, size: int) -> tuple[Generator, Discriminator]:
    """Both networks at their start, which follows from the seed; torch's global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(_START_STREAM, config.seed))
        return Generator(size, config.latent_size, config.generator_width), Discriminator(size, config.discriminator_width)


class Gan:
    """Generator, discriminator, their optimisers, and the state that goes from epoch to epoch.

    Args:
        images: (N, S, S) uint8, the same on every rank.
        config: How.
        world: Rank, ranks and device. None: one process on the CPU.
        resume: Where an earlier ``Gan`` with the same arguments stood.

    Raises:
        RunError: A batch that cannot be divided over the ranks, or a state of other networks.
    """

    def __init__(self, images: Images, config: GanConfig, world: World | None = None, resume: GanState | None = None) -> None:
        self.config, self.world = config, world or World()
        self.batch = min(config.batch_size, len(images)) // self.world.size * self.world.size
        if self.batch < 2 * self.world.size:
            raise RunError(
                f"{min(config.batch_size, len(images))} images a step are fewer than 2 for each of {self.world.size} workers",
                hint="fewer --workers",
            )
        device = self.world.device
        self.images = torch.from_numpy(np.array(images)).to(device)
        self.generator, self.discriminator = (network.to(device) for network in build_networks(config, images.shape[1]))
        self.average = MovingAverage(self.generator, config.ema_decay)  # eval mode: statistics of batch norm are averaged too
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), lr=config.lr, betas=(config.beta1, 0.999)),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), lr=config.lr, betas=(config.beta1, 0.999)),
        }
        self.history: list[GanRecord] = []
        if resume is not None:
            self._restore(resume)
        for network in (self.generator, self.discriminator):  # after the average was copied: a process group cannot be
            synchronise_batch_norm(network, self.world)

    def _restore(self, state: GanState) -> None:
        try:
            self.generator.load_state_dict(state.generator)
            self.discriminator.load_state_dict(state.discriminator)
            self.average.model.load_state_dict(state.average)
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state.optimizers[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"the checkpoint of epoch {state.epoch} is of another GAN", hint="another --run") from error
        self.history = list(state.history)

    def state(self) -> GanState:
        """A copy on the CPU of all that a resumed run needs."""
        return GanState(
            generator=copy_to_cpu(self.generator.state_dict()),
            discriminator=copy_to_cpu(self.discriminator.state_dict()),
            average=copy_to_cpu(self.average.model.state_dict()),
            optimizers={name: copy_to_cpu(optimizer.state_dict()) for name, optimizer in self.optimizers.items()},
            history=tuple(self.history),
        )

    @property
    def averaged(self) -> Generator:
        """The moving average of the generator."""
        return cast(Generator, self.average.model)

    @property
    def epoch(self) -> int:
        """The next epoch."""
        return self.history[-1].epoch + 1 if self.history else 0

    @property
    def steps_per_epoch(self) -> int:
        """A last, smaller batch is left out."""
        return len(self.images) // self.batch

    def run(self, report: Callable[[GanRecord], None] | None = None) -> None:
        """Train to the last epoch; ``report`` is called on every rank after each.

        Raises:
            RunError: A loss is not finite.
        """
        self.generator.train()
        self.discriminator.train()
        while self.epoch < self.config.epochs:
            record = self._epoch()
            self.history.append(record)
            if report is not None:
                report(record)

    # --- one epoch ------------------------------------------------------------------------------------------------------

    def _epoch(self) -> GanRecord:
        epoch, started = self.epoch, time.perf_counter()
        random = torch.Generator().manual_seed(stream_seed(_EPOCH_STREAM, self.config.seed, epoch))
        order_N = torch.randperm(len(self.images), generator=random)
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)
        for step in range(self.steps_per_epoch):
            sums += self._step(order_N[step * self.batch : (step + 1) * self.batch], random, epoch * self.steps_per_epoch + step)
        means = (self.world.total(sums) / (self.steps_per_epoch * self.world.size)).tolist()  # waits for the device
        if not np.isfinite(means).all():
            hint = f"a smaller lr (now {self.config.lr:g}), or another --run and --seed"
            raise RunError(f"a loss is not finite at epoch {epoch}", hint=hint)
        return GanRecord(epoch, means[0], means[1], means[2], means[3], time.perf_counter() - started)

    def _step(self, rows_B: Tensor, random: torch.Generator, step: int) -> Tensor:
        """(generator's loss, discriminator's loss, real score, fake score), means over this rank's part."""
        size, device = self.images.shape[1], self.world.device
        share = self.batch // self.world.size
        mine = slice(self.world.rank * share, (self.world.rank + 1) * share)
        noise_RZ = torch.randn(self.batch, self.config.latent_size, generator=random)[mine].to(device)
        plans = [draw_plan(self.config.changes, self.batch, size, random).part(mine.start, mine.stop) for _ in range(3)]
        real_R1SS = self.images[rows_B[mine].to(device)].unsqueeze(1).float() / 127.5 - 1
        fake_R1SS = self.generator(noise_RZ)

        self.discriminator.requires_grad_(True)
        real_R = self.discriminator(change(real_R1SS, plans[0]))
        fake_R = self.discriminator(change(fake_R1SS.detach(), plans[1]))
        discriminator_loss = _cross_entropy(real_R, self.config.real_target) + _cross_entropy(fake_R, 0.0)
        self._learn("discriminator", self.discriminator, discriminator_loss)

        self.discriminator.requires_grad_(False)  # its gradients would be thrown away
        generator_loss = _cross_entropy(self.discriminator(change(fake_R1SS, plans[2])), 1.0)
        self._learn("generator", self.generator, generator_loss)
        self.average.decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        self.average.update(self.generator)
        scores = (real_R.detach().sigmoid().mean(), fake_R.detach().sigmoid().mean())
        return torch.stack([generator_loss.detach(), discriminator_loss.detach(), *scores]).double()

    def _learn(self, name: str, network: nn.Module, loss: Tensor) -> None:
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(network.parameters(), self.world)
        self.optimizers[name].step()


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace gradients by their mean over ranks, in one message.

    Not ``DistributedDataParallel``: the discriminator is run twice before it learns and once more without learning, and these networks
    are too small for sending while computing to matter.
    """
    if world.size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = world.total(torch.cat([gradient.flatten() for gradient in gradients])) / world.size
    for gradient, mean in zip(gradients, torch.split(total, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _cross_entropy(logits_B: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits_B, torch.full_like(logits_B, target))
