"""OME-TIFF as tifffile and Bio-Formats write it: the physical size out of its XML, and the pyramid out of SubIFDs."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from wsi_dbps.cohort.cohort import SlideRecord
from wsi_dbps.cohort.manifest import read_manifest
from wsi_dbps.core.errors import UnreadableSlideError
from wsi_dbps.core.geometry import Region
from wsi_dbps.formats.spec import CacheSpec, TilingSpec
from wsi_dbps.slides.jpeg_tiles import JpegLevel, jpeg_levels
from wsi_dbps.slides.open import open_slide
from wsi_dbps.tiling.slide_plan import plan_slide

PICTURE = np.random.default_rng(0).integers(0, 256, (512, 768, 3), dtype=np.uint8)


def write(path: Path, size: dict[str, object], *, compression: str | None = None) -> Path:
    options = {"tile": (64, 64), "compression": compression, "photometric": "rgb"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(PICTURE, subifds=2, metadata={"axes": "YXS", **size}, **options)
        tiff.write(PICTURE[::2, ::2], subfiletype=1, **options)
        tiff.write(PICTURE[::4, ::4], subfiletype=1, **options)
    return path


def sizes(x: float, unit: str | None = None, y: float | None = None) -> dict[str, object]:
    found: dict[str, object] = {"PhysicalSizeX": x, "PhysicalSizeY": x if y is None else y}
    return found | ({"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit} if unit else {})


def test_the_pyramid_of_sub_ifds_is_the_slides_levels(tmp_path: Path) -> None:
    with open_slide(write(tmp_path / "a.ome.tif", sizes(0.25))) as slide:
        assert (slide.info.reader, slide.info.vendor, slide.info.mpp_um) == ("tiffslide", "ome", 0.25)
        assert [str(level.size) for level in slide.info.levels] == ["768 x 512", "384 x 256", "192 x 128"]
        for level, step in enumerate((1, 2, 4)):
            found = slide.read(Region(level, 10, 20, 90, 70))
            np.testing.assert_array_equal(found, PICTURE[::step, ::step][20:90, 10:100])


def test_the_jpeg_tiles_of_every_level_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ome.tif", sizes(0.25), compression="jpeg")
    with open_slide(path) as slide:
        assert [type(level) for level in jpeg_levels(path, slide.info)] == [JpegLevel] * 3
    plan = plan_slide(SlideRecord("a", "a", path), CacheSpec(tiling=TilingSpec(mpp_um=0.5, size_px=64, tissue="none")))
    assert (plan.pixels.path, plan.pixels.level, len(plan.plan)) == ("copy", 1, 24)


@pytest.mark.parametrize(
    ("size", "mpp_um"),
    [
        (sizes(0.25), 0.25),  # µm, where no unit is given
        (sizes(0.25, "µm"), 0.25),
        (sizes(0.25, "\N{GREEK SMALL LETTER MU}m"), 0.25),
        (sizes(250, "nm"), 0.25),
        (sizes(0.00025, "mm"), 0.25),
        (sizes(2500, "Å"), 0.25),
        (sizes(1, "pixel"), None),
        (sizes(0, "µm"), None),
        ({"PhysicalSizeX": 0.25}, None),  # whether the pixels are square is not said
        ({}, None),
    ],
)
def test_the_physical_size_is_read_in_its_unit(tmp_path: Path, size: dict[str, object], mpp_um: float | None) -> None:
    with open_slide(write(tmp_path / "a.ome.tif", size)) as slide:
        assert slide.info.mpp_um == (None if mpp_um is None else pytest.approx(mpp_um))


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSlideError, match=r"pixels are not square \(0.25 x 0.5 µm\); not supported$"):
        open_slide(write(tmp_path / "a.ome.tif", sizes(0.25, y=0.5)))


def test_the_id_of_an_ome_tiff_leaves_out_both_parts_of_its_ending(tmp_path: Path) -> None:
    names = ["a.ome.tif", "b.OME.TIFF", "c.svs", "d.ome.x.tif", "https://h/e.ome.tif?v=1.2"]
    (tmp_path / "cohort.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    found = [record.slide_id for record in read_manifest(tmp_path / "cohort.csv").records]
    assert found == ["a", "b", "c", "d.ome.x", "e"]
