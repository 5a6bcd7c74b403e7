"""Gives commands the options of other functions and commands."""

import functools
import inspect
from collections.abc import Callable
from copy import copy
from typing import Annotated, Any, get_args

from typer.models import OptionInfo

from yolo_distill.pipelines.distillation.arguments import DistillationArguments, option_name


def with_options(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of other functions.

    Args:
        **groups: Functions by the command's parameter that their results are passed as. The command shows the options
            of each in place of that parameter.

    Returns:
        A decorator for the command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signatures = {name: inspect.signature(group).parameters for name, group in groups.items()}

        @functools.wraps(command)
        def with_groups(**values: Any) -> None:
            for name, parameters in signatures.items():
                values[name] = groups[name](**{parameter: values.pop(parameter) for parameter in parameters})
            command(**values)

        own = [p for p in inspect.signature(command).parameters.values() if p.name not in groups]
        added = [p for parameters in signatures.values() for p in parameters.values()]
        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *added)]
        # Typer reads both.
        with_groups.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        with_groups.__annotations__ = {p.name: p.annotation for p in keyword_only}
        return with_groups

    return decorate


def pipeline_options(run_command: Callable[..., None]) -> Callable[..., dict[str, object]]:
    """Return a function that has the options of a command which are arguments of the pipeline.

    An option that is not given is ``None``, so that it leaves the word to a file or to the pipeline's default.

    Args:
        run_command: The command; its other options are left out, and so are places that belong to a cluster.

    Returns:
        The function; called with options, it returns arguments by the pipeline's names for them.
    """
    places = {"work_root", "cache_root"}
    arguments = {
        option_name(name).removeprefix("--").replace("-", "_"): name
        for name in DistillationArguments.model_fields.keys() - places
    }
    parameters = [p for p in inspect.signature(run_command).parameters.values() if p.name in arguments]

    def given(**options: object) -> dict[str, object]:
        return {arguments[name]: value for name, value in options.items()}

    given.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(default=None, annotation=_showing(p), kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    return given


def _showing(parameter: inspect.Parameter) -> Any:
    """Return a parameter's annotation with a default that is shown, though there is none."""
    kind, option = get_args(parameter.annotation)
    shown: OptionInfo = copy(option)
    if shown.show_default is True and parameter.default is not None:
        shown.show_default = str(parameter.default)
    return Annotated[kind | None, shown]
