"""A comparison of two models in words, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsi_dbps.metrics.compare import Comparison


def comparison_lines(found: Comparison) -> Iterator[str]:
    """A table of scores, the paired tests, and why something is missing, line by line."""
    yield from _score_lines(found)
    yield ""
    yield from _test_lines(found)
    yield from _reason_lines(found)


def _score_lines(found: Comparison) -> Iterator[str]:
    row = "{:<24} {:>8} {:>8} {:>8}   {}"
    yield row.format("", "A", "B", "B - A", f"{found.config.confidence * 100:g} % interval")
    for name, score in found.scores.items():
        d = score.difference
        ends = "" if d.low is None else f"{d.low:+.3f} to {d.high:+.3f}"
        yield row.format(name, f"{score.a:.3f}", f"{score.b:.3f}", f"{d.value:+.3f}", ends).rstrip()


def _test_lines(found: Comparison) -> Iterator[str]:
    for name, test in found.delong.items():
        of = "AUROC" if name == "auroc" else f"AUROC of {name} against the rest"
        if test.p is not None:
            ends = f"{test.low:+.3f} to {test.high:+.3f}"
            yield f"DeLong, {of}: B - A {test.difference:+.3f} ({ends}), z = {test.z:.2f}, p = {test.p:.3g}"
    if (m := found.mcnemar) is not None:
        yield f"McNemar, exact: only A right {m.only_a_right}, only B right {m.only_b_right}, p = {m.p:.3g}"


def _reason_lines(found: Comparison) -> Iterator[str]:
    """What does not exist, one line for each reason."""
    of_reason: dict[str, list[str]] = {}
    for name, why in found.reasons.items():
        of_reason.setdefault(why, []).append(name)
    for why, names in of_reason.items():
        intervals = [name.removeprefix("interval.") for name in names if name.startswith("interval.")]
        others = [name for name in names if not name.startswith("interval.")]
        if intervals:
            yield f"no interval for {', '.join(intervals)}: {why}"
        if others:
            yield f"no {', '.join(others)}: {why}"
