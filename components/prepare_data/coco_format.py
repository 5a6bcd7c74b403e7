"""Reads COCO folders: ``instances_<split>.json`` files or a single one, with the images anywhere below the folder."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.prepare_data.findings import Findings, Kind
from yolo_distill.components.prepare_data.folder import Folder, split_name, split_of
from yolo_distill.components.prepare_data.labels import Box, SourceDataset, SourceImage, checked_boxes
from yolo_distill.components.shared.errors import InputError

FORMAT = "COCO"
LOOKED_FOR = "instances_*.json or another JSON file with images, annotations and categories (COCO)"

_PREFIX = "instances_"
_KEYS = {"images", "annotations", "categories"}


class _Category(BaseModel):
    id: StrictInt
    name: StrictStr


class _Image(BaseModel):
    id: StrictInt | StrictStr
    file_name: StrictStr
    width: StrictInt = Field(ge=1)
    height: StrictInt = Field(ge=1)


class _Content(BaseModel):
    """A COCO file; annotations are looked at one by one, so that a broken one does not spoil the others."""

    model_config = ConfigDict(frozen=True)

    categories: list[_Category] = Field(min_length=1)
    images: list[_Image]
    annotations: list[Any]


@dataclass(frozen=True)
class _LabelFile:
    name: str
    content: _Content

    @property
    def split(self) -> Split | None:
        """The split that the file or its folder is named after."""
        return split_name(PurePosixPath(self.name).stem.removeprefix(_PREFIX)) or split_of(self.name)


def read(folder: Folder, findings: Findings) -> SourceDataset | None:
    """Read a COCO folder.

    Classes are the categories in the order of their ids, counted from 0. Crowd regions (``iscrowd``) stand for many
    objects at once and are dropped. An image without annotations is known to hold no object.

    Args:
        folder: What was given.
        findings: Takes everything worth a line in the report.

    Returns:
        The data, or ``None`` when the folder is not in this format.

    Raises:
        InputError: The folder is in this format, but a file is damaged or two of them do not fit together.
    """
    label_files = [_LabelFile(name, content) for name in _candidates(folder) if (content := _load(folder, name))]
    if not label_files:
        return None
    _require_fitting(folder, label_files)
    categories = _categories(label_files[0].content)
    indices = {category: index for index, category in enumerate(categories)}
    lookup = _ImageLookup(folder)
    images = [image for file in label_files for image in _label(file, indices, lookup, findings)]
    return SourceDataset(FORMAT, list(categories.values()), images)


def _candidates(folder: Folder) -> list[str]:
    """Return the JSON files that may hold boxes; other kinds of annotation lie beside COCO's instances."""
    files = [file for file in folder.files if file.endswith(".json")]
    return [file for file in files if PurePosixPath(file).name.startswith(_PREFIX)] or files


def _load(folder: Folder, name: str) -> _Content | None:
    path = folder.path(name)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"is not valid JSON: {error}", "Mend the file or take it out of the folder") from error
    if not isinstance(data, dict) or not data.keys() >= _KEYS:
        return None
    try:
        content = _Content.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(path, f"is not a COCO file: {place}: {first['msg']}", "Mend the file") from error
    for name, ids in (("images", [i.id for i in content.images]), ("categories", [c.id for c in content.categories])):
        if len(set(ids)) < len(ids):
            raise InputError(path, f"has {name} with the same id", "Give each its own id")
    return content


def _require_fitting(folder: Folder, files: list[_LabelFile]) -> None:
    """Refuse files that describe different classes or the same split."""
    first = files[0]
    for file in files[1:]:
        if _categories(file.content) != _categories(first.content):
            raise InputError(
                folder.path(file.name), f"has other categories than {first.name}", "Give all splits the same categories"
            )
    by_split = defaultdict(list)
    for file in files:
        by_split[file.split].append(file.name)
    for split, names in by_split.items():
        if len(names) > 1:
            raise InputError(
                folder.root,
                f"has several label files for {split or 'the whole data set'}: {', '.join(names)}",
                "Keep one, or name them instances_train.json, instances_val.json and instances_test.json",
            )


def _categories(content: _Content) -> dict[int, str]:
    return {category.id: category.name for category in sorted(content.categories, key=lambda c: c.id)}


class _ImageLookup:
    """Finds the image files that COCO's ``file_name`` means, which may leave out leading folders."""

    def __init__(self, folder: Folder) -> None:
        self.by_name: defaultdict[str, list[str]] = defaultdict(list)
        for image in folder.images:
            self.by_name[PurePosixPath(image).name].append(image)

    def find(self, file_name: str, label_file: _LabelFile) -> str | None:
        """Return the image in the label file's folder, else in one of its split, else the only one of that name."""
        file_name = file_name.replace("\\", "/").removeprefix("./")
        named = [f for f in self.by_name[PurePosixPath(file_name).name] if f"/{f}".endswith(f"/{file_name}")]
        beside = str(PurePosixPath(label_file.name).parent / file_name)
        if beside in named or len(named) == 1:
            return beside if beside in named else named[0]
        of_split = [file for file in named if label_file.split and split_of(file) == label_file.split]
        return of_split[0] if len(of_split) == 1 else None


def _label(
    file: _LabelFile, indices: dict[int, int], lookup: _ImageLookup, findings: Findings
) -> Iterator[SourceImage]:
    sizes = {image.id: (image.width, image.height) for image in file.content.images}
    rows: defaultdict[int | str, list[tuple[str, Box]]] = defaultdict(list)
    for number, annotation in enumerate(file.content.annotations):
        place = f"annotations[{number}]"
        if not isinstance(annotation, dict) or not _is_known(annotation.get("image_id"), sizes):
            findings.add(Kind.MALFORMED_BOX, file.name, "belongs to no image of the file", place)
        elif annotation.get("iscrowd"):
            findings.add(Kind.CROWD, file.name, place=place)
        elif box := _read_box(annotation, indices, sizes, file.name, place, findings):
            rows[annotation["image_id"]].append((place, box))
    for image in file.content.images:
        boxes = checked_boxes(rows[image.id], file.name, len(indices), findings)
        if found := lookup.find(image.file_name, file):
            yield SourceImage(found, file.split, boxes, sizes[image.id])
        else:
            findings.add(Kind.MISSING_IMAGE, file.name, f"{image.file_name} is not in the folder, or is there twice")


def _is_known(key: object, table: dict[Any, Any]) -> bool:
    return isinstance(key, int | str) and key in table


def _read_box(
    annotation: dict[str, Any],
    indices: dict[int, int],
    sizes: dict[int | str, tuple[int, int]],
    file: str,
    place: str,
    findings: Findings,
) -> Box | None:
    """Return an annotation's box as fractions of the image."""
    category = annotation.get("category_id")
    if not _is_known(category, indices):
        findings.add(Kind.UNKNOWN_CLASS, file, f"category_id {category!r} is not among the categories", place)
        return None
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        findings.add(Kind.MALFORMED_BOX, file, "bbox is not [x, y, width, height]", place)
        return None
    image_width, image_height = sizes[annotation["image_id"]]
    return (
        indices[category],  # type: ignore[index]
        x / image_width,
        y / image_height,
        (x + width) / image_width,
        (y + height) / image_height,
    )
