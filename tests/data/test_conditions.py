"""What a model is told of a clip, from the files beside it."""

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.conditions import ClipConditions
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.manifest import Clip


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "cats" / "a.mp4"
    path.parent.mkdir()
    path.touch()
    return Clip(path)


def read(clip, folder, *kinds, frames=(0, 1), **options):
    conditions = ClipConditions(kinds, **options)
    [complete] = conditions.complete([clip], folder)
    return conditions.read(complete, list(frames))


# Captions


def test_caption_in_a_text_file(clip, tmp_path):
    clip.path.with_suffix(".txt").write_text("\ufeffa cat \n on a mat\n", encoding="utf-8")
    assert read(clip, tmp_path, "caption") == {"cond": "a cat on a mat"}


def test_the_manifests_caption_comes_first(clip, tmp_path):
    clip.path.with_suffix(".txt").write_text("a dog")
    assert read(Clip(clip.path, "a cat"), tmp_path, "caption") == {"cond": "a cat"}


@pytest.mark.parametrize("empty", [True, False])
def test_missing_captions(clip, tmp_path, empty):
    if empty:
        clip.path.with_suffix(".txt").write_text("  \n")
    message = (
        r"expected a caption for each of 1 clips, in the manifest or in a .txt .*, got none for 1, "
        r"the first being .*a.mp4; write them, or pass missing_captions='null'"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read(clip, tmp_path, "caption")
    assert read(clip, tmp_path, "caption", missing="null") == {"cond": None}


def test_captions_in_another_encoding(clip, tmp_path):
    clip.path.with_suffix(".txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt must be text in UTF-8, got .*; save it as UTF-8"):
        read(clip, tmp_path, "caption")


# Labels


def labels(folder, *names):
    conditions = ClipConditions(["label"])
    clips = conditions.complete([Clip(folder / name) for name in names], folder)
    return conditions.class_names, [conditions.read(clip, [])["labels"] for clip in clips]


def test_classes_are_the_sub_folders(tmp_path):
    names, numbers = labels(tmp_path, "dogs/a.gif", "cats/young/b.gif", "dogs/c.gif")
    assert names == ("cats", "dogs")
    assert numbers == [1, 0, 1]


def test_numbers_are_their_own_labels(tmp_path):
    names, numbers = labels(tmp_path, "10/a.gif", "2/b.gif", "03/c.gif")
    assert len(names) == 11
    assert numbers == [10, 2, 3]


def test_numbers_among_names_are_names(tmp_path):
    assert labels(tmp_path, "7/a.gif", "cats/b.gif") == (("7", "cats"), [0, 1])


def test_no_class(tmp_path):
    message = r"expected .*a.gif to be in a sub-folder of .* got none; sort the clips into"
    with pytest.raises(ValueError, match=message):
        labels(tmp_path, "a.gif")


# Arrays


def test_a_vector(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.arange(3))
    given = read(clip, tmp_path, "vector")["cond"]
    assert given.dtype == torch.float32
    assert given.tolist() == [0, 1, 2]


def test_frame_vectors_are_cut_like_the_clip(clip, tmp_path):
    torch.save(torch.arange(8).view(4, 2), clip.path.with_suffix(".pt"))
    given = read(clip, tmp_path, "frame_vectors", frames=[1, 3])["frame_cond"]
    assert given.tolist() == [[2, 3], [6, 7]]


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 4, 5, 6)])
def test_fields(clip, tmp_path, shape):
    values = np.random.default_rng(0).random(shape)
    np.save(clip.path.with_suffix(".npy"), values)
    given = read(clip, tmp_path, "field", frames=[0, 3])["cond_video"]
    expected = values if len(shape) == 3 else values[:, [0, 3]]
    assert np.allclose(given.numpy(), expected)


def test_missing_array(clip, tmp_path):
    message = r"expected the vector of .*a.mp4 in a .npy or .pt .* beside it, found none; write it"
    with pytest.raises(FileNotFoundError, match=message):
        read(clip, tmp_path, "vector")


def test_array_of_another_shape(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.zeros((2, 3)))
    message = r"cannot take .*a.npy for the vector of a.mp4: expected .*\(d,\), got \(2, 3\); write"
    with pytest.raises(UnreadableVideoError, match=message):
        read(clip, tmp_path, "vector")


def test_too_few_frames(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.zeros((2, 3)))
    message = r"frame_vectors of a.mp4: expected one for each frame, at least 3, got 2; add those"
    with pytest.raises(UnreadableVideoError, match=message):
        read(clip, tmp_path, "frame_vectors", frames=[0, 2])


def test_an_array_that_would_run_code(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableVideoError, match=r"a.npy"):
        read(clip, tmp_path, "vector")


# Functions, and what goes together


def test_a_function(clip, tmp_path):
    given = read(clip, tmp_path, function=lambda path: {"cond": torch.ones(2), "id": path.name})
    assert given["cond"].tolist() == [1, 1]
    assert given["id"] == "a.mp4"
    with pytest.raises(TypeError, match=r"must give a dict, got list for .*a.mp4; return for"):
        read(clip, tmp_path, function=lambda path: [1])


def test_several_together(clip, tmp_path):
    clip.path.with_suffix(".txt").write_text("a cat")
    np.save(clip.path.with_suffix(".npy"), np.zeros((2, 3)))
    given = read(clip, tmp_path, "caption", "label", "frame_vectors")
    assert sorted(given) == ["cond", "frame_cond", "labels"]


@pytest.mark.parametrize("kinds", [("caption", "vector"), ("vector", "field"), ("label", "label")])
def test_what_cannot_go_together(kinds):
    with pytest.raises(ValueError, match=r"conditions must differ in where .* got .*: give a func"):
        ClipConditions(kinds)


def test_words_it_does_not_know():
    with pytest.raises(ValueError, match=r"conditions must be among .* got 'text'; choose one of"):
        ClipConditions(["text"])
    with pytest.raises(ValueError, match="missing_captions must be 'error' or 'null', got 'x'; ch"):
        ClipConditions(["caption"], missing="x")
    assert not ClipConditions([])
    assert ClipConditions(["label"])
