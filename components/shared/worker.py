"""One of the processes that do a job together: ``python -m yolo_distill.components.shared.worker KIND FILE``.

KIND names the job's class as ``module:Class``, FILE holds the job as JSON. What keeps a process from finishing is left
in the job's folder for whoever waits for it.
"""

import json
import os
import pkgutil
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from yolo_distill.components.shared.distributed import joined_processes, process_rank
from yolo_distill.components.shared.errors import InputError

_ERROR_NAME = "error.json"


class WorkerError(BaseModel):
    """Why a process did not finish.

    Attributes:
        rank: Its place among the processes.
        error: The error in a line.
        input: Subject, problem and remedy, where the user's input is at fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    error: str
    input: tuple[str, str, str] | None = None

    def raised(self) -> Exception:
        """Return the error for the process that waits."""
        return InputError(*self.input) if self.input else RuntimeError(f"training process {self.rank}: {self.error}")


def leave_error(folder: Path, error: Exception) -> None:
    """Write down why this process ends, unless another has done so: what follows on the first error is no cause."""
    known = (error.subject, error.problem, error.remedy) if isinstance(error, InputError) else None
    left = WorkerError(rank=process_rank(), error=f"{type(error).__name__}: {error}", input=known)
    partial = folder / f"{_ERROR_NAME}.partial-{process_rank()}"
    partial.write_text(left.model_dump_json(), encoding="utf-8")
    try:
        # Unlike a rename, a link never replaces what is there.
        os.link(partial, folder / _ERROR_NAME)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def take_error(folder: Path) -> WorkerError | None:
    """Return what :func:`leave_error` has left in a folder, and take it away."""
    file = folder / _ERROR_NAME
    try:
        left = WorkerError.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        left = None
    file.unlink(missing_ok=True)
    return left


def main(kind: str, file: str) -> None:
    """Do this process's part of a job.

    Args:
        kind: The job's class, ``module:Class``.
        file: The job as JSON.
    """
    job = pkgutil.resolve_name(kind).model_validate(json.loads(Path(file).read_text(encoding="utf-8")))
    with joined_processes():
        try:
            job.trainer().train()
        except Exception as error:
            leave_error(job.folder, error)
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
