from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cxr_ray.training.distributed import SyncedBatchNorm, World, synchronise_batch_norm


def test_one_process_needs_no_group() -> None:
    world, values = World(), torch.arange(3)
    assert world.first
    assert world.gather(values) is values
    assert torch.equal(world.total(values), values)
    assert world.share("x") == "x"
    assert world.collect(1) == [1]
    layer = nn.BatchNorm2d(2)
    synchronise_batch_norm(layer, world)
    assert type(layer) is nn.BatchNorm2d


def test_gather_of_unequal_and_empty_parts(two_ranks: Any) -> None:
    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        world = World(rank, 2)
        some = world.gather(torch.arange(3).view(3, 1) if rank == 0 else torch.full((1, 1), 9))
        none = world.gather(torch.zeros(0, 2) if rank == 0 else torch.ones(2, 2))
        return some, none

    for some, none in two_ranks.run(work):
        assert some.flatten().tolist() == [0, 1, 2, 9]
        assert none.shape == (2, 2)


def test_synced_batch_norm_of_unequal_parts_is_batch_norm_of_the_whole(two_ranks: Any) -> None:
    torch.manual_seed(0)
    whole = torch.randn(7, 3, 4, 4) * 5 + 100  # a mean far from 0: differences of squares would lose digits
    factor = torch.randn(7, 3, 4, 4)

    def layer() -> nn.BatchNorm2d:
        made = nn.BatchNorm2d(3, momentum=0.3)
        with torch.no_grad():
            made.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        return made

    reference, x = layer(), whole.clone().requires_grad_()
    expected = reference(x)
    (expected * factor).sum().backward()

    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor | None, nn.Module]:
        own = slice(0, 5) if rank == 0 else slice(5, 7)
        module, part = layer(), whole[own].clone().requires_grad_()
        synchronise_batch_norm(module, World(rank, 2))
        assert isinstance(module, SyncedBatchNorm)
        output = module(part)
        (output * factor[own]).sum().backward()
        return output.detach(), part.grad, module

    (out0, grad0, layer0), (out1, grad1, layer1) = two_ranks.run(work)
    assert torch.allclose(torch.cat([out0, out1]), expected, atol=1e-4)
    assert torch.allclose(torch.cat([grad0, grad1]), x.grad, atol=1e-4)
    assert torch.allclose(layer0.weight.grad + layer1.weight.grad, reference.weight.grad, atol=1e-3)
    assert torch.allclose(layer0.bias.grad + layer1.bias.grad, reference.bias.grad, atol=1e-3)
    for module in (layer0, layer1):
        assert torch.allclose(module.running_mean, reference.running_mean, atol=1e-4)
        assert torch.allclose(module.running_var, reference.running_var, atol=1e-3)
        module.eval()
        assert torch.allclose(module(whole), reference.eval()(whole), atol=1e-3)
        reference.train()


def test_references_to_layers_stay_good() -> None:
    """Frozen stages hold their modules in a tuple; a replaced module would no longer be frozen."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    held, keys = network[1], list(network.state_dict())
    synchronise_batch_norm(network, World(0, 2))
    assert network[1] is held
    assert isinstance(held, SyncedBatchNorm)
    assert list(network.state_dict()) == keys
