"""Prepares a local run: the folder that it works in, the user's files that it needs, and the compiled pipeline."""

import shutil
from collections.abc import Callable
from pathlib import Path

from yolo_distill.components.prepare_data.sources import source_digest
from yolo_distill.components.shared import image
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, require_free_space, sha256_file
from yolo_distill.pipelines.distillation.arguments import TrainingArguments
from yolo_distill.pipelines.plan import RunPlan

# What a run writes besides what grows with the data: models, exports, logs.
_BASE_BYTES = 1_000_000_000
# The dataset artifact and what an archive takes when it is opened.
_COPIES_OF_DATA = 3
# The arguments that may name files of the user's, besides the data.
_FILES = {"teacher_model", "student_model", "recipe", "recipes"}


def prepare_run(
    arguments: TrainingArguments,
    compile_pipeline: Callable[[Path], None],
    output: Path,
    *,
    cached: bool,
    in_containers: bool = False,
) -> RunPlan:
    """Plan a run and make its folder, which then holds the compiled pipeline.

    Args:
        arguments: The pipeline's arguments, already checked.
        compile_pipeline: Writes the pipeline as IR YAML.
        output: Folder of all runs.
        cached: Whether results of earlier runs may be used.
        in_containers: Whether tasks shall be containers.

    Returns:
        The plan.

    Raises:
        InputError: The output folder cannot be written, its disk is too full, the data cannot be reached, or there is
            no container engine with the images.
    """
    images = _images() if in_containers else {}
    require_free_space(output, _BASE_BYTES + _COPIES_OF_DATA * _local_bytes(arguments.source))
    digest = source_digest(arguments.source)
    try:
        output.mkdir(parents=True, exist_ok=True)
        work = str(output.absolute() / "work")
        found = {"source_digest": digest, "work_root": work, "cache_root": arguments.cache_root or work}
        own = {name: _kept(getattr(arguments, name), output) for name in _FILES & type(arguments).model_fields.keys()}
        settled = arguments.model_copy(update=found | own).pipeline_arguments
        plan = RunPlan.new(output, settled, cached=cached, images=images)
        compile_pipeline(plan.pipeline)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            f"--output {output}", f"cannot be written ({error.strerror})", "Choose another folder"
        ) from error
    return plan


def _images() -> dict[str, str]:
    # Late, because it takes KFP and MLflow, which take seconds to import.
    from yolo_distill.pipelines.containers import image_ids

    return image_ids({image.CPU_IMAGE, image.TRAIN_IMAGE})


def _kept(name: str | list[str], output: Path) -> str | list[str]:
    """Copy files, which have absolute paths, to places named by content, because caches go by the name alone."""
    if isinstance(name, list):
        return [str(_kept(one, output)) for one in name]
    source = Path(name)
    if not source.is_absolute():
        return name
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
