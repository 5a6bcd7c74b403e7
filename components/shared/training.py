"""Training on replayable views: ultralytics' trainer with our data loading, progress and precision.

Validation, EMA, optimiser, learning-rate schedule, warm-up, gradient clipping and checkpoints stay ultralytics' own.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.nn.parallel import DistributedDataParallel
from ultralytics.data.build import InfiniteDataLoader, seed_worker
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
from ultralytics.utils.torch_utils import init_seeds, unwrap_model

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.batch_norm import separate_batch_norm, synchronise_batch_norm
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.distributed import (
    SharedDetectionLoss,
    local_rank,
    process_count,
    process_count_here,
    process_rank,
    total,
)
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import write_text
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

_HISTORY_NAME = "history.json"

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

    def init_criterion(self) -> Any:
        """Return the loss; of heads with one branch it is shared among the processes that train together."""
        criterion = super().init_criterion()
        return SharedDetectionLoss(self) if hasattr(criterion, "assigner") else criterion


class FirstProcessValidator(DetectionValidator):  # type: ignore[misc]
    """Ultralytics' validator, which looks at all images by itself whoever else trains along."""

    def gather_stats(self) -> None:
        """Wait for nobody: other processes do not validate."""


class ViewTrainer(DetectionTrainer):  # type: ignore[misc]
    """Ultralytics' detection trainer on the replayable views of a dataset artifact.

    Where several processes have joined (:func:`~.distributed.joined_processes`), each takes its part of every batch.
    As views are keyed, batch normalisation is synchronised and the loss is divided by what is in the whole batch, they
    train as one process would with that batch. The first one alone validates and writes.

    Attributes:
        dataset: The dataset artifact.
        schedule: Which view each epoch trains on.
        answers: Where a teacher's answers to the views are read from, or ``None``.
        history: One record an epoch: ``epoch``, the training losses, and validation metrics where they were taken.
    """

    model: Any
    tloss: dict[str, torch.Tensor]
    world_size: int

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
        self._history_file = run_folder / _HISTORY_NAME
        self.history: list[dict[str, float]] = []
        last = last_checkpoint(run_folder)
        self._finished = False
        if last.is_file():
            done = load_checkpoint(last)[1]["epoch"] + 1
            self._finished = done == settings.epochs
            self.history = [r for r in read_epochs(run_folder) if r["epoch"] <= done]
        chosen = device or (str(local_rank()) if torch.cuda.is_available() else "cpu")
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
        cores = max(usable_cores() // process_count_here(), 1)
        self.args.workers = _loader_workers(cores)
        # Ultralytics leaves one core out, which on a machine of two is half of it.
        torch.set_num_threads(cores)
        if process_count() > 1:
            # Ultralytics draws other weights with several processes than with one.
            init_seeds(self.args.seed, deterministic=self.args.deterministic)
        self._validation_interval = max(1, round(settings.epochs / _VALIDATIONS))
        self.add_callback("on_train_start", ViewTrainer._align_sampler)
        self.add_callback("on_train_epoch_end", ViewTrainer._decide_validation)
        self.add_callback("on_train_epoch_end", ViewTrainer._share_losses)

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
        """Return a loader; the training one draws this process's part of the views of the schedule."""
        if mode != "train":
            # The first process validates alone, in the batches that it would have alone.
            return super().get_dataloader(dataset_path, 2 * self.batch_size, -1, mode)
        dataset = self.build_dataset(dataset_path, mode, batch_size)
        sampler = ViewSampler(dataset, self.schedule, self.settings.seed, process_rank(), process_count())
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

    def get_validator(self) -> DetectionValidator:
        """Return a validator for the first process."""
        return FirstProcessValidator(
            self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks
        )

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Validate in the first process; the others learn nothing."""
        if process_rank() > 0:
            return None, None
        processes, self.world_size = self.world_size, 1
        try:
            metrics, fitness = super().validate()
        finally:
            self.world_size = processes
        return metrics, fitness

    def save_model(self) -> bool:
        """Write the checkpoint of an ordinary ultralytics network."""
        # Recorded first, so that a resumed training knows every epoch that its checkpoint has seen.
        self._record_epoch()
        network = self.ema.ema
        network.__class__ = DetectionModel
        separate_batch_norm(network)
        try:
            return bool(super().save_model())
        finally:
            network.__class__ = FastDetectionModel

    def _build_train_pipeline(self) -> None:
        if process_count() > 1:
            # Ultralytics would do so for GPUs of this machine alone.
            self.world_size = process_count()
            synchronise_batch_norm(self.model)
            self.model = DistributedDataParallel(
                self.model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                # A batch without objects leaves branches of the head unused. Statistics are synchronised already.
                find_unused_parameters=True,
                forward_sync_buffers=False,
            )
        super()._build_train_pipeline()

    def final_eval(self) -> None:
        """Skip ultralytics' last validation: the evaluate step measures, and no checkpoint is selected on val."""

    def _align_sampler(self) -> None:
        self.train_loader.sampler.epoch = self.start_epoch

    def _decide_validation(self) -> None:
        self.args.val = (self.epoch + 1) % self._validation_interval == 0 or self.epoch + 1 == self.epochs

    def _share_losses(self) -> None:
        """Take the mean of the epoch's losses over the processes, in place of those of this process's images."""
        if process_count() > 1:
            mean = total(torch.stack([torch.as_tensor(v).float() for v in self.tloss.values()])) / process_count()
            self.tloss = dict(zip(self.tloss, mean, strict=True))

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


class TrainingJob(BaseModel):
    """A training as processes of their own are told of it.

    Attributes:
        trainer_type: What trains.
        dataset: The dataset artifact.
        model: A model YAML or a checkpoint, as ultralytics opens it.
        settings: Length, size, seed and optimiser.
        folder: Where checkpoints and history go.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainer_type: ClassVar[type[ViewTrainer]] = ViewTrainer

    dataset: Path
    model: str
    settings: TrainSettings
    folder: Path

    def trainer(self) -> ViewTrainer:
        """Set the training up, or what an earlier process has left of it."""
        return self.trainer_type(DetectionDataset.open(self.dataset), self.settings, self.model, self.folder)

    def staged(self, stage: Callable[[Path], Path]) -> Self:
        """Return the same training with everything that it reads put elsewhere.

        Args:
            stage: Copies an artifact or file and returns where the copy lies.
        """
        files = {name: stage(value) for name, value in self if name != "folder" and isinstance(value, Path)}
        if Path(self.model).is_file():
            files["model"] = stage(Path(self.model))
        return self.model_copy(update={name: str(path) if name == "model" else path for name, path in files.items()})


class Launcher(Protocol):
    """Has a training done by processes of their own, and returns when its last checkpoint is in its folder."""

    def __call__(self, job: TrainingJob) -> None: ...  # noqa: D102


def last_checkpoint(folder: Path) -> Path:
    """Return where a training keeps its last checkpoint."""
    return folder / "weights" / "last.pt"


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """Return the records of a training's epochs that it has kept in its folder."""
    epochs: list[dict[str, float]] = json.loads((folder / _HISTORY_NAME).read_text(encoding="utf-8"))
    return epochs


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


def _to_float32(outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: _to_float32(value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_to_float32(value) for value in outputs)
    return outputs


def _loader_workers(cores: int) -> int:
    """Return how many loader processes pay off: none on few cores, where they take time from the network."""
    return 0 if cores <= 2 else min(8, cores // 2)
