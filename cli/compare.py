"""`wsi-dbps compare`: is one model better than another on the same cases?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import check_same_model

if TYPE_CHECKING:
    from wsi_dbps.evaluation.compare import Comparison


def command(
    a: Annotated[Path, typer.Argument(metavar="PRED_A", help="Folder of predictions to compare with.")],
    b: Annotated[Path, typer.Argument(metavar="PRED_B", help="Folder of predictions in question.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.json; without it the table is only printed.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Leave out cases that only one of the two has.")] = False,
    val_a: Annotated[Path | None, typer.Option(help="Predictions of validation cases, for A's threshold.")] = None,
    val_b: Annotated[Path | None, typer.Option(help="Predictions of validation cases, for B's threshold.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples of the cases for each interval.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
) -> None:
    """Print, by case, the difference B - A of every score with its interval, DeLong's paired test and McNemar's."""
    from wsi_dbps.config import build
    from wsi_dbps.evaluation.bootstrap import MetricsConfig
    from wsi_dbps.evaluation.compare import compare
    from wsi_dbps.files import write_json
    from wsi_dbps.records import read_predictions

    config = build(MetricsConfig, {"num_bootstrap": bootstrap, "seed": seed}, "compare")
    for pred, val in ((a, val_a), (b, val_b)):
        if val:
            check_same_model(pred, val)
    first, second, *given = (
        read_predictions(pred / "predictions.csv") if pred else None for pred in (a, b, val_a, val_b)
    )
    assert first is not None
    assert second is not None
    found = compare(first, second, config, validation_a=given[0], validation_b=given[1], common=common)
    _print(found, a, b)
    if out is not None:
        head = {"format": "wsi-dbps comparison", "format_version": 1, "a": str(a), "b": str(b)}
        write_json(out / "compare.json", {**head, **found.to_dict()})
        print(f"wrote {out / 'compare.json'}")


def _print(found: Comparison, a: Path, b: Path) -> None:
    left_out = f", {found.num_left_out} cases that only one has left out" if found.num_left_out else ""
    print(f"A {a}\nB {b}\n{found.num} labelled cases{left_out}\n")
    row = "{:<24} {:>8} {:>8} {:>8}   {}"
    print(row.format("", "A", "B", "B - A", f"{found.config.confidence * 100:g} % interval"))
    for name, score in found.scores.items():
        d = score.difference
        ends = "" if d.low is None else f"{d.low:+.3f} to {d.high:+.3f}"
        print(row.format(name, f"{score.a:.3f}", f"{score.b:.3f}", f"{d.value:+.3f}", ends).rstrip())
    print()
    for name, test in found.delong.items():
        of = "AUROC" if name == "auroc" else f"AUROC of {name} against the rest"
        if test.p is not None:
            ends = f"{test.low:+.3f} to {test.high:+.3f}"
            print(f"DeLong, {of}: B - A {test.difference:+.3f} ({ends}), z = {test.z:.2f}, p = {test.p:.3g}")
    if (m := found.mcnemar) is not None:
        print(f"McNemar, exact: only A right {m.only_a_right}, only B right {m.only_b_right}, p = {m.p:.3g}")
    of_reason: dict[str, list[str]] = {}
    for name, why in found.reasons.items():
        of_reason.setdefault(why, []).append(name)
    for why, names in of_reason.items():
        print(f"no {', '.join(names)}: {why}")
