"""How fast OpenVINO runs our models: against its own benchmark_app, FP32 against INT8, and both against PyTorch.

For each model, arms take turns, a slice of seconds each, there and back again: what the benchmark step measures as
throughput of the PyTorch, OpenVINO FP32 and OpenVINO INT8 model, and what OpenVINO's ``benchmark_app`` measures of the
same OpenVINO files with the same hint, threads and type of computation. A ratio is the median of those of the rounds.

FP32 means that OpenVINO computes in float32. Left to itself, it computes in bfloat16 on processors that can; that is an
arm of its own. On processors with AMX the INT8 model is measured with and without it, too: for small networks it costs
more than it brings, and models are opened without it then. Which kernels run the convolutions is written beside the
figures.

    python benchmarks/openvino_speed.py --dataset runs/accuracy/dataset --models runs/accuracy/teacher
"""

import json
import multiprocessing as mp
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yolo_distill.components.shared.ultralytics_env

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401

# isort: split
import openvino
import typer
from converted import exported, quantized
from rich.console import Console
from rich.table import Table

from yolo_distill.components.benchmark.benchmark import ModelProcess
from yolo_distill.components.benchmark.machine import describe_machine
from yolo_distill.components.evaluate_map.evaluate import evaluate
from yolo_distill.components.evaluate_map.evaluation import read_evaluation
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.detector.instructions import VARIABLE, WITHOUT_AMX, suited_instructions
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.model_card import read_card

IMAGES, BATCH = 32, 8
SPLITS = ("val", "test")
# Openvino's own script, kept from reporting its use over the network.
BENCHMARK_APP = (
    "import yolo_distill.components.shared.detector.openvino_env; "
    "from openvino.tools.benchmark.main import main; main()"
)


@dataclass(frozen=True)
class Arm:
    """One way to run a model.

    Attributes:
        model: Which of the model's artifacts: ``pytorch``, ``openvino`` or ``int8``.
        tool: What measures it: ``ours`` or ``benchmark_app``.
        precision: The type of computation that OpenVINO is told, ``None`` to leave it the choice; ours is always f32.
        environment: Variables of its process; benchmark_app gets those that ours chooses.
    """

    model: str
    tool: str = "ours"
    precision: str | None = "f32"
    environment: Mapping[str, str] = field(default_factory=dict)


ARMS = {
    "PyTorch FP32": Arm("pytorch"),
    "OpenVINO FP32": Arm("openvino"),
    "OpenVINO INT8": Arm("int8"),
    "benchmark_app FP32": Arm("openvino", "benchmark_app"),
    "benchmark_app INT8": Arm("int8", "benchmark_app"),
    "benchmark_app, type left to OpenVINO": Arm("openvino", "benchmark_app", None),
}
AMX_ARMS = {
    "OpenVINO INT8 with AMX": Arm("int8", environment={VARIABLE: "DEFAULT"}),
    "OpenVINO INT8 without AMX": Arm("int8", environment={VARIABLE: WITHOUT_AMX}),
}
RATIOS = {
    "ours / benchmark_app, FP32": ("OpenVINO FP32", "benchmark_app FP32"),
    "ours / benchmark_app, INT8": ("OpenVINO INT8", "benchmark_app INT8"),
    "INT8 / FP32": ("OpenVINO INT8", "OpenVINO FP32"),
    "INT8 with AMX / FP32": ("OpenVINO INT8 with AMX", "OpenVINO FP32"),
    "INT8 without AMX / FP32": ("OpenVINO INT8 without AMX", "OpenVINO FP32"),
    "INT8 / PyTorch FP32": ("OpenVINO INT8", "PyTorch FP32"),
}


def main(
    dataset: Annotated[Path, typer.Option(help="Dataset artifact that the models were trained on.")],
    models: Annotated[str, typer.Option(help="PyTorch model artifacts, comma-separated.")],
    rounds: Annotated[int, typer.Option(help="Slices of each arm.")] = 7,
    seconds: Annotated[int, typer.Option(help="Length of a slice.")] = 5,
    work: Annotated[Path | None, typer.Option(help="Folder of converted models, which are used again.")] = None,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = (
        Path(__file__).parent / "results/openvino-speed.json"
    ),
) -> None:
    """Convert, evaluate and measure every model."""
    data = DetectionDataset.open(dataset)
    folder = work or Path(tempfile.mkdtemp(prefix="bench-openvino-"))
    machine = describe_machine(usable_cores())
    arms = ARMS | (AMX_ARMS if "amx_int8" in machine.instructions else {})
    result: dict[str, Any] = {
        "machine": machine.model_dump(),
        "settings": {"rounds": rounds, "seconds": seconds, "batch": BATCH, "hint": "THROUGHPUT"},
        "models": {},
    }
    for number, path in enumerate(map(Path, models.split(","))):
        artifacts = converted(data, path, folder / f"model-{number}")
        accuracy = accuracies(data, artifacts, folder / f"model-{number}")
        speed = take_turns(data, artifacts, arms, rounds, seconds)
        card = read_card(path)
        result["models"][card.architecture] = {
            **card.model_dump(include={"imgsz", "parameters", "gflops"}),
            "map": accuracy,
            "drop_points": {split: 100 * (each["openvino"] - each["int8"]) for split, each in accuracy.items()},
            **speed,
            "ratios": ratios(speed["images_per_second"]),
            "kernels": kernels(artifacts),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(result, indent=1) + "\n")
    show(result)


def converted(data: DetectionDataset, model: Path, folder: Path) -> dict[str, Path]:
    """Return a model's artifacts by format, made with the project's own settings unless they are there."""
    exported(data, model, folder)
    return {"pytorch": model, "openvino": folder / "openvino", "int8": quantized(data, folder)}


def accuracies(data: DetectionDataset, artifacts: Mapping[str, Path], folder: Path) -> dict[str, dict[str, float]]:
    """Return mAP50-95 (0..1) of every artifact by split."""

    def accuracy(name: str, split: str) -> float:
        target = folder / "evaluations" / f"{name}-{split}"
        if not target.is_dir():
            evaluate(data, artifacts[name], split, target)
        return read_evaluation(target).map or 0.0

    return {split: {name: accuracy(name, split) for name in artifacts} for split in SPLITS}


def take_turns(
    data: DetectionDataset, artifacts: Mapping[str, Path], arms: Mapping[str, Arm], rounds: int, seconds: int
) -> dict[str, Any]:
    """Measure all arms in turns.

    Returns:
        Images a second of every round, their median, and how the network was kept busy, by arm.
    """
    threads = usable_cores()
    images = [data.image_path(record) for record in data.split("val")[:IMAGES]]
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    modes: dict[str, str] = {}
    with ExitStack() as stack:
        processes: dict[str, ModelProcess] = {}
        for name, arm in arms.items():
            if arm.tool == "ours":
                with environment(arm.environment):
                    processes[name] = stack.enter_context(ModelProcess(artifacts[arm.model], threads, BATCH, images))
                processes[name].wait_ready()
        for turn in range(rounds):
            for name in list(arms)[:: 1 if turn % 2 == 0 else -1]:
                arm = arms[name]
                if arm.tool == "ours":
                    answer = processes[name].measure("throughput", seconds)
                    speed, modes[name] = answer["throughput"], answer["mode"]
                else:
                    speed, modes[name] = benchmark_app(artifacts[arm.model] / "model.xml", arm, threads, seconds)
                speeds[name].append(speed)
                print(f"round {turn} {name}: {speed:.1f} images/s, {modes[name]}", flush=True)
    return {
        "images_per_second": speeds,
        "median_images_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "kept_busy_by": modes,
    }


def benchmark_app(model: Path, arm: Arm, threads: int, seconds: int) -> tuple[float, str]:
    """Return what OpenVINO's benchmark_app measures: images a second, and how it kept the network busy."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": threads}
    if arm.precision:
        settings["INFERENCE_PRECISION_HINT"] = arm.precision
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"CPU": settings}))
        # Without -ip, it would feed bytes and convert them in the graph, where ours feeds float32.
        options = ["-m", str(model), "-d", "CPU", "-ip", "f32", "-t", str(seconds), "-load_config", str(config)]
        options += ["-json_stats", "-report_type", "no_counters", "-report_folder", folder]
        # As in the arms of ours; what is left to OpenVINO is left to it in full.
        with suited_instructions(read_card(model.parent).gflops) if arm.precision else nullcontext():
            subprocess.run([sys.executable, "-c", BENCHMARK_APP, *options], stdout=subprocess.DEVNULL, check=True)
        report = json.loads((Path(folder) / "benchmark_report.json").read_text())
    requests = report["configuration_setup"]["number of parallel infer requests"]
    return float(report["execution_results"]["throughput"]), f"{requests} parallel requests"


def kernels(artifacts: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """Return which kernels OpenVINO chooses for the convolutions, and how many of each, by model and type."""
    wanted = {"FP32": ("openvino", "f32"), "type left to OpenVINO": ("openvino", None), "INT8": ("int8", "f32")}
    found = {}
    for label, (name, precision) in wanted.items():
        # A process of its own, because OpenVINO chooses instructions once.
        with ProcessPoolExecutor(1, mp.get_context("spawn")) as process:
            found[label] = process.submit(convolution_kernels, artifacts[name], precision).result()
    return found


def convolution_kernels(artifact: Path, precision: str | None) -> dict[str, int]:
    """Return how many convolutions each kernel runs."""
    card = read_card(artifact)
    settings = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    with suited_instructions(card.gflops) if precision else nullcontext():
        compiled = openvino.Core().compile_model(artifact / card.file, "CPU", settings)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return dict(
        Counter(node["primitiveType"].astype(str) for node in nodes if node["layerType"].astype(str) == "Convolution")
    )


def ratios(speeds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median over rounds of each ratio whose arms were measured."""
    return {
        label: statistics.median(a / b for a, b in zip(speeds[above], speeds[below], strict=True))
        for label, (above, below) in RATIOS.items()
        if above in speeds
    }


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that the block starts."""
    before = dict(os.environ)
    os.environ.update(variables)
    yield
    os.environ.clear()
    os.environ.update(before)


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    for name, model in result["models"].items():
        table = Table("arm", "images/s, median", "kept busy by", title=f"{name} at {model['imgsz']} px")
        for arm, speed in model["median_images_per_second"].items():
            table.add_row(arm, f"{speed:.1f}", model["kept_busy_by"][arm])
        Console().print(table)
        table = Table("ratio", "median over rounds")
        for label, value in model["ratios"].items():
            table.add_row(label, f"{value:.3f}")
        Console().print(table)
        drops = ", ".join(f"{split} {points:+.2f}" for split, points in model["drop_points"].items())
        Console().print(f"INT8 loses, in points of mAP50-95: {drops}")
        Console().print(f"Convolutions: {model['kernels']}")


if __name__ == "__main__":
    typer.run(main)
