"""docs/library.md is true: its code trains, in someone else's loop."""

import re
from pathlib import Path

import torch

PAGE = (Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8")
TRAIN, SELECT = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def run(code: str, **given: object) -> dict:
    exec(compile(code, "docs/library.md", "exec"), given)
    return given


def test_the_model_learns_in_a_loop_of_about_ten_lines() -> None:
    """A slide that is visited 25 times is known by then."""
    torch.manual_seed(0)
    slide = (torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8), 1)
    found = run(TRAIN, slides=[slide] * 25)
    assert found["loss"].item() < 0.1
    assert found["output"].logits_C.argmax().item() == 1
    assert found["output"].attention_RN.shape == (8, 50)
    assert len(found["chosen"].selection.subsalient_S) == 32
    body = TRAIN.partition("for pixels, label")[2]
    assert len(body.splitlines()) <= 10


def test_selection_works_with_any_encoder_and_score() -> None:
    encoder, query = torch.nn.Linear(3 * 8 * 8, 16), torch.randn(16)
    pixels = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8)

    def encode(patches: torch.Tensor) -> torch.Tensor:
        return encoder(patches.flatten(1) / 255)

    found = run(SELECT, pixels=pixels, encode=encode, score=lambda embeddings: (embeddings @ query)[None])
    order = (encode(pixels) @ query).argsort(descending=True, stable=True)
    assert found["buffers"].selection.salient_M.tolist() == order[:8].tolist()
    assert found["salient"].requires_grad
    assert torch.allclose(found["subsalient"], encode(pixels[order[8:40]]), atol=1e-5)
