"""Synthetic cohorts: slides, lesion outlines and a manifest, the same on every machine for the same seed."""

from __future__ import annotations

import csv
import io
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_dbps.core.errors import ConfigError, SpecMismatchError
from wsi_dbps.core.files import write_json, write_text
from wsi_dbps.core.geometry import Size
from wsi_dbps.core.processes import new_interpreters
from wsi_dbps.synth.spec import TissueSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

LABELS = ("normal", "tumour")
TEST_SHARE, VAL_SHARE = 0.25, 0.15
MIN_SLIDES = 6
FORMAT_VERSION = 1
LESION_COLOUR = [200, 0, 0]
"""RGB of the class "Tumor", as QuPath has it."""
_COLUMNS = ("slide_id", "case_id", "path", "label", "split", "mpp", "annotations")


@dataclass(frozen=True)
class SyntheticSlide:
    """One row of the cohort to be made."""

    index: int
    slide_id: str
    case_id: str
    has_lesion: bool
    split: str


def make_cohort(
    out: Path,
    *,
    num_slides: int = 40,
    seed: int = 0,
    size_px: int = 4096,
    mpp_um: float = 0.5,
    spec: TissueSpec | None = None,
    workers: int | None = None,
    on_slide: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a cohort of synthetic slides and return the path of its manifest, `out`/cohort.csv.

    Slide i depends on the seed, i and the settings only, not on the number of slides or workers, and a slide already
    there is kept; so a stopped run goes on where it was, and a larger cohort reuses a smaller one. The settings are
    kept in `out`/synth.json.

    Args:
        out: Folder to fill: cohort.csv, slides/<slide_id>.svs, and slides/<slide_id>.geojson for positive slides.
        num_slides: Slides in all, half of them positive.
        seed: Of everything random.
        size_px: Slide side in level-0 pixels.
        mpp_um: µm per level-0 pixel.
        spec: What the tissue looks like; `TissueSpec()` where None.
        workers: Processes; the machine's cores where None, and 1 stays in this process.
        on_slide: Called after every slide with the slides done and the slides in all.

    Raises:
        ConfigError: If `num_slides` is below 6: each class needs a case in train, val and test.
        SpecMismatchError: If `out` holds a cohort made with other settings.
        OutputError: If a file cannot be written.
    """
    spec = spec or TissueSpec()
    slides = plan_cohort(num_slides, seed=seed)
    _keep_settings(
        out / "synth.json",
        {"version": FORMAT_VERSION, "seed": seed, "size_px": size_px, "mpp_um": mpp_um, "tissue": asdict(spec)},
    )
    missing = [slide for slide in slides if not (out / "slides" / f"{slide.slide_id}.svs").exists()]
    make = partial(make_slide, out / "slides", seed=seed, size_px=size_px, mpp_um=mpp_um, spec=spec)
    for done, _ in enumerate(_mapped(make, missing, min(workers or os.cpu_count() or 1, len(missing))), start=1):
        if on_slide:
            on_slide(num_slides - len(missing) + done, num_slides)
    manifest = out / "cohort.csv"
    write_text(manifest, _manifest_text(slides, mpp_um))
    return manifest


def _mapped(make: Callable[[SyntheticSlide], None], slides: list[SyntheticSlide], num_workers: int) -> Iterator[None]:
    """Make every slide, in this process or in several; yields once for each that is done."""
    if num_workers <= 1:
        yield from map(make, slides)
        return
    with ProcessPoolExecutor(num_workers, mp_context=new_interpreters()) as pool:
        tasks = [pool.submit(make, slide) for slide in slides]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def plan_cohort(num_slides: int, *, seed: int) -> tuple[SyntheticSlide, ...]:
    """Who is in the cohort: labels alternate, every fifth case of a class has two slides, splits are drawn by case.

    Splits are drawn for each class apart: about 15 % of its cases val, 25 % test, at least one each, the rest train.

    Raises:
        ConfigError: If `num_slides` is below 6.
    """
    if num_slides < MIN_SLIDES:
        raise ConfigError(
            f"a cohort of {num_slides} slides has no case of each class for train, val and test; ask for {MIN_SLIDES}"
        )
    splits: dict[str, str] = {}
    for label in range(len(LABELS)):
        cases = sorted({_case_id(index) for index in range(label, num_slides, 2)})
        num_test, num_val = (max(1, round(share * len(cases))) for share in (TEST_SHARE, VAL_SHARE))
        order = np.random.default_rng([seed, label]).permutation(len(cases))
        for rank, case in enumerate(order):
            splits[cases[case]] = "test" if rank < num_test else "val" if rank < num_test + num_val else "train"
    return tuple(
        SyntheticSlide(
            index=index,
            slide_id=f"synth_{index:03d}",
            case_id=_case_id(index),
            has_lesion=index % 2 == 1,
            split=splits[_case_id(index)],
        )
        for index in range(num_slides)
    )


def make_slide(
    folder: Path, slide: SyntheticSlide, *, seed: int, size_px: int, mpp_um: float, spec: TissueSpec
) -> None:
    """Render one slide and write it, its lesion outline first: a slide that is there is there with its outline."""
    from wsi_dbps.synth.pyramid import write_aperio
    from wsi_dbps.synth.tissue import render_slide

    rng = np.random.default_rng([seed, slide.index])
    tissue = render_slide(Size(size_px, size_px), mpp_um=mpp_um, has_lesion=slide.has_lesion, spec=spec, rng=rng)
    if slide.has_lesion:
        write_json(folder / f"{slide.slide_id}.geojson", lesion_geojson(tissue.lesion_lv0))
    write_aperio(folder / f"{slide.slide_id}.svs", tissue.image, mpp_um=mpp_um)


def lesion_geojson(lesion_M4: npt.NDArray[np.int64]) -> dict[str, Any]:
    """A FeatureCollection that QuPath opens, a rectangle per row (x0, y0, x1, y1) in level-0 pixels, all "Tumor"."""
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": "Tumor", "color": LESION_COLOUR},  # QuPath needs both
                },
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]],
                },
            }
            for x0, y0, x1, y1 in lesion_M4.tolist()
        ],
    }


def _case_id(index: int) -> str:
    """Slides 4 and 5 of every 6 of a class share a case."""
    block, place = divmod(index // 2, 6)
    return f"case_{2 * (5 * block + min(place, 4)) + index % 2:03d}"


def _manifest_text(slides: tuple[SyntheticSlide, ...], mpp_um: float) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for slide in slides:
        path = f"slides/{slide.slide_id}.svs"
        drawn = f"slides/{slide.slide_id}.geojson" if slide.has_lesion else ""
        label = LABELS[slide.has_lesion]
        writer.writerow([slide.slide_id, slide.case_id, path, label, slide.split, f"{mpp_um:g}", drawn])
    return text.getvalue()


def _keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or check that those already there are the same."""
    if not path.exists():
        write_json(path, settings)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(settings))
    for key, value in wanted.items():
        if found.get(key) != value:
            raise SpecMismatchError(
                f"{path}: the cohort there was made with {key} = {found.get(key)}, now {value} is asked for; "
                "choose another folder"
            )
