"""Settings of the model: which encoder, which patches are selected, how they are pooled."""

from __future__ import annotations

from typing import Any, Final, Literal

from wsi_dbps.config import settings
from wsi_dbps.errors import ConfigError


@settings
class EncoderConfig:
    """The network that turns a patch into an embedding."""

    name: str = "resnet18"
    """`small_gn` (group norm, for training from scratch on a CPU), any timm model's name (`hf-hub:owner/model` too), or
    `projector`, for bags of features: a linear layer and layer norm."""
    pretrained: bool = True
    """Start from timm's weights, fetched from its hub or its cache; ignored where `weights` is given."""
    weights: str | None = None
    """A local weights file (.pth, .pt, .bin or .safetensors) to start from."""
    weights_match: Literal["name", "order"] = "name"
    """How a file's tensors find the encoder's: by name, or, where the names differ, one after the other by shape."""
    dim: int | None = None
    """Size of the embedding; None keeps the encoder's own (for `projector` the features'), a number adds a linear
    projection and layer norm."""
    num_features: int | None = None
    """For `projector`: size of the features; where absent, that of the bags."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """`frozen` keeps the running statistics of the pretrained encoder. `train` lets them follow the salient patches,
    and then applies them to all: a feedback loop that the method's authors do not discuss."""


@settings
class SelectionConfig:
    """Which patches of a bag are encoded with gradient, which are recycled. Symbols: docs/method.md."""

    preset: Literal["dbps", "ips", "random", "full"] = "dbps"
    """Member of the family; it fixes what makes it that member, see `PRESETS`."""
    num_salient: int = 16
    """M, patches in the fundamental buffer: encoded with gradient."""
    num_subsalient: int = 64
    """S, embeddings in the auxiliary buffer: encoded without gradient and recycled."""
    selector: Literal["streaming", "global", "random", "all"] = "streaming"
    """How the buffers are filled in training."""
    predict_selector: Literal["streaming", "global", "random", "all"] = "global"
    """How they are filled in validation and prediction."""
    drop_rate: float = 0.0
    """r, share of the other patches dropped at random at each training visit, before any is read."""
    num_kept: int | None = None
    """N', at most this many patches at each training visit, in place of `drop_rate`."""
    chunk_size: int = 64
    """L, patches encoded at once without gradient."""
    exploration: float = 0.0
    """First share of training over which the chance that a visit fills the buffers at random falls from 1 to 0: until
    the encoder has learnt anything, its own attention is a poor guide."""

    def __post_init__(self) -> None:
        for name, least in (("num_salient", 1), ("num_subsalient", 0), ("chunk_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate must lie in [0, 1), found {self.drop_rate}")
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration must lie in 0 .. 1, found {self.exploration}")
        if self.num_kept is not None and self.drop_rate > 0:
            raise ValueError("give num_kept or drop_rate, not both")
        if self.num_kept is not None and self.num_kept < self.num_salient:
            raise ValueError(f"num_kept must be at least num_salient = {self.num_salient}, found {self.num_kept}")


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "full": {"selector": "all", "predict_selector": "all", "num_subsalient": 0},
    "random": {"selector": "random", "predict_selector": "random", "num_subsalient": 0},
    "ips": {"num_subsalient": 0},
    "dbps": {},
}
"""What each preset fixes: plain end-to-end learning on every patch; M at random; selection without recycling; both."""


def with_preset(selection: dict[str, Any], source: str) -> dict[str, Any]:
    """The `[selection]` table with what its preset fixes filled in.

    Raises:
        ConfigError: If the table sets one of these to something else, or the preset is unknown.

    Examples:
        >>> with_preset({"preset": "ips"}, "run.toml")
        {'preset': 'ips', 'num_subsalient': 0}
    """
    preset = selection.get("preset", "dbps")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"{source}: [selection] preset: there are {', '.join(PRESETS)}, found {preset!r}")
    for key, value in PRESETS[preset].items():
        if selection.get(key, value) != value:
            raise ConfigError(
                f"{source}: [selection] {key} = {selection[key]!r} contradicts preset {preset!r}, which fixes {value!r}"
            )
    return selection | PRESETS[preset]


@settings
class AggregatorConfig:
    """How the embeddings of a bag become one slide-level output."""

    name: Literal["dual", "concat"] = "dual"
    """`dual`: salient patches make the query that pools the recycled ones (the published method). `concat`: one
    attention over both."""
    num_heads: int = 8
    """H; divides the embedding size."""
    dropout: float = 0.1
    """Share of units dropped in training, after each pooling and after the inner layer."""

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads must be at least 1, found {self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), found {self.dropout}")
