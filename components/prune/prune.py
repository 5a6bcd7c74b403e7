"""Makes a narrower model of a trained one."""

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yolo_distill.components.shared.ultralytics_env  # noqa: F401

import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.prune.architecture import (
    build,
    convolved_positions,
    count_flops,
    count_parameters,
    explicit_yaml,
    require_prunable,
    skeleton,
    stated_widths,
    width_steps,
)
from yolo_distill.components.prune.channels import IMPORTANCES, ChannelGraph, kept_widths, place_scores
from yolo_distill.components.prune.search import UnreachableTargetError, Widths, choose_widths, possible_cuts
from yolo_distill.components.prune.split import merged_weights, split_network
from yolo_distill.components.shared.detector import require_classes
from yolo_distill.components.shared.detector.pytorch_runtime import load_network
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.model_card import ModelCard, read_card
from yolo_distill.components.shared.progress import report_progress
from yolo_distill.components.shared.views import ManifestDataset
from yolo_distill.components.train_teacher.checkpoint import write_checkpoint_artifact

_GRADIENT_BATCH = 8


@dataclass(frozen=True)
class Target:
    """How much of a network to keep.

    Attributes:
        measure: What is counted, ``flops`` or ``parameters``.
        kept: The part of it to keep, in 0..1.
    """

    measure: str
    kept: float


@dataclass(frozen=True)
class Pruned:
    """A narrower model and how much of the original it has.

    Attributes:
        card: The card of its model artifact.
        flops: The part of the convolutions' floating point operations that is left, in 0..1.
        parameters: The part of the weights that is left, in 0..1.
    """

    card: ModelCard
    flops: float
    parameters: float


def prune(
    model_folder: Path,
    output: Path,
    target: Target,
    *,
    importance: str = "group_l2",
    max_ratio: float = 0.75,
    dataset: DetectionDataset | None = None,
    images: int = 64,
    seed: int = 0,
) -> Pruned:
    """Remove the channels of a model that are worth the least, all over the network.

    Args:
        model_folder: A PyTorch model artifact of a YOLOv8.
        output: Where the narrower model's artifact appears.
        target: How much of it to keep.
        importance: How channels are valued: ``group_l2`` by the squared size of all weights that go with a channel,
            ``bn_scale`` by its batch norm's scale, ``group_taylor`` by what the loss would change without them.
        max_ratio: Largest part of a layer's channels that may go, in 0..1.
        dataset: Training images for ``group_taylor``.
        images: How many of them to use; all of a smaller split.
        seed: Seed of their draw.

    Returns:
        The narrower model; its head has the same levels, classes and bins.

    Raises:
        InputError: The model is not a YOLOv8 in PyTorch with the Detect head, an option is out of range, the data do
            not fit, or the target cannot be reached.
    """
    card = read_card(model_folder)
    if (card.format, card.precision) != ("pytorch", "fp32"):
        raise InputError(
            model_folder, f"is an {card.precision} model in {card.format} format", "Give an fp32 PyTorch model artifact"
        )
    _require_options(importance, max_ratio)
    network = load_network(model_folder / card.file)
    require_prunable(model_folder, network)
    split = split_network(network)
    lineage = {**card.lineage, "parent": card.digest, "importance": importance}
    if importance == "group_taylor":
        data = _require_images(model_folder, card, dataset, images)
        accumulate_gradients(split, data, card.imgsz, images, seed)
        lineage |= {"pruning_dataset": data.digest, "pruning_images": str(images), "pruning_seed": str(seed)}
    graph = ChannelGraph(split, importance)
    positions = convolved_positions(network, card.imgsz)
    widths = _search(network, graph, target, max_ratio, positions)
    described = {**explicit_yaml(network, widths), "yaml_file": f"{Path(card.architecture).stem}-pruned.yaml"}
    graph.shrink(kept_widths(split, skeleton(described)))
    narrow = build(described, merged_weights(split))
    narrow.names = network.names
    flops = count_flops(narrow.model, positions) / count_flops(network.model, positions)
    parameters = count_parameters(narrow.model) / count_parameters(network.model)
    lineage |= {
        f"keep_{target.measure}": str(target.kept),
        "kept_flops": f"{flops:.4f}",
        "kept_parameters": f"{parameters:.4f}",
    }
    return Pruned(_write(narrow, output, card, lineage), flops, parameters)


def pruning_target(keep_flops: float, keep_parameters: float) -> Target:
    """Check what a user asked to keep.

    Args:
        keep_flops: Part of the floating point operations, in 0..1, or 0.
        keep_parameters: Part of the weights, in 0..1, or 0.

    Raises:
        InputError: Both or none are given, or one is out of range.
    """
    given = {name: kept for name, kept in (("flops", keep_flops), ("parameters", keep_parameters)) if kept != 0}
    if len(given) != 1:
        raise InputError(
            f"keep_flops={keep_flops}, keep_parameters={keep_parameters}",
            "both are given" if given else "none is given",
            "Give one of them and 0 for the other",
        )
    ((measure, kept),) = given.items()
    if not 0 < kept < 1:
        raise InputError(f"keep_{measure}={kept}", "is not between 0 and 1", "Give the part to keep, such as 0.5")
    return Target(measure, kept)


def accumulate_gradients(
    network: DetectionModel, dataset: DetectionDataset, imgsz: int, images: int, seed: int
) -> None:
    """Leave the gradients of the detection loss on a network's weights, summed over training images.

    Args:
        network: A network in evaluation mode whose weights take gradients.
        dataset: The dataset artifact.
        imgsz: Side of the square input in pixels.
        images: How many training images to draw; all of a smaller split.
        seed: Seed of the draw.
    """
    # The loss reads its gains there.
    network.args = get_cfg()
    samples = ManifestDataset(dataset, "train", imgsz=imgsz, augment=False, rect=False, hyp=network.args)
    drawn = random.Random(seed).sample(range(len(samples)), min(images, len(samples)))
    for start in range(0, len(drawn), _GRADIENT_BATCH):
        batch = samples.collate_fn([samples[index] for index in drawn[start : start + _GRADIENT_BATCH]])
        batch["img"] = batch["img"].float() / 255
        loss, _ = network.loss(batch)
        loss.sum().backward()
        report_progress(min(start + _GRADIENT_BATCH, len(drawn)), len(drawn), "image", "gradients")
    network.criterion = None


def _search(
    network: DetectionModel, graph: ChannelGraph, target: Target, max_ratio: float, positions: Mapping[str, int]
) -> Widths:
    def cost(layers: nn.Module) -> int:
        return count_flops(layers, positions) if target.measure == "flops" else count_parameters(layers)

    steps, whole = width_steps(network), cost(network.model)
    cuts = [
        cut
        for place, scores in place_scores(graph).items()
        for cut in possible_cuts(place, scores.tolist(), steps[place], max_ratio)
    ]
    try:
        return choose_widths(
            stated_widths(network),
            cuts,
            lambda widths: cost(skeleton(explicit_yaml(network, widths))) / whole,
            target.kept,
        )
    except UnreachableTargetError as error:
        raise InputError(
            f"keep_{target.measure}={target.kept}",
            f"cannot be reached: the closest is {error.reached:.3f} with max_ratio={max_ratio}",
            "Keep more, raise max_ratio, or choose a smaller model to start from",
        ) from error


def _write(network: DetectionModel, output: Path, parent: ModelCard, lineage: Mapping[str, str]) -> ModelCard:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "pruned.pt"
        network.args = {"task": "detect", "imgsz": parent.imgsz}
        torch.save({"model": network, "ema": None, "train_args": network.args, "epoch": -1}, checkpoint)
        return write_checkpoint_artifact(
            output,
            checkpoint,
            name=f"{parent.name}-pruned",
            imgsz=parent.imgsz,
            architecture=network.yaml["yaml_file"],
            lineage=lineage,
        )


def _require_options(importance: str, max_ratio: float) -> None:
    if importance not in IMPORTANCES:
        raise InputError(f"importance={importance}", "is not known", f"Choose one of {', '.join(IMPORTANCES)}")
    if not 0 < max_ratio < 1:
        raise InputError(
            f"max_ratio={max_ratio}", "is not between 0 and 1", "Give a part of the channels, such as 0.75"
        )


def _require_images(
    model_folder: Path, card: ModelCard, dataset: DetectionDataset | None, images: int
) -> DetectionDataset:
    if dataset is None:
        raise InputError("importance=group_taylor", "needs training images", "Give a dataset artifact")
    require_classes(model_folder, card, dataset.classes)
    if images < 1:
        raise InputError(f"images={images}", "is less than 1", "Choose at least 1, some dozens are usual")
    if not dataset.split("train"):
        raise InputError(dataset.root, "its train split is empty", "Prepare the data with training images")
    return dataset
