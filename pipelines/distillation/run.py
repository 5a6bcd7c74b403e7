"""Plans a local run of the distillation pipeline."""

from collections.abc import Collection
from pathlib import Path

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.cluster import ClusterSettings, apply_cluster
from yolo_distill.pipelines.distillation.arguments import DistillationArguments
from yolo_distill.pipelines.plan import RunPlan
from yolo_distill.pipelines.preparation import prepare_run


def plan_run(arguments: DistillationArguments, output: Path, *, cached: bool, in_containers: bool = False) -> RunPlan:
    """Plan a run, see :func:`.preparation.prepare_run`.

    Raises:
        InputError: As there, or a TensorRT engine is asked for where none can be built.
    """
    if arguments.tensorrt != "off":
        _require_tensorrt(in_containers)
    return prepare_run(arguments, compile_pipeline, output, cached=cached, in_containers=in_containers)


def _require_tensorrt(in_containers: bool) -> None:
    if in_containers:
        raise InputError(
            "--tensorrt --runner docker",
            "the containers of KFP's runner are given no GPU to build the engine on",
            "Leave one of them out",
        )
    # Late, because it takes PyTorch, which takes seconds to import.
    from yolo_distill.components.export_tensorrt.export import require_gpu

    require_gpu()


def compile_pipeline(
    target: Path, cluster: ClusterSettings | None = None, *, cached: bool = True, uncached: Collection[str] = ()
) -> None:
    """Write the distillation pipeline as KFP IR YAML.

    Args:
        target: YAML file to write.
        cluster: Settings of the cluster that it shall run on; only then do the others matter.
        cached: Whether results of earlier runs may be used.
        uncached: Names of tasks for which they may not.

    Raises:
        InputError: The settings name a task that the pipeline does not have.
    """
    # Late, because KFP takes a second to import, and what is wrong with the input should show before.
    from kfp.compiler import Compiler

    from yolo_distill.pipelines.distillation.pipeline import distillation

    pipeline = distillation
    if cluster is not None:
        pipeline = apply_cluster(distillation, cluster, cached=cached, uncached=uncached)
    target.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(pipeline, str(target))
