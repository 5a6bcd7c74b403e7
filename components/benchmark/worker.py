"""Measures one model in a process of its own, a slice of time whenever it is told to.

The benchmark starts one for each model and talks to it in JSON lines over its standard streams, so that a model's
memory is its own and the models can take turns.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from yolo_distill.components.benchmark.machine import peak_memory_bytes
from yolo_distill.components.shared.detector import Detector, ImageSize, open_detector, postprocess, preprocess
from yolo_distill.components.shared.detector.images import read_image
from yolo_distill.components.shared.detector.letterbox import network_input
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, read_card


@dataclass(frozen=True)
class Throughput:
    """How a network is kept busy.

    Attributes:
        mode: In words.
        run: Runs the network for about so many seconds and returns how many images a second it took.
    """

    mode: str
    run: Callable[[float], float]


class LatencyProbe:
    """Runs single images from their files to boxes."""

    def __init__(self, detector: Detector, paths: list[Path]) -> None:
        self._detector = detector
        self._paths = itertools.cycle(paths)

    def run(self, seconds: float) -> dict[str, list[float]]:
        """Measure for a while, at least one image.

        Returns:
            Milliseconds of each image, by what they are the time of: ``from_file``, ``end_to_end`` and ``network``.
        """
        # The others ran in the meantime and the caches are theirs.
        self._time_one()
        deadline = time.perf_counter() + seconds
        times = [self._time_one()]
        while time.perf_counter() < deadline:
            times.append(self._time_one())
        return {name: [each[name] for each in times] for name in times[0]}

    def _time_one(self) -> dict[str, float]:
        path = next(self._paths)
        start = time.perf_counter()
        image = read_image(path)
        decoded = time.perf_counter()
        batch, placements = preprocess([image], self._detector.imgsz)
        prepared = time.perf_counter()
        raw = self._detector.infer(batch)
        inferred = time.perf_counter()
        postprocess(raw, placements)
        end = time.perf_counter()
        seconds = {"from_file": end - start, "end_to_end": end - decoded, "network": inferred - prepared}
        return {name: value * 1e3 for name, value in seconds.items()}


def batch_throughput(detector: Detector, size: int, images: list[np.ndarray]) -> Throughput:
    """Keep a network busy with batches, one after the other."""
    batches = itertools.cycle(_batches(images, size, detector.imgsz))

    def run(seconds: float) -> float:
        detector.infer(next(batches))
        done, start = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - start < seconds:
            done += len(detector.infer(next(batches)))
        return done / (time.perf_counter() - start)

    return Throughput(f"batches of {size}", run)


def openvino_throughput(folder: Path, card: ModelCard, threads: int, images: list[np.ndarray]) -> Throughput:
    """Keep an OpenVINO model busy with parallel requests, as many as the runtime holds best."""
    import yolo_distill.components.shared.detector.openvino_env  # noqa: F401, I001
    import openvino
    from openvino import properties

    settings = {
        properties.hint.performance_mode: properties.hint.PerformanceMode.THROUGHPUT,
        # As in the detector whose accuracy was measured.
        properties.hint.inference_precision: openvino.Type.f32,
        properties.inference_num_threads: threads,
    }
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(folder / card.file, "CPU", settings))
    batches = itertools.cycle(network_input(one, card.preprocessing) for one in _batches(images, 1, card.imgsz))

    def run(seconds: float) -> float:
        # Each request keeps the image that it gets here, so that no time is spent on handing images over.
        for _ in range(len(queue)):
            queue.start_async({0: next(batches)})
        queue.wait_all()
        done, start = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - start < seconds:
            # Blocks until a request is free.
            queue.start_async()
            done += 1
        queue.wait_all()
        return done / (time.perf_counter() - start)

    return Throughput(f"{len(queue)} parallel requests", run)


def main(folder: Path, threads: int, batch: int, image_paths: list[Path], commands: TextIO, replies: TextIO) -> None:
    """Open a model, say so, and serve commands until there are no more.

    Args:
        folder: The model artifact.
        threads: CPU threads to use.
        batch: Images that throughput takes at a time, where not by parallel requests.
        image_paths: The images to use in turn.
        commands: One JSON object a line: ``{"measure": "latency" or "throughput", "seconds": …}``.
        replies: One JSON object a line for the opened model and for every command.
    """

    def reply(**content: object) -> None:
        print(json.dumps(content), file=replies, flush=True)

    try:
        card = read_card(folder)
        images = [read_image(path) for path in image_paths]
        detector = open_detector(folder, threads)
    except InputError as error:
        reply(subject=error.subject, problem=error.problem, remedy=error.remedy)
        return
    latency = LatencyProbe(detector, image_paths)
    throughput: Throughput | None = None
    reply(card=card.model_dump())
    for command in map(json.loads, commands):
        if command["measure"] == "latency":
            reply(**latency.run(command["seconds"]), peak_memory_bytes=peak_memory_bytes())
        else:
            throughput = throughput or _throughput(folder, card, detector, threads, batch, images)
            reply(throughput=throughput.run(command["seconds"]), mode=throughput.mode)


def _throughput(
    folder: Path, card: ModelCard, detector: Detector, threads: int, batch: int, images: list[np.ndarray]
) -> Throughput:
    if card.format == "openvino":
        return openvino_throughput(folder, card, threads, images)
    return batch_throughput(detector, batch, images)


def _batches(images: list[np.ndarray], size: int, imgsz: ImageSize) -> Iterator[np.ndarray]:
    """Return network inputs, float32 [size, 3, imgsz, imgsz], that use every image at least once."""
    ring = itertools.cycle(images)
    for _ in range(-(-len(images) // size)):
        yield preprocess(list(itertools.islice(ring, size)), imgsz)[0]


if __name__ == "__main__":
    # What libraries print must not mix with the replies.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    opened, threads, batch, *names = sys.argv[1:]
    main(Path(opened), int(threads), int(batch), [Path(name) for name in names], sys.stdin, answers)
