"""Settings of a training run: the tables and keys of run.toml."""

from __future__ import annotations

import re
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final, Literal

from wsi_dbps.core.settings import build, check_ranges, settings
from wsi_dbps.formats.patch_filter import PatchFilter
from wsi_dbps.models.settings import AggregatorConfig, EncoderConfig, SelectionConfig, with_preset

if TYPE_CHECKING:
    from collections.abc import Mapping


@settings
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 1e-4
    """Peak learning rate of the aggregator."""
    encoder_lr: float | None = None
    """Peak learning rate of the encoder; None: the same as `lr`."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls from each layer of the encoder to the one below it; 1: all layers have
    the same rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and filters; norms, biases and the query have none."""
    warmup: float = 0.1
    """Fraction of the steps over which the learning rate rises to its peak."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of a step; larger gradients are scaled down. 0: no limit."""

    def __post_init__(self) -> None:
        for name in ("lr", "encoder_lr"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, found {value}")
        for name in ("weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, found {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], found {self.layer_decay}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), found {self.warmup}")
        check_ranges(self, lr=(0, 1000), encoder_lr=(0, 1000), weight_decay=(0, 1000), clip_norm=(0, 10**9))


@settings
class AugmentationConfig:
    """Random changes to salient patches in training; selection and prediction see the pixels unchanged."""

    flips: bool = True
    """Flip each patch horizontally at random."""
    turns: bool = True
    """Rotate each patch by a random multiple of 90 degrees."""
    stain_jitter: float = 0.05
    """Largest random change of the haematoxylin, eosin and residual stain of each patch: each is multiplied by
    a factor of 1 +- this, and shifted by +- a tenth of this in optical density (0.05 is light, 0.2 strong, by Tellez et
    al. 2018). 0: no change."""

    def __post_init__(self) -> None:
        if not 0 <= self.stain_jitter < 1:
            raise ValueError(f"stain_jitter must lie in [0, 1), found {self.stain_jitter}")


@settings
class LoopConfig:
    """How long a run trains, on which device, and which epoch is kept."""

    epochs: int = 40
    """Number of epochs; each visits every training slide once."""
    batch_slides: int = 4
    """Slides per batch; several processes share them."""
    accumulate: int = 1
    """Number of batches whose gradients are averaged for one optimizer step."""
    classes: tuple[str, ...] | None = None
    """The labels in order, such as `["wildtype", "mutant"]`. Of two, the second is the positive class. The first is the
    class of slides without lesions. None: ordered by value if all are numbers, else by name."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: the loss of a slide is weighted inversely to the number of training slides of its class."""
    monitor: Literal["auroc", "loss"] = "auroc"
    """What the best epoch is chosen by, on the validation slides; ties of the AUROC are broken by the loss."""
    patience: int | None = None
    """Stop after this many epochs without a better one; None: train all epochs."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward pass. `auto`: bf16 if the GPU supports it, else fp32."""
    device: str = "auto"
    """`auto`: the first GPU if there is one, else the CPU; or the name of a torch device."""
    decode_threads: int = 2
    """Number of threads that decode JPEG patches."""
    decode: Literal["auto", "cpu", "gpu"] = "cpu"
    """Where JPEG patches are decoded. `gpu`: by nvJPEG through torchvision, in batches; `auto`: so if the device can,
    else by the threads. The two may differ by up to 2 grey levels on average (the tests' tolerance; not yet run on a
    GPU); RGB-coded JPEGs are always decoded by the CPU."""
    vram: str | None = None
    """GPU memory that the run may use, such as `12G`: training stops with an error if a step needs over 15 % more. Not
    for CPUs; None: no limit."""
    seed: int = 0
    """Random seed of everything: initial weights, order of slides, random drop, dropout and augmentation."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, for instance 0.999. The average is then validated and kept
    in best.pt. 0: no average."""
    save_every_minutes: float = 10.0
    """last.pt is also written within an epoch, when this many minutes have passed; 0: after every step."""
    record: bool = True
    """Write which patches were selected at each visit, and their logits: docs/formats/selection-record.md."""
    deterministic: bool = False
    """Use only deterministic algorithms of torch: two runs on one GPU are then equal, and slower."""
    compile: bool = False
    """Compile the encoder with torch.compile; its benefit has not been measured here on a GPU."""
    wait_minutes: float = 30.0
    """With several processes: how many minutes one waits for the others before it gives up."""

    def __post_init__(self) -> None:
        if self.classes is not None and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError(f"classes must be two different labels or more, found {', '.join(self.classes) or 'none'}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), found {self.ema}")
        if not self.save_every_minutes >= 0:
            raise ValueError(f"save_every_minutes must be at least 0, found {self.save_every_minutes}")
        if not self.wait_minutes > 0:
            raise ValueError(f"wait_minutes must be above 0, found {self.wait_minutes}")
        for name in ("epochs", "batch_slides", "accumulate", "decode_threads", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        count, year = (1, 10**6), 365 * 24 * 60
        check_ranges(self, epochs=count, batch_slides=count, accumulate=count, patience=count)
        check_ranges(self, decode_threads=(1, 1024), seed=(0, 2**32 - 1))
        check_ranges(self, save_every_minutes=(0, year), wait_minutes=(0.01, year))
        if self.vram is not None:
            size_bytes(self.vram)


@settings
class RunConfig:
    """All settings of a run; with the cohort and the caches they determine it."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    patches: PatchFilter = field(default_factory=PatchFilter)
    training: LoopConfig = field(default_factory=LoopConfig)


def build_run_config(tables: Mapping[str, Any], source: str) -> RunConfig:
    """The settings of a run from TOML tables, presets filled in.

    Raises:
        ConfigError: Naming every unknown, wrong or contradictory setting.
    """
    return build(RunConfig, with_preset(tables, source), source)


_UNITS: Final = {"G": 1 << 30, "M": 1 << 20}


def size_bytes(text: str) -> int:
    """Parse a size of memory, in bytes; G and M are powers of 1024.

    Raises:
        ValueError: If it is not a number above 0 with G or M (or GiB, MiB).

    Examples:
        >>> size_bytes("12G") == 12 * 1024**3, size_bytes("1.5 MiB")
        (True, 1572864)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([GM])(?:iB|B)?", text.strip(), re.I)
    if not found or not 0 < float(found[1]) < 1e9:
        raise ValueError(f"write it as 12G or 800M, found {text[:50]!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def as_size(num_bytes: float) -> str:
    """A number of bytes as text, in GiB or MiB.

    Examples:
        >>> as_size(12 * 2**30), as_size(3_000_000)
        ('12.00 GiB', '2.9 MiB')
    """
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
