"""`wsi-dbps inspect`: says what a file or folder is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE ...", help="Slides, caches, checkpoints, run folders ...")
    ],
) -> None:
    """Say what each given file or folder is.

    Slides, caches, files of features or attention, checkpoints, folders of a run or of predictions.
    """
    from wsi_dbps.errors import WsiDbpsError

    failed = False
    for path in files:
        try:
            facts = describe(path)
        except WsiDbpsError as error:
            failed = True
            print(f"{path}\n  cannot be used: {error}")
            continue
        print(path)
        for name, value in facts.items():
            print(f"  {name:<12} {value}")
    if failed:
        raise typer.Exit(1)


def describe(path: Path) -> dict[str, str]:
    """Facts about a file or folder, by name.

    Raises:
        WsiDbpsError: If it is none of what this package reads.
    """
    if path.is_dir() and (path / "run.json").exists():
        begun = {"what": "run folder"}
        return begun | (
            _checkpoint(path / "best.pt") if (path / "best.pt").exists() else {"epoch": "none finished yet"}
        )
    if path.is_dir() and (path / "predict.json").exists():
        return _predictions(path)
    if path.suffix == ".pt":
        return {"what": "checkpoint"} | _checkpoint(path)
    if path.suffix == ".h5":
        return _hdf5(path)
    return _slide(path)


def _slide(path: Path) -> dict[str, str]:
    from wsi_dbps.slides.reader import open_slide

    with open_slide(path) as reader:
        info = reader.info
    return {
        "what": f"slide ({info.vendor}, read by {info.reader})",
        "size": f"{info.size_lv0} px",
        "mpp": "not in the file" if info.mpp_um is None else f"{info.mpp_um:.4g} µm/px",
        "levels": ", ".join(f"{level.size} (1/{level.downsample:g})" for level in info.levels),
        "fingerprint": info.fingerprint,
    }


def _hdf5(path: Path) -> dict[str, str]:
    import h5py

    from wsi_dbps.errors import CacheError
    from wsi_dbps.patches.cache import PatchCache
    from wsi_dbps.patches.features import FeatureFile, holds_features
    from wsi_dbps.records import ATTENTION_FORMAT, read_attention

    if not path.is_file() or not h5py.is_hdf5(path):
        raise CacheError(f"{path}: {'not an HDF5 file' if path.is_file() else 'no such file'}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            kind = file.attrs.get("format")
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
        return {
            "what": "features",
            "slide": features.slide_id or f"{path.stem} (by the file's name)",
            "patches": f"{len(features)} of {features.dim} numbers",
            "encoder": features.encoder or "not in the file",
            "fingerprint": features.fingerprint,
        }
    cache = PatchCache(path)
    a = cache.attrs
    return {
        "what": f"patch cache (version {a['format_version']}, wsi-dbps {a['wsi_dbps_version']})",
        "slide": f"{cache.slide_id}, {cache.slide_lv0} px at {cache.mpp_lv0_um:.4g} µm/px (from the {a['mpp_source']})",
        "scanner": f"{a['vendor']}, read by {a['reader']}",
        "patches": f"{len(cache)} of {cache.size_px} px at {a['mpp_patch']:g} µm/px, {cache.num_bytes / 1e6:.1f} MB",
        "jpeg": "the scanner's" if a["jpeg_origin"] == "scanner" else f"quality {a['jpeg_quality']}",
        "spec": str(a["spec"]),
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
    from wsi_dbps.errors import PredictionError
    from wsi_dbps.records import read_predicted

    predictions = read_predicted(path)
    try:
        made = json.loads((path / "predict.json").read_text(encoding="utf-8"))
        checkpoints = [f"{m['checkpoint']} ({m['checkpoint_fingerprint']})" for m in made.get("members", [made])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise PredictionError(f"{path / 'predict.json'}: not what `predict` writes: {said}; predict again") from None
    return {
        "what": "predictions",
        "slides": f"{len(predictions.slides)} of {len(predictions.cases)} cases",
        "classes": ", ".join(predictions.classes),
        "checkpoint": ", ".join(checkpoints),
    }
