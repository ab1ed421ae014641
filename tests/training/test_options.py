"""Options of training: average weights, rates by layer, determinism, compiled encoders; and reading ahead."""

from itertools import pairwise

import pytest
import torch

from wsi_dbps.bags.bags import PatchReader
from wsi_dbps.core.errors import CheckpointError, ConfigError, TrainingError
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.inference.predict import predict
from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig
from wsi_dbps.models.slide_model import SlideModel
from wsi_dbps.training.checkpoint import load_checkpoint
from wsi_dbps.training.loop import train
from wsi_dbps.training.optimizer import build_optimizer, update_average
from wsi_dbps.training.settings import OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")


def test_average_weights_are_the_weighted_mean_of_those_they_followed() -> None:
    model, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    average.weight.data.fill_(0.0)
    by_hand = 0.0
    for step, value in enumerate([1.0, 2.0, 4.0]):
        model.weight.data.fill_(value)
        update_average(average, model, 0.15, step)
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, then 0.15
        by_hand = decay * by_hand + (1 - decay) * value
    assert average.weight.item() == pytest.approx(by_hand)


def test_a_lower_layer_learns_at_a_share_of_the_rate_above() -> None:
    encoder = EncoderConfig(name="resnet18", pretrained=False, dim=16)
    model = SlideModel(2, encoder, AggregatorConfig(num_heads=1), SelectionConfig())
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3, encoder_lr=1e-2, layer_decay=0.5))
    peaks = {id(p): group["peak"] for group in optimizer.param_groups for p in group["params"]}
    assert len(peaks) == sum(p.requires_grad for p in model.parameters())
    backbone = [peaks[id(p)] for p in model.encoder.backbone.parameters()]
    assert all(before <= after for before, after in pairwise(backbone))
    assert backbone[0] < backbone[-1] <= 1e-2
    assert {peaks[id(p)] for p in model.encoder.project.parameters()} == {1e-2}
    assert {peaks[id(p)] for p in model.aggregator.parameters()} == {1e-3}
    small = SlideModel(2, EncoderConfig(name="small_gn"), AggregatorConfig(num_heads=1), SelectionConfig())
    with pytest.raises(ConfigError, match="layer_decay: the encoder does not say which its layers are"):
        build_optimizer(small, OptimizerConfig(layer_decay=0.5))


def test_determinism_is_asked_of_torch_for_the_run_only(cohort, caches, tmp_path, make_config) -> None:
    seen = []
    train(
        cohort,
        caches,
        tmp_path / "run",
        make_config(training={"epochs": 1, "deterministic": True}),
        say=lambda _: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_compiled_encoder_is_asked_for_and_leaves_the_same_names(make_trainer) -> None:
    """Without a compiler: tested is that it is asked for and that checkpoints do not change."""
    plain, compiled = (make_trainer(training={"compile": wanted}) for wanted in (False, True))
    assert compiled.model.encoder._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager"):
        for one, other in zip(plain.steps_left(), compiled.steps_left(), strict=True):
            plain.step(one)
            compiled.step(other)
    torch.testing.assert_close(compiled.state_dict()["model"], plain.state_dict()["model"])


def test_what_is_announced_is_read_ahead_and_a_wrong_guess_is_harmless(caches) -> None:
    one, two = (PatchCache(caches / f"slide_{i:02d}.h5") for i in (5, 6))
    lists = [torch.tensor([3, 1]), torch.tensor([7, 30, 0]), torch.tensor([2])]
    reader = PatchReader(1)
    for guess in (lists, lists[:1], [torch.tensor([9])], [*lists, torch.tensor([4])]):
        reader.expect(two, guess)
        list(reader.read(one, lists))
        for ids, found in zip(lists, reader.read(two, lists), strict=True):
            assert torch.equal(found, torch.from_numpy(two.patches(ids.tolist())).permute(0, 3, 1, 2))
    assert reader.waited_s > 0
    reader.close()


class Broken:
    """A file of patches none of which can be read."""

    def patches(self, ids: object) -> None:
        raise MemoryError("no room")


def test_an_error_in_a_decoding_thread_is_raised_where_the_patch_is_wanted(caches) -> None:
    broken, other = Broken(), PatchCache(caches / "slide_06.h5")
    reader = PatchReader(2)
    reader.expect(broken, [torch.tensor([1])])
    assert len(list(reader.read(other, [torch.tensor([0, 1])]))) == 1
    with pytest.raises(MemoryError, match="no room"):
        list(reader.read(broken, [torch.tensor([1])]))
    reader.close()


def test_classes_stand_in_the_order_that_was_asked_for(cohort, caches, tmp_path, make_config, trained) -> None:
    finished = trained(make_config(training={"epochs": 1, "classes": ["flat", "coarse"]}))
    checkpoint = load_checkpoint(finished.result.checkpoint)
    assert checkpoint.classes == ("flat", "coarse")
    assert finished.said[0] == "classes: flat, coarse; coarse is the positive one (training.classes sets the order)"
    state = checkpoint.model_state
    held = [sum(t.numel() for name, t in state.items() if name.startswith(part)) for part in ("encoder", "aggregator")]
    assert finished.said[1] == f"parameters: encoder {held[0]:,}, aggregator {held[1]:,} (embedding size 16)"
    found = predict([checkpoint], cohort.part("test"), caches, tmp_path / "pred", device="cpu")
    assert found.predictions.classes == ("flat", "coarse")
    run = finished.copy(tmp_path / "run")
    assert train(cohort, caches, run, finished.config, resume=True).best == finished.result.best
    other = make_config(training={"epochs": 1, "classes": ["coarse", "flat"]})
    with pytest.raises(CheckpointError, match=r"cannot resume with other settings \(training.classes was"):
        train(cohort, caches, run, other, resume=True)


def test_other_classes_than_the_labels_are_refused(cohort, caches, tmp_path, make_config) -> None:
    config = make_config(training={"classes": ["flat", "bumpy"]})
    said = r"\[training\] classes = flat, bumpy, but the train slides are labelled coarse, flat; name each"
    with pytest.raises(TrainingError, match=said):
        train(cohort, caches, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("classes", [[], ["flat"], ["flat", "flat"]])
def test_classes_are_two_different_labels_or_more(make_config, classes) -> None:
    with pytest.raises(ConfigError, match="classes must be two different labels or more"):
        make_config(training={"classes": classes})
