"""Models of timm by name, with their weights from its hub or its cache."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from wsi_dbps.core.errors import ConfigError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsi_dbps.models.settings import EncoderConfig

_HUB_SECONDS: Final = 5
"""How long Hugging Face may take to answer at all."""


def timm_model(config: EncoderConfig, *, fetch: bool) -> Any:
    """A model of timm without its classifier.

    Args:
        config: Settings, with the model's name.
        fetch: Start from timm's weights, from its cache or its hub; else from random ones.

    Raises:
        ConfigError: If timm has no such model, or its weights, or a hub model's architecture, cannot be fetched.
    """
    import timm

    from_hub = config.name.startswith(("hf-hub:", "hf_hub:"))
    if not from_hub and not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name}*")[:5]
        hint = f"; there are {', '.join(near)}" if near else "; see timm.list_models()"
        raise ConfigError(f"[encoder] name: timm {timm.__version__} has no model {config.name!r}{hint}, or small_gn")
    if not (fetch or from_hub):  # of a model on the hub the architecture is fetched too
        return timm.create_model(config.name, num_classes=0)
    with _hub_asked_once() as out_of_reach:
        try:
            return timm.create_model(config.name, pretrained=fetch, num_classes=0)
        except Exception as error:
            said = f"{type(error).__name__}: {one_line(error)}"
            if out_of_reach and "LocalEntryNotFound" in said:
                said = out_of_reach
            raise ConfigError(
                f"[encoder] weights of {config.name} cannot be fetched ({said}); "
                "without a network give a file as encoder.weights, or set encoder.pretrained = false to start from "
                "random weights"
            ) from error


@contextmanager
def _hub_asked_once() -> Iterator[str]:
    """Yield what keeps Hugging Face out of reach, empty where nothing does; meanwhile it logs nothing but errors.

    Where it is out of reach, its cache alone is used: by itself huggingface_hub tries for 48 seconds, with 12 lines.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, logging  # type: ignore[attr-defined]

    offline, level, out_of_reach = constants.HF_HUB_OFFLINE, logging.get_verbosity(), ""
    if not offline:
        try:
            get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)  # any answer will do
        except Exception as error:  # requests' or httpx's, by the version
            said = one_line(error) or type(error).__name__
            cache = f"and they are not in the cache {constants.HF_HUB_CACHE}"
            out_of_reach = f"{constants.ENDPOINT} cannot be reached: {said}; {cache}"
    try:
        constants.HF_HUB_OFFLINE = offline or bool(out_of_reach)
        logging.set_verbosity_error()
        yield out_of_reach
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(level)
