import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmark.models import five_benchmark, five_models
from yolo_distill.components.benchmark.benchmark import benchmark
from yolo_distill.components.benchmark.machine import Disturbance, describe_machine, gpu_memory_in_use
from yolo_distill.components.benchmark.results import Benchmark, read_benchmark
from yolo_distill.components.export_openvino.export import export
from yolo_distill.components.prepare_data.dataset import DetectionDataset
from yolo_distill.components.shared.cores import usable_cores
from yolo_distill.components.shared.errors import InputError


@pytest.fixture(scope="module")
def measured(digits: DetectionDataset, teacher_dir: Path, student_dir: Path) -> Benchmark:
    return read_benchmark(five_benchmark(digits.root, teacher_dir, student_dir))


def test_every_model_is_measured(measured: Benchmark) -> None:
    assert list(measured.entries) == ["teacher", "plain", "distilled", "openvino", "quantized"]
    for entry in measured.entries.values():
        whole, network = entry.end_to_end, entry.network
        assert 0 < whole.p50 <= whole.p90 <= whole.p99
        assert 0 < network.p50 < whole.p50 < entry.from_file.p50, "each is a part of the next"
        assert entry.gpu_memory_bytes is None or shutil.which("nvidia-smi")
        assert entry.samples >= 5
        assert entry.throughput > 0
    assert measured.images == 16
    assert 0 <= measured.disturbance <= 1


def test_runtimes_are_kept_busy_their_own_way(measured: Benchmark) -> None:
    assert measured.entries["teacher"].throughput_mode == "batches of 8"
    assert measured.entries["openvino"].throughput_mode.endswith("parallel requests")


def test_a_model_that_takes_pixels_is_measured(digits: DetectionDataset, student_dir: Path, tmp_path: Path) -> None:
    export(digits, student_dir, tmp_path / "onnx", tmp_path / "openvino", pixel_input=True)
    entry = benchmark(digits, {"pixels": tmp_path / "openvino"}, 0.5, tmp_path / "results").entries["pixels"]
    assert entry.throughput > 0


def test_size_is_that_of_model_and_weights(measured: Benchmark, student_dir: Path) -> None:
    openvino, quantized = measured.entries["openvino"], measured.entries["quantized"]
    files = [student_dir.parent / "converted" / "openvino" / f"model.{suffix}" for suffix in ("xml", "bin")]
    assert openvino.size_bytes == sum(file.stat().st_size for file in files)
    assert quantized.size_bytes < 0.5 * openvino.size_bytes


def test_memory_is_the_models_own(measured: Benchmark) -> None:
    # PyTorch alone takes more than the whole OpenVINO process: had they shared one, both figures would be the same.
    assert measured.entries["openvino"].peak_memory_bytes < 0.7 * measured.entries["teacher"].peak_memory_bytes


def test_memory_of_the_parent_does_not_count() -> None:
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "from yolo_distill.components.benchmark.machine import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(child.stdout) < 300_000_000


# 28 MiB are others'; as long as the benchmark has a process for the model, that takes 200 MiB.
GPU_WITH_A_MODEL = """#!/bin/sh
pgrep -P $PPID -f benchmark.worker >/dev/null && echo 200 || echo 0
echo 28
"""


def fake_gpu(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_threads_batch_and_gpu_memory(
    digits: DetectionDataset,
    teacher_dir: Path,
    student_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    five_models(digits.root, teacher_dir, student_dir)
    fake_gpu(tmp_path, GPU_WITH_A_MODEL, monkeypatch)
    models = {"onnx": student_dir.parent / "converted" / "onnx"}
    result = benchmark(digits, models, 0.1, tmp_path / "results", threads=1, batch=3)
    assert result.machine.threads == 1
    assert result.entries["onnx"].throughput_mode == "batches of 3"
    assert result.entries["onnx"].gpu_memory_bytes == 200 * 2**20


def test_a_gpus_tool_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(tmp_path, "#!/bin/sh\necho no driver\nexit 9\n", monkeypatch)
    assert gpu_memory_in_use() is None
    fake_gpu(tmp_path, "#!/bin/sh\necho 100\necho 28\n", monkeypatch)
    assert gpu_memory_in_use() == 128 * 2**20


@pytest.mark.skipif("amx_int8" not in describe_machine(1).instructions, reason="needs a processor with AMX")
def test_a_small_int8_model_runs_without_amx(digits: DetectionDataset, teacher_dir: Path, student_dir: Path) -> None:
    model = five_models(digits.root, teacher_dir, student_dir)["quantized"]
    # A process of its own, because OpenVINO chooses instructions once.
    code = f"""
from pathlib import Path
from yolo_distill.components.shared.detector import open_detector
compiled = open_detector(Path({str(model)!r})).network._request.get_compiled_model()
print([node.get_rt_info()["primitiveType"].astype(str) for node in compiled.get_runtime_model().get_ops()])
"""
    kernels = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "brgconv_avx512_I8" in kernels
    assert "amx" not in kernels


def test_a_model_that_cannot_be_opened_is_the_users_error(
    digits: DetectionDataset, teacher_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.pt").write_bytes(b"no checkpoint")
    card = json.loads((teacher_dir / "model.json").read_text())
    # The file is what the card says, so only the model's own process can find out.
    card["digests"] = {"model.pt": hashlib.sha256(b"no checkpoint").hexdigest()}
    (broken / "model.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"broken/model\.pt: .*checkpoint"):
        benchmark(digits, {"teacher": broken}, 1.0, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_nothing_to_measure_with_is_refused(digits: DetectionDataset, teacher_dir: Path, tmp_path: Path) -> None:
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="no time to measure"):
            benchmark(digits, {"teacher": teacher_dir}, seconds, tmp_path / "results")
    for name in ("threads", "batch"):
        with pytest.raises(InputError, match=f"{name}=0: is less than 1"):
            benchmark(digits, {"teacher": teacher_dir}, 1.0, tmp_path / "results", **{name: 0})


@pytest.mark.parametrize(("limit", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", None)])
def test_a_containers_limit_counts(limit: str, cores: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    without_limit = usable_cores(tmp_path / "missing")
    assert usable_cores(tmp_path / "cpu.max") == (min(cores, without_limit) if cores else without_limit)


def test_the_machine_is_named() -> None:
    machine = describe_machine(threads=2)
    assert machine.threads == 2
    assert machine.memory_bytes > 10**8
    assert machine.versions["openvino"]
    assert machine.cpu in Path("/proc/cpuinfo").read_text() or machine.cpu in {"aarch64", "x86_64"}


def test_work_of_others_is_noticed() -> None:
    alone = Disturbance([])
    burn = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", burn]) as other:
        as_other, as_own = Disturbance([]), Disturbance([other.pid])
        # Its figures are those of before it ends.
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1.5)"], check=True)
        assert as_other.share() > as_own.share()
    assert alone.share() > 0
