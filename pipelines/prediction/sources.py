"""Where the pictures come from: an image, a folder of them, a video or a camera."""

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from yolo_distill.components.prepare_data.folder import IMAGE_SUFFIXES
from yolo_distill.components.prepare_data.images import ImageError, decode_image, strict_pixel_limit
from yolo_distill.components.shared.errors import InputError

# Some containers and most cameras do not know their rate.
_USUAL_RATE = 25.0
_HIGHEST_RATE = 240.0

# A video is read by FFmpeg, which would also follow a playlist that poses as one to other files and into the network.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,asf,flv,ogg,gif"
_FFMPEG_OPTIONS = {
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": f"protocol_whitelist;file|format_whitelist;{_CONTAINERS}",
    # What is wrong is said in one line of our own.
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}

Item = TypeVar("Item")


@dataclass(frozen=True)
class Picture:
    """An image, or a frame of a video.

    Attributes:
        name: The image's path relative to the folder that was given, or the video's name.
        pixels: BGR, uint8 [height, width, 3]; or why there are none.
    """

    name: str
    pixels: np.ndarray | InputError


@dataclass(frozen=True)
class ImageSource:
    """Image files.

    Attributes:
        root: The folder that names are relative to.
        paths: The files.
    """

    root: Path
    paths: list[Path]

    def __iter__(self) -> Iterator[Picture]:
        """Read one image after the other."""
        with strict_pixel_limit():
            for path in self.paths:
                name = path.relative_to(self.root).as_posix()
                try:
                    yield Picture(name, read_picture(path))
                except InputError as error:
                    yield Picture(name, error)


@dataclass(frozen=True)
class VideoSource:
    """A video file, or a camera.

    Attributes:
        name: File name, or ``camera`` and its number.
        path: The file; ``None`` for a camera.
        capture: OpenCV's reader.
        rate: Frames per second.
        frames: How many there should be; ``None`` where nobody knows.
    """

    name: str
    path: Path | None
    capture: cv2.VideoCapture
    rate: float
    frames: int | None

    def __iter__(self) -> Iterator[Picture]:
        """Read one frame after the other, upright."""
        try:
            while True:
                there, pixels = self.capture.read()
                if not there:
                    return
                yield Picture(self.name, np.asarray(pixels))
        finally:
            self.capture.release()


def open_source(source: str, output: Path) -> ImageSource | VideoSource:
    """Find out what a source is and open it.

    Args:
        source: Path of an image, a folder or a video, or the number of a camera.
        output: Where annotated images go, which are no source even if they lie within the folder.

    Raises:
        InputError: There is no such thing, or nothing in it that can be read.
    """
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, output)
    if path.is_file():
        return ImageSource(path.parent, [path]) if _is_image(path) else _open_video(path)
    if source.isdecimal():
        return _open_camera(int(source))
    raise InputError(
        source, "there is no such file or folder", "Give an image, a folder, a video, or the number of a camera"
    )


def read_picture(path: Path) -> np.ndarray:
    """Read an image as prepare-data reads those for training: in full, upright, in 8-bit colours.

    Args:
        path: The file.

    Returns:
        BGR, uint8 [height, width, 3].

    Raises:
        InputError: It cannot be read, or is too small or too large.
    """
    try:
        pixels, _, _ = decode_image(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}", "Give a file that you may read") from error
    except ImageError as error:
        raise InputError(path, error.detail, "Give an image from 10x10 to 89 million pixels, 8 or 16 bits") from error
    return np.asarray(cv2.cvtColor(np.asarray(pixels), cv2.COLOR_RGB2BGR))


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Fetch the next item in a thread while the caller works on the last."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1) as thread:
        running: Future[list[Item]] = thread.submit(_next, iterator)
        while fetched := running.result():
            running = thread.submit(_next, iterator)
            yield fetched[0]


def _next(iterator: Iterator[Item]) -> list[Item]:
    return list(islice(iterator, 1))


def _open_folder(folder: Path, output: Path) -> ImageSource:
    made = output.resolve()
    own = made if made != folder.resolve() and made.is_relative_to(folder.resolve()) else None
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    paths = [path for path in paths if own is None or not path.resolve().is_relative_to(own)]
    if not paths:
        raise InputError(folder, "holds no image", f"Give a folder with {', '.join(sorted(IMAGE_SUFFIXES))} files")
    return ImageSource(folder, paths)


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with Image.open(path) as image:
            return image.format != "GIF"
    except Exception:  # as decoders do: whatever comes up
        return False


def _open_video(path: Path) -> VideoSource:
    os.environ.update(_FFMPEG_OPTIONS)
    capture = _open_quietly(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise InputError(path, "is neither an image nor a video that can be read", "Give a JPEG, PNG, MP4, AVI or MKV")
    frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return VideoSource(path.name, path, capture, _rate(capture), int(frames) if frames > 0 else None)


def _open_camera(number: int) -> VideoSource:
    capture = _open_quietly(number, cv2.CAP_ANY)
    if not capture.isOpened():
        raise InputError(f"camera {number}", "cannot be opened", "Connect it, or give another number, from 0")
    return VideoSource(f"camera {number}", None, capture, _rate(capture), None)


def _open_quietly(what: str | int, backend: int) -> cv2.VideoCapture:
    """Open a video or camera without OpenCV's own words about what goes wrong."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(what, backend)
    finally:
        cv2.utils.logging.setLogLevel(level)


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0 < rate <= _HIGHEST_RATE else _USUAL_RATE
