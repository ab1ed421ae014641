"""Small models and bags in memory."""

from collections.abc import Iterable, Iterator

import pytest
import torch

from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig
from wsi_dbps.models.slide_model import SlideModel


class TensorBag:
    """A bag in memory that counts what is read from it."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels, self.reads = pixels, list[int]()
        self.positions = torch.stack([torch.arange(len(pixels)) % 5, torch.arange(len(pixels)) // 5], dim=1).float()

    @property
    def num_patches(self) -> int:
        return len(self.pixels)

    def read(self, id_lists: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for ids in id_lists:
            self.reads += ids.tolist()
            yield self.pixels[ids]


def random_bag(num_patches: int, seed: int = 0, side: int = 16) -> TensorBag:
    generator = torch.Generator().manual_seed(seed)
    return TensorBag(torch.randint(0, 256, (num_patches, 3, side, side), generator=generator, dtype=torch.uint8))


@pytest.fixture
def make_bag():
    return random_bag


@pytest.fixture
def make_model():
    def make(
        aggregator: str = "dual", num_heads: int = 4, position: str = "none", dropout: float = 0.1, **selection: object
    ) -> SlideModel:
        torch.manual_seed(0)
        settings = {"num_salient": 3, "num_subsalient": 4, "chunk_size": 5, **selection}
        encoder = EncoderConfig(name="small_gn", dim=32)
        pooling = AggregatorConfig(name=aggregator, num_heads=num_heads, position=position, dropout=dropout)  # type: ignore[arg-type]
        model = SlideModel(2, encoder, pooling, SelectionConfig(**settings))  # type: ignore[arg-type]
        with torch.no_grad():
            # attention far from uniform, as after training
            scale = "query" if aggregator in ("dual", "concat") else "to_attention.weight"
            model.aggregator.get_parameter(scale).mul_(30)
        return model

    return make
