"""A schedule as Kubernetes objects, for those who keep their cluster as code.

Kubeflow has no such object of its own: its ``ScheduledWorkflow`` is the trace of a recurring run in the server's
database, and the server refuses to start runs for one that it has not made itself. So the schedule is a CronJob whose
pod does what ``yolo-distill submit --wait`` does. It looks at the data anew each time, which a recurring run, whose
parameters are fixed, cannot.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.pipelines.cluster import ClusterSettings
from yolo_distill.pipelines.remote_arguments import RunOptions
from yolo_distill.pipelines.schedule import Schedule, Trigger

# The CronJob appends eleven characters to its jobs' names, which have room for 63.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
_CONFIG = "/etc/yolo-distill"
_TOKEN = "/var/run/secrets/kubeflow/pipelines"  # noqa: S105
_TOKEN_SECONDS = 7200
# Audience of the tokens that Kubeflow Pipelines takes.
_AUDIENCE = "pipelines.kubeflow.org"
_MINUTES, _HOURS = 60, 24
# How late a run may be started, after the control plane was away.
_LATEST_SECONDS = 3600


def write_manifest(
    target: Path,
    schedule: Schedule,
    cluster: ClusterSettings,
    cluster_file: Path,
    parameters: Mapping[str, object],
    options: RunOptions,
    *,
    host: str | None,
    namespace: str | None,
) -> None:
    """Write a schedule as a ConfigMap and a CronJob.

    Args:
        target: YAML file to write.
        schedule: The schedule; one run at a time, without making up for missed ones.
        cluster: The cluster.
        cluster_file: The file that it was read from.
        parameters: The pipeline's parameters that were given.
        options: How to run the pipeline.
        host: Address of the API as pods see it; by default that of Kubeflow's own service.
        namespace: Namespace of the objects.

    Raises:
        InputError: A CronJob cannot do what is wanted.
    """
    if not _NAME.fullmatch(schedule.name):
        raise InputError(
            f"schedule {schedule.name}", "is no name for a CronJob", "Use up to 52 small letters, digits and hyphens"
        )
    if schedule.max_concurrency != 1:
        raise _beyond(f"--max-concurrency {schedule.max_concurrency}", "limits its jobs to one at a time or not at all")
    if schedule.catchup:
        raise _beyond("--catchup", "never makes up for more than one missed run")
    if schedule.trigger.start or schedule.trigger.end:
        raise _beyond("--start, --end", "begins when it is applied and ends when it is deleted")
    metadata = {"name": schedule.name, "labels": {"app.kubernetes.io/name": "yolo-distill"}}
    if namespace:
        metadata["namespace"] = namespace
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {
            "cluster.yaml": cluster_file.read_text(encoding="utf-8"),
            "params.yaml": yaml.safe_dump(dict(parameters)),
        },
    }
    arguments = _arguments(schedule, options, host, namespace)
    job = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata,
        "spec": {
            "schedule": _five_fields(schedule.trigger),
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _LATEST_SECONDS,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 3,
                    "template": {
                        "metadata": {"labels": metadata["labels"]},
                        "spec": _pod(schedule.name, arguments, cluster, options.service_account),
                    },
                }
            },
        },
    }
    documents = [yaml.dump(document, Dumper=_Plain, sort_keys=False) for document in (config, job)]
    write_text(target, "---\n".join(documents))


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)


def _arguments(schedule: Schedule, options: RunOptions, host: str | None, namespace: str | None) -> list[str]:
    mlflow = (options.plugins_input or {}).get("mlflow", {})
    given = {
        "--host": host,
        "--namespace": namespace,
        "--service-account": options.service_account,
        "--pipeline-root": options.pipeline_root,
        "--mlflow-experiment": mlflow.get("experiment_name"),
    }
    return [
        "submit",
        f"--cluster={_CONFIG}/cluster.yaml",
        f"--params={_CONFIG}/params.yaml",
        f"--experiment={options.experiment}",
        f"--run-name={schedule.name}",
        *(f"{option}={value}" for option, value in given.items() if value),
        *(["--no-mlflow"] if mlflow.get("disabled") else []),
        "--wait",
    ]


def _pod(name: str, arguments: list[str], cluster: ClusterSettings, service_account: str | None) -> dict[str, Any]:
    settings = cluster.settings("cpu")
    secrets = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}}
        for secret in settings.secrets
        for key, variable in secret.env.items()
    ]
    # A pod that takes the place of a lost one has the same job, and so the same request: there is no second run.
    job = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}}
    container = {
        "name": "submit",
        "image": cluster.images["cpu"],
        "imagePullPolicy": cluster.image_pull_policy,
        "command": ["yolo-distill"],
        "args": arguments,
        "env": [
            {"name": "YOLO_DISTILL_REQUEST_ID", "valueFrom": job},
            {"name": "KF_PIPELINES_SA_TOKEN_PATH", "value": f"{_TOKEN}/token"},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108
            *({"name": variable, "value": value} for variable, value in settings.env.items()),
            *secrets,
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG, "readOnly": True},
            {"name": "token", "mountPath": _TOKEN, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
    token = {"path": "token", "audience": _AUDIENCE, "expirationSeconds": _TOKEN_SECONDS}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    if service_account:
        pod["serviceAccountName"] = service_account
    if cluster.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in cluster.image_pull_secrets]
    return pod


def _five_fields(trigger: Trigger) -> str:
    if trigger.cron:
        first, *fields = trigger.cron.split()
        if first != "0":
            raise _beyond(f"--cron {trigger.cron!r}", "knows no seconds")
        return " ".join(fields).replace("?", "*")
    minutes, seconds = divmod(trigger.seconds or 0, 60)
    hours, rest = divmod(minutes, _MINUTES)
    if not seconds and minutes < _MINUTES and _MINUTES % minutes == 0:
        return f"*/{minutes} * * * *"
    if not seconds and not rest and hours < _HOURS and _HOURS % hours == 0:
        return f"0 */{hours} * * *"
    if trigger.seconds == _HOURS * _MINUTES * 60:
        return "0 0 * * *"
    raise _beyond(f"--every {trigger.seconds}s", "has no such interval")


def _beyond(subject: str, problem: str) -> InputError:
    return InputError(
        subject, f"a CronJob {problem}", "Leave it out, or have the server keep the schedule, without --manifest"
    )
