"""What a file or folder is, of ours or of another tool, and what is in it, as facts by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path


def describe(path: Path) -> dict[str, str]:  # noqa: PLR0911 - one per kind of file
    """Facts about a file or folder, by name.

    Raises:
        WsiDbpsError: If it is none of what this package reads.
    """
    from wsi_dbps.formats.predict_json import json_object

    if path.is_dir() and (path / "run.json").exists():
        begun = {"what": "run folder"}
        return begun | (
            _checkpoint(path / "best.pt") if (path / "best.pt").exists() else {"epoch": "none finished yet"}
        )
    if path.is_dir() and (path / "predict.json").exists():
        return _predictions(path)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".pt":
        return _features_alone(path) or {"what": "checkpoint"} | _checkpoint(path)
    if path.name == "predictions.csv" and path.with_name("predict.json").exists():
        return _predictions(path.parent)
    if path.suffix in (".csv", ".tsv", ".txt"):
        return _manifest(path)
    if path.suffix in (".geojson", ".xml"):
        return _annotations(path)
    if path.suffix == ".json" and str(kind := json_object(path).get("format", "")).startswith("wsi-dbps "):
        return {"what": f"{str(kind).removeprefix('wsi-dbps ')} (written by wsi-dbps)"}
    if path.suffix == ".npz" and path.parent.name == "selection":
        return _selection(path)
    if path.suffix in (".json", ".npz"):
        from wsi_dbps.tiling.coordinate_facts import coordinate_facts

        return coordinate_facts(path) or {}
    if path.suffix == ".h5":
        return _hdf5(path)
    return _slide(path)


def _folder(path: Path) -> dict[str, str]:
    """A folder of folds, or one that a command of ours has written to."""
    from wsi_dbps.core.errors import SlideError
    from wsi_dbps.core.ownership import RECORD, record_lines
    from wsi_dbps.formats.run_folders import fold_runs

    folds = [fold for fold in fold_runs(path).values() if (fold / "run.json").exists()]
    predicted = [fold for fold in fold_runs(path).values() if (fold / "predict.json").exists()]
    if folds or predicted:
        what = "runs of `train --folds all`" if folds else "predictions of `predict --folds all`"
        names = ", ".join(fold.name for fold in folds or predicted)
        return {"what": what, "folds": names, "use": f"name one of them to see more: {(folds or predicted)[0]}"}
    names_in_record = [line.split("\t", 1)[-1] for line in record_lines(path / RECORD) if not line.startswith("# ")]
    there = {name for name in names_in_record if (path / name).is_file()}
    if not there:
        raise SlideError(f"{path}: a folder that inspect knows nothing of; name a file in it")
    counts = Counter(Path(name).suffix or name for name in there)
    facts = {
        "what": "folder of files that wsi-dbps wrote",
        "files": ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items())),
    }
    if files := sorted(name for name in there if name.endswith(".h5")):
        facts["use"] = f"name one of them to see more: {path / files[0]}"
    return facts


def _annotations(path: Path) -> dict[str, str]:
    from wsi_dbps.cohort.annotations import read_annotations

    areas = read_annotations(path)
    if not areas:
        return {"what": f"{path.suffix} without annotated areas; the tiles of a heatmap are not counted as such"}
    counts = Counter(area.name or "no class" for area in areas)
    return {"what": "annotations", "areas": ", ".join(f"{name} ({count})" for name, count in counts.items())}


def _selection(path: Path) -> dict[str, str]:
    from wsi_dbps.formats.selection_record import read_selection_record

    visits = read_selection_record(path)
    slides = {visit.slide_id for visit in visits}
    return {"what": "selection record of an epoch", "visits": f"{len(visits)} of {len(slides)} slides"}


def _slide(path: Path) -> dict[str, str]:
    from wsi_dbps.slides.open import open_slide

    with open_slide(path) as reader:
        info = reader.info
    return {
        "what": f"slide ({info.vendor}, read by {info.reader})",
        "size": f"{info.size_lv0} px",
        "mpp": _mpp(info.mpp_um),
        "levels": ", ".join(f"{level.size} (1/{level.downsample:g})" for level in info.levels),
        "fingerprint": info.fingerprint,
    }


def _mpp(mpp_um: float | None) -> str:
    from wsi_dbps.tiling.plan import PLAUSIBLE_MPP_UM, is_plausible

    if mpp_um is None:
        return "not in the file; `tile` needs it in the mpp column of the manifest"
    if is_plausible(mpp_um):
        return f"{mpp_um:.4g} µm/px"
    low, high = PLAUSIBLE_MPP_UM
    return (
        f"{mpp_um:.4g} µm/px, which is no scanner's (plausible: {low:g} to {high:g}); `tile` needs the right one in "
        "the mpp column of the manifest"
    )


def _manifest(path: Path) -> dict[str, str]:
    from wsi_dbps.cohort.labels import check_classes
    from wsi_dbps.cohort.manifest import read_manifest
    from wsi_dbps.core.errors import ManifestError

    cohort = read_manifest(path)
    facts = {"what": "cohort manifest", "slides": f"{len(cohort)} of {len(cohort.cases())} cases"}
    for name in ("path", "url", "label", "split", "mpp_um", "mask", "annotations"):
        filled = sum(getattr(record, name) is not None for record in cohort.records)
        if filled:
            facts[name.removesuffix("_um")] = f"filled for {filled} slides"
    counts = Counter(record.label for record in cohort.records)
    facts["classes"] = ", ".join(f"{name} ({counts[name]})" for name in cohort.classes[:20]) or "none: no labels"
    facts["classes"] += f" and {len(cohort.classes) - 20} more" * (len(cohort.classes) > 20)
    if facts.get("split"):
        splits = Counter(record.split for record in cohort.records)
        facts["split"] = ", ".join(f"{name or 'empty'} ({count})" for name, count in splits.items())
    if others := {name: None for record in cohort.records for name in record.extra}:
        facts["more columns"] = ", ".join(others)
    try:
        check_classes(cohort.records)
    except ManifestError as error:
        facts["note"] = f"`split` and `train` refuse it: {error}"
    return facts


def _features_alone(path: Path) -> dict[str, str] | None:
    """CLAM's .pt of a slide, a tensor and nothing else; None for other files."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return None  # the checkpoint's own check says what is wrong
    if not isinstance(found, torch.Tensor):
        return None
    return {
        "what": "features without coordinates (CLAM's pt_files)",
        "patches": " x ".join(map(str, found.shape)) + " numbers",
        "use": "give --caches the folder h5_files beside, which has the coordinates",
    }


def _hdf5(path: Path) -> dict[str, str]:
    import h5py

    from wsi_dbps.core.errors import CacheError
    from wsi_dbps.formats.attention import ATTENTION_FORMAT, read_attention
    from wsi_dbps.formats.features import FeatureFile, holds_features
    from wsi_dbps.formats.patch_cache import PatchCache
    from wsi_dbps.tiling.coordinate_facts import coordinate_facts

    if not path.is_file() or not h5py.is_hdf5(path):
        raise CacheError(f"{path}: {'not an HDF5 file' if path.is_file() else 'no such file'}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = None if (said := file.attrs.get("format")) is None else str(said)  # arrays cannot be compared
    except (OSError, RuntimeError):  # damaged: the cache's own check says how
        kind = None
    if kind == ATTENTION_FORMAT:
        attention = read_attention(path)
        roles = [int((attention.role_N == role).sum()) for role in (1, 2)]
        return {
            "what": "attention",
            "slide": attention.slide_id,
            "patches": f"{len(attention.weights_N)} ({roles[0]} salient, {roles[1]} recycled)",
            "prediction": ", ".join(
                f"{name} {p:.3f}" for name, p in zip(attention.classes, attention.prediction.probabilities, strict=True)
            ),
            "checkpoint": attention.checkpoint_fingerprint,
        }
    if holds_features(path):
        features = FeatureFile(path)
        layout = features.facts.layout
        return {
            "what": "features" if layout == "ours" else f"features ({layout})",
            "slide": features.slide_id or f"{path.stem} (by the file's name)",
            "patches": f"{len(features)} of {features.dim} numbers",
            "encoder": features.encoder or "not in the file",
            "fingerprint": features.fingerprint,
        }
    if kind is None and (coordinates := coordinate_facts(path)):
        return coordinates
    cache = PatchCache(path)
    facts, grid = cache.facts, cache.grid
    return {
        "what": f"patch cache (version {facts.format_version}, wsi-dbps {facts.wsi_dbps_version})",
        "slide": f"{cache.slide_id}, {grid.slide_lv0} px at {grid.mpp_lv0_um:.4g} µm/px (from the {facts.mpp_source})",
        "scanner": f"{facts.vendor}, read by {facts.reader}",
        "patches": f"{len(cache)} of {grid.size_px} px at {grid.mpp_um:g} µm/px, {cache.num_bytes / 1e6:.1f} MB",
        "jpeg": "the scanner's" if facts.jpeg_origin == "scanner" else f"quality {facts.jpeg_quality}",
        "spec": json.dumps(facts.spec, sort_keys=True),
        "fingerprint": cache.fingerprint,
    }


def _checkpoint(path: Path) -> dict[str, str]:
    from wsi_dbps.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    c = checkpoint.config
    return {
        "classes": ", ".join(checkpoint.classes),
        "patches": str(checkpoint.patch_kind),
        "encoder": c.encoder.name,
        "selection": f"{c.selection.preset}, M = {c.selection.num_salient}, S = {c.selection.num_subsalient}",
        "aggregator": c.aggregator.name,
        "epoch": str(checkpoint.epoch),
        "fingerprint": checkpoint.fingerprint(),
    }


def _predictions(path: Path) -> dict[str, str]:
    from wsi_dbps.core.errors import PredictionError
    from wsi_dbps.formats.predict_json import read_predict_json
    from wsi_dbps.formats.predictions import read_predicted

    predictions, members = read_predicted(path), read_predict_json(path).members
    if not members:
        raise PredictionError(
            f"{path / 'predict.json'}: not what `predict` writes: it names no checkpoint; predict again"
        )
    return {
        "what": "predictions",
        "slides": f"{len(predictions.slides)} of {len(predictions.cases)} cases",
        "classes": ", ".join(predictions.classes),
        "checkpoint": ", ".join(f"{member.checkpoint} ({member.checkpoint_fingerprint})" for member in members),
    }
