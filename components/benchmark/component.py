"""Kubeflow component: benchmark."""

from kfp import dsl

from yolo_distill.components.shared.image import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def benchmark(  # noqa: ANN201
    dataset: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    plain: dsl.Input[dsl.Model],
    distilled: dsl.Input[dsl.Model],
    openvino: dsl.Input[dsl.Model],
    quantized: dsl.Input[dsl.Model],
    results: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    seconds: float = 6.0,
    threads: int = 0,
    batch: int = 8,
):
    """Measure how fast, small and frugal the models are on this machine.

    Each model runs in a fresh process of its own, and they take turns in short slices, so that what else happens on the
    machine hits them alike. Latency is taken one image at a time, throughput with parallel requests or batches.

    Args:
        dataset: Dataset artifact of prepare-data; images of its val split are used.
        teacher: Model artifact of the teacher.
        plain: Model artifact of the student that was trained without a teacher.
        distilled: Model artifact of the distilled student.
        openvino: Model artifact of the distilled student as an OpenVINO model.
        quantized: Model artifact of the distilled student as an INT8 model.
        results: Folder with benchmark.json, which holds machine, settings and one entry a model.
        metrics: Median latency, throughput and peak memory of each model.
        seconds: Measuring time for each model, half for latency and half for throughput.
        threads: CPU threads of each model, 0 for as many as cores that the step may use.
        batch: Images that PyTorch and ONNX Runtime take at a time for throughput.
    """
    from pathlib import Path

    from yolo_distill.components.benchmark.benchmark import benchmark
    from yolo_distill.components.benchmark.results import BENCHMARK_NAME
    from yolo_distill.components.prepare_data.dataset import DetectionDataset
    from yolo_distill.components.shared.task import task_run

    artifacts = {
        "teacher": teacher,
        "plain": plain,
        "distilled": distilled,
        "openvino": openvino,
        "quantized": quantized,
    }
    parameters = {"seconds": seconds, "threads": threads, "batch": batch}
    with task_run("benchmark", params=parameters) as run:
        data = DetectionDataset.open(Path(dataset.path))
        run.log_dataset(data, context="benchmark")
        models = {role: Path(artifact.path) for role, artifact in artifacts.items()}
        result = benchmark(data, models, seconds, Path(results.path), threads=threads or None, batch=batch)
        run.log_metrics(result.metrics)
        run.log_artifact(Path(results.path) / BENCHMARK_NAME)
    results.metadata.update(cpu=result.machine.cpu, threads=result.machine.threads)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
