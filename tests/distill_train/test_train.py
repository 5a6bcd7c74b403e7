import copy
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kfp import dsl
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.distill_train.adapters import build_adapters
from yolo_distill.components.distill_train.component import distill_train
from yolo_distill.components.distill_train.criterion import Distillation, DistillationLoss
from yolo_distill.components.distill_train.history import read_history
from yolo_distill.components.distill_train.layers import layer_pairs, neck_pairs
from yolo_distill.components.distill_train.online import OnlineTeacher
from yolo_distill.components.distill_train.recipe import TERM_TYPES, Recipe, load_recipe
from yolo_distill.components.distill_train.train import choose_teacher, distill
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card
from yolo_distill.components.shared.training import train_settings
from yolo_distill.components.shared.views import Augmentation, SoftBoxes, View, ViewDataset
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.cache import TeacherCache
from yolo_distill.components.teacher_cache_logits.originals import OriginalAnswers, build_originals
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat, Teacher

SETTINGS = train_settings(epochs=2, imgsz=96, batch=16)
CACHED, ONLINE = (
    [kind.model_fields["loss"].annotation.__args__[0] for kind in TERM_TYPES if kind.online == online]
    for online in (False, True)
)
EVERY_TERM = Recipe(
    name="every",
    description="Every loss that a cache can serve.",
    terms=[{"loss": loss, "weight": 1.0} for loss in CACHED],
)
EVERY_ONLINE_TERM = Recipe(
    name="every-online",
    description="Every loss that needs the teacher itself.",
    terms=[{"loss": loss, "weight": 1.0} for loss in ONLINE],
)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, teacher_dir: Path) -> Path:
    target = tmp_path_factory.mktemp("cache") / "cache"
    settings = CacheSettings(Augmentation(imgsz=96), 1, 1, AnswerFormat(top_k=20))
    build_cache(digits, teacher_dir, settings, target)
    return target


@pytest.fixture(scope="module")
def cache(cache_dir: Path) -> TeacherCache:
    return TeacherCache(cache_dir)


@pytest.fixture
def exact_cache(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> TeacherCache:
    """Answers computed in float32, as the teacher computes while this fixture lasts."""
    for module in ("teacher", "stream"):
        name = f"yolo_distill.components.teacher_cache_logits.{module}.fast_autocast_dtype"
        monkeypatch.setattr(name, lambda _: torch.float32)
    settings = CacheSettings(Augmentation(imgsz=96), 0, 1, AnswerFormat(top_k=20))
    build_cache(digits, teacher_dir, settings, tmp_path / "exact")
    return TeacherCache(tmp_path / "exact")


@pytest.fixture
def criterion(cache: TeacherCache) -> DistillationLoss:
    return _criterion(cache)


def _criterion(
    cache: TeacherCache, recipe: Recipe = EVERY_TERM, online: OnlineTeacher | None = None
) -> DistillationLoss:
    torch.manual_seed(0)
    network = DetectionModel("yolov8n.yaml", nc=10, verbose=False)
    network.args = TrainerArguments
    teacher = online.teacher.network if online else None
    pairs = neck_pairs(network, cache.manifest.channels, teacher)
    network.adapters = build_adapters(recipe, pairs)
    loss = DistillationLoss(network, Distillation(recipe, pairs, network.adapters, online))
    loss.network = network
    return loss


class TrainerArguments:
    box, cls, dfl = 7.5, 0.5, 1.5


def _batch(cache: TeacherCache, digits: DetectionDataset, images: int = 4) -> dict:
    views = ViewDataset(digits, Augmentation(imgsz=96), cache)
    return views.collate_fn([views[views.key(View(0, closed=True), index)] for index in range(images)])


def test_a_distilled_checkpoint_is_an_ordinary_one(
    tmp_path: Path, digits: DetectionDataset, cache: TeacherCache, teacher_dir: Path
) -> None:
    recipe = load_recipe("default")
    arguments = {"name": "s", "recipe": recipe, "teacher": cache, "teacher_model": teacher_dir}
    result = distill(digits, "yolov8n.yaml", SETTINGS, tmp_path / "student", **arguments)
    assert [record["epoch"] for record in result.history] == [1, 2]
    for term in recipe.terms:
        assert result.history[0][f"train/kd_{term.loss}"] > 0
    assert read_card(tmp_path / "student").lineage["recipe"] == "default"
    assert read_card(tmp_path / "student").lineage["teacher"] == cache.manifest.teacher
    # Another interpreter, in which this package cannot be imported, opens and runs the student.
    code = (
        "import sys; sys.modules['yolo_distill'] = None\n"
        "from ultralytics import YOLO; import numpy as np\n"
        f"model = YOLO({str(tmp_path / 'student' / 'model.pt')!r})\n"
        "assert type(model.model).__name__ == 'DetectionModel'\n"
        "assert [n for n, _ in model.model.named_children()] == ['model']\n"
        "model.predict(np.zeros((96, 96, 3), np.uint8), imgsz=96, verbose=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_killed_training_resumes_where_it_stopped(
    tmp_path: Path,
    digits: DetectionDataset,
    cache: TeacherCache,
    teacher_dir: Path,
    killed_in_the_second_epoch: Callable,
) -> None:
    arguments = {"name": "s", "recipe": load_recipe("default"), "teacher": cache, "teacher_model": teacher_dir}
    settings = train_settings(epochs=3, imgsz=96, batch=16)
    whole = distill(digits, "yolov8n.yaml", settings, tmp_path / "whole", **arguments)
    arguments["work_root"] = tmp_path / "work"
    with killed_in_the_second_epoch():
        distill(digits, "yolov8n.yaml", settings, tmp_path / "student", **arguments)
    assert not (tmp_path / "student").exists()
    resumed = distill(digits, "yolov8n.yaml", settings, tmp_path / "student", **arguments)
    assert [record["epoch"] for record in resumed.history] == [1, 2, 3]
    assert resumed.history[0] == whole.history[0]
    assert not list((tmp_path / "work").rglob("last.pt"))


def test_training_without_a_cache_has_no_distillation_terms(tmp_path: Path, digits: DetectionDataset) -> None:
    result = distill(digits, "yolov8n.yaml", train_settings(epochs=1, imgsz=96, batch=16), tmp_path / "s", name="plain")
    assert not any("kd_" in name for name in result.history[0])
    assert "teacher" not in result.card.lineage


def test_the_detection_loss_ignores_unlabelled_images(
    cache: TeacherCache, digits: DetectionDataset, criterion: DistillationLoss
) -> None:
    criterion.distillation = None
    batch = _batch(cache, digits)
    outputs = criterion.network.train()(batch["img"].float() / 255)
    keep = torch.tensor([True, False, True, False])
    rows = keep[batch["batch_idx"].long()]
    partly = {
        **batch,
        "labelled": keep,
        "batch_idx": batch["batch_idx"][rows],
        "cls": batch["cls"][rows],
        "bboxes": batch["bboxes"][rows],
    }
    alone = {
        **{name: partly[name] for name in ("cls", "bboxes")},
        "labelled": torch.ones(2, dtype=torch.bool),
        "batch_idx": (keep.cumsum(0) - 1)[partly["batch_idx"].long()],
    }
    kept = {
        "boxes": outputs["boxes"][keep],
        "scores": outputs["scores"][keep],
        "feats": [feature[keep] for feature in outputs["feats"]],
    }
    # The sum over labelled images is scaled by the images of the batch: 4 in one case, 2 in the other.
    torch.testing.assert_close(criterion.loss(outputs, partly)[0] / 4, criterion.loss(kept, alone)[0] / 2)
    none = {**batch, "labelled": torch.zeros(4, dtype=torch.bool)}
    assert criterion.loss(outputs, none)[0].sum() == 0


def _silent(criterion: DistillationLoss) -> list[str]:
    return [
        name
        for name, p in criterion.network.named_parameters()
        if p.requires_grad and (p.grad is None or (p.ndim > 1 and not p.grad.abs().sum() > 0))
    ]


def test_terms_reach_every_part_of_the_student(
    cache: TeacherCache, digits: DetectionDataset, criterion: DistillationLoss
) -> None:
    batch = _batch(cache, digits)
    terms = criterion.distillation_terms(criterion.network.train()(batch["img"].float() / 255), batch)
    sum(terms.values()).backward()
    assert not _silent(criterion)


@pytest.mark.parametrize("loss", ONLINE)
def test_terms_on_maps_reach_the_neck_and_their_adapters(
    cache: TeacherCache, digits: DetectionDataset, teacher_dir: Path, loss: str
) -> None:
    online = OnlineTeacher(Teacher(teacher_dir), AnswerFormat(top_k=20))
    recipe = Recipe(name="one", description="", terms=[{"loss": loss, "weight": 1.0}])
    criterion = _criterion(cache, recipe, online)
    batch = _batch(cache, digits)
    batch["img"] = batch["img"].float() / 255
    terms = criterion.distillation_terms(criterion.network.train()(batch["img"]), batch)
    assert terms.keys() == {loss}
    terms[loss].backward()
    # Losses on the neck say nothing to the student's own head; a context block of FGD starts with its last layer at 0.
    silent = [n for n in _silent(criterion) if not n.startswith("model.22.") and "context_" not in n]
    assert not silent
    assert all(p.grad is None for p in online.teacher.network.parameters())


def test_any_layers_can_be_compared(cache: TeacherCache, digits: DetectionDataset, teacher_dir: Path) -> None:
    online = OnlineTeacher(Teacher(teacher_dir), AnswerFormat(top_k=20))
    recipe = Recipe(name="full", description="", terms=[{"loss": "feature_mse", "weight": 1.0, "layers": [2, 9]}])
    torch.manual_seed(0)
    network = DetectionModel("yolov8n.yaml", nc=10, verbose=False)
    network.args = TrainerArguments
    pairs = layer_pairs(network, online.teacher.network, [2, 9])
    network.adapters = build_adapters(recipe, pairs)
    criterion = DistillationLoss(network, Distillation(recipe, pairs, network.adapters, online))
    batch = _batch(cache, digits)
    batch["img"] = batch["img"].float() / 255
    term = criterion.distillation_terms(network.train()(batch["img"]), batch)["feature_mse"]
    by_hand = []
    with torch.no_grad():
        for pair in pairs:
            maps = []
            for model in (network, online.teacher.network):
                x = batch["img"]
                for layer in model.model[: pair.student + 1]:
                    x = layer(x)
                maps.append(x)
            projected = network.adapters[f"projector_{pair.name}"](maps[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            by_hand.append((projected - maps[1]).square().mean())
    # Another forward pass shifts no batch statistics of the loss, and bfloat16 only the last digits.
    assert term.item() == pytest.approx(sum(by_hand).item() / 2, rel=0.02)


@pytest.mark.parametrize(
    ("layers", "message"), [([40], "does not exist in the student"), ([22], "does not exist"), ([2, 99], "layer 99")]
)
def test_layers_that_do_not_exist_are_refused(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path, layers: list[int], message: str
) -> None:
    recipe = Recipe(name="x", description="", terms=[{"loss": "cwd", "weight": 1.0, "layers": layers}])
    with pytest.raises(InputError, match=message):
        distill(
            digits,
            "yolov8n.yaml",
            SETTINGS,
            tmp_path / "s",
            name="s",
            recipe=recipe,
            teacher=choose_teacher(recipe, None, teacher_dir),
        )


def test_losses_that_need_the_online_teacher_are_refused_for_a_cache(
    tmp_path: Path, digits: DetectionDataset, cache: TeacherCache
) -> None:
    with pytest.raises(InputError, match=r"more of the teacher than a cache keeps: cwd"):
        distill(digits, "yolov8n.yaml", SETTINGS, tmp_path / "s", name="s", recipe=load_recipe("cwd-ld"), teacher=cache)


def test_cached_and_online_answers_give_the_same_gradients(
    exact_cache: TeacherCache, digits: DetectionDataset, teacher_dir: Path
) -> None:
    batch = _batch(exact_cache, digits, images=8)
    batch["img"] = batch["img"].float() / 255
    online = OnlineTeacher(Teacher(teacher_dir), exact_cache.manifest.answers)
    for term in CACHED:
        gradients = []
        for teacher in (None, online):
            criterion = _criterion(exact_cache, EVERY_TERM, teacher)
            terms = criterion.distillation_terms(criterion.network.eval()(batch["img"])[1], batch)
            terms[term].backward()
            parameters = criterion.network.parameters()
            gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        cached, asked = gradients
        assert cached.norm() > 0
        # What the cache keeps in 16 bits.
        assert (cached - asked).norm() < 0.005 * cached.norm(), term


def test_the_builtin_recipe_is_ultralytics_own_loss(
    cache: TeacherCache, digits: DetectionDataset, teacher_dir: Path
) -> None:
    online = OnlineTeacher(Teacher(teacher_dir), AnswerFormat(top_k=10_000))
    criterion = _criterion(cache, load_recipe("builtin"), online)
    student = criterion.network.train()
    student.args = types.SimpleNamespace(imgsz=96, dis=6.0, box=7.5, cls=0.5, dfl=1.5)
    theirs = DistillationModel(copy.deepcopy(online.teacher.network), copy.deepcopy(student)).train()
    for level, projector in enumerate(theirs.projector):
        ours = student.adapters[f"projector_neck{level}"]
        for convolution, linear in ((projector[0], ours.first), (projector[2], ours.second)):
            convolution.weight.data = linear.weight.data[:, :, None, None].clone()
            convolution.bias.data = linear.bias.data.clone()
    # Both heads of a network with two are averaged there; YOLOv8 has one.
    theirs.decouple_outputs = lambda out, branch=None: (
        out if branch is None else (out[1] if isinstance(out, tuple) else out)
    )
    batch = _batch(cache, digits)
    batch["img"] = batch["img"].float() / 255
    expected = theirs.loss(batch)[1]["dis_loss"].item()
    term = criterion.distillation_terms(student(batch["img"]), batch)["score_weighted_l2"]
    assert term.item() == pytest.approx(expected, rel=0.01)


def test_a_student_learns_from_an_online_teacher(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    settings = train_settings(epochs=1, imgsz=96, batch=16)
    recipe = load_recipe("default")
    teacher = choose_teacher(recipe, None, teacher_dir)
    result = distill(digits, "yolov8n.yaml", settings, tmp_path / "s", name="s", recipe=recipe, teacher=teacher)
    assert all(result.history[0][f"train/kd_{term.loss}"] > 0 for term in recipe.terms)
    assert result.card.lineage["teacher"] == read_card(teacher_dir).digests["model.pt"]


def test_the_cache_is_asked_unless_it_cannot_serve_the_recipe(cache_dir: Path, teacher_dir: Path) -> None:
    recipe = load_recipe("default")
    assert isinstance(choose_teacher(recipe, cache_dir, teacher_dir), TeacherCache)
    assert isinstance(choose_teacher(recipe, None, teacher_dir), OnlineTeacher)
    assert choose_teacher(recipe, None, None) is None
    assert isinstance(choose_teacher(load_recipe("cwd-ld"), cache_dir, teacher_dir), OnlineTeacher)


def test_a_recipe_called_plain_trains_plainly_whatever_is_given(
    tmp_path: Path, digits: DetectionDataset, cache_dir: Path, teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    outputs = {"student": dsl.Model, "metrics": dsl.Metrics, "curves": dsl.HTML, "history": dsl.Artifact}
    made = {name: kind(name=name, uri=str(tmp_path / name)) for name, kind in outputs.items()}
    distill_train.python_func(
        dataset=dsl.Dataset(uri=str(digits.root)),
        cache=dsl.Artifact(uri=str(cache_dir)),
        teacher=dsl.Model(uri=str(teacher_dir)),
        recipe="plain",
        epochs=1,
        imgsz=96,
        **made,
    )
    card, history = read_card(tmp_path / "student"), read_history(tmp_path / "history")
    assert card.lineage["recipe"] == "plain"
    assert "teacher" not in card.lineage
    assert history.model == card.digest
    assert [record["epoch"] for record in history.epochs] == [1]
    assert "metrics/mAP50-95" in history.epochs[0]
    assert not any("kd_" in name for name in history.epochs[0])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, teacher_dir: Path) -> OriginalAnswers:
    target = tmp_path_factory.mktemp("originals") / "originals"
    build_originals(digits, teacher_dir, 160, target)
    answers = OriginalAnswers(target)
    # After one epoch the teacher sees nothing yet; the labels stand in for what a better one would say.
    labels = [digits.labels(record) for record in digits.split("train")]
    scores = [torch.nn.functional.one_hot(torch.from_numpy(rows[:, 0]).long(), 10).half() * 16 - 8 for rows in labels]
    answers.soft_boxes = SoftBoxes([rows[:, 1:] for rows in labels], scores)
    return answers


def test_a_student_learns_from_answers_to_the_original_images(
    tmp_path: Path, digits: DetectionDataset, originals: OriginalAnswers
) -> None:
    settings = train_settings(epochs=1, imgsz=96, batch=16)
    recipe = load_recipe("original")
    result = distill(digits, "yolov8n.yaml", settings, tmp_path / "s", name="s", recipe=recipe, teacher=originals)
    assert all(result.history[0][f"train/kd_{term.loss}"] > 0 for term in recipe.terms)


def test_losses_that_need_the_same_view_are_refused_for_original_images(
    tmp_path: Path, digits: DetectionDataset, originals: OriginalAnswers
) -> None:
    with pytest.raises(InputError, match="localization_distillation, pkd"):
        distill(
            digits, "yolov8n.yaml", SETTINGS, tmp_path / "s", name="s", recipe=load_recipe("default"), teacher=originals
        )


def test_carried_boxes_teach_the_points_that_labels_would(
    cache: TeacherCache, digits: DetectionDataset, criterion: DistillationLoss
) -> None:
    criterion.distillation = Distillation(load_recipe("original"))
    batch = _batch(cache, digits)
    outputs = criterion.network.train()(batch["img"].float() / 255)
    wanted = torch.nn.functional.one_hot(batch["cls"][:, 0].long(), 10) * 16.0 - 8
    answers = [
        {"soft_boxes": batch["bboxes"][batch["batch_idx"] == n], "scores": wanted[batch["batch_idx"] == n]}
        for n in range(4)
    ]
    terms = criterion.distillation_terms(outputs, {**batch, "answer": answers})
    matched = criterion._match_soft_boxes(outputs, answers)
    foreground = criterion.get_assigned_targets_and_loss(outputs, batch)[0][0]
    assert torch.zeros_like(foreground).index_put((matched.image, matched.point), torch.tensor(True)).equal(foreground)
    assert terms["binary_kl"] > 0
    assert terms["box_iou"] > 0
    nothing = [{"soft_boxes": torch.zeros(0, 4), "scores": torch.zeros(0, 10)}] * 4
    assert sum(criterion.distillation_terms(outputs, {**batch, "answer": nothing}).values()) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "0" * 64}, "is about dataset"),
        ({"fingerprint": {"imgsz": "128"}}, "imgsz was 128, is 96"),
        ({"fingerprint": {"cv2 version": "1.0"}}, "cv2 version was 1.0"),
    ],
)
def test_a_cache_about_other_views_is_refused(
    tmp_path: Path, digits: DetectionDataset, cache: TeacherCache, change: dict, message: str
) -> None:
    manifest = cache.manifest
    if "fingerprint" in change:
        change = {"fingerprint": {**manifest.fingerprint, **change["fingerprint"]}}
    cache.manifest = manifest.model_copy(update=change)
    try:
        with pytest.raises(InputError, match=message):
            distill(
                digits, "yolov8n.yaml", SETTINGS, tmp_path / "s", name="s", recipe=load_recipe("default"), teacher=cache
            )
    finally:
        cache.manifest = manifest
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("model", ["yolov8q.yaml", "missing.pt", "yolov8n", "missing.yaml"])
def test_an_unknown_student_is_refused(tmp_path: Path, digits: DetectionDataset, model: str) -> None:
    with pytest.raises(InputError, match="there is no such model"):
        distill(digits, model, SETTINGS, tmp_path / "s", name="plain")
