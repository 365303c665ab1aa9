"""Captions are encoded once, as vectors or as states."""

import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import text
from video_diffusion_pytorch.training.captions import EncodedCaptions

CPU = torch.device("cpu")
TINY_BERT = Path(__file__).parents[1] / "golden" / "tiny_bert"


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
    vectors = EncodedCaptions(use_cls=False)
    told = vectors(["a", "abc", "a"], CPU)
    assert told.keys() == {"cond"}
    assert told["cond"].tolist() == [[1, 1], [3, 3], [1, 1]]
    vectors(["abc", "ab"], CPU)
    assert embedded == ["a", "abc", "ab"]


def test_missing_captions_are_marked(embedded):
    told = EncodedCaptions(use_cls=False)(["ab", None], CPU)
    assert told["cond"].shape == (2, 2)
    assert told["null_cond_mask"].tolist() == [False, True]


def test_what_is_known_beforehand_is_kept_in_a_file(embedded, tmp_path):
    captions = [f"{'x' * n}" for n in range(1, 151)]
    EncodedCaptions(False, tmp_path).prepare(captions, CPU)
    assert len(embedded) == 150
    [file] = tmp_path.iterdir()
    again = EncodedCaptions(False, tmp_path)
    again.prepare([*captions, "a new one"], CPU)
    assert embedded[150:] == ["a new one"]
    assert again(["xxx"], CPU)["cond"].tolist() == [[3, 3]]
    assert file == again.file
    # another encoder, or another way of pooling, has another file
    assert EncodedCaptions(True, tmp_path).file != file
    text.set_text_encoder(lambda captions: torch.zeros(len(captions), 1), name="other")
    assert again.file != file


def test_a_run_that_is_killed_continues_where_it_was(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr("video_diffusion_pytorch.training.captions._FIRST", 1)
    captions = [f"{'x' * n}" for n in range(1, 201)]
    first = EncodedCaptions(False, tmp_path)
    # as it is on the disk when the third batch is encoded
    before = []
    encode = first._encode

    def slow(*given):
        before.append({p: p.read_bytes() for p in tmp_path.iterdir()})
        return encode(*given)

    monkeypatch.setattr(first, "_encode", slow)
    first.prepare(captions, CPU)
    assert len(embedded) == 200
    embedded.clear()
    for path, content in before[2].items():
        path.write_bytes(content)
    again = EncodedCaptions(False, tmp_path)
    again.prepare(captions, CPU)
    # how often it writes depends on how long that takes
    assert 72 <= len(embedded) <= 136
    assert embedded == captions[200 - len(embedded) :]
    assert again(["xxx"], CPU)["cond"].tolist() == [[3, 3]]


def test_another_encoder_in_the_same_folder(tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(TINY_BERT, folder)
    text.set_text_encoder(folder)
    told = EncodedCaptions(False, tmp_path)
    old = told.file
    assert old == told.file
    for name in ("config.json", "model.safetensors"):
        stored = (folder / name).stat()
        os.utime(folder / name, ns=(stored.st_atime_ns, stored.st_mtime_ns + 1))
        assert told.file != old
        os.utime(folder / name, ns=(stored.st_atime_ns, stored.st_mtime_ns))
        assert told.file == old
    (folder / "vocab.txt").write_bytes(b"more")
    assert told.file != old
    text.set_text_encoder()


def test_a_nameless_encoder_leaves_no_file(tmp_path):
    text.set_text_encoder(lambda captions: torch.zeros(len(captions), 1))
    vectors = EncodedCaptions(False, tmp_path)
    vectors.prepare(["a"], CPU)
    text.set_text_encoder()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no file of torch's", pickle.dumps({"captions": ["a"]})])
def test_a_damaged_file_is_made_again(embedded, tmp_path, caplog, content):
    vectors = EncodedCaptions(False, tmp_path)
    vectors.file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        vectors.prepare(["ab"], CPU)
    assert "could not be read" in caplog.text
    assert EncodedCaptions(False, tmp_path).prepare(["ab"], CPU) is None
    assert embedded == ["ab"]


def test_a_file_that_cannot_be_written_is_done_without(embedded, tmp_path, caplog):
    vectors = EncodedCaptions(False, tmp_path / "gone")
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        vectors.prepare(["ab"], CPU)
    assert "could not be written" in caplog.text
    assert vectors(["ab"], CPU)["cond"].tolist() == [[2, 2]]


def test_memory_is_bounded(embedded, monkeypatch):
    # vectors of 8 bytes
    monkeypatch.setattr("video_diffusion_pytorch.training.captions._MOST", 24)
    vectors = EncodedCaptions(use_cls=False)
    for length in range(1, 20):
        found = vectors(["x" * length, "kept"], CPU)["cond"]
        assert found[:, 0].tolist() == [length, 4]
    assert len(vectors._others) <= 5
    assert embedded.count("kept") < 19


# Sequences of states


@pytest.fixture
def spelt():
    """Captions that the encoder was asked for; the state of a letter is its code and its place."""
    asked = []

    def encode(captions):
        asked.extend(captions)
        states = torch.full((len(captions), 12, 2), float("nan"))
        mask = torch.zeros(len(captions), 12, dtype=torch.bool)
        for row, caption in enumerate(captions):
            for place, letter in enumerate(caption):
                states[row, place] = torch.tensor([float(ord(letter)), float(place)])
                mask[row, place] = True
        return states, mask

    text.set_text_encoder(encode, name="letters")
    yield asked
    text.set_text_encoder()


def test_states_are_as_long_as_the_longest_of_the_batch(spelt):
    captions = EncodedCaptions(False, states=True)
    told = captions(["ab", "abcd", None], CPU)
    assert told["cond"].shape == (3, 4, 2)
    assert told["cond"].dtype == torch.float32
    assert told["cond"][0].tolist() == [[97, 0], [98, 1], [0, 0], [0, 0]]
    assert told["cond_mask"].sum(dim=1).tolist() == [2, 4, 0]
    assert told["null_cond_mask"].tolist() == [False, False, True]
    # beside others, or alone: the same states
    alone = captions(["ab"], CPU)
    assert torch.equal(alone["cond"][0], told["cond"][0, :2])
    assert alone["cond_mask"].all()
    assert spelt == ["ab", "abcd", ""]


def test_captions_without_a_token_have_a_place(spelt):
    told = EncodedCaptions(False, states=True)([None, ""], CPU)
    assert told["cond"].shape == (2, 1, 2)
    assert not told["cond_mask"].any()


def test_states_are_kept_in_a_file_of_their_own(spelt, tmp_path):
    captions = ["ab", "abcd", "a", ""]
    first = EncodedCaptions(False, tmp_path, states=True)
    first.prepare(captions, CPU)
    [file] = tmp_path.iterdir()
    assert file == first.file
    assert file.name.startswith(".caption_states-")
    assert EncodedCaptions(False, tmp_path).file != file
    # there is no [CLS] to choose
    again = EncodedCaptions(True, tmp_path, states=True)
    again.prepare([*captions, "new"], CPU)
    assert spelt == [*captions, "new"]
    for name, value in again(["abcd", "a", ""], CPU).items():
        assert torch.equal(value, first(["abcd", "a", ""], CPU)[name])


def test_states_take_two_bytes_a_number_unless_they_are_too_large():
    large = torch.tensor([[[1.0, 2.0]], [[1e6, 2.0]]])
    text.set_text_encoder(lambda captions: large[: len(captions)] + 2**-12)
    captions = EncodedCaptions(False, states=True)
    told = captions(["small", "large"], CPU)
    text.set_text_encoder()
    assert captions._others["small"].dtype == torch.float16
    assert captions._bytes_of_others == 2 * 2 + 2 * 4
    assert torch.equal(told["cond"][1], large[1] + 2**-12)
    torch.testing.assert_close(told["cond"][0], large[0], rtol=1 / 2048, atol=0)


def test_memory_of_states_is_bounded(spelt, monkeypatch):
    # 4 bytes a letter
    monkeypatch.setattr("video_diffusion_pytorch.training.captions._MOST", 100)
    captions = EncodedCaptions(False, states=True)
    for length in range(1, 12):
        told = captions(["x" * length, "kept"], CPU)
        assert told["cond_mask"].sum(dim=1).tolist() == [length, 4]
        assert captions._bytes_of_others <= 100 + 4 * (length + 4)
    assert spelt.count("kept") < 11


def test_an_encoder_of_vectors_is_noticed_before_training(embedded):
    with pytest.raises(
        ValueError, match=r"states of shape \(1, n, d\), .* got torch\.float32 of shape \(1, 2\)"
    ):
        EncodedCaptions(False, states=True).prepare(["a"], CPU)
