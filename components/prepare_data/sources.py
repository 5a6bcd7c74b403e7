"""Where the data come from: a folder or archive on this machine, on a web server or in object storage."""

import hashlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from yolo_distill.components.prepare_data.archives import unpack
from yolo_distill.components.prepare_data.digits import GENERATOR_VERSION, is_digits
from yolo_distill.components.prepare_data.folder import Folder
from yolo_distill.components.prepare_data.storage import StoredData
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import new_directory, require_free_space
from yolo_distill.components.shared.progress import report_progress

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_RETRIES = 3
_CHUNK_BYTES = 1 << 20
_PROGRESS_BYTES = 32 << 20


def public_source(source: str) -> str:
    """Return a source without what may be a secret: an address's user name, password, query and fragment."""
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
    except ValueError:
        return f"{source.partition('://')[0]}://…"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def fetched(source: str, output: Path) -> Iterator[Path]:
    """Make a source's files available as a folder.

    A local folder is used in place. Everything else is downloaded and unpacked beside the output, on the disk that the
    artifact goes to, and removed after the block.

    Args:
        source: A folder, an archive, or the http, https or s3 address of one.
        output: Where the artifact is going to be.

    Yields:
        The folder.

    Raises:
        InputError: There is no such source, it cannot be read, is no archive or a hostile one, or does not fit on the
            disk.
    """
    if not source:
        raise _missing("source")
    if not _scheme(source) and Path(source).is_dir():
        yield Path(source)
        return
    if not _scheme(source) and not Path(source).is_file():
        raise _missing(source)
    target = output.with_name(f"{output.name}.source-{uuid.uuid4().hex[:8]}")
    try:
        with new_directory(target) as folder:
            _fill(source, folder)
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def source_digest(source: str) -> str:
    """Return a cheap digest of what a source holds, for deciding whether earlier work on it still stands.

    It is taken from names, sizes and times of local files, from the entity tags of objects in storage, from a web
    server's ``ETag``, ``Last-Modified`` and ``Content-Length``, or from the version of the digits generator. Where a
    web server tells nothing, every call returns another digest.

    Args:
        source: As for :func:`fetched`, or ``digits``.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: There is no such source, or it does not answer.
    """
    if is_digits(source):
        return _digest([("digits", GENERATOR_VERSION)])
    scheme = _scheme(source)
    if scheme == "s3":
        return _digest(
            (stored.key, stored.size, stored.etag) for stored in StoredData.at(source, public_source(source)).objects
        )
    if scheme:
        return _digest(_web_marks(source))
    path = Path(source)
    if source and path.is_dir():
        folder = Folder.open(path)
        return _digest((file, *_local_marks(folder.path(file))) for file in folder.files)
    if path.is_file():
        return _digest([_local_marks(path)])
    raise _missing(source)


def _missing(source: str) -> InputError:
    return InputError(source, "does not exist", "Give a folder, an archive, an http(s) or s3 address, or digits")


def _scheme(source: str) -> str:
    """Return ``http``, ``https`` or ``s3``, or an empty text for a path."""
    scheme, separator, _ = source.partition("://")
    if separator and scheme.lower() not in {"http", "https", "s3"}:
        raise InputError(public_source(source), f"{scheme}:// is not supported", "Use a path, http(s):// or s3://")
    return scheme.lower() if separator else ""


def _fill(source: str, folder: Path) -> None:
    """Bring a source's files into an empty folder."""
    shown = public_source(source)
    match _scheme(source):
        case "":
            unpack(Path(source), shown, folder)
        case "s3":
            stored = StoredData.at(source, shown)
            if not stored.is_archive:
                stored.download(folder)
                return
            with _download_folder(folder) as downloads:
                stored.download(downloads)
                unpack(next(downloads.iterdir()), shown, folder)
        case _:
            with _download_folder(folder) as downloads:
                _download(source, downloads / "archive")
                unpack(downloads / "archive", shown, folder)


@contextmanager
def _download_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden place inside a folder, which is gone when the folder is read."""
    downloads = folder / f".download-{uuid.uuid4().hex}"
    downloads.mkdir()
    yield downloads
    shutil.rmtree(downloads)


def _download(source: str, target: Path) -> None:
    with _opened(source, "GET") as response, target.open("wb") as file:
        # Without compression on the way, the length is that of the file.
        total = int(response.headers.get("Content-Length", 0))
        require_free_space(target.parent, total)
        reported = 0
        for chunk in response.iter_content(_CHUNK_BYTES):
            file.write(chunk)
            if file.tell() - reported >= _PROGRESS_BYTES:
                reported = file.tell()
                report_progress(reported // 10**6, max(reported, total) // 10**6, "MB", "downloading")


@contextmanager
def _opened(source: str, method: str) -> Iterator[requests.Response]:
    """Send a request and turn everything that can fail, then or while reading, into an error for the user."""
    shown = public_source(source)
    retries = Retry(total=_RETRIES, backoff_factor=0.3, status_forcelist=(502, 503, 504), raise_on_status=False)
    # The errors of requests hold the whole address, secrets included: they must not be chained.
    try:
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retries))
            timeout = (_CONNECT_SECONDS, _READ_SECONDS)
            headers = {"Accept-Encoding": "identity"}
            with session.request(method, source, stream=True, timeout=timeout, headers=headers) as response:
                response.raise_for_status()
                yield response
    except requests.HTTPError as error:
        status = f"{error.response.status_code} {error.response.reason}"
        raise InputError(shown, f"the server answers {status}", "Check the address and that it may be read") from None
    except requests.exceptions.InvalidURL:
        raise InputError(shown, "is not a valid address", "Check how it is written") from None
    except requests.Timeout:
        raise InputError(shown, "the server does not answer in time", "Try again later") from None
    except requests.exceptions.ChunkedEncodingError:
        raise InputError(shown, "the connection broke off before the end", "Try again") from None
    except requests.RequestException as error:
        raise InputError(shown, f"cannot be reached ({type(error).__name__})", "Check address and network") from None


def _web_marks(source: str) -> list[tuple[str, str]]:
    # A body that is not read costs nothing, and some servers answer no HEAD.
    with _opened(source, "GET") as response:
        names = ("ETag", "Last-Modified", "Content-Length")
        marks = [(name, response.headers[name]) for name in names if name in response.headers]
    return marks if {"ETag", "Last-Modified"} & dict(marks).keys() else [("unknown", uuid.uuid4().hex)]


def _local_marks(path: Path) -> tuple[str, int, int]:
    # A link that leads nowhere is found and told later.
    status = path.stat() if path.exists() else path.lstat()
    return path.name, status.st_size, status.st_mtime_ns


def _digest(marks: Iterable[tuple[object, ...]]) -> str:
    digest = hashlib.sha256()
    for mark in marks:
        digest.update(f"{mark!r}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
