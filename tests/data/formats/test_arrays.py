"""Array files, their axes, and arrays from functions of the user."""

import errno
import itertools
import os
import pickle
import re
import struct
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import SkipUnreadable, UnreadableVideoError
from video_diffusion_pytorch.data.formats.arrays import (
    call_reader,
    check_axes,
    load_npy,
    load_npz,
    load_pt,
    open_array,
    read_array,
    resolve_axes,
)

LIMIT = 2**20
VIDEO = torch.arange(2 * 9 * 4 * 5).reshape(2, 9, 4, 5)  # (c, f, h, w)


# Axes


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((3, 10, 64, 64), None, ("cfhw", 3)),
        ((10, 3, 64, 64), None, ("fchw", 3)),
        ((10, 64, 64, 3), None, ("fhwc", 3)),
        ((10, 64, 64, 1), None, ("fhwc", 1)),
        ((4, 20, 8, 8), None, ("cfhw", 4)),
        ((80, 20, 8, 8), 80, ("cfhw", 80)),
        ((3, 1, 8, 8), 1, ("fchw", 1)),
        ((3, 1, 8, 8), 3, ("cfhw", 3)),
    ],
)
def test_axes_from_the_shape(shape, channels, expected):
    assert resolve_axes(shape, None, channels, Path("scan.npy")) == expected


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "expected"),
    [
        ((3, 3, 8, 8), "fchw", None, ("fchw", 3)),
        ((20, 8, 8), "fhw", None, ("fhw", 1)),
        ((20, 8, 8), "hwf", 1, ("hwf", 1)),
        ((8, 8), "hw", None, ("hw", 1)),
        ((70, 8, 8), "chw", None, ("chw", 70)),
        ((8, 9, 10, 11), "whfc", 11, ("whfc", 11)),
    ],
)
def test_stated_axes(shape, axes, channels, expected):
    assert resolve_axes(shape, axes, channels, Path("scan.npy")) == expected


@pytest.mark.parametrize(
    ("shape", "channels", "text"),
    [
        ((3, 3, 8, 8), None, r"\(3, 3, 8, 8\), which fits cfhw and fchw; state"),
        ((3, 8, 8, 3), 3, "which fits cfhw and fhwc; state"),
        ((1, 1, 8, 1), 1, "which fits cfhw and fchw and fhwc; state"),
        ((9, 8, 8, 8), None, r"with 1 to 4 channels, got .*, which fits none; state"),
        ((9, 3, 8, 8), 1, "with 1 channels, got .*, which fits none; state"),
        ((9, 8, 8), None, r"\(9, 8, 8\), which fits none; state the order, for ex"),
        ((1, 3, 9, 8, 8), None, r"\(1, 3, 9, 8, 8\), which fits none; state"),
    ],
)
def test_ambiguous_axes(shape, channels, text):
    start = "scan.npy: expected an array of four axes that fits one of the orders cfhw, fchw, fhwc"
    with pytest.raises(UnreadableVideoError, match=f"{start} .*{text}"):
        resolve_axes(shape, None, channels, Path("scan.npy"))


def test_stated_axes_that_do_not_fit():
    with pytest.raises(
        UnreadableVideoError, match=r"axes such as 'fhwc' for the shape \(2, 3\), got 'fhw'; state"
    ):
        resolve_axes((2, 3), "fhw", None, Path("scan.npy"))
    text = r"expected 3 channels, got 4 in the shape \(9, 4, 8, 8\) with the axes 'fchw'; correct"
    with pytest.raises(UnreadableVideoError, match=text):
        resolve_axes((9, 4, 8, 8), "fchw", 3, Path("scan.npy"))
    with pytest.raises(UnreadableVideoError, match="expected 3 channels, got 1"):
        resolve_axes((9, 8, 8), "fhw", 3, Path("scan.npy"))


@pytest.mark.parametrize("axes", ["", "fc", "fhww", "bcfhw", "FHW", "f h w"])
def test_letters_that_are_no_order_of_axes(axes):
    with pytest.raises(ValueError, match=f"axes must name the stored .* got '{axes}'; pass for ex"):
        check_axes(axes)


# Frames


def write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    else:
        torch.save(torch.from_numpy(np.ascontiguousarray(array)), path)
    return path


def reader_of(path, channels=None, axes=None):
    return open_array(path, channels, axes, LIMIT)


@pytest.mark.parametrize("ending", ["npy", "npz", "pt"])
@pytest.mark.parametrize("axes", ["cfhw", "fchw", "fhwc", "whfc"])
def test_every_order_of_axes(tmp_path, ending, axes):
    stored = VIDEO.permute(["cfhw".index(letter) for letter in axes]).to(torch.uint8).numpy()
    path = write(tmp_path / f"a.{ending}", stored)
    with reader_of(path, axes=axes) as reader:
        assert (reader.num_frames, reader.channels, reader.is_array) == (9, 2, True)
        assert (reader.fps, reader.times) == (None, None)
        for indices in (
            range(9),
            range(2, 7, 2),
            range(7, 30),
            [0, 5, 6],
            [8, 9],
            range(9, 12),
            [],
        ):
            frames = reader.array(indices)
            assert torch.equal(frames, VIDEO[:, [i for i in indices if i < 9]].byte())
            assert frames.is_contiguous()


def test_axes_that_are_missing(tmp_path):
    array = VIDEO[0].numpy().astype(np.float32)
    with reader_of(write(tmp_path / "a.npy", array), axes="fhw") as reader:
        assert torch.equal(reader.array(range(1, 3)), VIDEO[:1, 1:3].float())
    with reader_of(write(tmp_path / "a.npy", array), axes="hwf") as reader:
        assert (reader.num_frames, reader.array([0]).shape) == (5, (1, 1, 9, 4))
    with reader_of(write(tmp_path / "a.npy", array[0]), axes="hw") as reader:
        assert reader.num_frames == 1
        assert torch.equal(reader.array(range(10)), VIDEO[:1, :1].float())
        assert reader.array(range(1, 10)).shape == (1, 0, 4, 5)


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<i8", ">i2", "u2", "f2", "<f4", ">f8", np.longdouble]
)
def test_all_but_bytes_become_float32(tmp_path, dtype):
    array = (VIDEO % 2).numpy().astype(dtype)
    with reader_of(write(tmp_path / "a.npy", array)) as reader:
        frames = reader.array(range(9))
    assert frames.dtype == torch.float32
    assert torch.equal(frames, (VIDEO % 2).float())


def test_bfloat16_and_shared_values(tmp_path):
    torch.save(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16).expand(3, 9, 4, 5), tmp_path / "a.pt")
    with reader_of(tmp_path / "a.pt") as reader:
        frames = reader.array(range(2))
    assert torch.equal(frames, torch.ones(3, 2, 4, 5))
    frames[0, 0] = 0  # a copy
    assert frames[1].eq(1).all()


def test_values_beyond_float32_become_infinite(tmp_path):
    with reader_of(write(tmp_path / "a.npy", np.full((1, 9, 4, 5), 1e300))) as reader:
        assert reader.array([0]).isinf().all()


def test_axes_and_rate_that_the_file_states(tmp_path):
    np.savez(tmp_path / "a.npz", video=VIDEO.numpy(), axes="fchw", fps=4)
    with reader_of(tmp_path / "a.npz") as reader:
        assert (reader.num_frames, reader.channels, reader.fps) == (2, 9, 4)
        assert reader.times == [0, 0.25]
    with reader_of(tmp_path / "a.npz", axes="cfhw") as reader:  # the caller knows better
        assert (reader.num_frames, reader.channels) == (9, 2)
    for axes in ("frames first", "thwc", 3):
        np.savez(tmp_path / "a.npz", video=VIDEO.numpy(), axes=axes)
        text = rf"expected axes such as 'fhwc' for the shape .*, got '{axes}'; state the axes"
        with pytest.raises(UnreadableVideoError, match=text):
            reader_of(tmp_path / "a.npz")


def test_wrong_arguments(tmp_path):
    path = write(tmp_path / "a.npy", VIDEO.numpy())
    with pytest.raises(ValueError, match=r"axes must name the stored order .* got 'xyz'"):
        reader_of(path, axes="xyz")
    with pytest.raises(
        UnreadableVideoError, match=r"a.npy: expected .* with 3 channels, got the sh"
    ):
        reader_of(path, channels=3)
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone.npy, found none"):
        reader_of(tmp_path / "gone.npy")
    with reader_of(path) as reader:
        with pytest.raises(ValueError, match="at least 0 and increase"):
            reader.array([2, 1])
        with pytest.raises(TypeError, match=r"expected a picture file .* call array\(\) instead"):
            reader.pictures([0])
    with pytest.raises(ValueError, match="expected an open reader, got a closed one; read inside"):
        reader.array([0])


def test_whole_arrays_of_any_shape(tmp_path):
    for ending in ("npy", "npz", "pt"):
        path = write(tmp_path / f"a.{ending}", np.arange(6).reshape(2, 3))
        assert torch.equal(read_array(path), torch.arange(6.0).reshape(2, 3))
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(UnreadableVideoError, match="got an empty file"):
        read_array(tmp_path / "a.npy")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_files_are_closed(tmp_path):
    paths = [write(tmp_path / f"a.{ending}", VIDEO.numpy()) for ending in ("npy", "npz", "pt")]
    before = sorted(os.listdir("/proc/self/fd"))
    for path in paths:
        with reader_of(path) as reader:
            reader.array(range(3))
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(UnreadableVideoError):
            reader_of(path)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps") as maps:
        assert not [line for line in maps if str(tmp_path) in line]


# Files


STORED = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)


def refused(got):
    return pytest.raises(UnreadableVideoError, match=rf"cannot read .*: expected .*, got {got}")


def npy_with_header(header):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


class Malicious:
    """Unpickling it would call a function."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


# npy


@pytest.mark.parametrize("array", [STORED, np.asfortranarray(STORED), STORED.astype(">f8")])
def test_npy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    stored = load_npy(tmp_path / "a.npy")
    assert np.array_equal(stored.data.read(), STORED)
    assert (stored.axes, stored.fps) == (None, None)
    stored.data.close()


# Numbers of one array with gaps that are worth a second reading, and gaps that are not
LONG = np.arange(3 * 50 * 40 * 30, dtype=np.float32).reshape(3, 50, 40, 30)


@pytest.mark.parametrize("ending", ["npy", "pt"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_parts_of_any_axis_in_any_order(tmp_path, ending, order):
    array = np.transpose(LONG, order)
    if ending == "npy":
        # in C's order, so that the axes lie differently; then in Fortran's
        arrays = [np.ascontiguousarray(array), np.asfortranarray(array)]
    else:
        arrays = [array, np.repeat(array, 2, axis=1)[:, ::2]]
    for one in arrays:
        if ending == "npy":
            np.save(tmp_path / "a.npy", one)
            data = load_npy(tmp_path / "a.npy").data
        else:
            torch.save(torch.from_numpy(np.asarray(one)), tmp_path / "a.pt")
            data = load_pt(tmp_path / "a.pt").data
        if isinstance(data, torch.Tensor):  # with gaps in the file
            assert np.array_equal(data.numpy(), array)
            continue
        for axis in range(4):
            size = array.shape[axis]
            for wanted in (range(1, 2), range(1, size), range(0, size, 3), [0, size - 1], []):
                part = data.read(axis, wanted)
                assert np.array_equal(np.asarray(part), array.take(list(wanted), axis))
        assert np.array_equal(np.asarray(data.read()), array)
        data.close()


@pytest.mark.parametrize("ending", ["npy", "pt"])
def test_only_what_is_asked_for_is_read(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a.{ending}"
    array = np.zeros((2, 300, 64, 64), np.float32)
    if ending == "npy":
        np.save(path, array)
    else:
        torch.save(torch.from_numpy(array), path)
    read = []
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda *given: read.append(preadv(*given)) or read[-1], raising=False
    )
    data = (load_npy if ending == "npy" else load_pt)(path).data
    data.read(1, range(100, 108))
    data.read(1, [3, 290])
    data.close()
    assert sum(read) == (8 + 2) * 2 * 64 * 64 * 4


@pytest.mark.parametrize("ending", ["npy", "pt"])
@pytest.mark.parametrize("change", ["cut", "longer", "other", "later", "removed"])
def test_a_file_that_changes_while_it_is_open(tmp_path, ending, change):
    path = tmp_path / f"a.{ending}"

    def write(array):
        np.save(path, array) if ending == "npy" else torch.save(torch.from_numpy(array), path)

    write(LONG)
    data = (load_npy if ending == "npy" else load_pt)(path).data
    before = path.stat()
    if change == "removed":  # what is open is still as it was
        path.unlink()
        assert np.array_equal(np.asarray(data.read(1, [7])), LONG[:, [7]])
        data.close()
        return
    if change == "cut":
        os.truncate(path, 5000)
    elif change == "longer":
        write(np.concatenate([LONG, LONG]))
    elif change == "other":
        path.write_bytes(path.read_bytes()[:-8] + b"12345678")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**6))
    else:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    expected = "a file that does not change while it is read, got one that did; write clips before"
    for axis, wanted in ((1, range(5)), (3, [2]), (None, ())):
        with pytest.raises(UnreadableVideoError, match=rf"cannot read .*a.{ending}: .*{expected}"):
            data.read(axis, wanted)
    data.close()


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((1, 2), complex), "the type complex128; store"),
        (np.array([["a"]]), "the type <U1; store"),
        (np.zeros(2, [("a", "i4")]), "the type .*; store"),
        (np.zeros((0, 3)), r"the shape \(0, 3\); fetch"),
    ],
)
def test_npy_of_other_things(tmp_path, array, got):
    np.save(tmp_path / "a.npy", array)
    with refused(got):
        load_npy(tmp_path / "a.npy")


def test_npy_is_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Malicious()], dtype=object), allow_pickle=True)
    with refused("the type object; store"):
        load_npy(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"\x93NUMPY\x01\x00", "ValueError"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "KeyError"),
        (
            npy_with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9)}"),
            "0 bytes of",
        ),
        (npy_with_header("{'descr': '<f8', 'fortran_order': 0, 'shape': (9, 9)}"), "ValueError"),
        (npy_with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"), "the shape"),
        (
            npy_with_header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, 8)}}"),
            r"0 bytes of the 295147905179352825856 that",
        ),
        (npy_with_header("(" * 100), ".*Error"),
    ],
)
def test_damaged_npy(tmp_path, content, got):
    (tmp_path / "a.npy").write_bytes(content)
    with refused(got):
        load_npy(tmp_path / "a.npy")


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "one.npz", anything=STORED)
    stored = load_npz(tmp_path / "one.npz", LIMIT)
    assert np.array_equal(stored.data, STORED)
    assert (stored.axes, stored.fps) == (None, None)
    save(
        tmp_path / "more.npz",
        mask=STORED > 3,
        fps=12.5,
        axes="cfhw",
        video=np.asfortranarray(STORED),
    )
    stored = load_npz(tmp_path / "more.npz", LIMIT)
    assert np.array_equal(stored.data, STORED)
    assert (stored.axes, stored.fps) == ("cfhw", 12.5)


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({"a": STORED, "b": STORED}, r"2 \(a, b\); name the video"),
        ({"fps": 3.0}, r"0 \(none\); name the video"),
        ({"video": np.array("text")}, "the type <U4"),
        ({"a": STORED, "fps": -1.0}, "-1.0; correct it"),
        ({"a": STORED, "fps": np.inf}, "inf; correct it"),
        ({"a": STORED, "fps": "fast"}, "'fast'; correct it"),
        ({"a": STORED, "fps": [1, 2]}, "ValueError: can only convert an array of size 1"),
    ],
)
def test_npz_of_other_things(tmp_path, arrays, got):
    np.savez(tmp_path / "a.npz", **arrays)
    with refused(got):
        load_npz(tmp_path / "a.npz", LIMIT)


def test_npz_is_never_unpickled(tmp_path):
    objects = np.array([Malicious()], dtype=object)
    np.savez(tmp_path / "a.npz", video=objects)
    with refused("the type object"):
        load_npz(tmp_path / "a.npz", LIMIT)


def test_npz_that_inflates_beyond_the_limit(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.zeros(LIMIT + 1, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 10**4
    with pytest.raises(
        UnreadableVideoError, match=rf"at most {LIMIT} bytes, got \d+ bytes that .* {LIMIT + 1};"
    ):
        load_npz(tmp_path / "a.npz", LIMIT)
    load_npz(tmp_path / "a.npz", LIMIT + 1)


def test_npz_that_is_a_bomb(tmp_path):
    """The header alone decides: what it claims is neither there nor inflated."""
    header = npy_with_header(
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**31}, 1, 1)}}"
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("video.npy", header + bytes(1000))
    content = (tmp_path / "a.npz").read_bytes()
    at = content.rindex(b"video.npy") - 46
    claimed = struct.pack("<I", len(header) + 2**31)
    (tmp_path / "a.npz").write_bytes(content[: at + 24] + claimed + content[at + 28 :])
    with refused(f"[0-9]+ bytes that inflate to {2**31}; store it as .npy"):
        load_npz(tmp_path / "a.npz", 2**33)


@pytest.mark.parametrize("extra", [b"more", None])
def test_npz_whose_array_is_of_another_length(tmp_path, extra):
    np.save(tmp_path / "a.npy", STORED)
    content = (tmp_path / "a.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("video.npy", content + extra if extra else content[:-1])
    with refused("other than the 240 bytes that the shape"):
        load_npz(tmp_path / "a.npz", LIMIT)


def test_damaged_npz(tmp_path):
    np.savez(tmp_path / "a.npz", STORED)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"\x05\x00\x06\x00") + 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with refused("BadZipFile: Bad CRC-32"):
        load_npz(tmp_path / "a.npz", LIMIT)
    (tmp_path / "a.npz").write_bytes(content[:-30])
    with refused("BadZipFile: File is not a zip file"):
        load_npz(tmp_path / "a.npz", LIMIT)


# pt


def test_pt(tmp_path):
    tensor = torch.from_numpy(STORED)
    other = torch.zeros(3)
    for content in (
        tensor,
        {"any": tensor},
        {"video": tensor, "mask": other},
        {"x": tensor, "y": "text"},
        tensor.float().requires_grad_(),
    ):
        torch.save(content, tmp_path / "a.pt")
        stored = load_pt(tmp_path / "a.pt")
        values = stored.data.read()
        assert torch.equal(values, tensor.to(values.dtype))
        assert (stored.axes, stored.fps) == (None, None)
        stored.data.close()
    torch.save({"video": tensor, "axes": "cfhw", "fps": 25}, tmp_path / "a.pt")
    stored = load_pt(tmp_path / "a.pt")
    assert stored[1:] == ("cfhw", 25.0)
    stored.data.close()


def test_pt_of_several_tensors_and_of_views(tmp_path):
    base = torch.arange(600.0).reshape(5, 4, 5, 6)
    mask = torch.zeros(7, dtype=torch.int16)
    negative = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    assert negative.is_neg()  # a view that changes the sign of what is stored
    for tensor in (
        base[1:3],
        base[:, 1:2],
        base.permute(3, 1, 0, 2),
        base[..., ::2],
        base.bfloat16(),
        negative,
        torch.zeros(1, 3, 1, 2).half(),
        torch.arange(3.0).as_strided((4, 2), (0, 1)),
        torch.arange(9.0).unfold(0, 4, 2),
        torch.tensor(3.5),
    ):
        torch.save({"mask": mask, "video": tensor, "more": [torch.ones(3)]}, tmp_path / "a.pt")
        data = load_pt(tmp_path / "a.pt").data
        values = data if isinstance(data, torch.Tensor) else data.read()
        assert torch.equal(values, tensor.resolve_neg())
        if not isinstance(data, torch.Tensor):
            data.close()


def copy_zip(source, target, change, **options):
    with zipfile.ZipFile(source) as plain, zipfile.ZipFile(target, "w", **options) as archive:
        for name in plain.namelist():
            for new_name, content in change(name, plain.read(name)):
                archive.writestr(new_name, content)


def test_pt_of_the_other_byte_order(tmp_path):
    def swap(name, content):
        if name.endswith("/byteorder"):
            content = b"big" if content == b"little" else b"little"
        return [
            (
                name,
                np.frombuffer(content, "<i2").byteswap().tobytes() if "/data/" in name else content,
            )
        ]

    torch.save(torch.from_numpy(STORED), tmp_path / "plain.pt")
    copy_zip(tmp_path / "plain.pt", tmp_path / "a.pt", swap)
    assert torch.equal(load_pt(tmp_path / "a.pt").data, torch.from_numpy(STORED))


def test_pt_whose_numbers_are_repeated(tmp_path):
    torch.save(torch.zeros(1).expand(LIMIT // 4, 2), tmp_path / "a.pt")
    text = (
        f"expected a tensor of at most {LIMIT} bytes where numbers are repeated, got "
        rf"\({LIMIT // 4}, 2\) made of 4 bytes; store fewer frames"
    )
    with pytest.raises(UnreadableVideoError, match=text):
        load_pt(tmp_path / "a.pt", LIMIT)
    assert load_pt(tmp_path / "a.pt", 2 * LIMIT).data.shape == (LIMIT // 4, 2)
    torch.save(torch.zeros(LIMIT), tmp_path / "a.pt")  # as large as the file
    load_pt(tmp_path / "a.pt", LIMIT).data.close()


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda name, content: [(name, content)] * 2, "ValueError: two entries of one name"),
        (lambda name, content: [(name, content)] * ("/data/" not in name), "RuntimeError"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_pt_with_too_many_entries_or_too_few(tmp_path, change, got):
    torch.save(torch.from_numpy(STORED), tmp_path / "plain.pt")
    copy_zip(tmp_path / "plain.pt", tmp_path / "a.pt", change)
    with refused(got):
        load_pt(tmp_path / "a.pt")


def test_pt_whose_entries_overlap_or_claim_more_than_there_is(tmp_path):
    torch.save(torch.from_numpy(STORED), tmp_path / "plain.pt")
    content = (tmp_path / "plain.pt").read_bytes()
    name = b"plain/data/0"
    at = content.rindex(name) - 46  # its line in the directory at the end
    assert content[at : at + 4] == b"PK\x01\x02"
    for position, value in ((20, 10**6), (42, 0)):  # size, twice; offset
        values = struct.pack("<I", value) * (2 if position == 20 else 1)
        start = at + position
        damaged = content[:start] + values + content[start + len(values) :]
        (tmp_path / "a.pt").write_bytes(damaged)
        with refused("ValueError: entries that overlap or reach beyond the file"):
            load_pt(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([torch.zeros(3)], r"0 \(none\)"),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, r"2 \(a, b\); name the video"),
        (
            torch.zeros(2, dtype=torch.complex64),
            r"torch.strided, torch.complex64, \(2,\) on cpu; st",
        ),
        (torch.eye(2).to_sparse(), "torch.sparse_coo, "),
        (torch.zeros(0, 3), r"torch.strided, torch.float32, \(0, 3\) on cpu; st"),
        ({"a": torch.zeros(1), "fps": -1}, "-1; correct it"),
        (torch.zeros(3, device="meta"), r"torch.strided, torch.float32, \(3,\) on meta"),
    ],
)
def test_pt_of_other_things(tmp_path, content, got):
    torch.save(content, tmp_path / "a.pt")
    with refused(got):
        load_pt(tmp_path / "a.pt")


def test_pt_is_never_unpickled(tmp_path):
    torch.save(Malicious(), tmp_path / "a.pt")
    with refused("UnpicklingError: Weights only load failed"):
        load_pt(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Malicious()))
    with refused("BadZipFile"):
        load_pt(tmp_path / "a.pt")


def test_compressed_pt(tmp_path):
    """It could inflate to more than fits into memory."""
    torch.save(torch.zeros(100), tmp_path / "plain.pt")
    copy_zip(
        tmp_path / "plain.pt",
        tmp_path / "a.pt",
        lambda name, content: [(name, content)],
        compression=zipfile.ZIP_DEFLATED,
    )
    with refused(re.escape("ValueError: compressed entries, which torch.save does not write")):
        load_pt(tmp_path / "a.pt")


@pytest.mark.parametrize("ending", ["npy", "npz", "pt"])
def test_too_many_open_files_are_no_damage(tmp_path, monkeypatch, ending):
    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    path = tmp_path / f"a.{ending}"
    path.touch()
    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("zipfile.ZipFile", refuse)
    load = {"npy": load_npy, "npz": lambda path: load_npz(path, 100), "pt": load_pt}[ending]
    with pytest.raises(OSError, match="Too many open files") as error:
        load(path)
    assert error.value.errno == errno.EMFILE


# Functions of the user


SCAN = Path("scan.nii")


def result(given, channels=None):
    return call_reader(SCAN, lambda path: given, channels)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.bool_, np.int16, np.uint16, ">i4", np.float16, np.float64, ">f8"]
)
def test_arrays_of_any_type(dtype):
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) % 2
    with result(values.astype(dtype)) as file:
        assert (file.num_frames, file.channels, file.is_array) == (3, 2, True)
        assert (file.fps, file.times) == (None, None)
        video = file.array(range(0, 9, 2))
    assert video.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert np.array_equal(video.numpy(), values[:, ::2])


def test_tensors_and_a_clock():
    with result((torch.rand(1, 4, 2, 2, dtype=torch.float64), 8)) as file:
        assert file.fps == 8
        assert file.times == [0, 0.125, 0.25, 0.375]
        assert file.array([1, 3]).shape == (1, 2, 2, 2)
        assert file.array([7]).shape == (1, 0, 2, 2)


def test_the_function_gets_the_path():
    paths = []

    def read(path):
        paths.append(path)
        return torch.zeros(1, 1, 1, 1)

    call_reader(SCAN, read)
    assert paths == [SCAN]


def test_something_else():
    message = (
        r"read_fn must return an array .* got list for scan.nii; convert it with numpy.asarray"
    )
    with pytest.raises(TypeError, match=message):
        result([[1, 2]])


def test_masked_values():
    values = np.ma.masked_less(np.arange(24.0).reshape(1, 2, 3, 4), 5)
    message = (
        r"cannot read scan.nii: expected read_fn to return a number for each pixel, got 5 that are "
        r"masked; fill them in read_fn, as by values.filled\(0\)"
    )
    with pytest.raises(UnreadableVideoError, match=message):
        result(values)
    # a mask that hides nothing does no harm
    with result(np.ma.masked_less(values.filled(9), 0)) as file:
        assert file.array([0]).flatten().tolist() == [9] * 5 + list(range(5, 12))


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        (np.zeros((3, 4, 5)), None),
        (np.zeros((3, 0, 5, 6)), None),
        (np.zeros((3, 4, 0, 6)), None),
        (np.zeros((3, 4, 5, 6), complex), None),
        (torch.zeros(3, 4, 5, 6, dtype=torch.complex64), None),
        (np.zeros((3, 4, 5, 6)), 2),
    ],
)
def test_wrong_shapes(given, channels):
    message = r"cannot read scan.nii: expected read_fn to return real .* got .*; move the axes"
    with pytest.raises(UnreadableVideoError, match=message):
        result(given, channels)


@pytest.mark.parametrize("kind", ["O", "U3", "datetime64[s]"])
def test_what_is_no_number(kind):
    with pytest.raises(
        UnreadableVideoError, match=r"to return real numbers .* got .* of shape \(1, 2"
    ):
        result(np.ones((1, 2, 3, 4), "i8").astype(kind))


@pytest.mark.parametrize("rate", [0, -25, float("nan"), float("inf"), "fast", [25], 1j])
def test_rates_that_are_none(rate):
    message = r"cannot read scan.nii: expected a number above 0 as fps, got .*; correct it"
    with pytest.raises(UnreadableVideoError, match=message):
        result((np.zeros((1, 2, 3, 4)), rate))


@pytest.mark.parametrize("rate", [8, 8.0, np.float32(8), np.array(8), torch.tensor(8.0)])
def test_rates(rate):
    with result((np.zeros((1, 2, 3, 4)), rate)) as file:
        assert file.fps == 8.0
        assert [*file.times] == [0, 0.125]
    with result((np.zeros((1, 2, 3, 4)), None)) as file:
        assert file.fps is None


def test_a_function_that_fails():
    def read(path):
        if error:
            raise error

    for error in (EOFError("it ends"), NameError("name 'np' is not defined"), OSError("truncated")):
        message = (
            f"cannot read scan.nii: expected a file that read_fn can read, got .*: {error}; re"
        )
        with pytest.raises(UnreadableVideoError, match=message) as caught:
            call_reader(SCAN, read)
        assert caught.value.__cause__ is error
    # of the machine, or by the user
    for error in (MemoryError("none"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            call_reader(SCAN, read)
        assert caught.value is error
    error = UnreadableVideoError("cannot read scan.nii: expected ten slices")
    with pytest.raises(UnreadableVideoError, match="expected ten slices"):
        call_reader(SCAN, read)


def test_a_function_that_always_fails_says_why_at_once(tmp_path):
    """With the traceback of the first mistake."""

    def read(path):
        asked.append(path)
        return volume  # noqa: F821

    asked = []
    for i in range(50):
        (tmp_path / f"{i:02}.scan").touch()
    clips = SkipUnreadable(Dataset(tmp_path, 8, exts="scan", read_fn=read))
    message = r"got 6 so far; .*\n  cannot read .*00.scan: .* NameError: name 'volume' is not defin"
    with pytest.raises(UnreadableVideoError, match=message) as caught:
        clips[0]
    assert len(asked) == 6
    cause = caught.value.__cause__.__cause__
    assert isinstance(cause, NameError)
    *_, last = traceback.walk_tb(cause.__traceback__)
    assert last[0].f_code is read.__code__
