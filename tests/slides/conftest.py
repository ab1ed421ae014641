from pathlib import Path

import numpy as np
import pytest
from fiducial import fiducial_image
from lossless import write_lossless

from wsi_dbps.core.geometry import Size
from wsi_dbps.slides.open import open_slide
from wsi_dbps.slides.readers.memory import MemoryReader
from wsi_dbps.synth.pyramid import box_reduced

ODD = Size(2221, 1483)
FACTORS = (1, 4, 16)


@pytest.fixture(scope="session")
def fiducial() -> np.ndarray:
    """A picture of odd sizes whose pixels encode their own coordinates."""
    return fiducial_image(ODD)


@pytest.fixture(scope="session")
def fiducial_file(fiducial: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The picture as a real, lossless pyramid; its lower levels have lost their last rows and columns."""
    path = tmp_path_factory.mktemp("fiducial") / "odd.tif"
    write_lossless(path, fiducial, mpp_um=0.25, downsamples=FACTORS)
    return path


@pytest.fixture(scope="session")
def fiducial_levels(fiducial: np.ndarray) -> list[np.ndarray]:
    return [box_reduced(fiducial, factor) for factor in FACTORS]


@pytest.fixture(scope="session", params=["memory", "openslide", "tiffslide"])
def fiducial_slide(request, fiducial_file: Path, fiducial_levels: list[np.ndarray]):
    """The picture through every reader of pyramids."""
    if request.param == "memory":
        yield MemoryReader(fiducial_levels, mpp_um=0.25)
    else:
        with open_slide(fiducial_file, request.param) as reader:
            yield reader
