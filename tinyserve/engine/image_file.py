"""A picture as a request brings it: the bytes of a file, of which only the header has been read.

It decides which files are accepted, and how large a picture may be, before a single pixel is decoded. When they are
decoded is image_encoder.py's business; what is done with the pixels, transparency too, models/image_pixels.py's.
"""

import io
from dataclasses import dataclass, field
from hashlib import blake2b

from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # no other decoder of Pillow's sees a byte
MAX_PIXELS = 64_000_000  # 256 MB as Pillow keeps them, four times that while transparency is laid over white
MAX_SIDE = 16_384  # px
MAX_SCANS = 100  # of a JPEG file: decoding walks every block once for each, however few bytes it has; usual are 1 to 16
MAX_EXIF_PARTS = 16  # of a JPEG file: Pillow strings them together, each time anew
_DIGEST_BYTES = 16

# EXIF: how the stored picture has to be turned to stand upright (the standard's tag 274)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class ImageError(ValueError):
    """The bytes are no picture that can be used; the text says why."""


@dataclass(frozen=True)
class ImageFile:
    data: bytes = field(repr=False)
    digest: bytes  # of the data: the same file is the same picture
    width: int  # px, as the picture is shown
    height: int
    orientation: int = 1  # EXIF's

    @classmethod
    def read(cls, data: bytes) -> "ImageFile":
        """Reads the header.

        Raises:
            ImageError: it is none of FORMATS, or too large.
        """
        # Inside a scan a byte 0xff is never followed by a marker's, so that counting finds little but markers.
        if data.startswith(b"\xff\xd8") and (
            data.count(b"\xff\xda") > MAX_SCANS or data.count(b"Exif\0\0") > MAX_EXIF_PARTS
        ):
            raise ImageError(f"is a JPEG file of more than {MAX_SCANS} scans or {MAX_EXIF_PARTS} parts of EXIF")
        image = _open(data)
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise ImageError(
                f"has {width} x {height} = {width * height} pixels; at most {MAX_PIXELS} are accepted, and {MAX_SIDE} "
                "on a side"
            )
        orientation = _orientation(image)
        if orientation in _SIDEWAYS:
            width, height = height, width
        return cls(data, blake2b(data, digest_size=_DIGEST_BYTES).digest(), width, height, orientation)

    def decode(self) -> Image.Image:
        """The picture, upright, in the mode of the file; of an animation its first frame.

        Raises:
            ImageError: the file is truncated or damaged.
        """
        image = _open(self.data)
        try:
            image.load()
            picture = image.transpose(_TURNS[self.orientation]) if self.orientation in _TURNS else image
        except MemoryError:
            raise
        except Exception as error:  # each decoder has its own exceptions for damaged files
            raise ImageError(f"cannot be decoded, the file is damaged or truncated: {error}") from error
        if picture.size != (self.width, self.height):
            raise ImageError(f"is {picture.width} x {picture.height} pixels, not what the file's header says")
        return picture


def _open(data: bytes) -> Image.Image:
    allowed = ", ".join(FORMATS)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow's own limits, above ours
        raise ImageError(f"has far more than the {MAX_PIXELS} pixels that are accepted") from None
    except MemoryError:
        raise
    except Exception as error:
        start = data[:16]
        raise ImageError(f"is not a readable image of the formats {allowed}: it begins with {start!r}") from error


def _orientation(image: Image.Image) -> int:
    try:
        # The base class's: that of PNG files decodes the picture to look for what may stand behind it.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata are no reason to refuse a picture
        return 1
