"""What a cluster offers the pipeline's tasks: images, resources, volumes, secrets. Read from a YAML file.

Nothing of it is written into the pipeline. It is applied when the pipeline is compiled, so that the same components and
the same graph serve the laptop and every cluster.
"""

import functools
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from yolo_distill.components.shared import image
from yolo_distill.components.shared.errors import InputError, spoken
from yolo_distill.components.shared.lineage import IMAGE_VARIABLE
from yolo_distill.components.shared.train_job.settings import (
    SETTINGS_VARIABLE,
    ClaimMount,
    SecretValue,
    TrainJobSettings,
)
from yolo_distill.pipelines.graph import step_name

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask
    from kfp.dsl.graph_component import GraphComponent

Flavour = Literal["cpu", "train", "tensorrt"]

# Which images the components name, by what the cluster file calls them.
_FLAVOURS: dict[str, Flavour] = {
    image.CPU_IMAGE: "cpu",
    image.TRAIN_IMAGE: "train",
    image.TENSORRT_IMAGE: "tensorrt",
}
_REQUIRED: tuple[Flavour, ...] = ("cpu", "train")
_PINNED = re.compile(r"[a-z0-9][\w.\-/:]*@sha256:[0-9a-f]{64}")
_TAGGED = re.compile(r"(?:[\w.\-]+(?::\d+)?/)?[\w.\-/]+:(?P<tag>[\w.\-]+)")
_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL", re.IGNORECASE)
_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108

KubernetesName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.\-]*[a-z0-9])?$", max_length=253, strict=True)
]
_EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$", strict=True)]
# The ways that KFP's SDK lets quantities be written.
_Cpu = Annotated[str, StringConstraints(pattern=r"^(\d*\.)?\d+m?$"), Field(coerce_numbers_to_str=True)]
_Bytes = Annotated[
    str, StringConstraints(pattern=r"^\d+(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?$"), Field(coerce_numbers_to_str=True)
]
_AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^:]*$", strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Retries(_Part):
    """How often a task is tried again, on a node that may be taken away.

    Attributes:
        count: Tries after the first.
        backoff_seconds: Wait before the first of them.
        backoff_factor: By what each further wait is longer.
        backoff_max_seconds: Time after which there are no more tries.
    """

    count: int = Field(ge=1, le=100)
    backoff_seconds: int = Field(default=60, ge=0)
    backoff_factor: float = Field(default=2.0, ge=1)
    backoff_max_seconds: int = Field(default=3600, ge=1)


class Toleration(_Part):
    """A taint of nodes that a task puts up with; fields as in Kubernetes."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    seconds: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _match_something(self) -> Self:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("with operator Exists there is no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("key is missing; operator Exists alone tolerates every taint")
        return self


class SecretEnv(_Part):
    """A Secret whose entries a task sees as environment variables.

    Attributes:
        name: Name of the Secret.
        env: Environment variable by key in the Secret.
    """

    name: KubernetesName
    env: dict[str, _EnvName] = Field(min_length=1)


class Volume(ClaimMount):
    """A PersistentVolumeClaim that a task mounts, its fields as strict as a user's file demands."""

    claim: KubernetesName
    mount: _AbsolutePath


class TaskSettings(_Part):
    """What a task is given. What is not set is left to the cluster.

    Attributes:
        cpu: CPUs that are set aside for it, such as ``4`` or ``500m``.
        cpu_limit: CPUs that it may use at most.
        memory: Memory that is set aside, such as ``16Gi``.
        memory_limit: Memory that it may use at most.
        accelerator: Kind of accelerator, such as ``nvidia.com/gpu``.
        accelerator_count: How many of them.
        shm: Size of ``/dev/shm``, through which data loaders hand over images. Kubernetes counts it as memory.
        timeout_seconds: Time after which the task is ended.
        retries: What to do when it fails or loses its node.
        node_selector: Labels of the nodes that it may run on.
        tolerations: Taints that it puts up with.
        env: Environment variables; secrets do not belong here.
        secrets: Secrets as environment variables.
        volumes: Claims to mount.
        cache: Whether its results may be taken over from earlier runs.
    """

    cpu: _Cpu | None = None
    cpu_limit: _Cpu | None = None
    memory: _Bytes | None = None
    memory_limit: _Bytes | None = None
    accelerator: str | None = Field(default=None, min_length=1)
    accelerator_count: int = Field(default=1, ge=1)
    shm: _Bytes | None = None
    timeout_seconds: int | None = Field(default=None, ge=1)
    retries: Retries | None = None
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    env: dict[_EnvName, str] = {}
    secrets: tuple[SecretEnv, ...] = ()
    volumes: tuple[Volume, ...] = ()
    cache: bool = True

    @field_validator("env")
    @classmethod
    def _keep_secrets_out(cls, env: dict[str, str]) -> dict[str, str]:
        if secret := next(filter(_SECRET_NAME.search, env), None):
            raise ValueError(f"{secret} looks like a secret, which everyone could read here: name it under secrets")
        if leak := next((name for name, value in env.items() if _CREDENTIALS.search(value)), None):
            raise ValueError(f"{leak} holds a user's password, which everyone could read here: name it under secrets")
        return env

    @field_validator("volumes")
    @classmethod
    def _mount_once(cls, volumes: tuple[Volume, ...]) -> tuple[Volume, ...]:
        mounts = [volume.mount for volume in volumes]
        if len(set(mounts)) < len(mounts):
            raise ValueError("two volumes are mounted at the same path")
        return volumes

    def over(self, base: "TaskSettings") -> "TaskSettings":
        """Return these settings, and the base's where these are not set."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


class TrainJob(_Part):
    """Training on several nodes by Kubeflow Trainer 2; each node is given what the training task would be given.

    Attributes:
        nodes: How many nodes train together.
        runtime: Name of the training runtime, one for PyTorch.
        runtime_kind: Whether the runtime is the whole cluster's or the namespace's.
        restarts: How often a training that has lost a node is taken up from its last checkpoint.
    """

    nodes: int = Field(ge=1)
    runtime: KubernetesName = "torch-distributed"
    runtime_kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"
    restarts: int = Field(default=3, ge=0)


class ClusterSettings(_Part):
    """A cluster as the pipeline sees it.

    Attributes:
        images: Image of each flavour, by digest: ``cpu`` for light tasks, ``train`` for those that use a GPU, and
            ``tensorrt`` where engines are built.
        allow_tags: Whether images may be named by tag. What a tag means can change behind the server's cache, so that
            nothing is taken over from earlier runs then.
        image_pull_policy: When nodes fetch an image.
        image_pull_secrets: Secrets with the registry's credentials.
        deadline_seconds: Time after which a whole run is ended.
        work_root: Folder on a mounted volume where interrupted training is taken up.
        cache_root: Folder on a mounted volume, or ``s3://`` address, where teachers' answers are kept for all runs.
        train_job: How teachers and students are trained on several nodes; in the task's own pod by default.
        defaults: Settings of all tasks.
        flavours: Settings of the tasks of a flavour; what they set takes the place of the defaults'.
        tasks: Settings of all tasks of a step by its name, or of one of them by its numbered name, such as
            ``distill-train-4``; these come before the others, and a number before a name.
    """

    images: dict[Flavour, str]
    allow_tags: bool = False
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[KubernetesName, ...] = ()
    deadline_seconds: int | None = Field(default=None, ge=1)
    work_root: str = ""
    cache_root: str = ""
    train_job: TrainJob | None = None
    defaults: TaskSettings = TaskSettings()
    flavours: dict[Flavour, TaskSettings] = {}
    tasks: dict[str, TaskSettings] = {}

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if missing := set(_REQUIRED) - self.images.keys():
            raise ValueError(f"images: there is none for {', '.join(sorted(missing))}")
        for flavour, reference in self.images.items():
            if _PINNED.fullmatch(reference):
                continue
            tagged = _TAGGED.fullmatch(reference)
            if not tagged or tagged["tag"] == "latest":
                raise ValueError(f"images.{flavour}: {reference!r} can be another image tomorrow; name it by @sha256:…")
            if not self.allow_tags:
                raise ValueError(
                    f"images.{flavour}: {reference!r} is named by tag; name it by @sha256:…, or set allow_tags"
                )
        return self

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        for name in ("work_root", "cache_root"):
            root = getattr(self, name)
            if name == "cache_root" and root.startswith("s3://"):
                continue
            if root and not self.is_mounted(root):
                raise ValueError(f"{name}: {root!r} lies on no volume that the tasks of flavour train mount")
        if self.train_job and not self.work_root:
            raise ValueError("train_job: its nodes share work_root, which is not set")
        return self

    @model_validator(mode="after")
    def _check_amounts(self) -> Self:
        where = [
            ("defaults", self.defaults),
            *((f"flavours.{flavour}", self.settings(flavour)) for flavour in self.flavours),
            *((f"tasks.{name}", settings.over(self.defaults)) for name, settings in self.tasks.items()),
        ]
        for name, settings in where:
            for amount in ("cpu", "memory"):
                request, limit = getattr(settings, amount), getattr(settings, f"{amount}_limit")
                if request and limit and _amount(request) > _amount(limit):
                    raise ValueError(f"{name}.{amount}: {request} is more than its limit {limit}")
        return self

    @property
    def pinned(self) -> bool:
        """Whether every image is named by digest."""
        return all(_PINNED.fullmatch(reference) for reference in self.images.values())

    def image(self, flavour: Flavour) -> str:
        """Return the image of a flavour; that of ``train`` where no engine can be built, whose task is skipped then."""
        return self.images.get(flavour, self.images["train"])

    def is_mounted(self, path: str) -> bool:
        """Return whether a path lies on a volume that the training tasks mount."""
        place = PurePosixPath(path)
        return ".." not in place.parts and any(
            place.is_relative_to(volume.mount) for volume in self.settings("train").volumes
        )

    def settings(self, flavour: Flavour, task: str = "") -> TaskSettings:
        """Return what a task is given.

        Args:
            flavour: Its image's flavour.
            task: Its name.
        """
        settings = self.flavours.get(flavour, TaskSettings()).over(self.defaults)
        for name in dict.fromkeys((step_name(task), task)):
            if name in self.tasks:
                settings = self.tasks[name].over(settings)
        return settings


def load_cluster(file: Path) -> ClusterSettings:
    """Read a cluster file.

    Args:
        file: YAML with the fields of :class:`ClusterSettings`.

    Returns:
        The checked settings.

    Raises:
        InputError: There is no such file, or one of its fields is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return ClusterSettings.model_validate(content)
    except OSError as error:
        raise InputError(f"--cluster {file}", f"cannot be read ({error.strerror})", "Give a cluster file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--cluster {file}", f"is not valid YAML: {error}", "Mend the file") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        problem = spoken(first["msg"])
        subject = f"--cluster {file}" + (f": {place}" if place else "")
        raise InputError(subject, problem, "See manifests/cluster.example.yaml") from error


def apply_cluster(
    pipeline: "GraphComponent", cluster: ClusterSettings, *, cached: bool = True, uncached: Collection[str] = ()
) -> "GraphComponent":
    """Return a pipeline with a cluster's settings on all of its tasks; the graph stays as it is.

    Args:
        pipeline: The pipeline, made of single-step components.
        cluster: The settings.
        cached: Whether results of earlier runs may be used.
        uncached: Names of tasks for which they may not.

    Returns:
        A new pipeline.

    Raises:
        InputError: The settings name a task that the pipeline does not have.
    """
    from kfp import dsl
    from kfp.dsl.pipeline_context import Pipeline

    @functools.wraps(pipeline.pipeline_func)
    def configured(*args: Any, **kwargs: Any) -> Any:
        outputs = pipeline.pipeline_func(*args, **kwargs)
        # The tasks exist only while the pipeline's function is being traced.
        tasks: dict[str, PipelineTask] = Pipeline.get_default_pipeline().tasks
        _check_names(cluster.tasks, tasks)
        for name, task in tasks.items():
            _configure(name, task, cluster, cached=cached and name not in uncached)
        return outputs

    own = pipeline.pipeline_config or dsl.PipelineConfig()
    config = dsl.PipelineConfig(
        workspace=own.workspace,
        ttl_seconds_after_finished=own.ttl_seconds_after_finished,
        ttl_seconds_after_success=own.ttl_seconds_after_success,
        ttl_seconds_after_failure=own.ttl_seconds_after_failure,
        active_deadline_seconds=cluster.deadline_seconds or own.active_deadline_seconds,
    )
    display_name = pipeline.pipeline_spec.pipeline_info.display_name or None
    return dsl.pipeline(configured, name=pipeline.name, display_name=display_name, pipeline_config=config)


def _check_names(wanted: Iterable[str], tasks: Collection[str]) -> None:
    for name in wanted:
        if name not in tasks:
            raise InputError(f"tasks.{name}", "the pipeline has no such task", f"Its tasks are {', '.join(tasks)}")


def _configure(name: str, task: "PipelineTask", cluster: ClusterSettings, *, cached: bool) -> None:
    from kfp import kubernetes

    if task.importer_spec is not None:
        return
    if task.container_spec is None:
        raise TypeError(f"{name}: a pipeline within a pipeline cannot be given a cluster's settings")
    flavour = _FLAVOURS.get(task.container_spec.image)
    if flavour is None:
        raise TypeError(f"{name}: its image {task.container_spec.image} is none of {', '.join(_FLAVOURS)}")
    settings = cluster.settings(flavour, name)
    # What shares its batches among processes can share them among nodes.
    if cluster.train_job and "processes" in (task.component_spec.inputs or {}):
        task.set_env_variable(SETTINGS_VARIABLE, _train_job(cluster, settings).model_dump_json(exclude_defaults=True))
        settings = _waiting(settings, cluster.settings("cpu"))
    task.set_container_image(cluster.image(flavour))
    # A container cannot tell by itself which image it is of.
    task.set_env_variable(IMAGE_VARIABLE, cluster.image(flavour))
    kubernetes.set_image_pull_policy(task, cluster.image_pull_policy)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.image_pull_secrets))
    if not (cached and settings.cache and cluster.pinned):
        task.set_caching_options(False)
    _set_resources(task, settings)
    _set_scheduling(task, settings)
    _set_environment(task, settings)


def _train_job(cluster: ClusterSettings, settings: TaskSettings) -> TrainJobSettings:
    """Return what the nodes of a TrainJob are given in a training task's place."""
    assert cluster.train_job is not None
    devices = {settings.accelerator: str(settings.accelerator_count)} if settings.accelerator else {}
    requests = {"cpu": settings.cpu, "memory": settings.memory}
    limits = {"cpu": settings.cpu_limit, "memory": settings.memory_limit}
    return TrainJobSettings(
        **cluster.train_job.model_dump(),
        image=cluster.images["train"],
        processes=settings.accelerator_count if settings.accelerator else 1,
        requests={name: _kubernetes_amount(amount) for name, amount in requests.items() if amount} | devices,
        limits={name: _kubernetes_amount(amount) for name, amount in limits.items() if amount} | devices,
        env=settings.env,
        secrets=tuple(
            SecretValue(variable=variable, secret=secret.name, key=key)
            for secret in settings.secrets
            for key, variable in secret.env.items()
        ),
        volumes=settings.volumes,
        shm=_kubernetes_amount(settings.shm or ""),
        node_selector=settings.node_selector,
        tolerations=tuple(_toleration(toleration) for toleration in settings.tolerations),
        image_pull_secrets=cluster.image_pull_secrets,
    )


def _toleration(toleration: Toleration) -> dict[str, str | int]:
    fields: dict[str, str | int] = toleration.model_dump(exclude={"seconds"}, exclude_none=True)
    return fields if toleration.seconds is None else {**fields, "tolerationSeconds": toleration.seconds}


def _waiting(training: TaskSettings, light: TaskSettings) -> TaskSettings:
    """Return what a training task is given that only waits for its nodes: what a light one is, and the volumes."""
    heavy = ("cpu", "cpu_limit", "memory", "memory_limit", "accelerator", "shm", "node_selector", "tolerations")
    return training.model_copy(update={name: getattr(light, name) for name in heavy})


def _set_resources(task: "PipelineTask", settings: TaskSettings) -> None:
    from kfp import kubernetes

    if settings.cpu:
        task.set_cpu_request(settings.cpu)
    if settings.cpu_limit:
        task.set_cpu_limit(settings.cpu_limit)
    if settings.memory:
        task.set_memory_request(settings.memory)
    if settings.memory_limit:
        task.set_memory_limit(settings.memory_limit)
    if settings.accelerator:
        task.set_accelerator_type(settings.accelerator).set_accelerator_limit(settings.accelerator_count)
    if settings.shm:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path=_SHARED_MEMORY, medium="Memory", size_limit=settings.shm
        )


def _set_scheduling(task: "PipelineTask", settings: TaskSettings) -> None:
    from kfp import kubernetes

    if settings.timeout_seconds:
        kubernetes.set_timeout(task, settings.timeout_seconds)
    if settings.retries:
        task.set_retry(
            settings.retries.count,
            backoff_duration=f"{settings.retries.backoff_seconds}s",
            backoff_factor=settings.retries.backoff_factor,
            backoff_max_duration=f"{settings.retries.backoff_max_seconds}s",
        )
    for key, value in settings.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in settings.tolerations:
        kubernetes.add_toleration(
            task,
            key=toleration.key,
            operator=toleration.operator,
            value=toleration.value,
            effect=toleration.effect,
            toleration_seconds=toleration.seconds,
        )


def _set_environment(task: "PipelineTask", settings: TaskSettings) -> None:
    from kfp import kubernetes

    for name, value in settings.env.items():
        task.set_env_variable(name, value)
    for secret in settings.secrets:
        kubernetes.use_secret_as_env(task, secret.name, secret.env)
    for volume in settings.volumes:
        kubernetes.mount_pvc(task, volume.claim, volume.mount, volume.sub_path)


def _amount(quantity: str) -> Any:
    from kubernetes.utils import parse_quantity

    return parse_quantity(_kubernetes_amount(quantity))


def _kubernetes_amount(quantity: str) -> str:
    # KFP writes K for what Kubernetes calls k.
    return re.sub("K$", "k", quantity)
