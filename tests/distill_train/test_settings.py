"""What a recipe sets beside its terms: steadied targets, calibrated gradients, a co-teacher, adaptive strength."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.distill_train.adapters import Projector, build_adapters
from yolo_distill.components.distill_train.calibration import GradientScales, gradient_norm
from yolo_distill.components.distill_train.criterion import Distillation, DistillationLoss
from yolo_distill.components.distill_train.layers import neck_pairs
from yolo_distill.components.distill_train.losses.stable_targets import StableTargets
from yolo_distill.components.distill_train.recipe import Recipe
from yolo_distill.components.distill_train.train import distill
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.training import train_settings
from yolo_distill.components.shared.views import Augmentation, View, ViewDataset
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat

TERMS = [{"loss": "binary_kl", "weight": 1.0}, {"loss": "box_iou", "weight": 2.0}, {"loss": "pkd", "weight": 0.5}]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, teacher_dir: Path) -> TeacherCache:
    target = tmp_path_factory.mktemp("cache") / "cache"
    build_cache(digits, teacher_dir, CacheSettings(Augmentation(imgsz=96), 1, 1, AnswerFormat(top_k=20)), target)
    return TeacherCache(target)


class Gains:
    box, cls, dfl = 7.5, 0.5, 1.5


def _criterion(cache: TeacherCache, recipe: Recipe, **rest: object) -> DistillationLoss:
    torch.manual_seed(0)
    network = DetectionModel("yolov8n.yaml", nc=10, verbose=False)
    network.args = Gains
    pairs = neck_pairs(network, cache.manifest.channels)
    network.adapters = build_adapters(recipe, pairs)
    loss = DistillationLoss(network, Distillation(recipe, pairs, network.adapters, **rest))
    loss.network = network
    return loss


def _batch(cache: TeacherCache, digits: DetectionDataset) -> dict:
    views = ViewDataset(digits, Augmentation(imgsz=96), cache)
    batch = views.collate_fn([views[views.key(View(0, closed=True), index)] for index in range(4)])
    batch["img"] = batch["img"].float() / 255
    return batch


def test_targets_are_steadied_over_the_views_of_an_object() -> None:
    targets = StableTargets(objects=3, classes=2, momentum=0.8)
    box = torch.tensor([[0.0, 0, 10, 10]])
    where = {"image": torch.zeros(3, dtype=torch.long), "label_boxes": box, "label_image": torch.zeros(1).long()}
    # Two points of the object, one more important than the other, and one elsewhere.
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [50, 50, 60, 60]])
    weight = torch.tensor([0.9, 0.3, 0.5])
    first = torch.tensor([[2.0, -2.0], [1.0, -1.0], [0.5, 0.5]])
    second = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [0.5, 0.5]])
    number = torch.tensor([1])
    assert torch.equal(targets(first, boxes, weight, objects=number, **where), first)
    steadied = targets(second, boxes, weight, objects=number, **where)

    def mean(logits: torch.Tensor) -> list[float]:
        scores = logits.sigmoid().tolist()
        return [(0.9 * scores[0][c] + 0.3 * scores[1][c]) / 1.2 for c in range(2)]

    for c in range(2):
        average = 0.8 * mean(first)[c] + 0.2 * mean(second)[c]
        assert targets.scores[1, c].item() == pytest.approx(average, rel=1e-5)
        for point in range(2):
            expected = second[point].sigmoid()[c].item() + average - mean(second)[c]
            expected = min(max(expected, 1e-4), 1 - 1e-4)
            assert steadied[point].sigmoid()[c].item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(steadied[2], second[2])
    assert targets.views.tolist() == [0, 2, 0]


def test_gradient_norms_are_those_of_autograd() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    loss = layer(x).square().sum()
    norm = gradient_norm(loss, list(layer.parameters()))
    loss.backward()
    assert norm == pytest.approx(torch.cat([p.grad.flatten() for p in layer.parameters()]).norm().item(), rel=1e-5)
    assert gradient_norm(torch.tensor(1.0), list(layer.parameters())) == 0


def test_scales_are_medians_of_ratios_and_then_fixed() -> None:
    scales = GradientScales(["a", "b"], ratio=0.5, batches=3)
    assert scales.factor("a") == 1
    for detection, a in ((10.0, 1.0), (20.0, 1.0), (30.0, 1.0)):
        assert not scales.finished
        scales.see(detection, {"a": a, "b": 0.0})
    assert scales.finished
    assert scales.factor("a") == 10
    # A loss without a gradient is left alone.
    assert scales.factor("b") == 1


def test_calibrated_terms_have_the_wanted_gradients(cache: TeacherCache, digits: DetectionDataset) -> None:
    recipe = Recipe(name="x", description="", terms=TERMS, calibrate={"ratio": 0.25, "batches": 1})
    criterion = _criterion(cache, recipe)
    batch = _batch(cache, digits)
    outputs = criterion.network.train()(batch["img"])
    criterion.loss(outputs, batch)
    parameters = [p for p in criterion.network.model.parameters() if p.requires_grad]
    detection = gradient_norm(criterion._detection_loss(outputs, batch)[0].sum(), parameters)
    terms = criterion.distillation_terms(outputs, batch)
    for term in recipe.terms:
        # The weight applies to what is evened out.
        wanted = term.weight * 0.25 * detection
        assert gradient_norm(terms[term.loss], parameters) == pytest.approx(wanted, rel=0.01)


def test_the_average_of_the_student_teaches_nothing_that_the_student_says_already(
    cache: TeacherCache, digits: DetectionDataset
) -> None:
    recipe = Recipe(name="x", description="", terms=TERMS, co_teacher=1.0)
    criterion = _criterion(cache, recipe, average=lambda: criterion.network)
    batch = _batch(cache, digits)
    outputs = criterion.network.eval()(batch["img"])[1]
    assert criterion.distillation_terms(outputs, batch)["co_teacher"].item() == pytest.approx(0, abs=1e-5)
    other = copy.deepcopy(criterion.network)
    for branch in other.model[-1].cv3:
        branch[-1].bias.data += 3
    criterion.distillation = replace(criterion.distillation, average=lambda: other)
    assert criterion.distillation_terms(outputs, batch)["co_teacher"].item() > 0.01


@pytest.mark.parametrize("by", ["teacher_quality", "disagreement"])
def test_the_strength_of_images_changes_the_weights_of_their_points(
    cache: TeacherCache, digits: DetectionDataset, by: str
) -> None:
    batch = _batch(cache, digits)
    plain, adaptive = (
        _criterion(cache, Recipe(name="x", description="", terms=TERMS, adaptive=list(kinds))) for kinds in ((), (by,))
    )
    outputs = plain.network.eval()(batch["img"])[1]
    before, after = (criterion._step(outputs, batch).matched for criterion in (plain, adaptive))
    factors = after.weight / before.weight
    for image in range(4):
        of_image = factors[before.image == image]
        torch.testing.assert_close(of_image, of_image[:1].expand_as(of_image))
    assert factors.unique().numel() > 1


def test_the_region_narrows_the_points(cache: TeacherCache, digits: DetectionDataset) -> None:
    criterion = _criterion(cache, Recipe(name="x", description="", terms=TERMS))
    batch = _batch(cache, digits)
    # The labels stand in for the answers of a teacher that sees its objects.
    step = criterion._step(criterion.network.eval()(batch["img"])[1], batch)
    boxes = step.matched.teacher_boxes.clone()
    boxes[:2] = step.labels.boxes[step.labels.image == step.matched.image[0]][0] / step.matched.stride[:2, None]
    step = replace(step, matched=replace(step.matched, teacher_boxes=boxes))
    main, valuable, both, everything = (step.weight(r) for r in ("main", "valuable", "both", "all"))
    assert torch.equal(main + valuable, both)
    assert (main[:2] == everything[:2]).all()
    assert both.sum() < everything.sum()


@pytest.mark.parametrize("kind", ["linear", "mlp", "residual"])
def test_projectors_treat_points_and_maps_alike(kind: str) -> None:
    torch.manual_seed(0)
    projector = Projector(4, 6, kind)
    feature = torch.randn(2, 4, 3, 5)
    projected = projector.project_map(feature)
    assert projected.shape == (2, 6, 3, 5)
    torch.testing.assert_close(projected[1, :, 2, 4], projector(feature[1, :, 2, 4]))
    first = feature[1, :, 2, 4] @ projector.first.weight.T + projector.first.bias
    if kind != "linear":
        second = first.relu() @ projector.second.weight.T + projector.second.bias
        first = second if kind == "mlp" else first + second
    torch.testing.assert_close(projected[1, :, 2, 4], first)


def test_a_training_with_everything_on_goes_on_after_a_kill(
    tmp_path: Path, digits: DetectionDataset, cache: TeacherCache, killed_in_the_second_epoch: Callable
) -> None:
    recipe = Recipe(
        name="all-on",
        description="",
        terms=TERMS,
        projector="residual",
        adaptive=["teacher_quality", "disagreement"],
        views_momentum=0.9,
        co_teacher={"start": 0.0, "end": 0.5},
        calibrate={"ratio": 0.5, "batches": 2},
        training={"optimizer": "SGD", "lr0": 0.01, "clip_norm": 5.0},
    )
    settings = train_settings(epochs=2, imgsz=96, batch=16)

    arguments = {"name": "s", "recipe": recipe, "teacher": cache, "work_root": tmp_path / "work"}
    with killed_in_the_second_epoch():
        distill(digits, "yolov8n.yaml", settings, tmp_path / "student", **arguments)
    (kept,) = (tmp_path / "work").rglob("adapters.safetensors")
    tensors = load_file(kept)
    # 48 images in batches of 16, of which 2 were measured.
    assert int(tensors["gradient_scales.batches_seen"]) == 2
    assert len(tensors["stable_targets.views"]) == sum(record.boxes for record in digits.split("train"))
    result = distill(digits, "yolov8n.yaml", settings, tmp_path / "student", **arguments)
    assert [record["epoch"] for record in result.history] == [1, 2]
    assert result.history[0]["train/kd_co_teacher"] == 0
    assert result.history[1]["train/kd_co_teacher"] > 0
    assert json.dumps(result.history[1]).count("kd_") == 4


def test_gradients_are_clipped_as_the_recipe_says(
    tmp_path: Path, digits: DetectionDataset, cache: TeacherCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def watch(optimizer: torch.optim.SGD, *args: object) -> object:
        gradients = [
            p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norms.append(float(torch.cat(gradients).norm()))
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", watch)
    recipe = Recipe(
        name="clipped", description="", terms=TERMS, training={"optimizer": "SGD", "lr0": 0.001, "clip_norm": 0.5}
    )
    settings = train_settings(epochs=1, imgsz=96, batch=16)
    distill(digits, "yolov8n.yaml", settings, tmp_path / "s", name="s", recipe=recipe, teacher=cache)
    assert len(norms) == 3
    assert max(norms) == pytest.approx(0.5, rel=1e-3)
