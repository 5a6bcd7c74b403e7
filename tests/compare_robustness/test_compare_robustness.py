"""Several models' robustness in one picture."""

from pathlib import Path

import pytest

from yolo_distill.components.compare_robustness.compare import compare_robustness
from yolo_distill.components.evaluate_map.evaluate import SETTINGS
from yolo_distill.components.evaluate_map.evaluation import EvaluatedModel
from yolo_distill.components.evaluate_robustness.robustness import (
    Accuracy,
    AttackResult,
    AttackSource,
    CorruptionResult,
    Robustness,
    RobustnessSettings,
    write_robustness,
)
from yolo_distill.components.shared.errors import InputError

NAMES = ("teacher", "plain", "distilled", "quantized")


def robustness(name: str, share: float) -> Robustness:
    """A model's figures, of which the INT8 model's attack is the distilled one's."""

    def accuracy(value: float) -> Accuracy:
        return Accuracy(map=share * value, map50=value)

    onnx = name == "quantized"
    return Robustness(
        model=EvaluatedModel(
            name=name,
            format="openvino" if onnx else "pytorch",
            precision="int8" if onnx else "fp32",
            digest=name,
            imgsz=160,
            architecture="yolov8n.yaml",
            parameters=1,
            gflops=1,
            lineage={},
        ),
        dataset="d",
        split="val",
        images=["images/val/1.png"],
        boxes=3,
        measured=RobustnessSettings(corruptions=("snow",), severities=(1, 5), epsilons=(2, 8)),
        settings=SETTINGS,
        clean=accuracy(1),
        corruptions=[CorruptionResult(corruption="snow", by_severity={1: accuracy(0.8), 5: accuracy(0.4)})],
        attacks=[AttackResult(attack="pgd", by_epsilon={2: accuracy(0.5), 8: accuracy(0.1)})],
        source=AttackSource(name="x", architecture="yolov8n.yaml", digest="distilled" if onnx else name),
    )


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    folders = {name: tmp_path / name for name in NAMES}
    for number, (name, folder) in enumerate(folders.items()):
        write_robustness(folder, robustness(name, 0.8 - 0.1 * number))
    return folders


def test_everything_is_written(folders: dict[str, Path], tmp_path: Path) -> None:
    named = {"INT8" if name == "quantized" else name: folder for name, folder in folders.items()}
    result = compare_robustness(named, tmp_path / "table", tmp_path / "report")
    assert result["plain"] == robustness("plain", 0.8 - 0.1)
    table = (tmp_path / "table").read_text()
    assert "| teacher | 80.0 | 48.0 | 60.0 | 40.0 | 8.0 |" in table
    assert "| INT8 | 50.0 | 30.0 | 60.0 | 25.0 | 5.0 |" in table
    assert "teacher: a white-box attack" in table and "INT8: a transfer attack" in table
    page = (tmp_path / "report").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert all(name in page for name in ("teacher", "plain", "distilled", "INT8"))


@pytest.mark.parametrize("change", [{"images": ["images/val/2.png"]}, {"measured": RobustnessSettings()}])
def test_what_does_not_compare_is_refused(change: dict[str, object], folders: dict[str, Path], tmp_path: Path) -> None:
    write_robustness(folders["plain"], robustness("plain", 0.5).model_copy(update=change))
    with pytest.raises(InputError, match=f"robustness of plain: its {next(iter(change))} differ from those of teacher"):
        compare_robustness(folders, tmp_path / "table", tmp_path / "page")
    assert not (tmp_path / "table").exists()


def test_a_folder_that_is_no_robustness_evaluation(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has no robustness\.json"):
        compare_robustness({**folders, "plain": tmp_path / "nowhere"}, tmp_path / "table", tmp_path / "page")
