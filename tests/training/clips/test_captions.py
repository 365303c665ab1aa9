"""Captions become vectors once."""

import logging
import pickle

import pytest
import torch

from video_diffusion_pytorch import text
from video_diffusion_pytorch.training.clips.captions import CaptionVectors

CPU = torch.device("cpu")


@pytest.fixture
def embedded():
    """Captions that the encoder was asked for; a vector is the caption's length, twice."""
    asked = []

    def encode(captions):
        asked.extend(captions)
        return torch.tensor([[float(len(caption))] * 2 for caption in captions])

    text.set_text_encoder(encode, name="lengths")
    yield asked
    text.set_text_encoder()


def test_each_caption_is_embedded_once(embedded):
    vectors = CaptionVectors(use_cls=False)
    found, mask = vectors(["a", "abc", "a"], CPU)
    assert found.tolist() == [[1, 1], [3, 3], [1, 1]]
    assert mask is None
    vectors(["abc", "ab"], CPU)
    assert embedded == ["a", "abc", "ab"]


def test_missing_captions_are_marked(embedded):
    found, mask = CaptionVectors(use_cls=False)(["ab", None], CPU)
    assert found.shape == (2, 2)
    assert mask.tolist() == [False, True]


def test_what_is_known_beforehand_is_kept_in_a_file(embedded, tmp_path):
    captions = [f"{'x' * n}" for n in range(1, 151)]
    CaptionVectors(False, tmp_path).prepare(captions, CPU)
    assert len(embedded) == 150
    [file] = tmp_path.iterdir()
    again = CaptionVectors(False, tmp_path)
    again.prepare([*captions, "a new one"], CPU)
    assert embedded[150:] == ["a new one"]
    assert again(["xxx"], CPU)[0].tolist() == [[3, 3]]
    assert file == again.file
    # another encoder, or another way of pooling, has another file
    assert CaptionVectors(True, tmp_path).file != file
    text.set_text_encoder(lambda captions: torch.zeros(len(captions), 1), name="other")
    assert again.file != file


def test_a_nameless_encoder_leaves_no_file(tmp_path):
    text.set_text_encoder(lambda captions: torch.zeros(len(captions), 1))
    vectors = CaptionVectors(False, tmp_path)
    vectors.prepare(["a"], CPU)
    text.set_text_encoder()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no file of torch's", pickle.dumps({"captions": ["a"]})])
def test_a_damaged_file_is_made_anew(embedded, tmp_path, caplog, content):
    vectors = CaptionVectors(False, tmp_path)
    vectors.file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        vectors.prepare(["ab"], CPU)
    assert "could not be read" in caplog.text
    assert CaptionVectors(False, tmp_path).prepare(["ab"], CPU) is None
    assert embedded == ["ab"]


def test_a_file_that_cannot_be_written_is_done_without(embedded, tmp_path, caplog):
    vectors = CaptionVectors(False, tmp_path / "gone")
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        vectors.prepare(["ab"], CPU)
    assert "could not be written" in caplog.text
    assert vectors(["ab"], CPU)[0].tolist() == [[2, 2]]


def test_memory_is_bounded(embedded, monkeypatch):
    monkeypatch.setattr("video_diffusion_pytorch.training.clips.captions._MOST", 3)
    vectors = CaptionVectors(use_cls=False)
    for length in range(1, 20):
        found, _ = vectors(["x" * length, "kept"], CPU)
        assert found[:, 0].tolist() == [length, 4]
    assert len(vectors._vectors) <= 3
    assert embedded.count("kept") == 1
