"""Is one model better than another on the same cases?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.options import options_with, to_stderr
from wsi_dbps.core.settings import build, settings
from wsi_dbps.formats.run_folders import check_same_model, prediction_folders

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say
    from wsi_dbps.formats.predictions import Predictions
    from wsi_dbps.metrics.compare import Comparison


@settings
class CompareOptions:
    """The options of `compare`."""

    common: Annotated[bool, "Leave out cases that only one of the two has."] = False
    val_a: Annotated[Path | None, "Predictions of validation cases, for A's threshold."] = None
    val_b: Annotated[Path | None, "Predictions of validation cases, for B's threshold."] = None
    bootstrap: Annotated[int, "Resamples of the cases for each interval."] = 2000
    seed: Annotated[int, "Random seed for resampling."] = 0


@dataclass(frozen=True)
class CompareResult:
    """What `compare` found and wrote."""

    comparison: Comparison
    """Every score of A and of B, the differences with intervals, and the tests."""
    a: Path
    """Folder of predictions."""
    b: Path
    """Likewise."""
    num_failed_a: int
    """Slides that A could not predict."""
    num_failed_b: int
    """Likewise of B."""
    path: Path | None
    """compare.json, where a folder for it was given."""
    failed: int = 0

    @property
    def summary(self) -> str:
        """What the command prints: a table by score, the tests, and what does not exist with the reason."""
        return "\n".join(_lines(self))


def compare(
    a: PathLike,
    b: PathLike,
    out: PathLike | None = None,
    options: CompareOptions = CompareOptions(),
    *,
    say: Say = to_stderr,  # noqa: ARG001 - every workflow has it
    **changes: Any,
) -> CompareResult:
    """Compare two models on the same cases: by case, B - A of every score with its interval, and paired tests.

    Of a folder of `predict --folds all` the test cases of all folds are taken together.

    Args:
        a: Folder of predictions to compare with.
        b: Folder of predictions in question.
        out: Folder for compare.json; nothing is written where None.
        options: How.
        say: Takes lines of notice.
        changes: Options to change, by name: `common=True`.

    Raises:
        PredictionError: If predictions cannot be read, or the cases differ and `common` is not set.
        ConfigError: If validation is given for a folder of folds.
        OutputError: If the file cannot be written.
    """
    from wsi_dbps.core.files import write_json
    from wsi_dbps.core.output_folder import output_folder
    from wsi_dbps.formats.predict_json import read_predict_json
    from wsi_dbps.metrics.bootstrap import MetricsConfig
    from wsi_dbps.metrics.compare import compare as compare_predictions

    options, a, b = options_with(options, changes), Path(a), Path(b)
    config = build(MetricsConfig, {"num_bootstrap": options.bootstrap, "seed": options.seed}, "compare")
    for pred, val in ((a, options.val_a), (b, options.val_b)):
        if val and prediction_folders([pred]) != [pred]:
            raise ConfigError(
                f"{pred}: holds folds, each with a threshold of its own; leave out its --val, or compare fold by fold"
            )
        if val:
            check_same_model(pred, val)
    validation_a, validation_b = (_read(val) if val else None for val in (options.val_a, options.val_b))
    found = compare_predictions(
        _read(a), _read(b), config, validation_a=validation_a, validation_b=validation_b, common=options.common
    )
    failed_a, failed_b = (
        sum(len(read_predict_json(folder).failed) for folder in prediction_folders([pred])) for pred in (a, b)
    )
    path = None if out is None else Path(out) / "compare.json"
    if path is not None:
        head = {"format": "wsi-dbps comparison", "format_version": 1, "a": str(a), "b": str(b)}
        with output_folder(path.parent, "compare", (path.name,)):
            write_json(path, {**head, **found.to_dict()})
    return CompareResult(found, a, b, failed_a, failed_b, path)


def _read(pred: Path) -> Predictions:
    """A folder's predictions; of a folder of folds the test cases of each fold, together."""
    from wsi_dbps.formats.predictions import read_predicted
    from wsi_dbps.metrics.pooling import pool_folds
    from wsi_dbps.metrics.thresholds import parts

    folders = prediction_folders([pred])
    if folders == [pred]:
        return read_predicted(pred)
    return pool_folds({folder.name: parts(read_predicted(folder), None)[0] for folder in folders})


# ---- what is printed


def _lines(result: CompareResult) -> Iterator[str]:
    from wsi_dbps.metrics.compare_text import comparison_lines

    found = result.comparison
    left_out = f", {found.num_left_out} cases that only one has left out" if found.num_left_out else ""
    yield f"A {result.a}\nB {result.b}\n{found.num} labelled cases{left_out}\n"
    yield from comparison_lines(found)
    for name, num in (("A", result.num_failed_a), ("B", result.num_failed_b)):
        if num:
            yield f"{name} lacks {num} slides that could not be predicted; see predict.json"
    if result.path is not None:
        yield f"wrote {result.path}"
