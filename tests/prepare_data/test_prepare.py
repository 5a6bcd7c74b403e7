import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from kfp import dsl, local
from PIL import Image

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.findings import ACTIONS, PROBLEMS, Kind
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.prepare_data.report import flat_counts, read_report, report_page
from yolo_distill.components.shared.errors import InputError


def test_earlier_output_is_replaced_only_by_a_whole_one(yolo: Path, tmp_path: Path) -> None:
    first = prepare(str(yolo), tmp_path / "out", seed=0)
    (yolo / "labels/train/00.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError):
        prepare(str(yolo), tmp_path / "out", seed=1)
    assert DetectionDataset.open(tmp_path / "out").digest == first.digest
    (yolo / "labels/train/00.txt").write_text("1 0.5 0.5 0.1 0.1\n")
    assert prepare(str(yolo), tmp_path / "out").digest != first.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "yolo"]


def test_source_is_left_alone(yolo: Path, tmp_path: Path) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in sorted(yolo.rglob("*"))}

    before = state()
    prepare(str(yolo), tmp_path / "out")
    assert state() == before


def test_formats_agree(yolo: Path, tmp_path: Path) -> None:
    """The same boxes from YOLO, VOC and COCO files give the same labels."""
    rng = np.random.default_rng(0)
    boxes = {}
    for number in range(11):
        x1, y1 = rng.integers(0, 30, 2).tolist()
        boxes[number] = (number % 3, x1, y1, x1 + 10 + number, y1 + 8 + number)
    names = ["ape", "bee", "cow"]
    voc, coco = tmp_path / "voc", tmp_path / "coco"
    (voc / "Annotations").mkdir(parents=True)
    (voc / "ImageSets/Main").mkdir(parents=True)
    (voc / "JPEGImages").mkdir()
    coco.mkdir()
    for split, numbers in (("train", range(8)), ("val", range(8, 11))):
        content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
        for number in numbers:
            category, x1, y1, x2, y2 = boxes[number]
            width, height = x2 - x1, y2 - y1
            (yolo / f"labels/{split}/{number:02d}.txt").write_text(
                f"{category} {(x1 + x2) / 128} {(y1 + y2) / 96} {width / 64} {height / 48}"
            )
            shutil.copy(yolo / f"images/{split}/{number:02d}.jpg", voc / "JPEGImages")
            shutil.copy(yolo / f"images/{split}/{number:02d}.jpg", coco)
            corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            (voc / f"Annotations/{number:02d}.xml").write_text(
                f"<annotation><object><name>{names[category]}</name><bndbox>{corners}</bndbox></object></annotation>"
            )
            content["images"].append({"id": number, "file_name": f"{number:02d}.jpg", "width": 64, "height": 48})
            bbox = [x1, y1, width, height]
            content["annotations"].append({"id": number, "image_id": number, "category_id": category, "bbox": bbox})
        (voc / f"ImageSets/Main/{split}.txt").write_text("\n".join(f"{n:02d}" for n in numbers))
        (coco / f"instances_{split}.json").write_text(json.dumps(content))
    digests = {prepare(str(root), tmp_path / f"{root.name}-out").digest for root in (yolo, voc, coco)}
    assert len(digests) == 1


def test_names_are_safe_and_unique(tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    root = tmp_path / "odd"
    names = [
        "a b",
        "a_b",
        "A_B",
        "ü",
        "图像",
        "-rf",
        "..hidden",
        "x" * 200,
        "deep/a b",
        "deep/er/a b",
        "semi;colon$(x)",
    ]
    for number, name in enumerate(names):
        for kind, suffix in (("images", ".png"), ("labels", ".txt")):
            path = root / kind / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "images":
                picture(number).save(path)
            else:
                path.write_text("0 0.5 0.5 0.25 0.5\n")
    (root / "images/..hidden.png").rename(root / "images/y..hidden.png")
    (root / "labels/..hidden.txt").rename(root / "labels/y..hidden.txt")
    (root / "classes.txt").write_text("ding\n")
    dataset = prepare(str(root), tmp_path / "out", test_fraction=0)
    assert len(dataset.manifest.images) == len(names)
    stems = [Path(r.file).stem for r in dataset.manifest.images]
    for record, stem in zip(dataset.manifest.images, stems, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", stem)
        assert len(stem) < 100
        assert record.boxes == 1
    by_split = [(r.split, Path(r.file).stem.lower()) for r in dataset.manifest.images]
    assert len(set(by_split)) == len(names)
    origins = read_report(dataset).origins
    assert sorted(origins.values()) == sorted(f"images/{n}.png".replace("..hidden", "y..hidden") for n in names)


def test_ultralytics_reads_the_artifact(yolo: Path, tmp_path: Path) -> None:
    import yolo_distill.components.shared.ultralytics_env  # noqa: F401

    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    (yolo / "labels/train/02.txt").unlink()
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    data = check_det_dataset(str(dataset.data_yaml), autodownload=False)
    assert data["names"] == {0: "ape", 1: "bee", 2: "cow"}
    read = YOLODataset(img_path=data["train"], data=data, augment=False, imgsz=64)
    assert len(read) == 8
    assert sum(len(label["cls"]) for label in read.labels) == 7
    assert yaml.safe_load(dataset.data_yaml.read_text())["names"] == {0: "ape", 1: "bee", 2: "cow"}


@pytest.mark.parametrize("on_error", ["", "ignore", "STOP"])
def test_unknown_policy(yolo: Path, tmp_path: Path, on_error: str) -> None:
    with pytest.raises(InputError, match="stop or drop"):
        prepare(str(yolo), tmp_path / "out", on_error=on_error)


def test_label_mistakes_are_told_before_images_are_decoded(
    yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (yolo / "labels/train/00.txt").write_text("9 0.5 0.5 0.1 0.1\n")

    def fail(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("yolo_distill.components.prepare_data.prepare.inspect", fail)
    with pytest.raises(InputError, match="class 9 is out of range"):
        prepare(str(yolo), tmp_path / "out")


def test_image_changed_in_the_meantime(yolo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(*_: object) -> None:
        (yolo / "images/train/00.jpg").write_bytes(b"something else")

    monkeypatch.setattr("yolo_distill.components.prepare_data.prepare.require_free_space", overwrite)
    with pytest.raises(InputError, match="was changed while the data were prepared"):
        prepare(str(yolo), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["yolo"]


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_full_while_writing(small_disk: Path) -> None:
    with pytest.raises(InputError, match="no disk space left while writing"):
        prepare("digits:train=100,val=20,test=20", small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_disk_too_small_is_seen_before_writing(
    tmp_path: Path, yolo: Path, picture: Callable[..., Image.Image], small_disk: Path
) -> None:
    for number in range(8):
        picture(number, 200, 200).save(yolo / f"images/train/{number:02d}.jpg", "PNG")
    with pytest.raises(InputError, match="GB are free on its disk"):
        prepare(str(yolo), small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_disk_full_while_unpacking(
    tmp_path: Path, yolo: Path, small_disk: Path, zip_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else fills the disk after its free space was looked at."""
    (yolo / "images/train/more.bmp").write_bytes(bytes(400_000))
    archive = zip_folder(yolo, tmp_path / "a.zip")
    plenty = type("Usage", (), {"free": 10**12})
    monkeypatch.setattr("yolo_distill.components.prepare_data.archives.shutil.disk_usage", lambda _: plenty)
    with pytest.raises(InputError, match="no disk space left while writing"):
        prepare(str(archive), small_disk / "out")
    assert list(small_disk.iterdir()) == []


# The report


class Page(HTMLParser):
    """Collects a page's text and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_report_page(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnames: ['<script>x</script>', 蜂, cow]\n")
    (yolo / "labels/train/00.txt").write_text("0 0.5 0.5 0 0.5\n9 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0, on_error="drop")
    page = Page(report_page(dataset))
    # It loads nothing, and names from the data are text.
    assert all(source.startswith("data:image/") for source in page.sources)
    assert len(page.sources) == 2
    assert "script" not in page.tags
    assert "<script>x</script>" in page.words and "蜂" in page.words
    for expected in ("box without area", "class out of range", "class 9 is out of range 0..2", "line 2", "box dropped"):
        assert expected in page.words
    assert dataset.digest in page.words


def test_report_of_many_findings_stays_readable(yolo: Path, tmp_path: Path) -> None:
    rows = "".join(f"0 {n / 1000:.3f} 0.5 0.001 0\n" for n in range(400))
    (yolo / "labels/train/00.txt").write_text("9 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n" + rows)
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0, on_error="drop")
    page = Page(report_page(dataset))
    assert len(read_report(dataset).findings) == 401
    assert "101 more are in report.json." in page.words
    # What somebody ought to mend comes first.
    assert page.words.index("class 9 is out of range 0..2") < page.words.index("line 3")


def test_counts(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels/train/00.txt").write_text("0 0.5 0.5 0 0.5\n")
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    train = read_report(dataset).splits["train"]
    assert (train.images, train.unlabelled, train.boxes) == (8, 0, 7)
    assert train.boxes_by_class == {"ape": 2, "bee": 3, "cow": 2}
    assert flat_counts(dataset) == {
        "train/images": 8,
        "train/boxes": 7,
        "val/images": 3,
        "val/boxes": 3,
        "found/box without area": 1,
    }


def test_every_kind_has_an_action() -> None:
    assert set(ACTIONS) == set(Kind)
    assert set(Kind) > PROBLEMS


# The component


@pytest.fixture
def kfp_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"), raise_on_error=True)
    return tmp_path / "root"


def test_component(yolo: Path, kfp_runner: Path) -> None:
    from yolo_distill.components.prepare_data.component import prepare_data

    task = prepare_data(source=str(yolo), test_fraction=0.0)
    dataset = DetectionDataset.open(Path(task.outputs["dataset"].path))
    assert len(dataset.manifest.images) == 11
    assert task.outputs["dataset"].metadata["digest"] == dataset.digest
    assert "<h1>" in Path(task.outputs["report"].path).read_text()
    assert isinstance(task.outputs["report"], dsl.HTML)
