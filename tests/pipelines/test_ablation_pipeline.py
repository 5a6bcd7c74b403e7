"""The ablation pipeline as Kubeflow sees it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components

from yolo_distill.pipelines.ablation.arguments import AblationArguments, checked_arguments
from yolo_distill.pipelines.ablation.pipeline import RESULTS
from yolo_distill.pipelines.ablation.run import compile_pipeline, plan_run
from yolo_distill.pipelines.graph import planned_tasks

GOLDEN = Path(__file__).parent / "golden" / "ablation.yaml"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(target)
    return target


@pytest.fixture(scope="module")
def specification(compiled: Path) -> dict[str, Any]:
    return yaml.safe_load(compiled.read_text())


def test_it_is_what_was_agreed_on(specification: dict[str, Any]) -> None:
    # Not the text: a comment in it lists the fields of the trials in an order that changes from process to process.
    assert specification == yaml.safe_load(GOLDEN.read_text()), "if the change is meant, accept it with: make golden"


def test_its_defaults_are_those_of_the_command_line(compiled: Path, specification: dict[str, Any]) -> None:
    loaded = components.load_component_from_file(str(compiled))
    defaults = AblationArguments().pipeline_arguments
    assert set(loaded.component_spec.inputs) == set(defaults)
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    assert {name: parameter["defaultValue"] for name, parameter in parameters.items()} == defaults


def test_every_result_is_an_output_of_a_task(specification: dict[str, Any]) -> None:
    tasks = specification["root"]["dag"]["tasks"]
    for [task], output in RESULTS.values():
        component = specification["components"][tasks[task]["componentRef"]["name"]]
        assert output in component["outputDefinitions"]["artifacts"]


def test_all_trials_share_one_teacher_and_one_cache_and_few_run_at_once(specification: dict[str, Any]) -> None:
    tasks = specification["root"]["dag"]["tasks"]
    loop = tasks["for-loop-1"]
    assert loop["iteratorPolicy"]["parallelismLimit"] == 2
    assert set(loop["dependentTasks"]) == {"prepare-data", "train-teacher", "teacher-cache-logits"}
    training = specification["components"]["comp-for-loop-1"]["dag"]["tasks"]["distill-train"]["inputs"]
    assert training["artifacts"].keys() == {"dataset", "cache", "teacher"}
    item = "pipelinechannel--trials-loop-item"
    varying = {name for name, source in training["parameters"].items() if source.get("componentInputParameter") == item}
    assert varying == {"name", "recipe", "seed"}


def test_every_trial_is_shown_by_its_student(compiled: Path) -> None:
    arguments = AblationArguments(recipes=["plain", "default"], seeds=[3, 4]).pipeline_arguments
    tasks = planned_tasks(compiled, arguments)
    assert {task.name: task.title for task in tasks if task.name.startswith("distill-train")} == {
        "distill-train-iteration-0": "Train a student (plain 3)",
        "distill-train-iteration-1": "Train a student (default 3)",
        "distill-train-iteration-2": "Train a student (plain 4)",
        "distill-train-iteration-3": "Train a student (default 4)",
    }
    assert (tasks[0].name, tasks[-1].name) == ("prepare-data", "compare-recipes")


def test_every_recipe_is_tried_with_every_seed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\ndescription: x\nterms:\n- {loss: binary_kl, weight: 1.0}\n")
    arguments = checked_arguments({"recipes": ["plain", str(mine)], "seeds": ["5", "7"]})
    plan = plan_run(arguments, tmp_path / "runs", cached=True)
    trials = plan.arguments["trials"]
    assert [(trial["student"], trial["seed"]) for trial in trials] == [
        ("plain 5", 5),
        ("mine 5", 5),
        ("plain 7", 7),
        ("mine 7", 7),
    ]
    # The recipe as it is now, whatever becomes of the file.
    kept = Path(trials[1]["recipe"])
    assert kept.parent.parent == tmp_path / "runs" / "inputs"
    assert kept.read_text() == mine.read_text()
