"""Weight files of many kinds onto a backbone: whole or refused, nothing executed, every fault listed."""

from __future__ import annotations

import logging
import os
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision.models as tv
from huggingface_hub import hf_hub_url
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from cxr_ray.config import BackboneConfig
from cxr_ray.errors import ModelError, StorageError
from cxr_ray.models.backbones import BACKBONES, Backbone, build_backbone
from cxr_ray.models.weights import LISTED, fold_first_conv, load_weights, read_weights

MakeBackbone = Callable[..., Backbone]
State = dict[str, Tensor]


@pytest.fixture
def state(make_backbone: MakeBackbone) -> State:
    """Of a three-channel ``small_cnn`` whose batch norm statistics are not those of a new one."""
    state = {key: tensor.clone() for key, tensor in make_backbone("small_cnn", seed=5, in_channels=3).state_dict().items()}
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            tensor.uniform_(-1, 1)
    return state


def saved(path: Path, content: Any) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def loaded(weights: str, name: str = "small_cnn", **settings: Any) -> Backbone:
    return build_backbone(BackboneConfig(name=name, weights=weights, **settings))


def assert_holds(backbone: nn.Module, state: State) -> None:
    """Every tensor is that of ``state``, the first convolution's perhaps folded."""
    for key, tensor in backbone.state_dict().items():
        expected = state[key]
        assert torch.equal(tensor, expected if tensor.shape == expected.shape else expected.sum(1, keepdim=True)), key


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "W.PTH"])
def test_file(state: State, tmp_path: Path, name: str, in_channels: int) -> None:
    assert_holds(loaded(saved(tmp_path / name, state), in_channels=in_channels), state)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "backbone.", "_orig_mod.module.net."])
def test_prefixes_of_other_programs(state: State, tmp_path: Path, prefix: str) -> None:
    content = {prefix + key: tensor for key, tensor in state.items()} | {"fc.weight": torch.ones(2), f"{prefix}fc.bias": torch.ones(2)}
    assert_holds(loaded(saved(tmp_path / "w.safetensors", content)), state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_training_checkpoints(state: State, tmp_path: Path, wrapper: str) -> None:
    content = {"epoch": 3, wrapper: {f"module.{key}": tensor for key, tensor in state.items()}, "optimizer": {"step": torch.ones(1)}}
    assert_holds(loaded(saved(tmp_path / "w.pth", content)), state)


def test_uri(state: State, tmp_path: Path) -> None:
    assert_holds(loaded(Path(saved(tmp_path / "w.safetensors", state)).as_uri()), state)


def test_classifier_is_ignored_with_a_log_line(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaded(saved(tmp_path / "w.pth", state | {"classifier.1.weight": torch.ones(3), "classifier.1.bias": torch.ones(3)}))
    assert "2 tensors that are no part of the backbone ignored" in caplog.text
    assert f"{len(state)} tensors from" in caplog.text


def test_tensors_of_another_layout_and_type(state: State, tmp_path: Path) -> None:
    content = {key: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for key, t in state.items()}
    assert_holds(loaded(saved(tmp_path / "w.pth", content)), state)
    half = loaded(saved(tmp_path / "h.pth", {key: tensor.half() for key, tensor in state.items()}))
    assert half.blocks[0][0].weight.dtype == torch.float32
    assert torch.equal(half.blocks[4][0].weight, state["blocks.4.0.weight"].half().float())


def test_counters_of_batch_norm_may_lack(state: State, tmp_path: Path) -> None:
    """The published VGG and DenseNet files are older than these counters."""
    content = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    assert len(content) < len(state)
    assert_holds(loaded(saved(tmp_path / "w.pth", content)), state)


def test_densenet_keys_of_the_published_file(make_backbone: MakeBackbone, tmp_path: Path) -> None:
    state = make_backbone("densenet121", seed=5, in_channels=3).state_dict()
    legacy = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor for key, tensor in state.items()}
    assert set(legacy) != set(state)
    assert_holds(loaded(saved(tmp_path / "w.pth", legacy), "densenet121"), state)


def test_fold_by_hand() -> None:
    weight = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    assert fold_first_conv(weight).tolist() == [[[[7.0]]]]


def test_grey_weights_fit_a_grey_backbone_and_are_refused_by_a_colour_one(state: State, tmp_path: Path) -> None:
    first = "blocks.0.0.weight"
    grey = state | {first: state[first].sum(1, keepdim=True)}
    path = saved(tmp_path / "w.safetensors", grey)
    assert_holds(loaded(path), grey)
    with pytest.raises(ModelError, match=r"1 of another shape:\s+blocks.0.0.weight(.|\n)*try: model.backbone.in_channels=1"):
        loaded(path, in_channels=3)


def test_every_fault_is_listed_at_once(state: State, tmp_path: Path) -> None:
    del state["blocks.1.0.weight"]
    state["blocks.2.0.weight"] = torch.zeros(96, 48, 5, 5)
    state["blocks.3.1.bias"] = torch.zeros(7)
    state["blocks.9.0.weight"] = torch.zeros(1)
    with pytest.raises(ModelError) as caught:
        loaded(saved(tmp_path / "w.safetensors", state))
    lines = [" ".join(line.split()) for line in str(caught.value).splitlines()]
    assert lines[1:-1] == [
        "1 missing:",
        "blocks.1.0.weight",
        "1 unexpected:",
        "blocks.9.0.weight",
        "2 of another shape:",
        "blocks.2.0.weight: file (96, 48, 5, 5), network (96, 48, 3, 3)",
        "blocks.3.1.bias: file (7,), network (128,)",
    ]


def test_refused_weights_leave_the_backbone_as_it_was(state: State, tmp_path: Path, make_backbone: MakeBackbone) -> None:
    state["blocks.4.1.bias"] = torch.zeros(7)
    backbone = make_backbone("small_cnn")
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(ModelError):
        load_weights(backbone, saved(tmp_path / "w.pth", state), name="small_cnn", first_conv=backbone.first_conv, published=None)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_weights_of_another_backbone(make_backbone: MakeBackbone, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", make_backbone("resnet34", in_channels=3).state_dict())
    with pytest.raises(ModelError, match="does not fit backbone resnet18") as caught:
        loaded(path, "resnet18")
    assert "96 unexpected:\n      layer1.2.bn1.bias" in str(caught.value)
    assert f"and {96 - LISTED} more" in str(caught.value)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = saved(tmp_path / "w.pth", {"state_dict": Evil()})
    with pytest.raises(ModelError, match="pickled objects, which could run any code"):
        read_weights(path)
    with pytest.raises(ModelError, match="pickled objects"):
        read_weights(saved(tmp_path / "module.pth", nn.Linear(1, 1)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_torn_files(state: State, tmp_path: Path, name: str, kept: float) -> None:
    path = Path(saved(tmp_path / name, state))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match="cut short"):
        read_weights(str(path))


def test_not_a_weight_file(state: State, tmp_path: Path) -> None:
    text = tmp_path / "w.pth"
    text.write_text("<html>not found</html>")
    with pytest.raises(ModelError, match=r"w\.pth"):
        read_weights(str(text))
    with pytest.raises(ModelError, match=r"holds no weights.*epoch"):
        read_weights(saved(tmp_path / "v.pth", {"epoch": 3}))
    with pytest.raises(ModelError, match=r"holds no weights.*list"):
        read_weights(saved(tmp_path / "u.pth", [torch.ones(1)]))
    with pytest.raises(ModelError, match="'imagenet': expected none, default, or a path"):
        read_weights("imagenet")
    with pytest.raises(StorageError, match="cannot read"):
        read_weights(str(tmp_path / "absent.safetensors"))


# --- the published weights ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's download cache, empty, and no network."""

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("name", [name for name, spec in BACKBONES.items() if isinstance(spec.published, WeightsEnum)])
def test_offline_says_what_to_fetch(cache: Path, name: str) -> None:
    published = BACKBONES[name].published
    assert published is not None
    file = published.url.rsplit("/", 1)[1]
    assert file.startswith(name.split("_")[0])
    with pytest.raises(ModelError) as caught:
        load_weights(nn.Identity(), "default", name=name, first_conv="", published=published)
    assert f"{name}, {file}, could not be downloaded (URLError: " in caught.value.message
    assert (
        caught.value.hint == f"fetch {published.url} on a machine with a network and give the file: model.backbone.weights=/path/to/{file}"
    )


def test_published_weights_come_from_the_cache_and_stdout_stays_clean(
    cache: Path, make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = make_backbone("mobilenet_v3_small", seed=5, in_channels=3).state_dict()

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        assert path == str(cache / "mobilenet_v3_small-047dcff4.pth")
        assert hash_prefix == "047dcff4"
        saved(Path(path), state | {"classifier.0.weight": torch.ones(3)})

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    assert_holds(loaded("default", "mobilenet_v3_small"), state)
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(cache.parents[1]))
    assert_holds(loaded("default", "mobilenet_v3_small"), state)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["small_cnn", "islam_cnn", "timm:test_resnet"])
def test_nobody_publishes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda _name: None)
    with pytest.raises(ModelError, match=rf"{name} has no published weights(.|\n)*model.backbone.weights=none"):
        loaded("default", name)


def test_offline_timm_says_what_to_fetch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained:
            raise FileNotFoundError("no network in tests")
        return create(name, **settings)

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ModelError) as caught:
        loaded("default", "timm:test_resnet.r160_in1k")
    url = hf_hub_url("timm/test_resnet.r160_in1k", "model.safetensors")
    assert "model.safetensors, could not be downloaded (FileNotFoundError: no network in tests)" in caught.value.message
    assert (
        caught.value.hint == f"fetch {url} on a machine with a network and give the file: model.backbone.weights=/path/to/model.safetensors"
    )


def test_published_weights_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    theirs = create("test_resnet")
    monkeypatch.setattr("timm.create_model", lambda name, pretrained=False, **settings: theirs if pretrained else create(name, **settings))
    backbone = loaded("default", "timm:test_resnet", in_channels=3)
    assert_holds(backbone.get_submodule("timm"), theirs.state_dict())


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_convnext"])
def test_file_by_timms_names(tmp_path: Path, name: str, in_channels: int) -> None:
    """One network cut into stages, one as a whole; its classifier is ignored."""
    state = timm.create_model(name.partition(":")[2]).state_dict()
    backbone = loaded(saved(tmp_path / "w.safetensors", state), name, in_channels=in_channels)
    assert_holds(backbone.get_submodule(backbone.publisher_root), state)


def test_file_by_torchvisions_names(tmp_path: Path) -> None:
    state = tv.squeezenet1_1(num_classes=4).state_dict()
    assert_holds(loaded(saved(tmp_path / "w.pth", state), "torchvision:squeezenet1_1"), state)


# --- real weights -------------------------------------------------------------------------------------------------------


def test_real_imagenet_weights_give_the_same_map_from_one_channel_as_from_three(real_data: Path) -> None:
    path = real_data / "weights" / "mobilenet_v2_imagenet_features.safetensors"
    one, three = (loaded(str(path), "mobilenet_v2", in_channels=channels).eval() for channels in (1, 3))
    assert_holds(three, safetensors.torch.load_file(path))
    # A ramp: far smoother than noise, as X-rays are.
    x_B1HW = torch.linspace(-2, 2, 96 * 96).reshape(1, 1, 96, 96)
    with torch.inference_mode():
        a, b = one(x_B1HW), three(x_B1HW)
    assert b.std() > 0.1
    assert (a - b).abs().max() <= 1e-5 * float(b.abs().max())
