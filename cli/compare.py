"""`wsi-dbps compare`: is one model better than another on the same cases?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from wsi_dbps_cli.options import check_same_model, prediction_folders

if TYPE_CHECKING:
    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.metrics.compare import Comparison


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
    seed: Annotated[int, typer.Option(help="Random seed for resampling.")] = 0,
) -> None:
    """Compare two models on the same cases.

    Prints, by case, the difference B - A of every score with its interval, DeLong's paired test and McNemar's. Of a
    folder of `predict --folds all` the test cases of all folds are taken together.
    """
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.core.files import write_json
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.core.settings import build
    from wsi_dbps.formats.predict_json import read_predict_json
    from wsi_dbps.metrics.bootstrap import MetricsConfig
    from wsi_dbps.metrics.compare import compare

    config = build(MetricsConfig, {"num_bootstrap": bootstrap, "seed": seed}, "compare")
    for pred, val in ((a, val_a), (b, val_b)):
        if val and prediction_folders([pred]) != [pred]:
            raise ConfigError(
                f"{pred}: holds folds, each with a threshold of its own; leave out its --val, or compare fold by fold"
            )
        if val:
            check_same_model(pred, val)
    validation_a, validation_b = (_read(val) if val else None for val in (val_a, val_b))
    found = compare(_read(a), _read(b), config, validation_a=validation_a, validation_b=validation_b, common=common)
    _print(found, a, b)
    for name, pred in (("A", a), ("B", b)):
        if num := sum(len(read_predict_json(folder).failed) for folder in prediction_folders([pred])):
            print(f"{name} lacks {num} slides that could not be predicted; see predict.json")
    if out is not None:
        head = {"format": "wsi-dbps comparison", "format_version": 1, "a": str(a), "b": str(b)}
        with output_folder(out, "compare", ("compare.json",)):
            write_json(out / "compare.json", {**head, **found.to_dict()})
        print(f"wrote {out / 'compare.json'}")


def _read(pred: Path) -> Predictions:
    """A folder's predictions; of a folder of folds the test cases of each fold, together."""
    from wsi_dbps.formats.predictions import read_predicted
    from wsi_dbps.metrics.pooling import pool_folds
    from wsi_dbps.metrics.thresholds import parts

    folders = prediction_folders([pred])
    if folders == [pred]:
        return read_predicted(pred)
    return pool_folds({folder.name: parts(read_predicted(folder), None)[0] for folder in folders})


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
        intervals = [name.removeprefix("interval.") for name in names if name.startswith("interval.")]
        others = [name for name in names if not name.startswith("interval.")]
        if intervals:
            print(f"no interval for {', '.join(intervals)}: {why}")
        if others:
            print(f"no {', '.join(others)}: {why}")
