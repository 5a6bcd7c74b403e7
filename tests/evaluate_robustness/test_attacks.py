"""What an attack may change, and that it makes the loss worse than chance does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from yolo_distill.components.evaluate_robustness.attacks import Attacker, _targets
from yolo_distill.components.evaluate_robustness.robustness import ATTACKS, Attack
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector import Placement, preprocess, read_image
from yolo_distill.components.shared.detector.pytorch_runtime import load_network

EPSILON = 4 / 255


@pytest.fixture(scope="module")
def attacker(lively_dir: Path) -> Attacker:
    return Attacker(load_network(lively_dir / "model.pt"), steps=4)


@pytest.fixture(scope="module")
def scene(digits: DetectionDataset) -> tuple[np.ndarray, list[Placement], list[tuple[np.ndarray, np.ndarray]]]:
    """Two images of which the network input shows the upper and the left part of one: both have padding."""
    records = digits.split("val")[:2]
    images = [read_image(digits.image_path(record)) for record in records]
    batch, placements = preprocess([images[0][:100], images[1][:, :90]], 160)
    labels = []
    for record, (height, width) in zip(records, ((100, 160), (160, 90)), strict=True):
        boxes, classes = digits.boxes(record)
        inside = (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
        labels.append((boxes[inside], classes[inside]))
    assert all(len(classes) for _, classes in labels)
    return batch, placements, labels


def loss(attacker: Attacker, batch: np.ndarray, placements: list[Placement], labels: list) -> float:
    images = torch.from_numpy(batch)
    with torch.no_grad():
        return float(attacker._network.loss({"img": images, **_targets(labels, placements, images)})[0].sum())


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_pixel_changes_by_more_than_epsilon_and_padding_not_at_all(
    attack: Attack, attacker: Attacker, scene: tuple
) -> None:
    batch, placements, labels = scene
    changed = attacker.attack(attack, EPSILON, batch, placements, labels, [1, 2])
    assert (changed.shape, changed.dtype) == (batch.shape, np.float32)
    assert changed.min() >= 0 and changed.max() <= 1
    difference = np.abs(changed - batch)
    assert 0.9 * EPSILON < difference.max() <= EPSILON + 1e-6
    padded = np.ones(batch.shape, bool)
    padded[0, :, 30:130, :] = False
    padded[1, :, :, 35:125] = False
    assert (batch[padded] == np.float32(114 / 255)).all()
    assert (difference[padded] == 0).all()
    assert (difference[~padded] > 0).mean() > 0.5


@pytest.mark.parametrize("attack", ATTACKS)
def test_epsilon_0_changes_nothing(attack: Attack, attacker: Attacker, scene: tuple) -> None:
    assert np.array_equal(attacker.attack(attack, 0.0, *scene, [1, 2]), scene[0])


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_same_seeds_make_the_same_images_and_others_do_not(
    attack: Attack, attacker: Attacker, scene: tuple
) -> None:
    first, again, other = (attacker.attack(attack, EPSILON, *scene, seeds) for seeds in ([1, 2], [1, 2], [3, 2]))
    assert np.array_equal(first, again)
    assert np.array_equal(first[0], other[0]) == (attack == "fgsm")
    if attack == "noise":
        assert np.array_equal(first[1], other[1])


def test_the_loss_rises_with_the_attack(attacker: Attacker, scene: tuple) -> None:
    batch, placements, labels = scene
    clean = loss(attacker, batch, placements, labels)
    noise, fgsm, pgd = (
        loss(attacker, attacker.attack(attack, EPSILON, *scene, [1, 2]), placements, labels) for attack in ATTACKS
    )
    assert fgsm > clean + 3 * abs(noise - clean)
    assert pgd > fgsm


def test_an_image_without_labels_is_attacked_too(attacker: Attacker, scene: tuple) -> None:
    batch, placements, _ = scene
    empty = [(np.zeros((0, 4)), np.zeros(0, np.int64))] * 2
    changed = attacker.attack("fgsm", EPSILON, batch, placements, empty, [1, 2])
    assert loss(attacker, changed, placements, empty) > loss(attacker, batch, placements, empty)


def test_labels_are_moved_into_the_network_input(scene: tuple) -> None:
    batch, placements, labels = scene
    targets = _targets(labels, placements, torch.from_numpy(batch))
    assert targets["cls"].tolist() == np.concatenate([classes for _, classes in labels]).tolist()
    for number, ((boxes, _), placement) in enumerate(zip(labels, placements, strict=True)):
        centres = targets["bboxes"][targets["batch_idx"] == number].numpy() * 160
        corners = np.concatenate([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], axis=1)
        assert placement.to_image(corners) == pytest.approx(boxes, abs=1e-3)


def test_the_network_stays_as_it_was(lively_dir: Path, scene: tuple) -> None:
    network = load_network(lively_dir / "model.pt")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Attacker(network, steps=2).attack("pgd", EPSILON, *scene, [1, 2])
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
