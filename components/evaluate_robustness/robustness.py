"""The robustness artifact: how accurate a model stays when its images get worse, by chance or by malice.

Layout::

    robustness.json   the figures and what they were measured on
    report.html       the same as a page, with curves
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from yolo_distill.components.evaluate_map.evaluation import EvaluatedModel, EvaluationSettings
from yolo_distill.components.evaluate_robustness.corruptions import CORRUPTIONS, SEVERITIES
from yolo_distill.components.prepare_data.dataset import Split
from yolo_distill.components.shared.errors import InputError, spoken
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.records import read_record

ROBUSTNESS_NAME = "robustness.json"
REPORT_NAME = "report.html"
ALL = "all"

Attack = Literal["noise", "fgsm", "pgd"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)


class RobustnessSettings(BaseModel):
    """What to measure.

    Attributes:
        corruptions: Which corruptions, in the order of COCO-C.
        severities: How severe each, ascending.
        epsilons: Largest change of a pixel by an attack, in steps of 1/255, ascending.
        pgd_steps: Steps of PGD.
        images: How many images of the split to draw; 0 for all.
        seed: Seed of that draw and of everything random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = SEVERITIES
    epsilons: tuple[float, ...] = (1, 2, 4, 8)
    pgd_steps: int = Field(default=10, ge=1)
    images: int = Field(default=100, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("corruptions")
    @classmethod
    def _known_corruptions(cls, names: Sequence[str]) -> tuple[str, ...]:
        unknown = set(names) - set(CORRUPTIONS)
        if unknown:
            raise ValueError(f"there is no {min(unknown)}; known are {', '.join(CORRUPTIONS)}")
        return tuple(name for name in CORRUPTIONS if name in names)

    @field_validator("severities")
    @classmethod
    def _known_severities(cls, values: Sequence[int]) -> tuple[int, ...]:
        if not values or set(values) - set(SEVERITIES):
            raise ValueError("severities are 1 to 5, at least one")
        return tuple(sorted(set(values)))

    @field_validator("epsilons")
    @classmethod
    def _possible_epsilons(cls, values: Sequence[float]) -> tuple[float, ...]:
        if any(not 0 <= value <= 255 for value in values):
            raise ValueError("a pixel changes by 0 to 255")
        return tuple(sorted(set(values)))


def parse_settings(
    corruptions: str, severities: str, epsilons: str, pgd_steps: int, images: int, seed: int
) -> RobustnessSettings:
    """Read settings from the parameters of a step or the options of a command.

    Args:
        corruptions: Names separated by commas, ``all``, or empty for none.
        severities: Numbers separated by commas.
        epsilons: Numbers separated by commas, or empty for no attack.
        pgd_steps: See :class:`RobustnessSettings`.
        images: See :class:`RobustnessSettings`.
        seed: See :class:`RobustnessSettings`.

    Raises:
        InputError: A value cannot be used, or nothing is asked for.
    """
    names = CORRUPTIONS if corruptions.strip() == ALL else _listed(corruptions)
    values = {
        "corruptions": names,
        "severities": _listed(severities),
        "epsilons": _listed(epsilons),
        "pgd_steps": pgd_steps,
        "images": images,
        "seed": seed,
    }
    if not names and not values["epsilons"]:
        raise InputError("corruptions and epsilons", "are both empty", "Ask for at least one of them")
    try:
        return RobustnessSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        given = {"corruptions": corruptions, "severities": severities, "epsilons": epsilons}.get(name, values[name])
        problem = spoken(first["msg"])
        raise InputError(f"{name} {given}", problem, "See the step's README for what it takes") from error


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Accuracy(BaseModel):
    """Mean average precision by the COCO protocol, 0..1.

    Attributes:
        map: mAP50-95.
        map50: mAP50.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    map: float
    map50: float


class CorruptionResult(BaseModel):
    """How accurate a model is on corrupted images.

    Attributes:
        corruption: Which corruption.
        by_severity: Accuracy by severity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corruption: str
    by_severity: dict[int, Accuracy]

    @property
    def mean(self) -> float:
        """mAP50-95, the mean over severities."""
        return _mean([one.map for one in self.by_severity.values()])


class AttackResult(BaseModel):
    """How accurate a model is on attacked images.

    Attributes:
        attack: Which attack, or ``noise``, the control.
        by_epsilon: Accuracy by the largest change of a pixel, in steps of 1/255.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: Attack
    by_epsilon: dict[float, Accuracy]


class AttackSource(BaseModel):
    """The model by whose gradient the attacks were made.

    Attributes:
        name: Its card's name.
        architecture: What it was built from.
        digest: SHA-256 of its file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    digest: str


class Robustness(BaseModel):
    """How accurate a model stays.

    Attributes:
        model: The model.
        dataset: The dataset's digest.
        split: The split.
        images: The images, by their file in the dataset.
        boxes: Labelled boxes in them.
        measured: What was measured.
        settings: How detections were made and counted.
        clean: Accuracy on the images as they are.
        corruptions: Accuracy on corrupted images.
        attacks: Accuracy on attacked images.
        source: The model that was attacked, where there were attacks: the model itself (a white-box attack), or another
            one, whose attacked images were shown to this one (a transfer attack).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    model: EvaluatedModel
    dataset: str
    split: Split
    images: list[str]
    boxes: int
    measured: RobustnessSettings
    settings: EvaluationSettings
    clean: Accuracy
    corruptions: list[CorruptionResult]
    attacks: list[AttackResult]
    source: AttackSource | None

    @property
    def white_box(self) -> bool:
        """Whether the model itself was attacked."""
        return self.source is not None and self.source.digest == self.model.digest

    @property
    def mpc(self) -> float | None:
        """Mean performance under corruption: mAP50-95, the mean over corruptions of that over severities, 0..1."""
        return _mean([one.mean for one in self.corruptions]) if self.corruptions else None

    @property
    def rpc(self) -> float | None:
        """Relative performance under corruption: its share of the clean mAP50-95, if there is any."""
        return self.mpc / self.clean.map if self.mpc is not None and self.clean.map else None

    @property
    def complete(self) -> bool:
        """Whether all corruptions were measured at all severities, so that mPC compares with published figures."""
        return (self.measured.corruptions, self.measured.severities) == (CORRUPTIONS, SEVERITIES)

    def at_severity(self, severity: int) -> float:
        """Return mAP50-95 at a severity, the mean over corruptions."""
        return _mean([one.by_severity[severity].map for one in self.corruptions])

    @property
    def metrics(self) -> dict[str, float]:
        """The main figures by name, 0..1."""
        figures = {"clean.map": self.clean.map, "clean.map50": self.clean.map50}
        figures |= {name: value for name in ("mpc", "rpc") if (value := getattr(self, name)) is not None}
        figures |= {f"corruption.{one.corruption}.map": one.mean for one in self.corruptions}
        for one in self.attacks:
            figures |= {f"{one.attack}.eps{epsilon:g}.map": at.map for epsilon, at in one.by_epsilon.items()}
        return {name: round(value, 6) for name, value in figures.items()}


def write_robustness(folder: Path, robustness: Robustness) -> None:
    """Write the figures into their artifact."""
    write_text(folder / ROBUSTNESS_NAME, robustness.model_dump_json(indent=2) + "\n")


def read_robustness(folder: Path) -> Robustness:
    """Read the figures from their artifact.

    Raises:
        InputError: The folder is no robustness artifact.
    """
    return read_record(
        folder,
        ROBUSTNESS_NAME,
        Robustness,
        artifact="a robustness evaluation",
        record="robustness evaluation",
        origin="Give an evaluate-robustness output",
        again="Evaluate the model again",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
