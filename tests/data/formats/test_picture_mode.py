"""A picture of any mode becomes one of 8 bits, or the numbers that it stores."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.pictures import (
    PictureReader,
    gif_to_tensor,
    seek_all_images,
    stored_channels,
    to_mode,
)
from video_diffusion_pytorch.data.video_file import read_video

GREY, COLOUR, GREY_OPACITY, COLOUR_OPACITY = 0, 2, 4, 6


def write_png(path, pixels, kind, bits=16, chunks=b""):
    """A png of `(h, w, c)` numbers, whose rows are not filtered."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    h, w, _ = pixels.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        as_bits = [[f"{value:0{bits}b}" for value in row.ravel()] for row in pixels]
        rows = [int("".join(row), 2).to_bytes(w * bits // 8, "big") for row in as_bits]
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", w, h, bits, kind, 0, 0, 0))
        + b"".join(chunk(name, body) for name, body in chunks or [])
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def write_tif(path, pixels, order="<", opacity=None, is_compressed=False):
    """A tif of `(h, w, c)` numbers, in one strip."""
    h, w, c = pixels.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    bits = 8 * pixels.dtype.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if is_compressed else data
    # Of more than two numbers an entry says only where they are
    tags = [
        (256, w),
        (257, h),
        (258, [bits] * c),
        (259, 8 if is_compressed else 1),
        (262, 2 if c > 2 else 1),
    ]
    tags += [(273, None), (277, c), (278, h), (279, len(data))]
    tags += [(338, opacity)] if opacity is not None else []
    tags += [(339, [kinds[pixels.dtype.kind]] * c)]
    extra = b""
    entries = b""
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, value in tags:
        values = value if isinstance(value, list) else [value]
        if len(values) > 2:
            entries += struct.pack(order + "HHII", tag, 3, len(values), start + len(extra))
            extra += struct.pack(f"{order}{len(values)}H", *values)
        elif len(values) == 2:
            entries += struct.pack(order + "HHI2H", tag, 3, 2, *values)
        elif tag in (273, 279):
            place = start + 16 if tag == 273 else value
            entries += struct.pack(order + "HHII", tag, 4, 1, place)
        else:
            entries += struct.pack(order + "HHIHH", tag, 3, 1, values[0], 0)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "I", 8) + struct.pack(order + "H", len(tags))
    path.write_bytes(head + entries + bytes(4) + extra.ljust(16, b"\0") + data)


def numbers(dtype, channels, seed=0):
    """All of a type's range, `(6, 5, c)`."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e4, (6, 5, channels)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (6, 5, channels), dtype, endpoint=True)


def read(path, channels=None):
    video, fps = read_video(path, channels=channels)
    assert fps is None
    return video[:, 0].permute(1, 2, 0).numpy()


# More than 8 bits


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_numbers(tmp_path, ending):
    levels = np.array([[0, 128, 129, 4095, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{ending}")
    with PictureReader(tmp_path / f"deep.{ending}", formats=None) as reader:
        assert (reader.channels, reader.is_array) == (1, True)
        assert reader.array(range(9)).dtype == torch.float32
        assert reader.array([0]).tolist() == [[levels.astype(float).tolist()]]
        assert reader.array([0]).shape == reader.array([0]).shape == (1, 1, 1, 6)  # twice, too
        assert reader.array([1]).shape[1] == 0
        with pytest.raises(TypeError, match=r"got an array; call array\(\) instead"):
            reader.pictures([0])
    with PictureReader(tmp_path / f"deep.{ending}", channels=3, formats=None) as reader:
        assert reader.array([0]).tolist() == [[levels.astype(float).tolist()]] * 3


@pytest.mark.parametrize("kind", [GREY, COLOUR, GREY_OPACITY, COLOUR_OPACITY])
def test_sixteen_bit_png(tmp_path, kind):
    stored = numbers(np.uint16, {GREY: 1, COLOUR: 3, GREY_OPACITY: 2, COLOUR_OPACITY: 4}[kind])
    write_png(tmp_path / "a.png", stored, kind)
    has_opacity = kind in (GREY_OPACITY, COLOUR_OPACITY)
    colours = stored[..., :-1] if has_opacity else stored
    colours = np.broadcast_to(colours, (6, 5, 3)).astype(float)
    opacity = stored[..., -1:].astype(float) if has_opacity else np.full((6, 5, 1), 65535.0)
    assert read(tmp_path / "a.png").shape[2] == {0: 1, 2: 3, 4: 4, 6: 4}[kind]
    assert np.array_equal(read(tmp_path / "a.png", 4), np.concatenate([colours, opacity], 2))
    shown = colours * opacity / 65535
    np.testing.assert_allclose(read(tmp_path / "a.png", 3), shown, rtol=1e-6)
    grey = shown @ [[0.299], [0.587], [0.114]]
    np.testing.assert_allclose(read(tmp_path / "a.png", 1), grey, rtol=1e-6)


@pytest.mark.parametrize("kind", [GREY, COLOUR])
def test_a_transparent_colour_of_sixteen_bits(tmp_path, kind):
    stored = numbers(np.uint16, 1 if kind == GREY else 3)
    stored[1, 1] = stored[2, 3]
    clear = stored[2, 3].astype(">u2").tobytes()
    write_png(tmp_path / "a.png", stored, kind, chunks=[(b"tRNS", clear)])
    expected = stored.astype(float)
    expected[1, 1] = expected[2, 3] = 0
    assert np.array_equal(read(tmp_path / "a.png"), expected)
    opacity = read(tmp_path / "a.png", 4)[..., 3]
    assert opacity[1, 1] == opacity[2, 3] == 0
    assert np.count_nonzero(opacity == 65535) == 28


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        ("uint16", 1),
        ("uint16", 3),
        ("uint16", 4),
        ("int16", 1),
        ("int32", 1),
        ("float32", 1),
        ("int8", 1),
    ],
)
def test_tif_keeps_its_numbers(tmp_path, dtype, channels, order):
    stored = numbers(dtype, channels)
    write_tif(tmp_path / "a.tif", stored, order, opacity=2 if channels == 4 else None)
    got = read(tmp_path / "a.tif")
    assert got.dtype == np.float32
    assert np.array_equal(got, stored.astype(np.float32))


def test_numbers_of_32_bits_without_sign(tmp_path):
    stored = numbers("uint32", 1)
    write_tif(tmp_path / "a.tif", stored)
    assert np.array_equal(read(tmp_path / "a.tif"), stored.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "channels", "opacity", "text"),
    [
        ("float64", 1, None, "expected a tif of a kind that Pillow knows, got one of another kind"),
        ("float32", 3, None, "store its numbers as .npy"),
        ("uint16", 2, 2, "store its numbers as .npy"),
        ("uint16", 4, 1, "16-bit colours that its decoders disagree on, .*stored as .npy"),
    ],
)
def test_tif_that_cannot_be_read_exactly(tmp_path, dtype, channels, opacity, text):
    write_tif(tmp_path / "a.tif", numbers(dtype, channels), opacity=opacity)
    with pytest.raises(UnreadableVideoError, match=rf"cannot read .*a\.tif: .*{text}"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["float32", "int32", "int16"])
def test_compressed_big_endian_numbers(tmp_path, dtype):
    """Pillow gives them with their bytes exchanged."""
    stored = numbers(dtype, 1)
    write_tif(tmp_path / "a.tif", stored, is_compressed=True)
    assert np.array_equal(read(tmp_path / "a.tif"), stored.astype(np.float32))
    write_tif(tmp_path / "a.tif", stored, ">", is_compressed=True)
    with pytest.raises(UnreadableVideoError, match="compressed big-endian numbers of mode"):
        read(tmp_path / "a.tif")


def test_opacity_that_nobody_states(tmp_path):
    write_tif(tmp_path / "a.tif", numbers("float32", 1))
    with pytest.raises(UnreadableVideoError, match=r"mode 'F' without opacity; set channels=1"):
        read(tmp_path / "a.tif", 4)


def test_a_damaged_picture_of_sixteen_bits(tmp_path):
    write_png(tmp_path / "a.png", numbers("uint16", 3), COLOUR)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[60:70] = bytes(10)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=r"a\.png"):
        read(tmp_path / "a.png")


def test_numbers_are_no_pictures_for_the_gif_reader(tmp_path):
    Image.new("I;16", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableVideoError, match=r"pictures of 8 bits, got numbers.*read_video"):
        gif_to_tensor(tmp_path / "a.png")


def test_an_animation_of_sixteen_bits(tmp_path):
    first = Image.new("I;16", (3, 2), 300)
    first.save(tmp_path / "a.png", save_all=True, append_images=[Image.new("I;16", (3, 2), 9)])
    with pytest.raises(
        UnreadableVideoError, match=r"an animation of more than 8 bits; store it as"
    ):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_numbers_do_not_become_8_bits(mode):
    text = f"mode must be one of 8 bits per channel, got '{mode}'; read its numbers with read_video"
    with pytest.raises(ValueError, match=text):
        to_mode(Image.new(mode, (1, 1)), "L")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_fewer_bits_are_full_scale(tmp_path, bits):
    stored = np.arange(64).reshape(8, 8, 1) % 2**bits
    write_png(tmp_path / "a.png", stored, GREY, bits)
    expected = stored * 255 // (2**bits - 1)
    got = read(tmp_path / "a.png")
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)
    # one of the greys is transparent
    clear = 2**bits - 1
    write_png(tmp_path / "a.png", stored, GREY, bits, [(b"tRNS", struct.pack(">H", clear))])
    assert np.array_equal(read(tmp_path / "a.png"), np.where(stored == clear, 0, expected))
    assert np.array_equal(read(tmp_path / "a.png", 4)[..., 3:], 255 * (stored != clear))


# What is transparent


def test_palette_with_opacities(tmp_path):
    """Pillow warns when such a picture is made RGB at once, and warnings are errors here."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    for channels, pixels in [
        (3, [[0, 0, 0], [0, 0, 128]]),
        (4, [[255, 0, 0, 0], [0, 0, 255, 128]]),
    ]:
        with PictureReader(tmp_path / "palette.png", channels) as reader:
            (frame,) = reader.pictures([0])
        assert np.asarray(frame)[0].tolist() == pixels


@pytest.mark.parametrize(
    ("mode", "colour", "channels", "rgb"),
    [
        ("1", 1, 1, (255, 255, 255)),
        ("L", 77, 1, (77, 77, 77)),
        ("LA", (77, 255), 4, (77, 77, 77)),
        ("LA", (77, 0), 4, (0, 0, 0)),
        ("LA", (200, 51), 4, (40, 40, 40)),
        ("RGBA", (1, 2, 3, 255), 4, (1, 2, 3)),
        ("RGBA", (100, 200, 50, 102), 4, (40, 80, 20)),
        ("RGBA", (1, 2, 3, 0), 4, (0, 0, 0)),
        ("RGBa", (40, 80, 20, 102), 4, (40, 80, 20)),
        ("La", (40, 51), 4, (40, 40, 40)),
        ("CMYK", (0, 255, 255, 0), 3, (255, 0, 0)),
    ],
)
def test_modes(mode, colour, channels, rgb):
    picture = Image.new(mode, (1, 1), colour)
    assert stored_channels(picture) == channels
    assert to_mode(picture, "RGB").getpixel((0, 0)) == rgb
    assert to_mode(picture, "L").getpixel((0, 0)) == round(np.dot(rgb, [0.299, 0.587, 0.114]))


@pytest.mark.parametrize(
    ("mode", "colours", "clear"), [("L", [9, 70], 70), ("RGB", [(9, 9, 9), (7, 8, 9)], (7, 8, 9))]
)
def test_one_transparent_colour(tmp_path, mode, colours, clear):
    picture = Image.new(mode, (2, 1), colours[0])
    picture.putpixel((1, 0), colours[1])
    picture.save(tmp_path / "a.png", transparency=clear)
    assert read(tmp_path / "a.png", 3)[0].tolist() == [[9, 9, 9], [0, 0, 0]]
    assert read(tmp_path / "a.png", 4)[0, :, 3].tolist() == [255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_colours_do_not_show_after_scaling(tmp_path, channels):
    from video_diffusion_pytorch.data.transforms import FrameSize

    frames = []
    for hidden in ("white", "black"):
        picture = Image.new("RGB", (40, 40), hidden)
        picture.paste("red", (10, 10, 30, 30))
        opacity = Image.new("L", (40, 40))
        opacity.paste(255, (10, 10, 30, 30))
        picture.putalpha(opacity)
        picture.save(tmp_path / "a.png")
        with PictureReader(tmp_path / "a.png", channels) as reader:
            frames.append(FrameSize((9, 9))(next(reader.pictures([0]))))
        with PictureReader(tmp_path / "a.png", 4) as reader:
            four = FrameSize((9, 9))(next(reader.pictures([0])))
        assert four[1:3].max() == 0  # no white at the edges of the red
    assert torch.equal(*frames)
    assert frames[0].max() > 0.2


def test_the_reference_function_shows_no_hidden_colours():
    picture = Image.new("RGBA", (1, 1), (200, 100, 50, 51))
    (frame,) = seek_all_images(picture, 3)
    assert frame.getpixel((0, 0)) == (40, 20, 10)
    (frame,) = seek_all_images(picture, 4)
    assert frame.getpixel((0, 0)) == (200, 100, 50, 51)
