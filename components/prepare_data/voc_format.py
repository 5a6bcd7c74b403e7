"""Reads Pascal VOC folders: one XML file an image, official splits in ``ImageSets/Main``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.prepare_data.findings import Findings, Kind
from yolo_distill.components.prepare_data.folder import Folder, split_of
from yolo_distill.components.prepare_data.images import upright_size
from yolo_distill.components.prepare_data.labels import SourceDataset, SourceImage, checked_boxes

FORMAT = "Pascal VOC"
LOOKED_FOR = "JPEGImages/ with Annotations/*.xml (Pascal VOC)"

_SPLIT_LISTS = "ImageSets/Main/"
# Where the labels lie for images in a folder of this name.
_LABEL_FOLDERS = {"JPEGImages": "Annotations", "images": "annotations"}


@dataclass(frozen=True)
class _Object:
    """A labelled object with its corners in pixels, as written."""

    place: str
    name: str
    corners: tuple[float, float, float, float]


@dataclass(frozen=True)
class _Annotation:
    """An XML file's content; width and height are 0 where it does not tell them."""

    size: tuple[int, int]
    objects: list[_Object]


def read(folder: Folder, findings: Findings) -> SourceDataset | None:
    """Read a Pascal VOC folder.

    Corners are taken as written: ``xmax - xmin`` is a box's width. Objects marked difficult are kept. Classes are
    sorted by name, since the format has no order of its own.

    Args:
        folder: What was given.
        findings: Takes everything worth a line in the report.

    Returns:
        The data, or ``None`` when the folder is not in this format.
    """
    files = {image: file for image in folder.images if (file := _annotation_file(folder, image))}
    if not files:
        return None
    annotations = {file: _read_annotation(folder, file, findings) for file in sorted(set(files.values()))}
    classes = sorted({obj.name for content in annotations.values() if content for obj in content.objects})
    for file in folder.files:
        parent = PurePosixPath(file).parent.name
        if parent in _LABEL_FOLDERS.values() and file.endswith(".xml") and file not in annotations:
            findings.add(Kind.MISSING_IMAGE, file)
    labelled = {
        image: _label(folder, image, file, content, classes, findings)
        for image, file in files.items()
        if (content := annotations[file])
    }
    images = [
        replace(labelled.get(image) or SourceImage(image, None, None), split=split)
        for image, split in _splits(folder, findings)
    ]
    return SourceDataset(FORMAT, classes, images)


def _annotation_file(folder: Folder, image: str) -> str | None:
    """Return the XML file of an image: in the folder for labels, or beside the image."""
    path = PurePosixPath(image).with_suffix(".xml")
    candidates = [str(path)]
    for images, labels in _LABEL_FOLDERS.items():
        candidates.append("/".join(labels if part == images else part for part in path.parts))
    return next((file for file in candidates if file in folder.names), None)


def _read_annotation(folder: Folder, file: str, findings: Findings) -> _Annotation | None:
    try:
        root = fromstring(folder.path(file).read_bytes())
    except DefusedXmlException as error:
        findings.add(
            Kind.UNREADABLE_LABELS, file, f"declares XML entities, which are not read ({type(error).__name__})"
        )
        return None
    except ParseError as error:
        findings.add(Kind.UNREADABLE_LABELS, file, f"is not valid XML: {error}", f"line {error.position[0]}")
        return None
    # An encoding that Python does not know, or bytes that are not in it.
    except (LookupError, ValueError) as error:
        findings.add(Kind.UNREADABLE_LABELS, file, f"is not valid XML: {error}")
        return None
    except OSError as error:
        findings.add(Kind.UNREADABLE_LABELS, file, f"cannot be read: {error.strerror}")
        return None
    objects = (_read_object(number, element, file, findings) for number, element in enumerate(root.iter("object"), 1))
    return _Annotation(_read_size(root), [obj for obj in objects if obj])


def _read_size(root: Element) -> tuple[int, int]:
    """Return width and height as declared, or zeros."""
    try:
        return int(float(root.findtext("size/width", "0"))), int(float(root.findtext("size/height", "0")))
    except (ValueError, OverflowError):
        return 0, 0


def _read_object(number: int, element: Element, file: str, findings: Findings) -> _Object | None:
    name = (element.findtext("name") or "").strip()
    place = f"object {number} ({name or 'without a name'})"
    texts = [(tag, (element.findtext(f"bndbox/{tag}") or "").strip()) for tag in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(text) for _, text in texts)
    except ValueError:
        given = " ".join(f"{tag}={text or 'nothing'}" for tag, text in texts)
        findings.add(Kind.MALFORMED_BOX, file, f"a corner is not a number: {given}", place)
        return None
    if not name:
        findings.add(Kind.MALFORMED_BOX, file, "the object has no class name", place)
        return None
    return _Object(place, name, (x1, y1, x2, y2))


def _label(
    folder: Folder, image: str, file: str, annotation: _Annotation, classes: list[str], findings: Findings
) -> SourceImage:
    """Return an image with its boxes as fractions of its size."""
    size = annotation.size if min(annotation.size) > 0 else upright_size(folder.path(image))
    if size is None:
        # The image is broken, which its decoding will tell.
        return SourceImage(image, None, None)
    width, height = size
    rows = [
        (obj.place, (classes.index(obj.name), x1 / width, y1 / height, x2 / width, y2 / height))
        for obj in annotation.objects
        for x1, y1, x2, y2 in [obj.corners]
    ]
    return SourceImage(image, None, checked_boxes(rows, file, len(classes), findings), size)


def _splits(folder: Folder, findings: Findings) -> Iterator[tuple[str, Split | None]]:
    """Yield every image with its official split; an image in two lists comes twice."""
    lists = _split_lists(folder)
    if not lists:
        yield from ((image, split_of(image)) for image in folder.images)
        return
    images = {PurePosixPath(image).stem: image for image in folder.images}
    for file, split in lists.items():
        for number, line in enumerate(
            folder.path(file).read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1
        ):
            if not (words := line.split()):
                continue
            if image := images.get(words[0]):
                yield image, split
            else:
                findings.add(Kind.MISSING_IMAGE, file, f"{words[0]} is not in the folder", f"line {number}")


def _split_lists(folder: Folder) -> dict[str, Split]:
    """Return the lists of the official splits; those of single classes are not of interest."""
    names: dict[str, Split] = {"train": "train", "val": "val", "test": "test"}
    lists = {file: split for name, split in names.items() if (file := f"{_SPLIT_LISTS}{name}.txt") in folder.names}
    pooled = f"{_SPLIT_LISTS}trainval.txt"
    if pooled in folder.names and not {"train", "val"} & set(lists.values()):
        lists[pooled] = "train"
    return lists
