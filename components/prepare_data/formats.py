"""Finds out how a folder holds its labels and reads them."""

from yolo_distill.components.prepare_data import coco_format, voc_format, yolo_format
from yolo_distill.components.prepare_data.findings import Findings, Kind
from yolo_distill.components.prepare_data.folder import Folder, is_image
from yolo_distill.components.prepare_data.labels import SourceDataset
from yolo_distill.components.shared.errors import InputError

_FORMATS = (yolo_format, voc_format, coco_format)
_DEEPEST = 3
_IMAGE_FOLDERS = frozenset({"images", "JPEGImages"})
_DATA_SUFFIXES = (".txt", ".xml", ".json", ".yaml", ".yml")
# What tools leave in image folders, and labels that lie beside their images.
_COMPANIONS = (*_DATA_SUFFIXES, ".cache", ".npy")


def read_folder(folder: Folder, source: str, findings: Findings) -> tuple[Folder, SourceDataset]:
    """Read a folder of images and labels, or the only folder in it, which archives often wrap their content in.

    Args:
        folder: What was given.
        source: How the user called it, without credentials.
        findings: Takes everything worth a line in the report.

    Returns:
        The folder that holds the data, and the data.

    Raises:
        InputError: There is no image, the labels are in no known format, or they cannot be read.
    """
    if not folder.images:
        raise InputError(source, "holds no images (.jpg, .png, .bmp, .tif or .webp)", "Give a folder with images")
    folder = _unwrapped(folder)
    for format_ in _FORMATS:
        if data := format_.read(folder, findings):
            _note_leftovers(folder, data, findings)
            return folder, data
    if yolo_format.has_labels(folder):
        raise InputError(
            source,
            "has YOLO labels, but nothing that names the classes",
            f"Add a {yolo_format.CLASSES_NAME} with one class name a line, or a data.yaml",
        )
    looked_for = "; ".join(format_.LOOKED_FOR for format_ in _FORMATS)
    raise InputError(
        source,
        f"holds {len(folder.images)} images, but no labels in a known format. Looked for: {looked_for}",
        "Bring the data into one of these formats, or give the folder that holds it",
    )


def _unwrapped(folder: Folder) -> Folder:
    """Return the folder that holds the data: this one, or the only one in it when nothing of use lies beside that."""
    for _ in range(_DEEPEST):
        beside = (file for file in folder.files if "/" not in file)
        if len(folder.folders) != 1 or any(is_image(file) or file.endswith(_DATA_SUFFIXES) for file in beside):
            break
        folder = folder.descend(folder.folders[0])
    return folder


def _note_leftovers(folder: Folder, data: SourceDataset, findings: Findings) -> None:
    """Note what the folder holds beyond the data that was read."""
    used = {image.file for image in data.images}
    for file in folder.images:
        if file not in used:
            findings.add(Kind.UNLISTED_IMAGE, file)
    for file in folder.files:
        in_image_folder = not _IMAGE_FOLDERS.isdisjoint(file.split("/")[:-1])
        if in_image_folder and not is_image(file) and not file.lower().endswith(_COMPANIONS):
            findings.add(Kind.OTHER_FILE, file)
