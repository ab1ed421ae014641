"""What synthetic tissue looks like."""

from __future__ import annotations

from wsi_dbps.config import settings
from wsi_dbps.errors import ConfigError


@settings
class TissueSpec:
    """The look of synthetic H&E. Lengths in µm; shares are of the tissue's area."""

    lesion_share_min: float = 0.3
    """Least share of a positive slide's tissue that is lesion."""
    lesion_share_max: float = 0.4
    """Largest share of a positive slide's tissue that is lesion."""
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
        if not 0 < self.lesion_share_min <= self.lesion_share_max <= 0.5:
            raise ConfigError(
                "lesion_share_min and lesion_share_max must rise between 0 and 0.5, "
                f"found {self.lesion_share_min:g} and {self.lesion_share_max:g}"
            )
        for name in ("cell_um", "lymphocyte_um", "epithelium_um", "lesion_nucleus_um"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, found {getattr(self, name):g}")
        for name in ("stain_variation", "noise_level"):
            if not 0 <= getattr(self, name) <= 4:
                raise ConfigError(f"{name} must be 0 to 4, found {getattr(self, name):g}")
