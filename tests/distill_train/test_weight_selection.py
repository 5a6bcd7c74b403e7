"""A student that starts from its teacher's weights."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import C2f, Conv
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.distill_train.recipe import Recipe, load_recipe
from yolo_distill.components.distill_train.train import STUDENTS_FOLDER, choose_teacher, distill
from yolo_distill.components.distill_train.weight_selection import evenly, joined, select_weights
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.training import train_settings

PICO = str(STUDENTS_FOLDER / "yolov8p.yaml")


def network(model: str, classes: int = 3, seed: int = 0) -> DetectionModel:
    torch.manual_seed(seed)
    made = DetectionModel(model, nc=classes, verbose=False)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values, 0.1, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return made.eval()


def silence(teacher: DetectionModel, student: DetectionModel) -> None:
    """Let the channels of a teacher that its student has no counterpart of say nothing."""
    counterparts = dict(student.named_modules())
    for name, layer in teacher.named_modules():
        ours = counterparts.get(name)
        if isinstance(layer, Conv) and isinstance(ours, Conv):
            chosen = evenly(ours.conv.out_channels, layer.conv.out_channels).chosen
            left = torch.ones(layer.conv.out_channels, dtype=torch.bool)
            left[chosen] = False
            layer.bn.weight.data[left] = layer.bn.bias.data[left] = 0
        if isinstance(layer, C2f):
            layer.cv2.conv.weight.data[:, (2 + len(ours.m)) * layer.c :] = 0


@pytest.mark.parametrize(
    ("student", "teacher"),
    [pytest.param(PICO, "yolov8n.yaml", id="narrower"), pytest.param("yolov8n.yaml", "yolov8m.yaml", id="shallower")],
)
def test_a_student_computes_what_the_selected_part_of_its_teacher_computes(student: str, teacher: str) -> None:
    small, large = network(student), network(teacher, seed=1)
    assert select_weights(small, large) > 0.9999
    silence(large, small)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = small(images)[1], large(images)[1]
    for name in ("scores", "boxes"):
        assert theirs[name].std() > 0.01
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_what_means_something_else_keeps_its_weights() -> None:
    small, large = network(PICO, classes=2), network("yolov8n.yaml", classes=3, seed=1)
    before = [branch[-1].weight.clone() for branch in small.model[-1].cv3]
    assert 0.99 < select_weights(small, large) < 0.9999
    for branch, weight in zip(small.model[-1].cv3, before, strict=True):
        assert torch.equal(branch[-1].weight, weight)


@pytest.mark.parametrize("teacher", ["yolov8n.yaml", "yolo11n.yaml"])
def test_a_smaller_or_foreign_teacher_gives_little(teacher: str) -> None:
    student = network("yolov8s.yaml")
    assert select_weights(student, network(teacher, seed=1)) < 0.1
    assert all(values.isfinite().all() for values in student.state_dict().values())


def test_channels_of_a_concatenation_follow_one_another() -> None:
    both = joined([evenly(2, 4), evenly(1, 3)])
    assert (both.chosen.tolist(), both.of) == ([0, 2, 4], 7)
    assert joined([evenly(2, 4), None]) is None
    assert evenly(5, 4) is None


def test_training_starts_from_the_selection(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load_recipe("default")
    teacher = choose_teacher(recipe, None, teacher_dir)
    settings = train_settings(epochs=1, imgsz=96, batch=16, lr0=1e-9)
    with caplog.at_level(logging.INFO, logger="ultralytics"):
        result = distill(digits, PICO, settings, tmp_path / "s", name="s", recipe=recipe, teacher=teacher)
    assert "100.0% of the student's weights are selected from the teacher's" in caplog.text
    assert result.card.lineage["initial"] == "teacher"
    trained, teacher_weights = (
        load_network(p / "model.pt").model[0].conv.weight for p in (tmp_path / "s", teacher_dir)
    )
    # At such a learning rate weights stay; checkpoints hold half precision.
    torch.testing.assert_close(trained, teacher_weights[::2], rtol=1e-2, atol=1e-3)


def test_a_teacher_that_is_not_given_is_asked_for(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
    from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
    from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat

    settings = train_settings(epochs=1, imgsz=96, batch=16)
    build_cache(digits, teacher_dir, CacheSettings(settings.augmentation, 0, 1, AnswerFormat(top_k=20)), tmp_path / "c")
    arguments = {"name": "s", "recipe": load_recipe("default"), "teacher": TeacherCache(tmp_path / "c")}
    with pytest.raises(InputError, match=r"starts the student from the teacher's weights.*Give the teacher's model"):
        distill(digits, PICO, settings, tmp_path / "s", **arguments)


def test_a_recipe_names_where_the_weights_come_from() -> None:
    terms = [{"loss": "binary_kl", "weight": 1}]
    assert Recipe(name="r", description="", terms=terms).initial == "random"
    with pytest.raises(ValueError, match="'random' or 'teacher'"):
        Recipe(name="r", description="", terms=terms, initial="pretrained")
