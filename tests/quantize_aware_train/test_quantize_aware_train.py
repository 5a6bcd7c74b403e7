import json
import pickletools
import shutil
import zipfile
from pathlib import Path

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import nncf
import numpy as np
import openvino
import pytest
import torch
from kfp import dsl

from tests.lively import lively_model
from yolo_distill.components.distill_train.history import read_history
from yolo_distill.components.distill_train.recipe import load_recipe
from yolo_distill.components.distill_train.train import STUDENTS_FOLDER, choose_teacher
from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.quantize.openvino_int8 import nncf_settings
from yolo_distill.components.quantize_aware_train import train
from yolo_distill.components.quantize_aware_train.component import quantize_aware_train as component
from yolo_distill.components.quantize_aware_train.fake_quantization import (
    FakeQuantizedConv2d,
    measured_ranges,
    simulated_int8,
)
from yolo_distill.components.quantize_aware_train.train import quantize_aware_train
from yolo_distill.components.shared.detector import preprocess, read_image
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.launch import job_kind
from yolo_distill.components.shared.model_card import read_card, write_card
from yolo_distill.components.shared.training import TrainingJob, train_settings
from yolo_distill.components.shared.views import Augmentation
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat

SETTINGS = train_settings(epochs=2, imgsz=96, batch=16, lr0=0.0005)


@pytest.fixture(scope="module")
def student_dir(digits: DetectionDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights whose answers differ from image to image."""
    target = tmp_path_factory.mktemp("student") / "student"
    lively_model(digits, target, 96, str(STUDENTS_FOLDER / "yolov8p.yaml"))
    return target


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, lively_dir: Path) -> Path:
    target = tmp_path_factory.mktemp("cache") / "cache"
    build_cache(digits, lively_dir, CacheSettings(Augmentation(imgsz=96), 1, 1, AnswerFormat(top_k=20)), target)
    return target


class Watched:
    """Trains what it is told of in this process, and keeps what it saw."""

    def __init__(self) -> None:
        self.convolutions: list[int] = []
        self.norms_trained: list[int] = []
        self.kind = ""

    def __call__(self, job: TrainingJob) -> None:
        self.kind = job_kind(job)
        trainer = type(job).model_validate(json.loads(job.model_dump_json())).trainer()
        trainer.add_callback("on_train_batch_end", self._look)
        trainer.train()

    def _look(self, trainer: train.QuantizationAwareTrainer) -> None:
        modules = list(trainer.model.model.modules())
        self.convolutions.append(sum(isinstance(module, FakeQuantizedConv2d) for module in modules))
        norms = [module for module in modules if isinstance(module, torch.nn.BatchNorm2d)]
        self.norms_trained.append(sum(norm.training for norm in norms))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, student_dir: Path, cache_dir: Path):
    target, watched = tmp_path_factory.mktemp("aware") / "student", Watched()
    recipe = load_recipe("default")
    teacher = choose_teacher(recipe, cache_dir, None)
    result = quantize_aware_train(
        digits, student_dir, SETTINGS, target, name="aware", recipe=recipe, teacher=teacher, launcher=watched
    )
    return result, target, watched


def test_every_step_is_rounded_and_batch_norms_rest(trained, student_dir):
    result, target, watched = trained
    # A student has 63 learned convolutions; 48 images are three batches an epoch.
    assert watched.convolutions == [63] * 6
    assert watched.norms_trained == [0] * 6
    assert watched.kind.endswith("quantize_aware_train.train:QuantizationAwareStudentJob")
    assert [record["epoch"] for record in result.history] == [1, 2]
    assert all(result.history[0][f"train/kd_{term.loss}"] > 0 for term in load_recipe("default").terms)
    before, after = (load_network(folder / "model.pt").state_dict() for folder in (student_dir, target))
    assert not torch.equal(before["model.0.conv.weight"], after["model.0.conv.weight"])
    assert torch.equal(before["model.0.bn.running_mean"], after["model.0.bn.running_mean"])


def test_the_artifact_is_an_ordinary_checkpoint(trained, student_dir):
    result, target, _ = trained
    card, parent = read_card(target), read_card(student_dir)
    assert card == result.card
    assert (card.name, card.format, card.precision, card.imgsz) == ("aware", "pytorch", "fp32", 96)
    told = {"simulated": "int8", "parent": parent.digest, "pretrained": parent.digest, "recipe": "default"}
    assert told.items() <= card.lineage.items()
    with zipfile.ZipFile(target / "model.pt") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        texts = [str(argument) for _, argument, _ in pickletools.genops(archive.read(name)) if argument is not None]
    assert "ultralytics.nn.tasks DetectionModel" in texts
    assert not [text for text in texts if "yolo_distill." in text or "fakequant" in text.lower()]


def test_simulated_int8_is_closer_to_the_real_one_than_the_floating_point_model_is(trained, digits, tmp_path):
    _, target, _ = trained
    export(digits, target, tmp_path / "onnx", tmp_path / "openvino")
    paths = [digits.image_path(record) for record in digits.split("train")]
    images = torch.from_numpy(preprocess([read_image(path) for path in paths], 96)[0])
    network = load_network(target / "model.pt").float()
    with torch.no_grad():
        exact = network(images[:16])[0].numpy()
        with simulated_int8(network, measured_ranges(network, images.split(16))):
            simulated = network(images[:16])[0].numpy()
    model = openvino.Core().read_model(tmp_path / "openvino" / "model.xml")
    # As the quantize step does, but for the correction of biases, which no training simulates.
    quantized = nncf.quantize(
        model,
        **nncf_settings(model, read_card(tmp_path / "openvino"), digits, digits.split("train")),
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    compiled = openvino.compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    real = np.concatenate([compiled(image.numpy())[0] for image in images[:16].split(1)])
    assert distance(exact, real) > 1e-3
    assert distance(simulated, real) < 0.7 * distance(exact, real)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of class scores."""
    return float(np.abs(one - other)[:, 4:].mean())


def test_the_component_trains_plainly_without_a_teacher(tmp_path, digits, student_dir, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    outputs = {"student": dsl.Model, "metrics": dsl.Metrics, "curves": dsl.HTML, "history": dsl.Artifact}
    made = {name: kind(name=name, uri=str(tmp_path / name)) for name, kind in outputs.items()}
    dataset, model = dsl.Dataset(uri=str(digits.root)), dsl.Model(uri=str(student_dir))
    component.python_func(dataset=dataset, model=model, epochs=1, lr=0.0001, **made)
    card, history = read_card(tmp_path / "student"), read_history(tmp_path / "history")
    assert (card.name, card.imgsz, card.lineage["recipe"]) == ("quantize-aware", 96, "plain")
    assert history.model == card.digest
    assert [record["epoch"] for record in history.epochs] == [1]
    assert made["metrics"].metadata["mAP50-95"] == history.epochs[0]["metrics/mAP50-95"]
    assert "simulated INT8" in (tmp_path / "curves").read_text()


def test_a_recipe_does_not_set_the_learning_rate(tmp_path, digits, student_dir, lively_dir):
    recipe = load_recipe("article")
    assert recipe.training.lr0 != SETTINGS.lr0

    class Told(Exception):
        pass

    def tell(job: TrainingJob) -> None:
        raise Told(job.settings.lr0, job.recipe.training.clip_norm)

    online = choose_teacher(recipe, None, lively_dir, here=False)
    arguments = {"name": "x", "recipe": recipe, "teacher": online, "launcher": tell}
    with pytest.raises(Told) as told:
        quantize_aware_train(digits, student_dir, SETTINGS, tmp_path / "out", **arguments)
    assert told.value.args == (SETTINGS.lr0, recipe.training.clip_norm)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "openvino"}, "is in openvino format"),
        ({"format": "onnx", "precision": "int8"}, "is in onnx format"),
        ({"classes": ["cat"]}, "its classes .* are not the dataset's"),
    ],
)
def test_models_that_cannot_be_trained_on_are_refused(changes, problem, tmp_path, digits, student_dir):
    folder = tmp_path / "model"
    shutil.copytree(student_dir, folder)
    write_card(folder, read_card(folder).model_copy(update=changes))
    with pytest.raises(InputError, match=problem):
        quantize_aware_train(digits, folder, SETTINGS, tmp_path / "out", name="x")
    assert not list(tmp_path.glob("out*"))


def test_a_cache_of_another_dataset_is_refused(tmp_path, digits, student_dir, cache_dir):
    foreign = tmp_path / "cache"
    shutil.copytree(cache_dir, foreign)
    manifest = json.loads((foreign / "manifest.json").read_text())
    (foreign / "manifest.json").write_text(json.dumps({**manifest, "dataset": "0" * 64}))
    recipe = load_recipe("default")
    arguments = {"name": "x", "recipe": recipe, "teacher": choose_teacher(recipe, foreign, None)}
    with pytest.raises(InputError, match="teacher cache: is about dataset 000000000000"):
        quantize_aware_train(digits, student_dir, SETTINGS, tmp_path / "out", **arguments)
    assert not list(tmp_path.glob("out*"))
