import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.findings import Kind
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.prepare_data.report import read_report
from yolo_distill.components.shared.errors import InputError

Problems = Callable[[Path], Counter[Kind]]


@pytest.fixture
def flat(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """Twenty labelled images without splits."""
    root = tmp_path / "flat"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for number in range(20):
        picture(number).save(root / f"images/{number:02d}.png")
        (root / f"labels/{number:02d}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (root / "classes.txt").write_text("thing\n")
    return root


def members(dataset: DetectionDataset) -> dict[str, str]:
    return {Path(r.file).stem: r.split for r in dataset.manifest.images}


def test_shares(flat: Path, tmp_path: Path) -> None:
    dataset = prepare(str(flat), tmp_path / "out", val_fraction=0.2, test_fraction=0.1)
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [14, 4, 2]
    assert read_report(dataset).drawn == ["test", "val"]
    without_test = prepare(str(flat), tmp_path / "out", val_fraction=0.2, test_fraction=0)
    assert [len(without_test.split(s)) for s in ("train", "val", "test")] == [16, 4, 0]


def test_seed_decides_and_names_do_not(flat: Path, tmp_path: Path) -> None:
    first = members(prepare(str(flat), tmp_path / "a", seed=0))
    assert members(prepare(str(flat), tmp_path / "b", seed=0)) == first
    assert members(prepare(str(flat), tmp_path / "c", seed=1)) != first
    for path in [*flat.glob("images/*"), *flat.glob("labels/*")]:
        path.rename(path.with_name(f"x{29 - int(path.stem):02d}{path.suffix}"))
    renamed = members(prepare(str(flat), tmp_path / "d", seed=0))
    assert {f"{29 - int(stem[1:]):02d}": split for stem, split in renamed.items()} == first


def test_one_more_image_moves_hardly_any(flat: Path, tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    before = members(prepare(str(flat), tmp_path / "a"))
    picture(100).save(flat / "images/more.png")
    (flat / "labels/more.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    after = members(prepare(str(flat), tmp_path / "b"))
    assert sum(after[name] != split for name, split in before.items()) <= 2


def test_small_sets_keep_something_for_training(flat: Path, tmp_path: Path) -> None:
    for number in range(4, 20):
        (flat / f"images/{number:02d}.png").unlink()
        (flat / f"labels/{number:02d}.txt").unlink()
    dataset = prepare(str(flat), tmp_path / "out")
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [2, 1, 1]
    (flat / "images/03.png").unlink()
    (flat / "labels/03.txt").unlink()
    with pytest.raises(InputError, match="has 3 labelled images for training, 1 of which would go to val, 1 of"):
        prepare(str(flat), tmp_path / "out2")


@pytest.mark.parametrize(("val", "test"), [(0, 0.1), (1, 0), (0.6, 0.4), (-0.1, 0.1), (0.1, -0.1), (float("nan"), 0)])
def test_shares_out_of_range(flat: Path, tmp_path: Path, val: float, test: float) -> None:
    with pytest.raises(InputError, match="val_fraction"):
        prepare(str(flat), tmp_path / "out", val_fraction=val, test_fraction=test)


def test_unlabelled_images_only_train(flat: Path, tmp_path: Path, problems: Problems) -> None:
    for number in range(12):
        (flat / f"labels/{number:02d}.txt").unlink()
    dataset = prepare(str(flat), tmp_path / "out", val_fraction=0.25, test_fraction=0.25)
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [16, 2, 2]
    assert all(r.labelled for s in ("val", "test") for r in dataset.split(s))
    assert problems(tmp_path / "out") == {Kind.UNLABELLED_TRAIN: 12}


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_labels(yolo: Path, tmp_path: Path, split: str) -> None:
    shutil.rmtree(yolo / f"labels/{split}")
    with pytest.raises(InputError, match=f"its {split} split has no labelled image"):
        prepare(str(yolo), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_boxes(yolo: Path, tmp_path: Path, split: str) -> None:
    for path in (yolo / f"labels/{split}").iterdir():
        path.write_text("")
    with pytest.raises(InputError, match=f"no image of the {split} split has a box"):
        prepare(str(yolo), tmp_path / "out", test_fraction=0)


def test_no_train_split(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").write_text("val: images/val\nnames: [ape, bee, cow]\n")
    with pytest.raises(InputError, match="has no train split, only val"):
        prepare(str(yolo), tmp_path / "out")


def test_too_few_training_images(yolo: Path, tmp_path: Path) -> None:
    for number in range(1, 8):
        (yolo / f"images/train/{number:02d}.jpg").unlink()
        (yolo / f"labels/train/{number:02d}.txt").unlink()
    with pytest.raises(InputError, match="has 1 labelled images for training"):
        prepare(str(yolo), tmp_path / "out", test_fraction=0)


def test_no_test_image_leaks_into_training(yolo: Path, tmp_path: Path) -> None:
    (yolo / "images/test").mkdir()
    (yolo / "labels/test").mkdir()
    for source, target in (("train/00", "test/00"), ("train/01", "test/x"), ("val/08", "test/y")):
        shutil.copy(yolo / f"images/{source}.jpg", yolo / f"images/{target}.jpg")
        shutil.copy(yolo / f"labels/{source}.txt", yolo / f"labels/{target}.txt")
    shutil.copy(yolo / "images/train/02.jpg", yolo / "images/val/z.jpg")
    (yolo / "labels/val/z.txt").write_text("1 0.3 0.3 0.1 0.1\n")
    shutil.copy(yolo / "images/train/03.jpg", yolo / "images/train/zz.jpg")
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [ape, bee, cow]\n")
    dataset = prepare(str(yolo), tmp_path / "out")
    found = {s: [Path(r.file).stem for r in dataset.split(s)] for s in ("train", "val", "test")}
    # The unlabelled copy gives way to the labelled one.
    assert found == {"train": ["03", "04", "05", "06", "07"], "val": ["09", "10", "z"], "test": ["00", "x", "y"]}
    duplicates = [str(f) for f in read_report(dataset).findings if f.kind == Kind.DUPLICATE_IMAGE]
    assert duplicates == [
        "images/train/00.jpg: the copy in train has the pixels of images/test/00.jpg in test",
        "images/train/01.jpg: the copy in train has the pixels of images/test/x.jpg in test",
        "images/train/02.jpg: the copy in train has the pixels of images/val/z.jpg in val, with other labels",
        "images/train/zz.jpg: the copy in train has the pixels of images/train/03.jpg in train, with other labels",
        "images/val/08.jpg: the copy in val has the pixels of images/test/y.jpg in test",
    ]


def test_copies_are_gone_before_splits_are_drawn(flat: Path, tmp_path: Path) -> None:
    for number in range(20):
        shutil.copy(flat / f"images/{number:02d}.png", flat / f"images/copy{number:02d}.png")
        shutil.copy(flat / f"labels/{number:02d}.txt", flat / f"labels/copy{number:02d}.txt")
    dataset = prepare(str(flat), tmp_path / "out")
    assert len(dataset.manifest.images) == 20
    assert len({r.sha256 for r in dataset.manifest.images}) == 20
