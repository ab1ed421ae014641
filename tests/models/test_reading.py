"""What each patch does to the logits, and the file that embeddings are spilled to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_dbps.models.aggregators.build import AGGREGATORS
from wsi_dbps.models.settings import AggregatorConfig
from wsi_dbps.models.spill import IN_MEMORY, EmbeddingSpill

DIM = 16
aggregators = pytest.mark.parametrize("name", sorted(AGGREGATORS))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def aggregator(name, heads=4, num_outputs=3):
    torch.manual_seed(0)
    made = AGGREGATORS[name](DIM, num_outputs, AggregatorConfig(name=name, num_heads=heads)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)  # so that attention is not nearly even
    return made


@aggregators
@pytest.mark.parametrize(("num_salient", "num_recycled"), [(1, 0), (3, 0), (4, 9), (1, 1)])
@torch.no_grad()
def test_what_the_buffers_contribute_adds_up_to_the_logits(name, num_salient, num_recycled):
    model = aggregator(name)
    salient, recycled = torch.randn(num_salient, DIM), torch.randn(num_recycled, DIM)
    reading = model.reading(salient, recycled)
    role = torch.tensor([1] * num_salient + [2] * num_recycled)
    total_C = reading.contribution(torch.cat([salient, recycled]), role).sum(dim=0)
    assert torch.allclose(total_C, reading.logits_C - reading.empty_logits_C, atol=1e-5)
    present = [torch.ones(1, n, dtype=torch.bool) for n in (num_salient, num_recycled)]
    logits_C = model(salient[None], present[0], recycled[None], present[1])[0]
    assert torch.allclose(reading.logits_C, logits_C, atol=1e-5)
    assert torch.allclose(model.head(reading.embedding_D), logits_C, atol=1e-5)


@aggregators
@torch.no_grad()
def test_contributions_follow_the_patches_whatever_their_order_or_company(name):
    reading = aggregator(name).reading(torch.randn(4, DIM), torch.randn(6, DIM))
    others, order = torch.randn(9, DIM), torch.randperm(9)
    role = torch.zeros(9, dtype=torch.int8)
    whole = reading.contribution(others, role)
    assert torch.allclose(reading.contribution(others[order], role), whole[order], atol=1e-6)
    assert torch.allclose(reading.contribution(others[:1], role[:1]), whole[:1], atol=1e-6)


@pytest.mark.parametrize("name", ["dual", "concat", "abmil"])
@torch.no_grad()
def test_a_twin_outside_the_buffers_has_the_share_it_would_get_if_it_were_added(name):
    """With one head and weight w, the twin of a recycled patch would get w / (1 + w)."""
    model = aggregator(name, heads=1)
    salient, recycled = torch.randn(3, DIM), torch.randn(1, DIM)
    reading = model.reading(salient, recycled)
    inside, outside = (reading.contribution(recycled, torch.tensor([role])) for role in (2, 0))
    if name == "dual":  # alone in its pool: w = 1
        w = torch.tensor(1.0)
    else:
        logits = model.score_logits(torch.cat([salient, recycled]))[0]
        w = logits.softmax(dim=0)[-1]
    assert torch.allclose(outside, inside / (1 + w), atol=1e-5)


@torch.no_grad()
def test_the_head_of_abmil_weighs_each_patch():
    model = aggregator("abmil")
    salient = torch.randn(5, DIM)
    weights = model.score_logits(salient)[0].softmax(dim=0)
    found = model.reading(salient, salient[:0]).contribution(salient, torch.ones(5))
    assert torch.allclose(found, weights[:, None] * (salient @ model.head.weight.T), atol=1e-6)


@pytest.mark.parametrize("selector", ["global", "streaming", "random", "all"])
def test_explaining_changes_no_prediction_and_accounts_for_all_of_it(make_model, make_bag, selector):
    model, bag = make_model(predict_selector=selector), make_bag(30)
    plain, explained = model.predict(bag, draws()), model.predict(bag, draws(), explain=True)
    assert torch.equal(plain.logits_C, explained.logits_C)
    chosen = torch.cat([explained.selection.salient_M, explained.selection.subsalient_S])
    total_C = explained.evidence_NC[chosen].sum(dim=0)
    assert torch.allclose(total_C, explained.logits_C - explained.empty_logits_C, atol=1e-5)
    assert torch.isfinite(explained.evidence_NC).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_what_is_spilled_comes_back(lengths, most, data):
    rows = torch.randn(sum(lengths), 3)
    with EmbeddingSpill(3) as spill:
        for part in rows.split(lengths):
            spill.append(part)
        parts = list(spill.parts(most))
        assert torch.equal(torch.cat([part for _, part in parts] or [rows]), rows)
        assert [start for start, _ in parts] == list(range(0, len(rows), most))
        if len(rows):
            ids = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)), dtype=torch.long)
            assert torch.equal(spill.rows(ids), rows[ids])


def test_what_does_not_fit_in_memory_is_spilled_to_disk():
    rows = torch.arange(IN_MEMORY // 4 // 1024 + 100)[:, None].expand(-1, 1024).float()
    with EmbeddingSpill(1024) as spill:
        for part in rows.split(1000):
            spill.append(part)
        assert spill._file._rolled
        assert spill.rows(torch.tensor([len(rows) - 1, 0]))[:, 5].tolist() == [len(rows) - 1, 0]
