"""What other commands found about the truth of heatmaps, as a report shows it.

A folder holds any of localisation.json, faithfulness.json and stability.json. A key that is absent is not shown;
another format or version, or a number that is none, is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.metrics.bootstrap import Estimate

if TYPE_CHECKING:
    from pathlib import Path

_KINDS: Final = ("localisation", "faithfulness", "stability")


@dataclass(frozen=True)
class Curve:
    """Points to draw, and what sums them up."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    random: tuple[float, ...] = ()
    """The same with patches in random order."""
    summary: Estimate | None = None


@dataclass(frozen=True)
class Truth:
    """Is the heatmap true?"""

    rows: tuple[tuple[str, Estimate, str], ...]
    """What, its value and interval, and what it says, in words."""
    curves: dict[str, Curve]
    """Any of `froc`, `deletion`, `insertion`."""
    reasons: tuple[tuple[str, str], ...]
    """What is absent, and why."""
    slide_auroc: dict[str, float]
    """Patch AUROC by slide id, where there are annotations."""


def read_truth(folder: Path) -> Truth:
    """Read what there is of the three files.

    Raises:
        PredictionError: If none is there, or one is of another format or version, or holds what is not a number.
    """
    found = {kind: _read(folder / f"{kind}.json", kind) for kind in _KINDS if (folder / f"{kind}.json").is_file()}
    if not found:
        raise PredictionError(f"{folder}: holds none of {', '.join(f'{kind}.json' for kind in _KINDS)}")
    rows: list[tuple[str, Estimate, str]] = []
    curves: dict[str, Curve] = {}
    reasons: dict[tuple[str, str], None] = {}
    slide_auroc: dict[str, float] = {}
    for kind, values in found.items():
        try:
            rows += _rows(kind, values)
            curves |= _curves(kind, values)
            reasons |= dict.fromkeys(
                (str(k).replace("_", " "), str(v)) for k, v in (values.get("reasons") or {}).items()
            )
            known = [slide for slide in values.get("slides") or () if slide.get("patch_auroc") is not None]
            slide_auroc |= {str(slide["slide_id"]): _number(slide["patch_auroc"]) for slide in known}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            path = folder / f"{kind}.json"
            raise PredictionError(f"{path}: holds what does not belong there ({error}); write it again") from None
    return Truth(tuple(rows), curves, tuple(reasons), slide_auroc)


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PredictionError(f"{path}: not JSON: {error}") from None
    named = (values.get("format"), values.get("format_version")) if isinstance(values, dict) else (None, None)
    if named != (f"wsi-dbps {kind}", 1):
        raise PredictionError(f"{path}: is {named[0]!r} version {named[1]}, not 'wsi-dbps {kind}' version 1")
    return dict(values)


def _rows(kind: str, values: dict[str, Any]) -> list[tuple[str, Estimate, str]]:
    named: list[tuple[str, Any, str]]
    if kind == "localisation":
        dice = _part(values, "dice")
        at = f", patches from percentile {100 * _number(dice['threshold']):g} up" if dice.get("threshold") else ""
        named = [
            ("Patch AUROC", values.get("patch_auroc"), "a patch in an annotation outranks one outside; 0.5 is chance"),
            (f"Dice{at}", dice, "overlap of the marked patches and the annotation; 1 is the same area"),
            ("FROC score", _froc(values), "mean share of lesions found at 1/4 to 8 false alarms per slide"),
        ]
    elif kind == "faithfulness":
        words = "area between the top and the random order; above 0 the heatmap tells what counts"
        named = [
            (f"{name.capitalize()} of the top patches", _part(values, name).get("area"), words)
            for name in ("deletion", "insertion")
        ]
    else:
        seeds = f", {values['num_seeds']} drop seeds" if values.get("num_seeds") else ""
        named = [
            (
                "Spread of the probability" + seeds,
                values.get("probability_sd"),
                "standard deviation; 0 is always the same",
            ),
            ("Share of changed predictions" + seeds, values.get("flipped"), "another class is predicted; 0 is never"),
            ("Overlap of salient patches" + seeds, values.get("salient_overlap"), "when chosen again; 1 is the same"),
            ("Rank correlation of runs", values.get("runs_rank_correlation"), "of their heatmaps; 1 is the same order"),
        ]
    return [(name, estimate, words) for name, value, words in named if (estimate := _estimate(value))]


def _part(values: dict[str, Any], name: str) -> dict[str, Any]:
    return values.get(name) or {}


def _froc(values: dict[str, Any]) -> dict[str, Any]:
    froc = _part(values, "froc")
    return {**froc, "value": froc.get("score")}


def _number(value: Any) -> float:
    if not math.isfinite(number := float(value)):
        raise ValueError(f"{value} is not a finite number")
    return number


def _estimate(value: dict[str, Any] | None) -> Estimate | None:
    if not value or value.get("value") is None:
        return None
    low, high = value.get("low"), value.get("high")
    if low is None or high is None:
        return Estimate(_number(value["value"]))
    return Estimate(_number(value["value"]), _number(low), _number(high))


def _curves(kind: str, values: dict[str, Any]) -> dict[str, Curve]:
    if kind == "localisation":
        parts = {"froc": (_froc(values), "false_positives_per_slide", "sensitivity")}
    elif kind == "faithfulness":
        parts = {name: (_part(values, name), "fractions", "top") for name in ("deletion", "insertion")}
    else:
        parts = {}
    found = {}
    for name, (part, x_name, y_name) in parts.items():
        x, y, random = (tuple(_number(v) for v in part.get(key) or ()) for key in (x_name, y_name, "random"))
        if len(x) != len(y) or len(random) not in (0, len(x)):
            raise ValueError(f"{name}: {len(x)} {x_name} for {len(y)} {y_name} and {len(random)} random")
        if x:
            found[name] = Curve(x, y, random, _estimate(part if name == "froc" else part.get("area")))
    return found
