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

BILLION_LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<annotation><object><name>&c;</name></object></annotation>"""
EXTERNAL_ENTITY = """<?xml version="1.0"?>
<!DOCTYPE a [<!ENTITY secret SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&secret;</name></object></annotation>"""
PARAMETER_ENTITY = """<?xml version="1.0"?>
<!DOCTYPE a [<!ENTITY % remote SYSTEM "http://127.0.0.1:9/evil.dtd"> %remote;]>
<annotation/>"""


def test_reads_official_splits(voc: Path, tmp_path: Path) -> None:
    dataset = prepare(str(voc), tmp_path / "out")
    assert [[Path(r.file).stem for r in dataset.split(s)] for s in ("train", "val", "test")] == [
        ["0", "1", "2", "3"],
        ["4", "5", "6"],
        ["7", "8"],
    ]
    assert dataset.classes == ["ape", "cow"]
    boxes, classes = dataset.boxes(dataset.split("train")[1])
    np.testing.assert_allclose(boxes, [[16, 12, 48, 36]], atol=1e-3)
    assert classes.tolist() == [1]
    report = read_report(dataset)
    assert (report.format, report.findings, report.drawn) == ("Pascal VOC", [], [])


@pytest.mark.parametrize(("lists", "counts"), [("trainval test", [6, 1, 2]), ("train", [2, 1, 1]), ("", [7, 1, 1])])
def test_missing_lists_are_drawn(voc: Path, tmp_path: Path, lists: str, counts: list[int]) -> None:
    main = voc / "ImageSets/Main"
    (main / "trainval.txt").write_text("0 1\n1 -1\n2\n3\n4\n5\n6\n")
    (main / "ape_train.txt").write_text("0 1\n1 -1\n")
    for path in main.glob("*.txt"):
        if path.stem not in lists.split() and not path.stem.startswith("ape"):
            path.unlink()
    dataset = prepare(str(voc), tmp_path / "out")
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == counts


def test_lists_name_missing_and_leave_out(voc: Path, tmp_path: Path, problems: Callable[[Path], Counter[Kind]]) -> None:
    (voc / "ImageSets/Main/train.txt").write_text("0\n1\n99\n")
    (voc / "Annotations/100.xml").write_text("<annotation/>")
    prepare(str(voc), tmp_path / "out")
    assert problems(tmp_path / "out") == {Kind.UNLISTED_IMAGE: 2, Kind.MISSING_IMAGE: 2}


@pytest.mark.parametrize("text", [BILLION_LAUGHS, EXTERNAL_ENTITY, PARAMETER_ENTITY])
def test_entities_are_refused(voc: Path, tmp_path: Path, text: str) -> None:
    (voc / "Annotations/2.xml").write_text(text)
    with pytest.raises(InputError, match=r"Annotations/2\.xml: declares XML entities") as caught:
        prepare(str(voc), tmp_path / "out")
    assert "root:" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["voc"]
    dataset = prepare(str(voc), tmp_path / "out", on_error="drop")
    assert not dataset.split("train")[2].labelled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotation>\n<object>\n</annotation>", "line 3: is not valid XML: mismatched tag"),
        ("", "no element found"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not valid XML"),
        ("<annotation><object><name>ape</name></object></annotation>", "object 1 (ape): a corner is not a number"),
        (
            "<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
            "</annotation>",
            "object 1 (without a name): the object has no class name",
        ),
    ],
)
def test_broken_xml(voc: Path, tmp_path: Path, text: str, words: str) -> None:
    (voc / "Annotations/2.xml").write_text(text)
    with pytest.raises(InputError, match=r"Annotations/2\.xml") as caught:
        prepare(str(voc), tmp_path / "out")
    assert words in str(caught.value)
    prepare(str(voc), tmp_path / "out", on_error="drop")


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (("ape", 70, 12, 80, 36), "altogether outside"),
        (("ape", 40, 12, 20, 36), "negative"),
        (("ape", "nan", 12, 20, 36), "not finite"),
        (("ape", "left", 12, 20, 36), "not a number: xmin=left"),
    ],
)
def test_mistake_in_a_box(
    voc: Path, tmp_path: Path, write_xml: Callable[..., Path], box: tuple[object, ...], words: str
) -> None:
    write_xml(voc, 2, [("cow", 16, 12, 48, 36), box])
    with pytest.raises(InputError) as caught:
        prepare(str(voc), tmp_path / "out")
    assert "Annotations/2.xml object 2 (ape)" in str(caught.value)
    assert words in str(caught.value)
    dataset = prepare(str(voc), tmp_path / "out", on_error="drop")
    assert dataset.split("train")[2].boxes == 1


def test_labels_for_another_size(voc: Path, tmp_path: Path, write_xml: Callable[..., Path]) -> None:
    write_xml(voc, 2, [("ape", 16, 12, 48, 36)], size=(128, 96))
    with pytest.raises(InputError, match=r"JPEGImages/2.jpg: the labels are for 128x96 pixels.*64x48"):
        prepare(str(voc), tmp_path / "out")


def test_size_not_declared(voc: Path, tmp_path: Path, write_xml: Callable[..., Path]) -> None:
    write_xml(voc, 2, [("ape", 16, 12, 48, 36)], size=(0, 0))
    (voc / "Annotations/3.xml").write_text((voc / "Annotations/1.xml").read_text().replace("size>", "measure>"))
    dataset = prepare(str(voc), tmp_path / "out")
    for record in dataset.split("train")[2:]:
        np.testing.assert_allclose(dataset.boxes(record)[0], [[16, 12, 48, 36]], atol=1e-3)


def test_labels_beside_images_in_split_folders(voc: Path, tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    """As Roboflow exports the format."""
    root = tmp_path / "beside"
    for number in range(9):
        folder = root / ("train" if number < 6 else "valid" if number < 8 else "test")
        folder.mkdir(parents=True, exist_ok=True)
        (voc / f"JPEGImages/{number}.jpg").rename(folder / f"{number}.jpg")
        (voc / f"Annotations/{number}.xml").rename(folder / f"{number}.xml")
    dataset = prepare(str(root), tmp_path / "out")
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [6, 2, 1]


@pytest.mark.parametrize("given", ["BCCD", "bccd"])
def test_bccd(bccd_root: Path, tmp_path: Path, given: str) -> None:
    root = bccd_root if given == "BCCD" else bccd_root.parent
    dataset = prepare(str(root), tmp_path / "out")
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [205, 87, 72]
    assert dataset.classes == ["Platelets", "RBC", "WBC"]
    assert sum(r.boxes for r in dataset.manifest.images) == 4886
    findings = [(f.kind, f.file) for f in read_report(dataset).findings]
    assert findings == [
        (Kind.EMPTY_BOX, "Annotations/BloodImage_00338.xml"),
        (Kind.EMPTY_BOX, "Annotations/BloodImage_00343.xml"),
    ]
