from dataclasses import dataclass, replace

import numpy as np
import pytest

from wsi_dbps.core.geometry import Size, TileGrid
from wsi_dbps.formats.attention import SlideAttention
from wsi_dbps.formats.predictions import Prediction

SLIDE, PICTURE = Size(4001, 3003), Size(401, 301)


@dataclass(frozen=True)
class Scene:
    attention: SlideAttention
    thumbnail_HWC: np.ndarray


@pytest.fixture
def make_scene():
    """A white slide whose tissue is a black block of n x n tiles with float sides, in a thumbnail of odd sides."""

    def make(n=3, slide=SLIDE, picture=PICTURE, tile_lv0=300.4, origins=None, mpp_um=0.25, **changes):
        coords = np.array([[600 + int(i * tile_lv0), 500 + int(j * tile_lv0)] for j in range(n) for i in range(n)])
        coords = coords.reshape(-1, 2).astype(np.int64) if origins is None else origins
        weights = np.arange(1, n * n + 1, dtype=np.float32)
        role = np.zeros(n * n, np.uint8)
        role[:2], role[2:3] = 1, 2
        attention = SlideAttention(
            slide_id="slide-1",
            prediction=Prediction("slide-1", "case-1", "test", "tumor", n * n, (0.25, 0.75)),
            classes=("normal", "tumor"),
            grid=TileGrid(coords, tile_lv0, slide, mpp_um),
            logits_NR=np.log(weights)[:, None],
            weights_N=weights / max(weights.sum(), 1),
            role_N=role,
            cache_fingerprint="c" * 16,
            checkpoint_fingerprint="k" * 16,
        )
        thumbnail = np.full((picture.height, picture.width, 3), 255, np.uint8)
        x, y = picture.width / slide.width, picture.height / slide.height
        (left, top), side = (600, 500), n * tile_lv0
        thumbnail[round(top * y) : round((top + side) * y), round(left * x) : round((left + side) * x)] = 0
        return Scene(replace(attention, **changes), thumbnail)

    return make
