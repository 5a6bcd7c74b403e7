"""KFP's local runner behind the display: states, cache, lineage, failures and the end of all processes."""

import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from rich.console import Console

from tests.pipelines.throwaway import PlanThrowaway
from yolo_distill.pipelines.launch import RunError, run_pipeline
from yolo_distill.pipelines.plan import RunPlan


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def _own_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)


def _run(plan: RunPlan, verbose: bool = False) -> tuple[dict[str, str], str]:
    shown = io.StringIO()
    watch = run_pipeline(plan, Console(file=shown, width=120), verbose=verbose)
    return {name: task.state for name, task in watch.tasks.items()}, shown.getvalue()


def _parent(plan: RunPlan) -> Run:
    client = MlflowClient(plan.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"attributes.run_name = '{plan.name}'")
    assert len(runs) == 1
    return runs[0]


@pytest.fixture(scope="module")
def first(output: Path, plan_throwaway: PlanThrowaway) -> RunPlan:
    """A run that everything later can be taken over from."""
    plan = plan_throwaway(output, count=4)
    states, shown = _run(plan)
    assert states == {"make": "done", "use": "done"}
    assert "Make numbers: done in 0:0" in shown
    return plan


def test_a_second_run_takes_over_what_the_first_made(
    output: Path, first: RunPlan, plan_throwaway: PlanThrowaway
) -> None:
    second = plan_throwaway(output, count=4)
    states, shown = _run(second)
    assert states == {"make": "cached", "use": "cached"}
    assert "Use numbers: cached" in shown
    parent = _parent(second)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["task.make"] == f"cached from {first.name}"
    assert parent.data.params["count"] == "4"
    assert parent.data.metrics["use.half"] == 2


def test_results_that_were_removed_are_made_again(output: Path, first: RunPlan, plan_throwaway: PlanThrowaway) -> None:
    [numbers] = first.tasks.glob("*/make/numbers")
    shutil.rmtree(numbers)
    assert _run(plan_throwaway(output, count=4))[0] == {"make": "done", "use": "done"}


def test_nothing_is_taken_over_when_the_cache_is_refused_and_a_verbose_run_shows_the_log(
    output: Path, first: RunPlan, plan_throwaway: PlanThrowaway
) -> None:
    states, shown = _run(plan_throwaway(output, count=4, cached=False), verbose=True)
    assert states == {"make": "done", "use": "done"}
    assert shown.index("Executing task 'make'") < shown.index("Executing task 'use'")


def test_bad_input_is_told_in_the_steps_own_words(output: Path, plan_throwaway: PlanThrowaway) -> None:
    plan = plan_throwaway(output, trouble="input")
    with pytest.raises(RunError) as caught:
        _run(plan)
    assert caught.value.by_input
    assert str(caught.value) == "numbers: are odd. Give even ones"
    assert _parent(plan).info.status == "FAILED"


def test_a_bug_is_told_with_the_log(output: Path, plan_throwaway: PlanThrowaway) -> None:
    plan = plan_throwaway(output, trouble="bug")
    with pytest.raises(RunError) as caught:
        _run(plan)
    assert not caught.value.by_input
    assert str(caught.value) == f"the step 'Use numbers' failed; everything it printed is in {plan.log}"
    assert "ZeroDivisionError: a bug of the step" in caught.value.log_tail
    assert "ZeroDivisionError: a bug of the step" in plan.log.read_text()


def test_an_unreachable_mlflow_server_is_found_before_any_task(
    tmp_path: Path, plan_throwaway: PlanThrowaway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    plan = plan_throwaway(tmp_path)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"MLflow at http://127.0.0.1:9: cannot be used") as caught:
        _run(plan)
    assert caught.value.by_input
    assert time.monotonic() - started < 20
    assert not plan.events.exists()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_run(
    output: Path,
    tmp_path: Path,
    plan_throwaway: PlanThrowaway,
    start_run: Callable[[RunPlan], subprocess.Popen[bytes]],
    sign: signal.Signals,
) -> None:
    pids_file = tmp_path / "pids"
    plan = plan_throwaway(output, trouble=str(pids_file))
    process = start_run(plan)
    _wait_until(pids_file.exists, 60)
    time.sleep(0.2)
    pids = [int(pid) for pid in pids_file.read_text().split()]
    assert all(map(_alive, pids))

    os.kill(process.pid, sign)
    process.wait(30)
    _wait_until(lambda: not any(map(_alive, pids)), 20)
    if sign is not signal.SIGKILL:
        assert _parent(plan).info.status == "KILLED"


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
