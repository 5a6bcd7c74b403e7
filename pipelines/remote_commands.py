"""The commands that speak to a Kubeflow Pipelines server: ``submit``, ``status``, ``cancel`` and ``schedule``."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.borrowed_options import pipeline_options, with_options
from yolo_distill.pipelines.cluster import ClusterSettings, KubernetesName, load_cluster
from yolo_distill.pipelines.display import shown_path
from yolo_distill.pipelines.distillation.arguments import DistillationArguments
from yolo_distill.pipelines.failures import failures_in_a_line
from yolo_distill.pipelines.remote_arguments import (
    RunOptions,
    digest_for,
    is_moving,
    read_parameters,
    remote_arguments,
)

# What speaks to the server takes seconds to import; a mistake in the options shows before.
if TYPE_CHECKING:
    from yolo_distill.pipelines.remote import Connection

_SERVER, _RUN = "Server", "Run"
_PIPELINE = "yolov8-distillation"
# The task whose result depends on data that can change without an argument changing.
_READING_TASK = "prepare-data"
_ROOT = re.compile(r"[a-z0-9]+://[^\s]+")


@dataclass(frozen=True)
class _Wanted:
    """What shall be run, checked."""

    cluster: ClusterSettings
    cluster_file: Path
    given: Mapping[str, object]
    arguments: DistillationArguments
    cached: bool
    options: RunOptions


def _connection(
    host: Annotated[
        str | None,
        typer.Option(
            envvar="KF_PIPELINES_ENDPOINT",
            help="Address of the Kubeflow Pipelines API, such as http://localhost:8888 of a port-forward.",
            rich_help_panel=_SERVER,
            show_default="the cluster's own, or kubeconfig's",
        ),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Your namespace, on a server with several users.", rich_help_panel=_SERVER)
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="KF_PIPELINES_SA_TOKEN_PATH",
            help="File with a bearer token, such as a pod's service account token.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    cookie_file: Annotated[
        Path | None,
        typer.Option(
            envvar="KF_PIPELINES_COOKIE_FILE",
            help="File with the session cookie of a login page (Dex, OIDC), as name=value.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    ca_cert: Annotated[
        Path | None, typer.Option(help="Certificates to check the server's against.", rich_help_panel=_SERVER)
    ] = None,
    proxy: Annotated[str | None, typer.Option(help="Address of an HTTP proxy.", rich_help_panel=_SERVER)] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for an answer.", rich_help_panel=_SERVER)
    ] = 30.0,
) -> "Callable[[], Connection]":
    def connection() -> "Connection":
        from yolo_distill.pipelines.remote import Connection

        _check_name("--namespace", namespace)
        return Connection(host, namespace, token_file, cookie_file, ca_cert, proxy, timeout)

    return connection


def _run_options(
    cluster: Annotated[
        Path, typer.Option(help="Cluster file: images, resources, volumes, secrets.", rich_help_panel=_RUN)
    ],
    params: Annotated[
        Path | None,
        typer.Option(help="YAML file of pipeline parameters; options come before it.", rich_help_panel=_RUN),
    ] = None,
    experiment: Annotated[
        str, typer.Option(envvar="KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", help="Experiment.", rich_help_panel=_RUN)
    ] = "yolo-distill",
    service_account: Annotated[
        str | None, typer.Option(help="Service account of the run's pods.", rich_help_panel=_RUN)
    ] = None,
    pipeline_root: Annotated[
        str | None, typer.Option(help="Address below which artifacts are stored.", rich_help_panel=_RUN)
    ] = None,
    mlflow_experiment: Annotated[
        str | None, typer.Option(help="Experiment for the server's MLflow plugin.", rich_help_panel=_RUN)
    ] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow/--no-mlflow", help="Let the server's MLflow plugin work.", rich_help_panel=_RUN)
    ] = True,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Take over what earlier runs have made.", rich_help_panel=_RUN)
    ] = True,
) -> "Callable[[Mapping[str, object]], _Wanted]":
    def wanted(flags: Mapping[str, object]) -> _Wanted:
        if not experiment.strip():
            raise InputError("--experiment", "is empty", "Give a name")
        _check_name("--service-account", service_account)
        if pipeline_root and not _ROOT.fullmatch(pipeline_root):
            raise InputError(f"--pipeline-root {pipeline_root}", "is no address", "Write it as s3://bucket/folder")
        plugins = _plugins(mlflow_experiment, mlflow)
        settings = load_cluster(cluster)
        given = read_parameters(params) | {name: value for name, value in flags.items() if value is not None}
        # kfp lets an administrator's variable come before what the user names.
        place = os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME") or experiment
        options = RunOptions(place, service_account, pipeline_root, plugins)
        return _Wanted(settings, cluster, given, remote_arguments(given, settings), cache, options)

    return wanted


def _plugins(experiment: str | None, mlflow: bool) -> dict[str, Any] | None:
    if not mlflow:
        if experiment:
            raise InputError("--mlflow-experiment", "makes no sense with --no-mlflow", "Leave out one of them")
        return {"mlflow": {"disabled": True}}
    return {"mlflow": {"experiment_name": experiment}} if experiment else None


def add_remote_commands(app: typer.Typer, run_command: Callable[..., None]) -> None:
    """Add the commands that speak to a Kubeflow Pipelines server.

    Args:
        app: The program.
        run_command: The command whose pipeline arguments they take as well.
    """
    flags = pipeline_options(run_command)
    app.command("submit")(with_options(connection=_connection, wanted=_run_options, flags=flags)(_submit))
    app.command("status")(with_options(connection=_connection)(_status))
    app.command("cancel")(with_options(connection=_connection)(_cancel))
    schedule = typer.Typer(help="Keep schedules of runs on Kubeflow.", no_args_is_help=True, rich_markup_mode="rich")
    app.add_typer(schedule, name="schedule")
    create = with_options(connection=_connection, wanted=_run_options, flags=flags)(_schedule_create)
    schedule.command("create")(create)
    schedule.command("list")(with_options(connection=_connection)(_schedule_list))
    for name, command in (("pause", _schedule_pause), ("resume", _schedule_resume), ("delete", _schedule_delete)):
        schedule.command(name)(with_options(connection=_connection)(command))


def _submit(
    connection: "Callable[[], Connection]",
    wanted: "Callable[[Mapping[str, object]], _Wanted]",
    flags: Mapping[str, object],
    run_name: Annotated[
        str | None, typer.Option(help="Name of the run.", rich_help_panel=_RUN, show_default="pipeline and time")
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(
            envvar="YOLO_DISTILL_REQUEST_ID",
            help="Id of this submission: however often it is repeated, there is one run.",
            rich_help_panel=_RUN,
            show_default="a new one",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the run; fail when it fails.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Run the pipeline on Kubeflow.

    The pipeline is compiled with the settings of a cluster file and uploaded, unless the server has it already.
    """
    with _failures():
        if run_name is not None and not run_name.strip():
            raise InputError("--run-name", "is empty", "Give a name, or leave it out")
        if request_id is not None and not re.fullmatch(r"[\w-]{8,64}", request_id):
            problem = "is not 8 to 64 letters, digits, hyphens and underscores"
            raise InputError(f"--request-id {request_id}", problem, "Use an id that was shown, or leave it out")
        plan = wanted(flags)
        from yolo_distill.pipelines.remote import Server
        from yolo_distill.pipelines.submit import (
            compiled,
            create_run,
            default_run_name,
            ensure_version,
            new_request_id,
            wait_for_run,
        )

        parameters = plan.arguments.model_dump() | {"source_digest": digest_for(plan.arguments)}
        with compiled(_compiler(plan, uncached=())) as package:
            server = Server(connection())
            version = ensure_version(server, package)
        run = create_run(
            server,
            version,
            parameters,
            plan.options,
            name=run_name or default_run_name(_PIPELINE),
            request_id=request_id or new_request_id(),
            repeated=request_id is not None,
        )
        console = _console()
        console.print(f"Run {run.display_name}: {run.run_id} (pipeline version {version.name})")
        if address := server.run_address(run.run_id):
            console.print(address)
        if wait:
            wait_for_run(server, run.run_id, lambda state: console.print(f"{run.run_id}: {state.lower()}"))


def _status(
    connection: "Callable[[], Connection]", run_id: Annotated[str, typer.Argument(help="Id of the run.")]
) -> None:
    """Show how a run on Kubeflow gets on."""
    with _failures():
        from yolo_distill.pipelines.remote import Server
        from yolo_distill.pipelines.submit import get_run

        run = get_run(Server(connection()), run_id)
        console = _console()
        console.print(f"Run {run.display_name}: {_state(run.state)}")
        if run.error and run.error.message:
            console.print(run.error.message)
        tasks = (run.run_details and run.run_details.task_details) or []
        table = Table("Task", "State", "Started", "Ended")
        for task in tasks:
            table.add_row(task.display_name or "", _state(task.state), _moment(task.start_time), _moment(task.end_time))
        if tasks:
            console.print(table)


def _cancel(
    connection: "Callable[[], Connection]", run_id: Annotated[str, typer.Argument(help="Id of the run.")]
) -> None:
    """End a run on Kubeflow."""
    with _failures():
        from yolo_distill.pipelines.remote import Server
        from yolo_distill.pipelines.submit import cancel_run

        ended = cancel_run(Server(connection()), run_id)
        _console().print(f"{run_id}: {'is being ended' if ended else 'had ended already'}")


_ScheduleName = Annotated[str, typer.Argument(help="Name of the schedule.")]


def _schedule_create(
    connection: "Callable[[], Connection]",
    wanted: "Callable[[Mapping[str, object]], _Wanted]",
    flags: Mapping[str, object],
    name: _ScheduleName,
    cron: Annotated[
        str | None, typer.Option(help="Cron expression of five fields, or of six that begin with seconds.")
    ] = None,
    every: Annotated[str | None, typer.Option(help="Interval: 30m, 6h, 1d, 1w.")] = None,
    start: Annotated[str | None, typer.Option(help="When it begins: 2030-01-31T06:00:00+01:00.")] = None,
    end: Annotated[str | None, typer.Option(help="When it ends.")] = None,
    max_concurrency: Annotated[int, typer.Option(help="How many of its runs may go on at once.")] = 1,
    catchup: Annotated[bool, typer.Option("--catchup/--no-catchup", help="Make up for missed runs.")] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="Write it as Kubernetes objects to this file, and ask no server.")
    ] = None,
) -> None:
    """Run the pipeline again and again on Kubeflow.

    A schedule of that name which differs is replaced; one that is the same is left alone.
    """
    with _failures():
        plan = wanted(flags)
        from yolo_distill.pipelines.schedule import apply_schedule, checked_schedule, checked_trigger

        schedule = checked_schedule(name, checked_trigger(cron, every, start, end), max_concurrency, catchup=catchup)
        console = _console()
        if manifest is not None:
            from yolo_distill.pipelines.schedule_manifest import write_manifest

            where = connection()
            write_manifest(
                manifest,
                schedule,
                plan.cluster,
                plan.cluster_file,
                plan.given,
                plan.options,
                host=where.host,
                namespace=where.namespace,
            )
            console.print(f"Wrote {shown_path(manifest)}")
            return
        from yolo_distill.pipelines.remote import Server
        from yolo_distill.pipelines.submit import compiled, ensure_version

        # A recurring run's parameters are fixed. Data that can change are read anew each time, and what was made of
        # them is found in the cache again if they have not.
        moving = is_moving(plan.arguments.source)
        digest = "" if moving else digest_for(plan.arguments)
        parameters = plan.arguments.model_dump() | {"source_digest": digest}
        with compiled(_compiler(plan, uncached=(_READING_TASK,) if moving else ())) as package:
            server = Server(connection())
            version = ensure_version(server, package)
        made, done = apply_schedule(server, schedule, version, parameters, plan.options)
        paused = ", and it is paused" if done == "unchanged" and made.status == "DISABLED" else ""
        console.print(f"Schedule {name}: {done}{paused} ({made.recurring_run_id}, {schedule.trigger.spoken()})")


def _schedule_list(connection: "Callable[[], Connection]") -> None:
    """Show the schedules on Kubeflow."""
    with _failures():
        from yolo_distill.pipelines.remote import Server
        from yolo_distill.pipelines.schedule import list_schedules, spoken_trigger

        found = list_schedules(Server(connection()))
        console = _console()
        if not found:
            console.print("There are no schedules.")
            return
        table = Table("Schedule", "Starts runs", "State", "At once", "Catches up", "Id")
        for run in found:
            catches_up = "no" if run.no_catchup else "yes"
            columns = (run.display_name, spoken_trigger(run), _state(run.status), run.max_concurrency, catches_up)
            table.add_row(*map(str, columns), run.recurring_run_id)
        console.print(table)


def _schedule_pause(connection: "Callable[[], Connection]", name: _ScheduleName) -> None:
    """Start no runs until the schedule is resumed."""
    _change(connection, name, "pause", "paused")


def _schedule_resume(connection: "Callable[[], Connection]", name: _ScheduleName) -> None:
    """Let a paused schedule start runs again."""
    _change(connection, name, "resume", "resumed")


def _schedule_delete(connection: "Callable[[], Connection]", name: _ScheduleName) -> None:
    """Delete a schedule; runs that it has started go on."""
    _change(connection, name, "delete", "deleted")


def _change(
    connection: "Callable[[], Connection]", name: str, change: Literal["pause", "resume", "delete"], done: str
) -> None:
    with _failures():
        from yolo_distill.pipelines.remote import Server
        from yolo_distill.pipelines.schedule import change_schedule

        change_schedule(Server(connection()), name, change)
        _console().print(f"Schedule {name}: {done}")


def _compiler(plan: _Wanted, uncached: tuple[str, ...]) -> Callable[[Path], None]:
    from yolo_distill.pipelines.distillation.run import compile_pipeline

    return lambda target: compile_pipeline(target, plan.cluster, cached=plan.cached, uncached=uncached)


@contextmanager
def _failures() -> Iterator[None]:
    with failures_in_a_line("what the server has been told already it goes on with"):
        yield


def _console() -> Console:
    # Ids and addresses are copied from here: no line may be broken.
    return Console(width=None, soft_wrap=True, highlight=False)


def _check_name(option: str, name: str | None) -> None:
    if name is None:
        return
    try:
        TypeAdapter(KubernetesName).validate_python(name)
    except ValidationError:
        raise InputError(
            f"{option} {name}", "is no name in Kubernetes", "Use small letters, digits and hyphens"
        ) from None


def _state(state: str | None) -> str:
    return (state or "unknown").lower()


def _moment(time: Any) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}" if time else ""
