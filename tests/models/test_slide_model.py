"""The slide model: one result for every N, ragged batches, where gradients go, and what it leaves alone."""

import copy

import pytest
import torch

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.dbps.selectors import SELECTORS
from wsi_dbps.models.aggregators.build import AGGREGATORS
from wsi_dbps.models.encoders.norms import batch_norms
from wsi_dbps.models.settings import PRESETS, EncoderConfig
from wsi_dbps.models.slide_model import SlideModel, evaluation_mode

# a setting of selection for each member of the family, beside M = 3 and S = 4
FAMILY = {
    preset: {key.removeprefix("selection."): value for key, value in fixed.items() if key.startswith("selection.")}
    for preset, fixed in PRESETS.items()
}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# every selector with one aggregator, and every aggregator with one selector
PAIRS = [
    *((selector, "dual") for selector in SELECTORS),
    *(("streaming", name) for name in AGGREGATORS if name != "dual"),
]


@pytest.mark.parametrize("num_subsalient", [0, 4, "all"])
@pytest.mark.parametrize("subsalient_grad", ["none", "exact"])
@pytest.mark.parametrize(("selector", "aggregator"), PAIRS)
def test_every_size_of_bag_gives_one_kind_of_result(
    make_model, make_bag, selector, aggregator, subsalient_grad, num_subsalient
) -> None:
    """N = 1, N <= M, M < N < M + S and beyond, in training and in prediction."""
    model = make_model(
        aggregator,
        selector=selector,
        predict_selector="global" if selector == "sampled" else selector,
        subsalient_grad=subsalient_grad,
        num_subsalient=num_subsalient,
    )
    for num_patches in (1, 2, 3, 4, 7, 8, 23):
        bag = make_bag(num_patches)
        m = num_patches if selector == "all" else min(3, num_patches)
        s = num_patches - m if num_subsalient == "all" else min(num_subsalient, num_patches - m)
        chosen = model.select(bag, torch.arange(num_patches), draws())
        assert len(chosen.selection.salient_M) == m
        assert len(chosen.selection.subsalient_S) == s
        assert torch.equal(chosen.salient_pixels_MCPP, bag.pixels[chosen.selection.salient_M])
        if subsalient_grad == "none":
            assert chosen.subsalient.embeddings_SD.shape == (s, 32)
        else:
            assert torch.equal(chosen.subsalient.pixels_SCPP, bag.pixels[chosen.selection.subsalient_S])
        rows = 0 if selector in ("random", "all") else 1 if aggregator == "abmil" else 4
        assert chosen.logits_RK.shape == (rows, m + s)
        logits = model([chosen])
        assert logits.shape == (1, 2)
        assert torch.isfinite(logits).all()

        output = model.predict(bag, draws())
        assert output.logits_C.shape == (2,)
        assert output.attention_RN.shape == (1 if aggregator == "abmil" else 4, num_patches)
        assert output.weights_N.sum().item() == pytest.approx(1, abs=1e-5)
        assert len(output.selection.salient_M) == m
        assert len(output.selection.subsalient_S) == s


@pytest.mark.parametrize("num_patches", [2, 5, 40])
@pytest.mark.parametrize("subsalient_grad", ["none", "exact"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_selection_costs_what_its_workload_says(make_model, make_bag, selector, subsalient_grad, num_patches) -> None:
    model, bag = make_model(selector=selector, subsalient_grad=subsalient_grad), make_bag(num_patches)
    model.encoder = Cramped(model.encoder, 1000)
    chosen = model.select(bag, torch.arange(num_patches), draws())
    work = model.selector.workload(num_patches, keep_pixels=subsalient_grad == "exact")
    assert len(bag.reads) == work.num_read
    assert sum(model.encoder.batches) == work.num_encoded
    assert len(chosen.selection.salient_M) == work.num_salient
    assert len(chosen.selection.subsalient_S) == work.num_subsalient


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("selector", SELECTORS)
def test_what_is_announced_is_what_is_read_first(make_model, make_bag, selector, explore) -> None:
    model, bag, generator = make_model(selector=selector), make_bag(40), draws(3)
    kept = torch.arange(1, 40, 3)
    announced = torch.cat(model.will_read(kept, generator, explore=explore)).tolist()
    model.select(bag, kept, generator, explore=explore)
    assert bag.reads[: len(announced)] == announced


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("position", ["none", "sinusoidal"])
@pytest.mark.parametrize("subsalient_grad", ["none", "exact"])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_a_ragged_batch_of_any_preset_gives_each_slide_what_it_gets_alone(
    make_model, make_bag, aggregator, preset, subsalient_grad, position
) -> None:
    model = make_model(aggregator, position=position, subsalient_grad=subsalient_grad, **FAMILY[preset]).eval()
    bags = [make_bag(n, seed=n) for n in (1, 2, 5, 9, 30)]
    chosen = [model.select(bag, torch.arange(bag.num_patches), draws()) for bag in bags]
    together = model(chosen)
    alone = torch.cat([model([one]) for one in chosen])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
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


def test_gated_attention_is_the_published_pooling_and_abmilx_refines_it(make_model) -> None:
    """Both written out for one bag: w tanh(V h) sigmoid(U h), and with alpha softmax(Q K^T / sqrt d) of that added."""
    P, Q = torch.randn(3, 32), torch.randn(4, 32)
    everyone = [torch.ones(1, n, dtype=torch.bool) for n in (3, 4)]
    h = torch.cat([P, Q])
    v = make_model("abmil").eval().aggregator
    a = torch.softmax((torch.tanh(v.to_content(h)) * torch.sigmoid(v.to_gate(h)) @ v.to_attention.weight.T)[:, 0], 0)
    assert torch.allclose(v(P[None], everyone[0], Q[None], everyone[1])[0], v.head(a @ h), atol=1e-5)

    v = make_model("abmilx").eval().aggregator
    with torch.no_grad():
        v.alpha.fill_(0.7)
    logits = torch.tanh(v.to_content(h)) * torch.sigmoid(v.to_gate(h)) @ v.to_attention.weight.T
    assert torch.allclose(v.score_logits(h), logits.T, atol=1e-5)  # selection ranks by what is not refined
    pooled = []
    for i in range(4):
        part = slice(8 * i, 8 * i + 8)
        like = torch.softmax(v.to_query(h)[:, part] @ v.to_key(h)[:, part].T / 8**0.5, dim=1)
        refined = logits[:, i] + 0.7 * like @ logits[:, i]
        pooled.append(torch.softmax(refined, 0) @ h[:, part])
    expected = v.head(torch.cat(pooled))
    assert torch.allclose(v(P[None], everyone[0], Q[None], everyone[1])[0], expected, atol=1e-4)


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
    assert not chosen.subsalient.embeddings_SD.requires_grad
    pixels: list[torch.Tensor] = []

    def follow(salient: torch.Tensor) -> torch.Tensor:
        pixels.append((salient / 255).requires_grad_())
        return pixels[0]

    model([chosen], follow)[0, 1].backward()
    assert pixels[0].grad is not None
    assert (pixels[0].grad.flatten(1).abs().sum(1) > 0).all()
    assert len(pixels[0]) == 3
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# ---- the exact gradient through sub-salient patches


def shaken(pixels: torch.Tensor) -> torch.Tensor:
    """An augmentation that draws for each patch anew, and twice, so that no other cut into parts draws the same."""
    shift = torch.rand(len(pixels), 1, 1, 1)
    return pixels / 255 * (0.5 + torch.rand(len(pixels), 1, 1, 1)) + 0.1 * shift


def gradients(model: SlideModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("position", ["none", "sinusoidal"])
@pytest.mark.parametrize("preset", ["dbps", "dbps+", "random"])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_the_exact_gradient_is_that_of_plain_autograd_over_all_selected(
    make_model, make_bag, aggregator, preset, position
) -> None:
    """The same loss and gradients as encoding M + S with gradient at once, random augmentation and dropout included."""
    selection = {**FAMILY[preset], "subsalient_grad": "exact"}
    if preset == "random":
        selection["num_subsalient"] = 4
    model = make_model(aggregator, position=position, **selection).train()
    model.encoder.project.append(torch.nn.Dropout(0.2))
    bags = [make_bag(n, seed=n) for n in (2, 9, 30)]
    chosen = [model.select(bag, torch.arange(bag.num_patches), draws()) for bag in bags]
    targets = torch.tensor([0, 1, 1])

    torch.manual_seed(1)
    found = torch.nn.functional.cross_entropy(model(chosen, shaken), targets)
    gradient = gradients(model, found)

    torch.manual_seed(1)
    parts = [p for c in chosen for p in c.subsalient.pixels_SCPP.split(len(c.salient_pixels_MCPP)) if len(p)]
    embedded = torch.cat([model.encoder(shaken(part)) for part in parts])  # nothing is let go here
    salient = model.encoder(torch.cat([shaken(c.salient_pixels_MCPP) for c in chosen]))
    split = [
        model._position.added(part, bag.positions[ids])
        for bag, ids, part in zip(
            [*bags, *bags],
            [c.selection.salient_M for c in chosen] + [c.selection.subsalient_S for c in chosen],
            [
                *salient.split([len(c.selection.salient_M) for c in chosen]),
                *embedded.split([len(c.selection.subsalient_S) for c in chosen]),
            ],
            strict=True,
        )
    ]
    plain = torch.nn.functional.cross_entropy(model._aggregate(split[:3], split[3:]), targets)
    expected = gradients(model, plain)
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    assert gradient.keys() == expected.keys()
    largest = max(g.abs().max() for g in expected.values())
    for name in expected:
        assert (gradient[name] - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max() + 1e-7 * largest, name


@pytest.mark.parametrize("grad", ["none", "exact"])
def test_with_seeds_a_bag_learns_the_same_in_any_company(make_model, make_bag, grad) -> None:
    """Augmentation and the aggregator's dropout follow each bag's seed: what several processes rely on."""
    model = make_model("dual", subsalient_grad=grad).train()
    chosen = [model.select(make_bag(n, seed=n), torch.arange(n), draws()) for n in (2, 9, 30)]
    together = model(chosen, shaken, [5, 6, 7])
    for i in range(3):
        torch.testing.assert_close(model([chosen[i]], shaken, [5 + i]), together[i : i + 1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model([chosen[2]], shaken, [8]), together[2:])


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_the_exact_gradient_reaches_salient_and_subsalient_pixels(make_model, make_bag, aggregator) -> None:
    model, bag = make_model(aggregator, subsalient_grad="exact"), make_bag(20)
    with torch.no_grad():  # attention that leaves no patch without any
        scale = "query" if aggregator in ("dual", "concat") else "to_attention.weight"
        model.aggregator.get_parameter(scale).div_(30)
    chosen, pixels = model.select(bag, torch.arange(20), draws()), list[torch.Tensor]()

    def follow(patches: torch.Tensor) -> torch.Tensor:
        pixels.append((patches / 255).requires_grad_())
        return pixels[-1]

    loss = model([chosen], follow)[0, 1]
    first = list(pixels)  # what comes later is computed again
    loss.backward()
    assert sorted(map(len, first)) == [1, 3, 3]
    for part in first:
        assert part.grad is not None
        assert (part.grad.flatten(1).abs().sum(1) > 0).all()


def test_exact_with_concat_is_selection_of_m_plus_s_salient_patches(make_model, make_bag) -> None:
    """One attention over both buffers does not tell them apart: exact DBPS (M, S) is IPS (M + S)."""
    bag, losses, found = make_bag(30), [], []
    for selection in ({"subsalient_grad": "exact"}, {"num_salient": 7, "num_subsalient": 0}):
        model = make_model("concat", selector="global", **selection).eval()
        losses.append(model([model.select(bag, torch.arange(30), draws())]).logsumexp(1).sum())
        found.append(gradients(model, losses[-1]))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-5 * float(found[1][name].abs().max())), name


def test_exact_is_refused_where_patches_of_a_batch_are_mixed() -> None:
    from wsi_dbps.models.settings import AggregatorConfig, SelectionConfig

    def model(batch_norm: str) -> SlideModel:
        encoder = EncoderConfig(name="resnet18", pretrained=False, batch_norm=batch_norm)  # type: ignore[arg-type]
        return SlideModel(2, encoder, AggregatorConfig(), SelectionConfig(subsalient_grad="exact"))

    message = r"subsalient_grad = 'exact' .* resnet18 .* 'train' mixes the patches of a batch; set batch_norm to"
    with pytest.warns(UserWarning, match="running statistics"), pytest.raises(ConfigError, match=message):
        model("train")
    model("frozen")
    model("group")


# ---- positions


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("selector", ["streaming", "global"])
def test_positions_count_the_same_in_scoring_pooling_and_prediction(make_model, make_bag, aggregator, selector) -> None:
    """Training equals prediction with positions; and the same patches elsewhere are scored and pooled otherwise."""
    results = []
    for grad in ("none", "exact"):
        model = make_model(
            aggregator, position="sinusoidal", selector=selector, predict_selector=selector, subsalient_grad=grad
        ).eval()
        bag = make_bag(30)
        output = model.predict(bag, draws())
        chosen = model.select(bag, torch.arange(30), draws())
        assert chosen.selection.salient_M.tolist() == output.selection.salient_M.tolist()
        assert torch.allclose(model([chosen])[0], output.logits_C, atol=1e-4)
        results.append(output.logits_C)
    assert torch.equal(*results)
    bag.positions = bag.positions.flip(0)
    elsewhere = model.predict(bag, draws())
    assert not torch.allclose(elsewhere.attention_RN, output.attention_RN, atol=1e-3)
    assert not torch.allclose(elsewhere.logits_C, output.logits_C, atol=1e-4)


def test_a_position_is_a_matter_of_the_patch_not_of_what_else_was_kept(make_model, make_bag) -> None:
    model, bag, kept = make_model(position="sinusoidal"), make_bag(30), torch.tensor([3, 8, 11, 29])
    chosen = model.select(bag, kept, draws())
    ids = torch.cat([chosen.selection.salient_M, chosen.selection.subsalient_S])
    assert sorted(ids.tolist()) == kept.tolist()
    assert torch.allclose(chosen.logits_RK, model.predict(bag, draws()).attention_RN[:, ids], atol=1e-4)


def test_neighbours_differ_and_far_patches_too() -> None:
    from wsi_dbps.models.position import sinusoids

    places = torch.cartesian_prod(torch.arange(40.0), torch.arange(40.0))
    apart = torch.cdist(sinusoids(places, 64), sinusoids(places, 64))
    assert apart[~torch.eye(1600, dtype=torch.bool)].min() > 0.3


def test_positions_that_cannot_be_had_are_refused(make_model, make_bag) -> None:
    from wsi_dbps.models.settings import AggregatorConfig, SelectionConfig

    bag = make_bag(9)
    del bag.positions
    with pytest.raises(ConfigError, match="position = 'sinusoidal' needs bags that know where their patches lie"):
        make_model(position="sinusoidal").select(bag, torch.arange(9), draws())
    with pytest.raises(ConfigError, match="position: the embedding size must divide by 4, found 6"):
        SlideModel(
            2,
            EncoderConfig(name="small_gn", dim=6),
            AggregatorConfig(num_heads=2, position="sinusoidal"),
            SelectionConfig(),
        )


# ---- exploration, sampling and what is read


@pytest.mark.parametrize("selector", ["streaming", "global", "sampled"])
def test_noise_moves_selection_the_same_whatever_the_chunk(make_model, make_bag, selector) -> None:
    bag, kept = make_bag(40), torch.arange(40)
    still, noisy, halved = (
        make_model(num_heads=1, selector=selector, chunk_size=chunk).select(bag, kept, draws(), noise=noise).selection
        for chunk, noise in ((8, 0.0), (8, 1000.0), (4, 1000.0))
    )
    assert noisy.salient_M.tolist() == halved.salient_M.tolist()
    assert noisy.subsalient_S.tolist() == halved.subsalient_S.tolist()
    assert set(still.salient_M.tolist()) != set(noisy.salient_M.tolist())


def test_prediction_encodes_every_patch_once(make_model, make_bag) -> None:
    for selector in ("streaming", "global", "random", "all"):
        bag = make_bag(40)
        make_model(predict_selector=selector).predict(bag, draws())
        assert sorted(bag.reads) == list(range(40))


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
@pytest.mark.parametrize("selector", SELECTORS)
def test_too_little_memory_for_a_chunk_changes_no_result(make_model, make_bag, selector, most) -> None:
    bag, kept = make_bag(30), torch.arange(1, 30, 2)

    def results(model: SlideModel) -> tuple:
        chosen = model.select(bag, kept, draws())
        output = model.predict(bag, draws())
        return chosen.selection, chosen.subsalient.embeddings_SD, output.selection, output.logits_C, output.attention_RN

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
    from wsi_dbps.models.settings import AggregatorConfig, SelectionConfig

    encoder = EncoderConfig(name="resnet18", pretrained=False)
    model = SlideModel(2, encoder, AggregatorConfig(), SelectionConfig(num_salient=2, num_subsalient=2)).train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    assert len(batch_norms(model)) == 20
    bag = make_bag(6, side=32)
    model([model.select(bag, torch.arange(6), draws())]).sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_buffers())


def test_letting_batch_norm_train_says_what_it_does() -> None:
    from wsi_dbps.models.encoders.build import build_encoder

    with pytest.warns(UserWarning, match="running statistics will follow the salient patches only"):
        build_encoder(EncoderConfig(name="resnet18", pretrained=False, batch_norm="train"))
