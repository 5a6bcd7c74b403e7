"""How the command line tells what went wrong: in one line, and by its exit status."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.launch import INPUT_ERROR_STATUS, RunError


@contextmanager
def failures_in_a_line(interrupted: str) -> Iterator[None]:
    """End the program with one line of what went wrong in the block.

    Args:
        interrupted: What to say when the user interrupts it.
    """
    try:
        yield
    except InputError as error:
        _fail(str(error), INPUT_ERROR_STATUS)
    except RunError as error:
        _fail(str(error), INPUT_ERROR_STATUS if error.by_input else 1, error.log_tail)
    except KeyboardInterrupt:
        _fail(f"interrupted; {interrupted}", 130)


def _fail(message: str, status: int, log_tail: str = "") -> NoReturn:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if log_tail:
        console.print(Text.from_ansi(log_tail), style="dim")
    console.print(Text.assemble(("error: ", "bold red"), (" ".join(message.split()), "red")))
    raise typer.Exit(status)
