"""Reads YOLO folders: a ``data.yaml`` as ultralytics takes it, or bare ``images/`` and ``labels/`` with class names."""

import math
import posixpath
from collections.abc import Iterator
from pathlib import PurePosixPath

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from yolo_distill.components.prepare_data.dataset import SPLITS, Split
from yolo_distill.components.prepare_data.findings import Findings, Kind
from yolo_distill.components.prepare_data.folder import Folder, is_image, split_of
from yolo_distill.components.prepare_data.labels import Box, SourceDataset, SourceImage, checked_boxes
from yolo_distill.components.shared.errors import InputError

FORMAT = "YOLO"
LOOKED_FOR = "data.yaml with names and splits, or classes.txt with images/ and labels/ (YOLO)"

CLASSES_NAME = "classes.txt"
_NAMES_REMEDY = "Write names as a list with one name a class, or as a map from 0, 1, 2, … to names"


class _DataYaml(BaseModel):
    """The part of ultralytics' ``data.yaml`` that says what the folder holds."""

    model_config = ConfigDict(frozen=True)

    names: list[StrictStr | StrictInt] | dict[StrictInt, StrictStr | StrictInt] = Field(min_length=1)
    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    nc: int | None = None

    def entries(self, split: Split) -> list[str]:
        """Return the folders, lists or images that make up a split."""
        value = getattr(self, split)
        return [value] if isinstance(value, str) else value or []


def read(folder: Folder, findings: Findings) -> SourceDataset | None:
    """Read a YOLO folder.

    Args:
        folder: What was given.
        findings: Takes everything worth a line in the report.

    Returns:
        The data, or ``None`` when the folder is not in this format.

    Raises:
        InputError: The folder is in this format, but its class names or splits cannot be used.
    """
    if name := _data_yaml_name(folder):
        data = _read_data_yaml(folder, name)
        classes = _class_names(folder, name, data)
        images: list[tuple[str, Split | None]] = [
            (file, split) for split in SPLITS for file in _split_files(folder, name, data, split, findings)
        ]
    elif (class_file := _class_file(folder)) and has_labels(folder):
        classes = _read_classes(folder, class_file)
        images = [(file, split_of(file)) for file in folder.images]
    else:
        return None
    return SourceDataset(FORMAT, classes, list(_label(folder, images, len(classes), findings)))


def has_labels(folder: Folder) -> bool:
    """Whether any image has a label file where YOLO has it."""
    return any(_label_file(image) in folder.names for image in folder.images)


def _class_file(folder: Folder) -> str | None:
    return next((file for file in folder.files if PurePosixPath(file).name == CLASSES_NAME), None)


def _data_yaml_name(folder: Folder) -> str | None:
    """Return the top-level YAML file that describes a data set."""
    names = [f for f in folder.files if "/" not in f and PurePosixPath(f).suffix in {".yaml", ".yml"}]
    fitting = [name for name in names if _describes_data(folder, name)]
    if len(fitting) > 1 and "data.yaml" not in fitting:
        raise InputError(folder.root, f"has several data set descriptions: {', '.join(fitting)}", "Keep one of them")
    return "data.yaml" if "data.yaml" in fitting else next(iter(fitting), None)


def _describes_data(folder: Folder, name: str) -> bool:
    try:
        content = _load_yaml(folder, name)
    except InputError:
        # Another program's file is none of our business.
        return name == "data.yaml"
    return isinstance(content, dict) and "names" in content and any(split in content for split in SPLITS)


def _load_yaml(folder: Folder, name: str) -> object:
    try:
        return yaml.safe_load(folder.path(name).read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise InputError(folder.path(name), f"is not valid YAML: {problem}", "Mend the file") from error


def _read_data_yaml(folder: Folder, name: str) -> _DataYaml:
    try:
        return _DataYaml.model_validate(_load_yaml(folder, name))
    except ValidationError as error:
        problems = "; ".join(sorted({f"{e['loc'][0]}: {e['msg']}" for e in error.errors()}))
        raise InputError(folder.path(name), f"cannot be used: {problems}", _NAMES_REMEDY) from error


def _class_names(folder: Folder, name: str, data: _DataYaml) -> list[str]:
    if isinstance(data.names, dict):
        if sorted(data.names) != list(range(len(data.names))):
            raise InputError(folder.path(name), "the keys of names are not 0, 1, 2, …", _NAMES_REMEDY)
        classes = [str(data.names[index]) for index in range(len(data.names))]
    else:
        classes = [str(entry) for entry in data.names]
    if data.nc not in (None, len(classes)):
        raise InputError(folder.path(name), f"nc is {data.nc}, but {len(classes)} names are given", _NAMES_REMEDY)
    return classes


def _read_classes(folder: Folder, name: str) -> list[str]:
    try:
        classes = folder.path(name).read_text(encoding="utf-8-sig").strip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(folder.path(name), "is not UTF-8 text", "Save it as UTF-8") from error
    return [line.strip() for line in classes]


def _split_files(folder: Folder, name: str, data: _DataYaml, split: Split, findings: Findings) -> list[str]:
    """Return the images of a split; each entry is a folder, an image or a text file that lists images."""
    files: list[str] = []
    for entry in data.entries(split):
        found = next(filter(None, (_files_at(folder, data, p, findings) for p in _places(folder, data, entry))), [])
        if not found:
            raise InputError(
                folder.path(name),
                f"{split}: {entry!r} leads to no images inside the folder",
                f"Name a folder or a list of images below {folder.root}, or take the entry out",
            )
        files += found
    return files


def _places(folder: Folder, data: _DataYaml, entry: str) -> list[str]:
    """Return where an entry may lie relative to the root, the likeliest first."""
    # The path is often that of the author's machine, and some exports write ../train for train.
    candidates = [posixpath.join(data.path or "", entry), entry, entry.removeprefix("../")]
    return [place for candidate in candidates if (place := _relative(folder, candidate)) is not None]


def _relative(folder: Folder, path: str) -> str | None:
    """Return a path relative to the root, or ``None`` when it leads out of it."""
    path = path.replace("\\", "/")
    if path.startswith("/"):
        path = posixpath.relpath(path, folder.root.absolute().as_posix())
    path = posixpath.normpath(path)
    return None if path.startswith("..") else path


def _files_at(folder: Folder, data: _DataYaml, place: str, findings: Findings) -> list[str]:
    if place in folder.names:
        return [place] if is_image(place) else list(_listed(folder, data, place, findings))
    return folder.below(place, folder.images)


def _listed(folder: Folder, data: _DataYaml, name: str, findings: Findings) -> Iterator[str]:
    """Yield the images that a text file lists."""
    lines = folder.path(name).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not (entry := line.strip()):
            continue
        beside = posixpath.join(posixpath.dirname(name), entry)
        places = filter(None, [_relative(folder, beside), *_places(folder, data, entry)])
        image = next((place for place in places if place in folder.names), None)
        if image:
            yield image
        else:
            findings.add(Kind.MISSING_IMAGE, name, f"{entry} is not in the folder", f"line {number}")


def _label(
    folder: Folder, images: list[tuple[str, Split | None]], classes: int, findings: Findings
) -> Iterator[SourceImage]:
    """Yield every image with its labels, then note the labels that belong to none."""
    read: dict[str, list[Box] | None] = {}
    with_image = {_label_file(image) for image in folder.images}
    for file, split in images:
        labels = _label_file(file)
        if labels not in read:
            read[labels] = _read_labels(folder, labels, classes, findings) if labels in folder.names else None
        yield SourceImage(file, split, read[labels])
    for file in folder.files:
        parts = PurePosixPath(file).parts
        if "labels" in parts[:-1] and file.endswith(".txt") and parts[-1] != CLASSES_NAME and file not in with_image:
            findings.add(Kind.MISSING_IMAGE, file)


def _label_file(image: str) -> str:
    """Return where an image's labels lie: in ``labels/`` instead of the last ``images/``, else beside it."""
    before, images, after = f"/{image}".rpartition("/images/")
    path = f"{before}/labels/{after}" if images else f"/{image}"
    return str(PurePosixPath(path[1:]).with_suffix(".txt"))


def _read_labels(folder: Folder, file: str, classes: int, findings: Findings) -> list[Box] | None:
    try:
        lines = folder.path(file).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        findings.add(Kind.UNREADABLE_LABELS, file, "is not UTF-8 text")
        return None
    except OSError as error:
        findings.add(Kind.UNREADABLE_LABELS, file, f"cannot be read: {error.strerror}")
        return None
    rows = []
    for number, line in enumerate(lines, 1):
        place = f"line {number}"
        if line.strip() and (box := _read_row(line.split(), file, place, findings)):
            rows.append((place, box))
    return checked_boxes(rows, file, classes, findings)


def _read_row(columns: list[str], file: str, place: str, findings: Findings) -> Box | None:
    """Return the box of a line: ``class x y w h``, or ``class x1 y1 x2 y2 x3 y3 …`` around a polygon."""
    polygon = len(columns) >= 7 and len(columns) % 2 == 1
    if len(columns) != 5 and not polygon:
        findings.add(Kind.MALFORMED_BOX, file, f"has {len(columns)} columns, not class x y w h", place)
        return None
    try:
        category, values = float(columns[0]), [float(column) for column in columns[1:]]
    except ValueError:
        findings.add(Kind.MALFORMED_BOX, file, "a column is not a number", place)
        return None
    if not category.is_integer():
        findings.add(Kind.MALFORMED_BOX, file, f"class {columns[0]} is not a whole number", place)
        return None
    # Checked here because min and max may pass over a NaN.
    if polygon and not all(map(math.isfinite, values)):
        findings.add(Kind.MALFORMED_BOX, file, "coordinates are not finite numbers", place)
        return None
    if polygon:
        findings.add(Kind.POLYGON, file, place=place)
        xs, ys = values[::2], values[1::2]
        return int(category), min(xs), min(ys), max(xs), max(ys)
    x, y, width, height = values
    return int(category), x - width / 2, y - height / 2, x + width / 2, y + height / 2
