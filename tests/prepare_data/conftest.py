"""Small real data sets in every format, written by hand so that the readers are not tested against themselves."""

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.findings import Kind
from yolo_distill.components.prepare_data.report import read_report

WIDTH, HEIGHT = 64, 48


def make_picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture like no other."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Makes a picture like no other of its number."""
    return make_picture


@pytest.fixture
def problems() -> Callable[[Path], Counter[Kind]]:
    """Counts what the report of a prepared folder lists."""

    def count(root: Path) -> Counter[Kind]:
        return Counter(finding.kind for finding in read_report(DetectionDataset.open(root)).findings)

    return count


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Eight images of a train split and three of a val split, each with one box of class n % 3 in the middle."""
    return make_yolo(tmp_path / "yolo")


@pytest.fixture(scope="session")
def stored_yolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for tests that leave it as it is."""
    return make_yolo(tmp_path_factory.mktemp("stored") / "yolo")


def make_yolo(root: Path) -> Path:
    for split, numbers in (("train", range(8)), ("val", range(8, 11))):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in numbers:
            make_picture(number).save(root / f"images/{split}/{number:02d}.jpg")
            (root / f"labels/{split}/{number:02d}.txt").write_text(f"{number % 3} 0.5 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [ape, bee, cow]\n")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Nine images, four of them in the train list, three in val, two in test."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(9):
        make_picture(number).save(root / f"JPEGImages/{number}.jpg")
        make_xml(root, number, [("cow" if number % 2 else "ape", 16, 12, 48, 36)])
    for split, numbers in (("train", "0123"), ("val", "456"), ("test", "78")):
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(numbers) + "\n")
    return root


@pytest.fixture
def write_xml() -> Callable[..., Path]:
    """Writes an annotation file of the VOC folder anew."""
    return make_xml


def make_xml(root: Path, number: int, objects: list[tuple], size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    text = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>\n"
        for name, x1, y1, x2, y2 in objects
    )
    size_text = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n"
    path = root / f"Annotations/{number}.xml"
    path.write_text(f"<annotation>\n<filename>{number}.jpg</filename>\n{size_text}{text}</annotation>\n")
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Five training and three validation images; category ids 7 and 3, given in that order."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split, numbers in (("train", range(5)), ("val", range(5, 8))):
        folder = root / f"{split}2017"
        folder.mkdir()
        content = {
            "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
            "images": [{"id": n, "file_name": f"{n:03d}.jpg", "width": WIDTH, "height": HEIGHT} for n in numbers],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 7 if n % 2 else 3, "bbox": [16, 12, 32, 24], "iscrowd": 0}
                for n in numbers
            ],
        }
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
        for number in numbers:
            make_picture(number).save(folder / f"{number:03d}.jpg")
    return root


@pytest.fixture
def change_json() -> Callable[..., None]:
    """Changes the content of a JSON file by a function."""

    def change(path: Path, edit: Callable[[dict], None]) -> None:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change


@pytest.fixture
def zip_folder() -> Callable[..., Path]:
    """Packs a folder into a zip archive."""
    return make_zip


def make_zip(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


@pytest.fixture
def yolo_zip(yolo: Path, tmp_path: Path) -> Path:
    return make_zip(yolo, tmp_path / "yolo.zip", "wrapped/")
