import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from yolo_distill.components.prepare_data.findings import Kind
from yolo_distill.components.prepare_data.images import inspect, upright_size
from yolo_distill.components.prepare_data.prepare import prepare
from yolo_distill.components.prepare_data.report import read_report
from yolo_distill.components.shared.errors import InputError

Problems = Callable[[Path], Counter[Kind]]
Picture = Callable[..., Image.Image]


def stored(dataset_root: Path, stem: str) -> np.ndarray:
    """Read an image of the artifact as OpenCV sees it, RGB."""
    path = next(dataset_root.glob(f"images/*/{stem}.*"))
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return pixels[..., ::-1]


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_lying_images_are_stored_upright(
    yolo: Path, tmp_path: Path, problems: Problems, orientation: int, suffix: str
) -> None:
    smooth = np.zeros((48, 64, 3), np.uint8)
    smooth[:24, :32, 0] = 200
    smooth[24:, :32, 1] = 100
    lying = Image.fromarray(smooth)
    lying.getexif()[ExifTags.Base.Orientation] = orientation
    (yolo / "images/train/02.jpg").unlink()
    path = yolo / f"images/train/02{suffix}"
    lying.save(path, exif=lying.getexif(), **({"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}))
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert problems(tmp_path / "out") == {Kind.TURNED_IMAGE: 1}
    record = next(r for r in dataset.manifest.images if "/02." in r.file)
    assert Path(record.file).suffix == suffix
    assert (record.width, record.height) == ((48, 64) if orientation >= 5 else (64, 48)) == upright_size(path)
    # OpenCV turns by itself what still carries the tag.
    as_seen = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    upright = stored(tmp_path / "out", "02")
    assert np.abs(upright.astype(int) - as_seen).mean() < (3 if suffix == ".jpg" else 0.01)
    assert Image.open(dataset.image_path(record)).getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_labels_refer_to_the_upright_image(voc: Path, tmp_path: Path, write_xml: Callable[..., Path]) -> None:
    lying = Image.open(voc / "JPEGImages/2.jpg")
    lying.getexif()[ExifTags.Base.Orientation] = 6
    lying.save(voc / "JPEGImages/2.jpg", exif=lying.getexif())
    with pytest.raises(InputError, match=r"the labels are for 64x48 pixels, but the upright image has 48x64"):
        prepare(str(voc), tmp_path / "out")
    write_xml(voc, 2, [("ape", 12, 16, 36, 48)], size=(0, 0))
    dataset = prepare(str(voc), tmp_path / "out")
    np.testing.assert_allclose(dataset.boxes(dataset.split("train")[2])[0], [[12, 16, 36, 48]], atol=1e-3)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", ".jpg"), ("CMYK", ".jpg"), ("L", ".png"), ("1", ".png"), ("P", ".png"), ("RGBA", ".png"), ("LA", ".png")],
)
def test_pixel_formats(yolo: Path, tmp_path: Path, problems: Problems, mode: str, suffix: str) -> None:
    smooth = cv2.resize(np.random.default_rng(1).integers(0, 255, (4, 4, 3), dtype=np.uint8), (64, 48))
    source = Image.fromarray(smooth).convert(mode)
    (yolo / "images/train/02.jpg").unlink()
    source.save(yolo / f"images/train/02{suffix}")
    prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert problems(tmp_path / "out") == {Kind.CONVERTED_IMAGE: 1}
    expected = np.asarray(source.convert("RGB")).astype(int)
    assert np.abs(stored(tmp_path / "out", "02") - expected).mean() < (4 if suffix == ".jpg" else 0.01)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits(yolo: Path, tmp_path: Path, suffix: str, channels: int) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (48, 64, channels), dtype=np.uint16)
    (yolo / "images/train/02.jpg").unlink()
    cv2.imwrite(str(yolo / f"images/train/02{suffix}"), deep)
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert "16 bits a channel" in [f.detail for f in read_report(dataset).findings]
    expected = np.broadcast_to(deep[..., ::-1] / 256, (48, 64, 3))
    assert np.abs(stored(tmp_path / "out", "02") - expected).max() < 1.5


def test_32_bits(yolo: Path, tmp_path: Path) -> None:
    (yolo / "images/train/02.jpg").unlink()
    Image.fromarray(np.zeros((48, 64), np.float32)).save(yolo / "images/train/02.tif")
    with pytest.raises(InputError, match=r"02\.tif: has 32 bits a channel"):
        prepare(str(yolo), tmp_path / "out")


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".tiff"])
def test_other_formats_become_png(yolo: Path, tmp_path: Path, picture: Picture, suffix: str) -> None:
    (yolo / "images/train/02.jpg").unlink()
    picture(2).save(yolo / f"images/train/02{suffix}", lossless=True)
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert "images/train/02.png" in [r.file for r in dataset.manifest.images]
    np.testing.assert_array_equal(stored(tmp_path / "out", "02"), np.asarray(picture(2)))


def test_content_decides_about_the_format(yolo: Path, tmp_path: Path, picture: Picture) -> None:
    picture(2).save(yolo / "images/train/02.jpg", "PNG")
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert "images/train/02.png" in [r.file for r in dataset.manifest.images]
    assert read_report(dataset).findings == []


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def spoilt_png(path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(path).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def bomb(path: Path) -> None:
    """A PNG of 400 million pixels that takes 50 kB on disk."""
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncated, "cannot be decoded: image file is truncated"),
        (emptied, "cannot be decoded: its beginning is of no known format"),
        (replaced, "cannot be decoded: its beginning is of no known format"),
        (spoilt_png, "cannot be decoded"),
        (bomb, "has more than 89 million pixels"),
    ],
)
def test_broken_images(
    yolo: Path, tmp_path: Path, problems: Problems, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(yolo / "images/train/02.jpg")
    with pytest.raises(InputError) as caught:
        prepare(str(yolo), tmp_path / "out")
    assert f"images/train/02.jpg: {words}" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["yolo"]
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0, on_error="drop")
    assert len(dataset.split("train")) == 7
    assert sum(problems(tmp_path / "out").values()) == 1


def test_large_image_that_pillow_only_warns_about(tmp_path: Path, yolo: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(yolo / "images/train/02.jpg", "PNG")
    with pytest.raises(InputError, match="has more than 89 million pixels"):
        prepare(str(yolo), tmp_path / "out")


@pytest.mark.parametrize("size", [(1, 1), (9, 200)])
def test_tiny_images_are_dropped(
    yolo: Path, tmp_path: Path, problems: Problems, picture: Picture, size: tuple[int, int]
) -> None:
    picture(2, *size).save(yolo / "images/train/02.jpg")
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert len(dataset.split("train")) == 7
    assert problems(tmp_path / "out") == {Kind.TINY_IMAGE: 1}


def test_pixels_decide_about_sameness(tmp_path: Path, picture: Picture) -> None:
    picture(1).save(tmp_path / "a.png", compress_level=1)
    picture(1).save(tmp_path / "b.png", compress_level=9, dpi=(72, 72))
    picture(1).resize((48, 64)).save(tmp_path / "c.png")
    a, b, c = (inspect(tmp_path / f"{name}.png").pixels_sha256 for name in "abc")
    assert a == b != c


def test_photograph_with_further_pictures(yolo: Path, tmp_path: Path, picture: Picture) -> None:
    """Phones store a second picture in the same file."""
    picture(2).save(yolo / "images/train/02.jpg", "MPO", save_all=True, append_images=[picture(3)])
    dataset = prepare(str(yolo), tmp_path / "out", test_fraction=0)
    assert "images/train/02.jpg" in [r.file for r in dataset.manifest.images]
