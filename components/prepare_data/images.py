"""Decodes every image in full and brings it to what all image libraries read alike: upright 8-bit RGB JPEG or PNG."""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from yolo_distill.components.prepare_data.findings import Kind
from yolo_distill.components.shared.errors import InputError

# Smaller images carry nothing for a detector whose coarsest cells are 32 pixels; ultralytics refuses them too.
_SMALLEST_SIDE = 10
_JPEG_QUALITY = 95
_UPRIGHT = 1


class ImageError(ValueError):
    """An image that cannot be used.

    Args:
        kind: What is wrong with it, for the report.
        detail: More about it.
    """

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class ImageFacts:
    """What a full decoding of an image shows.

    Attributes:
        width: Pixels, upright.
        height: Pixels, upright.
        suffix: ``.jpg`` or ``.png``, the format that it is stored in.
        changes: Why it is not stored byte for byte; empty when it is.
        pixels_sha256: Digest of the upright 8-bit RGB pixels: equal images have equal ones, whatever their files say.
        file_sha256: Digest of the file that was decoded.
    """

    width: int
    height: int
    suffix: str
    changes: tuple[tuple[Kind, str], ...]
    pixels_sha256: str
    file_sha256: str


def inspect(path: Path) -> ImageFacts:
    """Decode an image.

    Args:
        path: The file; its content decides about the format, not its name.

    Raises:
        ImageError: It cannot be decoded in full, or has too many or too few pixels.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(Kind.UNREADABLE_IMAGE, f"cannot be read: {error.strerror}") from error
    pixels, changes, jpeg = decode_image(data)
    return ImageFacts(
        width=pixels.width,
        height=pixels.height,
        suffix=".jpg" if jpeg else ".png",
        changes=changes,
        pixels_sha256=hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest(),
        file_sha256=hashlib.sha256(data).hexdigest(),
    )


def stored_bytes(path: Path, facts: ImageFacts) -> bytes:
    """Return the image file that goes into the dataset.

    An upright 8-bit RGB JPEG or PNG is taken byte for byte. Others are encoded anew: as JPEG where they came as JPEG,
    else as PNG, which loses nothing.

    Args:
        path: The file.
        facts: What :func:`inspect` found.

    Raises:
        InputError: The file was changed since.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != facts.file_sha256:
        raise InputError(path, "was changed while the data were prepared", "Prepare them again")
    if not facts.changes:
        return data
    pixels, _, jpeg = decode_image(data)
    buffer = io.BytesIO()
    if jpeg:
        pixels.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        pixels.save(buffer, "PNG")
    return buffer.getvalue()


def upright_size(path: Path) -> tuple[int, int] | None:
    """Return an image's width and height as it is looked at, from its header only; ``None`` when it has no header."""
    try:
        with Image.open(path) as image:
            lying = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT) in range(5, 9)
            return (image.height, image.width) if lying else image.size
    except Exception:  # as in decode_image
        return None


@contextmanager
def strict_pixel_limit() -> Iterator[None]:
    """Within the block, let Pillow refuse images so large that they may be decompression bombs, not only warn.

    Enter it once and not in each thread: Python's warning filters are shared by all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(data: bytes) -> tuple[Image.Image, tuple[tuple[Kind, str], ...], bool]:
    """Decode an image in full.

    Args:
        data: The file's content.

    Returns:
        The upright 8-bit RGB pixels, what was changed to get them, and whether the file is a JPEG.

    Raises:
        ImageError: It cannot be decoded, or has too many or too few pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if min(image.size) < _SMALLEST_SIDE:
                raise ImageError(Kind.TINY_IMAGE, f"{image.width}x{image.height} pixels")
            deep = any(";16" in str(tile.args) for tile in image.tile)
            image.load()
            if image.mode in {"I", "F"}:
                raise ImageError(Kind.UNREADABLE_IMAGE, "has 32 bits a channel; store it with 8 or 16")
            # Phones write JPEGs that hold further pictures, which Pillow calls MPO.
            jpeg = image.format in {"JPEG", "MPO"}
            changes = []
            if not jpeg and image.format != "PNG":
                changes.append((Kind.CONVERTED_IMAGE, f"{image.format} file"))
            if deep or image.mode != "RGB":
                changes.append((Kind.CONVERTED_IMAGE, "16 bits a channel" if deep else f"mode {image.mode}"))
            orientation = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
            pixels = _high_bytes(data) if deep else image.convert("RGB")
            if orientation in range(2, 9):
                changes.append((Kind.TURNED_IMAGE, f"EXIF orientation {orientation}"))
                pixels.getexif()[ExifTags.Base.Orientation] = orientation
                pixels = ImageOps.exif_transpose(pixels)
            return pixels, tuple(changes), jpeg
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"more than {(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
        raise ImageError(Kind.OVERSIZED_IMAGE, f"has {limit}") from error
    except UnidentifiedImageError as error:
        raise ImageError(Kind.UNREADABLE_IMAGE, "cannot be decoded: its beginning is of no known format") from error
    # Decoders raise whatever comes up on broken bytes: OSError, SyntaxError, ValueError, struct.error, …
    except Exception as error:
        raise ImageError(Kind.UNREADABLE_IMAGE, f"cannot be decoded: {error}") from error


def _high_bytes(data: bytes) -> Image.Image:
    """Return the upper 8 of an image's 16 bits a channel; Pillow would clip grey values above 255 to white."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
