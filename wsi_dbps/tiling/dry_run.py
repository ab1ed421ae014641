"""What tiling would do, slide by slide, without writing anything: `wsi-dbps tile --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wsi_dbps.cohort.cohort import SlideRecord
    from wsi_dbps.formats.spec import CacheSpec
    from wsi_dbps.tiling.outcomes import Failed
    from wsi_dbps.tiling.plan import TilePlan

_ROW: Final = "{:<28} {:<14} {:>15} {:>8} {:<8} {:>5} {:>7} {:>9}"
HEADER: Final = _ROW.format("slide", "vendor", "size", "mpp", "from", "level", "tiles", "size MB")


@dataclass(frozen=True)
class PlannedSlide:
    """What tiling would do with one slide."""

    slide_id: str
    vendor: str
    mpp_source: str
    """Where the slide's resolution comes from: `file` or `manifest`."""
    level: int
    """Stored level that would be read."""
    tiles: TilePlan
    num_bytes: int
    """Bytes of all patches together, estimated from a few of them."""
    notes: tuple[str, ...]
    """What to look at before the slide is tiled."""

    @property
    def text(self) -> str:
        """The slide's row of the table, and its notes below."""
        mpp, megabytes = f"{self.tiles.grid.mpp_lv0_um:.4g}", f"{self.num_bytes / 1e6:.1f}"
        size = str(self.tiles.grid.slide_lv0)
        row = (self.slide_id, self.vendor, size, mpp, self.mpp_source, self.level, len(self.tiles), megabytes)
        return "\n".join([_ROW.format(*row), *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class TilingPlan:
    """What tiling would do with a cohort."""

    slides: tuple[PlannedSlide | Failed, ...]
    """In the order of the cohort."""

    @property
    def planned(self) -> tuple[PlannedSlide, ...]:
        """The slides that can be tiled."""
        return tuple(slide for slide in self.slides if isinstance(slide, PlannedSlide))

    @property
    def failed(self) -> tuple[Failed, ...]:
        """The slides that would fail."""
        return tuple(slide for slide in self.slides if not isinstance(slide, PlannedSlide))

    @property
    def table(self) -> str:
        """All slides as a table, the summary last."""
        return "\n".join([HEADER, *map(_text, self.slides), self.summary])

    @property
    def summary(self) -> str:
        """How many slides and tiles there are, in one line."""
        tiles = sum(len(slide.tiles) for slide in self.planned)
        megabytes = sum(slide.num_bytes for slide in self.planned) / 1e6
        return (
            f"{len(self.slides)} slides, {len(self.failed)} would fail; {tiles} tiles, about {megabytes:.0f} MB; "
            "nothing was written"
        )


def plan_slides(records: Sequence[SlideRecord], spec: CacheSpec, say: Callable[[str], None]) -> TilingPlan:
    """Plan what tiling would do, without writing anything.

    Args:
        records: The slides.
        spec: What each cache would be made with.
        say: Takes the table's header, and each row as soon as it is ready.
    """
    say(HEADER)
    slides = []
    for record in records:
        slides.append(_planned(record, spec))
        say(_text(slides[-1]))
    return TilingPlan(tuple(slides))


def _planned(record: SlideRecord, spec: CacheSpec) -> PlannedSlide | Failed:
    from wsi_dbps.core.errors import WsiDbpsError
    from wsi_dbps.tiling.doubts import slide_notes
    from wsi_dbps.tiling.outcomes import Failed
    from wsi_dbps.tiling.slide_plan import plan_slide
    from wsi_dbps.tiling.tile_slide import estimate_bytes, named

    try:
        decided = plan_slide(record, spec)
        num_bytes = estimate_bytes(decided)
    except WsiDbpsError as error:
        return Failed(record.slide_id, named(record, error))
    except Exception as error:
        error.add_note(f"while planning slide {record.slide_id}: {record.path}")
        raise
    return PlannedSlide(
        record.slide_id,
        decided.info.vendor,
        decided.provenance.mpp_source,
        decided.pixels.level,
        decided.plan,
        num_bytes,
        tuple(slide_notes(decided)),
    )


def _text(slide: PlannedSlide | Failed) -> str:
    return slide.text if isinstance(slide, PlannedSlide) else f"fails: {slide.error}"
