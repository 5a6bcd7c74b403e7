"""Files up and down while connections break, storages are busy and processes die."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import boto3
import pytest

from tests.shared_storage.faults import Fault, Proxy
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file
from yolo_distill.components.shared.s3 import connection
from yolo_distill.components.shared.s3.download import Digest
from yolo_distill.components.shared.s3.parts import PART_BYTES, TRIES
from yolo_distill.components.shared.storage import StoredFolder

KEY = "some/where/name"
# Three parts, the last a short one.
SIZE = 2 * PART_BYTES + 12_345


def make_file(folder: Path, size: int = SIZE, seed: int = 0) -> Path:
    file = folder / f"file-{size}-{seed}"
    file.write_bytes(content(size, seed))
    return file


@lru_cache(maxsize=8)
def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


def stored(server: str, key: str = KEY) -> bytes:
    endpoint = f"http://{server}"
    return boto3.Session().client("s3", endpoint_url=endpoint).get_object(Bucket="data", Key=key)["Body"].read()


def unfinished_uploads(server: str) -> list[dict]:
    endpoint = f"http://{server}"
    return boto3.Session().client("s3", endpoint_url=endpoint).list_multipart_uploads(Bucket="data").get("Uploads", [])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty folder to download into."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def sha256(proxy: Proxy, server: str, tmp_path: Path, folder: StoredFolder) -> str:
    """Digest of a file that the storage holds already."""
    file = make_file(tmp_path)
    folder.upload(file, "name", sha256_file(file))
    proxy.clear()
    return sha256_file(file)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, SIZE])
def test_what_goes_up_comes_down(
    proxy: Proxy, server: str, folder: StoredFolder, tmp_path: Path, here: Path, size: int
) -> None:
    file = make_file(tmp_path, size)
    folder.upload(file, "name", sha256_file(file))
    assert stored(server) == content(size)
    assert folder.describe("name") == (size, Digest("sha256", sha256_file(file)))
    folder.download("name", here / "deeper", sha256_file(file))
    assert (here / "deeper").read_bytes() == content(size)
    assert names(here) == {"deeper"}
    puts = proxy.seen("PUT")
    assert len(puts) == max(1, -(-size // PART_BYTES))
    # MD5 of every part, as every storage knows it, and nothing that only some do.
    assert all("Content-MD5" in put.headers for put in puts)
    headers = {name.lower() for request in proxy.requests for name in request.headers}
    assert not {h for h in headers if h.startswith(("x-amz-checksum-crc", "x-amz-trailer", "x-amz-sdk-checksum"))}
    assert {request.path.partition("?")[0] for request in proxy.requests} <= {"/data", f"/data/{KEY}"}


def test_progress_is_told(
    proxy: Proxy, folder: StoredFolder, tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_file(tmp_path, 9 * PART_BYTES)
    folder.upload(file, "name", sha256_file(file))
    assert [line.split(" ")[2] for line in capsys.readouterr().out.splitlines()] == ["uploading"] * 2
    folder.download("name", here / "file", sha256_file(file))
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[2] for line in told] == ["downloading"] * 2
    assert all(line.startswith("MB ") and line.split(" ")[1].endswith("/75") for line in told)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("reset", after=3 << 20, times=6)],
        [Fault("reset", after=0, times=3)],
        [Fault("cut", after=5 << 20, times=3)],
        [Fault("cut", after=0, times=3)],
        [Fault("break", times=10)],
        [Fault("status", times=12)],
        [Fault("status", times=12, code="InternalError", status=500)],
        [Fault("status", method="HEAD", times=3, status=503)],
        [Fault("trickle", after=5, times=1)],
        [
            Fault("reset", after=1 << 20, times=8),
            Fault("status", times=3),
            Fault("cut", after=2 << 20, times=5),
            Fault("break", times=2),
        ],
    ],
    ids=lambda faults: "+".join(f"{fault.kind}-{fault.after}" for fault in faults),
)
def test_downloads_survive(proxy: Proxy, folder: StoredFolder, sha256: str, here: Path, faults: list[Fault]) -> None:
    proxy.faults = [Fault(**vars(fault)) for fault in faults]
    folder.download("name", here / "file", sha256)
    assert (here / "file").read_bytes() == content(SIZE)
    assert names(here) == {"file"}
    assert not any(fault.times for fault in proxy.faults)
    # Not more than what was in the buffers of broken connections is sent twice.
    assert proxy.sent() < SIZE + len(proxy.requests) * (2 << 20)


def test_a_silent_connection_is_given_up(
    proxy: Proxy, folder: StoredFolder, sha256: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 1)
    proxy.faults = [Fault("stall", after=20_000)]
    started = time.monotonic()
    StoredFolder.at(folder.source, folder.source).download("name", here / "file", sha256)
    assert time.monotonic() - started < 15
    assert (here / "file").read_bytes() == content(SIZE)


@pytest.mark.parametrize("kind", ["reset", "cut", "status"])
def test_what_never_ends_is_told_and_goes_on_later(
    proxy: Proxy, folder: StoredFolder, sha256: str, here: Path, kind: str
) -> None:
    # The last part never comes.
    proxy.faults = [Fault("lose" if kind == "reset" else kind, times=float("inf"), skip=2)]
    words = {"status": r"the storage refuses it \(SlowDown\): it is overloaded"}
    with pytest.raises(InputError, match=words.get(kind, "breaks off|does not answer")) as caught:
        folder.download("name", here / "file", sha256)
    assert str(caught.value).startswith("s3://data/some/where/name: ")
    assert len(proxy.seen("GET")) >= 2 + TRIES
    assert names(here) == {"file.part", "file.part.json"}
    proxy.clear()
    folder.download("name", here / "file", sha256)
    assert (here / "file").read_bytes() == content(SIZE)
    assert names(here) == {"file"}
    assert proxy.sent() <= PART_BYTES


def test_a_storage_without_ranges_is_told(proxy: Proxy, folder: StoredFolder, sha256: str, here: Path) -> None:
    proxy.faults = [Fault("whole", times=float("inf"))]
    with pytest.raises(InputError, match="does not send parts of it"):
        folder.download("name", here / "file", sha256)
    assert names(here) == set()


@pytest.mark.parametrize("size", [1000, SIZE])
def test_a_changed_byte_is_noticed(proxy: Proxy, folder: StoredFolder, tmp_path: Path, here: Path, size: int) -> None:
    file = make_file(tmp_path, size)
    folder.upload(file, "name", sha256_file(file))
    proxy.faults = [Fault("flip")]
    with pytest.raises(InputError, match=r"name: differs from its digest \(sha256\)"):
        folder.download("name", here / "file", sha256_file(file))
    assert names(here) == set()
    with pytest.raises(InputError, match="differs from its digest"):
        folder.download("name", here / "file", "0" * 64)
    folder.download("name", here / "file", sha256_file(file))


DOWNLOAD = """
import sys
from pathlib import Path
from yolo_distill.components.shared.storage import StoredFolder
print("ready", flush=True)
StoredFolder.at(sys.argv[1], sys.argv[1]).download("name", Path(sys.argv[2]), sys.argv[3])
"""
UPLOAD = """
import sys
from pathlib import Path
from yolo_distill.components.shared.storage import StoredFolder
print("ready", flush=True)
StoredFolder.at(sys.argv[1], sys.argv[1]).upload(Path(sys.argv[2]), "name", sys.argv[3])
"""


def transferring(script: str, file: Path, sha256: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, "s3://data/some/where", str(file), sha256]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"ready\n"
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_killed_download_goes_on(proxy: Proxy, folder: StoredFolder, tmp_path: Path, here: Path) -> None:
    size = 6 * PART_BYTES
    file = make_file(tmp_path, size)
    sha256 = sha256_file(file)
    folder.upload(file, "name", sha256)
    proxy.clear()
    proxy.faults = [Fault("hold", times=float("inf"), skip=3)]
    process = transferring(DOWNLOAD, here / "file", sha256)
    journal = here / "file.part.json"
    wait_for(lambda: journal.exists() and len(journal.read_text().splitlines()) == 4)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert names(here) == {"file.part", "file.part.json"}
    proxy.clear()
    folder.download("name", here / "file", sha256)
    assert (here / "file").read_bytes() == content(size)
    assert names(here) == {"file"}
    assert proxy.sent() == size - 3 * PART_BYTES


def test_what_a_kill_left_is_checked(proxy: Proxy, folder: StoredFolder, sha256: str, here: Path) -> None:
    proxy.faults = [Fault("lose", times=float("inf"), skip=2)]
    with pytest.raises(InputError):
        folder.download("name", here / "file", sha256)
    proxy.clear()
    # A machine that lost its power may have kept the list and lost some bytes.
    with (here / "file.part").open("r+b") as partial:
        partial.seek(1000)
        partial.write(b"other")
    folder.download("name", here / "file", sha256)
    assert (here / "file").read_bytes() == content(SIZE)
    assert proxy.sent() == SIZE - PART_BYTES


@pytest.mark.parametrize("journal", ["", "{", "[]\n[1]\n", "null\n", '{"etag": "other"}\n[1, 0]\n'])
def test_a_damaged_list_of_parts_is_nothing(
    proxy: Proxy, folder: StoredFolder, sha256: str, here: Path, journal: str
) -> None:
    (here / "file.part").write_bytes(b"x" * (SIZE + 1))
    (here / "file.part.json").write_text(journal)
    folder.download("name", here / "file", sha256)
    assert (here / "file").read_bytes() == content(SIZE)
    assert names(here) == {"file"}


def test_another_version_is_not_mixed_in(
    proxy: Proxy, folder: StoredFolder, sha256: str, tmp_path: Path, here: Path
) -> None:
    proxy.faults = [Fault("lose", times=float("inf"), skip=2)]
    with pytest.raises(InputError):
        folder.download("name", here / "file", sha256)
    proxy.clear()
    other = make_file(tmp_path, SIZE, 1)
    folder.upload(other, "name", sha256_file(other))
    folder.download("name", here / "file", sha256_file(other))
    assert (here / "file").read_bytes() == content(SIZE, 1)


def test_a_version_that_changes_on_the_way_is_told(
    proxy: Proxy, server: str, folder: StoredFolder, sha256: str, here: Path
) -> None:
    proxy.faults = [Fault("status", skip=1, times=float("inf"), code="PreconditionFailed", status=412)]
    with pytest.raises(InputError, match=r"was changed while it was read\. Try again"):
        folder.download("name", here / "file", sha256)
    # As the storage itself has it.
    etag = boto3.Session().client("s3").head_object(Bucket="data", Key=KEY)["ETag"]
    assert {request.headers["If-Match"] for request in proxy.seen("GET")} == {etag}


def test_two_processes_that_want_the_same_fetch_it_once(
    proxy: Proxy, folder: StoredFolder, sha256: str, here: Path
) -> None:
    proxy.faults = [Fault("trickle", after=20, times=3)]
    processes = [transferring(DOWNLOAD, here / "file", sha256) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (here / "file").read_bytes() == content(SIZE)
    assert names(here) == {"file"}
    assert proxy.sent() == SIZE


# Up


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("break", "PUT", times=9)],
        [Fault("lose", "PUT", times=5)],
        [Fault("status", "PUT", times=12)],
        [Fault("garble", "PUT", times=4)],
        [Fault("status", "POST", "uploads", times=6)],
        [Fault("status", "POST", "uploadId", times=6)],
        [Fault("lose", "POST", "uploadId", times=1)],
        [Fault("break", "HEAD", times=3)],
    ],
    ids=lambda faults: "-".join(f"{fault.kind}-{fault.method}-{fault.path}" for fault in faults),
)
def test_uploads_survive(proxy: Proxy, server: str, folder: StoredFolder, tmp_path: Path, faults: list[Fault]) -> None:
    proxy.faults = [Fault(**vars(fault)) for fault in faults]
    file = make_file(tmp_path)
    folder.upload(file, "name", sha256_file(file))
    assert stored(server) == content(SIZE)
    assert unfinished_uploads(server) == []
    assert not any(fault.times for fault in proxy.faults)


@pytest.mark.parametrize("kind", ["break", "lose", "status", "garble"])
def test_small_uploads_survive(proxy: Proxy, server: str, folder: StoredFolder, tmp_path: Path, kind: str) -> None:
    proxy.faults = [Fault(kind, "PUT", times=4)]
    file = make_file(tmp_path, 1000)
    folder.upload(file, "name", sha256_file(file))
    assert stored(server) == content(1000)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("status", "PUT", "partNumber=3", times=float("inf")), "it is overloaded"),
        (Fault("break", "PUT", "partNumber=3", times=float("inf")), "does not answer"),
        (Fault("status", "PUT", "partNumber=3", code="AccessDenied", status=403), "may not do that"),
        (Fault("status", "POST", "uploadId", code="AccessDenied", status=403), "may not do that"),
    ],
)
def test_nothing_is_left_of_an_upload_that_fails(
    proxy: Proxy, server: str, folder: StoredFolder, tmp_path: Path, fault: Fault, words: str
) -> None:
    proxy.faults = [fault]
    file = make_file(tmp_path)
    with pytest.raises(InputError, match=words):
        folder.upload(file, "name", sha256_file(file))
    assert unfinished_uploads(server) == []
    assert folder.describe("name") is None


def test_a_killed_upload_goes_on(proxy: Proxy, server: str, folder: StoredFolder, tmp_path: Path) -> None:
    size = 6 * PART_BYTES
    file = make_file(tmp_path, size)
    kill_upload(proxy, server, file)
    folder.upload(file, "name", sha256_file(file))
    assert stored(server) == content(size)
    assert unfinished_uploads(server) == []
    assert proxy.received() == size - 3 * PART_BYTES


def test_parts_of_another_file_are_not_used(proxy: Proxy, server: str, folder: StoredFolder, tmp_path: Path) -> None:
    kill_upload(proxy, server, make_file(tmp_path, 6 * PART_BYTES))
    # The same parts, but for the last.
    other = tmp_path / "other"
    other.write_bytes(content(6 * PART_BYTES)[:-1] + b"x")
    folder.upload(other, "name", sha256_file(other))
    assert stored(server) == other.read_bytes()
    third = make_file(tmp_path, 3 * PART_BYTES, 3)
    folder.upload(third, "name", sha256_file(third))
    assert stored(server) == third.read_bytes()


def test_who_may_not_list_uploads_starts_over(proxy: Proxy, server: str, folder: StoredFolder, tmp_path: Path) -> None:
    file = make_file(tmp_path)
    proxy.faults = [Fault("status", "GET", "uploads", code="AccessDenied", status=403)]
    folder.upload(file, "name", sha256_file(file))
    assert stored(server) == content(SIZE)


def kill_upload(proxy: Proxy, server: str, file: Path) -> None:
    """Start an upload of which three parts arrive, and kill it."""
    proxy.faults = [Fault("hold", "PUT", times=float("inf"), skip=3)]
    process = transferring(UPLOAD, file, sha256_file(file))
    storage = boto3.Session().client("s3", endpoint_url=f"http://{server}")

    def arrived() -> int:
        return sum(
            len(storage.list_parts(Bucket="data", Key=KEY, UploadId=upload["UploadId"]).get("Parts", []))
            for upload in unfinished_uploads(server)
        )

    wait_for(lambda: arrived() == 3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    proxy.clear()
