"""Compute features of every cached patch of a cohort."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from wsi_dbps.cohort.given import Columns, Device, cohort_part
from wsi_dbps.core.options import Range, options_with, to_stderr
from wsi_dbps.core.settings import settings
from wsi_dbps.models.settings import EncoderConfig

if TYPE_CHECKING:
    from wsi_dbps.cohort.cohort import Cohort
    from wsi_dbps.core.files import PathLike
    from wsi_dbps.core.options import Say

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Layout = Literal["h5", "pt", "stamp"]
Match = Literal["name", "order"]


@settings
class EmbedOptions:
    """The options of `embed`."""

    encoder: Annotated[
        str | None, f"A timm model, hf-hub:owner/model, or small_gn; {EncoderConfig.name} if not given."
    ] = None
    weights: Annotated[Path | None, "Local file with the encoder's weights, instead of timm's."] = None
    weights_match: Annotated[Match, "How tensors of the file find the encoder's: by name, or in order, by shape."] = (
        EncoderConfig.weights_match
    )
    run: Annotated[Path | None, "Run folder, whose trained encoder is used instead."] = None
    format: Annotated[Layout, "h5: for this tool and TRIDENT. pt: CLAM's pt_files and h5_files. stamp: STAMP's."] = "h5"
    batch: Annotated[int, "Patches encoded at once. The last bits of the features depend on it.", Range(min=1)] = 256
    precision: Annotated[Precision, "auto: bf16 where the GPU has it, else fp32."] = "auto"
    device: Device = "auto"
    overwrite: Annotated[bool, "Compute again features that are there already."] = False
    columns: Columns = ()


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` has left in its folder."""

    out: Path
    """The folder, with a file of features per slide."""
    num_slides: int
    """Slides whose features were written."""
    num_patches: int
    """Rows of features in them."""
    kept: int
    """Slides whose features were there already, from the same cache and encoder."""
    failed: tuple[str, ...]
    """A line for each slide that has no features from this encoder now."""
    speed: str
    """Patches per second, and the share of the time in which the encoder waited for pixels."""

    @property
    def summary(self) -> str:
        """What the command prints."""
        return (
            f"{self.num_slides} slides embedded ({self.num_patches} patches), {self.kept} kept as they were, "
            f"{len(self.failed)} failed ({self.speed}): {self.out}"
        )


def embed(
    cohort: Cohort | PathLike,
    caches: PathLike,
    out: PathLike,
    options: EmbedOptions = EmbedOptions(),
    *,
    say: Say = to_stderr,  # noqa: ARG001 - failures are said by the progress display
    **changes: Any,
) -> EmbedResult:
    """Compute features of every cached patch, in a layout that TRIDENT, CLAM or STAMP reads and `train` takes.

    Features of a slide that are there already, from the same cache, encoder, precision and batch, are kept.

    Args:
        cohort: A cohort, or the path of its manifest. Labels are not needed.
        caches: Folder of patch caches.
        out: Folder for a file of features per slide.
        options: Options; see `EmbedOptions`.
        say: Takes lines of notice.
        changes: Options to change, by name: `embed(cohort, "caches", "features", run="run")`.

    Raises:
        ConfigError: If an option is wrong, or the encoder cannot be built or takes other patches.
        CheckpointError: If `run` holds no checkpoint that can be used.
        OutputError: If a file cannot be written.
    """
    from wsi_dbps.core.cores import num_cores
    from wsi_dbps.core.errors import ConfigError

    o, out = options_with(options, changes), Path(out)
    slides = cohort_part(cohort, o.columns, "all")
    if o.run is not None and (o.encoder or o.weights):
        raise ConfigError("embed: --run brings its own encoder; leave out --encoder and --weights")
    if o.encoder == "small_gn" and o.weights is None:
        raise ConfigError("embed: small_gn has no weights of its own; give --weights, or --run in place of --encoder")
    from wsi_dbps.inference.embed import embed as embed_slides
    from wsi_dbps.training.checkpoint import load_checkpoint

    named = EncoderConfig(
        name=o.encoder or EncoderConfig.name,
        weights=str(o.weights) if o.weights else None,
        weights_match=o.weights_match,
    )
    done = embed_slides(
        load_checkpoint(o.run / "best.pt") if o.run else named,
        slides,
        Path(caches),
        out,
        batch=o.batch,
        precision=o.precision,
        device=o.device,
        decode_threads=num_cores(),
        overwrite=o.overwrite,
        layout=o.format,
    )
    return EmbedResult(out, done.num_slides, done.num_patches, done.kept, done.failed, done.speed)
