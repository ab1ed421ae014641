"""Features of every cached patch of a cohort, by one encoder, for training here or in another tool."""

from __future__ import annotations

import hashlib
import io
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from wsi_dbps.bags.bags import PatchReader, open_cache, patch_kind
from wsi_dbps.core.errors import CacheError, ConfigError, OutputError, SpecMismatchError, WsiDbpsError, one_line
from wsi_dbps.core.files import written_whole
from wsi_dbps.core.output_folder import output_folder
from wsi_dbps.core.ownership import refuse_to_replace
from wsi_dbps.core.progress import Progress
from wsi_dbps.formats.features import FeatureFile, are_kept, features_written
from wsi_dbps.formats.other_features import stamp_written
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.formats.patch_filter import PatchFilter
from wsi_dbps.models.device import pick_device, pick_precision
from wsi_dbps.models.encoders.base import PatchEncoder
from wsi_dbps.models.encoders.build import build_encoder
from wsi_dbps.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from wsi_dbps.bags.bags import FeatureKind, PatchKind
    from wsi_dbps.cohort.cohort import Cohort, SlideRecord
    from wsi_dbps.models.settings import EncoderConfig

Layout = Literal["h5", "pt", "stamp"]


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` left in its folder."""

    num_slides: int
    """Files written."""
    num_patches: int
    """Rows in them."""
    kept: int
    """Slides whose features were there already, from the same cache and encoder."""
    failed: tuple[str, ...]
    """One line for each slide that has no features from this encoder now."""
    speed: str
    """Patches per second, and the share of the time in which the encoder waited for pixels."""


def embed(
    source: EncoderConfig | Checkpoint,
    cohort: Cohort,
    caches: Path,
    out: Path,
    *,
    batch: int = 256,
    precision: str = "auto",
    device: str = "auto",
    decode_threads: int = 2,
    overwrite: bool = False,
    layout: Layout = "h5",
) -> EmbedResult:
    """Write OUT/<slide_id>.h5 for every slide: row i is what the encoder makes of the cache's patch i.

    Memory is that of a few batches, however many patches a slide has. Slides done from the same cache with the same
    encoder, precision and batch are kept.

    Args:
        source: An encoder to build, or a run's checkpoint, whose tuned encoder is taken.
        cohort: Which slides; labels are not needed.
        caches: Folder of patch caches, all of one kind.
        out: Folder to write.
        batch: Patches encoded at once.
        precision: `auto`, `fp32`, `bf16` or `fp16`; features are stored as float32 whichever it is.
        device: As `pick_device` takes it.
        decode_threads: Threads that read and decode patches.
        overwrite: Replace features that are there already; nothing else is ever replaced.
        layout: `h5`: TRIDENT's, and ours. `pt`: CLAM's, OUT/h5_files/<slide_id>.h5 and OUT/pt_files/<slide_id>.pt.
            `stamp`: STAMP's.

    Raises:
        ConfigError: If the encoder cannot be built, takes no pixels, or not patches of this size.
        OutputError: If a file cannot be written.
    """
    embedder = Embedder(source, batch=batch, precision=precision, device=device, decode_threads=decode_threads)
    kind = source.patch_kind if isinstance(source, Checkpoint) else None
    num_slides = kept = 0
    failed: list[str] = []
    with output_folder(out, "embed"), Progress("embedding", len(cohort), "slides") as progress:
        for record in cohort.records:
            try:
                cache = _pixels(caches, record, kind)
                kind = kind or patch_kind(cache)
                if embedder.slide_in_layout(cache, out, progress, layout=layout, overwrite=overwrite):
                    num_slides += 1
                else:
                    kept += 1
            except (OutputError, ConfigError):
                raise
            except WsiDbpsError as error:
                failed.append(f"{record.slide_id}: {error}")
                progress.say(failed[-1])
            progress.advance(extra=embedder.speed())
    embedder.close()
    return EmbedResult(num_slides, embedder.num_patches, kept, tuple(failed), embedder.speed())


def _pixels(caches: Path, record: SlideRecord, kind: PatchKind | FeatureKind | None) -> PatchCache:
    """A slide's patch cache.

    Raises:
        CacheError: As `open_cache`, and if the folder holds features.
    """
    cache = open_cache(caches, record, kind, PatchFilter())
    if not isinstance(cache, PatchCache):
        raise CacheError(
            f"{cache.path}: holds features already; give --caches a folder of patch caches, as `wsi-dbps tile` writes "
            "them, or give this folder to `train` or `predict` as it is"
        )
    return cache


class Embedder:
    """An encoder in evaluation mode, and how it is fed."""

    def __init__(
        self,
        source: EncoderConfig | Checkpoint,
        *,
        batch: int = 256,
        precision: str = "auto",
        device: str = "auto",
        decode_threads: int = 2,
    ) -> None:
        self._device, self._batch = pick_device(device), batch
        self._precision = pick_precision(precision, self._device)
        if isinstance(source, Checkpoint):
            name, checkpoint = source.config.encoder.name, source.fingerprint()
            encoder = source.build_model(self._device).encoder
        else:
            name, checkpoint = source.name, ""
            encoder = build_encoder(source)
        if not isinstance(encoder, PatchEncoder):
            raise ConfigError("[encoder] a projector takes features and makes none of pixels; name another encoder")
        self._encoder = encoder.to(self._device).eval()
        self.made: dict[str, str | int] = {
            "encoder": name,
            "encoder_fingerprint": encoder_fingerprint(encoder),
            "checkpoint_fingerprint": checkpoint,
            "precision": str(self._precision).removeprefix("torch."),
            "batch": batch,  # matrix products of other shapes are summed in another order
        }
        """What the features of any slide are made with: attributes of the file."""
        self._reader = PatchReader(decode_threads, pin_memory=self._device.type == "cuda")
        self.num_patches, self._seconds, self._waited = 0, 0.0, 0.0

    def slide_in_layout(
        self, cache: PatchCache, out: Path, progress: Progress, *, layout: Layout, overwrite: bool
    ) -> bool:
        """Write one slide's features as the files of a layout, and say whether anything had to be written.

        Raises:
            SpecMismatchError: If what is there was made otherwise, or is not ours.
            ForeignFileError: If the tensor is somebody else's.
            Others: As `slide`.
        """
        name = cache.slide_id
        if layout != "pt":
            target, style = out / f"{name}.h5", "stamp" if layout == "stamp" else "ours"
            if are_kept(target, cache, self.made, overwrite=overwrite, layout=style):
                return False
            self.slide(cache, target, progress, as_stamp=layout == "stamp")
            return True
        rows, tensor = out / "h5_files" / f"{name}.h5", out / "pt_files" / f"{name}.pt"
        if tensor.exists() and not rows.exists():
            raise SpecMismatchError(f"{tensor}: there already, without our {rows} beside; name another --out folder")
        rows_kept = are_kept(rows, cache, self.made, overwrite=overwrite)
        if rows_kept and tensor.exists():
            return False
        refuse_to_replace(tensor)
        if not rows_kept:
            with suppress(FileNotFoundError):
                tensor.unlink()  # so that after a kill no tensor of the old rows lies beside the new ones
            self.slide(cache, rows, progress)
        write_tensor(tensor, rows)
        return True

    def slide(self, cache: PatchCache, target: Path, progress: Progress, *, as_stamp: bool = False) -> None:
        """Write one slide's features in an HDF5 file.

        Raises:
            CacheError: If a patch cannot be read.
            ConfigError: If the encoder does not take patches of this size.
            OutputError: If the file cannot be written.
        """
        id_lists = torch.arange(len(cache)).split(self._batch) if len(cache) else ()
        written = stamp_written if as_stamp else features_written
        with written(target, cache, self._encoder.dim, self.made) as rows:
            pixels = self._reader.read(cache, id_lists)
            start = time.monotonic()
            for ids in id_lists:
                asked = time.monotonic()
                pixels_LCPP = next(pixels)
                self._waited += time.monotonic() - asked
                features_LD = self._encode(pixels_LCPP)
                if as_stamp and not (np.abs(features_LD) <= np.finfo(np.float16).max).all():
                    raise ConfigError(
                        f"encoder {self.made['encoder']} gives {np.abs(features_LD).max():g} for a patch of "
                        f"{cache.slide_id}, and STAMP's layout holds float16, up to 65504; use --format h5"
                    )
                rows[int(ids[0]) : int(ids[-1]) + 1] = features_LD
                now = time.monotonic()
                self._seconds, start = self._seconds + now - start, now
                self.num_patches += len(ids)
                progress.advance(0, f"{int(ids[-1]) + 1} of {len(cache)} patches of {cache.slide_id}, {self.speed()}")

    @torch.inference_mode()
    def _encode(self, pixels_LCPP: torch.Tensor) -> npt.NDArray[np.float32]:
        """(L, D) features."""
        mixed = self._precision != torch.float32
        try:
            with torch.autocast(self._device.type, self._precision if mixed else None, enabled=mixed):
                features_LD = self._encoder(pixels_LCPP.to(self._device, non_blocking=True)).float().cpu()
            return np.asarray(features_LD.numpy(), np.float32)
        except (AssertionError, RuntimeError) as error:
            size_px, said = pixels_LCPP.shape[-1], one_line(error)
            raise ConfigError(
                f"encoder {self.made['encoder']} fails on {len(pixels_LCPP)} patches of {size_px} px: {said}; tile at "
                "the size it takes, or give a smaller --batch if memory ran out"
            ) from error

    def speed(self) -> str:
        """Patches per second so far, and the share of the time spent waiting for pixels."""
        if not self._seconds:
            return "nothing to embed"
        rate = self.num_patches / self._seconds
        of_rate = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
        return f"{of_rate} patches/s, {self._waited / self._seconds:.0%} waiting for pixels"

    def close(self) -> None:
        """End the reader's threads."""
        self._reader.close()


def write_tensor(path: Path, rows: Path) -> None:
    """Write all rows of a file of features as one (N, D) float32 tensor, as CLAM's training reads them.

    Raises:
        OutputError: If it cannot be written.
    """
    features, buffer = FeatureFile(rows), io.BytesIO()
    torch.save(torch.from_numpy(features.patches(range(len(features)))), buffer)
    with written_whole(path) as partial:
        partial.write_bytes(buffer.getbuffer())


def encoder_fingerprint(encoder: PatchEncoder) -> str:
    """16 hexadecimal digits from the names, types and bytes of all weights, and from mean and deviation of the pixels.

    It tells two runs' encoders apart that have the same name, and knows one again wherever its weights came from.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in [*encoder.state_dict().items(), ("mean", encoder.mean), ("std", encoder.std)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
