"""The benchmark artifact: how fast, small and frugal models are on one machine.

Layout::

    benchmark.json   machine, settings and one entry a model
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.model_card import ModelFormat, Precision
from yolo_distill.components.shared.records import read_record

BENCHMARK_NAME = "benchmark.json"


class Latency(BaseModel):
    """Times of single images in milliseconds.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile; of fewer than 100 images it is close to the largest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float
    p90: float
    p99: float


class BenchmarkEntry(BaseModel):
    """One model's figures.

    Attributes:
        name: The model card's name.
        format: The runtime that ran it.
        precision: Numeric precision of the weights.
        digest: SHA-256 of the model file.
        imgsz: Side of the square network input in pixels.
        parameters: Number of weights of the unfused network.
        gflops: Cost of one image in 10^9 floating point operations.
        size_bytes: Size of the model's files.
        peak_memory_bytes: Largest resident memory of a fresh process that runs nothing but this model, one image at a
            time; interpreter and runtime are inside.
        gpu_memory_bytes: What GPUs got back when the process ended; ``None`` without an NVIDIA GPU.
        from_file: From an image's file to boxes, one image at a time; the file is in the system's cache.
        end_to_end: From a decoded image to boxes, one image at a time.
        network: The network alone, one image at a time.
        samples: Images that the latencies were taken from.
        throughput: Images a second through the network when it is kept busy; preparing images and making boxes are
            outside.
        throughput_mode: How it was kept busy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    format: ModelFormat
    precision: Precision
    digest: str
    imgsz: int
    parameters: int
    gflops: float
    size_bytes: int
    peak_memory_bytes: int
    gpu_memory_bytes: int | None
    from_file: Latency
    end_to_end: Latency
    network: Latency
    samples: int
    throughput: float
    throughput_mode: str


class Machine(BaseModel):
    """What the models ran on.

    Attributes:
        cpu: Processor model.
        instructions: Instruction sets that decide how fast networks run.
        cores: Logical cores of the machine.
        threads: Threads that each model was given.
        memory_bytes: Main memory.
        system: Operating system and kernel.
        versions: Versions of Python and the runtimes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    instructions: list[str]
    cores: int
    threads: int
    memory_bytes: int
    system: str
    versions: dict[str, str]


class Benchmark(BaseModel):
    """A benchmark's figures.

    Attributes:
        machine: What the models ran on.
        dataset: Digest of the dataset that the images are from.
        split: Their split.
        images: How many there are; they are used in turn.
        seconds: Time spent measuring each model.
        disturbance: Share of the machine's core time that other processes took meanwhile, 0..1.
        entries: The models by their role, such as ``teacher`` or ``quantized``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    machine: Machine
    dataset: str
    split: Split
    images: int
    seconds: float
    disturbance: float
    entries: dict[str, BenchmarkEntry]

    @property
    def metrics(self) -> dict[str, float]:
        """What matters most of each model, by names such as ``teacher.latency_ms``."""
        return {
            f"{role}.{name}": value
            for role, entry in self.entries.items()
            for name, value in (
                ("latency_ms", entry.end_to_end.p50),
                ("throughput", entry.throughput),
                ("peak_memory_mb", entry.peak_memory_bytes / 1e6),
                ("size_mb", entry.size_bytes / 1e6),
            )
        }


def write_benchmark(folder: Path, benchmark: Benchmark) -> None:
    """Write a benchmark's figures into its artifact."""
    write_text(folder / BENCHMARK_NAME, benchmark.model_dump_json(indent=2) + "\n")


def read_benchmark(folder: Path) -> Benchmark:
    """Read a benchmark's figures from its artifact.

    Raises:
        InputError: The folder is no benchmark artifact.
    """
    return read_record(
        folder,
        BENCHMARK_NAME,
        Benchmark,
        artifact="a benchmark",
        record="benchmark",
        origin="Give the output of benchmark",
        again="Run the benchmark again",
    )
