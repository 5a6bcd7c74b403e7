import random
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader

from yolo_distill.components.prepare_data.dataset import DetectionDataset, describe_image, write_index
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.views import (
    Augmentation,
    View,
    ViewDataset,
    ViewSampler,
    ViewSchedule,
    parse_augmentation,
)


@pytest.fixture(scope="module")
def views(digits: DetectionDataset) -> ViewDataset:
    return ViewDataset(digits, Augmentation(imgsz=96, mixup=0.3, degrees=5))


def _same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in ("img", "cls", "bboxes"))


@pytest.mark.parametrize("closed", [False, True])
def test_a_view_is_the_same_whatever_was_loaded_before(digits: DetectionDataset, closed: bool) -> None:
    augmentation = Augmentation(imgsz=96, mixup=0.3)
    first, second = ViewDataset(digits, augmentation), ViewDataset(digits, augmentation)
    keys = [first.key(View(2, closed), index) for index in range(len(first))]
    forwards = {key: first[key] for key in keys}
    random.seed(99)
    np.random.seed(99)
    backwards = {key: second[key] for key in reversed(keys)}
    assert all(_same(forwards[key], backwards[key]) for key in keys)


@pytest.mark.parametrize("workers", [1, 4])
def test_loader_processes_make_the_views_that_the_main_process_makes(views: ViewDataset, workers: int) -> None:
    schedule = ViewSchedule(epochs=2, close_mosaic=1)

    def batches(count: int) -> list[dict]:
        loader = DataLoader(
            views, 8, sampler=ViewSampler(views, schedule, seed=3), num_workers=count, collate_fn=views.collate_fn
        )
        return [batch for _ in range(2) for batch in loader]

    for here, there in zip(batches(0), batches(workers), strict=True):
        assert _same(here, there)


def test_making_a_view_leaves_the_global_random_state_alone(views: ViewDataset) -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    views[views.key(View(0, closed=False), 0)]
    assert (random.random(), np.random.rand()) == expected


def test_views_differ_from_each_other(views: ViewDataset) -> None:
    images = [views[views.key(View(number, closed), 5)]["img"] for number in (0, 1) for closed in (False, True)]
    for n, image in enumerate(images):
        assert not any(torch.equal(image, other) for other in images[:n])


def test_the_fingerprint_tells_settings_and_data_apart(views: ViewDataset, digits: DetectionDataset) -> None:
    assert views.fingerprint() == ViewDataset(digits, views.augmentation).fingerprint()
    changed = ViewDataset(digits, views.augmentation.model_copy(update={"hsv_h": 0.5})).fingerprint()
    differing = {name for name, value in views.fingerprint().items() if changed[name] != value}
    assert "hsv_h" in differing
    assert any(name.startswith("view ") for name in differing)


def test_every_image_is_drawn_once_an_epoch_in_the_view_of_the_schedule(views: ViewDataset) -> None:
    sampler = ViewSampler(views, ViewSchedule(epochs=6, close_mosaic=2, open_views=3, closed_views=1), seed=0)
    orders = []
    for expected in (View(0, False), View(1, False), View(2, False), View(0, False), View(0, True), View(0, True)):
        keys = list(sampler)
        assert sorted(keys) == [views.key(expected, index) for index in range(len(views))]
        orders.append([key % len(views) for key in keys])
    assert len({tuple(order) for order in orders}) == 6


def test_processes_share_an_epoch_evenly(views: ViewDataset) -> None:
    schedule = ViewSchedule(epochs=1, close_mosaic=0)
    parts = [list(ViewSampler(views, schedule, seed=0, rank=rank, world_size=5)) for rank in range(5)]
    assert {len(part) for part in parts} == {-(-len(views) // 5)}
    assert set().union(*parts) == set(ViewSampler(views, schedule, seed=0))


def test_unlabelled_images_are_mixed_with_their_like_only(tmp_path: Path, digits: DetectionDataset) -> None:
    records = []
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "labels/train").mkdir(parents=True)
    for number, record in enumerate(digits.split("train")[:12]):
        (tmp_path / record.file).write_bytes(digits.image_path(record).read_bytes())
        if number % 3:
            (tmp_path / record.label_file).write_text((digits.root / record.label_file).read_text())
        records.append(describe_image(tmp_path, record.file, "train", record.width, record.height))
    write_index(tmp_path, digits.classes, records, "test")
    views = ViewDataset(DetectionDataset.open(tmp_path), Augmentation(imgsz=96))
    boxes = {True: 0, False: 0}
    for index, record in enumerate(views.records):
        item = views[views.key(View(0, closed=False), index)]
        assert item["labelled"] == record.labelled
        boxes[record.labelled] += len(item["cls"])
    assert boxes[True] > 0
    assert boxes[False] == 0


@pytest.mark.parametrize("values", [{"imgsz": 100}, {"imgsz": 0}, {"imgsz": 96, "mosaic": 1.5}])
def test_settings_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**values)


def test_changes_of_the_augmentation_are_read_from_text() -> None:
    changed = parse_augmentation(96, "fliplr=0, degrees=10")
    assert (changed.fliplr, changed.degrees) == (0, 10)
    assert parse_augmentation(96, "") == Augmentation(imgsz=96)


@pytest.mark.parametrize("text", ["fliplr=2", "fliplr", "nonsense=1", "mosaic=x"])
def test_a_bad_change_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match=text.partition("=")[0]):
        parse_augmentation(96, text)


def test_every_box_is_known_as_a_view_of_its_object(digits: DetectionDataset) -> None:
    views = ViewDataset(digits, Augmentation(imgsz=96))
    classes = torch.cat([torch.from_numpy(digits.labels(record)[:, :1]).float() for record in digits.split("train")])
    first = 0
    for index, record in enumerate(digits.split("train")[:6]):
        item = views[views.key(View(0, closed=True), index)]
        assert len(item["object"]) == len(item["cls"]) > 0
        # Without mixing, all objects are the image's own.
        assert ((item["object"] >= first) & (item["object"] < first + record.boxes)).all()
        assert torch.equal(item["cls"], classes[item["object"]])
        first += record.boxes
        mixed = views[views.key(View(0, closed=False), index)]
        assert torch.equal(mixed["cls"], classes[mixed["object"]])
    batch = views.collate_fn([views[views.key(View(0, closed=True), index)] for index in range(3)])
    assert torch.equal(batch["cls"], classes[batch["object"]])
