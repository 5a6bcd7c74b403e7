"""Tasks of a local run as containers: what KFP's ``DockerRunner`` is told, and what it leaves undone.

Any engine with Docker's API will do that runs as root, such as dockerd and ``podman system service``. It is found by
``DOCKER_HOST``, as by Docker's own tools.
"""

import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from types import FrameType
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import Mount
from kfp import local
from kfp.local import docker_task_handler
from sqlalchemy.engine import make_url

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.lineage import IMAGE_VARIABLE
from yolo_distill.pipelines.plan import RunPlan

RUN_LABEL = "yolo-distill.run"

# What a task in a process of its own would have from the environment that the program was started in.
_PASSED_ON = re.compile(r"(AWS|MLFLOW|YOLO_DISTILL_PIPELINE)_\w+|(HTTPS?|NO)_PROXY|OMP_NUM_THREADS", re.IGNORECASE)
# Through /dev/shm data loaders hand over images; engines give a container 64 MB.
_SHARED_MEMORY = "2g"
# How a shell tells that a process was killed.
_KILLED_STATUS = 128 + signal.SIGKILL


def image_ids(names: Iterable[str]) -> dict[str, str]:
    """Return which images the engine knows by these names.

    Args:
        names: Names of images, with tag or digest.

    Returns:
        The id of each image, by name.

    Raises:
        InputError: No engine answers, it keeps users apart from root, or it lacks an image.
    """
    try:
        client = docker.from_env()
    except DockerException as error:
        raise InputError(
            "--runner docker", f"no container engine answers ({error})", "Start one, and name its socket in DOCKER_HOST"
        ) from error
    with closing(client):
        if "name=rootless" in client.info().get("SecurityOptions", []):
            raise InputError(
                "--runner docker",
                "the container engine runs rootless, so that what its containers write would not be yours",
                "Name the socket of one that runs as root in DOCKER_HOST",
            )
        return {name: _image_id(client, name) for name in sorted(names)}


def docker_runner(plan: RunPlan) -> local.DockerRunner:
    """Return a runner whose containers see what a process on this machine would see of the run, and nothing else.

    They have the user's number and no privileges, reach the network as the user does, and find the run's files where
    they are; only there and in ``/tmp`` can they write.

    Args:
        plan: The run.
    """
    environment = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    # Certificates and credentials are often given as the name of a file.
    readable = {Path(value) for value in environment.values() if value.startswith("/") and Path(value).is_file()}
    source, cache_root = (Path(str(plan.arguments.get(name, ""))) for name in ("source", "cache_root"))
    if source.is_absolute():
        readable.add(source)
    writable = {plan.output, Path(gettempdir())}
    # The engine would make it, as root.
    plan.tasks.mkdir(parents=True, exist_ok=True)
    if cache_root.is_absolute():
        cache_root.mkdir(parents=True, exist_ok=True)
        writable.add(cache_root)
    if plan.tracking_uri.startswith("sqlite:"):
        database = Path(make_url(plan.tracking_uri).database or "mlflow.db").absolute()
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
        writable.add(database.parent)
    return local.DockerRunner(
        user=f"{os.getuid()}:{os.getgid()}",
        environment={**environment, "TMPDIR": gettempdir()},
        mounts=[
            Mount(str(path), str(path), type="bind", read_only=path not in writable)
            for path in sorted(readable | writable)
        ],
        labels={RUN_LABEL: plan.run_id},
        network_mode="host",
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},  # noqa: S108
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        shm_size=_SHARED_MEMORY,
    )


@contextmanager
def own_containers(plan: RunPlan) -> Iterator[None]:
    """Have KFP's runner tell how each container ended, and let none outlive the run.

    The runner has the engine remove a container at its end, and takes one that is gone before it asks for a success.
    SIGTERM ends this process and its children, of which containers are none.

    Args:
        plan: The run.
    """
    run_container, end_process = docker_task_handler.run_docker_container, signal.getsignal(signal.SIGTERM)
    stopped = threading.Event()
    of_this_run = {"label": f"{RUN_LABEL}={plan.run_id}"}

    def run(*, client: docker.DockerClient, image: str, environment: dict[str, str], **settings: Any) -> int:
        environment = {**environment, IMAGE_VARIABLE: f"{image} {plan.images[image]}"}
        container = client.containers.run(image, environment=environment, detach=True, **settings)
        try:
            # One that was being made when the others were removed.
            if stopped.is_set():
                return _KILLED_STATUS
            for printed in container.logs(stream=True):
                print(printed.decode(errors="replace"), end="")
            return int(container.wait()["StatusCode"])
        except NotFound:
            return _KILLED_STATUS
        finally:
            _remove(container)

    def stop(signum: int, frame: FrameType | None) -> None:
        stopped.set()
        try:
            with closing(docker.from_env()) as client:
                for container in client.containers.list(all=True, filters=of_this_run, ignore_removed=True):
                    _remove(container)
        finally:
            if callable(end_process):
                end_process(signum, frame)

    docker_task_handler.run_docker_container = run
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = run_container
        signal.signal(signal.SIGTERM, end_process)


def _image_id(client: docker.DockerClient, name: str) -> str:
    try:
        return str(client.images.get(name).id)
    except NotFound as error:
        raise InputError(
            f"--runner docker: {name}",
            "the container engine has no such image",
            "Build it with images/build.sh or pull it, or name others in YOLO_DISTILL_CPU_IMAGE and"
            " YOLO_DISTILL_TRAIN_IMAGE",
        ) from error


def _remove(container: Any) -> None:
    # It may be gone already, or be on its way.
    with suppress(APIError):
        container.remove(force=True)
