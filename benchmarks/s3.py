"""What a large file costs on its way to object storage and back: memory and time.

Ours and boto3's own transfer, which neither goes on after a kill nor checks the whole, each move the file up and down
in a process of its own. Memory is what that process grows by at its worst, from before it connects. The storage is a
moto server in another process, over real HTTP; it answers one request at a time and is what limits the speed, so that
only the ratio of the arms says something. With ``--bucket``, the storage that boto3 finds in the environment is used
instead.

    python benchmarks/s3.py
"""

import json
import multiprocessing as mp
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

# Moto copies an object for every range that is asked of it: several at once would fill the memory.
SERVER = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
make_server("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app)).serve_forever()
"""


def main(
    megabytes: Annotated[int, typer.Option(help="Size of the file in MiB.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Runs of each arm.")] = 1,
    bucket: Annotated[str, typer.Option(help="A bucket to use; without it, a server of our own.")] = "",
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(__file__).parent / "results/s3.json",
) -> None:
    """Move a file up and down by each arm in turns, and check what comes back."""
    from yolo_distill.components.benchmark.machine import describe_machine
    from yolo_distill.components.shared.cores import usable_cores

    arms: dict[str, Callable[[str, Path, Path], tuple[float, float]]] = {"ours": ours, "boto3": plain_boto3}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory(prefix="bench-s3-") as work, storage(bucket) as used:
        file = Path(work) / "file"
        with file.open("wb") as content:
            for _ in range(megabytes):
                content.write(os.urandom(1 << 20))
        for turn in range(rounds):
            for name, arm in arms.items():
                figures[name].append(in_a_process(arm, used, file))
                print(f"round {turn} {name}: {figures[name][-1]}", flush=True)
    result = {
        "machine": describe_machine(usable_cores()).model_dump(),
        "settings": {"megabytes": megabytes, "rounds": rounds, "server": "given" if bucket else "moto, one at a time"},
        "runs": figures,
        "median": {
            name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for name, runs in figures.items()
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("Arm", "Up (MB/s)", "Down (MB/s)", "Memory grown (MiB)", title=f"{megabytes} MiB up and down")
    for name, median in result["median"].items():
        table.add_row(name, *(f"{median[key]:.0f}" for key in ("up_mb_s", "down_mb_s", "grown_mib")))
    Console().print(table)


@contextmanager
def storage(bucket: str) -> Iterator[str]:
    """Yield a bucket, by default one of a server that lives as long as the block."""
    import boto3

    if bucket:
        yield bucket
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.2)
        boto3.client("s3").create_bucket(Bucket="bench")
        yield "bench"
    finally:
        server.kill()
        server.wait()


def in_a_process(arm: Callable[[str, Path, Path], tuple[float, float]], bucket: str, file: Path) -> dict[str, float]:
    """Run an arm in a process that does nothing else and return its figures."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measured, args=(arm, bucket, file, theirs))
    process.start()
    theirs.close()
    figures: dict[str, float] = ours.recv()
    process.join()
    return figures


def measured(
    arm: Callable[..., tuple[float, float]], bucket: str, file: Path, pipe: "mp.connection.Connection"
) -> None:
    """Run an arm, check the file that comes back, and send seconds and growth of memory."""
    from yolo_distill.components.benchmark.machine import peak_memory_bytes
    from yolo_distill.components.shared import storage as _  # noqa: F401  Modules are no memory of a transfer.
    from yolo_distill.components.shared.files import sha256_file

    back = file.with_name("back")
    before = psutil.Process().memory_info().rss
    up, down = arm(bucket, file, back)
    grown = peak_memory_bytes() - before
    if sha256_file(back) != sha256_file(file):
        raise SystemExit("what came back differs")
    back.unlink()
    megabytes = file.stat().st_size / 1e6
    pipe.send({"up_mb_s": megabytes / up, "down_mb_s": megabytes / down, "grown_mib": grown / (1 << 20)})


def ours(bucket: str, file: Path, back: Path) -> tuple[float, float]:
    """Move a file up and down by what this project uses, digests included; return seconds."""
    from yolo_distill.components.shared.files import sha256_file
    from yolo_distill.components.shared.storage import StoredFolder

    folder = StoredFolder.at(f"s3://{bucket}/ours", f"s3://{bucket}/ours")
    started = time.perf_counter()
    sha256 = sha256_file(file)
    folder.upload(file, "file", sha256)
    middle = time.perf_counter()
    folder.download("file", back, sha256)
    return middle - started, time.perf_counter() - middle


def plain_boto3(bucket: str, file: Path, back: Path) -> tuple[float, float]:
    """Move a file up and down by boto3 as it comes; return seconds."""
    import boto3

    client = boto3.client("s3")
    started = time.perf_counter()
    client.upload_file(str(file), bucket, "boto3/file")
    middle = time.perf_counter()
    client.download_file(bucket, "boto3/file", str(back))
    return middle - started, time.perf_counter() - middle


if __name__ == "__main__":
    typer.run(main)
