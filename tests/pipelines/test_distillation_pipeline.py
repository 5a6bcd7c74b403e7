"""The distillation pipeline as Kubeflow sees it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components
from kfp.compiler import Compiler

from yolo_distill.pipelines.distillation.arguments import DistillationArguments
from yolo_distill.pipelines.distillation.pipeline import RESULTS, distillation
from yolo_distill.pipelines.distillation.run import compile_pipeline
from yolo_distill.pipelines.graph import planned_tasks

GOLDEN = Path(__file__).parent / "golden" / "distillation.yaml"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(target)
    return target


@pytest.fixture(scope="module")
def specification(compiled: Path) -> dict[str, Any]:
    return yaml.safe_load(compiled.read_text())


def test_it_is_what_was_agreed_on(compiled: Path) -> None:
    assert compiled.read_text() == GOLDEN.read_text(), "if the change is meant, accept it with: make golden"


def test_it_loads(compiled: Path) -> None:
    loaded = components.load_component_from_file(str(compiled))
    assert loaded.name == "yolov8-distillation"
    assert set(loaded.component_spec.inputs) == set(DistillationArguments.model_fields)


def test_its_defaults_are_those_of_the_command_line(specification: dict[str, Any]) -> None:
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    assert {name: parameter["defaultValue"] for name, parameter in parameters.items()} == (
        DistillationArguments().model_dump()
    )


def _tasks(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tasks of all loops and branches by name."""
    dags = [specification["root"], *(part for part in specification["components"].values() if "dag" in part)]
    return {name: task for dag in dags for name, task in dag["dag"]["tasks"].items()}


def test_every_result_is_an_output_of_a_task(specification: dict[str, Any]) -> None:
    tasks = _tasks(specification)
    for names, output in RESULTS.values():
        for name in names:
            component = specification["components"][tasks[name]["componentRef"]["name"]]
            assert output in component["outputDefinitions"]["artifacts"]


@pytest.mark.parametrize("number", range(1, 4))
def test_the_students_differ_in_the_teacher_alone(specification: dict[str, Any], number: int) -> None:
    tasks = _tasks(specification)
    [plain], distilled = RESULTS["plain"][0], RESULTS["distilled"][0][number]
    one, other = tasks[plain]["inputs"], tasks[distilled]["inputs"]
    # Online there is no cache.
    assert other["artifacts"].keys() - one["artifacts"].keys() == {"cache", "teacher"} - {
        "cache" if number == 3 else ""
    }
    # In a branch they come through its own inputs, which are named after theirs.
    values = {name: str(source).replace("pipelinechannel--", "") for name, source in other["parameters"].items()}
    differing = {name for name in one["parameters"].keys() | values if str(one["parameters"].get(name)) != values[name]}
    assert differing == {"name", "recipe"}


@pytest.mark.parametrize(
    ("answers", "parts", "wanted"),
    [
        (
            "cache",
            2,
            [
                "teacher-cache-shards-2-iteration-0",
                "teacher-cache-shards-2-iteration-1",
                "teacher-cache-logits-2",
                "distill-train-4",
            ],
        ),
        ("original", 1, ["teacher-cache-logits-3", "distill-train-5"]),
        ("online", 1, ["distill-train-6"]),
    ],
)
def test_where_the_answers_come_from_decides_what_runs(
    compiled: Path, answers: str, parts: int, wanted: list[str]
) -> None:
    arguments = DistillationArguments.model_validate({"teacher_answers": answers, "cache_parts": parts})
    tasks = planned_tasks(compiled, arguments.model_dump())
    run = [task.name for task in tasks if not task.skipped]
    assert [name for name in run if name.startswith(("teacher-cache", "distill-train-"))] == wanted
    assert [name for name in RESULTS["distilled"][0] if name in run] == wanted[-1:]
    assert len(run) == 14 + len(wanted) - 1


def _run_with(compiled: Path, **arguments: str) -> list[str]:
    values = DistillationArguments.model_validate(arguments).model_dump()
    return [task.name for task in planned_tasks(compiled, values) if not task.skipped]


def test_a_pruned_student_is_recovered_and_takes_the_place_of_the_distilled_one(
    compiled: Path, specification: dict[str, Any]
) -> None:
    pruned = _run_with(compiled, pruning="on")
    plainly = _run_with(compiled)
    assert set(pruned) - set(plainly) == {
        "teacher-cache-shards-iteration-0",
        "teacher-cache-logits",
        "distill-train-2",
        "prune",
        "distill-train-3",
    }
    assert [name for name in RESULTS["distilled"][0] if name in pruned] == ["distill-train-3"]
    assert [name for name in RESULTS["unpruned"][0] if name in pruned] == ["distill-train-2"]
    tasks = _tasks(specification)
    assert tasks["prune"]["inputs"]["artifacts"]["model"]["taskOutputArtifact"]["producerTask"] == "distill-train-2"
    recovery = tasks["distill-train-3"]["inputs"]["artifacts"]
    assert recovery["initial"]["taskOutputArtifact"]["producerTask"] == "prune"
    assert recovery["cache"]["taskOutputArtifact"]["producerTask"] == "teacher-cache-logits"


def test_a_student_that_was_trained_on_with_simulated_int8_is_the_one_that_is_quantised(
    compiled: Path, specification: dict[str, Any]
) -> None:
    aware, plainly = _run_with(compiled, quantization="qat"), _run_with(compiled)
    assert set(aware) - set(plainly) == {
        "teacher-cache-shards-3-iteration-0",
        "teacher-cache-logits-4",
        "quantize-aware-train",
        "export-openvino-2",
        "quantize",
    }
    assert set(plainly) - set(aware) == {"quantize-2"}
    assert [[name for name in RESULTS["int8"][0] if name in run] for run in (aware, plainly)] == [
        ["quantize"],
        ["quantize-2"],
    ]
    tasks = _tasks(specification)
    made_from = {
        task: tasks[task]["inputs"]["artifacts"][name]["taskOutputArtifact"]["producerTask"]
        for task, name in {"quantize-aware-train": "cache", "export-openvino-2": "model", "quantize": "model"}.items()
    }
    assert made_from == {
        "quantize-aware-train": "teacher-cache-logits-4",
        "export-openvino-2": "quantize-aware-train",
        "quantize": "export-openvino-2",
    }


@pytest.mark.parametrize(
    ("arguments", "added"),
    [
        ({"mobile": "ncnn"}, {"export-mobile"}),
        ({"tensorrt": "fp16"}, {"export-tensorrt"}),
        (
            {"robustness": "on"},
            {"evaluate-robustness", "compare-robustness", *(f"evaluate-robustness-{number}" for number in (2, 3, 4))},
        ),
    ],
)
def test_what_comes_besides_runs_only_when_it_is_asked_for(
    compiled: Path, arguments: dict[str, str], added: set[str]
) -> None:
    assert set(_run_with(compiled, **arguments)) - set(_run_with(compiled)) == added


def test_tasks_are_shown_in_the_order_of_their_dependencies(compiled: Path) -> None:
    tasks = planned_tasks(compiled, {})
    order = [task.name for task in tasks]
    assert order[0] == "prepare-data"
    wanted = [
        "train-teacher",
        "teacher-cache-shards-2-iteration-0",
        "teacher-cache-logits-2",
        "distill-train-4",
        "export-openvino",
    ]
    assert [name for name in order if name in wanted] == wanted
    assert tasks[0].title == "Prepare the data"
    assert len({task.title for task in tasks}) == len(tasks)


def test_no_task_hides_that_its_component_is_not_ours(specification: dict[str, Any]) -> None:
    for executor in specification["deploymentSpec"]["executors"].values():
        assert "yolo_distill.components." in executor["container"]["command"][-1]
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_compiling_twice_gives_the_same(compiled: Path, tmp_path: Path) -> None:
    Compiler().compile(distillation, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == compiled.read_text()
