"""Runs a detector over a source and shows what it finds."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from yolo_distill.components.shared.detector import Detections, Detector, detect, open_detector
from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.display import shown_path
from yolo_distill.pipelines.prediction.results import (
    RESULTS_NAME,
    ImageWriter,
    ResultsFile,
    VideoWriter,
    annotate,
    describe,
)
from yolo_distill.pipelines.prediction.sources import ImageSource, Picture, VideoSource, ahead, open_source

# A container's count of its frames is an estimate; so much less is a file that was cut off.
_LEAST_SHARE_OF_FRAMES = 0.95
_CLASSES_SHOWN = 5


class PredictionSettings(BaseModel):
    """How objects are looked for.

    Attributes:
        conf: Scores at or below it are dropped.
        iou: Overlap above which the worse of two boxes of a class is dropped.
        classes: Names of the classes to look for; all when empty.
        imgsz: Side of the network's input in pixels for a model that takes any; what the model says when ``None``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    conf: float = Field(default=0.25, ge=0, le=1)
    iou: float = Field(default=0.7, ge=0, le=1)
    classes: tuple[str, ...] = ()
    imgsz: int | None = Field(default=None, ge=32, multiple_of=32)


@dataclass
class Tally:
    """What was done so far.

    Attributes:
        pictures: Images or frames with an answer.
        objects: Objects in them.
        unread: Why images could not be read.
        interrupted: Whether the user stopped it.
        started: When it began, on the clock of ``time.perf_counter``.
    """

    pictures: int = 0
    objects: int = 0
    unread: list[InputError] = field(default_factory=list)
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)


def checked_settings(conf: float, iou: float, classes: str, imgsz: int | None) -> PredictionSettings:
    """Check the command line's options.

    Args:
        conf: See :class:`PredictionSettings`.
        iou: See :class:`PredictionSettings`.
        classes: Class names, separated by commas.
        imgsz: See :class:`PredictionSettings`.

    Raises:
        InputError: A value is out of range.
    """
    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    try:
        return PredictionSettings(conf=conf, iou=iou, classes=names, imgsz=imgsz)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = first["msg"].replace("Input should", "it should")
        raise InputError(f"--{first['loc'][0]} {first['input']}", problem, "See --help for what it takes") from error


def predict(model: Path, source: str, output: Path, settings: PredictionSettings, console: Console) -> Tally:
    """Find objects in a source; write annotated pictures and all detections.

    Ctrl-C ends it after the picture at hand, and what was written until then is complete.

    Args:
        model: The model, see :func:`~yolo_distill.components.shared.detector.open_detector`.
        source: An image, a folder, a video, or the number of a camera.
        output: Folder for what is made. Files of the same name are replaced.
        settings: How objects are looked for.
        console: Where to show what is found.

    Returns:
        What was done.

    Raises:
        InputError: The source or the model cannot be used, or nothing can be written.
    """
    opened = open_source(source, output)
    writer = ImageWriter(opened, output) if isinstance(opened, ImageSource) else VideoWriter(opened, output)
    detector = open_detector(model, imgsz=settings.imgsz)
    wanted = _class_indices(detector.classes, settings.classes)
    try:
        output.mkdir(parents=True, exist_ok=True)
        results = ResultsFile(output)
    except OSError as error:
        raise InputError(
            f"--output {output}", f"cannot be written ({error.strerror})", "Choose another folder"
        ) from error
    with ExitStack() as stack:
        stack.callback(results.close)
        stack.callback(writer.close)
        run = _Run(opened, detector, settings, wanted, writer, results, console)
        tally = run.everything()
    _show_end(opened, tally, output, console)
    return tally


@dataclass(frozen=True)
class _Run:
    source: ImageSource | VideoSource
    detector: Detector
    settings: PredictionSettings
    wanted: list[int] | None
    writer: ImageWriter | VideoWriter
    results: ResultsFile
    console: Console

    def everything(self) -> Tally:
        tally = Tally()
        with _stop_signals() as stopped, self._progress() as (progress, task), ThreadPoolExecutor(1) as thread:
            written: Future[None] | None = None
            for picture in ahead(self.source):
                begun = time.perf_counter()
                if isinstance(picture.pixels, InputError):
                    tally.unread.append(picture.pixels)
                    self._say(f"{picture.name}: not read: {picture.pixels.problem}")
                else:
                    [found] = self._detect(picture.pixels)
                    if isinstance(self.source, ImageSource):
                        self._say(_line(picture, picture.pixels, found, self.detector.classes, begun))
                    # At most one picture waits to be written.
                    if written:
                        written.result()
                    written = thread.submit(self._write, picture.name, tally.pictures, picture.pixels, found)
                    tally.pictures += 1
                    tally.objects += len(found)
                progress.advance(task)
                if stopped.is_set():
                    tally.interrupted = True
                    break
            if written:
                written.result()
        return tally

    def _detect(self, pixels: np.ndarray) -> list[Detections]:
        return detect(self.detector, [pixels], self.settings.conf, self.settings.iou, classes=self.wanted)

    def _write(self, name: str, number: int, pixels: np.ndarray, found: Detections) -> None:
        frame = number if isinstance(self.source, VideoSource) else None
        self.results.write(describe(name, frame, pixels, found, self.detector.classes))
        annotate(pixels, found, self.detector.classes)
        self.writer.write(name, pixels)

    @contextmanager
    def _progress(self) -> Iterator[tuple[Progress, TaskID]]:
        total = len(self.source.paths) if isinstance(self.source, ImageSource) else self.source.frames
        unit = "image" if isinstance(self.source, ImageSource) else "frame"
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = self.console.is_terminal and total != 1
        with Progress(*columns, console=self.console, transient=True, disable=not shown) as progress:
            yield progress, progress.add_task(unit, total=total)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Within the block, a first Ctrl-C (or SIGTERM) only sets the event; a second one interrupts as usual."""
    stopped = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(_signum: int, _frame: FrameType | None) -> None:
        stopped.set()
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _class_indices(classes: Sequence[str], names: Sequence[str]) -> list[int] | None:
    for name in names:
        if name not in classes:
            known = f"{', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
            raise InputError(f"--classes {name}", "the model knows no such class", f"Choose from: {known}")
    return [classes.index(name) for name in names] or None


def _line(picture: Picture, pixels: np.ndarray, found: Detections, classes: Sequence[str], begun: float) -> str:
    height, width = pixels.shape[:2]
    taken = (time.perf_counter() - begun) * 1e3
    return f"{picture.name}: {width}x{height}, {_counts(found, classes)} ({taken:.1f} ms)"


def _counts(found: Detections, classes: Sequence[str]) -> str:
    counted = Counter(found.classes.tolist()).most_common()
    shown = [f"{number} {classes[index]}" for index, number in counted[:_CLASSES_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(counted) > _CLASSES_SHOWN else [])]) or "nothing"


def _show_end(source: ImageSource | VideoSource, tally: Tally, output: Path, console: Console) -> None:
    seconds = time.perf_counter() - tally.started
    lines = [f"Written to {shown_path(output)}, with every box in {RESULTS_NAME}"]
    if isinstance(source, VideoSource):
        lines.insert(0, f"{source.name}: {_total(tally, seconds, 'frames')}")
        if _is_cut_off(source, tally):
            lines.append(f"The video should have {source.frames} frames: it may be cut off or damaged")
    elif len(source.paths) > 1:
        lines.insert(0, _total(tally, seconds, "images"))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _total(tally: Tally, seconds: float, unit: str) -> str:
    rate = tally.pictures / seconds
    return f"{tally.pictures} {unit}, {tally.objects} objects in {seconds:.1f} s ({rate:.1f} {unit}/s)"


def _is_cut_off(source: VideoSource, tally: Tally) -> bool:
    expected = source.frames or 0
    return not tally.interrupted and tally.pictures < _LEAST_SHARE_OF_FRAMES * expected
