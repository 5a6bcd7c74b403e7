"""The cluster file, and what it does to the compiled pipeline."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl
from kfp.compiler import Compiler
from pydantic import ValidationError

from tests.remote.conftest import CPU_IMAGE, TENSORRT_IMAGE, TRAIN_IMAGE, CommandLine
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.image import TENSORRT_IMAGE as NAMED_TENSORRT_IMAGE
from yolo_distill.components.shared.image import TRAIN_IMAGE as NAMED_TRAIN_IMAGE
from yolo_distill.components.shared.train_job.settings import SETTINGS_VARIABLE, TrainJobSettings
from yolo_distill.pipelines.cluster import ClusterSettings, TaskSettings, TrainJob, apply_cluster, load_cluster
from yolo_distill.pipelines.distillation.run import compile_pipeline

EXAMPLE = Path(__file__).parent.parent.parent / "manifests" / "cluster.example.yaml"
IMAGES = {"cpu": CPU_IMAGE, "train": TRAIN_IMAGE}


def compiled(folder: Path, cluster: ClusterSettings | None, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    compile_pipeline(folder / "pipeline.yaml", cluster, **options)
    spec, *platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text())
    executors = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}
    return spec, executors


def all_tasks(spec: dict[str, Any]) -> dict[str, Any]:
    """Return every task that runs a container, those of branches and loops as well, by name."""
    dags = [part["dag"]["tasks"] for part in (spec["root"], *spec["components"].values()) if "dag" in part]
    return {
        name: task
        for tasks in dags
        for name, task in tasks.items()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


def without_settings(spec: dict[str, Any]) -> dict[str, Any]:
    """Take out of a compiled pipeline what a cluster may change."""
    for executor in spec["deploymentSpec"]["executors"].values():
        for field in ("image", "resources", "env"):
            executor["container"].pop(field, None)
    for task in all_tasks(spec).values():
        for field in ("cachingOptions", "retryPolicy"):
            task.pop(field, None)
    return spec


def test_the_graph_stays_as_it_is(tmp_path: Path) -> None:
    plain, nothing = compiled(tmp_path, None)
    configured, executors = compiled(tmp_path, load_cluster(EXAMPLE))
    assert nothing == {}
    assert executors.keys() == plain["deploymentSpec"]["executors"].keys()
    assert configured != plain
    assert without_settings(configured) == without_settings(plain)


def test_a_task_gets_what_is_said_of_all_of_its_flavour_and_of_itself(tmp_path: Path) -> None:
    spec, executors = compiled(tmp_path, load_cluster(EXAMPLE))
    containers = {name: body["container"] for name, body in spec["deploymentSpec"]["executors"].items()}
    training, light = containers["exec-distill-train-4"], containers["exec-compare"]
    assert training["resources"]["resourceCpuRequest"] == "8"
    assert training["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert training["resources"]["accelerator"]["resourceCount"] == "1"
    assert light["resources"]["resourceMemoryLimit"] == "8Gi"
    assert "accelerator" not in light["resources"]
    assert {entry["name"]: entry["value"] for entry in light["env"]} == {
        "AWS_ENDPOINT_URL": "http://seaweedfs.kubeflow:9000",
        "YOLO_DISTILL_IMAGE": light["image"],
    }
    platform = executors["exec-distill-train-4"]
    assert platform["emptyDirMounts"] == [
        {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "8Gi"}
    ]
    assert platform["activeDeadlineSeconds"] == "259200"
    assert platform["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert platform["nodeSelector"]["labels"] == {"cloud.example.org/pool": "gpu-spot"}
    assert platform["imagePullPolicy"] == "IfNotPresent"
    assert platform["imagePullSecret"][0]["secretName"] == "registry"
    [mount] = platform["pvcMount"]
    assert (mount["constant"], mount["mountPath"]) == ("yolo-distill", "/cache")
    [secret] = platform["secretAsEnv"]
    assert secret["secretName"] == "yolo-distill-s3"
    assert {pair["secretKey"]: pair["envVar"] for pair in secret["keyToEnv"]} == {
        "accesskey": "AWS_ACCESS_KEY_ID",
        "secretkey": "AWS_SECRET_ACCESS_KEY",
    }
    assert executors["exec-benchmark"]["nodeSelector"]["labels"] == {"cloud.example.org/pool": "benchmark"}
    tasks = all_tasks(spec)
    retry = tasks["distill-train-4"]["retryPolicy"]
    assert (retry["maxRetryCount"], retry["backoffDuration"], retry["backoffFactor"]) == (3, "60s", 2.0)
    assert "retryPolicy" not in tasks["compare"]
    # Protobuf writes what is false as nothing.
    assert [name for name, task in tasks.items() if not task["cachingOptions"]] == ["benchmark"]


def test_a_steps_name_stands_for_all_of_its_tasks(tmp_path: Path) -> None:
    said = {"distill-train": TaskSettings(cpu="3", memory="20Gi"), "distill-train-4": TaskSettings(cpu="5")}
    spec, _ = compiled(tmp_path, load_cluster(EXAMPLE).model_copy(update={"tasks": said}))
    wanted = {
        name.removeprefix("exec-"): (resources["resourceCpuRequest"], resources["resourceMemoryRequest"])
        for name, body in spec["deploymentSpec"]["executors"].items()
        if "distill-train" in name and (resources := body["container"]["resources"])
    }
    steps = [f"distill-train{number}" for number in ("", "-2", "-3", "-4", "-5", "-6")]
    assert wanted == {name: ("5" if name == "distill-train-4" else "3", "20Gi") for name in steps}


def test_trainings_wait_for_their_nodes_in_a_light_pod(tmp_path: Path) -> None:
    several = {"train_job": TrainJob(nodes=4, runtime="our-torch")}
    cluster = load_cluster(EXAMPLE).model_copy(update=several)
    spec, executors = compiled(tmp_path, cluster)
    containers = {name: body["container"] for name, body in spec["deploymentSpec"]["executors"].items()}
    told = {
        name.removeprefix("exec-"): TrainJobSettings.model_validate_json(variable["value"])
        for name, container in containers.items()
        for variable in container.get("env", [])
        if variable["name"] == SETTINGS_VARIABLE
    }
    trainings = {
        name for name in all_tasks(spec) if name.startswith(("train-teacher", "distill-train", "quantize-aware"))
    }
    assert told.keys() == trainings
    nodes = told["distill-train-4"]
    assert (nodes.nodes, nodes.processes, nodes.runtime, nodes.image) == (4, 1, "our-torch", cluster.images["train"])
    assert nodes.requests == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert nodes.limits == {"memory": "48Gi", "nvidia.com/gpu": "1"}
    assert {(secret.variable, secret.key) for secret in nodes.secrets} == {
        ("AWS_ACCESS_KEY_ID", "accesskey"),
        ("AWS_SECRET_ACCESS_KEY", "secretkey"),
    }
    assert [(volume.claim, volume.mount) for volume in nodes.volumes] == [("yolo-distill", "/cache")]
    assert nodes.tolerations == ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},)
    resources = containers["exec-distill-train-4"]["resources"]
    assert resources == containers["exec-compare"]["resources"]
    assert "accelerator" not in resources
    waiting = executors["exec-distill-train-4"]
    assert not {"nodeSelector", "tolerations", "emptyDirMounts"} & waiting.keys()
    assert [mount["mountPath"] for mount in waiting["pvcMount"]] == ["/cache"]
    assert waiting["activeDeadlineSeconds"] == "259200"
    # The cache is built by tasks of the same flavour, in pods of their own.
    assert "accelerator" in containers["exec-teacher-cache-logits-2"]["resources"]


def test_engines_are_built_where_the_cluster_says(tmp_path: Path) -> None:
    flavours = {"tensorrt": {"accelerator": "nvidia.com/gpu"}}
    cluster = ClusterSettings(images=IMAGES | {"tensorrt": TENSORRT_IMAGE}, flavours=flavours)
    spec, _ = compiled(tmp_path, cluster)
    executors = spec["deploymentSpec"]["executors"]
    with_gpu = {name for name, body in executors.items() if "accelerator" in body["container"].get("resources", {})}
    assert with_gpu == {"exec-export-tensorrt"}


def test_nodes_need_a_folder_to_share() -> None:
    with pytest.raises(ValidationError, match="its nodes share work_root"):
        ClusterSettings(images=IMAGES, train_job=TrainJob(nodes=2))


@pytest.mark.parametrize("engines", [{}, {"tensorrt": TENSORRT_IMAGE}])
def test_every_image_is_the_cluster_s(tmp_path: Path, engines: dict[str, str]) -> None:
    named, _ = compiled(tmp_path, None)
    spec, _ = compiled(tmp_path, ClusterSettings(images=IMAGES | engines))
    executors = spec["deploymentSpec"]["executors"]
    wanted = {NAMED_TRAIN_IMAGE: TRAIN_IMAGE, NAMED_TENSORRT_IMAGE: engines.get("tensorrt", TRAIN_IMAGE)}
    for name, body in named["deploymentSpec"]["executors"].items():
        assert executors[name]["container"]["image"] == wanted.get(body["container"]["image"], CPU_IMAGE)


def test_nothing_is_taken_over_where_a_tag_may_mean_another_image(tmp_path: Path) -> None:
    images = {"cpu": CPU_IMAGE, "train": "localhost/yolo-distill:1.0"}
    spec, _ = compiled(tmp_path, ClusterSettings(images=images, allow_tags=True))
    assert all(task["cachingOptions"] == {} for task in all_tasks(spec).values())


def test_compiling_for_a_cluster_twice_gives_the_same(offline: CommandLine, folder: Path) -> None:
    for name in ("one.yaml", "two.yaml"):
        done = offline("compile", "--cluster=cluster.yaml", f"--output={name}")
        assert done.returncode == 0, done.stderr
    assert (folder / "one.yaml").read_bytes() == (folder / "two.yaml").read_bytes()
    assert CPU_IMAGE in (folder / "one.yaml").read_text()


def test_a_pipeline_within_a_pipeline_is_not_passed_over() -> None:
    @dsl.component(base_image=NAMED_TRAIN_IMAGE, install_kfp_package=False)
    def step(): ...

    @dsl.pipeline
    def inner() -> None:
        step()

    @dsl.pipeline
    def outer() -> None:
        step()
        inner()

    with pytest.raises(TypeError, match="inner: a pipeline within a pipeline"):
        apply_cluster(outer, ClusterSettings(images=IMAGES))


def test_loops_and_conditions_are_reached(tmp_path: Path) -> None:
    @dsl.component(base_image=NAMED_TRAIN_IMAGE, install_kfp_package=False)
    def step(): ...

    @dsl.pipeline(display_name="Loops", pipeline_config=dsl.PipelineConfig(workspace=dsl.WorkspaceConfig("1Gi")))
    def loops(kind: str = "a") -> None:
        with dsl.ParallelFor([1, 2]), dsl.If(kind == "a"):
            step()

    settings = ClusterSettings(images=IMAGES, deadline_seconds=60, flavours={"train": {"cpu": "3"}})
    Compiler().compile(apply_cluster(loops, settings), str(tmp_path / "loops.yaml"))
    spec, platform = yaml.safe_load_all((tmp_path / "loops.yaml").read_text())
    [executor] = spec["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"] == TRAIN_IMAGE
    assert executor["container"]["resources"]["resourceCpuRequest"] == "3"
    assert spec["pipelineInfo"]["displayName"] == "Loops"
    config = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert config["activeDeadlineSeconds"] == 60
    assert config["workspace"]["size"] == "1Gi"


def test_roots_may_lie_on_any_mounted_volume() -> None:
    volumes = [{"claim": "a", "mount": "/work"}, {"claim": "b", "mount": "/cache"}]
    settings = ClusterSettings(images=IMAGES, work_root="/work", cache_root="/cache/x", defaults={"volumes": volumes})
    assert settings.is_mounted("/work/deep/er")
    assert not settings.is_mounted("/workshop")
    assert not settings.is_mounted("work")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it should be a valid dictionary"),
        ("images: [", "is not valid YAML"),
        ("{}", "images: Field required"),
        (f"images: {{cpu: '{CPU_IMAGE}'}}", "images: there is none for train"),
        ("images: {cpu: 'a:1', train: 'b:1'}", "images.cpu: 'a:1' is named by tag; name it by @sha256:…, or set allow"),
        ("images: {cpu: 'a:latest', train: 'b:1'}\nallow_tags: true", "images.cpu: 'a:latest' can be another image"),
        ("images: {cpu: 'a:1', train: host:5000/b}\nallow_tags: true", "images.train: 'host:5000/b' can be another"),
        ("image: {}", "image: Extra inputs are not permitted"),
        ("defaults: {cpus: 2}", "defaults.cpus: Extra inputs are not permitted"),
        ("defaults: {cpu: lots}", "defaults.cpu: String should match pattern"),
        ("flavours: {train: {memory: 4GB}}", "flavours.train.memory: String should match pattern"),
        ("flavours: {gpu: {}}", "flavours.gpu: it should be 'cpu', 'train' or 'tensorrt'"),
        ("defaults: {cpu: 2, cpu_limit: 1500m}", "defaults.cpu: 2 is more than its limit 1500m"),
        ("defaults: {memory_limit: 4Gi}\ntasks: {compare: {memory: 5Gi}}", "tasks.compare.memory: 5Gi is more than"),
        ("defaults: {accelerator_count: 0}", "defaults.accelerator_count: it should be greater than or equal to 1"),
        ("defaults: {retries: {count: 0}}", "defaults.retries.count: it should be greater than or equal to 1"),
        ("defaults: {env: {AWS_SECRET_ACCESS_KEY: x}}", "AWS_SECRET_ACCESS_KEY looks like a secret"),
        ("defaults: {env: {MLFLOW_TRACKING_URI: 'http://me:pw@host'}}", "MLFLOW_TRACKING_URI holds a user's password"),
        ("defaults: {secrets: [{name: s3}]}", "defaults.secrets.0.env: Field required"),
        ("defaults: {volumes: [{claim: My_Claim, mount: /c}]}", "defaults.volumes.0.claim: String should match"),
        ("defaults: {volumes: [{claim: a, mount: c}]}", "defaults.volumes.0.mount: String should match"),
        ("defaults: {volumes: [{claim: a, mount: /c}, {claim: b, mount: /c}]}", "two volumes are mounted at the same"),
        ("defaults: {tolerations: [{operator: Exists, value: x}]}", "with operator Exists there is no value"),
        ("work_root: /work", "work_root: '/work' lies on no volume"),
        ("cache_root: gs://x", "cache_root: 'gs://x' lies on no volume"),
    ],
)
def test_mistakes_name_the_field(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cluster.yaml"
    if "images" not in text and text not in {"", "{}"}:
        text += f"\nimages: {{cpu: '{CPU_IMAGE}', train: '{TRAIN_IMAGE}'}}"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        load_cluster(file)
    assert str(raised.value).startswith(f"--cluster {file}")
    assert message in str(raised.value)


def test_a_task_that_does_not_exist_is_told(offline: CommandLine, folder: Path) -> None:
    with (folder / "cluster.yaml").open("a") as file:
        file.write("tasks: {distil: {cpu: 1}}\n")
    done = offline("compile", "--cluster=cluster.yaml")
    assert done.returncode == 2
    assert "error: tasks.distil: the pipeline has no such task. Its tasks are prepare-data" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["cluster.yaml"]
