"""What is inside an npy, npz or pt file."""

import errno
import itertools
import os
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.arrays import load_npy, load_npz, load_pt

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
def test_npy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    stored = load_npy(tmp_path / "a.npy")
    assert np.array_equal(stored.data.read(), VIDEO)
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
    with refused(f"[0-9]+ that inflate to {2**31}; store it as .npy"):
        load_npz(tmp_path / "a.npz", 2**33)


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

    torch.save(torch.from_numpy(VIDEO), tmp_path / "plain.pt")
    copy_zip(tmp_path / "plain.pt", tmp_path / "a.pt", swap)
    assert torch.equal(load_pt(tmp_path / "a.pt").data, torch.from_numpy(VIDEO))


def test_pt_whose_numbers_are_repeated(tmp_path):
    torch.save(torch.zeros(1).expand(LIMIT // 4, 2), tmp_path / "a.pt")
    text = (
        f"expected a tensor of at most {LIMIT} bytes where numbers are repeated, got "
        rf"\({LIMIT // 4}, 2\) made of 4 bytes; store fewer frames"
    )
    with pytest.raises(UnreadableVideoError, match=text):
        load_pt(tmp_path / "a.pt", LIMIT)
    load_pt(tmp_path / "a.pt", 2 * LIMIT).data.close()
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
    torch.save(torch.from_numpy(VIDEO), tmp_path / "plain.pt")
    copy_zip(tmp_path / "plain.pt", tmp_path / "a.pt", change)
    with refused(got):
        load_pt(tmp_path / "a.pt")


def test_pt_whose_entries_overlap_or_claim_more_than_there_is(tmp_path):
    torch.save(torch.from_numpy(VIDEO), tmp_path / "plain.pt")
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
