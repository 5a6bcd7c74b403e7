from pathlib import Path

import pytest
import torch

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file
from yolo_distill.components.shared.model_card import read_card
from yolo_distill.components.shared.training import train_settings
from yolo_distill.components.train_teacher.train import train_teacher

SETTINGS = train_settings(epochs=1, imgsz=96, batch=16)


def test_a_teacher_is_trained_from_a_model_yaml(tmp_path: Path, digits: DetectionDataset) -> None:
    result = train_teacher(digits, "yolov8n.yaml", SETTINGS, tmp_path / "teacher")
    card = read_card(tmp_path / "teacher")
    assert card == result.card
    assert card.classes == digits.classes
    assert card.lineage["dataset"] == digits.digest
    assert card.parameters == sum(p.numel() for p in load_network(tmp_path / "teacher/model.pt").parameters())
    assert result.history[-1]["train/box_loss"] > 0
    assert "metrics/mAP50-95" in result.history[-1]


def test_a_checkpoint_with_the_datasets_classes_is_taken_as_it_is(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path
) -> None:
    result = train_teacher(digits, str(teacher_dir / "model.pt"), SETTINGS, tmp_path / "teacher")
    assert result.history == []
    before, after = (load_network(f / "model.pt").state_dict() for f in (teacher_dir, tmp_path / "teacher"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_card(tmp_path / "teacher").lineage["pretrained"] == sha256_file(teacher_dir / "model.pt")


def test_a_checkpoint_with_other_classes_is_fine_tuned(
    tmp_path: Path, digits: DetectionDataset, coco_weights: Path
) -> None:
    result = train_teacher(digits, str(coco_weights), SETTINGS, tmp_path / "teacher")
    assert result.card.classes == digits.classes
    assert len(result.history) == 1
    # The backbone starts from the checkpoint's weights and one epoch moves them little.
    pretrained, tuned = (
        load_network(path).model[0].conv.weight for path in (coco_weights, tmp_path / "teacher/model.pt")
    )
    assert torch.nn.functional.cosine_similarity(pretrained.flatten(), tuned.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("model", ["checkpoint", "yolov8n.yaml"])
def test_a_teacher_that_may_not_be_trained_must_fit(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path, model: str
) -> None:
    if model == "checkpoint":
        checkpoint = torch.load(teacher_dir / "model.pt", weights_only=False)
        checkpoint["model"].names = {index: f"animal {index}" for index in range(10)}
        model = str(tmp_path / "animals.pt")
        torch.save(checkpoint, model)
    with pytest.raises(InputError, match=r"animal 0, animal 1.*are not the data's|has no weights"):
        train_teacher(digits, model, SETTINGS, tmp_path / "teacher", may_train=False)
    assert not (tmp_path / "teacher").exists()


def test_the_same_seed_gives_the_same_teacher(tmp_path: Path, digits: DetectionDataset) -> None:
    losses = [
        train_teacher(digits, "yolov8n.yaml", SETTINGS, tmp_path / name).history[0]["train/box_loss"]
        for name in ("first", "second")
    ]
    assert losses[0] == losses[1]


def test_a_pickle_that_is_no_checkpoint_is_refused_unread(tmp_path: Path, digits: DetectionDataset) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"model": Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt"):
        train_teacher(digits, str(tmp_path / "bad.pt"), SETTINGS, tmp_path / "teacher")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("values", [{"imgsz": 100}, {"epochs": 0}, {"batch": 0}, {"lr0": -1}])
def test_settings_out_of_range_are_refused_by_name(values: dict) -> None:
    name = next(iter(values))
    with pytest.raises(InputError, match=f"{name}="):
        train_settings(**{"epochs": 1, "imgsz": 96, "batch": 16, **values})
