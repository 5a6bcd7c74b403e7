"""What a run on a cluster is told: arguments from a file and from flags, and nothing that only this machine has."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.cluster import ClusterSettings
from yolo_distill.pipelines.distillation.arguments import DistillationArguments, checked_arguments, option_name

# The arguments that may name a file of the user's, besides the data.
_FILES = ("teacher_model", "student_model", "recipe")
_ADDRESS = re.compile(r"(?:https?|s3)://", re.IGNORECASE)


@dataclass(frozen=True)
class RunOptions:
    """How a pipeline is run, besides its arguments.

    Attributes:
        experiment: Name of the experiment that runs are gathered in; made when it is missing.
        service_account: Kubernetes service account of the run's pods.
        pipeline_root: Where artifacts are stored.
        plugins_input: What the server's plugins are told, by plugin.
    """

    experiment: str
    service_account: str | None = None
    pipeline_root: str | None = None
    plugins_input: dict[str, Any] | None = None


def read_parameters(file: Path | None) -> dict[str, object]:
    """Read a file of pipeline parameters.

    Args:
        file: YAML that maps parameters, as the pipeline names them, to values; ``None`` for no file.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--params {file}", f"cannot be read ({error.strerror})", "Give another file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--params {file}", f"is not valid YAML: {error}", "Mend the file") from error
    if not isinstance(content, dict):
        raise InputError(f"--params {file}", "does not map parameters to values", "Write lines such as epochs: 100")
    known = DistillationArguments.model_fields
    for name in content:
        if name not in known or name == "source_digest":
            names = ", ".join(known.keys() - {"source_digest"})
            raise InputError(f"--params {file}: {name}", "is not a parameter of the pipeline", f"There are {names}")
    return content


def remote_arguments(values: Mapping[str, object], cluster: ClusterSettings) -> DistillationArguments:
    """Check arguments for a run on a cluster.

    What lies on this machine is out of reach there. Data may have an address, be ``digits``, or lie on a volume that
    the cluster file mounts; likewise for model and recipe files. What a volume holds cannot be checked from here.

    Args:
        values: Arguments by name; those that are ``None`` get the default for the data at hand.
        cluster: The cluster.

    Raises:
        InputError: A value is out of range, or names something that the cluster cannot reach.
    """
    values = {"work_root": cluster.work_root, "cache_root": cluster.cache_root} | {
        name: value for name, value in values.items() if value is not None
    }
    _check_roots(values, cluster)
    mounted = {name: str(values[name]) for name in ("source", *_FILES) if cluster.is_mounted(str(values.get(name, "")))}
    # A path on a volume is not there for the checks to find; an address of the same place is as good for the others.
    stand_ins = {name: f"file://{path}" if name == "source" else None for name, path in mounted.items()}
    _check_source(str(values.get("source", "digits")), "source" in mounted)
    arguments = checked_arguments({**values, **stand_ins})
    for name in _FILES:
        value = str(getattr(arguments, name))
        if name not in mounted and Path(value).is_absolute():
            raise _out_of_reach(f"{option_name(name)} {values[name]}", "Name one that comes with the program, or")
    if arguments.tensorrt != "off" and "tensorrt" not in cluster.images:
        raise InputError(
            f"--tensorrt {arguments.tensorrt}", "the cluster file names no image for it", "Set images.tensorrt there"
        )
    roots = {name: str(values[name]) for name in ("work_root", "cache_root")}
    return arguments.model_copy(update={**mounted, **roots})


def digest_for(arguments: DistillationArguments) -> str:
    """Return what tells the server's cache that the data are others, looking at them from here.

    Nothing can be told from here about a path on a volume: the data there are prepared anew by every run.

    Raises:
        InputError: The data cannot be reached.
    """
    if Path(arguments.source).is_absolute():
        return uuid.uuid4().hex
    # Late, because what only runs a model is installed without the libraries that reach data.
    from yolo_distill.components.prepare_data.sources import source_digest

    return source_digest(arguments.source)


def is_moving(source: str) -> bool:
    """Return whether what a source holds can change between the runs of a schedule."""
    return bool(_ADDRESS.match(source)) or Path(source).is_absolute()


def _check_source(source: str, mounted: bool) -> None:
    if not (mounted or _ADDRESS.match(source) or source.partition(":")[0] == "digits" or "://" in source):
        raise _out_of_reach(f"--data {source}", "Upload the data and give their s3:// or http(s):// address, or")


def _check_roots(values: Mapping[str, object], cluster: ClusterSettings) -> None:
    for name in ("work_root", "cache_root"):
        root = str(values[name])
        stored = name == "cache_root" and root.startswith("s3://")
        if root and not stored and not cluster.is_mounted(root):
            raise _out_of_reach(f"{name} {root}", "Give an s3:// address as cache_root, or")


def _out_of_reach(subject: str, remedy: str) -> InputError:
    return InputError(
        subject,
        "lies on this machine, where the cluster's pods cannot see it",
        f"{remedy} an absolute path on a volume that the cluster file mounts",
    )
