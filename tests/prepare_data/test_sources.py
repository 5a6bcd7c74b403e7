import io
import os
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from yolo_distill.components.prepare_data import archives, sources
from yolo_distill.components.prepare_data.digits import GENERATOR_VERSION
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.prepare_data.report import read_report
from yolo_distill.components.prepare_data.sources import public_source, source_digest
from yolo_distill.components.shared.errors import InputError


def left_over(folder: Path, *expected: str) -> list[str]:
    """Names in a folder that should not be there."""
    return sorted({path.name for path in folder.iterdir()} - set(expected))


# Archives


def tar_folder(folder: Path, archive: Path, mode: str) -> Path:
    with tarfile.open(archive, mode) as file:
        file.add(folder, arcname="wrapped/deeper")
    return archive


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "download"])
def test_archives(yolo: Path, tmp_path: Path, zip_folder: Callable[..., Path], name: str) -> None:
    plain = prepare(str(yolo), tmp_path / "plain")
    if name in {"a.zip", "download"}:
        archive = zip_folder(yolo, tmp_path / name, "wrapped/deeper/")
    else:
        compression = {"tar": "", "tgz": "gz"}.get(name.rpartition(".")[2], name.rpartition(".")[2])
        archive = tar_folder(yolo, tmp_path / name, f"w:{compression}")
    unpacked = prepare(str(archive), tmp_path / "out")
    assert unpacked.digest == plain.digest
    assert unpacked.manifest.source == str(archive)
    assert left_over(tmp_path, "yolo", "plain", "out", name) == []


def zip_member(name: str, mode: int = 0o100644) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "../outside")

    return make


def tar_member(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            content = b"x" if kind == tarfile.REGTYPE else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (zip_member("../evil.jpg"), "may lead out of the folder"),
        (zip_member("a/../../evil.jpg"), "may lead out of the folder"),
        (zip_member("/evil.jpg"), "may lead out of the folder"),
        (zip_member("..\\evil.jpg"), "may lead out of the folder"),
        (zip_member("C:evil.jpg"), "may lead out of the folder"),
        (zip_member("link.jpg", 0o120777), "is a link or a device"),
        (tar_member("../evil.jpg"), "may lead out of the folder"),
        (tar_member("/evil.jpg"), "may lead out of the folder"),
        (tar_member("link.jpg", tarfile.SYMTYPE), "is a link or a device"),
        (tar_member("link.jpg", tarfile.LNKTYPE), "is a link or a device"),
        (tar_member("device.jpg", tarfile.BLKTYPE), "is a link or a device"),
        (tar_member("pipe.jpg", tarfile.FIFOTYPE), "is a link or a device"),
    ],
)
def test_hostile_members(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    inner = tmp_path / "deep/er"
    inner.mkdir(parents=True)
    make(inner / "archive")
    with pytest.raises(InputError, match=words):
        prepare(str(inner / "archive"), inner / "out")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["deep", "deep/er", "deep/er/archive"]


def test_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.bmp", bytes(50_000_000))
    monkeypatch.setattr(archives, "_SMALLEST_BOMB", 10**8)
    started = time.monotonic()
    with pytest.raises(InputError, match="far more than images take"):
        prepare(str(tmp_path / "bomb.zip"), tmp_path / "out")
    assert time.monotonic() - started < 30
    assert left_over(tmp_path, "bomb.zip") == []


def test_tar_that_promises_too_much(tmp_path: Path) -> None:
    """A header of 512 bytes that announces a file of 8 TB is refused before anything is written."""
    info = tarfile.TarInfo("huge.bmp")
    info.size = 8 * 10**12
    (tmp_path / "huge.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(InputError, match=r"far more than images take|half of what is free"):
        prepare(str(tmp_path / "huge.tar"), tmp_path / "out")


def test_more_than_the_disk_takes(
    yolo: Path, tmp_path: Path, zip_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_folder(yolo, tmp_path / "a.zip")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 20_000}))
    with pytest.raises(InputError, match="half of what is free on the disk"):
        prepare(str(archive), tmp_path / "out")


def test_too_many_files(
    yolo: Path, tmp_path: Path, zip_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_folder(yolo, tmp_path / "a.zip")
    monkeypatch.setattr(archives, "_MOST_FILES", 5)
    with pytest.raises(InputError, match="far more than images take"):
        prepare(str(archive), tmp_path / "out")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_damaged_archives(yolo: Path, tmp_path: Path, zip_folder: Callable[..., Path], name: str) -> None:
    whole = zip_folder(yolo, tmp_path / name) if name == "a.zip" else tar_folder(yolo, tmp_path / name, f"w:{name[6:]}")
    data = whole.read_bytes()
    spoilt = bytearray(data)
    middle = len(data) // 2
    spoilt[middle : middle + 2000] = bytes(2000)
    for content in (data[:middle], bytes(spoilt)):
        whole.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged|cannot be|neither a folder|no images"):
            prepare(str(whole), tmp_path / "out")
        assert left_over(tmp_path, "yolo", name) == []


def test_encrypted_zip(yolo: Path, tmp_path: Path, zip_folder: Callable[..., Path]) -> None:
    archive = zip_folder(yolo, tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    # The lowest flag bit of the first entry in the central directory says that it is encrypted.
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(data))
    with pytest.raises(InputError, match="is encrypted"):
        prepare(str(archive), tmp_path / "out")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.jpg", "2")
    with pytest.raises(InputError, match="cannot be unpacked"):
        prepare(str(tmp_path / "a.zip"), tmp_path / "out")


# Local paths


@pytest.mark.parametrize("source", ["nowhere", "nowhere/data.zip", ""])
def test_nothing_there(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (lambda: prepare(source, tmp_path / "out"), lambda: source_digest(source)):
        with pytest.raises(InputError, match="does not exist"):
            call()
    assert left_over(tmp_path) == []


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="is neither a folder nor a"):
        prepare(str(tmp_path / "notes.txt"), tmp_path / "out")


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        prepare(str(tmp_path / "empty"), tmp_path / "out")


def test_images_without_labels(tmp_path: Path, yolo: Path) -> None:
    with pytest.raises(InputError, match=r"holds 8 images, but no labels .*data.yaml.*Annotations") as caught:
        prepare(str(yolo / "images/train"), tmp_path / "out")
    assert left_over(tmp_path, "yolo") == []
    assert "on_error" not in str(caught.value)


def test_links_between_folders(yolo: Path, tmp_path: Path) -> None:
    """People link large folders into place; a loop of links ends nevertheless."""
    (yolo / "images").rename(tmp_path / "elsewhere")
    (yolo / "images").symlink_to(tmp_path / "elsewhere")
    (yolo / "loop").symlink_to(yolo)
    assert len(prepare(str(yolo), tmp_path / "out").manifest.images) == 11


def test_links_that_lead_nowhere(yolo: Path, tmp_path: Path) -> None:
    (yolo / "images/train/00.jpg").unlink()
    (yolo / "images/train/00.jpg").symlink_to("gone.jpg")
    assert source_digest(str(yolo)) == source_digest(str(yolo))
    with pytest.raises(InputError, match=r"images/train/00\.jpg: cannot be read: No such file"):
        prepare(str(yolo), tmp_path / "out")
    (yolo / "labels/train/01.txt").unlink()
    (yolo / "labels/train/01.txt").symlink_to("gone.txt")
    with pytest.raises(InputError, match=r"labels/train/01\.txt: cannot be read: No such file"):
        prepare(str(yolo), tmp_path / "out")
    assert len(prepare(str(yolo), tmp_path / "out", test_fraction=0, on_error="drop").split("train")) == 7


@pytest.mark.parametrize("source", ["ftp://host/data.zip", "file:///etc/passwd", "gs://bucket/x"])
def test_unknown_schemes(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError, match=r"is not supported"):
        prepare(source, tmp_path / "out")


def test_digest_of_local_data(yolo: Path, yolo_zip: Path) -> None:
    first = source_digest(str(yolo))
    assert source_digest(str(yolo)) == first
    os.utime(yolo / "labels/train/00.txt", (1, 1))
    touched = source_digest(str(yolo))
    (yolo / "labels/train/00.txt").rename(yolo / "labels/train/0.txt")
    renamed = source_digest(str(yolo))
    assert len({first, touched, renamed, source_digest(str(yolo_zip))}) == 4
    archive_digest = source_digest(str(yolo_zip))
    os.utime(yolo_zip, (1, 1))
    assert source_digest(str(yolo_zip)) != archive_digest


def test_digest_of_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    first = source_digest("digits")
    assert source_digest("digits:train=9") == first
    monkeypatch.setattr(sources, "GENERATOR_VERSION", GENERATOR_VERSION + 1)
    assert source_digest("digits") != first


# Web servers


class Handler(BaseHTTPRequestHandler):
    """Serves one archive, with the ways to fail that servers have."""

    content = b""
    etag = '"1"'

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        statuses = {"/gone.zip": 404, "/forbidden.zip": 403, "/broken.zip": 500, "/busy.zip": 503}
        if path in statuses:
            self.send_error(statuses[path])
            return
        if path == "/private.zip" and self.headers["Authorization"] != "Basic dXNlcjpzM2NyZXQ=":
            self.send_error(401)
            return
        if path == "/moved.zip":
            self.send_response(302)
            self.send_header("Location", "/data.zip")
            self.end_headers()
            return
        body = b"<html>Please log in</html>" if path == "/login.zip" else self.content
        self.send_response(200)
        if path != "/unmarked.zip":
            self.send_header("ETag", self.etag)
        if path == "/huge.zip":
            self.send_header("Content-Length", str(10**15))
        elif path != "/unmarked.zip":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if path == "/cut.zip" else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(yolo_zip: Path) -> Iterator[str]:
    Handler.content, Handler.etag = yolo_zip.read_bytes(), '"1"'
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.mark.parametrize("path", ["data.zip", "moved.zip", "unmarked.zip", "private.zip"])
def test_download(yolo: Path, yolo_zip: Path, server: str, tmp_path: Path, path: str) -> None:
    expected = prepare(str(yolo), tmp_path / "plain").digest
    dataset = prepare(f"http://user:s3cret@{server}/{path}?token=t0ken#frag", tmp_path / "out")
    assert dataset.digest == expected
    assert dataset.manifest.source == f"http://{server}/{path}"
    for file in tmp_path.glob("out/*.*"):
        assert "s3cret" not in file.read_text() and "t0ken" not in file.read_text()
    assert left_over(tmp_path, "yolo", "yolo.zip", "plain", "out") == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gone.zip", "the server answers 404"),
        ("forbidden.zip", "the server answers 403"),
        ("private.zip", "the server answers 401"),
        ("broken.zip", "the server answers 500"),
        ("busy.zip", "the server answers 503"),
        ("cut.zip", "the connection broke off"),
        ("login.zip", "is neither a folder nor a"),
        ("huge.zip", "1000000.00 GB are needed"),
    ],
)
def test_download_fails(server: str, tmp_path: Path, path: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=words) as caught:
        prepare(f"http://user:wr0ng@{server}/{path}?token=t0ken", tmp_path / "out")
    assert time.monotonic() - started < 15
    assert left_over(tmp_path, "yolo", "yolo.zip") == []
    # Neither message nor traceback nor log may tell the secrets; chained errors are printed with a traceback.
    error: BaseException | None = caught.value
    while error:
        assert "wr0ng" not in str(error) and "t0ken" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    printed = capsys.readouterr()
    assert "wr0ng" not in printed.out + printed.err and "t0ken" not in printed.out + printed.err


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/data.zip", "http://:80/", "http://", "http://[::1/x.zip"])
def test_unreachable(tmp_path: Path, address: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError):
        prepare(address, tmp_path / "out")
    assert time.monotonic() - started < 15
    assert left_over(tmp_path) == []


def test_digest_of_downloads(server: str) -> None:
    first = source_digest(f"http://{server}/data.zip")
    assert source_digest(f"http://{server}/data.zip") == first
    Handler.etag = '"2"'
    assert source_digest(f"http://{server}/data.zip") != first
    # A server that tells nothing about the content must not make stale data look fresh.
    assert source_digest(f"http://{server}/unmarked.zip") != source_digest(f"http://{server}/unmarked.zip")
    with pytest.raises(InputError, match="404"):
        source_digest(f"http://{server}/gone.zip")


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("https://user:p@ss/w@host:8080/a/b.zip?X-Amz-Signature=abc#x", "https://ss/w@host:8080/a/b.zip"),
        ("https://user:p%40ss@host/a.zip", "https://host/a.zip"),
        ("s3://bucket/folder/", "s3://bucket/folder/"),
        ("/home/me/data?.zip", "/home/me/data?.zip"),
        ("digits:train=4", "digits:train=4"),
    ],
)
def test_public_source(source: str, public: str) -> None:
    assert public_source(source) == public


# Object storage


@pytest.fixture(scope="module")
def s3(stored_yolo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A storage with the bucket ``data``, which holds the data set as a folder and as an archive."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }
    with pytest.MonkeyPatch.context() as environment:
        set_environment(environment, settings)
        client = boto3.Session().client("s3")
        client.create_bucket(Bucket="data")
        client.put_object(Bucket="data", Key="sets/yolo/", Body=b"")
        archive = shutil.make_archive(str(tmp_path_factory.mktemp("zip") / "yolo"), "zip", stored_yolo)
        client.upload_file(archive, "data", "sets/yolo.zip")
        for path in sorted(stored_yolo.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), "data", f"sets/yolo/{path.relative_to(stored_yolo).as_posix()}")
    yield settings
    server.stop()


def set_environment(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket's name; the storage's address and credentials are in the environment."""
    set_environment(monkeypatch, s3)
    return "data"


@pytest.fixture
def put(bucket: str) -> Iterator[Callable[[str, bytes], None]]:
    """Stores further objects in the bucket for the time of a test."""
    client = boto3.Session().client("s3")
    keys = []

    def store(key: str, body: bytes) -> None:
        client.put_object(Bucket=bucket, Key=key, Body=body)
        keys.append(key)

    yield store
    for key in keys:
        client.delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize("key", ["sets/yolo/", "sets/yolo", "sets/yolo.zip"])
def test_object_storage(bucket: str, stored_yolo: Path, tmp_path: Path, key: str) -> None:
    expected = prepare(str(stored_yolo), tmp_path / "plain")
    dataset = prepare(f"s3://{bucket}/{key}", tmp_path / "out")
    assert dataset.digest == expected.digest
    assert dataset.manifest.source == f"s3://{bucket}/{key}"
    assert left_over(tmp_path, "plain", "out") == []


def test_whole_bucket(bucket: str, tmp_path: Path) -> None:
    """A bucket that holds both the folder and an archive of it: the archive is no image and is left alone."""
    assert len(prepare(f"s3://{bucket}", tmp_path / "out").manifest.images) == 11


@pytest.mark.parametrize("key", ["sets/yolo/../../evil.jpg", "sets/yolo//etc/evil.jpg", "sets/yolo/a\\..\\evil.jpg"])
def test_hostile_keys(bucket: str, put: Callable[[str, bytes], None], tmp_path: Path, key: str) -> None:
    put(key, b"x")
    with pytest.raises(InputError, match="may lead out of the folder"):
        prepare(f"s3://{bucket}/sets/yolo/", tmp_path / "out")
    assert left_over(tmp_path) == []


def test_key_that_is_file_and_folder(bucket: str, put: Callable[[str, bytes], None], tmp_path: Path) -> None:
    put("sets/yolo/images", b"x")
    with pytest.raises(InputError, match="'images' is both a key and a folder of keys"):
        prepare(f"s3://{bucket}/sets/yolo/", tmp_path / "out")
    assert left_over(tmp_path) == []


def test_key_like_an_unfinished_download(bucket: str, put: Callable[[str, bytes], None], tmp_path: Path) -> None:
    put("sets/yolo/data.yaml.part", b"x")
    with pytest.raises(InputError, match=r"there is a 'data\.yaml\.part' beside 'data\.yaml'"):
        prepare(f"s3://{bucket}/sets/yolo/", tmp_path / "out")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://data/nothing/", "holds nothing"),
        ("s3://data/nothing.zip", "holds nothing"),
        ("s3://no-such-bucket/x.zip", "does not exist|holds nothing"),
        ("s3://no-such-bucket/x/", "does not exist"),
        ("s3:///x/", "names no bucket"),
        ("s3://", "names no bucket"),
        ("s3://me:secret@data/x/", "^s3://…@data: has credentials in it"),
    ],
)
def test_nothing_in_storage(bucket: str, tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(source, tmp_path / "out")
    with pytest.raises(InputError, match=words):
        source_digest(source)


def test_wrong_credentials(bucket: str, tmp_path: Path) -> None:
    # moto checks credentials only when it is told to.
    control = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    requests.post(control, data=b"0", timeout=10).raise_for_status()
    try:
        with pytest.raises(InputError, match=r"the storage refuses it \(InvalidAccessKeyId\)") as caught:
            prepare(f"s3://{bucket}/sets/yolo/", tmp_path / "out")
        assert "s3cret" not in str(caught.value)
    finally:
        requests.post(control, data=b"inf", timeout=10).raise_for_status()


def test_no_credentials(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="there are no credentials"):
        prepare(f"s3://{bucket}/sets/yolo/", tmp_path / "out")


def test_half_of_the_credentials(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="there are no credentials"):
        prepare(f"s3://{bucket}/sets/yolo/", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "the storage at http://127.0.0.1:9 does not answer"),
        ("AWS_ENDPOINT_URL", "not an address", "cannot be read"),
        ("AWS_PROFILE", "nobody", "cannot be read"),
    ],
)
def test_wrong_settings(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    with monkeypatch.context() as changed:
        changed.setenv(name, value)
        with pytest.raises(InputError, match=words):
            prepare(f"s3://{bucket}/sets/yolo/", tmp_path / "out")
    assert left_over(tmp_path) == []


def test_digest_of_storage(bucket: str, put: Callable[[str, bytes], None]) -> None:
    first = source_digest(f"s3://{bucket}/sets/yolo/")
    assert source_digest(f"s3://{bucket}/sets/yolo/") == first
    put("sets/yolo/new.md", b"one")
    second = source_digest(f"s3://{bucket}/sets/yolo/")
    put("sets/yolo/new.md", b"two")
    assert len({first, second, source_digest(f"s3://{bucket}/sets/yolo/")}) == 3


def test_report_names_the_source_without_secrets(server: str, tmp_path: Path) -> None:
    dataset = prepare(f"http://user:s3cret@{server}/data.zip?token=t0ken", tmp_path / "out")
    assert read_report(dataset).source == f"http://{server}/data.zip"
