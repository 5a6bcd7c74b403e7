"""The comparison: what the models cost and what they are worth, side by side.

Layout of the artifact::

    comparison.json   every figure of the table and what follows from them
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from yolo_distill.components.benchmark.results import Benchmark, Machine
from yolo_distill.components.evaluate_map.coco import ClassMetrics
from yolo_distill.components.evaluate_map.evaluation import CONDITIONS, Evaluation, EvaluationSettings
from yolo_distill.components.evaluate_map.paired import Interval
from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.model_card import ModelFormat, Precision
from yolo_distill.components.shared.records import read_record

COMPARISON_NAME = "comparison.json"

Role = Literal["teacher", "plain", "distilled", "openvino", "quantized"]
ROLES: tuple[Role, ...] = get_args(Role)


class ComparedModel(BaseModel):
    """One model's row.

    Attributes:
        role: The part it plays.
        name: The model card's name.
        architecture: What it was built from.
        format: The runtime that ran it.
        precision: Numeric precision.
        digest: SHA-256 of the model file.
        imgsz: Side of the square network input in pixels.
        parameters: Number of weights of the unfused network.
        gflops: Cost of one image in 10^9 floating point operations.
        size_bytes: Size of the model's files.
        map: mAP50-95, 0..1.
        map50: mAP50, 0..1.
        per_class: Average precision by class name.
        latency_ms: Median time of one image from decoded pixels to boxes.
        network_ms: The network's share of it.
        throughput: Images a second.
        peak_memory_bytes: Largest resident memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    name: str
    architecture: str
    format: ModelFormat
    precision: Precision
    digest: str
    imgsz: int
    parameters: int
    gflops: float
    size_bytes: int
    map: float
    map50: float
    per_class: dict[str, ClassMetrics]
    latency_ms: float
    network_ms: float
    throughput: float
    peak_memory_bytes: int


class RoleDifference(BaseModel):
    """What one model is ahead of another, in mAP of -1..1, and how far other images might carry that.

    Attributes:
        role: The one.
        against: The other.
        map: Difference of mAP50-95.
        map50: Difference of mAP50.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    against: Role
    map: Interval
    map50: Interval


class Comparison(BaseModel):
    """Models that were evaluated on the same images and benchmarked on the same machine.

    Attributes:
        dataset: The dataset's digest.
        split: The split that accuracy was measured on.
        images: Labelled images in it.
        boxes: Labelled boxes in it.
        settings: How detections were made and counted.
        machine: What speed was measured on.
        disturbance: Share of the machine that other processes took meanwhile, 0..1.
        models: The models, in the table's order.
        differences: The differences that matter, each with its interval at level 0.95.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    dataset: str
    split: Split
    images: int
    boxes: int
    settings: EvaluationSettings
    machine: Machine
    disturbance: float
    models: list[ComparedModel]
    differences: list[RoleDifference] = []

    def model_of(self, role: Role) -> ComparedModel:
        """Return the model that plays a part."""
        return next(model for model in self.models if model.role == role)

    @property
    def gain(self) -> float:
        """What distillation brought: mAP50-95 of the distilled student less the plain one's, in points of 100."""
        return 100 * (self.model_of("distilled").map - self.model_of("plain").map)

    @property
    def int8_drop(self) -> float:
        """What INT8 cost: mAP50-95 of the OpenVINO model less the INT8 one's, in points of 100."""
        return 100 * (self.model_of("openvino").map - self.model_of("quantized").map)

    def retained(self, model: ComparedModel) -> float | None:
        """Return how much of the teacher's mAP50-95 a model keeps, in per cent; ``None`` if the teacher has none."""
        teacher = self.model_of("teacher").map
        return 100 * model.map / teacher if teacher else None

    def speed_up(self, model: ComparedModel) -> float:
        """Return how many times faster than the teacher a model handles one image, by median latency."""
        return self.model_of("teacher").latency_ms / model.latency_ms

    @property
    def metrics(self) -> dict[str, float]:
        """The main figures by name; mAP 0..1, gains in points of 100."""
        quantized = self.model_of("quantized")
        figures = {f"{model.role}.{name}": getattr(model, name) for model in self.models for name in ("map", "map50")}
        figures |= {
            "distillation_gain_points": self.gain,
            "int8_drop_points": self.int8_drop,
            "int8_speed_up": self.speed_up(quantized),
        }
        for one in self.differences:
            ends = {"low": one.map.low, "high": one.map.high}
            figures |= {f"{one.role}_against_{one.against}_points_{end}": 100 * at for end, at in ends.items()}
        if (retained := self.retained(quantized)) is not None:
            figures["int8_retained_percent"] = retained
        return {name: round(value, 6) for name, value in figures.items()}


def build_comparison(evaluations: Mapping[Role, Evaluation], benchmark: Benchmark) -> Comparison:
    """Put evaluations and a benchmark together.

    Args:
        evaluations: One of each role.
        benchmark: The same models' speed, by the same roles.

    Raises:
        InputError: The evaluations are not of the same images under the same settings, or the benchmark did not measure
            the models that were evaluated.
    """
    _require_comparable(evaluations)
    first = evaluations["teacher"]
    return Comparison(
        dataset=first.dataset,
        split=first.split,
        images=first.images,
        boxes=sum(entry.boxes for entry in first.per_class.values()),
        settings=first.settings,
        machine=benchmark.machine,
        disturbance=benchmark.disturbance,
        models=[_compared(role, evaluations[role], benchmark) for role in ROLES],
    )


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write a comparison into its artifact."""
    write_text(folder / COMPARISON_NAME, comparison.model_dump_json(indent=2) + "\n")


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison from its artifact.

    Raises:
        InputError: The folder is no comparison artifact.
    """
    return read_record(
        folder,
        COMPARISON_NAME,
        Comparison,
        artifact="a comparison",
        record="comparison",
        origin="Give the output of compare",
        again="Compare again",
    )


def _require_comparable(evaluations: Mapping[Role, Evaluation]) -> None:
    """Refuse evaluations that are not of the same images under the same settings."""
    remedy = "Evaluate all models on the same split of the same dataset with the same settings"
    for role, evaluation in evaluations.items():
        for what in CONDITIONS:
            own, expected = getattr(evaluation, what), getattr(evaluations["teacher"], what)
            if own != expected:
                raise InputError(
                    f"evaluation of {role}", f"its {what} is {own}, the teacher's evaluation has {expected}", remedy
                )


def _compared(role: Role, evaluation: Evaluation, benchmark: Benchmark) -> ComparedModel:
    entry = benchmark.entries.get(role)
    if entry is None or entry.digest != evaluation.model.digest:
        raise InputError(f"benchmark of {role}", "is of another model than the evaluation", "Benchmark the same models")
    if evaluation.map is None or evaluation.map50 is None:
        raise InputError(f"evaluation of {role}", "has no mAP", "Evaluate on a split with labelled boxes")
    return ComparedModel(
        role=role,
        **evaluation.model.model_dump(exclude={"lineage"}),
        size_bytes=entry.size_bytes,
        map=evaluation.map,
        map50=evaluation.map50,
        per_class=evaluation.per_class,
        latency_ms=entry.end_to_end.p50,
        network_ms=entry.network.p50,
        throughput=entry.throughput,
        peak_memory_bytes=entry.peak_memory_bytes,
    )
