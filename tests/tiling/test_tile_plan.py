import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_dbps.core.errors import MissingMppError, SlideError
from wsi_dbps.core.geometry import Size
from wsi_dbps.formats.spec import TilingSpec
from wsi_dbps.tiling.plan import plan_tiles, resolve_mpp, tile_origins
from wsi_dbps.tiling.tissue import TissueMask, everywhere

side = st.integers(1, 3000)
length = st.floats(20, 3000) | st.integers(20, 3000).map(float)


@settings(deadline=None)
@given(side, side, length, length)
def test_every_tile_lies_on_the_slide(width: int, height: int, tile: float, stride: float) -> None:
    origins = tile_origins(Size(width, height), tile, stride_lv0=stride)
    assert (origins >= 0).all()
    assert (origins + tile <= np.array([width, height]) + 1e-6 * stride).all()


@settings(deadline=None)
@given(side, side, length, length)
def test_the_grid_holds_every_tile_that_fits(width: int, height: int, tile: float, stride: float) -> None:
    origins = tile_origins(Size(width, height), tile, stride_lv0=stride)
    if len(origins):
        assert (origins.max(axis=0) + stride + tile > np.array([width, height]) - 1e-3).all()
    else:
        assert tile > min(width, height)


@settings(deadline=None)
@given(st.integers(1, 200_000), st.floats(30, 3000))
def test_a_fractional_stride_does_not_drift(width: int, stride: float) -> None:
    xs = tile_origins(Size(width, 3000), 2000, stride_lv0=stride)
    row = xs[xs[:, 1] == 0, 0]
    exact = np.arange(len(row)) * stride
    assert (np.abs(row - exact) <= 1).all()
    assert len(np.unique(row)) == len(row)


@settings(deadline=None)
@given(side, side, st.integers(20, 3000), st.integers(20, 3000))
def test_rows_come_one_after_the_other(width: int, height: int, tile: int, stride: int) -> None:
    origins = tile_origins(Size(width, height), tile, stride_lv0=stride)
    assert [tuple(o) for o in origins] == sorted((tuple(o) for o in origins), key=lambda o: (o[1], o[0]))


def test_three_tiles_by_hand() -> None:
    # 256 px at 0.5 µm/px are 128 µm, and 512.82 level-0 pixels of 0.2496 µm
    plan = plan_tiles(everywhere(Size(1600, 600)), 0.2496, TilingSpec(mpp_um=0.5, size_px=256, tissue="none"))
    assert plan.grid.tile_lv0 == pytest.approx(512.8205)
    assert plan.grid.origins_lv0.tolist() == [[0, 0], [512, 0], [1025, 0]]
    assert plan.tissue_N.tolist() == [1, 1, 1]


def test_neighbours_share_the_overlap() -> None:
    spec = TilingSpec(mpp_um=1.0, size_px=64, overlap_px=16, tissue="none")
    plan = plan_tiles(everywhere(Size(256, 128)), 0.5, spec)
    assert plan.grid.origins_lv0.tolist() == [[0, 0], [96, 0]]


def test_only_tiles_with_enough_tissue_are_kept_in_their_order() -> None:
    mask = TissueMask(np.array([[1, 0, 0, 0], [1, 1, 0, 1]], np.bool_), Size(400, 200))
    spec = TilingSpec(mpp_um=1.0, size_px=200, min_tissue=0.25)
    plan = plan_tiles(mask, 1.0, spec)
    assert plan.grid.origins_lv0.tolist() == [[0, 0], [200, 0]]
    assert plan.tissue_N.tolist() == [0.75, 0.25]
    assert len(plan_tiles(mask, 1.0, TilingSpec(mpp_um=1.0, size_px=200, min_tissue=0.26))) == 1
    assert len(plan_tiles(mask, 1.0, TilingSpec(mpp_um=1.0, size_px=500, min_tissue=0))) == 0


@settings(deadline=None)
@given(st.floats(0.05, 2), st.floats(0.05, 20), st.integers(1, 512), side, side)
def test_a_tile_is_as_wide_on_the_slide_as_its_patch(lv0: float, mpp: float, size: int, w: int, h: int) -> None:
    spec = TilingSpec(mpp_um=mpp, size_px=size, overlap_px=0, tissue="none", min_tissue=1)
    if mpp < 0.9 * lv0 or mpp * size / lv0 < 20:
        return
    plan = plan_tiles(everywhere(Size(w, h)), lv0, spec)
    assert plan.grid.tile_lv0 * lv0 == pytest.approx(mpp * size)
    assert len(plan) == len(tile_origins(Size(w, h), plan.grid.tile_lv0, stride_lv0=plan.grid.tile_lv0))


def test_detail_that_the_scanner_never_saw_is_refused() -> None:
    with pytest.raises(SlideError) as caught:
        plan_tiles(everywhere(Size(600, 600)), 1.0, TilingSpec(mpp_um=0.5))
    assert str(caught.value) == (
        "level 0 has 1 µm/px, and 0.5 is asked for: patches would hold detail that the scanner never saw; "
        "ask for 1 or coarser"
    )
    assert len(plan_tiles(everywhere(Size(600, 600)), 0.55, TilingSpec(mpp_um=0.5))) == 4


def test_an_mpp_comes_from_the_manifest_then_the_file_and_is_never_guessed() -> None:
    assert resolve_mpp("a", 0.3, 0.25) == (0.3, "manifest")
    assert resolve_mpp("a", None, 0.25) == (0.25, "file")
    with pytest.raises(MissingMppError, match=r"^no mpp in the file; add an mpp column to the manifest for a$"):
        resolve_mpp("a", None, None)
    with pytest.raises(MissingMppError) as caught:
        resolve_mpp("a", None, 352.78)
    for slip in (1e300, 1e-300, 0.001, float("nan")):
        with pytest.raises(
            MissingMppError, match=r"^the manifest says .* which no slide has \(possible: 0.01 to 1000\);"
        ):
            resolve_mpp("a", slip, 0.25)
    assert resolve_mpp("a", 29.0, 352.78) == (29.0, "manifest")
    assert str(caught.value) == (
        "the file says 352.8 µm/px, which is no scanner's (plausible: 0.05 to 20); "
        "add an mpp column to the manifest for a"
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mpp_um": 0.0}, "mpp_um must be above 0, found 0.0"),
        ({"mpp_um": float("inf")}, "mpp_um must be above 0, found inf"),
        ({"size_px": 0}, "size_px must be at least 1, found 0"),
        ({"overlap_px": 256}, r"overlap_px must lie in 0 .. size_px - 1 = 255, found 256"),
        ({"overlap_px": -1}, r"overlap_px must lie in 0 .. size_px - 1 = 255, found -1"),
        ({"min_tissue": 1.5}, r"min_tissue must lie in 0 .. 1, found 1.5"),
    ],
)
def test_a_tiling_out_of_range_is_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        TilingSpec(**kwargs)


@pytest.mark.parametrize(("tile", "stride"), [(0, 1), (1, 0), (float("nan"), 1)])
def test_a_tile_or_stride_of_nothing_is_refused(tile: float, stride: float) -> None:
    with pytest.raises(ValueError, match="tile and stride must be above 0"):
        tile_origins(Size(8, 8), tile, stride_lv0=stride)
