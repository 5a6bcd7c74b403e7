"""Kubeflow component: teacher-cache-logits."""

from typing import List  # noqa: UP035  KFP knows a list of artifacts by this name

from kfp import dsl

from yolo_distill.components.shared.image import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def teacher_cache_logits(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    cache: dsl.Output[dsl.Artifact],
    imgsz: int = 320,
    mode: str = "views",
    views: int = 8,
    closed_views: int = 4,
    top_k: int = 256,
    classes: int = 16,
    features: str = "fp16",
    augmentation: str = "",
    cache_root: str = "",
    verify_fraction: float = 0.01,
    shards: dsl.Input[List[dsl.Artifact]] = None,  # noqa: UP006
):
    """Ask the teacher once about every view of every training image and keep its sparse answers.

    Args:
        dataset: Dataset artifact of prepare-data.
        teacher: Model artifact of the teacher; its classes must be the dataset's.
        cache: Teacher cache: a manifest and shards of answers.
        imgsz: Side of the square views in pixels, a multiple of 32.
        mode: What the teacher is asked about: views, the augmented images that the student will see, or original, the
            images as they are, whose boxes the augmentation then carries into any view.
        views: How many views with mosaic each image gets; the epochs of a training cycle through them.
        closed_views: How many views without mosaic, for the last epochs of a training.
        top_k: Anchor points kept per view, by the teacher's score; those that labels can be assigned to are added.
        classes: Class logits kept per anchor point, the highest ones; the others are unknown to the student.
        features: How neck features are kept: fp16, int8, or none.
        augmentation: Ultralytics' hyperparameters that differ from its defaults, such as fliplr=0,degrees=10.
        cache_root: Folder or s3:// address of caches shared by all runs, found again by content; unfinished ones are
            completed. Without it the answers lie in the artifact.
        verify_fraction: Fraction of the views that the teacher is asked about again at the end, to compare; 0 for none.
        shards: Parts that teacher-cache-shards has built with the same settings; only what they lack is computed.
    """
    from pathlib import Path

    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run
    from yolo_distill.components.shared.views import parse_augmentation
    from yolo_distill.components.teacher_cache_logits.build import (
        answer_format,
        build_cache,
        cache_settings,
        require_mode,
    )
    from yolo_distill.components.teacher_cache_logits.originals import build_originals
    from yolo_distill.components.teacher_cache_logits.verify import require_fraction, verify_cache

    require_fraction(verify_fraction)
    parameters = {
        "mode": mode,
        "imgsz": imgsz,
        "views": views,
        "closed_views": closed_views,
        "top_k": top_k,
        "classes": classes,
        "features": features,
        "augmentation": augmentation,
    }
    with task_run("teacher-cache-logits", params=parameters) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="training")
        if require_mode(mode) == "original":
            originals = build_originals(data, Path(teacher.path), imgsz, Path(cache.path))
            facts: dict[str, float] = {"bytes": originals.bytes, "images": originals.images}
        else:
            settings = cache_settings(
                augmentation=parse_augmentation(imgsz, augmentation),
                open_views=views,
                closed_views=closed_views,
                wanted=answer_format(top_k=top_k, classes=classes, features=features),
            )
            parts = [Path(part.path) for part in shards or []]
            manifest = build_cache(data, Path(teacher.path), settings, Path(cache.path), cache_root, parts)
            run.set_tags({"cache_key": manifest.key, "teacher": manifest.teacher})
            facts = {"bytes": manifest.bytes, "images": manifest.images, "score_mass": manifest.score_mass}
            if verify_fraction:
                facts["verified_correlation"] = verify_cache(
                    Path(cache.path), data, Path(teacher.path), verify_fraction
                )
        run.log_metrics(facts)
    cache.metadata.update(mode=mode, **facts)
