"""Measures a model's robustness without a pipeline."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.status import Status

from yolo_distill.components.evaluate_robustness.evaluate import evaluate_robustness
from yolo_distill.components.evaluate_robustness.robustness import REPORT_NAME, ROBUSTNESS_NAME, RobustnessSettings
from yolo_distill.components.evaluate_robustness.summary import summary
from yolo_distill.components.prepare_data.dataset import MANIFEST_NAME, DetectionDataset
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.shared.errors import InputError
from yolo_distill.pipelines.display import shown_path


def measure_robustness(
    model: Path,
    data: str,
    split: str,
    settings: RobustnessSettings,
    output: Path,
    source: Path | None,
    console: Console,
) -> None:
    """Measure a model and show the table.

    Args:
        model: The model artifact.
        data: A dataset artifact, or what :func:`~yolo_distill.components.prepare_data.prepare.prepare` takes.
        split: The split to measure on.
        settings: What to measure.
        output: Where the robustness artifact appears.
        source: PyTorch model artifact that is attacked in the model's place.
        console: Where to show it.

    Raises:
        InputError: Something given cannot be used.
    """
    if output.exists() and not (output / ROBUSTNESS_NAME).is_file():
        raise InputError(f"--output {output}", "is there already and holds something else", "Name a new folder")
    with (
        TemporaryDirectory() as folder,
        console.status("Reading the data") as status,
        # What the steps print for a pod's log is one changing line here.
        redirect_stdout(_StatusLine(status)),
    ):
        if (Path(data) / MANIFEST_NAME).is_file():
            dataset = DetectionDataset.open(Path(data))
        else:
            dataset = prepare(data, Path(folder) / "dataset", seed=settings.seed)
        robustness = evaluate_robustness(dataset, model, split, settings, output, source)
    table = summary({robustness.model.name: robustness}).markdown()
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Wrote {shown_path(output / REPORT_NAME)}", soft_wrap=True)


class _StatusLine(io.TextIOBase):
    def __init__(self, status: Status) -> None:
        self._status = status

    def write(self, text: str) -> int:
        if line := text.strip():
            self._status.update(line)
        return len(text)
