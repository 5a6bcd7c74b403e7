"""From a source of images and labels to the dataset artifact."""

from pathlib import Path

from yolo_distill.components.prepare_data.dataset import (
    SPLITS,
    DetectionDataset,
    describe_image,
    write_index,
)
from yolo_distill.components.prepare_data.digits import CLASSES, DigitsSettings, encode, is_digits, scenes
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory


def prepare(
    source: str, output: Path, seed: int = 0, val_fraction: float = 0.15, test_fraction: float = 0.15
) -> DetectionDataset:
    """Make a dataset artifact of what a source holds."""
    if not is_digits(source):
        raise InputError(source, "is not known", "Give digits")
    settings = DigitsSettings.parse(source, seed)
    with new_directory(output) as root:
        records = []
        for split in SPLITS:
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True)
            for number, scene in enumerate(scenes(settings, split)):
                name = f"{split}-{number:05d}"
                (root / f"images/{split}/{name}.jpg").write_bytes(encode(scene))
                height, width = scene.pixels.shape[:2]
                rows = (
                    f"{digit} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f}"
                    f" {(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}\n"
                    for digit, (x1, y1, x2, y2) in zip(scene.classes, scene.boxes, strict=True)
                )
                (root / f"labels/{split}/{name}.txt").write_text("".join(rows), encoding="utf-8")
                records.append(describe_image(root, f"images/{split}/{name}.jpg", split, width, height))
        write_index(root, CLASSES, records, source)
    return DetectionDataset.open(output)
