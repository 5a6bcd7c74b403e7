"""Many small pieces of work in threads: decoding, hashing and waiting for a network leave Python's lock to others."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from yolo_distill.components.shared.progress import report_progress

_REPORTS = 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], unit: str, note: str, threads: int | None = None
) -> list[Result]:
    """Apply a function to many items at once and report the progress.

    The first exception ends the work; items that nobody has started on are left alone then.

    Args:
        function: What to do with an item.
        items: The items.
        unit: What is counted, such as ``image``.
        note: What is done to it, such as ``checking``.
        threads: Number of threads; by default a few more than processors.

    Returns:
        The results in the order of the items.
    """
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(function, item) for item in items]
        step = max(1, len(jobs) // _REPORTS)
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if done % step == 0 or done == len(jobs):
                    report_progress(done, len(jobs), unit, note)
        finally:
            pool.shutdown(cancel_futures=True)
    return [job.result() for job in jobs]
