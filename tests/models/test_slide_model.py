"""The slide model: one result for every N, ragged batches, where gradients go, and what it leaves alone."""

import copy

import pytest
import torch

from wsi_dbps.models.config import EncoderConfig
from wsi_dbps.models.encoders import batch_norms
from wsi_dbps.models.slide_model import SlideModel, evaluation_mode

EVERY_SELECTOR = ("streaming", "global", "random", "all")


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("selector", EVERY_SELECTOR)
@pytest.mark.parametrize("aggregator", ["dual", "concat"])
@pytest.mark.parametrize("num_patches", [1, 2, 3, 4, 6, 7, 8, 23])
def test_every_size_of_bag_gives_one_kind_of_result(make_model, make_bag, selector, aggregator, num_patches) -> None:
    """N = 1, N <= M, M < N < M + S and beyond, in training and in prediction."""
    model, bag = make_model(aggregator, selector=selector, predict_selector=selector), make_bag(num_patches)
    m = num_patches if selector == "all" else min(3, num_patches)
    chosen = model.select(bag, torch.arange(num_patches), draws())
    assert len(chosen.selection.salient_M) == len(chosen.salient_pixels_MCPP) == m
    assert len(chosen.selection.subsalient_S) == len(chosen.subsalient_SD) == min(4, num_patches - m)
    assert torch.equal(chosen.salient_pixels_MCPP, bag.pixels[chosen.selection.salient_M])
    assert model([chosen]).shape == (1, 2)

    output = model.predict(bag, draws())
    assert output.logits_C.shape == (2,)
    assert output.attention_RN.shape == (4, num_patches)
    assert output.weights_N.sum().item() == pytest.approx(1, abs=1e-5)
    assert len(output.selection.salient_M) == m


@pytest.mark.parametrize("aggregator", ["dual", "concat"])
def test_a_ragged_batch_gives_each_slide_what_it_gets_alone(make_model, make_bag, aggregator) -> None:
    model = make_model(aggregator).eval()
    bags = [make_bag(n, seed=n) for n in (1, 2, 5, 9, 30)]
    chosen = [model.select(bag, torch.arange(bag.num_patches), draws()) for bag in bags]
    together = model(chosen)
    alone = torch.cat([model([one]) for one in chosen])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("aggregator", ["dual", "concat"])
def test_what_pads_a_batch_gets_no_gradient_and_changes_nothing(make_model, aggregator) -> None:
    model = make_model(aggregator).eval()
    salient, subsalient = torch.randn(1, 3, 32), torch.randn(1, 2, 32, requires_grad=True)
    present = torch.tensor([[True, True, False]])
    padding = torch.tensor([[True, False]])
    logits = model.aggregator(salient, present, subsalient, padding)
    logits.sum().backward()
    assert subsalient.grad is not None
    assert (subsalient.grad[0, 1] == 0).all()
    assert (subsalient.grad[0, 0] != 0).any()
    short = model.aggregator(salient[:, :2], present[:, :2], subsalient[:, :1], padding[:, :1])
    assert torch.allclose(logits, short, atol=1e-6)


def test_dual_attention_is_the_published_sequence_of_poolings(make_model) -> None:
    """Section 5 of the method, written out for one bag with plain softmax."""
    model = make_model("dual").eval()
    v, P, Q = model.aggregator, torch.randn(3, 32), torch.randn(4, 32)

    def pool(query: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        q, k, u = v.attention.to_query(query), v.attention.to_key(patches), v.attention.to_value(patches)
        heads = [torch.softmax(k[:, h : h + 8] @ q[h : h + 8] / 8**0.5, 0) @ u[:, h : h + 8] for h in range(0, 32, 8)]
        return v.attention.to_out(torch.cat(heads))

    z1 = v.query + pool(v.query, P)
    z = v.norm(z1 + pool(v.norm(z1), Q))
    expected = v.head(v.norm_out(z + v.mlp(z)))
    everyone = [torch.ones(1, n, dtype=torch.bool) for n in (3, 4)]
    assert torch.allclose(model.aggregator(P[None], everyone[0], Q[None], everyone[1])[0], expected, atol=1e-5)

    nobody = torch.zeros(1, 4, dtype=torch.bool)
    z = v.norm(z1)
    without = v.head(v.norm_out(z + v.mlp(z)))
    assert torch.allclose(model.aggregator(P[None], everyone[0], Q[None], nobody)[0], without, atol=1e-5)
    assert torch.allclose(model.aggregator(P[None], everyone[0], Q[None, :0], nobody[:, :0])[0], without, atol=1e-5)


def test_the_gradient_reaches_salient_pixels_only(make_model, make_bag) -> None:
    model, bag = make_model(), make_bag(20)
    chosen = model.select(bag, torch.arange(20), draws())
    assert not chosen.subsalient_SD.requires_grad
    pixels: list[torch.Tensor] = []

    def follow(salient: torch.Tensor) -> torch.Tensor:
        pixels.append((salient / 255).requires_grad_())
        return pixels[0]

    model([chosen], follow)[0, 1].backward()
    assert pixels[0].grad is not None
    assert (pixels[0].grad.flatten(1).abs().sum(1) > 0).all()
    assert len(pixels[0]) == 3
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_only_kept_patches_are_read(make_model, make_bag) -> None:
    model, bag = make_model(), make_bag(40)
    kept = torch.tensor([1, 5, 8, 13, 21, 22, 30])
    chosen = model.select(bag, kept, draws())
    assert sorted(bag.reads) == kept.tolist()
    assert set(chosen.selection.salient_M.tolist()) | set(chosen.selection.subsalient_S.tolist()) == set(kept.tolist())


def test_random_selection_reads_the_chosen_only(make_model, make_bag) -> None:
    model, bag = make_model(selector="random"), make_bag(40)
    model.select(bag, torch.arange(40), draws())
    assert len(bag.reads) == 3 + 4


def test_exploration_selects_at_random(make_model, make_bag) -> None:
    model, bag = make_model(), make_bag(40)
    ranked = [model.select(bag, torch.arange(40), draws(i)).selection.salient_M.tolist() for i in range(2)]
    explored = [
        model.select(bag, torch.arange(40), draws(i), explore=True).selection.salient_M.tolist() for i in (0, 1)
    ]
    assert ranked[0] == ranked[1]
    assert explored[0] != explored[1]


def test_prediction_does_not_depend_on_the_order_of_patches_or_the_chunk(make_model, make_bag) -> None:
    bag, order = make_bag(30), torch.randperm(30, generator=draws(1))
    turned = make_bag(30)
    turned.pixels = bag.pixels[order]
    first = make_model().predict(bag, draws())
    other = make_model(chunk_size=7).predict(turned, draws())
    assert torch.allclose(first.logits_C, other.logits_C, atol=1e-5)
    assert torch.allclose(first.weights_N[order], other.weights_N, atol=1e-6)
    assert first.selection.salient_M.tolist() == order[other.selection.salient_M].tolist()


def test_training_and_prediction_agree_on_a_whole_bag(make_model, make_bag) -> None:
    """Without drop and with the same selector both stages compute the same number."""
    model, bag = make_model(selector="global").eval(), make_bag(30)
    chosen = model.select(bag, torch.arange(30), draws())
    assert torch.allclose(model([chosen])[0], model.predict(bag, draws()).logits_C, atol=1e-5)


@pytest.mark.parametrize("crash", [False, True])
def test_selection_gives_every_module_its_own_flag_back(make_model, make_bag, crash) -> None:
    model, bag = make_model(), make_bag(20)
    model.train()
    model.aggregator.mlp.eval()
    flags = [m.training for m in model.modules()]
    if crash:
        bag.pixels = bag.pixels[:, :2]  # two channels: the encoder fails
        with pytest.raises(RuntimeError):
            model.select(bag, torch.arange(20), draws())
    else:
        model.select(bag, torch.arange(20), draws())
    assert [m.training for m in model.modules()] == flags


def test_evaluation_mode_is_in_force_inside(make_model) -> None:
    model = make_model().train()
    with evaluation_mode(model):
        assert not any(m.training for m in model.modules())


def test_selection_changes_no_setting_and_no_weight(make_model, make_bag) -> None:
    model = make_model()
    before, settings = copy.deepcopy(model.state_dict()), repr(model.config)
    model.select(make_bag(20), torch.arange(20), draws())
    assert repr(model.config) == settings
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_peak_memory_does_not_grow_with_the_bag(make_model, make_bag) -> None:
    """Streaming holds M + L patches and S embeddings: the largest tensors alive are those of a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and func is not torch.ops.aten.arange.default:
                self.size = max(self.size, out.numel())
            return out

    sizes = {}
    for num_patches in (40, 400):
        model, bag = make_model(), make_bag(num_patches)
        with Largest() as largest:
            model.select(bag, torch.arange(num_patches), draws())
        sizes[num_patches] = largest.size
    assert sizes[40] == sizes[400]


class Cramped(torch.nn.Module):
    """An encoder on a device with memory for so many patches."""

    def __init__(self, encoder: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.encoder, self.most, self.dim, self.batches = encoder, most, encoder.dim, list[int]()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.encoder(pixels)


@pytest.mark.filterwarnings("ignore:.*no memory to encode")
@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 20])
@pytest.mark.parametrize("selector", EVERY_SELECTOR)
def test_too_little_memory_for_a_chunk_changes_no_result(make_model, make_bag, selector, most) -> None:
    bag, kept = make_bag(30), torch.arange(1, 30, 2)

    def results(model: SlideModel) -> tuple:
        chosen = model.select(bag, kept, draws())
        output = model.predict(bag, draws())
        return chosen.selection, chosen.subsalient_SD, output.selection, output.logits_C, output.attention_RN

    free = make_model(selector=selector, predict_selector=selector, chunk_size=8)
    cramped = make_model(selector=selector, predict_selector=selector, chunk_size=8)
    cramped.encoder = Cramped(cramped.encoder, most)
    for wanted, found in zip(results(free), results(cramped), strict=True):
        if isinstance(wanted, torch.Tensor):
            if len(wanted):  # batches of other sizes round otherwise
                assert (wanted - found).abs().max() <= 5e-6 * wanted.abs().max()
        else:
            assert torch.equal(wanted.salient_M, found.salient_M)
            assert torch.equal(wanted.subsalient_S, found.subsalient_S)


def test_a_chunk_is_halved_until_it_fits_and_stays_so(make_model, make_bag) -> None:
    model = make_model(chunk_size=8)
    model.encoder = Cramped(model.encoder, 3)
    with pytest.warns(
        UserWarning, match=r"cpu: no memory to encode [48] patches at once .*selection.chunk_size = [42]"
    ):
        model.select(make_bag(19), torch.arange(19), draws())
    assert model.encoder.batches == [3, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]


def test_no_memory_for_a_single_patch_is_an_error(make_model, make_bag) -> None:
    model = make_model()
    model.encoder = Cramped(model.encoder, 0)
    with pytest.warns(UserWarning, match="no memory"), pytest.raises(torch.cuda.OutOfMemoryError):
        model.select(make_bag(9), torch.arange(9), draws())


def test_frozen_batch_norm_keeps_its_statistics(make_bag) -> None:
    from wsi_dbps.models.config import AggregatorConfig, SelectionConfig

    encoder = EncoderConfig(name="resnet18", pretrained=False)
    model = SlideModel(2, encoder, AggregatorConfig(), SelectionConfig(num_salient=2, num_subsalient=2)).train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert len(batch_norms(model)) == 20
    bag = make_bag(6, side=32)
    model([model.select(bag, torch.arange(6), draws())]).sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_buffers())


def test_letting_batch_norm_train_says_what_it_does() -> None:
    from wsi_dbps.models.encoders import build_encoder

    with pytest.warns(UserWarning, match="running statistics will follow the salient patches only"):
        build_encoder(EncoderConfig(name="resnet18", pretrained=False, batch_norm="train"))
