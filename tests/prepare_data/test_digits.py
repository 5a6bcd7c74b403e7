import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from yolo_distill.components.prepare_data import digits as generator
from yolo_distill.components.prepare_data.dataset import SPLITS, DetectionDataset
from yolo_distill.components.prepare_data.digits import CLASSES, DigitsSettings, compose
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.shared.errors import InputError


def test_counts_sizes_and_classes(digits: DetectionDataset) -> None:
    assert [len(digits.split(split)) for split in SPLITS] == [48, 16, 16]
    assert {(r.width, r.height) for r in digits.manifest.images} == {(160, 160)}
    assert digits.classes == [str(n) for n in range(10)]
    drawn = {int(c) for r in digits.split("train") for c in digits.labels(r)[:, 0]}
    assert drawn == set(range(10))
    assert all(1 <= r.boxes <= 7 for r in digits.manifest.images)


def test_defaults() -> None:
    assert DigitsSettings.parse("digits", seed=5) == DigitsSettings(train=480, val=160, test=160, size=192, seed=5)
    assert DigitsSettings.parse("digits:seed=3, train=9", seed=5) == DigitsSettings(train=9, seed=3)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("digits:train=1", "train"),
        ("digits:val=0", "val"),
        ("digits:size=20", "size"),
        ("digits:colour=red", "colour"),
        ("digits:train", "no value"),
        ("digits:train=4,train=5", "twice"),
        ("digits:train=many", "train"),
        ("digits:seed=-1", "seed"),
    ],
)
def test_bad_settings(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        prepare(source, tmp_path / "out")
    assert "digits:train=" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_same_bits_in_another_process_with_other_threads(digits: DetectionDataset, tmp_path: Path) -> None:
    program = (
        "import sys, cv2; from pathlib import Path; cv2.setNumThreads(1);"
        "from yolo_distill.components.prepare_data.prepare import prepare;"
        "prepare('digits:train=12,val=2,test=2,size=160', Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "d")], check=True)
    other = DetectionDataset.open(tmp_path / "d")
    for split, count in (("train", 12), ("val", 2), ("test", 2)):
        here = [(r.sha256, r.labels_sha256) for r in digits.split(split)][:count]
        assert [(r.sha256, r.labels_sha256) for r in other.split(split)] == here


def test_seed_and_length_change_what_they_should(digits: DetectionDataset, tmp_path: Path) -> None:
    other = prepare("digits:train=48,val=16,test=16,size=160,seed=1", tmp_path / "other")
    assert not {r.sha256 for r in other.manifest.images} & {r.sha256 for r in digits.manifest.images}
    shorter = prepare("digits:train=5,val=2,test=0,size=160", tmp_path / "shorter")
    assert [r.sha256 for r in shorter.split("train")] == [r.sha256 for r in digits.split("train")][:5]
    assert shorter.split("test") == []
    assert "test" not in shorter.data_yaml.read_text()


def test_no_scan_is_in_two_splits() -> None:
    """Compare the pixels of the scans, of which scikit-learn has 1,797."""
    by_split = {split: {scan.tobytes() for group in generator._scans(split) for scan in group} for split in SPLITS}
    assert not by_split["train"] & by_split["val"]
    assert not by_split["train"] & by_split["test"]
    assert not by_split["val"] & by_split["test"]
    scans = sum(len(group) for split in SPLITS for group in generator._scans(split))
    assert scans == len(load_digits().images)


def test_boxes_are_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint digits only, in full contrast on an even ground, and measure where the ink is."""
    monkeypatch.setattr(generator, "_background", lambda size, rng: np.full((size, size, 3), 255, np.float32))
    monkeypatch.setattr(generator, "_stroke", lambda *_: None)
    monkeypatch.setattr(generator, "_fragment", lambda *_: None)
    monkeypatch.setattr(generator, "_photograph", lambda picture, scale, rng: picture)

    def paint(picture: np.ndarray, opacity: np.ndarray, x: int, y: int, rng: np.random.Generator) -> None:
        area = picture[y : y + opacity.shape[0], x : x + opacity.shape[1]]
        np.minimum(area, 255 * (1 - opacity[..., None]), out=area)

    monkeypatch.setattr(generator, "_paint", paint)
    settings = DigitsSettings()
    for number in range(20):
        scene = compose(settings, "train", number)
        assert len(scene.boxes) == len(scene.classes) > 0
        ink = scene.pixels[..., 0] <= 127.5
        covered = np.zeros_like(ink)
        for x1, y1, x2, y2 in scene.boxes.astype(int):
            inside = ink[y1:y2, x1:x2]
            # Ink touches all four sides of its box: none of the boxes could be smaller.
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            covered[y1:y2, x1:x2] = True
        assert not (ink & ~covered).any()
        assert (scene.boxes >= 0).all() and (scene.boxes <= settings.size).all()


def test_digit_sizes_span_the_range() -> None:
    heights = np.concatenate([(b := compose(DigitsSettings(), "train", n).boxes)[:, 3] - b[:, 1] for n in range(60)])
    assert heights.min() < 26
    assert heights.max() > 55
    assert heights.max() < 100


def test_images_are_what_the_generator_made(digits: DetectionDataset) -> None:
    record = digits.split("val")[3]
    scene = compose(DigitsSettings(train=48, val=16, test=16, size=160), "val", 3)
    stored = cv2.imread(str(digits.image_path(record)))
    assert np.abs(stored.astype(int) - scene.pixels).mean() < 6
    boxes, classes = digits.boxes(record)
    np.testing.assert_allclose(boxes, scene.boxes, atol=1e-3)
    assert [CLASSES[c] for c in classes] == [str(c) for c in scene.classes]
