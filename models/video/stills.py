"""Still images through the same door as videos: one upright frame."""

from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from infra.errors import TypedError
from models.video.container import check_pixels
from models.video.errors import Corrupt, OutOfMemory, TooManyPixels, Truncated
from models.video.frames import Frame, SampledFrames
from models.video.limits import DecodeLimits
from models.video.sampling import FramePolicy, scaled_size

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP")
CODECS = {"JPEG": "mjpeg", "MPO": "mjpeg", "PNG": "png", "WEBP": "webp"}


def is_still(source: BinaryIO) -> bool:
    """Do the first bytes say JPEG, PNG or WebP? The name is not looked at."""
    source.seek(0)
    head = source.read(16)
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def decode_still(source: BinaryIO, policy: FramePolicy, limits: DecodeLimits, name: str) -> SampledFrames:
    """The image as a video of one frame: EXIF orientation applied, alpha dropped, scaled as the policy says.

    Raises:
        TypedError: whatever the source raised.
        TooManyPixels: more pixels than the limit, told before they are allocated.
        Truncated: the file ends inside the image.
        Corrupt: the image cannot be decoded.
    """
    from PIL import Image, ImageOps  # a tenth of a second that processes which see only videos do not pay

    try:
        source.seek(0)
        with Image.open(source, formats=FORMATS) as image:
            check_pixels(image.width, image.height, limits, name)
            image.verify()  # checksums, where the format has any; the image has to be opened again
        source.seek(0)
        with Image.open(source, formats=FORMATS) as image:
            codec = CODECS[image.format or ""]
            upright = _as_rgb(ImageOps.exif_transpose(image))
    except TypedError:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"{name}: not enough memory to decode") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixels(f"{name}: {error}") from error
    except Exception as error:
        # Broken images make Pillow raise anything from OSError to struct.error and KeyError, and it has no class of its
        # own for a file that ends early.
        if "truncated" in str(error).lower():
            raise Truncated(f"{name}: {error}") from error
        raise Corrupt(f"{name}: the image cannot be decoded ({type(error).__name__}: {error})") from error
    width, height = upright.size
    scaled = upright.resize(scaled_size(width, height, policy.short_side), Image.Resampling.BILINEAR)
    frames = (Frame(np.array(scaled), 0, 0.0),) if 0 in policy.wanted() else ()
    return SampledFrames(frames, width, height, None, codec)


def _as_rgb(image: "Image") -> "Image":
    """The image in RGB, its alpha dropped."""
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")  # else Pillow warns about palettes with transparency
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow would clip at 255 instead of scaling.
        return image.point(lambda value: value / 256, "L").convert("RGB")
    return image.convert("RGB")
