"""8-bit OpenVINO models, by NNCF's post-training quantisation."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yolo_distill.components.shared.detector.openvino_env  # noqa: F401  openvino reports home when imported

# isort: split
import nncf
import numpy as np
import openvino

from yolo_distill.components.evaluate_map.coco import coco_metrics
from yolo_distill.components.evaluate_map.evaluate import coco_ground_truth, coco_results
from yolo_distill.components.prepare_data.dataset import DetectionDataset, ImageRecord
from yolo_distill.components.quantize.calibration import calibration_inputs
from yolo_distill.components.quantize.tail import decoding_tail, is_learned_convolution
from yolo_distill.components.shared.detector import detect, read_image
from yolo_distill.components.shared.detector.letterbox import network_input
from yolo_distill.components.shared.detector.network import NetworkDetector, Signature
from yolo_distill.components.shared.model_card import ModelCard
from yolo_distill.components.shared.progress import report_progress

# Images by which layers are ranked: enough to tell which one harms, each of some sixty layers being tried on them.
_RANKING_IMAGES = 100


def quantize_openvino(
    folder: Path, card: ModelCard, dataset: DetectionDataset, records: Sequence[ImageRecord]
) -> openvino.Model:
    """Quantise every learned convolution.

    Args:
        folder: The FP32 OpenVINO model artifact.
        card: Its card.
        dataset: The dataset artifact.
        records: The calibration images.
    """
    model = openvino.Core().read_model(folder / card.file)
    return nncf.quantize(model, **nncf_settings(model, card, dataset, records))


def quantize_with_accuracy(
    folder: Path,
    card: ModelCard,
    dataset: DetectionDataset,
    records: Sequence[ImageRecord],
    validation: Sequence[ImageRecord],
    max_drop: float,
) -> tuple[openvino.Model, float]:
    """Quantise, and return those layers to floating point that cost most mAP, until few enough points are lost.

    Args:
        folder: The FP32 OpenVINO model artifact.
        card: Its card.
        dataset: The dataset artifact.
        records: The calibration images.
        validation: Labelled images to measure mAP on.
        max_drop: Points of mAP50-95 (0..100) that may be lost.

    Returns:
        The model, and the points that it loses; more than ``max_drop`` if no choice of layers is good enough.
    """
    model = openvino.Core().read_model(folder / card.file)
    validator = _Validator(dataset, card)
    quantized = nncf.quantize_with_accuracy_control(
        model,
        validation_dataset=nncf.Dataset(list(validation)),
        validation_fn=validator,
        max_drop=max_drop / 100,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=_RANKING_IMAGES, num_ranking_workers=1
        ),
        **nncf_settings(model, card, dataset, records),
    )
    before, after = (validator(_compiled(each), validation)[0] for each in (model, quantized))
    return quantized, 100 * (before - after)


def nncf_settings(
    model: openvino.Model, card: ModelCard, dataset: DetectionDataset, records: Sequence[ImageRecord]
) -> dict[str, Any]:
    """Return what NNCF is told besides the model.

    Args:
        model: The FP32 network.
        card: Its model's card.
        dataset: The dataset artifact.
        records: The calibration images.
    """
    nncf.set_log_level(logging.WARNING)
    return {
        "calibration_dataset": nncf.Dataset(_Inputs(dataset, records, card)),
        # The quick bias correction leaves scores of small networks almost twice as far off.
        "fast_bias_correction": False,
        # Activations after SiLU are lopsided, so that they get a zero point of their own.
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(records),
        "ignored_scope": nncf.IgnoredScope(names=decoding_tail(model)),
    }


def float_layers(model: openvino.Model) -> list[str]:
    """Return the names of the learned convolutions whose weights are not 8-bit integers, sorted."""
    return sorted(
        node.get_friendly_name()
        for node in model.get_ops()
        if is_learned_convolution(node) and _stored_weights(node).get_element_type() != openvino.Type.i8
    )


def _stored_weights(convolution: openvino.Node) -> openvino.Node:
    """Return the constant that a convolution's weights come from, whatever rescales them on their way."""
    node = convolution.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node


class _Inputs:
    """The calibration images' network inputs, which NNCF goes through more than once."""

    def __init__(self, dataset: DetectionDataset, records: Sequence[ImageRecord], card: ModelCard) -> None:
        self._dataset, self._records, self._card = dataset, records, card

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[np.ndarray]:
        for batch in calibration_inputs(self._dataset, self._records, self._card.imgsz):
            yield network_input(batch, self._card.preprocessing)


class _Validator:
    """Measures mAP50-95 of compiled models, as NNCF asks for it."""

    def __init__(self, dataset: DetectionDataset, card: ModelCard) -> None:
        self._dataset, self._card = dataset, card
        self._measured = 0

    def __call__(self, model: openvino.CompiledModel, records: Iterable[ImageRecord]) -> tuple[float, None]:
        """Return mAP50-95 (0..1) on some images, and nothing by image, for which mAP has no value."""
        chosen = list(records)
        detector = NetworkDetector(self._card.classes, self._card.imgsz, _CompiledNetwork(model, self._card), 1, False)
        results = []
        for number, record in enumerate(chosen, 1):
            results += coco_results(number, detect(detector, [read_image(self._dataset.image_path(record))])[0])
        value = coco_metrics(coco_ground_truth(self._dataset, chosen), results, self._card.classes).map or 0.0
        if len(chosen) > 1:
            self._measured += 1
            note = f"validation {self._measured}: mAP50-95 {100 * value:.1f}"
            report_progress(len(chosen), len(chosen), "image", note)
        return value, None


class _CompiledNetwork:
    def __init__(self, model: openvino.CompiledModel, card: ModelCard) -> None:
        self.signature = Signature(inputs=[], outputs=[])
        self._card = card
        self._request = model.create_infer_request()

    def run(self, batch: np.ndarray) -> np.ndarray:
        return np.array(
            self._request.infer({0: network_input(batch, self._card.preprocessing)}, share_inputs=True)[0], np.float32
        )


def _compiled(model: openvino.Model) -> openvino.CompiledModel:
    settings = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    return openvino.Core().compile_model(model, "CPU", settings)
