"""Images and folders, ordinary ones and such as cameras, scanners and print shops make."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.prediction.commands import done, results, run
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.shared.detector import detect, open_detector, read_image
from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.prediction.results import annotate, class_colour
from yolo_distill.pipelines.prediction.sources import read_picture

CONF = "--conf=0.2"


@pytest.fixture
def scene(digits: DetectionDataset) -> Path:
    return digits.image_path(digits.split("val")[1])


@pytest.mark.parametrize("model", ["int8", "int8/model.xml", "openvino", "onnx", "onnx/model.onnx", "distilled"])
def test_one_image(models, scene, tmp_path, model):
    Image.open(scene).save(tmp_path / "photo.png")
    shown = done(tmp_path, models / model, "photo.png", CONF)
    detector = open_detector(models / model)
    [expected] = detect(detector, [read_image(scene)], 0.2)
    assert len(expected) > 0
    [line] = results(tmp_path / "predictions")
    assert (line["source"], line["frame"], line["width"], line["height"]) == ("photo.png", None, 160, 160)
    assert [o["class_index"] for o in line["objects"]] == expected.classes.tolist()
    assert [o["label"] for o in line["objects"]] == [detector.classes[c] for c in expected.classes]
    assert [o["score"] for o in line["objects"]] == pytest.approx(expected.scores, abs=1e-4)
    assert np.array([o["box"] for o in line["objects"]]) == pytest.approx(expected.boxes, abs=0.01)
    assert shown.startswith("photo.png: 160x160, ")
    assert shown.splitlines()[-1] == "Written to predictions, with every box in detections.jsonl"
    drawn, wanted = cv2.imread(str(tmp_path / "predictions" / "photo.png")), read_image(scene)
    assert not np.array_equal(drawn, wanted)
    annotate(wanted, expected, detector.classes)
    assert np.array_equal(drawn, wanted)


def test_a_folder(models, digits, tmp_path):
    pictures = [digits.image_path(record) for record in digits.split("val")[:3]]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    shutil.copy(pictures[0], tmp_path / "in")
    shutil.copy(pictures[1], tmp_path / "in" / "deep")
    Image.open(pictures[2]).save(tmp_path / "in" / "scan.tif")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    shown = done(tmp_path, models / "int8", "in", CONF, "--output", "in/out")
    names = [f"deep/{pictures[1].name}", pictures[0].name, "scan.tif"]
    assert [line["source"] for line in results(tmp_path / "in/out")] == sorted(names)
    made = {p.relative_to(tmp_path / "in/out").as_posix() for p in (tmp_path / "in/out").rglob("*") if p.is_file()}
    assert made == {*names[:2], "scan.tif.jpg", "detections.jsonl"}
    assert [line.partition(":")[0] for line in shown.splitlines()[:3]] == sorted(names)
    assert shown.splitlines()[3].startswith("3 images, ")
    # What was made is no source the next time.
    done(tmp_path, models / "int8", "in", CONF, "--output", "in/out")
    assert len(results(tmp_path / "in/out")) == 3


def test_some_classes_alone(models, scene, tmp_path):
    done(tmp_path, models / "openvino", scene, "--conf=0.001", "-o", "all")
    done(tmp_path, models / "openvino", scene, "--conf=0.001", "-o", "some", "--classes=3, 5")
    [everything], [some] = results(tmp_path / "all"), results(tmp_path / "some")
    assert {o["label"] for o in some["objects"]} == {"3", "5"}
    # At most 300 are kept of all, but of those of some classes no fewer.
    wanted = [o for o in everything["objects"] if o["label"] in {"3", "5"}]
    assert some["objects"][: len(wanted)] == wanted


def upright(path: Path) -> np.ndarray:
    """Return an image's upright RGB pixels, 8 bits a channel."""
    return np.asarray(Image.open(path).convert("RGB"))


def turned(source: Path, target: Path) -> None:
    """Store an image lying on its side, with the tag that says so."""
    lying = Image.open(source).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[ExifTags.Base.Orientation] = 6
    lying.save(target, exif=lying.getexif(), quality=100, subsampling=0)


def deep(source: Path, target: Path) -> None:
    cv2.imwrite(str(target), cv2.imread(str(source)).astype(np.uint16) * 257)


def grey(source: Path, target: Path) -> None:
    Image.open(source).convert("L").save(target, **({"quality": 100} if target.suffix == ".jpg" else {}))


def cmyk(source: Path, target: Path) -> None:
    Image.open(source).convert("RGB").convert("CMYK").save(target, quality=100, subsampling=0)


def transparent(source: Path, target: Path) -> None:
    Image.open(source).convert("RGBA").save(target)


@pytest.mark.parametrize(
    ("make", "name", "tolerance"),
    [
        (turned, "turned.jpg", 2),
        (turned, "turned.png", 0),
        (deep, "deep.png", 0),
        (deep, "deep.tif", 0),
        (grey, "grey.png", 0),
        (grey, "grey.jpg", 2),
        (cmyk, "cmyk.jpg", 3),
        (cmyk, "cmyk.tif", 1),
        (transparent, "transparent.png", 0),
    ],
)
def test_an_unusual_image_is_the_same_as_its_upright_colour_image(models, scene, tmp_path, make, name, tolerance):
    cropped = tmp_path / "cropped.png"
    Image.open(scene).crop((0, 0, 160, 100)).save(cropped)
    make(cropped, tmp_path / name)
    source = cropped
    if make is grey:
        Image.open(cropped).convert("L").convert("RGB").save(tmp_path / "plain.png")
        source = tmp_path / "plain.png"
    pixels = read_picture(tmp_path / name)
    assert pixels.shape == (100, 160, 3)
    assert np.abs(pixels[..., ::-1].astype(int) - upright(source)).max() <= 8 * tolerance
    assert np.abs(pixels[..., ::-1].astype(int) - upright(source)).mean() <= tolerance
    detector = open_detector(models / "openvino")
    made, expected = detect(detector, [pixels, read_image(source)], 0.2)
    assert len(expected) > 0
    same = made.classes == expected.classes[0]
    assert made.scores[same][0] == pytest.approx(expected.scores[0], abs=0.02 if tolerance else 1e-5)
    if not tolerance:
        assert made.boxes == pytest.approx(expected.boxes, abs=0.01)


def test_images_are_read_as_for_training(scene, tmp_path):
    """Labels refer to what prepare-data stores: that is what predict must see, too."""
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("digit\n")
    makers = [(turned, "a.jpg"), (turned, "b.png"), (deep, "c.png"), (grey, "d.jpg"), (cmyk, "e.jpg")]
    for number, (make, name) in enumerate(makers):
        crop = Image.open(scene).crop((number, 0, 150, 100))
        crop.save(tmp_path / "crop.png")
        make(tmp_path / "crop.png", tmp_path / "data/images" / name)
        (tmp_path / f"data/labels/{Path(name).stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    dataset = prepare(str(tmp_path / "data"), tmp_path / "dataset", val_fraction=0.3, test_fraction=0)
    assert len(dataset.manifest.images) == 5
    for record in dataset.manifest.images:
        [original] = (tmp_path / "data/images").glob(f"{Path(record.file).stem}.*")
        seen, trained = read_picture(original), read_image(dataset.image_path(record))
        assert seen.shape == trained.shape == (record.height, record.width, 3)
        # JPEGs are encoded anew.
        assert np.abs(seen.astype(int) - trained).mean() < (2 if original.suffix == ".jpg" else 0.01)


def tiny(path: Path, scene: Path) -> None:
    Image.open(scene).resize((1, 1)).save(path)


def huge(path: Path, scene: Path) -> None:
    """400 million pixels in 50 kB."""
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


def large(path: Path, scene: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path, "PNG")


def truncated(path: Path, scene: Path) -> None:
    Image.open(scene).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def floating(path: Path, scene: Path) -> None:
    Image.fromarray(np.ones((64, 64), np.float32)).save(path, "TIFF")


def text(path: Path, scene: Path) -> None:
    path.write_text("<html>404 not found</html>")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (tiny, "1x1 pixels. Give an image from 10x10"),
        (huge, "has more than 89 million pixels"),
        (large, "has more than 89 million pixels"),
        (truncated, "cannot be decoded: image file is truncated"),
        (floating, "has 32 bits a channel"),
        (text, "cannot be decoded"),
    ],
)
def test_an_image_that_cannot_be_used(models, scene, tmp_path, spoil, problem):
    spoil(tmp_path / "bad.jpg", scene)
    process = run(tmp_path, models / "int8", "bad.jpg")
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: bad.jpg: {problem}")
    assert process.stderr.count("\n") == 1
    assert not list((tmp_path / "predictions").glob("*.jpg"))


def test_a_bad_image_does_not_keep_others_from_their_answer(models, scene, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(scene, tmp_path / "in" / f"a{scene.suffix}")
    truncated(tmp_path / "in" / "b.jpg", scene)
    shutil.copy(scene, tmp_path / "in" / f"c{scene.suffix}")
    process = run(tmp_path, models / "int8", "in")
    assert process.returncode == 2
    assert "b.jpg: not read: cannot be decoded" in process.stdout
    assert "(1 of 3 images could not be read)" in process.stderr
    assert [line["source"][0] for line in results(tmp_path / "predictions")] == ["a", "c"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["int8", "nowhere.jpg"], "nowhere.jpg: there is no such file or folder. Give an image, a folder, a video"),
        (["int8", "empty"], "empty: holds no image"),
        (["nowhere", "photo.png"], "nowhere: there is no such file or folder. Give a model artifact's folder"),
        (["empty", "photo.png"], "empty: is not a model artifact, it has no model.json"),
        (["int8", "photo.png", "--conf=1.5"], "--conf 1.5: it should be less than or equal to 1"),
        (["int8", "photo.png", "--iou=-1"], "--iou -1.0: it should be greater than or equal to 0"),
        (["int8", "photo.png", "--imgsz=100"], "--imgsz 100: it should be a multiple of 32"),
        (["int8", "photo.png", "--imgsz=320"], "takes images of 160x160 pixels, not 320x320"),
        (["int8", "photo.png", "--classes=1,cow"], "--classes cow: the model knows no such class. Choose from: 0, 1"),
        (["int8", "photo.png", "--output=."], "--output .: is the folder of the images themselves"),
        (["int8", "photo.png", "--output=photo.png/x"], "--output photo.png/x: cannot be written"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(models, scene, tmp_path, arguments, message):
    Image.open(scene).save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "int8").symlink_to(models / "int8")
    before = sorted(tmp_path.iterdir())
    process = run(tmp_path, *arguments)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_names_are_drawn_in_any_script_and_stay_inside(models, scene):
    detector = open_detector(models / "openvino")
    image = read_image(scene)
    [found] = detect(detector, [image], 0.001, max_detections=5)
    drawn = [image.copy() for _ in range(2)]
    for canvas, name in zip(drawn, ("кошка", "?????"), strict=True):
        annotate(canvas, found, [name] * 10)
    assert not np.array_equal(*drawn)


def test_neighbouring_classes_have_different_colours():
    colours = np.array([class_colour(index) for index in range(24)], int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(24, dtype=int)
    assert distances.min() > 40


def test_an_image_that_may_not_be_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        read_picture(tmp_path)
