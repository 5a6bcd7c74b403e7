"""What a training on several nodes is given: read from the environment, where the cluster file has put it."""

from os import environ
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yolo_distill.components.shared.errors import InputError

SETTINGS_VARIABLE = "YOLO_DISTILL_TRAIN_JOB"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SecretValue(_Part):
    """An entry of a Secret that the nodes see as an environment variable.

    Attributes:
        variable: The variable.
        secret: Name of the Secret.
        key: The entry.
    """

    variable: str
    secret: str
    key: str


class ClaimMount(_Part):
    """A PersistentVolumeClaim that the nodes mount.

    Attributes:
        claim: Name of the claim.
        mount: Absolute path in the container.
        sub_path: Folder of the volume that is mounted; all of it by default.
    """

    claim: str
    mount: str
    sub_path: str = ""


class TrainJobSettings(_Part):
    """A TrainJob of Kubeflow Trainer 2 as the cluster file wants it.

    Attributes:
        image: Container image of the nodes: that of the step.
        nodes: How many nodes train together.
        processes: Training processes a node: its GPUs, or 1.
        runtime: Name of the training runtime, one for PyTorch.
        runtime_kind: Whether the runtime is the whole cluster's or the namespace's.
        restarts: How often a training that has lost a node is taken up from its last checkpoint.
        poll_seconds: Time between two looks at the TrainJob.
        requests: CPUs, memory and devices that are set aside on each node.
        limits: The most that it may use of them.
        env: Environment variables.
        secrets: Secrets as environment variables.
        volumes: Claims to mount, the one that holds ``work_root`` among them.
        shm: Size of ``/dev/shm``; what the runtime gives by default.
        node_selector: Labels of the machines that nodes may run on.
        tolerations: Taints that they put up with; fields as in Kubernetes.
        image_pull_secrets: Secrets with the registry's credentials.
    """

    image: str = Field(min_length=1)
    nodes: int = Field(ge=1)
    processes: int = Field(default=1, ge=1)
    runtime: str = "torch-distributed"
    runtime_kind: str = "ClusterTrainingRuntime"
    restarts: int = Field(default=3, ge=0)
    poll_seconds: float = Field(default=10.0, gt=0)
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    env: dict[str, str] = {}
    secrets: tuple[SecretValue, ...] = ()
    volumes: tuple[ClaimMount, ...] = ()
    shm: str = ""
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, str | int], ...] = ()
    image_pull_secrets: tuple[str, ...] = ()

    @classmethod
    def given(cls) -> Self | None:
        """Return the settings of this task, or ``None`` where it trains by itself.

        Raises:
            InputError: They are not valid.
        """
        text = environ.get(SETTINGS_VARIABLE)
        if not text:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"{SETTINGS_VARIABLE}: {place}", first["msg"], "Compile the pipeline with a cluster file again"
            ) from error
