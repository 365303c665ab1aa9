"""Conditions of clips, from files beside them and from a manifest."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.condition_files import ClipConditions, split_conditions
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.manifest import Clip


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "cats" / "a.mp4"
    path.parent.mkdir()
    path.touch()
    return Clip(path)


def read(clip, folder, *wanted, frames=(0, 1), missing="error"):
    conditions = ClipConditions(wanted, missing)
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
        r"such as .*a.mp4; write them, or pass missing_captions='null'"
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


def test_large_numbers_are_names(tmp_path):
    assert labels(tmp_path, "202406/a.gif", "7/b.gif") == (("202406", "7"), [0, 1])
    assert len(labels(tmp_path, "9999/a.gif")[0]) == 10_000


def test_two_names_for_one_number(tmp_path):
    message = r"whole numbers must each be written in one way, got 01, 1, 2; write them alike"
    with pytest.raises(ValueError, match=message):
        labels(tmp_path, "1/a.gif", "01/b.gif", "2/c.gif")


def test_all_splits_number_classes_alike(tmp_path):
    rows = [Clip(tmp_path / name, label=label) for name, label in
            (("x/a.gif", "cat"), ("x/b.gif", "ant"), ("x/c.gif", None))]  # fmt: skip
    conditions = ClipConditions(["label"])
    [clip] = conditions.complete(rows[:1], tmp_path, rows)
    assert conditions.class_names == ("ant", "cat")
    assert conditions.read(clip, [])["labels"] == 1
    # a table that says nothing of classes leaves them to the sub-folders
    rows = [Clip(tmp_path / name) for name in ("cats/a.gif", "ants/b.gif", "c.gif")]
    conditions.complete(rows[:1], tmp_path, rows)
    assert conditions.class_names == ("ants", "cats")


def test_no_class(tmp_path):
    message = r"expected a class for each clip, .* got none for .*a.gif; write it, or sort clips"
    with pytest.raises(ValueError, match=message):
        labels(tmp_path, "a.gif")


def test_one_class_from_a_manifest_without_labels(clip, tmp_path, caplog):
    def warnings(*rows):
        caplog.clear()
        ClipConditions(["label"]).complete(rows[:1], tmp_path, rows)
        return caplog.text

    assert "no labels, and all clips are in one sub-folder, cats," in warnings(clip, clip)
    assert not warnings(replace(clip, label="cat"), replace(clip, label="cat"))
    assert not warnings(clip, Clip(tmp_path / "dogs" / "b.mp4"))
    ClipConditions(["label"]).complete([clip], tmp_path)  # no manifest
    assert not caplog.text


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


def test_bytes_of_a_field_stay_bytes(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.full((1, 4, 5, 6), 200, np.uint8))
    assert read(clip, tmp_path, "field")["cond_video"].dtype == torch.uint8
    np.save(clip.path.with_suffix(".npy"), np.full(3, 200, np.uint8))
    assert read(clip, tmp_path, "vector")["cond"].dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "shape"), [("vector", (4,)), ("frame_vectors", (4, 2)), ("field", (2, 4, 5, 6))]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_nan_and_infinity_are_refused(clip, tmp_path, kind, shape, value):
    values = np.zeros(shape)
    values.flat[0] = value
    np.save(clip.path.with_suffix(".npy"), values)
    message = r"cannot read .*a.npy: expected finite numbers in float32, got 1 NaN or infinite ones"
    with pytest.raises(UnreadableVideoError, match=message):
        read(clip, tmp_path, kind)
    if kind == "frame_vectors":  # what belongs to other frames does not matter
        assert read(clip, tmp_path, kind, frames=[1, 2])["frame_cond"].shape == (2, 2)


def test_arrays_that_may_be_used():
    assert ClipConditions(["vector"]).may_use_arrays
    assert ClipConditions(str).may_use_arrays
    assert not ClipConditions(["caption", "label"]).may_use_arrays


def test_missing_array(clip, tmp_path):
    message = r"expected the vector of .*a.mp4 in a .npy or .pt of its name, found none; write it"
    with pytest.raises(FileNotFoundError, match=message):
        read(clip, tmp_path, "vector")


def test_array_of_another_shape(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.zeros((2, 3)))
    message = (
        r"cannot read .*a.npy: expected a vector of the shape \(d\), got the shape \(2, 3\); write"
    )
    with pytest.raises(UnreadableVideoError, match=message):
        read(clip, tmp_path, "vector")


def test_too_few_frames(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.zeros((2, 3)))
    message = r"a.npy: expected a frame_vectors of at least 3 frames, .*, got 2; add those"
    with pytest.raises(UnreadableVideoError, match=message):
        read(clip, tmp_path, "frame_vectors", frames=[0, 2])


def test_an_array_that_would_run_code(clip, tmp_path):
    np.save(clip.path.with_suffix(".npy"), np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableVideoError, match=r"a.npy"):
        read(clip, tmp_path, "vector")


# Columns of a manifest


def test_columns_of_numbers(clip, tmp_path):
    found = read(replace(clip, numbers=(0.1, 2)), tmp_path, {"cond": ["EF", "ESV"]})
    assert found.keys() == {"cond"}
    assert found["cond"].dtype == torch.float32
    assert found["cond"].tolist() == [np.float32(0.1), 2]
    columns = {"cond": ["EF"], "labels": "Class"}
    found = read(Clip(clip.path, None, "cat", numbers=(5,)), tmp_path, columns)
    assert found == {"cond": torch.tensor([5.0]), "labels": 0}


def test_a_column_of_texts(clip, tmp_path):
    columns = {"cond": "Report"}
    assert read(replace(clip, caption="55 %"), tmp_path, columns) == {"cond": "55 %"}
    message = (
        r"the column Report must hold texts to be captions, got only numbers such as 55,5; for .*"
        r" conditions=\{'cond': \['Report'\]\}"
    )
    with pytest.raises(ValueError, match=message):
        read(replace(clip, caption="55,5"), tmp_path, columns)
    # a kind was asked for by its name
    assert read(replace(clip, caption="7"), tmp_path, "caption") == {"cond": "7"}


@pytest.mark.parametrize(
    ("kinds", "columns"),
    [(["caption"], {"cond": ["EF"]}), (["vector"], {"cond": ["EF"]}), (["label"], {"labels": "C"}),
     (["vector"], {"cond": "Report"})],
)  # fmt: skip
def test_columns_that_cannot_go_with_other_kinds(kinds, columns):
    with pytest.raises(ValueError, match=r"conditions must differ: .* got .*; give a func"):
        ClipConditions([*kinds, columns])


# Functions, and what goes together


def test_a_function(clip, tmp_path):
    given = read(clip, tmp_path, lambda path: {"cond": torch.ones(2), "id": path.name})
    assert given["cond"].tolist() == [1, 1]
    assert given["id"] == "a.mp4"
    for wrong in ([1], None, {"video": 1}):
        with pytest.raises(
            TypeError, match=r"must return a dict of keywords .* got .* for .*a.mp4"
        ):
            read(clip, tmp_path, lambda path, wrong=wrong: wrong)


def test_several_together(clip, tmp_path):
    clip.path.with_suffix(".txt").write_text("a cat")
    np.save(clip.path.with_suffix(".npy"), np.zeros((2, 3)))
    given = read(clip, tmp_path, "caption", "label", "frame_vectors")
    assert sorted(given) == ["cond", "frame_cond", "labels"]


@pytest.mark.parametrize("kinds", [("caption", "vector"), ("vector", "field"), ("label", "label")])
def test_what_cannot_go_together(kinds):
    with pytest.raises(ValueError, match=r"conditions must differ: .* got .*; give a func"):
        ClipConditions(kinds)


def test_emptiness():
    assert not ClipConditions([])
    assert ClipConditions(["label"])


def test_names_and_a_function():
    function = str
    assert split_conditions(None) == ([], None, {})
    assert split_conditions("label") == (["label"], None, {})
    assert split_conditions(function) == ([], function, {})
    assert split_conditions(("label", function, "field")) == (["label", "field"], function, {})
    columns = {"cond": ["EF"], "labels": "Class"}
    assert split_conditions(columns) == ([], None, columns)
    assert split_conditions(["field", columns, function]) == (["field"], function, columns)
    for wrong in ([function, function], ["label", 3], [columns, columns], "text"):
        with pytest.raises(ValueError, match=r"must be among caption, label, .* got .*; use the"):
            split_conditions(wrong)
    for key, value in {"labels": ["Class"], "cond": [], "frame_cond": "EF", "EF": "cond"}.items():
        with pytest.raises(
            ValueError, match=rf"must be 'cond', .* got '{key}': .*; write for exam"
        ):
            split_conditions({key: value})
