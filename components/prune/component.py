"""Kubeflow component: prune."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def prune(  # noqa: ANN201
    model: dsl.Input[dsl.Model],
    pruned: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    dataset: dsl.Input[dsl.Dataset] = None,
    keep_flops: float = 0.5,
    keep_parameters: float = 0.0,
    importance: str = "group_l2",
    max_ratio: float = 0.75,
    images: int = 64,
    seed: int = 0,
):
    """Remove the channels of a model that are worth the least, until it costs what was asked for.

    Args:
        model: PyTorch model artifact of a YOLOv8.
        pruned: Model artifact: an ordinary ultralytics checkpoint of the narrower network, which wants to be trained.
        metrics: Parameters and GFLOPs, and which part of the model's own they are.
        dataset: Dataset artifact of prepare-data, whose training images group_taylor looks at.
        keep_flops: Part of the floating point operations to keep, between 0 and 1; 0 where keep_parameters is given.
        keep_parameters: Part of the weights to keep, between 0 and 1; 0 where keep_flops is given.
        importance: How channels are valued, group_l2, bn_scale or group_taylor.
        max_ratio: Largest part of a layer's channels that may go, between 0 and 1.
        images: Training images for group_taylor; all of them where there are fewer.
        seed: Seed of their draw.
    """
    from pathlib import Path

    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.prune.prune import prune, pruning_target
    from yolo_distill.components.shared.task import task_run

    parameters = {
        "keep_flops": keep_flops,
        "keep_parameters": keep_parameters,
        "importance": importance,
        "max_ratio": max_ratio,
    }
    with task_run("prune", name=model.metadata.get("name", ""), params=parameters) as run:
        target = pruning_target(keep_flops, keep_parameters)
        data = DetectionDataset.open(Path(dataset.path)) if dataset else None
        if data:
            run.log_dataset(data, context="pruning")
        result = prune(
            Path(model.path),
            Path(pruned.path),
            target,
            importance=importance,
            max_ratio=max_ratio,
            dataset=data,
            images=images,
            seed=seed,
        )
        measured = {
            "parameters": float(result.card.parameters),
            "gflops": result.card.gflops,
            "kept_flops": result.flops,
            "kept_parameters": result.parameters,
        }
        run.log_metrics(measured)
        run.log_model(Path(pruned.path))
    pruned.metadata.update(result.card.model_dump(include={"name", "architecture", "parameters", "gflops"}))
    for key, value in measured.items():
        metrics.log_metric(key, value)
