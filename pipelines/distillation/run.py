"""Plans a local run of the distillation pipeline."""

import shutil
from collections.abc import Collection
from pathlib import Path

from yolo_distill.components.prepare_data.sources import source_digest
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, require_free_space, sha256_file
from yolo_distill.pipelines.cluster import ClusterSettings, apply_cluster
from yolo_distill.pipelines.distillation.arguments import DistillationArguments
from yolo_distill.pipelines.plan import RunPlan

# What a run writes besides what grows with the data: models, exports, logs.
_BASE_BYTES = 1_000_000_000
# The dataset artifact and what an archive takes when it is opened.
_COPIES_OF_DATA = 3
# The arguments that may name a file of the user's, besides the data.
_FILES = ("teacher_model", "student_model", "recipe")


def plan_run(arguments: DistillationArguments, output: Path, *, cached: bool) -> RunPlan:
    """Plan a run and make its folder, which then holds the compiled pipeline.

    Args:
        arguments: The pipeline's arguments, already checked.
        output: Folder of all runs.
        cached: Whether results of earlier runs may be used.

    Returns:
        The plan.

    Raises:
        InputError: The output folder cannot be written, its disk is too full, or the data cannot be reached.
    """
    require_free_space(output, _BASE_BYTES + _COPIES_OF_DATA * _local_bytes(arguments.source))
    digest = source_digest(arguments.source)
    try:
        output.mkdir(parents=True, exist_ok=True)
        own = {name: _kept(value, output) for name in _FILES if Path(value := getattr(arguments, name)).is_absolute()}
        work = str(output.absolute() / "work")
        found = {"source_digest": digest, "work_root": work, "cache_root": arguments.cache_root or work}
        values = arguments.model_dump() | own | found
        plan = RunPlan.new(output, values, cached=cached)
        compile_pipeline(plan.pipeline)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            f"--output {output}", f"cannot be written ({error.strerror})", "Choose another folder"
        ) from error
    return plan


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


def _kept(file: str, output: Path) -> str:
    """Copy a model or recipe file to a place named by its content, because caches go by the name alone."""
    source = Path(file)
    folder = output.absolute() / "inputs" / f"{sha256_file(source)[:16]}-{source.name}"
    if not folder.is_dir():
        with new_directory(folder) as new:
            shutil.copy(source, new / source.name)
    return str(folder / source.name)


def _local_bytes(source: str) -> int:
    path = Path(source)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0
