"""The TrainJob that is sent to Kubernetes."""

from typing import Any

from yolo_distill.components.shared.train_job.settings import TrainJobSettings

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"

# Of the runtime: its job and container that train.
NODE = "node"
# By which network policies know the pods.
_POD_LABELS = {"app.kubernetes.io/name": "yolo-distill-training"}
_SHARED_MEMORY = "/dev/shm"  # noqa: S108


def train_job(name: str, labels: dict[str, str], settings: TrainJobSettings, arguments: list[str]) -> dict[str, Any]:
    """Return a TrainJob whose nodes run a Python module under ``torchrun``.

    Args:
        name: Its name.
        labels: Its labels.
        settings: What the nodes are given.
        arguments: The module and its arguments.

    Returns:
        The object, as Kubernetes takes it.
    """
    processes = str(settings.processes)
    trainer: dict[str, Any] = {
        "image": settings.image,
        "numNodes": settings.nodes,
        # The rest of torchrun's options comes from the runtime, by environment variable.
        "command": ["python", "-m", "torch.distributed.run", "--nproc-per-node", processes, "-m", *arguments],
        "env": [*({"name": name, "value": value} for name, value in settings.env.items()), *_secrets(settings)],
        "resourcesPerNode": {"requests": settings.requests, "limits": settings.limits},
    }
    pod = {"metadata": {"labels": _POD_LABELS}, "spec": _pod(settings)}
    replicated = {"name": NODE, "template": {"spec": {"template": pod}}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": settings.runtime_kind, "name": settings.runtime},
            "trainer": trainer,
            "runtimePatches": [
                {
                    "manager": "yolo-distill.io/step",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}},
                }
            ],
        },
    }


def node_pods(name: str) -> str:
    """Return the label selector of the first node's pods of a TrainJob."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": name,
        "jobset.sigs.k8s.io/replicatedjob-name": NODE,
        "batch.kubernetes.io/job-completion-index": "0",
    }
    return ",".join(f"{label}={value}" for label, value in labels.items())


def _secrets(settings: TrainJobSettings) -> list[dict[str, Any]]:
    return [
        {"name": entry.variable, "valueFrom": {"secretKeyRef": {"name": entry.secret, "key": entry.key}}}
        for entry in settings.secrets
    ]


def _pod(settings: TrainJobSettings) -> dict[str, Any]:
    """Return what the pods have beyond the runtime: volumes, places to run, and that nothing runs as root."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, str]] = []
    for number, volume in enumerate(settings.volumes):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": volume.claim}})
        mount = {"name": f"claim-{number}", "mountPath": volume.mount}
        mounts.append(mount | ({"subPath": volume.sub_path} if volume.sub_path else {}))
    if settings.shm:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}})
        mounts.append({"name": "shm", "mountPath": _SHARED_MEMORY})
    container = {
        "name": NODE,
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "containers": [container],
        "volumes": volumes,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": settings.node_selector,
        "tolerations": list(settings.tolerations),
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
    }
