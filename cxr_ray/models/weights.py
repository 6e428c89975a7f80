"""Weights of a backbone: from a file, a URI, or the publisher; matched key by key, never half loaded."""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from posixpath import basename, splitext
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cxr_ray import storage
from cxr_ray.errors import ModelError

logger = logging.getLogger(__name__)

State = dict[str, Tensor]


class Published(Protocol):
    """What ``weights: default`` downloads: torchvision's ``WeightsEnum``, or timm's weights in the same dress."""

    @property
    def url(self) -> str:
        """Where a person fetches the file; empty where there is none."""

    def get_state_dict(self, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        """The tensors, downloaded once and then from the publisher's cache."""


LISTED = 20
"""So many keys of a kind are named in a message; then their number."""

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under one of these names a training checkpoint keeps the weights."""

_LEGACY_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
"""The published DenseNet files are older than the rule that a module's name holds no dot: ``norm.1`` is ``norm1``."""


def load_weights(module: nn.Module, weights: str, *, name: str, first_conv: str, published: Published | None) -> None:
    """Fill a backbone's parameters and statistics in place.

    Every tensor of the backbone must be in the file with its shape (counters of batch norm may lack); tensors outside the backbone,
    such as an ImageNet classifier, are ignored with a log line. A first convolution over three channels is folded into one where
    the backbone has one: the sum over its input channels gives the same output as the grey image repeated three times.

    Args:
        module: The backbone, its keys as their publisher names them.
        weights: ``none`` (nothing happens), ``default`` (downloaded once, then kept in torch's cache), or a path/URI.
        name: The backbone's name, for messages.
        first_conv: Dotted name of the convolution that sees the image.
        published: Where ``default`` comes from; None where nobody publishes such weights.

    Raises:
        ModelError: No download, no such format, a file that is not what its name says, or keys that do not fit (all of them are listed).
        StorageError: The file cannot be read.
    """
    if weights == "none":
        return
    found = _download(name, published) if weights == "default" else read_weights(weights)
    where = f"the published weights of {name}" if weights == "default" else weights
    state = _fit(module, found, first_conv=first_conv, where=where, name=name)
    module.load_state_dict(state, strict=False)  # strict would ask for the counters that _fit lets pass
    logger.info("backbone %s: %d tensors from %s", name, len(state), where)


def read_weights(location: str) -> State:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file, on the CPU.

    A ``.pth`` may hold a checkpoint whose ``state_dict``, ``model_state_dict`` or ``model`` is the weights. It is read with
    ``weights_only``: nothing in it is executed.

    Raises:
        ModelError: Another suffix, a file that is not what its suffix says, pickled objects, or no tensors in it.
        StorageError: The file cannot be read.
    """
    suffix = splitext(location.partition("?")[0])[1].lower()
    if suffix not in {".safetensors", ".pth", ".pt"}:
        raise ModelError(
            f"model.backbone.weights is {location!r}: expected none, default, or a path or URI that ends in .safetensors, .pth or .pt",
            hint="model.backbone.weights=/path/to/weights.safetensors",
        )
    data = storage.read_bytes(location)
    if suffix == ".safetensors":
        try:
            return safetensors.torch.load(data)
        except (SafetensorError, KeyError) as error:
            raise ModelError(f"{location} is not a safetensors file, or was cut short ({error})") from None
    return _tensors(_unpickle(data, location), location)


def fold_first_conv(weight: Tensor) -> Tensor:
    """(O, 3, k, k) -> (O, 1, k, k), the sum over the input channels: what three equal channels add up to."""
    return weight.sum(dim=1, keepdim=True)


def _unpickle(data: bytes, location: str) -> object:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{location} is not a plain file of tensors: it is cut short, or holds pickled objects, which could run any code when opened",
            hint="where you trust it: torch.load it there, and write model.state_dict() with safetensors.torch.save_file",
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        # torch's readers raise many kinds for a file that is torn or not theirs; each means the same to the user
        raise ModelError(f"{location} cannot be read as a PyTorch weight file, or was cut short ({type(error).__name__})") from None


def _tensors(content: object, location: str) -> State:
    if isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
        tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    held = ", ".join(map(str, list(content)[:LISTED])) if isinstance(content, Mapping) else type(content).__name__
    raise ModelError(f"{location} holds no weights: expected tensors by name, at the top or under state_dict; it holds {held or 'nothing'}")


def _download(name: str, published: Published | None) -> State:
    if published is None or not published.url:
        raise ModelError(f"backbone {name} has no published weights", hint="model.backbone.weights=none, or the path of a weight file")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces the download; stdout is for results
            return dict(published.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, http.client.HTTPException, pickle.UnpicklingError) as error:
        file = basename(published.url)
        raise ModelError(
            f"the published weights of {name}, {file}, could not be downloaded ({type(error).__name__}: {error})",
            hint=f"fetch {published.url} on a machine with a network and give the file: model.backbone.weights=/path/to/{file}",
        ) from None


def _fit(module: nn.Module, found: Mapping[str, Tensor], *, first_conv: str, where: str, name: str) -> State:
    """The tensors of ``found`` under the module's own keys, or every reason why they are not its weights."""
    expected = module.state_dict()
    found = {_LEGACY_DENSENET.sub(r"\1\2", key): tensor for key, tensor in found.items()}
    prefix = _prefix(expected, found)
    given = {key.removeprefix(prefix): tensor for key, tensor in found.items() if key.startswith(prefix)}
    parts = {key.split(".", 1)[0] for key in expected}
    state = {key: tensor for key, tensor in given.items() if key in expected}
    first_key = f"{first_conv}.weight"
    if first_key in state and state[first_key].ndim == 4 and (state[first_key].shape[1], expected[first_key].shape[1]) == (3, 1):
        state[first_key] = fold_first_conv(state[first_key])

    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in sorted(given) if key not in expected and key.split(".", 1)[0] in parts]
    misshapen = [
        f"{key}: file {tuple(state[key].shape)}, network {tuple(expected[key].shape)}"
        for key in sorted(state)
        if state[key].shape != expected[key].shape
    ]
    if missing or unexpected or misshapen:
        one_channel = first_key in state and state[first_key].shape[1:2] == (1,) and expected[first_key].shape[1] == 3
        raise ModelError(
            f"{where} does not fit backbone {name}"
            + _listing("missing", missing)
            + _listing("unexpected", unexpected)
            + _listing("of another shape", misshapen),
            hint="model.backbone.in_channels=1: these weights are for grey images"
            if one_channel
            else "the model.backbone.name they are of",
        )
    ignored = len(found) - len(state)
    if ignored:
        logger.info("%s: %d tensors that are no part of the backbone ignored", where, ignored)
    return state


def _prefix(expected: Iterable[str], found: Iterable[str]) -> str:
    """What stands before the backbone's keys in the file (``module.``, ``model.``, ``backbone.`` …): the prefix that fits most keys."""
    known = set(expected)
    counts: Counter[str] = Counter({"": 0})
    for key in found:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in known:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))


def _listing(what: str, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    more = f"\n      … and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return f"\n  {len(keys)} {what}:" + "".join(f"\n      {key}" for key in keys[:LISTED]) + more
