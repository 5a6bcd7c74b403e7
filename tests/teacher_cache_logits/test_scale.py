"""Caches that several builders share: in object storage, in parts, at once, and after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import requests
from kfp import dsl, local
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file, save_file

from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file
from yolo_distill.components.shared.views import Augmentation, View
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache, build_part
from yolo_distill.components.teacher_cache_logits.cache import CacheManifest, TeacherCache, read_manifest
from yolo_distill.components.teacher_cache_logits.shards import FolderShards, ShardStore, StoredShards, open_store
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat
from yolo_distill.components.teacher_cache_logits.verify import require_fraction, verify_cache
from yolo_distill.components.teacher_cache_shards.part import parse_part, spell_parts

SETTINGS = CacheSettings(Augmentation(imgsz=64), open_views=2, closed_views=1, wanted=AnswerFormat(top_k=10))


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, digits: DetectionDataset, teacher_dir: Path
) -> tuple[Path, CacheManifest]:
    """A cache built in one piece."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    return folder, build_cache(digits, teacher_dir, SETTINGS, folder)


def digests(manifest: CacheManifest) -> dict[str, str]:
    return {shard.file: shard.sha256 for shard in manifest.shards}


# Object storage


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def root(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache root in a new bucket that remembers every version of its objects."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "YOLO_DISTILL_CACHE_DIR": str(tmp_path / "local"),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{time.time_ns()}"
    client = boto3.Session().client("s3")
    client.create_bucket(Bucket=bucket)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return f"s3://{bucket}/some/where"


def bucket_of(root: str) -> str:
    return root.split("/")[2]


def uploads(root: str) -> dict[str, int]:
    """How often each shard's object has been stored."""
    versions = boto3.Session().client("s3").list_object_versions(Bucket=bucket_of(root))["Versions"]
    keys = [version["Key"] for version in versions if version["Key"].endswith(".safetensors")]
    return {key: keys.count(key) for key in keys}


def test_a_cache_in_object_storage_is_built_once_and_mended(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path, root: str, whole: tuple[Path, CacheManifest]
) -> None:
    manifest = build_cache(digits, teacher_dir, SETTINGS, tmp_path / "first", root)
    assert manifest.shards_folder == f"{root}/teacher-cache/{manifest.key}"
    assert digests(manifest) == digests(whole[1])
    assert not list((tmp_path / "first").rglob("*.safetensors"))
    first, second, third = sorted(uploads(root))
    assert first.startswith(f"some/where/teacher-cache/{manifest.key}/closed-0000-00000-")

    client = boto3.Session().client("s3")
    client.put_object(Bucket=bucket_of(root), Key=first, Body=b"short")
    client.put_object(Bucket=bucket_of(root), Key=second.rpartition("-")[0] + ".json", Body=b"{")
    again = build_cache(digits, teacher_dir, SETTINGS, tmp_path / "second", root)
    assert again.shards == manifest.shards
    # One was stored, damaged and mended, of one the record was lost, one was left alone.
    assert uploads(root) == {first: 3, second: 2, third: 1}

    cache, plain = TeacherCache(tmp_path / "second"), TeacherCache(whole[0])
    assert cache.read(View(1, False), 7)["scores"].equal(plain.read(View(1, False), 7)["scores"])


def test_shards_are_fetched_once_and_checked(
    tmp_path: Path, root: str, whole: tuple[Path, CacheManifest], digits: DetectionDataset, teacher_dir: Path
) -> None:
    # What is there is taken over, so that nothing is computed here.
    part = tmp_path / "part"
    build_part(digits, teacher_dir, SETTINGS, part, 0, 1, whole[0].parent / "root")
    build_cache(digits, teacher_dir, SETTINGS, tmp_path / "cache", root, [part])
    files = TeacherCache(tmp_path / "cache").files
    assert {file.parent for file in files.values()} == {tmp_path / "local"}
    times = {name: file.stat().st_mtime_ns for name, file in files.items()}
    damaged = "open-0000-00000.safetensors"
    files[damaged].write_bytes(b"no shard")
    TeacherCache(tmp_path / "cache")
    assert sha256_file(files[damaged]) == files[damaged].stem
    assert {name for name, file in files.items() if file.stat().st_mtime_ns != times[name]} == {damaged}

    client = boto3.Session().client("s3")
    key = next(key for key in uploads(root) if "open-0000" in key)
    content = bytearray(files[damaged].read_bytes())
    content[-1] ^= 1
    client.put_object(Bucket=bucket_of(root), Key=key, Body=bytes(content))
    files[damaged].unlink()
    with pytest.raises(InputError, match=f"{Path(key).name}: differs from its digest"):
        TeacherCache(tmp_path / "cache")
    client.delete_object(Bucket=bucket_of(root), Key=key)
    with pytest.raises(InputError, match="does not exist"):
        TeacherCache(tmp_path / "cache")
    assert {file.name for file in (tmp_path / "local").iterdir()} == {files[n].name for n in files if n != damaged}


def test_a_record_that_names_a_file_elsewhere_counts_for_nothing(root: str) -> None:
    store = StoredShards(root)
    record = store.add("shard.safetensors", 0.5, lambda file: file.write_bytes(b"x") and None)
    hostile = record.model_copy(update={"sha256": "../../elsewhere"})
    key = "some/where/shard.json"
    boto3.Session().client("s3").put_object(Bucket=bucket_of(root), Key=key, Body=hostile.model_dump_json().encode())
    assert store.find("shard.safetensors") is None


def test_storage_that_cannot_be_used_is_named(tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="s3://no-such-bucket/x: does not exist"):
        open_store("s3://no-such-bucket/x", tmp_path)
    control = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    # Moto checks credentials only when it is told to.
    requests.post(control, data=b"0", timeout=10).raise_for_status()
    try:
        with pytest.raises(InputError, match=r"the storage refuses it \(InvalidAccessKeyId\)") as caught:
            open_store(root, tmp_path)
        assert "s3cret" not in str(caught.value)
    finally:
        requests.post(control, data=b"inf", timeout=10).raise_for_status()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"the storage at http://127.0.0.1:9 does not answer"):
        open_store(root, tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="there are no credentials"):
        open_store(root, tmp_path)


# Several builders at once


@pytest.mark.parametrize("place", ["folder", "storage"])
def test_builders_that_differ_do_not_harm_each_other(tmp_path: Path, root: str, place: str) -> None:
    """Another processor's answers differ in the last bits: every builder's record must stay true of some file."""

    def add(content: bytes) -> tuple[ShardStore, bytes, object]:
        store: ShardStore = FolderShards(tmp_path / "root") if place == "folder" else StoredShards(root)
        return store, content, store.add("shard.safetensors", 0.5, lambda file: file.write_bytes(content) and None)

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(add, [bytes([n]) * 100_000 for n in range(8)]))
    for store, content, record in added:
        read = store.files([record])["shard.safetensors"].read_bytes()
        assert read == (
            added[0][0].files([added[0][2]])["shard.safetensors"].read_bytes() if place == "folder" else content
        )
    assert added[0][0].find("shard.safetensors") in [record for _, _, record in added]
    assert not list(tmp_path.rglob("*partial*"))


BUILD = """
import sys
from pathlib import Path
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.views import Augmentation
from yolo_distill.components.teacher_cache_logits.build import CacheSettings, build_cache
from yolo_distill.components.teacher_cache_logits.teacher import AnswerFormat
dataset, teacher, target, root, views = sys.argv[1:]
settings = CacheSettings(Augmentation(imgsz=64), int(views), 1, AnswerFormat(top_k=10))
build_cache(DetectionDataset.open(Path(dataset)), Path(teacher), settings, Path(target), root)
"""


def building(digits: DetectionDataset, teacher: Path, target: Path, root: Path, views: int) -> subprocess.Popen:
    arguments = [str(value) for value in (digits.root, teacher, target, root, views)]
    return subprocess.Popen([sys.executable, "-c", BUILD, *arguments], stdout=subprocess.DEVNULL)


def test_two_processes_build_the_same_cache(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path, whole: tuple[Path, CacheManifest]
) -> None:
    root = tmp_path / "root"
    processes = [building(digits, teacher_dir, tmp_path / name, root, 2) for name in ("one", "two")]
    assert [process.wait(120) for process in processes] == [0, 0]
    for name in ("one", "two"):
        assert digests(TeacherCache(tmp_path / name).manifest) == digests(whole[1])
    assert not list(root.rglob("*partial*"))


def test_a_killed_build_goes_on_where_it_stopped(tmp_path: Path, digits: DetectionDataset, teacher_dir: Path) -> None:
    root = tmp_path / "root"
    process = building(digits, teacher_dir, tmp_path / "killed", root, 40)
    deadline = time.monotonic() + 120
    while not (finished := list(root.rglob("*.json"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    shards = {file.with_suffix(".safetensors"): None for file in root.rglob("*.json")}
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert finished
    assert len(times) < 41
    # What a kill while writing leaves behind.
    (root / "teacher-cache" / finished[0].parent.name / "closed-0000-00000.safetensors.partial").write_bytes(b"half")
    settings = CacheSettings(Augmentation(imgsz=64), 1, 1, AnswerFormat(top_k=10))
    build_cache(digits, teacher_dir, settings, tmp_path / "cache", root)
    TeacherCache(tmp_path / "cache")
    assert {shard: shard.stat().st_mtime_ns for shard in times} == times
    assert not list(root.rglob("*partial*"))


# Parts


def test_parts_are_built_in_a_loop_and_gathered(
    tmp_path: Path,
    digits: DetectionDataset,
    teacher_dir: Path,
    whole: tuple[Path, CacheManifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from yolo_distill.components.teacher_cache_logits.component import teacher_cache_logits
    from yolo_distill.components.teacher_cache_shards.component import teacher_cache_shards

    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    # Made beforehand, as a launcher does: two tasks that make it at once disturb each other.
    MlflowClient(tracking).search_experiments()
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "runs"), raise_on_error=True)

    settings = {"imgsz": 64, "views": 2, "closed_views": 1, "top_k": 10}

    @dsl.pipeline
    def parallel_cache(dataset_uri: str, teacher_uri: str) -> dsl.Artifact:
        dataset = dsl.importer(artifact_uri=dataset_uri, artifact_class=dsl.Dataset, reimport=False).output
        teacher = dsl.importer(artifact_uri=teacher_uri, artifact_class=dsl.Model, reimport=False).output
        with dsl.ParallelFor(["1/2", "2/2"]) as part:
            built = teacher_cache_shards(dataset=dataset, teacher=teacher, part=part, **settings)
        gathered = teacher_cache_logits(
            dataset=dataset, teacher=teacher, shards=dsl.Collected(built.outputs["shards"]), **settings
        )
        return gathered.outputs["cache"]

    artifact = parallel_cache(dataset_uri=str(digits.root), teacher_uri=str(teacher_dir)).output
    manifest = TeacherCache(Path(artifact.path)).manifest
    assert manifest == whole[1]
    assert artifact.metadata["verified_correlation"] > 0.999
    parts = {path: json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("part.json")}
    held = sorted([shard["file"] for shard in part["shards"]] for part in parts.values())
    assert held == [["open-0000-00000.safetensors", "closed-0000-00000.safetensors"], ["open-0001-00000.safetensors"]]
    # Linked, not computed again.
    inodes = {file.stat().st_ino for path in parts for file in path.parent.rglob("*.safetensors")}
    assert {file.stat().st_ino for file in TeacherCache(Path(artifact.path)).files.values()} == inodes


def test_parts_are_spelt_from_one_on() -> None:
    assert spell_parts(3) == ["1/3", "2/3", "3/3"]
    assert [parse_part(part) for part in spell_parts(12)] == [(index, 12) for index in range(12)]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1.0/2", "1/2/3", "a/b", "1/2 "])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is no part. Write 2/4 for the second of four"):
        parse_part(text)


def test_what_parts_lack_is_computed(
    tmp_path: Path, digits: DetectionDataset, teacher_dir: Path, whole: tuple[Path, CacheManifest]
) -> None:
    made = build_part(digits, teacher_dir, SETTINGS, tmp_path / "part", 0, 2)
    damaged = tmp_path / "part" / "shards" / made.shards[0].file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    manifest = build_cache(digits, teacher_dir, SETTINGS, tmp_path / "cache", parts=[tmp_path / "part"])
    assert digests(manifest) == digests(whole[1])
    other = CacheSettings(Augmentation(imgsz=64), 1, 0, AnswerFormat(top_k=11))
    with pytest.raises(InputError, match="holds answers to other views"):
        build_cache(digits, teacher_dir, other, tmp_path / "other", parts=[tmp_path / "part"])
    with pytest.raises(InputError, match="is no part"):
        build_cache(digits, teacher_dir, SETTINGS, tmp_path / "other", parts=[tmp_path])
    with pytest.raises(InputError, match="part=2"):
        build_part(digits, teacher_dir, SETTINGS, tmp_path / "part", 2, 2)


# Verification


def test_a_cache_is_verified_by_asking_the_teacher_again(
    tmp_path: Path,
    digits: DetectionDataset,
    teacher_dir: Path,
    whole: tuple[Path, CacheManifest],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 0.999 < verify_cache(whole[0], digits, teacher_dir) <= 1.0001
    # Four views at least, and from every shard as there are but three.
    assert "view 6/6 verified" in capsys.readouterr().out

    folder = tmp_path / "cache"
    folder.mkdir()
    shards = [forged(whole[0], folder, shard.file) for shard in whole[1].shards]
    (folder / "manifest.json").write_text(
        read_manifest(whole[0]).model_copy(update={"shards": shards}).model_dump_json(), encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"view open-0001 of image \d+: the teacher answers otherwise"):
        verify_cache(folder, digits, teacher_dir, seed=3)


def forged(source: Path, target: Path, name: str) -> object:
    """Copy a shard, of one view with the answers that a teacher would not give, and describe it truly."""
    tensors = load_file(source / "shards" / name)
    if name.startswith("open-0001"):
        tensors["boxes"] = tensors["boxes"].flip(1)
    store = FolderShards(target / "shards")
    return store.add(name, 0.5, lambda file: save_file(tensors, file))


def test_a_cache_of_another_teacher_is_not_verified(
    tmp_path: Path, digits: DetectionDataset, student_dir: Path, whole: tuple[Path, CacheManifest]
) -> None:
    with pytest.raises(InputError, match="was built with teacher"):
        verify_cache(whole[0], digits, student_dir)


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_fraction_beyond_the_whole_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="verify_fraction"):
        require_fraction(fraction)
