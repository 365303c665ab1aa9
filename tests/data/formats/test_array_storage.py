"""What is inside an npy, npz or pt file."""

import errno
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.array_storage import load_npy, load_npz, load_pt

VIDEO = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
LIMIT = 2**20


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


@pytest.mark.parametrize("array", [VIDEO, np.asfortranarray(VIDEO), VIDEO.astype(">f8")])
def test_npy_is_mapped(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    stored = load_npy(tmp_path / "a.npy")
    assert isinstance(stored.data, np.memmap)
    assert np.array_equal(stored.data, VIDEO)
    assert (stored.axes, stored.fps) == (None, None)


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
        (b"\x93NUMPY\x09\x00" + bytes(100), "ValueError: version"),
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
    save(tmp_path / "one.npz", anything=VIDEO)
    stored = load_npz(tmp_path / "one.npz", LIMIT)
    assert np.array_equal(stored.data, VIDEO)
    assert (stored.axes, stored.fps) == (None, None)
    save(
        tmp_path / "more.npz", mask=VIDEO > 3, fps=12.5, axes="cfhw", video=np.asfortranarray(VIDEO)
    )
    stored = load_npz(tmp_path / "more.npz", LIMIT)
    assert np.array_equal(stored.data, VIDEO)
    assert (stored.axes, stored.fps) == ("cfhw", 12.5)


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({"a": VIDEO, "b": VIDEO}, r"2 \(a, b\); name or separate them"),
        ({"fps": 3.0}, r"0 \(none\); name"),
        ({"video": np.array("text")}, "the type <U4"),
        ({"a": VIDEO, "axes": 3}, "3; store such a one"),
        ({"a": VIDEO, "fps": -1.0}, "-1.0; store such a one"),
        ({"a": VIDEO, "fps": np.inf}, "inf; store such a one"),
        ({"a": VIDEO, "fps": "fast"}, "'fast'; store such a one"),
        ({"a": VIDEO, "fps": [1, 2]}, r"int64 of shape \(2,\); store such a one"),
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
        UnreadableVideoError, match=f"at most {LIMIT} bytes, got an array of {LIMIT + 1}"
    ):
        load_npz(tmp_path / "a.npz", LIMIT)
    load_npz(tmp_path / "a.npz", LIMIT + 1)


@pytest.mark.parametrize("extra", [b"more", None])
def test_npz_whose_array_is_of_another_length(tmp_path, extra):
    np.save(tmp_path / "a.npy", VIDEO)
    content = (tmp_path / "a.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("video.npy", content + extra if extra else content[:-1])
    with refused("other than the 240 bytes that the shape"):
        load_npz(tmp_path / "a.npz", LIMIT)


def test_damaged_npz(tmp_path):
    np.savez(tmp_path / "a.npz", VIDEO)
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
    tensor = torch.from_numpy(VIDEO)
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
        assert torch.equal(stored.data, tensor.to(stored.data.dtype))
        assert (stored.axes, stored.fps) == (None, None)
    torch.save({"video": tensor, "axes": "cfhw", "fps": 25}, tmp_path / "a.pt")
    assert load_pt(tmp_path / "a.pt")[1:] == ("cfhw", 25.0)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([torch.zeros(3)], r"0 \(none\)"),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, r"2 \(a, b\); name or separate"),
        (
            torch.zeros(2, dtype=torch.complex64),
            "one of torch.strided, torch.complex64, on cpu; st",
        ),
        (torch.eye(2).to_sparse(), "one of torch.sparse_coo, "),
        (torch.zeros(0, 3), r"the empty shape \(0, 3\)"),
        ({"a": torch.zeros(1), "fps": True}, "True; store such a one"),
        ({"a": torch.zeros(1), "axes": ["f"]}, r"\['f'\]; store such a one"),
        (torch.zeros(3, device="meta"), "one of torch.strided, torch.float32, on meta"),
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
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
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
