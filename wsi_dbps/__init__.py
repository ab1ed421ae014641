"""Train on whole pathology slides, end to end, from pixels, with dual-buffer patch selection.

All that a notebook needs is a name of this module: `import wsi_dbps as wd`. A name is loaded when it is first used, so
that importing the package takes no time and loads neither numpy nor torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_dbps.cohort.annotations import read_annotations as read_annotations
    from wsi_dbps.cohort.cohort import Cohort as Cohort
    from wsi_dbps.cohort.cohort import SlideRecord as SlideRecord
    from wsi_dbps.cohort.given import cohort_from_slides as cohort_from_slides
    from wsi_dbps.cohort.given import read_cohort as read_cohort
    from wsi_dbps.cohort.manifest import write_manifest as write_manifest
    from wsi_dbps.core.errors import CacheError as CacheError
    from wsi_dbps.core.errors import CheckpointError as CheckpointError
    from wsi_dbps.core.errors import ConfigError as ConfigError
    from wsi_dbps.core.errors import ForeignFileError as ForeignFileError
    from wsi_dbps.core.errors import ManifestError as ManifestError
    from wsi_dbps.core.errors import MissingMppError as MissingMppError
    from wsi_dbps.core.errors import OutputError as OutputError
    from wsi_dbps.core.errors import PredictionError as PredictionError
    from wsi_dbps.core.errors import SlideError as SlideError
    from wsi_dbps.core.errors import SpecMismatchError as SpecMismatchError
    from wsi_dbps.core.errors import StoppedError as StoppedError
    from wsi_dbps.core.errors import TrainingError as TrainingError
    from wsi_dbps.core.errors import UnreadableSlideError as UnreadableSlideError
    from wsi_dbps.core.errors import WsiDbpsError as WsiDbpsError
    from wsi_dbps.core.version import __version__ as __version__
    from wsi_dbps.formats.attention import read_attention as read_attention
    from wsi_dbps.formats.features import FeatureFile as FeatureFile
    from wsi_dbps.formats.patch_cache import PatchCache as PatchCache
    from wsi_dbps.formats.selection_record import read_selection_record as read_selection_record
    from wsi_dbps.inspection.look import find_tissue as find_tissue
    from wsi_dbps.inspection.look import load_run as load_run
    from wsi_dbps.inspection.look import read_predictions as read_predictions
    from wsi_dbps.inspection.look import thumbnail as thumbnail
    from wsi_dbps.slides.open import open_slide as open_slide
    from wsi_dbps.workflows.atlas import AtlasOptions as AtlasOptions
    from wsi_dbps.workflows.atlas import AtlasResult as AtlasResult
    from wsi_dbps.workflows.atlas import atlas as atlas
    from wsi_dbps.workflows.compare import CompareOptions as CompareOptions
    from wsi_dbps.workflows.compare import CompareResult as CompareResult
    from wsi_dbps.workflows.compare import compare as compare
    from wsi_dbps.workflows.demo import DemoOptions as DemoOptions
    from wsi_dbps.workflows.demo import DemoResult as DemoResult
    from wsi_dbps.workflows.demo import demo as demo
    from wsi_dbps.workflows.embed import EmbedOptions as EmbedOptions
    from wsi_dbps.workflows.embed import EmbedResult as EmbedResult
    from wsi_dbps.workflows.embed import embed as embed
    from wsi_dbps.workflows.evaluate import EvaluateOptions as EvaluateOptions
    from wsi_dbps.workflows.evaluate import EvaluateResult as EvaluateResult
    from wsi_dbps.workflows.evaluate import evaluate as evaluate
    from wsi_dbps.workflows.export import ExportOptions as ExportOptions
    from wsi_dbps.workflows.export import ExportResult as ExportResult
    from wsi_dbps.workflows.export import export as export
    from wsi_dbps.workflows.faithfulness import FaithfulnessOptions as FaithfulnessOptions
    from wsi_dbps.workflows.faithfulness import FaithfulnessResult as FaithfulnessResult
    from wsi_dbps.workflows.faithfulness import faithfulness as faithfulness
    from wsi_dbps.workflows.heatmap import HeatmapOptions as HeatmapOptions
    from wsi_dbps.workflows.heatmap import HeatmapResult as HeatmapResult
    from wsi_dbps.workflows.heatmap import heatmap as heatmap
    from wsi_dbps.workflows.inspect import InspectResult as InspectResult
    from wsi_dbps.workflows.inspect import inspect as inspect
    from wsi_dbps.workflows.localise import LocaliseOptions as LocaliseOptions
    from wsi_dbps.workflows.localise import LocaliseResult as LocaliseResult
    from wsi_dbps.workflows.localise import localise as localise
    from wsi_dbps.workflows.plan import PlanOptions as PlanOptions
    from wsi_dbps.workflows.plan import PlanResult as PlanResult
    from wsi_dbps.workflows.plan import plan as plan
    from wsi_dbps.workflows.predict import PredictOptions as PredictOptions
    from wsi_dbps.workflows.predict import PredictResult as PredictResult
    from wsi_dbps.workflows.predict import predict as predict
    from wsi_dbps.workflows.split import SplitOptions as SplitOptions
    from wsi_dbps.workflows.split import SplitResult as SplitResult
    from wsi_dbps.workflows.split import split as split
    from wsi_dbps.workflows.tile import TileOptions as TileOptions
    from wsi_dbps.workflows.tile import TileResult as TileResult
    from wsi_dbps.workflows.tile import plan_tiling as plan_tiling
    from wsi_dbps.workflows.tile import tile as tile
    from wsi_dbps.workflows.tile import tile_slide as tile_slide
    from wsi_dbps.workflows.train import TrainOptions as TrainOptions
    from wsi_dbps.workflows.train import TrainResult as TrainResult
    from wsi_dbps.workflows.train import train as train

_NAMES = {
    "cohort.cohort": "Cohort SlideRecord",
    "cohort.annotations": "read_annotations",
    "cohort.manifest": "write_manifest",
    "core.errors": "WsiDbpsError ManifestError ConfigError SlideError UnreadableSlideError MissingMppError CacheError "
    "SpecMismatchError CheckpointError TrainingError StoppedError PredictionError OutputError ForeignFileError",
    "core.version": "__version__",
    "formats.attention": "read_attention",
    "formats.features": "FeatureFile",
    "formats.patch_cache": "PatchCache",
    "formats.selection_record": "read_selection_record",
    "slides.open": "open_slide",
    "workflows.atlas": "AtlasOptions AtlasResult atlas",
    "cohort.given": "cohort_from_slides read_cohort",
    "workflows.compare": "CompareOptions CompareResult compare",
    "workflows.demo": "DemoOptions DemoResult demo",
    "workflows.embed": "EmbedOptions EmbedResult embed",
    "workflows.evaluate": "EvaluateOptions EvaluateResult evaluate",
    "workflows.export": "ExportOptions ExportResult export",
    "workflows.faithfulness": "FaithfulnessOptions FaithfulnessResult faithfulness",
    "workflows.heatmap": "HeatmapOptions HeatmapResult heatmap",
    "workflows.inspect": "InspectResult inspect",
    "workflows.localise": "LocaliseOptions LocaliseResult localise",
    "inspection.look": "find_tissue load_run read_predictions thumbnail",
    "workflows.plan": "PlanOptions PlanResult plan",
    "workflows.predict": "PredictOptions PredictResult predict",
    "workflows.split": "SplitOptions SplitResult split",
    "workflows.tile": "TileOptions TileResult plan_tiling tile tile_slide",
    "workflows.train": "TrainOptions TrainResult train",
}
"""The public names by the module that they come from; the imports above tell editors and type checkers the same."""
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
