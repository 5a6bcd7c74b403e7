import re
from pathlib import Path

import mlflow
import pytest

from yolo_distill.components.compare.comparison import Role
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.register_model.register import register
from yolo_distill.components.register_model.registration import Registration
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import read_card
from yolo_distill.components.shared.task import task_run


def register_quantized(
    models: dict[Role, Path], evaluations: dict[Role, Path], dataset: DetectionDataset, name: str, output: Path
) -> Registration:
    with task_run("register-model") as run:
        return register(models["quantized"], evaluations["quantized"], dataset, name, output, run)


def test_the_first_version_is_champion_and_a_later_one_challenger(
    models: dict[Role, Path], evaluations: dict[Role, Path], digits: DetectionDataset, tmp_path: Path
) -> None:
    first = register_quantized(models, evaluations, digits, "student", tmp_path / "first")
    second = register_quantized(models, evaluations, digits, "student", tmp_path / "second")
    assert first.aliases == ["challenger", "champion"]
    assert second.aliases == ["challenger"]
    assert (second.uri, second.version) == ("models:/student/2", 2)
    aliases = mlflow.MlflowClient().get_registered_model("student").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"champion": 1, "challenger": 2}
    written = Registration.model_validate_json((tmp_path / "second" / "registration.json").read_text())
    assert written == second


def test_a_registered_model_comes_back_as_it_was(
    models: dict[Role, Path], evaluations: dict[Role, Path], digits: DetectionDataset, tmp_path: Path
) -> None:
    register_quantized(models, evaluations, digits, "downloaded", tmp_path / "registration")
    folder = mlflow.artifacts.download_artifacts("models:/downloaded@champion", dst_path=str(tmp_path / "back"))
    # Reading a card checks every file against its digest.
    assert read_card(Path(folder)) == read_card(models["quantized"])


def test_a_version_says_what_it_is_and_how_good(
    models: dict[Role, Path], evaluations: dict[Role, Path], digits: DetectionDataset, tmp_path: Path
) -> None:
    result = register_quantized(models, evaluations, digits, "told", tmp_path / "registration")
    version = mlflow.MlflowClient().get_model_version("told", str(result.version))
    card = read_card(models["quantized"])
    assert version.run_id == result.run_id
    assert version.tags["model.digest.model.bin"] == card.digests["model.bin"]
    assert version.tags["dataset.digest"] == digits.digest
    assert version.tags["lineage.parent"] == card.lineage["parent"]
    assert version.tags["evaluation.images"] == "16"
    assert float(version.tags["evaluation.map"]) == pytest.approx(
        mlflow.get_run(result.run_id).data.metrics["map"], abs=1e-6
    )
    assert "openvino int8 at 160 px" in version.description


def test_one_walks_from_the_file_back_to_the_data(
    models: dict[Role, Path],
    evaluations: dict[Role, Path],
    digits: DetectionDataset,
    tmp_path: Path,
    repo_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for step, role in (("distill-train", "distilled"), ("export-openvino", "openvino"), ("quantize", "quantized")):
        with task_run(step, role) as run:
            run.log_dataset(digits, "training")
            run.log_model(models[role])
            if role == "openvino":
                # The step makes two models.
                run.log_model(models[role].with_name("onnx"))
    register_quantized(models, evaluations, digits, "walked", tmp_path / "registration")
    # The README's own example, run where the file lies as it says.
    (tmp_path / "int8").symlink_to(models["quantized"])
    monkeypatch.chdir(tmp_path)
    readme = (repo_root / "components" / "register_model" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {})
    walked = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in walked] == [
        ["quantize", "quantized"],
        ["export-openvino", "openvino"],
        # By way of ONNX.
        ["export-openvino", "openvino"],
        ["distill-train", "distilled"],
    ]
    assert all(digits.digest[:36] in line for line in walked)


@pytest.mark.parametrize(("model", "evaluation"), [("openvino", "teacher"), ("quantized", "plain")])
def test_an_evaluation_of_another_model_is_refused(
    model: Role,
    evaluation: Role,
    models: dict[Role, Path],
    evaluations: dict[Role, Path],
    digits: DetectionDataset,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="of another model"), task_run("register-model") as run:
        register(models[model], evaluations[evaluation], digits, "refused", tmp_path / "registration", run)
    assert not mlflow.search_registered_models(filter_string="name = 'refused'")
    assert not (tmp_path / "registration").exists()


def test_a_dataset_that_it_was_not_evaluated_on_is_refused(
    models: dict[Role, Path], evaluations: dict[Role, Path], digits: DetectionDataset, tmp_path: Path
) -> None:
    other = DetectionDataset(digits.root, digits.manifest.model_copy(update={"digest": "0" * 64}))
    with pytest.raises(InputError, match="made on another dataset"):
        register_quantized(models, evaluations, other, "refused", tmp_path / "registration")


@pytest.mark.parametrize("name", ["", "a/b", "a:b"])
def test_a_name_that_mlflow_refuses_is_the_users_error(
    name: str,
    models: dict[Role, Path],
    evaluations: dict[Role, Path],
    digits: DetectionDataset,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="registered_name="):
        register_quantized(models, evaluations, digits, name, tmp_path / "registration")
