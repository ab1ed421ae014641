"""Aggregators by the name that settings give them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wsi_dbps.models.aggregators.abmil import GatedAttention
from wsi_dbps.models.aggregators.abmilx import RefinedGatedAttention
from wsi_dbps.models.aggregators.concat import ConcatAttention
from wsi_dbps.models.aggregators.dual import DualAttention

if TYPE_CHECKING:
    from collections.abc import Callable

    from wsi_dbps.models.aggregators.base import Aggregator
    from wsi_dbps.models.settings import AggregatorConfig

AGGREGATORS: Final[dict[str, Callable[[int, int, AggregatorConfig], Aggregator]]] = {
    "dual": DualAttention,
    "concat": ConcatAttention,
    "abmil": GatedAttention,
    "abmilx": RefinedGatedAttention,
}
"""Each is called with the embedding size, the number of outputs and the settings."""
