"""Settings of the model: which encoder, which patches are selected, how they are pooled."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.settings import check_ranges, settings

if TYPE_CHECKING:
    from collections.abc import Mapping


@settings
class EncoderConfig:
    """The network that turns a patch into an embedding."""

    name: str = "resnet18"
    """`small_gn` (group norm, for training from scratch on a CPU), any timm model's name (`hf-hub:owner/model` too), or
    `projector`, for bags of features: a linear layer and layer norm."""
    pretrained: bool = True
    """Start from timm's weights, fetched from its hub or its cache; ignored where `weights` is given."""
    weights: str | None = None
    """A local weights file (.pth, .pt, .bin or .safetensors) to start from. It must fit whole: only a classifier head
    may be left over."""
    weights_match: Literal["name", "order"] = "name"
    """How a file's tensors find the encoder's: by name, or, where the names differ, one after the other by shape."""
    dim: int | None = None
    """Size of the embedding; None keeps the encoder's own (for `projector` the features'), a number adds a linear
    projection and layer norm."""
    num_features: int | None = None
    """For `projector`: size of the features; where absent, that of the bags."""
    batch_norm: Literal["frozen", "train", "group"] = "frozen"
    """`frozen` keeps the running statistics of the pretrained encoder. `train` lets them follow the salient patches,
    and then applies them to all: a feedback loop that the method's authors do not discuss. `group` puts group norm in
    their place, for training from random weights."""

    def __post_init__(self) -> None:
        check_ranges(self, dim=(1, 65_536), num_features=(1, 65_536))


@settings
class SelectionConfig:
    """Which patches of a bag are salient (encoded with gradient) and which sub-salient. Symbols: docs/method.md."""

    preset: Literal["dbps", "dbps+", "ips", "random", "full"] = "dbps"
    """Member of the family; it fixes what makes it that member, see `PRESETS`."""
    num_salient: int = 16
    """M, patches in the salient buffer (the paper's fundamental buffer): encoded with gradient."""
    num_subsalient: int | Literal["all"] = 64
    """S, patches in the sub-salient buffer (the paper's auxiliary buffer): encoded without gradient, and pooled with
    the salient. `all`: every kept patch that is not salient."""
    subsalient_grad: Literal["none", "exact"] = "none"
    """`none`: the encoder learns from the salient patches alone (the published method). `exact`: from the sub-salient
    too, which are encoded and back-propagated in parts: the gradient of M + S patches in the memory of M."""
    selector: Literal["streaming", "global", "sampled", "random", "all"] = "streaming"
    """How the buffers are filled in training. `sampled`: half of the salient drawn among the M of highest score, the
    rest among the others."""
    predict_selector: Literal["streaming", "global", "random", "all"] = "global"
    """How they are filled in validation and prediction."""
    temperature: float = 1.0
    """Temperature of the draws of `sampled`: chances are in proportion to score ** (1 / temperature)."""
    drop_rate: float = 0.0
    """r, fraction of the other patches that are dropped at random at each training visit, before any is read."""
    num_kept: int | None = None
    """N', at most this many patches at each training visit, in place of `drop_rate`."""
    chunk_size: int = 64
    """L, patches encoded at once without gradient."""
    exploration: float = 0.0
    """Fraction of training over which exploration decays linearly from 1 to 0: until the encoder has learnt anything,
    its own attention is a poor guide."""
    exploration_kind: Literal["random", "gumbel"] = "random"
    """What decays: the chance that a visit fills the buffers at `random`, or the scale of `gumbel` noise on the logits
    that patches are ranked by (at scale 1 a draw in proportion to attention)."""

    def __post_init__(self) -> None:
        for name, least in (("num_salient", 1), ("num_subsalient", 0), ("chunk_size", 1)):
            if (value := getattr(self, name)) != "all" and value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}")
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature must be above 0 and finite, found {self.temperature}")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate must lie in [0, 1), found {self.drop_rate}")
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration must lie in 0 .. 1, found {self.exploration}")
        most = 10**9  # patches of a bag
        check_ranges(self, num_salient=(1, most), num_subsalient=(0, most), num_kept=(1, most), chunk_size=(1, most))
        if self.num_kept is not None and self.drop_rate > 0:
            raise ValueError("give num_kept or drop_rate, not both")
        if self.num_kept is not None and self.num_kept < self.num_salient:
            raise ValueError(f"num_kept must be at least num_salient = {self.num_salient}, found {self.num_kept}")

    @property
    def most_subsalient(self) -> int | None:
        """S; None where every patch that is not salient is sub-salient."""
        return None if self.num_subsalient == "all" else self.num_subsalient


PRESETS: Final[dict[str, dict[str, Any]]] = {
    "full": {
        "selection.selector": "all",
        "selection.predict_selector": "all",
        "selection.num_subsalient": 0,
    },
    "random": {
        "selection.selector": "random",
        "selection.predict_selector": "random",
        "selection.num_subsalient": 0,
    },
    "ips": {"selection.num_subsalient": 0},
    "dbps": {},
    "dbps+": {
        "selection.selector": "sampled",
        "selection.predict_selector": "global",
        "selection.num_subsalient": "all",
        "aggregator.name": "abmilx",
    },
}
"""What each preset fixes. `full`: plain end-to-end learning on every patch. `random`: M patches at random. `ips`:
selection without sub-salient patches. `dbps`: nothing. `dbps+`: triple sampling, all others sub-salient, ABMILX."""


def with_preset(tables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The tables of a run with what `[selection] preset` fixes filled in.

    Raises:
        ConfigError: If a table sets one of these to something else, or the preset is unknown.

    Examples:
        >>> with_preset({"selection": {"preset": "ips"}}, "run.toml")
        {'selection': {'preset': 'ips', 'num_subsalient': 0}}
    """
    filled = dict(tables)
    selection = filled.get("selection", {})
    preset = selection.get("preset", "dbps") if isinstance(selection, dict) else "dbps"
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"{source}: [selection] preset: there are {', '.join(PRESETS)}, found {preset!r}")
    for setting, value in PRESETS[preset].items():
        name, _, key = setting.partition(".")
        table = filled.get(name, {})
        if not isinstance(table, dict):
            continue  # refused with every other wrong type when the settings are built
        if table.get(key, value) != value:
            raise ConfigError(
                f"{source}: [{name}] {key} = {table[key]!r} contradicts preset {preset!r}, which fixes {value!r}"
            )
        filled[name] = {**table, key: value}
    return filled


@settings
class AggregatorConfig:
    """How the embeddings of a bag become one slide-level output."""

    name: Literal["dual", "concat", "abmil", "abmilx"] = "dual"
    """`dual`: salient patches make the query that pools the sub-salient ones (the published method). `concat`: one
    attention over both. `abmil`: gated attention over both. `abmilx`: that with several heads, each patch's attention
    refined by that of the patches like it."""
    num_heads: int = 8
    """H; divides the embedding size. `abmil` has one head whatever is set."""
    dropout: float = 0.1
    """Fraction of units dropped in training, after each pooling and after the inner layer."""
    position: Literal["none", "sinusoidal"] = "none"
    """`sinusoidal` adds each patch's place on the slide, in patch sides, to its embedding, for scoring and pooling."""

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"num_heads must be at least 1, found {self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), found {self.dropout}")
        check_ranges(self, num_heads=(1, 1024))
