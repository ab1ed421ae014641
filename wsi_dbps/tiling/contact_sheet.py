"""Pages that show where every slide's patches were taken, the doubtful slides first: 500 slides in minutes."""

from __future__ import annotations

import base64
import html
import io
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import numpy as np

from wsi_dbps.core.errors import CacheError, ForeignFileError
from wsi_dbps.core.files import claimed, put_in_place, write_text
from wsi_dbps.core.ownership import refuse_to_replace
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.tiling.overview import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from wsi_dbps.core.files import PathLike

NAME: Final = "contact-sheet.html"
PER_PAGE: Final = 100
"""Slides on a page, which then has about 4 MB."""
SIDE_PX: Final = 360
MOSTLY_TISSUE: Final = 0.95
OUTLINE_RGB: Final = (0, 110, 60)
TILE_RGB: Final = (20, 60, 200)
STYLE: Final = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; }
main { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 360px; border: 1px solid #ccc; padding: 8px; border-radius: 4px; }
figure.warn { border: 2px solid #c60; }
img { max-width: 100%; }
figcaption b { overflow-wrap: anywhere; }
.warning { color: #a40; }
td { padding-right: 2rem; }
nav a, nav b { margin-right: .7rem; }
#flagged:checked ~ main figure:not(.warn) { display: none; }
"""


@dataclass(frozen=True)
class Card:
    """One slide on the sheet."""

    slide_id: str
    caption: str
    warnings: tuple[str, ...]
    jpeg: bytes | None
    mpp_um: float | None


def write_contact_sheet(slide_ids: Iterable[str], caches: PathLike) -> Path:
    """Draw the sheet of these slides from their caches and `tiling.csv`, and give its first page's path.

    Each slide is shown with its mask outlined and its tiles drawn. First come slides that failed, and those with no
    tissue, hardly anything but tissue, tissue at the slide's edge, or tiles that could not be decoded. After every
    hundred slides begins a new page; the first lists them all. Pages of an earlier, longer sheet are removed.

    Raises:
        OutputError: If it cannot be written.
    """
    caches = Path(caches)
    rows = read_table(caches)
    cards = [_card(slide_id, caches, rows.get(slide_id, {})) for slide_id in slide_ids]
    cards.sort(key=lambda card: (not card.warnings, card.jpeg is not None))
    pages = [cards[start : start + PER_PAGE] for start in range(0, max(1, len(cards)), PER_PAGE)]
    with claimed(caches / NAME, wait=True) as first:  # several runs may end at once
        for number in range(2, len(pages) + 1):
            write_text(caches / _page_name(number), _page(cards, pages, number))
        first.write_text(_page(cards, pages, 1), encoding="utf-8", newline="")
        put_in_place(first, caches / NAME)
        for path in caches.glob("contact-sheet-*.html"):
            found = re.fullmatch(r"contact-sheet-([1-9]\d*)\.html", path.name)
            if found and int(found[1]) > len(pages):
                with suppress(ForeignFileError):  # a page that a person has written, or changed, stays
                    refuse_to_replace(path)
                    path.unlink()
    return caches / NAME


def _page_name(number: int) -> str:
    return NAME if number == 1 else NAME.replace(".", f"-{number}.")


def _card(slide_id: str, caches: Path, row: dict[str, str]) -> Card:
    try:
        cache = PatchCache(caches / f"{slide_id}.h5")
        thumbnail, mask_HW = cache.thumbnail(), cache.tissue_mask()
        warnings = (*_warnings(mask_HW, len(cache), len(cache.dropped())), *filter(None, [row.get("reason")]))
    except CacheError as error:
        return Card(slide_id, "", (row.get("reason") or str(error),), None, None)
    grid = cache.grid
    caption = (
        f"{len(cache)} patches of {grid.size_px} px at {grid.mpp_um:.4g} µm/px "
        f"({cache.facts.pixel_path}); slide {grid.slide_lv0} px at {grid.mpp_lv0_um:.4g} µm/px; "
        f"{mask_HW.mean():.0%} tissue"
    )
    return Card(slide_id, caption, warnings, _picture(cache, thumbnail, mask_HW), grid.mpp_lv0_um)


def _warnings(mask_HW: npt.NDArray[np.bool_], num_patches: int, num_dropped: int) -> Iterator[str]:
    if not num_patches:
        yield "no patches"
    if mask_HW.size > 1:  # else tissue was not looked for
        edge = np.concatenate([mask_HW[0], mask_HW[-1], mask_HW[:, 0], mask_HW[:, -1]])
        if mask_HW.mean() > MOSTLY_TISSUE:
            yield f"more than {MOSTLY_TISSUE:.0%} tissue"
        elif edge.any():
            yield "the tissue touches the edge of the slide"
    if num_dropped:
        yield f"{num_dropped} tiles could not be decoded"


def _picture(cache: PatchCache, thumbnail: npt.NDArray[np.uint8], mask_HW: npt.NDArray[np.bool_]) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.fromarray(thumbnail)
    image.thumbnail((SIDE_PX, SIDE_PX))
    mask = np.asarray(Image.fromarray(mask_HW).resize(image.size))
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    pixels = np.array(image)
    pixels[mask & ~inner] = OUTLINE_RGB
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image, "RGBA")
    grid = cache.grid
    scale = np.array(image.size) / (grid.slide_lv0.width, grid.slide_lv0.height)
    low_N2, high_N2 = grid.origins_lv0 * scale, (grid.origins_lv0 + grid.tile_lv0) * scale
    for (x0, y0), (x1, y1) in zip(low_N2, high_N2, strict=True):
        if x1 - x0 >= 4:
            draw.rectangle((x0, y0, x1, y1), outline=(*TILE_RGB, 150))
        else:  # too small for lines
            draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=(*TILE_RGB, 60))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def _page(cards: Sequence[Card], pages: Sequence[Sequence[Card]], number: int) -> str:
    """One page of the sheet: what holds for all slides, links to the other pages, and this page's slides."""
    doubtful = sum(bool(card.warnings) for card in cards)
    counts = Counter(f"{card.mpp_um:.2g}" for card in cards if card.mpp_um is not None)
    by_mpp = sorted(counts.items(), key=lambda item: float(item[0]))
    histogram = "".join(f"<tr><td>{um} µm/px<td>{n} slides" for um, n in by_mpp)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Contact sheet</title><style>{STYLE}</style>'
        f"<h1>{len(cards)} slides, {doubtful} to look at</h1>"
        f"<p>Green: outline of the tissue. Blue: the patches.</p><table>{histogram}</table>{_links(pages, number)}"
        '<input type="checkbox" id="flagged"><label for="flagged"> Only the slides to look at</label>'
        f"<main>{''.join(map(_figure, pages[number - 1]))}</main></html>\n"
    )


def _links(pages: Sequence[Sequence[Card]], number: int) -> str:
    """Links to the other pages, and on the first a list of all slides; nothing where there is one page."""
    if len(pages) == 1:
        return ""
    links = []
    for i, page in enumerate(pages, 1):
        doubtful = sum(bool(card.warnings) for card in page)
        text = f"{i} ({doubtful} to look at)" if doubtful else str(i)
        links.append(f"<b>{text}</b>" if i == number else f'<a href="{_page_name(i)}">{text}</a>')
    nav = f"<nav>Pages: {''.join(links)}</nav>"
    if number > 1:
        return nav
    at = sorted((card.slide_id, _page_name(i)) for i, page in enumerate(pages, 1) for card in page)
    slides = " ".join(f'<a href="{name}#slide-{quote(slide_id)}">{html.escape(slide_id)}</a>' for slide_id, name in at)
    return f"{nav}<details><summary>All slides by name</summary><nav>{slides}</nav></details>"


def _figure(card: Card) -> str:
    name = html.escape(card.slide_id)
    data = base64.b64encode(card.jpeg or b"").decode()
    picture = f'<img alt="{name}" src="data:image/jpeg;base64,{data}">' if data else ""
    said = "".join(f'<div class="warning">{html.escape(warning)}</div>' for warning in card.warnings)
    kind = ' class="warn"' if card.warnings else ""
    text = f"<b>{name}</b>{said}<div>{html.escape(card.caption)}</div>"
    return f"<figure{kind} id='slide-{name}'>{picture}<figcaption>{text}</figcaption></figure>"
