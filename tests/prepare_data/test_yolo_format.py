import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from yolo_distill.components.prepare_data.findings import Kind
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.prepare_data.report import read_report
from yolo_distill.components.shared.errors import InputError


def test_reads_data_yaml(yolo: Path, tmp_path: Path) -> None:
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert dataset.classes == ["ape", "bee", "cow"]
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [8, 3, 0]
    record = dataset.split("val")[0]
    assert record.file == "images/val/08.jpg"
    boxes, classes = dataset.boxes(record)
    np.testing.assert_allclose(boxes, [[24, 12, 40, 36]])
    assert classes.tolist() == [8 % 3]
    # An upright 8-bit RGB JPEG is taken byte for byte.
    assert dataset.image_path(record).read_bytes() == (yolo / "images/val/08.jpg").read_bytes()
    assert read_report(dataset).findings == []
    assert read_report(dataset).origins[record.file] == "images/val/08.jpg"


@pytest.mark.parametrize(
    "names",
    ["names: {0: ape, 1: bee, 2: cow}\nnc: 3", "names:\n  - ape\n  - bee\n  - cow", "names: ['ape', 'bee', 'cow']"],
)
def test_ways_to_name_classes(yolo: Path, tmp_path: Path, names: str) -> None:
    (yolo / "data.yaml").write_text(f"train: images/train\nval: images/val\n{names}\n")
    assert prepare(str(yolo), tmp_path / "out").classes == ["ape", "bee", "cow"]


@pytest.mark.parametrize(
    ("train", "count"),
    [
        ("train: ../images/train", 8),  # as Roboflow exports it
        ("path: /content/drive/somewhere\ntrain: images/train", 8),
        ("path: images\ntrain: train", 8),
        ("train: [images/train, images/more]", 9),
        ("train: train.txt", 2),
        ("path: images\ntrain: lists/train.txt", 3),
        ("train: [images/train/00.jpg, images/train/01.jpg]", 2),
    ],
)
def test_ways_to_name_splits(
    yolo: Path, tmp_path: Path, picture: Callable[..., Image.Image], train: str, count: int
) -> None:
    (yolo / "images/more").mkdir()
    (yolo / "images/lists").mkdir()
    (yolo / "labels/more").mkdir()
    picture(99).save(yolo / "images/more/99.png")
    (yolo / "labels/more/99.txt").write_text("")
    (yolo / "train.txt").write_text(f"./images/train/00.jpg\n\n{yolo}/images/train/01.jpg\n")
    (yolo / "images/lists/train.txt").write_text("train/02.jpg\ntrain/03.jpg\nimages/train/04.jpg\n")
    (yolo / "data.yaml").write_text(f"{train}\nval: ../images/val\nnames: [ape, bee, cow]\n")
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert len(dataset.split("train")) == count
    assert len(dataset.split("val")) == 3


def test_list_names_missing_image(yolo: Path, tmp_path: Path) -> None:
    (yolo / "train.txt").write_text(
        "images/train/00.jpg\nimages/train/01.jpg\nimages/train/gone.jpg\n../../etc/passwd\n"
    )
    (yolo / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [ape, bee, cow]\n")
    report = read_report(prepare(str(yolo), tmp_path / "out", test_fraction=0))
    missing = [str(f) for f in report.findings if f.kind == Kind.MISSING_IMAGE]
    assert missing == [
        "train.txt line 3: images/train/gone.jpg is not in the folder",
        "train.txt line 4: ../../etc/passwd is not in the folder",
    ]
    unlisted = [f.file for f in report.findings if f.kind == Kind.UNLISTED_IMAGE]
    assert unlisted == [f"images/train/{n:02d}.jpg" for n in range(2, 8)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train\nval: images/valid\nnames: [ape]", "val: 'images/valid' leads to no images"),
        ("train: ../../elsewhere\nval: images/val\nnames: [ape]", "train: '../../elsewhere' leads to no images"),
        ("train: images/train\nval: images/val\nnames: {0: ape, 2: cow}", "keys of names are not 0, 1, 2"),
        ("train: images/train\nval: images/val\nnames: []", "names"),
        ("train: images/train\nval: images/val\nnames: [yes, no, maybe]", "names"),
        ("train: images/train\nval: images/val\nnames: [ape, ape, cow]", "two of the same name"),
        ("train: images/train\nval: images/val\nnc: 2\nnames: [ape, bee, cow]", "nc is 2, but 3 names"),
        ("train: images/train\nval: [1, 2]\nnames: [ape, bee, cow]", "val"),
        ("train: images/train\n  val: [\nnames", "not valid YAML"),
        ("train: !!python/object/apply:os.system [true]\nnames: [a]", "not valid YAML"),
    ],
)
def test_bad_data_yaml(yolo: Path, tmp_path: Path, text: str, words: str) -> None:
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(words)):
        prepare(str(yolo), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_yaml_files_do_not_matter(yolo: Path, tmp_path: Path) -> None:
    (yolo / "compose.yaml").write_text("services: !reset {}\n")
    (yolo / "hyp.yml").write_text("lr0: 0.1\n")
    (yolo / "data.yaml").rename(yolo / "animals.yml")
    assert prepare(str(yolo), tmp_path / "out").classes == ["ape", "bee", "cow"]


def test_several_descriptions(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").rename(yolo / "a.yaml")
    (yolo / "b.yaml").write_text((yolo / "a.yaml").read_text())
    with pytest.raises(InputError, match=r"several data set descriptions: a.yaml, b.yaml"):
        prepare(str(yolo), tmp_path / "out")


@pytest.mark.parametrize("layout", ["split folders", "split first", "flat", "beside"])
def test_folders_with_class_file(yolo: Path, tmp_path: Path, layout: str) -> None:
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_text("ape\nbee\ncow\n")
    root = yolo
    if layout != "split folders":
        root = tmp_path / "moved"
        root.mkdir()
        (yolo / "classes.txt").rename(root / "classes.txt")
        for path in sorted(yolo.glob("*/*/*.*")):
            kind, split, name = path.relative_to(yolo).parts
            split = {"train": "train", "val": "valid"}[split]
            target = root / {"split first": f"{split}/{kind}/{name}", "flat": f"{kind}/{name}", "beside": name}[layout]
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    dataset = prepare(str(root), tmp_path / "out", val_fraction=0.2, test_fraction=0)
    official = layout in {"split folders", "split first"}
    assert [len(dataset.split(s)) for s in ("train", "val")] == ([8, 3] if official else [9, 2])
    assert sum(r.boxes for r in dataset.manifest.images) == 11
    assert read_report(dataset).drawn == ([] if official else ["val"])
    assert read_report(dataset).findings == []


def test_no_class_names(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").unlink()
    with pytest.raises(InputError, match=r"nothing that names the classes.*classes\.txt"):
        prepare(str(yolo), tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("3 0.5 0.5 0.1 0.1", "class 3 is out of range 0..2"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is out of range"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not a whole number"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is not a whole number"),
        ("0 nan 0.5 0.1 0.1", "not finite"),
        ("0 0.5 0.5 inf 0.1", "not finite"),
        ("0 0.5 0.5 0.1", "has 4 columns"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 columns"),
        ("ape 0.5 0.5 0.1 0.1", "not a number"),
        ("0 0.5 0.5 -0.1 0.1", "negative"),
        ("0 1.5 0.5 0.1 0.1", "altogether outside"),
        ("0 32 24 16 12", "altogether outside"),  # pixels, not fractions
        ("0 1.04 0.5 0.1 0.1", "mostly outside"),
        ("0 0.1 0.1 nan 0.1 0.3 0.3", "not finite"),
    ],
)
def test_mistake_in_a_row(
    yolo: Path, tmp_path: Path, problems: Callable[[Path], Counter[Kind]], row: str, words: str
) -> None:
    (yolo / "labels/train/02.txt").write_text(f"1 0.5 0.5 0.25 0.5\n{row}\n")
    with pytest.raises(InputError) as caught:
        prepare(str(yolo), tmp_path / "out")
    assert "labels/train/02.txt line 2: " in str(caught.value)
    assert words in str(caught.value)
    assert "on_error=drop" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["yolo"]

    dataset = prepare(str(yolo), tmp_path / "out", on_error="drop")
    assert sum(problems(tmp_path / "out").values()) == 1
    record = next(r for r in dataset.manifest.images if r.file.endswith("/02.jpg"))
    assert record.boxes == 1


def test_many_mistakes_at_once(yolo: Path, tmp_path: Path) -> None:
    for number in range(8):
        (yolo / f"labels/train/{number:02d}.txt").write_text("9 0.5 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1\n")
    with pytest.raises(InputError) as caught:
        prepare(str(yolo), tmp_path / "out")
    message = str(caught.value)
    assert "16 problems were found:" in message
    assert message.count(" line ") == 10
    assert "… and 6 more" in message


def test_binary_label_file(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels/train/02.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match=r"labels/train/02.txt: is not UTF-8 text"):
        prepare(str(yolo), tmp_path / "out")
    dataset = prepare(str(yolo), tmp_path / "out", on_error="drop")
    # Nobody knows what it showed: it must not pass for an image without objects.
    assert not next(r for r in dataset.manifest.images if r.file.endswith("/02.jpg")).labelled


def test_harmless_noise(yolo: Path, tmp_path: Path, problems: Callable[[Path], Counter[Kind]]) -> None:
    (yolo / "labels/train/00.txt").write_text(
        "0 0.5 0.5 0 0.5\n0 0.98 0.5 0.1 0.5\n\n1 0.5 0.5 0.2 0.2\n1.0 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.2 0.2\n"
    )
    (yolo / "labels/train/01.txt").write_text("")
    (yolo / "labels/train/02.txt").unlink()
    (yolo / "labels/train/gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (yolo / "labels/val/08.txt").unlink()
    (yolo / "labels/train/03.txt").write_text("2 0.1 0.2 0.5 0.1 0.4 0.6\n")
    (yolo / "images/train/Thumbs.db").write_bytes(b"x")
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert problems(tmp_path / "out") == {
        Kind.EMPTY_BOX: 1,
        Kind.CLIPPED_BOX: 1,
        Kind.DUPLICATE_BOX: 1,
        Kind.UNLABELLED_TRAIN: 1,
        Kind.UNLABELLED_OTHER: 1,
        Kind.MISSING_IMAGE: 1,
        Kind.POLYGON: 1,
        Kind.OTHER_FILE: 1,
    }
    records = {Path(r.file).stem: r for r in dataset.manifest.images}
    boxes, classes = dataset.boxes(records["00"])
    assert classes.tolist() == [0, 1, 2]
    np.testing.assert_allclose(boxes[0], [0.93 * 64, 12, 64, 36], atol=1e-3)
    assert records["01"].labelled and records["01"].boxes == 0
    assert not records["02"].labelled
    assert "08" not in records
    np.testing.assert_allclose(dataset.boxes(records["03"])[0], [[6.4, 4.8, 32, 28.8]], atol=1e-3)


def test_labels_of_mixed_line_ends_and_byte_order_mark(yolo: Path, tmp_path: Path) -> None:
    (yolo / "labels/train/00.txt").write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.1 0.1\r\n1\t0.5 0.5  0.1 0.2 \r\n")
    dataset = prepare(str(yolo), tmp_path / "out")
    assert next(r for r in dataset.manifest.images if r.file.endswith("/00.jpg")).boxes == 2


def test_coco128(test_data: Path, tmp_path: Path, problems: Callable[[Path], Counter[Kind]]) -> None:
    dataset = prepare(str(test_data / "coco128"), tmp_path / "out", test_fraction=0)
    assert len(dataset.classes) == 80
    assert [len(dataset.split(s)) for s in ("train", "val")] == [128, 128]
    assert [Path(r.file).name for r in dataset.manifest.images if not r.labelled] == [
        "000000000250.jpg",
        "000000000508.jpg",
    ]
    assert problems(tmp_path / "out")[Kind.UNLABELLED_TRAIN] == 2
