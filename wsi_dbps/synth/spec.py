"""What synthetic tissue looks like."""

from __future__ import annotations

from wsi_dbps.core.errors import ConfigError
from wsi_dbps.core.settings import settings


@settings
class TissueSpec:
    """The look of synthetic H&E. Lengths in µm; shares are of the tissue's area."""

    lesion_share_min: float = 0.25
    """Least share of a positive slide's tissue that is lesion."""
    lesion_share_max: float = 0.35
    """Largest share of a positive slide's tissue that is lesion."""
    lookalike_share_min: float = 0.2
    """Least share of every slide's tissue that is benign look-alike, besides what stands in for a lesion."""
    lookalike_share_max: float = 0.3
    """Largest share of every slide's tissue that is benign look-alike."""
    cell_um: float = 32.0
    """Side of the squares that lesions are made of."""
    lymphocyte_um: float = 6.5
    """Mean diameter of a lymphocyte's nucleus."""
    epithelium_um: float = 8.5
    """Mean diameter of an ordinary epithelial nucleus."""
    lesion_nucleus_um: float = 17.0
    """Mean diameter of a lesion nucleus; single ones vary by about a fifth."""
    stain_variation: float = 1.0
    """How much slides differ in stain and scanner colour: 0 not at all, 1 as much as laboratories do."""
    noise_level: float = 2.0
    """Standard deviation of the camera noise, in 8-bit levels."""

    def __post_init__(self) -> None:
        for name in ("lesion_share", "lookalike_share"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if not 0 < low <= high <= 0.4:
                raise ConfigError(f"{name}_min and {name}_max must rise between 0 and 0.4, found {low:g} and {high:g}")
        for name in ("cell_um", "lymphocyte_um", "epithelium_um", "lesion_nucleus_um"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, found {getattr(self, name):g}")
        for name in ("stain_variation", "noise_level"):
            if not 0 <= getattr(self, name) <= 4:
                raise ConfigError(f"{name} must be 0 to 4, found {getattr(self, name):g}")
