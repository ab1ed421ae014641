"""JPEG patches decoded in batches through torchvision: what the threads decode, on a GPU within a tolerance."""

import numpy as np
import pytest
import simplejpeg
import torch

from wsi_dbps.bags.bags import PatchReader
from wsi_dbps.bags.gpu_decode import coded_as_rgb, decode_jpegs, pick_decoder
from wsi_dbps.core.errors import CacheError, ConfigError
from wsi_dbps.formats.patch_cache import PatchCache
from wsi_dbps.slides.jpeg_tiles import JpegLevel

# Deprecated in torchvision since 0.29; when it goes, `pick_decoder` says that there is no such decoder.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MEAN_TOLERANCE = {"cpu": 0.0, "cuda": 2.0}
"""Grey levels by which decoders may differ on average: a GPU may round, and enlarge chroma, in another way."""


def picture(seed: int, side: int = 64) -> np.ndarray:
    """Smooth colours with some texture, as tissue has."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(90, 230, (1, 3, 8, 8)))
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.clip(smooth + rng.normal(0, 6, (side, side, 1)), 0, 255), np.uint8)


def rgb_coded(pixels: np.ndarray) -> bytes:
    """A JPEG whose three components are red, green and blue, as some scanners store it, completed by the tiler."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0, keep_rgb=True)
    level = JpegLevel(None, None, pixels.shape[0], None, None, b"", rgb=True, jfif_wins=False)
    return level.complete(file.getvalue())


def by_threads(jpegs: list[bytes]) -> torch.Tensor:
    return torch.from_numpy(np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize("device", DEVICES)
def test_both_decoders_agree_within_the_tolerance(device, subsampling) -> None:
    jpegs = [simplejpeg.encode_jpeg(picture(i), 90, colorsubsampling=subsampling) for i in range(5)]
    found = decode_jpegs(jpegs, torch.device(device))
    assert (found.dtype, found.shape, found.device.type) == (torch.uint8, (5, 3, 64, 64), device)
    off = (found.cpu().float() - by_threads(jpegs).float()).abs().mean()
    assert off <= MEAN_TOLERANCE[device]


@pytest.mark.parametrize("device", DEVICES)
def test_patches_coded_as_rgb_have_their_colours_among_others(device) -> None:
    red = np.zeros((64, 64, 3), np.uint8) + np.array([220, 30, 40], np.uint8)
    jpegs = [simplejpeg.encode_jpeg(picture(0)), rgb_coded(red), simplejpeg.encode_jpeg(picture(1))]
    assert [coded_as_rgb(jpeg) for jpeg in jpegs] == [False, True, False]
    found = decode_jpegs(jpegs, torch.device(device)).cpu()
    assert (found[1].float().mean((1, 2)) - torch.tensor([220.0, 30, 40])).abs().max() < 3
    assert (found[[0, 2]].float() - by_threads(jpegs)[[0, 2]].float()).abs().mean() <= MEAN_TOLERANCE[device]
    assert torch.equal(decode_jpegs(jpegs[1:2], torch.device(device)).cpu(), by_threads(jpegs[1:2]))


def test_ycbcr_tiles_of_a_scanner_are_left_to_the_gpu() -> None:
    jpeg = rgb_coded(picture(2))
    place = jpeg.index(b"Adobe") + 11
    assert not coded_as_rgb(jpeg[:place] + b"\1" + jpeg[place + 1 :])


@pytest.mark.parametrize("device", DEVICES)
def test_a_reader_that_decodes_in_batches_hands_out_the_ids_asked_for(caches, device) -> None:
    cache, reader = PatchCache(caches / "slide_05.h5"), PatchReader(2, gpu=torch.device(device))
    lists = [torch.tensor([3, 1]), torch.tensor([7, 30, 0, 12, 5])]
    read = list(reader.read(cache, lists))
    reader.close()
    for ids, found in zip(lists, read, strict=True):
        wanted = torch.from_numpy(cache.patches(ids.tolist())).permute(0, 3, 1, 2)
        # noise, not tissue: a GPU that spreads chroma otherwise may be further off, but not on another patch
        assert (found.cpu().float() - wanted.float()).abs().mean() <= 10 * MEAN_TOLERANCE[device]


class WithoutPictures(PatchCache):
    """A cache whose patches have the right checksums and are no JPEGs."""

    def jpegs(self, ids):
        return [b"\xff\xd8 no picture" for _ in ids]


def test_a_patch_that_cannot_be_decoded_names_its_cache(caches) -> None:
    cache, reader = WithoutPictures(caches / "slide_05.h5"), PatchReader(1, gpu=CPU)
    with pytest.raises(CacheError, match=r"slide_05.h5: patches \[4\] .* cannot be decoded on cpu: .*decode = 'cpu'"):
        list(reader.read(cache, [torch.tensor([4])]))
    reader.close()


def test_the_decoder_is_chosen_by_what_is_there() -> None:
    assert pick_decoder("cpu", CPU) is None
    assert pick_decoder("auto", CPU) is None
    with pytest.raises(ConfigError, match=r"training.decode = 'gpu': this run is on cpu; set it to 'cpu' or 'auto'"):
        pick_decoder("gpu", CPU)
