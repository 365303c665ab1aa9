"""Animations: composed frames of gif, webp and png files, and their durations."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from video_diffusion_pytorch.data.formats.animations import (
    gif_durations,
    png_durations,
    webp_durations,
)
from video_diffusion_pytorch.data.formats.pictures import PictureReader, gif_to_tensor

GIFS = sorted((Path(__file__).parents[2] / "golden" / "gifs").glob("*.gif"))
SIZE = (9, 7)  # width, height


def gif(frames, palette, background=0):
    """A gif whose codes are not compressed: each pixel is a code of 9 bits."""
    w, h = SIZE
    head = struct.pack("<6s2H3B", b"GIF89a", w, h, 0xF7 if palette else 0x70, background, 0)
    content = head + (palette or b"")
    for frame in frames:
        clear, own = frame["clear"], frame["palette"] or b""
        flags = frame["disposal"] << 2 | (clear is not None)
        content += b"!\xf9\x04" + struct.pack("<BHBB", flags, 10, clear or 0, 0)
        rows = frame["pixels"]
        h, w = rows.shape
        if frame["is_interlaced"]:
            passes = ((0, 8), (4, 8), (2, 4), (1, 2))
            rows = rows[[row for start, step in passes for row in range(start, h, step)]]
        flags = 0x87 * bool(own) | 0x40 * frame["is_interlaced"]
        content += b"," + struct.pack("<4HB", *frame["corner"], w, h, flags) + own + b"\x08"
        codes = [256, *rows.ravel().tolist(), 257]
        bits = sum(code << 9 * place for place, code in enumerate(codes))
        data = bits.to_bytes((9 * len(codes) + 7) // 8, "little")
        content += bytes([len(data)]) + data + b"\0"
    return content + b";"


def random_frames(rng, count=5):
    for index in range(count):
        is_whole = rng.random() < (0.5 if index == 0 else 0.2)
        w, h = SIZE if is_whole else rng.integers(1, np.add(SIZE, 1))
        yield {
            "corner": tuple(rng.integers(0, np.subtract(SIZE, (w, h)) + 1)),
            "pixels": rng.integers(0, 4, (h, w)),
            "clear": int(rng.integers(0, 4)) if rng.random() < 0.5 else None,
            "disposal": int(rng.integers(0, 4)),
            "is_interlaced": bool(rng.random() < 0.3),
            "palette": rng.bytes(768) if rng.random() < 0.4 else None,
        }


def on_black(rgba):
    rgba = rgba.astype(int)
    return rgba[..., :3] * (rgba[..., 3:] > 127)


def read(path, channels):
    with PictureReader(path, channels) as reader:
        return np.stack([np.asarray(frame) for frame in reader.pictures(range(99))])


def opaque(frames, rng, is_whole):
    """Opaque frames of which the first, or each, covers the screen."""
    for index, frame in enumerate(frames):
        frame["clear"] = None
        if is_whole or not index:
            frame |= {"corner": (0, 0), "pixels": rng.integers(0, 4, SIZE[::-1])}
        if not is_whole:
            frame["disposal"] %= 2
        yield frame


@pytest.mark.parametrize("kind", ["any", "opaque", "whole"])
@pytest.mark.parametrize("seed", range(30))
def test_gif_frames_are_those_of_ffmpeg(tmp_path, seed, kind):
    """Every disposal after every other, with and without transparency, palettes, interlacing."""
    rng = np.random.default_rng(seed)
    frames = list(random_frames(rng))
    if kind != "any":
        frames = list(opaque(frames, rng, kind == "whole"))
    palette = rng.bytes(768) if seed % 4 else None
    for frame in frames:
        frame["palette"] = frame["palette"] or (None if palette else rng.bytes(768))
    (tmp_path / "a.gif").write_bytes(gif(frames, palette, background=seed % 5))
    with av.open(str(tmp_path / "a.gif")) as file:
        shown = np.stack([frame.to_ndarray(format="rgba") for frame in file.decode(video=0)])
    four = read(tmp_path / "a.gif", 4)
    assert np.array_equal(four[..., 3], shown[..., 3])
    assert np.array_equal(on_black(four), on_black(shown))
    three = read(tmp_path / "a.gif", 3)
    assert np.array_equal(three, on_black(shown))
    grey = read(tmp_path / "a.gif", 1)
    assert abs(grey - three @ [0.299, 0.587, 0.114]).max() < 1
    assert np.array_equal(
        gif_to_tensor(tmp_path / "a.gif").permute(1, 2, 3, 0).mul(255).round(), three
    )
    with PictureReader(tmp_path / "a.gif", 3) as reader:  # backwards, too
        for index in (4, 2, 3, 0):
            assert np.array_equal(np.asarray(next(reader.pictures([index]))), three[index])


def test_a_colour_that_leaves_what_is_there_is_not_transparent(tmp_path):
    pixels = np.ones((SIZE[1], SIZE[0]), int)
    first = {"corner": (0, 0), "pixels": pixels, "clear": None, "disposal": 1}
    second = {**first, "pixels": 2 * pixels, "clear": 2}
    both = [{**frame, "is_interlaced": False, "palette": None} for frame in (first, second)]
    (tmp_path / "a.gif").write_bytes(
        gif(both, bytes([0, 0, 0, 9, 8, 7, 255, 255, 255, *[0] * 759]))
    )
    assert np.unique(read(tmp_path / "a.gif", 4).reshape(-1, 4), axis=0).tolist() == [
        [9, 8, 7, 255]
    ]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def apng(frames, kind, shared=b"", default=None):
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", *SIZE, 8, kind, 0, 0, 0))
    content += chunk(b"acTL", struct.pack(">2I", len(frames), 0)) + shared
    number = 0

    def packed(pixels):
        return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))

    if default is not None:
        content += chunk(b"IDAT", packed(default))
    for index, (pixels, corner, dispose, blend) in enumerate(frames):
        h, w, _ = pixels.shape
        control = struct.pack(">5I2H2B", number, w, h, *corner, 1, 10, dispose, blend)
        content += chunk(b"fcTL", control)
        is_first = index == 0 and default is None
        data = packed(pixels) if is_first else struct.pack(">I", number + 1) + packed(pixels)
        content += chunk(b"IDAT" if is_first else b"fdAT", data)
        number += 1 + (not is_first)
    return content + chunk(b"IEND", b"")


def composed_by_hand(frames, to_rgba):
    """In floats, as the PNG specification (third edition, section 11.3.6.2) says."""
    canvas = np.zeros((SIZE[1], SIZE[0], 4))
    for pixels, (left, top), dispose, blend in frames:
        rgba = to_rgba(pixels) / 255
        h, w, _ = rgba.shape
        place = canvas[top : top + h, left : left + w]
        before = place.copy()
        opacity = rgba[..., 3:] + before[..., 3:] * (1 - rgba[..., 3:])
        over = rgba[..., :3] * rgba[..., 3:] + before[..., :3] * before[..., 3:] * (
            1 - rgba[..., 3:]
        )
        mixed = np.concatenate([over / np.where(opacity, opacity, 1), opacity], -1)
        place[:] = mixed if blend else rgba
        yield 255 * canvas[..., :3] * canvas[..., 3:]
        place[:] = {0: place, 1: 0, 2: before}[dispose]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", [0, 2, 3, 4, 6])
def test_png_frames_are_composed(tmp_path, kind, seed):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    opacities = rng.choice([0, 90, 255], 256).astype(np.uint8)
    shared = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", opacities.tobytes())

    def to_rgba(pixels):
        full = np.full((*pixels.shape[:2], 1), 255)
        return {
            0: lambda: np.concatenate([pixels] * 3 + [full], -1),
            2: lambda: np.concatenate([pixels, full], -1),
            3: lambda: np.concatenate([palette, opacities[:, None]], -1)[pixels[..., 0]],
            4: lambda: pixels[..., [0, 0, 0, 1]],
            6: lambda: pixels,
        }[kind]()

    frames = []
    for index in range(5):
        w, h = SIZE if index == 0 else rng.integers(1, np.add(SIZE, 1))
        pixels = rng.integers(0, 256, (h, w, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]), np.uint8)
        if kind in (4, 6):
            pixels[..., -1] = rng.choice([0, 90, 255], (h, w))
        corner = tuple(rng.integers(0, np.subtract(SIZE, (w, h)) + 1))
        frames.append((pixels, corner, int(rng.integers(0, 3)), int(rng.integers(0, 2))))
    default = frames[0][0][::-1] if seed % 3 == 0 else None
    (tmp_path / "a.png").write_bytes(apng(frames, kind, shared if kind == 3 else b"", default))
    expected = np.stack(list(composed_by_hand(frames, to_rgba)))
    assert abs(read(tmp_path / "a.png", 3) - expected).max() <= 1


def test_a_tall_frame_is_laid_over_another_one(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SIZE", (5, 600))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 600, 4, 4), np.uint8)
    pixels[..., 3] = rng.choice([0, 90, 255], pixels.shape[:3])
    frames = [
        (np.pad(pixels[0], [(0, 0), (1, 0), (0, 0)]), (0, 0), 0, 0),
        (pixels[1], (1, 0), 0, 1),
    ]
    (tmp_path / "a.png").write_bytes(apng(frames, 6))
    expected = np.stack(list(composed_by_hand(frames, np.asarray)))
    assert abs(read(tmp_path / "a.png", 3) - expected).max() <= 1


def test_webp_frames_are_composed(tmp_path):
    """Written with opacity; what one frame leaves open shows nothing of the one before."""
    frames = [Image.new("RGBA", (16, 16), (255, 255, 255, 0)) for _ in range(3)]
    for index, frame in enumerate(frames):
        frame.paste((200, 60, 30, 255), (4 * index, 4, 4 * index + 4, 12))
    options = {"save_all": True, "append_images": frames[1:], "lossless": True, "exact": True}
    frames[0].save(tmp_path / "a.webp", **options)
    expected = np.stack([on_black(np.asarray(frame)) for frame in frames])
    assert np.array_equal(read(tmp_path / "a.webp", 3), expected)


def test_a_still_and_an_animation_of_one_frame_look_alike(tmp_path):
    frame = Image.new("RGBA", SIZE, (10, 20, 30, 100))
    file = BytesIO()
    frame.save(file, "PNG")
    (tmp_path / "still.png").write_bytes(file.getvalue())
    pixels = np.asarray(frame)
    (tmp_path / "one.png").write_bytes(apng([(pixels, (0, 0), 0, 1)], 6))
    assert np.array_equal(read(tmp_path / "one.png", 3), read(tmp_path / "still.png", 3))


# Durations


@pytest.mark.parametrize("path", GIFS, ids=lambda path: path.stem)
def test_no_part_of_a_gif_passes_for_the_whole(path):
    content = path.read_bytes()
    assert gif_durations(content) is not None
    assert gif_durations(content + b"\0\0") is not None
    assert not [end for end in range(6, len(content)) if gif_durations(content[:end]) is not None]


def test_durations_of_a_gif(tmp_path):
    frames = [Image.new("L", (4, 4), 60 * number) for number in range(3)]
    frames[0].save(
        tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 2560, 0]
    )
    content = (tmp_path / "a.gif").read_bytes()
    assert gif_durations(content) == [0.1, 2.56, 0]
    assert gif_durations(content[:-1]) is None


def animated_png(count, **options):
    first, *rest = [Image.new("L", (4, 4), number) for number in range(count)]
    file = BytesIO()
    first.save(file, "PNG", save_all=count > 1, append_images=rest, **options)
    return file.getvalue()


def test_durations_of_a_png():
    assert png_durations(animated_png(1)) == []
    assert png_durations(animated_png(3, duration=[100, 250, 20])) == pytest.approx(
        [0.1, 0.25, 0.02]
    )
    assert png_durations(animated_png(3, default_image=True, duration=50)) == pytest.approx(
        [0.05] * 2
    )


def test_every_cut_of_a_png_is_noticed():
    content = animated_png(3)
    assert [n for n in range(8, len(content)) if png_durations(content[:n]) is not None] == []


def test_frames_that_are_announced_and_missing():
    content = animated_png(3)
    last = content.rindex(b"fcTL") - 4
    assert png_durations(content[:last] + animated_png(1)[-12:]) is None


def webp(count, **options):
    first, *rest = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(count)]
    file = BytesIO()
    first.save(file, "WEBP", save_all=count > 1, append_images=rest, lossless=True, **options)
    return file.getvalue()


def test_durations_of_a_webp():
    assert webp_durations(webp(1)) == []
    assert webp_durations(webp(3, duration=[100, 250, 20])) == pytest.approx([0.1, 0.25, 0.02])


def test_every_cut_of_a_webp_is_noticed():
    content = webp(3)
    assert [n for n in range(12, len(content)) if webp_durations(content[:n]) is not None] == []


def test_a_chunk_that_is_longer_than_the_file_says():
    content = bytearray(webp(3))
    last = content.rindex(b"ANMF")
    content[last + 4] += 2
    assert webp_durations(bytes(content)) is None


def test_what_follows_the_stated_end_does_not_matter():
    assert webp_durations(webp(1) + b"more") == []
