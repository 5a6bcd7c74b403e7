"""Benchmarks models against each other on this machine."""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from yolo_distill.components.benchmark import worker
from yolo_distill.components.benchmark.machine import Disturbance, describe_machine
from yolo_distill.components.benchmark.results import Benchmark, BenchmarkEntry, Latency, write_benchmark
from yolo_distill.components.prepare_data.dataset import DetectionDataset, Split
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.progress import report_progress

# Models take turns this often, so that what else happens on the machine hits them alike.
ROUNDS = 5
_IMAGES = 32


def benchmark(
    dataset: DetectionDataset, models: Mapping[str, Path], seconds: float, output: Path, split: Split = "val"
) -> Benchmark:
    """Measure latency, throughput, size and memory of models.

    Each model runs in a fresh process of its own. They take turns in short slices: first one image at a time, for
    latency and peak memory, then for throughput.

    Args:
        dataset: Where the images come from.
        models: Model artifacts by their role.
        seconds: Measuring time for each model, half for latency and half for throughput.
        output: Where the benchmark artifact appears.
        split: Which of the dataset's splits to take images from.

    Returns:
        The figures, as written.

    Raises:
        InputError: A model cannot be opened, the split is empty or ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise InputError(f"seconds={seconds}", "there is no time to measure in", "Give a positive number")
    records = dataset.split(split)[:_IMAGES]
    if not records:
        raise InputError(dataset.root, f"its {split} split is empty", "Prepare the data with images in that split")
    for folder in models.values():
        read_card(folder)
    threads = usable_cores()
    machine = describe_machine(threads)
    images = [dataset.image_path(record) for record in records]
    with ExitStack() as stack:
        workers = {role: stack.enter_context(_Worker(folder, threads, images)) for role, folder in models.items()}
        for done, (role, process) in enumerate(workers.items()):
            report_progress(done, len(workers), "model", f"opening {role}")
            process.wait_ready()
            # Whatever is set up at the first image is not measured.
            process.measure("latency", 0)
        disturbance = Disturbance(process.pid for process in workers.values())
        entries = _measure(workers, seconds)
        share = disturbance.share()
    result = Benchmark(
        machine=machine,
        dataset=dataset.digest,
        split=split,
        images=len(records),
        seconds=seconds,
        disturbance=share,
        entries={role: _entry(models[role], workers[role].card, values) for role, values in entries.items()},
    )
    with new_directory(output) as folder:
        write_benchmark(folder, result)
    return result


class _Worker:
    """A model's process, which ends with the block.

    Attributes:
        card: The model's card, once it is ready.
    """

    card: ModelCard

    def __init__(self, folder: Path, threads: int, images: list[Path]) -> None:
        self._folder = folder
        self._command = [sys.executable, "-m", worker.__name__, str(folder), str(threads), *map(str, images)]

    def __enter__(self) -> "_Worker":
        self._process = subprocess.Popen(  # noqa: S603
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until the model is open.

        Raises:
            InputError: It cannot be opened.
        """
        self.card = ModelCard.model_validate(self._answer()["card"])

    def measure(self, what: str, seconds: float) -> dict[str, Any]:
        """Have the model measured for a while."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"measure": what, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self._folder}: its process ended with status {code}, see above")
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise InputError(answer["subject"], answer["problem"], answer["remedy"])
        return answer


def _measure(workers: Mapping[str, _Worker], seconds: float) -> dict[str, dict[str, list[Any]]]:
    """Return every worker's answers, collected by their names."""
    collected: dict[str, dict[str, list[Any]]] = {role: {} for role in workers}
    turns = [(what, number) for what in ("latency", "throughput") for number in range(ROUNDS)]
    for done, (what, number) in enumerate(turns):
        report_progress(done, len(turns), "round", what)
        # There and back, so that none always follows the same neighbour.
        for role in list(workers)[:: 1 if number % 2 == 0 else -1]:
            for name, value in workers[role].measure(what, seconds / len(turns)).items():
                collected[role].setdefault(name, []).append(value)
    report_progress(len(turns), len(turns), "round")
    return collected


def _entry(folder: Path, card: ModelCard, values: Mapping[str, list[Any]]) -> BenchmarkEntry:
    end_to_end, network = (np.concatenate(values[name]) for name in ("end_to_end", "network"))
    return BenchmarkEntry(
        **card.model_dump(include={"name", "format", "precision", "imgsz", "parameters", "gflops"}),
        digest=card.digest,
        size_bytes=_model_size(folder / card.file),
        peak_memory_bytes=values["peak_memory_bytes"][-1],
        end_to_end=_latency(end_to_end),
        network=_latency(network),
        samples=len(end_to_end),
        throughput=round(float(np.median(values["throughput"])), 2),
        throughput_mode=values["mode"][0],
    )


def _model_size(file: Path) -> int:
    """Return the size of a model's file with the weights that OpenVINO keeps beside it, in bytes."""
    weights = file.with_suffix(".bin")
    return file.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def _latency(milliseconds: np.ndarray) -> Latency:
    p50, p90, p99 = (round(float(value), 3) for value in np.percentile(milliseconds, (50, 90, 99)))
    return Latency(p50=p50, p90=p90, p99=p99)
