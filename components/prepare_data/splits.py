"""Puts every image into one split: keeps official splits, makes missing ones and lets no image be in two."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from yolo_distill.components.prepare_data.dataset import SPLITS, Split
from yolo_distill.components.prepare_data.findings import Findings, Kind
from yolo_distill.components.prepare_data.images import ImageFacts
from yolo_distill.components.prepare_data.labels import SourceImage
from yolo_distill.components.shared.errors import InputError

_FEWEST_TRAIN_IMAGES = 2
# An image in two splits stays where it does least harm: out of the training data.
_PRECEDENCE: tuple[Split | None, ...] = ("test", "val", "train", None)


@dataclass(frozen=True)
class CheckedImage:
    """An image that was decoded, with labels that were checked."""

    source: SourceImage
    facts: ImageFacts

    @property
    def labelled(self) -> bool:
        """Whether somebody has looked for objects in this image."""
        return self.source.boxes is not None


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave no room for training.

    Args:
        val_fraction: Share of the images for validation where the source has no such split, more than 0.
        test_fraction: The same for testing; 0 for no test split.

    Raises:
        InputError: They are out of range.
    """
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise InputError(
            f"val_fraction={val_fraction}, test_fraction={test_fraction}",
            "these shares leave images out of range",
            "Give val_fraction more than 0, test_fraction 0 or more, and together less than 1",
        )


def without_duplicates(images: Iterable[CheckedImage], findings: Findings) -> list[CheckedImage]:
    """Return the images with each picture once: in test rather than val, in val rather than train, and labelled."""

    def precedence(image: CheckedImage) -> tuple[int, bool, str]:
        return _PRECEDENCE.index(image.source.split), not image.labelled, image.source.file

    same: defaultdict[str, list[CheckedImage]] = defaultdict(list)
    for image in images:
        same[image.facts.pixels_sha256].append(image)
    kept = []
    for group in same.values():
        first, *others = sorted(group, key=precedence)
        kept.append(first)
        for other in others:
            differs = "" if other.source.boxes == first.source.boxes else ", with other labels"
            where = f" in {other.source.split}" if other.source.split else ""
            twin = f"{first.source.file}{f' in {first.source.split}' if first.source.split else ''}"
            findings.add(Kind.DUPLICATE_IMAGE, other.source.file, f"the copy{where} has the pixels of {twin}{differs}")
    return sorted(kept, key=lambda image: image.source.file)


def split_images(
    images: Iterable[CheckedImage],
    source: str,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    findings: Findings,
) -> tuple[dict[Split, list[CheckedImage]], frozenset[Split]]:
    """Put every image into a split.

    Official splits are kept. A missing validation or test split is drawn from the labelled images that are left for
    training, by a hash of seed and pixels: renaming files or adding more moves hardly any image. Unlabelled images can
    only train.

    Args:
        images: Every image once.
        source: How the user called the source, without credentials.
        seed: Seed of the drawing.
        val_fraction: Share of the labelled images drawn for validation.
        test_fraction: Share of the labelled images drawn for testing; 0 for no test split.
        findings: Takes the images that are left out.

    Returns:
        The images of each split that has any, and the splits that were drawn.

    Raises:
        InputError: A split has no labelled image or no box, or too few images are left for training.
    """
    splits: dict[Split, list[CheckedImage]] = {split: [] for split in SPLITS}
    official = {image.source.split for image in images if image.source.split}
    if official and "train" not in official:
        raise InputError(source, f"has no train split, only {' and '.join(sorted(official))}", "Name or add one")
    for image in images:
        split = image.source.split or "train"
        if official and image.source.split is None:
            findings.add(Kind.UNLISTED_IMAGE, image.source.file)
        elif image.labelled or split == "train":
            splits[split].append(image)
        else:
            findings.add(Kind.UNLABELLED_OTHER, image.source.file, split)
    for split in sorted(official):
        if not any(image.labelled for image in splits[split]):
            raise InputError(source, f"its {split} split has no labelled image", f"Label some, or leave out {split}")
    fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
    missing = {split: fraction for split, fraction in fractions.items() if split not in official and fraction > 0}
    _draw(splits, missing, source, seed)
    for image in splits["train"]:
        if not image.labelled:
            findings.add(Kind.UNLABELLED_TRAIN, image.source.file)
    for split, members in splits.items():
        if members and not any(image.source.boxes for image in members):
            raise InputError(source, f"no image of the {split} split has a box", "Label some, or choose other splits")
    return splits, frozenset(missing)


def _draw(splits: dict[Split, list[CheckedImage]], missing: dict[Split, float], source: str, seed: int) -> None:
    """Move labelled training images to the splits that are missing."""

    def order(image: CheckedImage) -> str:
        return hashlib.sha256(f"{seed} {image.facts.pixels_sha256}".encode()).hexdigest()

    pool = sorted((image for image in splits["train"] if image.labelled), key=order)
    counts = {split: max(1, round(fraction * len(pool))) for split, fraction in missing.items()}
    if len(pool) < sum(counts.values()) + _FEWEST_TRAIN_IMAGES:
        raise InputError(
            source,
            f"has {len(pool)} labelled images for training"
            + "".join(f", {count} of which would go to {split}" for split, count in counts.items()),
            f"Give more: at least {_FEWEST_TRAIN_IMAGES} must be left for training",
        )
    for split, count in counts.items():
        splits[split], pool = pool[:count], pool[count:]
    taken = {id(image) for split in counts for image in splits[split]}
    splits["train"] = [image for image in splits["train"] if id(image) not in taken]
