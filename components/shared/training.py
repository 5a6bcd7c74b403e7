"""Training on replayable views: ultralytics' trainer with our data loading, progress and precision.

Validation, EMA, optimiser, learning-rate schedule, warm-up, gradient clipping and checkpoints stay ultralytics' own.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ultralytics.data.build import InfiniteDataLoader, seed_worker
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils.torch_utils import unwrap_model

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
from yolo_distill.components.shared.model_card import ModelCard
from yolo_distill.components.shared.precision import fast_autocast_dtype
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.views import (
    AnswerSource,
    Augmentation,
    ManifestDataset,
    SoftBoxes,
    ViewDataset,
    ViewSampler,
    ViewSchedule,
    parse_augmentation,
)

# At most this many validations a training: enough for a curve, few enough to cost little.
_VALIDATIONS = 10


class TrainSettings(BaseModel):
    """What every training of the pipeline is told.

    Attributes:
        epochs: Passes over the training split.
        augmentation: How training images are varied, and the side of the square input.
        batch: Images a step; every step updates the weights.
        seed: Seed of initial weights and image order.
        close_mosaic: How many epochs at the end use unmixed images; at most half of the epochs.
        optimizer: An optimiser that ultralytics knows. ``auto`` would ignore ``lr0``.
        lr0: Learning rate after warm-up.
        lrf: Final learning rate as a fraction of ``lr0``, reached along a cosine.
        weight_decay: L2 penalty of the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1)
    augmentation: Augmentation
    batch: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    close_mosaic: int = Field(default=10, ge=0)
    optimizer: str = "AdamW"
    lr0: float = Field(default=0.002, gt=0)
    lrf: float = Field(default=0.01, gt=0, le=1)
    weight_decay: float = Field(default=0.0005, ge=0)

    @property
    def imgsz(self) -> int:
        """Side of the square input in pixels."""
        return self.augmentation.imgsz

    @property
    def closing_epochs(self) -> int:
        """Epochs at the end without mosaic: ``close_mosaic``, but never more than half of a short training."""
        return min(self.close_mosaic, self.epochs // 2)


class FastDetectionModel(DetectionModel):  # type: ignore[misc]
    """A detection network that makes good use of a CPU: bfloat16 where the processor has it, and channels-last.

    The loss is computed in float32. Ultralytics' own mixed precision is for GPUs only. Checkpoints never hold this
    class: :class:`ViewTrainer` saves the stock ``DetectionModel``.
    """

    def predict(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the network under autocast where that pays and return float32 outputs."""
        dtype = fast_autocast_dtype(x.device)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        if not self.training or x.device.type != "cpu" or dtype is torch.float32:
            return super().predict(x, *args, **kwargs)
        with torch.autocast("cpu", dtype=dtype):
            outputs = super().predict(x, *args, **kwargs)
        return _to_float32(outputs)


class ViewTrainer(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' detection trainer on the replayable views of a dataset artifact.

    Attributes:
        dataset: The dataset artifact.
        schedule: Which view each epoch trains on.
        answers: Where a teacher's answers to the views are read from, or ``None``.
        history: One record an epoch: ``epoch``, the training losses, and validation metrics where they were taken.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        settings: TrainSettings,
        model: str,
        run_folder: Path,
        *,
        schedule: ViewSchedule | None = None,
        answers: AnswerSource | SoftBoxes | None = None,
        device: str | None = None,
    ) -> None:
        """Set up a training.

        Args:
            dataset: The dataset artifact.
            settings: Length, size, seed and optimiser.
            model: A model YAML or a checkpoint.
            run_folder: Where ultralytics writes checkpoints and logs.
            schedule: Which view each epoch trains on; a fresh one every epoch when not given.
            answers: Where a teacher's answers to the views come from, or its boxes in the original images.
            device: What ultralytics takes; a GPU when there is one.
        """
        self.dataset = dataset
        self.settings = settings
        self.schedule = schedule or ViewSchedule(settings.epochs, settings.closing_epochs)
        self.answers = answers
        self._history_file = run_folder / "history.json"
        self.history: list[dict[str, float]] = []
        last = run_folder / "weights" / "last.pt"
        self._finished = False
        if last.is_file():
            done = load_checkpoint(last)[1]["epoch"] + 1
            self._finished = done == settings.epochs
            self.history = [r for r in json.loads(self._history_file.read_text()) if r["epoch"] <= done]
        chosen = device or ("0" if torch.cuda.is_available() else "cpu")
        super().__init__(
            overrides={
                **settings.augmentation.model_dump(),
                "task": "detect",
                "model": str(last) if last.is_file() else model,
                "resume": str(last) if last.is_file() else False,
                "data": str(dataset.data_yaml),
                "epochs": settings.epochs,
                "batch": settings.batch,
                "nbs": settings.batch,
                "seed": settings.seed,
                "optimizer": settings.optimizer,
                "lr0": settings.lr0,
                "lrf": settings.lrf,
                "weight_decay": settings.weight_decay,
                "cos_lr": True,
                "warmup_epochs": min(3.0, settings.epochs / 10),
                "warmup_bias_lr": settings.lr0,
                # The schedule of views closes the mosaic, so that loaders need no reset.
                "close_mosaic": 0,
                "patience": 0,
                "plots": False,
                "amp": "bf16"
                if chosen != "cpu" and fast_autocast_dtype(torch.device("cuda")) is torch.bfloat16
                else False,
                "device": chosen,
                "project": str(run_folder.parent),
                "name": run_folder.name,
                "exist_ok": True,
            }
        )
        self.args.workers = _loader_workers()
        # Ultralytics leaves one core out, which on a machine of two is half of it.
        torch.set_num_threads(usable_cores())
        self._validation_interval = max(1, round(settings.epochs / _VALIDATIONS))
        self.add_callback("on_train_start", ViewTrainer._align_sampler)
        self.add_callback("on_train_epoch_end", ViewTrainer._decide_validation)

    def train(self) -> None:
        """Train, from the last finished epoch when an earlier call was cut off."""
        if not self._finished:
            super().train()

    def get_dataset(self) -> dict[str, Any]:
        """Describe the dataset artifact as ultralytics wants it."""
        images = self.dataset.root / "images"
        return {
            "yaml_file": str(self.dataset.data_yaml),
            "path": self.dataset.root,
            "train": str(images / "train"),
            "val": str(images / "val"),
            "names": dict(enumerate(self.dataset.classes)),
            "nc": len(self.dataset.classes),
            "channels": 3,
        }

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> ManifestDataset:
        """Open the split that a loader draws from."""
        if mode == "train":
            return ViewDataset(self.dataset, self.settings.augmentation, self.answers)
        return ManifestDataset(
            self.dataset,
            "val",
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=False,
            hyp=self.args,
            rect=True,
            stride=max(int(unwrap_model(self.model).stride.max()), 32),
            pad=0.5,
        )

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> InfiniteDataLoader:
        """Return a loader; the training one draws the views of the schedule."""
        if mode != "train":
            return super().get_dataloader(dataset_path, batch_size, rank, mode)
        dataset = self.build_dataset(dataset_path, mode, batch_size)
        sampler = ViewSampler(dataset, self.schedule, self.settings.seed, max(rank, 0), max(self.world_size, 1))
        workers = self.args.workers
        return InfiniteDataLoader(
            dataset=dataset,
            batch_size=min(batch_size, len(sampler)),
            sampler=sampler,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self.device.type == "cuda",
            collate_fn=dataset.collate_fn,
            worker_init_fn=seed_worker,
        )

    def get_model(
        self, cfg: str | dict[str, Any] | None = None, weights: torch.nn.Module | None = None, verbose: bool = True
    ) -> DetectionModel:
        """Build the network, with the weights of a checkpoint where one was given."""
        network = FastDetectionModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=False)
        network = self.set_model_names_for_load(network)
        if weights is not None:
            network.load(weights)
        # Convolutions on CPUs read neighbouring channels together.
        return network.to(memory_format=torch.channels_last) if self.device.type == "cpu" else network

    def save_model(self) -> bool:
        """Write the checkpoint of an ordinary ultralytics network."""
        # Recorded first, so that a resumed training knows every epoch that its checkpoint has seen.
        self._record_epoch()
        network = self.ema.ema
        network.__class__ = DetectionModel
        try:
            return bool(super().save_model())
        finally:
            network.__class__ = FastDetectionModel

    def final_eval(self) -> None:
        """Skip ultralytics' last validation: the evaluate step measures, and no checkpoint is selected on val."""

    def _align_sampler(self) -> None:
        self.train_loader.sampler.epoch = self.start_epoch

    def _decide_validation(self) -> None:
        self.args.val = (self.epoch + 1) % self._validation_interval == 0 or self.epoch + 1 == self.epochs

    def _record_epoch(self) -> None:
        record = {"epoch": float(self.epoch + 1), **self.label_loss_items(self.tloss)}
        if self.args.val:
            # Ultralytics marks box metrics with "(B)", which is no legal name of a metric in MLflow.
            record |= {name.removesuffix("(B)"): float(v) for name, v in self.metrics.items() if "metrics/" in name}
        # An epoch that ultralytics repeats after a NaN replaces its first record.
        self.history = [*(r for r in self.history if r["epoch"] != record["epoch"]), record]
        write_text(self._history_file, json.dumps(self.history))
        note = f"loss {sum(float(v) for v in self.tloss.values()):.3f}"
        if "metrics/mAP50-95" in record:
            note += f", val mAP50-95 {record['metrics/mAP50-95']:.3f}"
        report_progress(self.epoch + 1, self.epochs, "epoch", note)


def resolve_model(model: str, shipped: Path | None = None) -> str:
    """Find the model that a user named.

    Args:
        model: A stock model YAML by name (``yolov8n.yaml``), a shipped one, or the path of a ``.yaml`` or ``.pt`` file.
        shipped: Folder of the model YAMLs that come with a step.

    Returns:
        What ultralytics opens.

    Raises:
        InputError: There is no such model.
    """
    if Path(model).is_file() and Path(model).suffix in {".pt", ".yaml", ".yml"}:
        return model
    if shipped is not None and (shipped / Path(model).name).is_file():
        return str(shipped / Path(model).name)
    known = "a stock model such as yolov8n.yaml, or the path of a .yaml or .pt file"
    if Path(model).suffix not in {".yaml", ".yml"}:
        raise InputError(model, "there is no such model file", f"Give {known}")
    try:
        yaml_model_load(model)
    except FileNotFoundError as error:
        raise InputError(model, "there is no such model", f"Give {known}") from error
    return model


@contextmanager
def training_folder(work_root: Path | None, target: Path, identity: object) -> Iterator[Path]:
    """Provide the folder that a training keeps its checkpoints in until it is finished.

    Args:
        work_root: Folder that outlives a killed task; the same training finds its checkpoints there and resumes.
            Without it they lie beside the result and are lost with the task.
        target: Where the result goes.
        identity: Everything that tells this training from others, as JSON data.

    Yields:
        The folder, which is removed when the block ends well.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = work_root / "training" / key if work_root else target.with_name(f"{target.name}.training")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


def train_settings(*, imgsz: int, augmentation: str = "", **values: int | float | str) -> TrainSettings:
    """Check what a user asked of a training.

    Args:
        imgsz: Side of the square input in pixels.
        augmentation: Changes to ultralytics' defaults, such as ``fliplr=0,degrees=10``.
        **values: The other fields of :class:`TrainSettings`.

    Raises:
        InputError: A value is out of range.
    """
    try:
        return TrainSettings.model_validate({**values, "augmentation": parse_augmentation(imgsz, augmentation)})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{name}={first['input']!r}", first["msg"], f"Give another {name}") from error


def last_metrics(card: ModelCard, history: list[dict[str, float]]) -> dict[str, float]:
    """Return what a training's KFP metrics show: the network's cost and its last validation."""
    metrics = {"parameters": float(card.parameters), "gflops": card.gflops}
    for record in history:
        metrics |= {name.partition("/")[2]: v for name, v in record.items() if "mAP" in name}
    return metrics


def _to_float32(outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _to_float32(value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_to_float32(value) for value in outputs)
    return outputs


def _loader_workers() -> int:
    """Return how many loader processes pay off: none on few cores, where they take time from the network."""
    cores = usable_cores()
    return 0 if cores <= 2 else min(8, cores // 2)
