"""`wsi-dbps embed`: cached patches become features."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from wsi_dbps_cli.options import Caches, CohortCsv, Columns, Device, Split, cohort_part, num_cores


class Precision(StrEnum):
    """The type that the encoder computes in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Format(StrEnum):
    """Whose layout the features are written in."""

    H5 = "h5"
    PT = "pt"
    STAMP = "stamp"


class Match(StrEnum):
    """How a weights file's tensors find the encoder's."""

    NAME = "name"
    ORDER = "order"


def command(
    cohort: CohortCsv,
    caches: Caches,
    out: Annotated[Path, typer.Option(help="Folder for an HDF5 file of features per slide.")],
    encoder: Annotated[
        str | None, typer.Option(help="A timm model, hf-hub:owner/model, or small_gn; resnet18 if not given.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Local weights file of it, in place of timm's.")] = None,
    weights_match: Annotated[Match, typer.Option(help="As encoder.weights_match in docs/settings.md.")] = Match.NAME,
    run: Annotated[Path | None, typer.Option(help="A run folder, whose tuned encoder is taken instead.")] = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format", help="h5: for this tool and TRIDENT. pt: CLAM's pt_files and h5_files. stamp: STAMP's."
        ),
    ] = Format.H5,
    batch: Annotated[
        int, typer.Option(help="Patches encoded at once. The last bits of the features depend on it.", min=1)
    ] = 256,
    precision: Annotated[Precision, typer.Option(help="auto: bf16 where the GPU has it, else fp32.")] = Precision.AUTO,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make anew what is there already.")] = False,
    columns: Columns = [],
) -> None:
    """Compute features of every cached patch.

    They are written in a layout that TRIDENT and CLAM read and `wsi-dbps train` takes.

    Features of a slide that are there already, from the same cache, encoder, precision and batch, are kept; a killed
    run goes on.
    """
    from wsi_dbps.core.errors import ConfigError
    from wsi_dbps.models.settings import EncoderConfig

    slides = cohort_part(cohort, columns, Split.ALL)
    if run is not None and (encoder or weights):
        raise ConfigError("embed: --run brings its own encoder; leave out --encoder and --weights")
    if encoder == "small_gn" and weights is None:
        raise ConfigError("embed: small_gn has no weights of its own; give --weights, or --run in place of --encoder")
    from wsi_dbps.inference.embed import embed
    from wsi_dbps.training.checkpoint import load_checkpoint

    named = EncoderConfig(
        name=encoder or "resnet18", weights=str(weights) if weights else None, weights_match=weights_match.value
    )
    result = embed(
        load_checkpoint(run / "best.pt") if run else named,
        slides,
        caches,
        out,
        batch=batch,
        precision=precision.value,
        device=device,
        decode_threads=num_cores(),
        overwrite=overwrite,
        layout=format_.value,
    )
    print(
        f"{result.num_slides} slides embedded ({result.num_patches} patches), {result.kept} kept as they were, "
        f"{len(result.failed)} failed ({result.speed}): {out}"
    )
    if result.failed:
        raise typer.Exit(1)
