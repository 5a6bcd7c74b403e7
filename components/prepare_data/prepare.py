"""From a source of images and labels to the dataset artifact."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, cast, get_args

from yolo_distill.components.prepare_data.dataset import (
    SPLITS,
    DetectionDataset,
    ImageRecord,
    Split,
    describe_image,
    write_index,
)
from yolo_distill.components.prepare_data.digits import CLASSES, DIGITS, DigitsSettings, compose, encode, is_digits
from yolo_distill.components.prepare_data.findings import Findings, Kind
from yolo_distill.components.prepare_data.folder import Folder
from yolo_distill.components.prepare_data.formats import read_folder
from yolo_distill.components.prepare_data.images import (
    ImageError,
    ImageFacts,
    inspect,
    stored_bytes,
    strict_pixel_limit,
)
from yolo_distill.components.prepare_data.labels import Box, SourceImage, yolo_text
from yolo_distill.components.prepare_data.parallel import in_threads
from yolo_distill.components.prepare_data.report import PreparationReport, write_report
from yolo_distill.components.prepare_data.sources import fetched, public_source
from yolo_distill.components.prepare_data.splits import CheckedImage, check_fractions, split_images, without_duplicates
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, require_free_space

OnError = Literal["stop", "drop"]

_LONGEST_NAME = 80


@dataclass(frozen=True)
class _NewImage:
    """An image on its way into the artifact.

    Attributes:
        split: Where it goes.
        name: File name without folder.
        data: The image file's content.
        size: Width and height in pixels.
        boxes: Its labels, or ``None`` when it is unlabelled.
        origin: Where it comes from, relative to the source.
    """

    split: Split
    name: str
    data: bytes
    size: tuple[int, int]
    boxes: list[Box] | None
    origin: str


# Images are made where they are written, so that only few are in memory at a time.
_MakeImage = Callable[[], _NewImage]


def prepare(
    source: str,
    output: Path,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    on_error: str = "stop",
) -> DetectionDataset:
    """Make a dataset artifact of what a source holds.

    Every image is decoded in full and every box checked before anything is written. The artifact also holds
    ``report.json``, which lists everything that was left out or changed.

    Args:
        source: ``digits``, with settings if wanted (:meth:`DigitsSettings.parse`); or a folder, an archive, or the
            http, https or s3 address of one, with YOLO, Pascal VOC or COCO labels.
        output: The artifact's folder; an earlier one is replaced.
        seed: Seed of the splits that are drawn, and of the digits where they name none.
        val_fraction: Share of the labelled images drawn for validation where the source has no such split, 0..1.
        test_fraction: The same for testing; 0 for no test split.
        on_error: ``stop`` refuses data with mistakes in them, ``drop`` leaves broken boxes and files out.

    Raises:
        InputError: The source or an argument cannot be used; nothing was written then.
    """
    if on_error not in get_args(OnError):
        raise InputError(f"on_error={on_error}", "is not known", f"Choose {' or '.join(get_args(OnError))}")
    check_fractions(val_fraction, test_fraction)
    report = PreparationReport(
        source=public_source(source),
        format=DIGITS,
        on_error=cast(OnError, on_error),
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    if is_digits(source):
        settings = DigitsSettings.parse(source, seed)
        _write(output, CLASSES, _digit_images(settings), report)
    else:
        with fetched(source, output) as path:
            _prepare_folder(Folder.open(path), output, report)
    return DetectionDataset.open(output)


def _prepare_folder(given: Folder, output: Path, report: PreparationReport) -> None:
    findings = Findings()
    folder, data = read_folder(given, report.source, findings)
    _check_classes(data.classes, report.source)
    # Labels are checked at once; decoding every image takes longer.
    if report.on_error == "stop":
        findings.stop_on_problems(report.source)
    images = without_duplicates(_checked(folder, data.images, findings), findings)
    if report.on_error == "stop":
        findings.stop_on_problems(report.source)
    splits, drawn = split_images(
        images, report.source, report.seed, report.val_fraction, report.test_fraction, findings
    )
    kept = [image for members in splits.values() for image in members]
    require_free_space(output, sum(folder.path(image.source.file).stat().st_size for image in kept))
    report = report.model_copy(
        update={"format": data.format, "drawn": sorted(drawn), "findings": sorted(findings, key=lambda f: f.file)}
    )
    _write(output, data.classes, _folder_images(folder, splits), report)


def _check_classes(classes: list[str], source: str) -> None:
    if not classes:
        raise InputError(source, "names no class and labels no object", "Label some objects")
    if "" in classes or len(set(classes)) < len(classes):
        raise InputError(source, "has a class without a name, or two of the same name", "Give every class its own name")


def _checked(folder: Folder, images: list[SourceImage], findings: Findings) -> Iterator[CheckedImage]:
    """Decode every image once and yield those that can be used."""

    def try_inspect(file: str) -> ImageFacts | ImageError:
        try:
            return inspect(folder.path(file))
        except ImageError as error:
            return error

    files = sorted({image.file for image in images})
    with strict_pixel_limit():
        results = dict(zip(files, in_threads(try_inspect, files, "image", "checking"), strict=True))
    for file, result in results.items():
        if isinstance(result, ImageError):
            findings.add(result.kind, file, result.detail)
        else:
            for kind, detail in result.changes:
                findings.add(kind, file, detail)
    for image in images:
        if isinstance(facts := results[image.file], ImageFacts):
            yield CheckedImage(_with_fitting_labels(image, facts, findings), facts)


def _with_fitting_labels(image: SourceImage, facts: ImageFacts, findings: Findings) -> SourceImage:
    """Return the image without its labels when they were made for another size."""
    if image.size in (None, (facts.width, facts.height)):
        return image
    width, height = image.size or (0, 0)
    detail = f"the labels are for {width}x{height} pixels, but the upright image has {facts.width}x{facts.height}"
    findings.add(Kind.WRONG_SIZE, image.file, detail)
    return replace(image, boxes=None)


def _folder_images(folder: Folder, splits: dict[Split, list[CheckedImage]]) -> Iterator[_MakeImage]:
    for split, members in splits.items():
        taken: set[str] = set()
        for image in members:
            name = _safe_name(image.source.file, taken) + image.facts.suffix
            yield partial(_folder_image, folder, image, split, name)


def _folder_image(folder: Folder, image: CheckedImage, split: Split, name: str) -> _NewImage:
    return _NewImage(
        split=split,
        name=name,
        data=stored_bytes(folder.path(image.source.file), image.facts),
        size=(image.facts.width, image.facts.height),
        boxes=image.source.boxes,
        origin=image.source.file,
    )


def _safe_name(file: str, taken: set[str]) -> str:
    """Return a file name without suffix that any system can store, and that no other file of the split has."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(file).stem).strip("._-")[:_LONGEST_NAME] or "image"
    if stem.lower() in taken:
        stem = f"{stem}-{hashlib.sha256(file.encode(errors='surrogateescape')).hexdigest()[:12]}"
    taken.add(stem.lower())
    return stem


def _digit_images(settings: DigitsSettings) -> Iterator[_MakeImage]:
    for split, count in zip(SPLITS, (settings.train, settings.val, settings.test), strict=True):
        yield from (partial(_digit_image, settings, split, number) for number in range(count))


def _digit_image(settings: DigitsSettings, split: Split, number: int) -> _NewImage:
    scene = compose(settings, split, number)
    return _NewImage(
        split=split,
        name=f"{split}-{number:05d}.jpg",
        data=encode(scene),
        size=(settings.size, settings.size),
        boxes=[(int(c), *box) for c, box in zip(scene.classes, (scene.boxes / settings.size).tolist(), strict=True)],
        origin=f"{split} scene {number}",
    )


def _write(output: Path, classes: list[str], images: Iterable[_MakeImage], report: PreparationReport) -> None:
    """Write the artifact."""
    with new_directory(output) as root:
        for split in SPLITS:
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True)
        written = in_threads(partial(_write_image, root), images, "image", "writing")
        manifest = write_index(root, classes, [record for record, _ in written], report.source)
        origins = {record.file: origin for record, origin in written}
        write_report(DetectionDataset(root, manifest), report.model_copy(update={"origins": origins}))


def _write_image(root: Path, make: _MakeImage) -> tuple[ImageRecord, str]:
    """Write an image and its labels; return its record and where it comes from."""
    image = make()
    file = f"images/{image.split}/{image.name}"
    (root / file).write_bytes(image.data)
    if image.boxes is not None:
        labels = (root / "labels" / image.split / image.name).with_suffix(".txt")
        labels.write_text(yolo_text(image.boxes), encoding="utf-8")
    return describe_image(root, file, image.split, *image.size), image.origin
