"""Recurring runs of the pipeline on a Kubeflow Pipelines server."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from kfp_server_api import (
    RecurringRunMode,
    V2beta1CronSchedule,
    V2beta1PeriodicSchedule,
    V2beta1RecurringRun,
    V2beta1RuntimeConfig,
    V2beta1Trigger,
)

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.launch import RunError
from yolo_distill.pipelines.remote import RequestError, Server, Trouble, by_field
from yolo_distill.pipelines.remote_arguments import RunOptions
from yolo_distill.pipelines.submit import Version, ensure_experiment

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_EVERY = re.compile(r"(\d+)([smhdw])")
# Kubeflow's controller takes no other numbers.
_MOST_CONCURRENT = 10
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# What cron's fields are called, their smallest and largest values, and the names of these from the smallest on.
# Kubeflow puts seconds before the usual five.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("seconds", 0, 59, ()),
    ("minutes", 0, 59, ()),
    ("hours", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_CRON_ITEM = re.compile(r"(?P<all>[*?])|(?P<first>\w+)(?:-(?P<last>\w+))?")


@dataclass(frozen=True)
class Trigger:
    """When runs are started: by cron expression or at an interval.

    Attributes:
        cron: Kubeflow's six fields, seconds first, in the server's time zone.
        seconds: Seconds from one run to the next.
        start: When the schedule begins; at once by default.
        end: When it ends; never by default.
    """

    cron: str | None = None
    seconds: int | None = None
    start: datetime | None = None
    end: datetime | None = None

    def spoken(self) -> str:
        """Return it for people."""
        return f"cron {self.cron}" if self.cron else f"every {self.seconds} s"

    def to_api(self) -> V2beta1Trigger:
        """Return it as the API has it."""
        if self.cron:
            return V2beta1Trigger(
                cron_schedule=V2beta1CronSchedule(cron=self.cron, start_time=self.start, end_time=self.end)
            )
        return V2beta1Trigger(
            periodic_schedule=V2beta1PeriodicSchedule(
                interval_second=str(self.seconds), start_time=self.start, end_time=self.end
            )
        )


@dataclass(frozen=True)
class Schedule:
    """A schedule as it should be.

    Attributes:
        name: Its name, which is also that of the runs it starts.
        trigger: When runs are started.
        max_concurrency: How many of its runs may go on at once.
        catchup: Whether runs that were missed, while the schedule was paused or the server was away, are made up for.
    """

    name: str
    trigger: Trigger
    max_concurrency: int = 1
    catchup: bool = False


def checked_trigger(cron: str | None, every: str | None, start: str | None, end: str | None) -> Trigger:
    """Check when runs shall be started.

    Args:
        cron: Cron expression of the usual five fields, or of Kubeflow's six, which begin with seconds.
        every: Interval such as ``30m``, ``6h``, ``1d`` or ``1w``.
        start: When the schedule begins, in ISO 8601; without a zone it is this machine's.
        end: When it ends.

    Raises:
        InputError: One of them is wrong, or there is not exactly one of cron and interval.
    """
    if (cron is None) == (every is None):
        raise InputError("--cron, --every", "it takes one of them", "Give a cron expression or an interval")
    first, last = _time("--start", start), _time("--end", end)
    if last and last <= (first or datetime.now(UTC)):
        raise InputError(f"--end {end}", "is before the first run", "Give a later time")
    seconds = _interval(every) if every is not None else None
    return Trigger(_six_fields(cron) if cron is not None else None, seconds, first, last)


def checked_schedule(name: str, trigger: Trigger, max_concurrency: int, *, catchup: bool) -> Schedule:
    """Check a schedule.

    Raises:
        InputError: It has no name, or a number of runs at once that Kubeflow does not take.
    """
    if not name.strip():
        raise InputError("schedule", "has no name", "Give one")
    if not 1 <= max_concurrency <= _MOST_CONCURRENT:
        raise InputError(
            f"--max-concurrency {max_concurrency}", f"it should be from 1 to {_MOST_CONCURRENT}", "Give such a number"
        )
    return Schedule(name, trigger, max_concurrency, catchup)


def apply_schedule(
    server: Server, schedule: Schedule, version: Version, arguments: Mapping[str, object], options: RunOptions
) -> tuple[V2beta1RecurringRun, Literal["created", "replaced", "unchanged"]]:
    """Make the server's schedule of that name what it should be.

    The server cannot change a recurring run. One that differs is replaced: its successor is made first, so that no run
    is missed in between. What it was made of is kept as a digest in its description, by which a schedule is left alone
    that is as it should be, and by which one is found again whose creation was not answered.

    Args:
        server: The server.
        schedule: What it should be.
        version: The pipeline version to run.
        arguments: The pipeline's parameters.
        options: How to run it.

    Returns:
        The schedule on the server, and what was done.

    Raises:
        RequestError: The server does not answer as it should.
        RunError: The successor is there, but the old schedule is as well.
    """
    api = server.client.recurring_runs
    experiment_id = ensure_experiment(server, options.experiment)
    wanted = V2beta1RecurringRun(
        display_name=schedule.name,
        experiment_id=experiment_id,
        pipeline_version_reference=version.reference(),
        runtime_config=V2beta1RuntimeConfig(parameters=dict(arguments), pipeline_root=options.pipeline_root),
        service_account=options.service_account,
        plugins_input=options.plugins_input,
        trigger=schedule.trigger.to_api(),
        max_concurrency=str(schedule.max_concurrency),
        no_catchup=not schedule.catchup,
        mode=RecurringRunMode.ENABLE,
    )
    content = json.dumps(api.api_client.sanitize_for_serialization(wanted), sort_keys=True)
    wanted.description = f"Made by yolo-distill, specification {hashlib.sha256(content.encode()).hexdigest()[:32]}"

    def find() -> V2beta1RecurringRun | None:
        alike = (run for run in find_schedules(server, schedule.name) if run.description == wanted.description)
        return next(alike, None)

    earlier = find_schedules(server, schedule.name)
    current = find()
    made = current or server.make(api.recurring_run_service_create_recurring_run, find, recurring_run=wanted)
    old = [run for run in earlier if run.recurring_run_id != made.recurring_run_id]
    for run in old:
        try:
            _delete(server, run)
        except RequestError as error:
            problem = f"its successor is there, but the old one ({run.recurring_run_id}) could not be deleted"
            raise RunError(
                f"schedule {schedule.name}: {problem}: {error.problem}. Repeat the command", by_input=error.by_input
            ) from None
    if old:
        return made, "replaced"
    return made, "unchanged" if current else "created"


def list_schedules(server: Server) -> list[V2beta1RecurringRun]:
    """Return all recurring runs of the namespace, newest first.

    Raises:
        RequestError: The server does not answer as it should.
    """
    return server.pages(
        server.client.recurring_runs.recurring_run_service_list_recurring_runs,
        "recurring_runs",
        sort_by="created_at desc",
        **_namespace(server),
    )


def find_schedules(server: Server, name: str) -> list[V2beta1RecurringRun]:
    """Return the recurring runs of a name.

    Raises:
        RequestError: The server does not answer as it should.
    """
    return server.pages(
        server.client.recurring_runs.recurring_run_service_list_recurring_runs,
        "recurring_runs",
        filter=by_field("display_name", name),
        **_namespace(server),
    )


def change_schedule(server: Server, name: str, change: Literal["pause", "resume", "delete"]) -> None:
    """Pause a schedule, let it go on, or delete it; runs that it has started go on.

    Raises:
        InputError: There is no schedule of that name.
        RequestError: The server does not answer as it should.
    """
    found = find_schedules(server, name)
    if not found:
        raise InputError(f"schedule {name}", "there is none of that name", "`yolo-distill schedule list` shows all")
    api = server.client.recurring_runs
    for run in found:
        match change:
            case "pause":
                server.ask(api.recurring_run_service_disable_recurring_run, recurring_run_id=run.recurring_run_id)
            case "resume":
                server.ask(api.recurring_run_service_enable_recurring_run, recurring_run_id=run.recurring_run_id)
            case "delete":
                _delete(server, run)


def spoken_trigger(run: V2beta1RecurringRun) -> str:
    """Return when a recurring run starts its runs, for people."""
    trigger = run.trigger
    if trigger and trigger.cron_schedule:
        return Trigger(cron=trigger.cron_schedule.cron).spoken()
    if trigger and trigger.periodic_schedule:
        return Trigger(seconds=int(trigger.periodic_schedule.interval_second)).spoken()
    return "never"


def _delete(server: Server, run: V2beta1RecurringRun) -> None:
    try:
        server.ask(
            server.client.recurring_runs.recurring_run_service_delete_recurring_run,
            recurring_run_id=run.recurring_run_id,
        )
    except RequestError as error:
        # A repeated request finds that the first has been carried out.
        if error.trouble is not Trouble.MISSING:
            raise


def _namespace(server: Server) -> dict[str, str]:
    return {"namespace": server.namespace} if server.namespace else {}


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise InputError(f"{option} {text}", "is not a time", "Write it as 2030-01-31T06:00:00+01:00") from None


def _interval(text: str) -> int:
    match = _EVERY.fullmatch(text.strip())
    if not match:
        raise InputError(f"--every {text}", "is not an interval", "Write it as 30m, 6h, 1d or 1w")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds < _SECONDS["m"]:
        raise InputError(f"--every {text}", "is less than a minute", "Give a longer interval")
    return seconds


def _six_fields(expression: str) -> str:
    fields = expression.split()
    if len(fields) == len(_FIELDS) - 1:
        # Kubeflow would read the usual five fields from the seconds on, and start runs at other times.
        fields = ["0", *fields]
    if len(fields) != len(_FIELDS):
        problem = f"has {len(fields)} fields"
        raise InputError(f"--cron {expression!r}", problem, "Write five, or six of which the first are seconds")
    for field, (name, smallest, largest, names) in zip(fields, _FIELDS, strict=True):
        if not all(_is_cron_item(item, smallest, largest, names) for item in field.split(",")):
            problem = f"{field!r} is no {name}"
            raise InputError(f"--cron {expression!r}", problem, f"Use {smallest} to {largest}, *, ranges and steps")
    return " ".join(fields)


def _is_cron_item(item: str, smallest: int, largest: int, names: tuple[str, ...]) -> bool:
    values, slash, step = item.partition("/")
    match = _CRON_ITEM.fullmatch(values)
    if not match or (slash and not (step.isdecimal() and int(step) > 0)):
        return False
    if match["all"]:
        return True
    values_of = {name: smallest + position for position, name in enumerate(names)}
    ends = [_cron_value(text, values_of) for text in (match["first"], match["last"] or match["first"])]
    return smallest <= ends[0] <= ends[1] <= largest


def _cron_value(text: str, names: Mapping[str, int]) -> int:
    return int(text) if text.isdecimal() else names.get(text.lower(), -1)
