"""The value that each case has in a column of the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_dbps.core.errors import PredictionError
from wsi_dbps.metrics.pooling import common_value

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.formats.predictions import Predictions

_OWN = ("case_id", "label", "split", "mpp")
"""Columns that are fields of a record; every other is in `SlideRecord.extra`."""


def values_of_cases(predictions: Predictions, cohort: Cohort, column: str) -> dict[str, str]:
    """By case; a case whose slides have no value is left out.

    Raises:
        PredictionError: If the manifest lacks the column or a predicted slide, the slides of a case differ, or no case
            has a value.
    """
    records = {record.slide_id: record for record in cohort.records}
    known = dict.fromkeys((*_OWN, *(name for record in cohort.records for name in record.extra)))
    if column not in known:
        raise PredictionError(f"the manifest has no column {column} to group by; it has {', '.join(known)}")
    of_case: dict[str, dict[str | None, str | None]] = {}
    for row in predictions.slides:
        if (record := records.get(row.slide_id or "")) is None:
            raise PredictionError(
                f"slide {row.slide_id} has a prediction but no row in the manifest; give its manifest"
            )
        of_case.setdefault(row.case_id, {})[row.slide_id] = _value(record, column)
    found = {case_id: common_value(case_id, column, of_slide) for case_id, of_slide in of_case.items()}
    with_value = {case_id: value for case_id, value in found.items() if value is not None}
    if of_case and not with_value:
        raise PredictionError(f"no predicted case has a value in the column {column}: nothing to group by")
    return with_value


def _value(record: SlideRecord, column: str) -> str | None:
    if column == "mpp":
        return None if record.mpp_um is None else f"{record.mpp_um:g}"
    value = getattr(record, column) if column in _OWN else record.extra.get(column, "").strip()
    return value or None
