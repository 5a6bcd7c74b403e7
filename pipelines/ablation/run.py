"""Plans a local run of the ablation pipeline."""

from pathlib import Path

from yolo_distill.pipelines.ablation.arguments import AblationArguments
from yolo_distill.pipelines.cluster import ClusterSettings, apply_cluster
from yolo_distill.pipelines.plan import RunPlan
from yolo_distill.pipelines.preparation import prepare_run


def plan_run(arguments: AblationArguments, output: Path, *, cached: bool, in_containers: bool = False) -> RunPlan:
    """Plan a run, see :func:`.preparation.prepare_run`."""
    return prepare_run(arguments, compile_pipeline, output, cached=cached, in_containers=in_containers)


def compile_pipeline(target: Path, cluster: ClusterSettings | None = None) -> None:
    """Write the ablation pipeline as KFP IR YAML.

    Args:
        target: YAML file to write.
        cluster: Settings of the cluster that it shall run on.

    Raises:
        InputError: The settings name a task that the pipeline does not have.
    """
    # Late, because KFP takes a second to import, and what is wrong with the input should show before.
    from kfp.compiler import Compiler

    from yolo_distill.pipelines.ablation.pipeline import ablation

    pipeline = ablation if cluster is None else apply_cluster(ablation, cluster)
    target.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(pipeline, str(target))
