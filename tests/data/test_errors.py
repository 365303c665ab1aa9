"""What readers raise has four parts, and names the file."""

import errno
import os
import pickle
import socket

import pytest

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    file_errors,
    missing_file,
    regular_file,
    unreadable,
)


def test_four_parts():
    error = unreadable("a.gif", "a gif", "none", "look again")
    assert str(error) == "cannot read a.gif: expected a gif, got none; look again"
    assert isinstance(error, ValueError)
    # As a worker process would hand it over
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = str(missing_file("a.gif"))
    assert text.startswith("expected a video file at a.gif, found none; check the path")
    assert str(tmp_path.resolve()) in text


def failing(path, error):
    with file_errors(path):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        OSError(errno.ELOOP, "Too many levels"),
        OSError("Unable to open file (file signature not found)"),
    ],
)
def test_a_file_that_cannot_be_opened(tmp_path, error):
    text = r"cannot read .*a.gif: expected a file that can be opened, got .*: .*; allow reading it"
    with pytest.raises(UnreadableVideoError, match=text):
        failing(tmp_path / "a.gif", error)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(UnreadableVideoError, match="got none, or none any more; allow"):
        failing(tmp_path / "a.gif", missing_file("a.gif"))
    try:
        (tmp_path / "link.gif").symlink_to(tmp_path / "a.gif")
    except OSError:
        pytest.skip("the system does not let everybody make links")
    with pytest.raises(UnreadableVideoError, match="got a link to nothing; allow"):
        failing(tmp_path / "link.gif", FileNotFoundError(errno.ENOENT, "No such file"))
    inner = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "link.gif"))
    with pytest.raises(UnreadableVideoError, match=r"got a link to nothing at .*link.gif; allow"):
        failing(tmp_path, inner)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC])
def test_what_another_file_would_meet_too_stays_an_error(tmp_path, number):
    with pytest.raises(OSError, match="no") as error:
        failing(tmp_path / "a.gif", OSError(number, "no"))
    assert error.value.errno == number


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names exist on Unix only")
@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_no_regular_file(tmp_path, monkeypatch, kind, is_link):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = tmp_path / "clip.gif"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("clip.gif")
    else:
        path.symlink_to("/dev/zero")
    if is_link:
        (tmp_path / "link.gif").symlink_to(path)
        path = tmp_path / "link.gif"
    text = f"cannot read {path}: expected a regular file, got {kind}; store the content in a file"
    with pytest.raises(UnreadableVideoError, match=text):
        regular_file(path)
    (tmp_path / "a.gif").touch()
    assert regular_file(tmp_path / "a.gif") == tmp_path / "a.gif"
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "b.gif")
