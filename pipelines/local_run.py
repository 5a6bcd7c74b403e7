"""The process in which KFP's local runner works: ``python -m yolo_distill.pipelines.local_run RUN.json``.

It is a process of its own because the runner prints every line of every task and takes over Python's logging: all of
that goes to the run's log, while the terminal belongs to the display. What happens to the tasks is written as events.
The process and its tasks form a process group, which ends as one: on SIGTERM, or when whoever started it is gone, which
shows by the end of its standard input.
"""

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from kfp import components, dsl, local
from kfp.local import io, status, task_dispatcher
from kfp.local.cache import LocalCache
from kfp.local.orchestrator import task_executor
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.lineage import PIPELINE_RUN_ID_VARIABLE, PIPELINE_RUN_NAME_VARIABLE
from yolo_distill.components.shared.progress import PROGRESS_FILE_VARIABLE
from yolo_distill.pipelines.containers import docker_runner, own_containers
from yolo_distill.pipelines.events import TaskEvent, TaskState, event_file, write_event
from yolo_distill.pipelines.graph import iteration_name, planned_tasks, step_name
from yolo_distill.pipelines.launch import INPUT_ERROR_STATUS
from yolo_distill.pipelines.plan import RunPlan
from yolo_distill.pipelines.tracking import pipeline_run

# How the runner tells the iterations of a loop apart.
_ITERATION = re.compile(r"/for-loop-\d+-iteration-(\d+)")


@contextmanager
def reported_tasks(events: Path) -> Iterator[None]:
    """Have KFP's local runner write an event whenever a task changes its state, and begin no task after a failure.

    The runner offers no hook, so that its two functions through which every task goes are wrapped: one sees all tasks,
    the other only those that the cache has no answer for.

    Args:
        events: Folder of the event files.
    """
    execute_task, dispatch_task = task_executor.execute_single_task, task_dispatcher.run_single_task_implementation
    # Loops run their tasks in threads.
    current = threading.local()
    failed = threading.Event()

    def execute(*, task_name: str, pipeline_resource_name: str, **rest: Any) -> tuple[dict[str, Any], status.Status]:
        # The runner would go on with whatever does not depend on the task that failed or was ended.
        if failed.is_set():
            return {}, status.Status.FAILURE
        task = iteration_name(task_name, [int(number) for number in _ITERATION.findall(pipeline_resource_name)])
        current.task, current.state = task, "cached"
        outputs, result = execute_task(task_name=task_name, pipeline_resource_name=pipeline_resource_name, **rest)
        if result is status.Status.SUCCESS:
            write_event(events, task, _success(current.state, outputs))
        else:
            failed.set()
            write_event(events, task, TaskEvent(state="failed"))
        return outputs, result

    def dispatch(*, executor_spec: Any, **rest: Any) -> tuple[dict[str, Any], status.Status]:
        current.state = "done"
        write_event(events, current.task, TaskEvent(state="running"))
        spec = type(executor_spec)()
        spec.CopyFrom(executor_spec)
        spec.container.env.add(name=PROGRESS_FILE_VARIABLE, value=str(event_file(events, current.task)))
        outputs, result = dispatch_task(executor_spec=spec, **rest)
        _store_metadata(outputs)
        return outputs, result

    task_executor.execute_single_task, task_dispatcher.run_single_task_implementation = execute, dispatch
    try:
        yield
    finally:
        task_executor.execute_single_task, task_dispatcher.run_single_task_implementation = execute_task, dispatch_task


@contextmanager
def artifacts_of_branches() -> Iterator[None]:
    """Let KFP's local runner take ``dsl.OneOf`` for artifacts, which it does for parameters alone."""
    outputs_of_dag = OrchestratorUtils.get_dag_output_artifacts

    def of_those_that_ran(dag_outputs_spec: Any, io_store: io.IOStore) -> dict[str, Any]:
        narrowed = type(dag_outputs_spec)()
        narrowed.CopyFrom(dag_outputs_spec)
        for output in narrowed.artifacts.values():
            made = [one for one in output.artifact_selectors if _is_made(one, io_store)]
            del output.artifact_selectors[:]
            output.artifact_selectors.extend(made)
        outputs: dict[str, Any] = outputs_of_dag(narrowed, io_store)
        return outputs

    OrchestratorUtils.get_dag_output_artifacts = of_those_that_ran
    try:
        yield
    finally:
        OrchestratorUtils.get_dag_output_artifacts = outputs_of_dag


@contextmanager
def cache_by_content() -> Iterator[None]:
    """Let the local cache know a component by what it runs, as Kubeflow's does, and not by its number in the pipeline.

    Else a component that is used in two branches would run again when the other branch is taken.
    """
    compute_key = LocalCache.compute_key

    def by_content(cache: LocalCache, *, component_name: str, **rest: Any) -> str:
        key: str = compute_key(cache, component_name=step_name(component_name), **rest)
        return key

    LocalCache.compute_key = by_content
    try:
        yield
    finally:
        LocalCache.compute_key = compute_key


def run(plan: RunPlan) -> None:
    """Run the plan's pipeline to its end.

    Raises:
        InputError: MLflow cannot be reached.
        RuntimeError: A task failed.
    """
    os.environ.update(
        {
            "MLFLOW_TRACKING_URI": plan.tracking_uri,
            PIPELINE_RUN_ID_VARIABLE: plan.run_id,
            PIPELINE_RUN_NAME_VARIABLE: plan.name,
            "PYTHONUNBUFFERED": "1",
        }
    )
    local.init(
        runner=docker_runner(plan) if plan.images else local.SubprocessRunner(use_venv=False),
        pipeline_root=str(plan.tasks),
        enable_caching=plan.cached,
        cache_root=str(plan.cache),
    )
    pipeline = components.load_component_from_file(str(plan.pipeline))
    containers = own_containers(plan) if plan.images else nullcontext()
    with pipeline_run(plan), containers, reported_tasks(plan.events), artifacts_of_branches(), cache_by_content():
        pipeline(**plan.arguments)
        for task in planned_tasks(plan.pipeline, plan.arguments):
            if not event_file(plan.events, task.name).exists():
                write_event(plan.events, task.name, TaskEvent(state="skipped"))


def _is_made(selector: Any, io_store: io.IOStore) -> bool:
    try:
        io_store.get_task_output(selector.producer_subtask, selector.output_artifact_key)
    except ValueError:
        return False
    return True


def _success(state: TaskState, outputs: dict[str, Any]) -> TaskEvent:
    artifacts = {name: value for name, value in outputs.items() if isinstance(value, dsl.Artifact)}
    measured = [artifact.metadata.items() for artifact in artifacts.values() if isinstance(artifact, dsl.Metrics)]
    return TaskEvent(
        state=state,
        outputs={name: Path(artifact.path) for name, artifact in artifacts.items()},
        metrics={name: value for items in measured for name, value in items if isinstance(value, int | float)},
    )


def _store_metadata(outputs: dict[str, Any]) -> None:
    """Give artifacts that consist of metadata alone, such as metrics, a file: the cache takes them for lost without."""
    for artifact in outputs.values():
        if isinstance(artifact, dsl.Artifact) and not Path(artifact.path).exists():
            Path(artifact.path).write_text(json.dumps(artifact.metadata, indent=2) + "\n", encoding="utf-8")


def _stop(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    sys.exit(128 + signum)


def _stop_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        run(RunPlan.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except InputError as error:
        # The last line of the log is what the user is told.
        print(error, file=sys.stderr)
        sys.exit(INPUT_ERROR_STATUS)
    except RuntimeError as error:
        # The events tell which task failed and the log why.
        sys.exit(str(error))
