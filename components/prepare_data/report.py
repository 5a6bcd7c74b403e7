"""What was done to the data, for machines (``report.json``) and for people (a page that needs nothing else)."""

import base64
from collections import Counter
from typing import Literal

import cv2
import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from yolo_distill.components.prepare_data.dataset import SPLITS, DetectionDataset, ImageRecord, Split
from yolo_distill.components.prepare_data.findings import PROBLEMS, Finding, Findings
from yolo_distill.components.shared.curves import inline_png
from yolo_distill.components.shared.files import write_text

mpl.use("Agg")

REPORT_NAME = "report.json"

_SHOWN_FINDINGS = 300
_TILES, _COLUMNS, _TILE_SIDE, _GAP = 24, 6, 220, 4
# Colours that can be told apart on most pictures, BGR.
_COLOURS = [(56, 56, 255), (52, 209, 72), (255, 157, 51), (49, 210, 207), (255, 55, 199), (236, 220, 24), (0, 128, 255)]


class SplitCounts(BaseModel):
    """How much a split holds.

    Attributes:
        images: All images.
        unlabelled: Those of them that nobody has labelled.
        boxes: Labelled boxes.
        boxes_by_class: The same by class name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    unlabelled: int
    boxes: int
    boxes_by_class: dict[str, int]


class PreparationReport(BaseModel):
    """What prepare-data did.

    Attributes:
        source: Where the data came from, without credentials.
        format: Format of the labels there.
        on_error: Whether mistakes in the data stop the step or are dropped.
        seed: Seed of the splits that were drawn.
        val_fraction: Share asked for, 0..1.
        test_fraction: Share asked for, 0..1.
        drawn: Splits that the source does not have and that were drawn.
        splits: What the splits hold.
        findings: Everything that was dropped, changed or ignored, sorted by file.
        origins: File in the source by file in the dataset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    source: str
    format: str
    on_error: Literal["stop", "drop"]
    seed: int
    val_fraction: float
    test_fraction: float
    drawn: list[Split] = Field(default_factory=list)
    splits: dict[Split, SplitCounts] = Field(default_factory=dict)
    findings: list[Finding] = Field(default_factory=list)
    origins: dict[str, str] = Field(default_factory=dict)


def write_report(dataset: DetectionDataset, report: PreparationReport) -> None:
    """Write ``report.json`` into a dataset, with its counts.

    Args:
        dataset: The dataset, which lies in place.
        report: Everything but the counts.
    """
    splits = {split: _counts(dataset, split) for split in SPLITS if dataset.split(split)}
    report = report.model_copy(update={"splits": splits})
    write_text(dataset.root / REPORT_NAME, report.model_dump_json(indent=1) + "\n")


def read_report(dataset: DetectionDataset) -> PreparationReport:
    """Read the report of a dataset."""
    return PreparationReport.model_validate_json((dataset.root / REPORT_NAME).read_text(encoding="utf-8"))


def flat_counts(dataset: DetectionDataset) -> dict[str, float]:
    """Return how many images and boxes each split holds and how often each kind of finding was made, by name."""
    report = read_report(dataset)
    counts: dict[str, float] = {}
    for split, members in report.splits.items():
        counts |= {f"{split}/images": members.images, f"{split}/boxes": members.boxes}
    return counts | {f"found/{kind}": number for kind, number in Findings(report.findings).counts().items()}


def report_page(dataset: DetectionDataset) -> str:
    """Return a self-contained HTML page: counts, what was dropped or changed, box sizes and labelled images."""
    report = read_report(dataset)
    environment = Environment(
        loader=PackageLoader("yolo_distill.components.prepare_data", "."), autoescape=True, trim_blocks=True
    )
    findings = sorted(report.findings, key=lambda finding: finding.kind not in PROBLEMS)
    return environment.get_template("report.html.j2").render(
        report=report,
        dataset=dataset,
        counts=Findings(findings).counts(),
        problems=PROBLEMS,
        findings=findings[:_SHOWN_FINDINGS],
        hidden=len(findings) - len(findings[:_SHOWN_FINDINGS]),
        histogram=inline_png(_histogram(dataset)),
        sheet=_contact_sheet(dataset),
    )


def _counts(dataset: DetectionDataset, split: Split) -> SplitCounts:
    records = dataset.split(split)
    classes = Counter(int(index) for record in records for index in dataset.labels(record)[:, 0])
    return SplitCounts(
        images=len(records),
        unlabelled=sum(not record.labelled for record in records),
        boxes=sum(record.boxes for record in records),
        boxes_by_class={name: classes[index] for index, name in enumerate(dataset.classes)},
    )


def _histogram(dataset: DetectionDataset) -> Figure:
    """Draw how large the boxes are, beside COCO's borders of small, medium and large."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    sides = {split: np.concatenate([[], *(_sides(dataset, r) for r in dataset.split(split))]) for split in SPLITS}
    sides = {split: values for split, values in sides.items() if len(values)}
    every = np.concatenate(list(sides.values()))
    bins = np.geomspace(every.min() / 1.1, every.max() * 1.1, 40)
    axis.hist(list(sides.values()), bins=bins.tolist(), stacked=True, label=list(sides))
    for border in (32, 96):
        axis.axvline(border, color="grey", linestyle="--", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("square root of the box's area in pixels (dashed: small, medium, large in COCO's sense)")
    axis.set_ylabel("boxes")
    axis.legend()
    return figure


def _sides(dataset: DetectionDataset, record: ImageRecord) -> NDArray[np.float64]:
    """Return the square roots of an image's box areas in pixels, float64 [n]."""
    boxes, _ = dataset.boxes(record)
    sides: NDArray[np.float64] = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return sides


def _contact_sheet(dataset: DetectionDataset) -> str:
    """Return labelled images from all splits, evenly chosen, as the ``data:`` address of one JPEG."""
    labelled = [record for record in dataset.manifest.images if record.labelled]
    chosen = labelled[:: -(-len(labelled) // _TILES)]
    tiles = [_tile(dataset, record) for record in chosen]
    rows = []
    for start in range(0, len(tiles), _COLUMNS):
        row = tiles[start : start + _COLUMNS]
        strip = np.full((max(len(tile) for tile in row) + _GAP, _COLUMNS * _TILE_SIDE, 3), 255, np.uint8)
        for column, tile in enumerate(row):
            strip[: tile.shape[0], column * _TILE_SIDE :][:, : tile.shape[1]] = tile
        rows.append(strip)
    sheet = np.concatenate(rows)
    _, data = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _tile(dataset: DetectionDataset, record: ImageRecord) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(dataset.image_path(record)))
    scale = (_TILE_SIDE - _GAP) / max(record.width, record.height)
    size = (max(1, round(record.width * scale)), max(1, round(record.height * scale)))
    tile: NDArray[np.uint8] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    for corners, index in zip(*dataset.boxes(record), strict=True):
        x1, y1, x2, y2 = np.rint(corners * scale).astype(int).tolist()
        colour = _COLOURS[index % len(_COLOURS)]
        cv2.rectangle(tile, (x1, y1), (x2, y2), colour, 1)
        # OpenCV's fonts draw ASCII only.
        name = dataset.classes[index].encode("ascii", "replace").decode()
        cv2.putText(tile, name, (x1 + 1, max(y1 + 9, 9)), cv2.FONT_HERSHEY_SIMPLEX, 0.3, colour, 1, cv2.LINE_AA)
    return tile
