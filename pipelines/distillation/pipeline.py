"""The distillation pipeline: from images to a benchmarked INT8 student, beside the teacher and a plain student."""

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineArtifactChannel

from yolo_distill.components.benchmark.component import benchmark
from yolo_distill.components.compare.component import compare
from yolo_distill.components.compare_robustness.component import compare_robustness
from yolo_distill.components.distill_train.component import distill_train
from yolo_distill.components.evaluate_map.component import evaluate_map
from yolo_distill.components.evaluate_robustness.component import evaluate_robustness
from yolo_distill.components.export_mobile.component import export_mobile
from yolo_distill.components.export_openvino.component import export_openvino
from yolo_distill.components.export_tensorrt.component import export_tensorrt
from yolo_distill.components.prepare_data.component import prepare_data
from yolo_distill.components.prune.component import prune
from yolo_distill.components.quantize.component import quantize
from yolo_distill.components.quantize_aware_train.component import quantize_aware_train
from yolo_distill.components.register_model.component import register_model
from yolo_distill.components.teacher_cache_logits.component import teacher_cache_logits
from yolo_distill.components.teacher_cache_shards.component import teacher_cache_shards
from yolo_distill.components.train_teacher.component import train_teacher
from yolo_distill.pipelines.distillation.arguments import DistillationArguments

_DEFAULTS = DistillationArguments()

_SPOKEN = {
    "teacher": "the teacher",
    "plain": "the plain student",
    "distilled": "the distilled student",
    "openvino": "the OpenVINO model",
    "quantized": "the INT8 model",
}

# What a run is for: results by the name they are found under, each an output of that one of the tasks which runs. Of
# those that were not asked for none does.
RESULTS = {
    "table.md": (["compare"], "table"),
    "report.html": (["compare"], "report"),
    "comparison": (["compare"], "comparison"),
    "data-report.html": (["prepare-data"], "report"),
    "teacher": (["train-teacher"], "teacher"),
    "plain": (["distill-train"], "student"),
    "unpruned": (["distill-train-2"], "student"),
    "distilled": (["distill-train-3", "distill-train-4", "distill-train-5", "distill-train-6"], "student"),
    "openvino": (["export-openvino"], "openvino"),
    "onnx": (["export-openvino"], "onnx"),
    "quantize-aware": (["quantize-aware-train"], "student"),
    "int8": (["quantize", "quantize-2"], "quantized"),
    "ncnn": (["export-mobile"], "ncnn"),
    "tensorrt": (["export-tensorrt"], "engine"),
    "robustness.md": (["compare-robustness"], "table"),
    "robustness.html": (["compare-robustness"], "report"),
}

# Parts of the teacher cache that are built at once.
_PARALLEL_PARTS = 8


@dsl.pipeline(name="yolov8-distillation")
def distillation(
    source: str = _DEFAULTS.source,
    source_digest: str = _DEFAULTS.source_digest,
    teacher_model: str = _DEFAULTS.teacher_model,
    student_model: str = _DEFAULTS.student_model,
    recipe: str = _DEFAULTS.recipe,
    teacher_answers: str = _DEFAULTS.teacher_answers,
    epochs: int = _DEFAULTS.epochs,
    teacher_epochs: int = _DEFAULTS.teacher_epochs,
    imgsz: int = _DEFAULTS.imgsz,
    batch: int = _DEFAULTS.batch,
    views: int = _DEFAULTS.views,
    closed_views: int = _DEFAULTS.closed_views,
    augmentation: str = _DEFAULTS.augmentation,
    seed: int = _DEFAULTS.seed,
    val_fraction: float = _DEFAULTS.val_fraction,
    test_fraction: float = _DEFAULTS.test_fraction,
    on_error: str = _DEFAULTS.on_error,
    evaluation_split: str = _DEFAULTS.evaluation_split,
    pruning: str = _DEFAULTS.pruning,
    keep_flops: float = _DEFAULTS.keep_flops,
    quantization: str = _DEFAULTS.quantization,
    max_drop: float = _DEFAULTS.max_drop,
    qat_epochs: int = _DEFAULTS.qat_epochs,
    calibration_images: int = _DEFAULTS.calibration_images,
    mobile: str = _DEFAULTS.mobile,
    tensorrt: str = _DEFAULTS.tensorrt,
    robustness: str = _DEFAULTS.robustness,
    robustness_images: int = _DEFAULTS.robustness_images,
    benchmark_seconds: float = _DEFAULTS.benchmark_seconds,
    registered_name: str = _DEFAULTS.registered_name,
    work_root: str = _DEFAULTS.work_root,
    cache_root: str = _DEFAULTS.cache_root,
    cache_parts: list[str] = _DEFAULTS.cache_parts,
) -> None:
    """Distil a teacher into a small detector, make it INT8 and measure both against a directly trained one."""
    data = prepare_data(
        source=source,
        source_digest=source_digest,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        on_error=on_error,
    ).set_display_name("Prepare the data")
    dataset = data.outputs["dataset"]

    any_training = {
        "dataset": dataset,
        "batch": batch,
        "seed": seed,
        "augmentation": augmentation,
        "work_root": work_root,
    }
    teacher = (
        train_teacher(model=teacher_model, epochs=teacher_epochs, imgsz=imgsz, **any_training)
        .set_display_name("Train the teacher")
        .outputs["teacher"]
    )
    training = {"model": student_model, "epochs": epochs, "imgsz": imgsz, **any_training}
    plain = distill_train(name="plain", **training).set_display_name("Train the student plainly").outputs["student"]

    distillation_training = {"name": "distilled", "recipe": recipe, "teacher": teacher, **training}
    asked = {"dataset": dataset, "teacher": teacher, "imgsz": imgsz}

    def answers_to_views(*, purpose: str = "") -> PipelineArtifactChannel:
        asked_views = {
            "views": views,
            "closed_views": closed_views,
            "augmentation": augmentation,
            "cache_root": cache_root,
            **asked,
        }
        with dsl.ParallelFor(cache_parts, parallelism=_PARALLEL_PARTS) as part:
            built = teacher_cache_shards(part=part, **asked_views)
            built.set_display_name(f"Ask the teacher about every view{purpose}")
        cached = teacher_cache_logits(shards=dsl.Collected(built.outputs["shards"]), **asked_views)
        return cached.set_display_name(f"Cache the teacher's answers{purpose}").outputs["cache"]

    # Branches that go by one value hold all that differs: OneOf takes the outputs of one set of branches alone.
    with dsl.If(pruning == "on"):
        cache = answers_to_views(purpose=", to prune by")
        wide = distill_train(cache=cache, **distillation_training).set_display_name(
            "Train the student that will be pruned"
        )
        pruned = prune(model=wide.outputs["student"], keep_flops=keep_flops).set_display_name("Prune the student")
        recovered = distill_train(
            cache=cache, initial=pruned.outputs["pruned"], **distillation_training
        ).set_display_name("Recover the pruned student by distillation")
    with dsl.Elif(teacher_answers == "cache"):
        from_views = distill_train(cache=answers_to_views(), **distillation_training).set_display_name(
            "Train the student by distillation"
        )
    with dsl.Elif(teacher_answers == "original"):
        cache = (
            teacher_cache_logits(mode="original", **asked)
            .set_display_name("Ask the teacher about the images as they are")
            .outputs["cache"]
        )
        from_originals = distill_train(cache=cache, **distillation_training).set_display_name(
            "Distil from the images as they are"
        )
    with dsl.Else():
        online = distill_train(**distillation_training).set_display_name("Distil with the teacher at every step")
    distilled = dsl.OneOf(*(task.outputs["student"] for task in (recovered, from_views, from_originals, online)))

    exported = export_openvino(dataset=dataset, model=distilled).set_display_name("Export to OpenVINO")
    openvino = exported.outputs["openvino"]
    calibration = {"dataset": dataset, "calibration_images": calibration_images, "seed": seed}
    with dsl.If(quantization == "qat"):
        # By now these answers are in the cache of tasks.
        retrained = quantize_aware_train(
            model=distilled,
            cache=answers_to_views(purpose=", to quantise by"),
            teacher=teacher,
            recipe=recipe,
            epochs=qat_epochs,
            **any_training,
        ).set_display_name("Train on with simulated INT8")
        reexported = export_openvino(dataset=dataset, model=retrained.outputs["student"]).set_display_name(
            "Export what was trained on"
        )
        aware = quantize(model=reexported.outputs["openvino"], **calibration).set_display_name(
            "Quantise what was trained on"
        )
    with dsl.Else():
        rounded = quantize(model=openvino, method=quantization, max_drop=max_drop, **calibration).set_display_name(
            "Quantise to INT8"
        )
    quantized = dsl.OneOf(*(task.outputs["quantized"] for task in (aware, rounded)))

    with dsl.If(mobile == "ncnn"):
        export_mobile(dataset=dataset, model=distilled).set_display_name("Export to NCNN")
    with dsl.If(tensorrt != "off"):
        export_tensorrt(model=exported.outputs["onnx"], precision=tensorrt, **calibration).set_display_name(
            "Build a TensorRT engine"
        )

    models = {
        "teacher": teacher,
        "plain": plain,
        "distilled": distilled,
        "openvino": openvino,
        "quantized": quantized,
    }
    evaluations = {
        name: evaluate_map(dataset=dataset, model=model, split=evaluation_split)
        .set_display_name(f"Evaluate {_SPOKEN[name]}")
        .outputs["evaluation"]
        for name, model in models.items()
    }
    measured = (
        benchmark(dataset=dataset, seconds=benchmark_seconds, **models).set_display_name("Benchmark").outputs["results"]
    )
    compare(**evaluations, benchmark=measured).set_display_name("Compare")
    with dsl.If(robustness == "on"):
        attacked = {"teacher": teacher, "plain": plain, "distilled": distilled, "quantized": quantized}
        # No gradient flows through an INT8 model: attacks on the distilled student are tried on it.
        gradients = {"quantized": {"source": distilled}}
        measurements = {
            name: evaluate_robustness(
                dataset=dataset,
                model=model,
                split=evaluation_split,
                images=robustness_images,
                seed=seed,
                **gradients.get(name, {}),
            )
            .set_display_name(f"Attack {_SPOKEN[name]}")
            .outputs["robustness"]
            for name, model in attacked.items()
        }
        compare_robustness(**measurements).set_display_name("Compare robustness")
    register_model(
        model=quantized, evaluation=evaluations["quantized"], dataset=dataset, registered_name=registered_name
    ).set_display_name("Register the model")
