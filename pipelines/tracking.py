"""The MLflow run of a whole pipeline run; the tasks' runs are its children."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from yolo_distill.components.shared import lineage
from yolo_distill.pipelines.events import RunWatch
from yolo_distill.pipelines.graph import planned_tasks
from yolo_distill.pipelines.plan import RunPlan, code_digest


@contextmanager
def pipeline_run(plan: RunPlan) -> Iterator[None]:
    """Record a pipeline run in MLflow, also when every result comes from the cache.

    The run carries the pipeline's parameters, every task's metrics, and for each task whether it ran or which earlier
    run its results come from.

    Args:
        plan: The run.

    Raises:
        InputError: MLflow cannot be reached.
    """
    client, experiment = lineage.connect()
    run_id = lineage.pipeline_run(client, experiment, plan.run_id).info.run_id
    tags = lineage.source_tags() | {"yolo_distill.code_digest": code_digest()}
    params = [Param(name, lineage.without_credentials(str(value))) for name, value in plan.arguments.items()]
    client.log_batch(run_id, params=params, tags=[RunTag(*tag) for tag in tags.items()])
    status = "KILLED"
    try:
        yield
        status = "FINISHED"
    except RuntimeError:
        status = "FAILED"
        raise
    finally:
        _record_tasks(client, run_id, plan)
        client.set_terminated(run_id, status)


def _record_tasks(client: MlflowClient, run_id: str, plan: RunPlan) -> None:
    watch = RunWatch(plan.events, planned_tasks(plan.pipeline, plan.arguments))
    watch.poll()
    tags = {}
    metrics = []
    for task in watch.tasks.values():
        origins = {plan.origin(path) for path in task.outputs.values()}
        tags[f"task.{task.name}"] = (
            f"cached from {', '.join(sorted(filter(None, origins)))}" if task.state == "cached" else task.state
        )
        milliseconds = int((task.ended or 0) * 1000)
        metrics += [
            Metric(lineage.metric_name(f"{task.name}.{name}"), value, milliseconds, 0)
            for name, value in task.metrics.items()
        ]
    client.log_batch(run_id, metrics=metrics, tags=[RunTag(*tag) for tag in tags.items()])
