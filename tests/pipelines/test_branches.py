"""Loops and branches of a pipeline: what is known of them beforehand, and what becomes of them in the local runner."""

import io
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from kfp import dsl
from kfp.compiler import Compiler
from mlflow import MlflowClient
from rich.console import Console

from tests.pipelines.throwaway import branches, note
from yolo_distill.pipelines.events import RunWatch, TaskView
from yolo_distill.pipelines.graph import planned_tasks
from yolo_distill.pipelines.launch import RunError, run_pipeline
from yolo_distill.pipelines.plan import RunPlan

PlanBranches = Callable[..., RunPlan]


@pytest.fixture(scope="module")
def plan_branches(tmp_path_factory: pytest.TempPathFactory) -> PlanBranches:
    """Plans runs of the pipeline with a loop and branches, all in one folder."""
    output = tmp_path_factory.mktemp("runs")

    def plan(**arguments: str | list[str]) -> RunPlan:
        made = RunPlan.new(output, arguments)
        made.folder.mkdir(parents=True)
        Compiler().compile(branches, str(made.pipeline))
        return made

    return plan


@pytest.fixture(autouse=True)
def _own_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


def _run(plan: RunPlan) -> dict[str, TaskView]:
    return run_pipeline(plan, Console(file=io.StringIO(), width=120)).tasks


def _states(tasks: dict[str, TaskView]) -> dict[str, str]:
    return {name: task.state for name, task in tasks.items()}


def _tags(plan: RunPlan) -> dict[str, str]:
    client = MlflowClient(plan.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    [run] = client.search_runs(experiments, f"attributes.run_name = '{plan.name}'")
    return dict(run.data.tags)


def test_what_arguments_rule_out_is_known_beforehand(plan_branches: PlanBranches) -> None:
    plan = plan_branches(words=["x", "y"])
    tasks = planned_tasks(plan.pipeline, plan.arguments)
    # The last branch waits for what a task will say.
    assert [(task.name, task.skipped) for task in tasks] == [
        ("note-iteration-0", False),
        ("note-iteration-1", False),
        ("join", False),
        ("note-2", True),
        ("read", False),
        ("note-3", False),
    ]
    assert [task.title for task in tasks[:2]] == ["Note a word (x)", "Note a word (y)"]
    assert planned_tasks(plan.pipeline, {})[0].title == "Note a word"
    other = planned_tasks(plan.pipeline, {"way": "other"})
    assert [task.name for task in other if task.skipped] == ["note-iteration-0", "join"]


def test_a_loop_over_what_a_task_will_say_cannot_be_planned(tmp_path: Path) -> None:
    @dsl.component(base_image="python:3.11", install_kfp_package=False)
    def words() -> list:
        return ["a"]

    @dsl.pipeline(name="unknown")
    def unknown():
        with dsl.ParallelFor(words().output) as word:
            note(word=word)

    Compiler().compile(unknown, str(tmp_path / "unknown.yaml"))
    with pytest.raises(ValueError, match="what for-loop-1 goes over is not known before the pipeline runs"):
        planned_tasks(tmp_path / "unknown.yaml", {})


def test_each_iteration_of_a_loop_is_a_task_and_the_other_branch_is_skipped(plan_branches: PlanBranches) -> None:
    first = plan_branches(words=["x", "y", "z"])
    tasks = _run(first)
    assert _states(tasks) == {
        "note-iteration-0": "done",
        "note-iteration-1": "done",
        "note-iteration-2": "done",
        "join": "done",
        "note-2": "skipped",
        "read": "done",
        "note-3": "skipped",
    }
    written = [tasks[f"note-iteration-{number}"].outputs["made"].read_text() for number in range(3)]
    assert written == ["x", "y", "z"]
    assert tasks["join"].outputs["made"].read_text() == "x y z"
    tags = _tags(first)
    assert (tags["task.note-iteration-2"], tags["task.note-2"], tags["task.note-3"]) == ("done", "skipped", "skipped")

    # An iteration that has been there before is not run again.
    second = plan_branches(words=["x", "new"])
    states = _states(_run(second))
    assert (states["note-iteration-0"], states["note-iteration-1"], states["join"]) == ("cached", "done", "done")
    assert _tags(second)["task.note-iteration-0"] == f"cached from {first.name}"


def test_the_output_of_the_branch_that_ran_goes_on(plan_branches: PlanBranches) -> None:
    plan = plan_branches(way="other")
    tasks = _run(plan)
    assert _states(tasks) == {
        "note-iteration-0": "skipped",
        "join": "skipped",
        "note-2": "done",
        "read": "done",
        "note-3": "done",
    }
    assert tasks["note-3"].outputs["made"].read_text() == "end"

    # What one branch has made serves another that asks for the same.
    states = _states(_run(plan_branches(words=["alone"])))
    assert (states["note-iteration-0"], states["join"], states["note-3"]) == ("cached", "done", "cached")


def test_nothing_is_begun_after_a_failure(plan_branches: PlanBranches, tmp_path: Path) -> None:
    # The others wait for the failure and some seconds more, one after the other.
    words = [f"bad {tmp_path / 'failing'}", *(f"later {tmp_path / 'failing' / str(number)}" for number in range(6))]
    plan = plan_branches(words=words)
    with pytest.raises(RunError, match=r"bad: is no word. Give another") as caught:
        _run(plan)
    assert caught.value.by_input
    watch = RunWatch(plan.events, planned_tasks(plan.pipeline, plan.arguments))
    watch.poll()
    states = _states(watch.tasks)
    assert states["note-iteration-0"] == "failed"
    assert states["note-iteration-6"] == "waiting"
    assert (states["join"], states["read"], states["note-2"]) == ("waiting", "waiting", "skipped")
    assert _tags(plan)["task.note-iteration-0"] == "failed"


def test_the_end_of_a_run_ends_its_loop(
    plan_branches: PlanBranches, start_run: Callable[[RunPlan], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    words = [tmp_path / name for name in "abcd"]
    plan = plan_branches(words=[f"endless {word}" for word in words])
    process = start_run(plan)
    deadline = time.monotonic() + 60
    while sum(bool(word.exists() and word.read_text()) for word in words) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pids = [int(word.read_text()) for word in words if word.exists()]
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert not any(map(_is_running, pids))
    # The iterations that had not begun did not begin.
    assert [word.exists() for word in words] == [True, True, False, False]
    assert _tags(plan)["task.note-iteration-3"] == "waiting"


def _is_running(pid: int) -> bool:
    try:
        # What was ended stays as a zombie until whoever inherited it looks.
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
