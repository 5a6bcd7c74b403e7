"""Files on their way to or from object storage, in parts: at once, with patience, and with somebody watching."""

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError

from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.s3.connection import error_code

PART_BYTES = 8 << 20
THREADS = 8
# With what the connection repeats by itself, half a minute of trouble is survived.
TRIES = 7
FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 16.0
_PROGRESS_BYTES = 32 << 20
_TRANSIENT = {"RequestTimeout", "BadDigest", "IncompleteBody", "SlowDown", "429"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """A range of a file's bytes.

    Attributes:
        number: Counted from 1.
        start: First byte.
        stop: The byte behind the last.
    """

    number: int
    start: int
    stop: int


class StoppedError(Exception):
    """Another part has failed for good, or the user has stopped the program."""


def split(size: int, part_bytes: int) -> list[Part]:
    """Return the parts of a file of ``size`` bytes: none where it is empty."""
    starts = range(0, size, part_bytes)
    return [Part(number, start, min(start + part_bytes, size)) for number, start in enumerate(starts, 1)]


class Patience:
    """Decides whether to try again, and waits before.

    Args:
        stopped: Ends every waiting when it is set.
    """

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped
        self._failures = 0

    def reward(self) -> None:
        """Forget the failures so far: something has arrived since."""
        self._failures = 0

    def wait(self, error: Exception) -> None:
        """Wait before another try, longer each time.

        Args:
            error: Why the last one failed, raised again where another try is of no use.

        Raises:
            StoppedError: There is to be no other try.
        """
        self._failures += 1
        if self._failures >= TRIES or not _is_transient(error):
            raise error
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), _LONGEST_PAUSE_SECONDS)
        # Not all at the same moment.
        if self._stopped.wait(random.uniform(pause / 2, pause)):
            raise StoppedError from error


def persistently(request: Callable[[], Result], stopped: threading.Event) -> Result:
    """Repeat a request until it succeeds.

    Args:
        request: Sends it.
        stopped: Ends every waiting when it is set.

    Raises:
        BotoCoreError: The storage does not answer, time and again.
        ClientError: The storage refuses.
        StoppedError: There is to be no other try.
    """
    patience = Patience(stopped)
    while True:
        try:
            return request()
        except (BotoCoreError, ClientError) as error:
            patience.wait(error)


class Meter:
    """Reports how many bytes of a large file are through.

    Args:
        total: Bytes in all.
        note: What is done to them, such as ``downloading``.
    """

    def __init__(self, total: int, note: str) -> None:
        self._total, self._note = total, note
        self._done = self._reported = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self._done += count
            if self._done - self._reported >= _PROGRESS_BYTES:
                self._reported = self._done
                report_progress(self._done // 10**6, self._total // 10**6, "MB", self._note)


def in_parallel(work: Callable[[Part, threading.Event], None], parts: Sequence[Part], threads: int) -> None:
    """Do something to every part, several at a time.

    Args:
        work: What to do. It gets an event that is set when it should give up.
        parts: The parts.
        threads: How many at a time.

    Raises:
        Exception: What the first part to fail has raised.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(work, part, stopped) for part in parts]
        try:
            for job in as_completed(jobs):
                job.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, ClientError):
        return error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500 or error_code(error) in _TRANSIENT
    return isinstance(error, (ConnectionError, HTTPClientError, IncompleteReadError))
