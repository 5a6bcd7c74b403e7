"""Kubeflow component: teacher-cache-shards."""

from kfp import dsl

from yolo_distill.components.shared.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def teacher_cache_shards(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    shards: dsl.Output[dsl.Artifact],
    part: str,
    imgsz: int = 320,
    views: int = 8,
    closed_views: int = 4,
    top_k: int = 256,
    classes: int = 16,
    features: str = "fp16",
    augmentation: str = "",
    cache_root: str = "",
):
    """Build a part of a teacher cache's shards, for several machines to share the work.

    Args:
        dataset: Dataset artifact of prepare-data.
        teacher: Model artifact of the teacher; its classes must be the dataset's.
        shards: The part: a manifest and, without a cache root, shards of answers.
        part: Which part: 2/4 is the second of four, which builds every fourth shard, beginning with the second.
        imgsz: As for teacher-cache-logits, and so are all that follow.
        views: How many views with mosaic each image gets.
        closed_views: How many views without mosaic.
        top_k: Anchor points kept per view.
        classes: Class logits kept per anchor point.
        features: How neck features are kept: fp16, int8, or none.
        augmentation: Ultralytics' hyperparameters that differ from its defaults.
        cache_root: Folder or s3:// address of caches shared by all runs.
    """
    from pathlib import Path

    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run
    from yolo_distill.components.shared.views import parse_augmentation
    from yolo_distill.components.teacher_cache_logits.build import answer_format, build_part, cache_settings
    from yolo_distill.components.teacher_cache_shards.part import parse_part

    with task_run("teacher-cache-shards", part, {"part": part}) as run:
        index, parts = parse_part(part)
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="training")
        settings = cache_settings(
            augmentation=parse_augmentation(imgsz, augmentation),
            open_views=views,
            closed_views=closed_views,
            wanted=answer_format(top_k=top_k, classes=classes, features=features),
        )
        made = build_part(data, Path(teacher.path), settings, Path(shards.path), index, parts, cache_root)
        run.set_tags({"cache_key": made.key})
        run.log_metrics({"bytes": sum(shard.bytes for shard in made.shards)})
    shards.metadata.update(part=part, cache_key=made.key)
