"""Kubeflow component: prepare-data."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def prepare_data(  # noqa: ANN201
    dataset: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    source: str = "digits",
    source_digest: str = "",
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    on_error: str = "stop",
):
    """Make a dataset artifact of images and labels from anywhere.

    Takes YOLO, Pascal VOC and COCO labels, checks every image and box, keeps official splits, draws missing ones and
    reports everything that it leaves out or changes.

    Args:
        dataset: Dataset artifact: images, YOLO labels, data.yaml, and manifest.json with digests and counts.
        report: Counts, what was dropped or changed, box sizes and a contact sheet.
        source: The embedded data set (digits, or digits:train=48,val=16,test=16,size=160,seed=3), or a folder, an
            archive (.zip, .tar, .tar.gz), or the http(s):// or s3:// address of one.
        source_digest: A digest of what the source holds. It is only part of the cache key, so that changed data are
            prepared again.
        val_fraction: Share of the labelled images drawn for validation where the source has no such split.
        test_fraction: The same for testing; 0 for no test split.
        seed: Seed of the splits that are drawn, and of the digits where they name none.
        on_error: What to do about mistakes in the data: stop with a message that lists them, or drop the broken boxes
            and files into the report.
    """
    from pathlib import Path

    from yolo_distill.components.prepare_data.prepare import prepare
    from yolo_distill.components.prepare_data.report import flat_counts, report_page
    from yolo_distill.components.shared.files import write_text
    from yolo_distill.components.shared.task import task_run

    parameters = {
        "source": source,
        "source_digest": source_digest,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "seed": seed,
        "on_error": on_error,
    }
    with task_run("prepare-data", params=parameters) as run:
        result = prepare(source, Path(dataset.path), seed, val_fraction, test_fraction, on_error)
        write_text(Path(report.path), report_page(result))
        run.log_dataset(result, context="prepared")
        run.log_metrics(flat_counts(result))
        run.log_artifact(Path(report.path))
    dataset.metadata.update(digest=result.digest, classes=result.classes, **flat_counts(result))
