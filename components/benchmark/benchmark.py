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
from yolo_distill.components.benchmark.machine import Disturbance, describe_machine, gpu_memory_in_use
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
    dataset: DetectionDataset,
    models: Mapping[str, Path],
    seconds: float,
    output: Path,
    split: Split = "val",
    threads: int | None = None,
    batch: int = 8,
) -> Benchmark:
    """Measure latency, throughput, size and memory of models.

    Each model runs in a fresh process of its own. They take turns in short slices: first one image at a time, for
    latency and peak memory, then for throughput. What an image or a batch takes first in a slice is not counted.

    Args:
        dataset: Where the images come from.
        models: Model artifacts by their role.
        seconds: Measuring time for each model, half for latency and half for throughput.
        output: Where the benchmark artifact appears.
        split: Which of the dataset's splits to take images from.
        threads: CPU threads of each model; as many as cores that this process may use by default.
        batch: Images that PyTorch and ONNX Runtime take at a time for throughput, at least 1.

    Returns:
        The figures, as written.

    Raises:
        InputError: A model cannot be opened, the split is empty, or there is no time, thread or image to measure with.
    """
    if not seconds > 0:
        raise InputError(f"seconds={seconds}", "there is no time to measure in", "Give a positive number")
    threads = usable_cores() if threads is None else threads
    for name, value in (("threads", threads), ("batch", batch)):
        if value < 1:
            raise InputError(f"{name}={value}", "is less than 1", "Give a positive number")
    records = dataset.split(split)[:_IMAGES]
    if not records:
        raise InputError(dataset.root, f"its {split} split is empty", "Prepare the data with images in that split")
    for folder in models.values():
        read_card(folder)
    machine = describe_machine(threads)
    images = [dataset.image_path(record) for record in records]
    with ExitStack() as stack:
        workers = {
            role: stack.enter_context(ModelProcess(folder, threads, batch, images)) for role, folder in models.items()
        }
        for done, (role, process) in enumerate(workers.items()):
            report_progress(done, len(workers), "model", f"opening {role}")
            process.wait_ready()
            # Whatever is set up at the first image is not measured.
            process.measure("latency", 0)
        disturbance = Disturbance(process.pid for process in workers.values())
        entries = _measure(workers, seconds)
        share = disturbance.share()
        gpu_memory = {role: _given_back(process) for role, process in workers.items()}
    result = Benchmark(
        machine=machine,
        dataset=dataset.digest,
        split=split,
        images=len(records),
        seconds=seconds,
        disturbance=share,
        entries={
            role: _entry(models[role], workers[role].card, values, gpu_memory[role]) for role, values in entries.items()
        },
    )
    with new_directory(output) as folder:
        write_benchmark(folder, result)
    return result


class ModelProcess:
    """A model's process, which ends with the block.

    Attributes:
        card: The model's card, once it is ready.
    """

    card: ModelCard

    def __init__(self, folder: Path, threads: int, batch: int, images: list[Path]) -> None:
        """Describe the process.

        Args:
            folder: The model artifact.
            threads: CPU threads of the model.
            batch: Images that PyTorch and ONNX Runtime take at a time for throughput.
            images: The image files to use in turn.
        """
        self._folder = folder
        arguments = [str(folder), str(threads), str(batch), *map(str, images)]
        self._command = [sys.executable, "-m", worker.__name__, *arguments]

    def __enter__(self) -> "ModelProcess":
        self._process = subprocess.Popen(  # noqa: S603
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process, if it still runs."""
        # Closes its streams and waits for it.
        with self._process:
            self._process.kill()

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
        """Have the model measured for a while.

        Args:
            what: ``latency`` or ``throughput``.
            seconds: For how long.

        Returns:
            The figures by name.
        """
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


def _measure(workers: Mapping[str, ModelProcess], seconds: float) -> dict[str, dict[str, list[Any]]]:
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


def _given_back(process: ModelProcess) -> int | None:
    """End a process and return how much of the GPUs' memory that freed, in bytes; ``None`` without a GPU.

    The driver's own count of a process would not do: it goes by process numbers that a container does not know. Neither
    would PyTorch's, which leaves out what TensorRT takes.
    """
    before = gpu_memory_in_use()
    process.end()
    after = gpu_memory_in_use()
    return None if before is None or after is None else max(before - after, 0)


def _entry(
    folder: Path, card: ModelCard, values: Mapping[str, list[Any]], gpu_memory_bytes: int | None
) -> BenchmarkEntry:
    times = {name: np.concatenate(values[name]) for name in ("from_file", "end_to_end", "network")}
    return BenchmarkEntry(
        **card.model_dump(include={"name", "format", "precision", "imgsz", "parameters", "gflops"}),
        digest=card.digest,
        size_bytes=_model_size(folder / card.file),
        peak_memory_bytes=values["peak_memory_bytes"][-1],
        gpu_memory_bytes=gpu_memory_bytes,
        **{name: _latency(milliseconds) for name, milliseconds in times.items()},
        samples=len(times["network"]),
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
