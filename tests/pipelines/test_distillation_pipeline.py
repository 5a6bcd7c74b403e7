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
from yolo_distill.pipelines.plan import task_titles

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


def test_every_result_is_an_output_of_a_task(specification: dict[str, Any]) -> None:
    tasks = specification["root"]["dag"]["tasks"]
    for task, output in RESULTS.values():
        component = specification["components"][tasks[task]["componentRef"]["name"]]
        assert output in component["outputDefinitions"]["artifacts"]


def test_the_students_differ_in_the_cache_alone(specification: dict[str, Any]) -> None:
    plain, distilled = (
        specification["root"]["dag"]["tasks"][RESULTS[name][0]]["inputs"] for name in ("plain", "distilled")
    )
    assert distilled["artifacts"].keys() - plain["artifacts"].keys() == {"cache"}
    assert distilled["artifacts"]["dataset"] == plain["artifacts"]["dataset"]
    differing = {
        name
        for name in plain["parameters"].keys() | distilled["parameters"].keys()
        if plain["parameters"].get(name) != distilled["parameters"].get(name)
    }
    assert differing == {"name", "recipe"}


def test_tasks_are_shown_in_the_order_of_their_dependencies(compiled: Path) -> None:
    titles = task_titles(compiled)
    order = list(titles)
    assert order[0] == "prepare-data"
    assert order.index("train-teacher") < order.index("teacher-cache-logits") < order.index("distill-train-2")
    assert titles["prepare-data"] == "Prepare the data"
    assert len(set(titles.values())) == len(titles)


def test_no_task_hides_that_its_component_is_not_ours(specification: dict[str, Any]) -> None:
    for executor in specification["deploymentSpec"]["executors"].values():
        assert "yolo_distill.components." in executor["container"]["command"][-1]
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_compiling_twice_gives_the_same(compiled: Path, tmp_path: Path) -> None:
    Compiler().compile(distillation, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == compiled.read_text()
