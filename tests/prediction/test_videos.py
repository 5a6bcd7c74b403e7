"""Videos: real ones, written and read back by OpenCV."""

import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.prediction.commands import PROGRAM, done, results, run
from yolo_distill.components.shared.detector import detect, open_detector, read_image

CONF = "--conf=0.2"


def write_video(path: Path, frames: list[np.ndarray], codec: str = "MJPG", rate: float = 10.0) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame)


@pytest.fixture(scope="module")
def scenes(digits) -> list[np.ndarray]:
    """Frames of 160x120 pixels."""
    return [read_image(digits.image_path(record))[:120] for record in digits.split("val")]


def test_a_video(models, scenes, tmp_path):
    clip = write_video(tmp_path / "clip.avi", scenes)
    shown = done(tmp_path, models / "int8", clip, CONF)
    frames, rate = read_video(tmp_path / "predictions" / "clip.mp4")
    originals, _ = read_video(clip)
    assert (len(frames), rate) == (len(originals), 10.0) == (16, 10.0)
    detector = open_detector(models / "int8")
    lines = results(tmp_path / "predictions")
    assert [line["frame"] for line in lines] == list(range(16))
    assert {(line["source"], line["width"], line["height"]) for line in lines} == {("clip.avi", 160, 120)}
    for line, original in zip(lines, originals, strict=True):
        [expected] = detect(detector, [original], 0.2)
        assert [o["class_index"] for o in line["objects"]] == expected.classes.tolist()
    drawn = [bool(line["objects"]) for line in lines]
    assert any(drawn)
    changes = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, originals, strict=True)]
    assert min(c for c, with_boxes in zip(changes, drawn, strict=True) if with_boxes) > 5
    objects = sum(len(line["objects"]) for line in lines)
    assert shown.startswith(f"clip.avi: 16 frames, {objects} objects in ")
    assert " frames/s)\n" in shown
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == {"clip.mp4", "detections.jsonl"}


def test_a_video_of_odd_size(models, scenes, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", [frame[:101, :133] for frame in scenes[:3]], "mp4v")
    done(tmp_path, models / "int8", clip)
    frames, _ = read_video(tmp_path / "predictions" / "clip.mp4")
    # The format has even sides.
    assert [frame.shape for frame in frames] == [(100, 132, 3)] * 3


def test_ctrl_c_leaves_a_valid_video(models, scenes, tmp_path):
    clip = write_video(tmp_path / "clip.avi", [cv2.resize(scene, (1280, 720)) for scene in scenes] * 60)
    process = subprocess.Popen(
        [PROGRAM, "predict", models / "int8", clip],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("predictions/.clip.partial-*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "error: interrupted; what was made until then is complete\n"
    frames, _ = read_video(tmp_path / "predictions" / "clip.mp4")
    assert 0 < len(frames) < 16 * 60
    assert len(results(tmp_path / "predictions")) == len(frames)
    assert f"clip.avi: {len(frames)} frames, " in shown
    assert {path.name for path in (tmp_path / "predictions").iterdir()} == {"clip.mp4", "detections.jsonl"}


def test_a_video_that_was_cut_off(models, scenes, tmp_path):
    data = write_video(tmp_path / "whole.avi", scenes).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    shown = done(tmp_path, models / "int8", "cut.avi")
    assert "The video should have 16 frames: it may be cut off or damaged" in shown
    assert len(results(tmp_path / "predictions")) < 15


def lost_index(folder: Path, scenes: list[np.ndarray]) -> str:
    data = write_video(folder / "whole.mp4", scenes, "mp4v").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    return "cut.mp4"


def playlist(folder: Path, scenes: list[np.ndarray]) -> str:
    """What FFmpeg would follow to another file."""
    write_video(folder / "private.mp4", scenes, "mp4v")
    (folder / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nprivate.mp4\n#EXT-X-ENDLIST\n")
    return "list.m3u8"


def concatenation(folder: Path, scenes: list[np.ndarray]) -> str:
    write_video(folder / "private.mp4", scenes, "mp4v")
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    return "list.mp4"


def words(folder: Path, scenes: list[np.ndarray]) -> str:
    (folder / "notes.txt").write_text("no video")
    return "notes.txt"


@pytest.mark.parametrize("make", [lost_index, playlist, concatenation, words])
def test_what_is_no_video(models, scenes, tmp_path, make):
    name = make(tmp_path, scenes)
    process = run(tmp_path, models / "int8", name)
    assert process.returncode == 2
    assert process.stderr == (
        f"error: {name}: is neither an image nor a video that can be read. Give a JPEG, PNG, MP4, AVI or MKV\n"
    )
    assert not (tmp_path / "predictions").exists()


def test_a_video_is_never_overwritten(models, scenes, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", scenes, "mp4v")
    before = clip.read_bytes()
    process = run(tmp_path, models / "int8", "clip.mp4", "--output=.")
    assert process.returncode == 2
    assert "is the folder of the video itself" in process.stderr
    assert clip.read_bytes() == before


@pytest.mark.skipif(Path("/dev/video7").exists(), reason="this machine has that many cameras")
def test_a_camera_that_is_not_there(models, tmp_path):
    process = run(tmp_path, models / "int8", "7")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: camera 7: cannot be opened. Connect it, or give another number, from 0\n"
    assert not list(tmp_path.iterdir())
