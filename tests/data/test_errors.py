"""What readers raise has four parts, and names the file."""

import pickle

from video_diffusion_pytorch.data.errors import missing_file, unreadable


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
