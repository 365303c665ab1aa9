"""What a model was trained on goes into its files, and comes back with the model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import (
    GaussianDiffusion,
    Trainer,
    Unet3D,
    load_diffusion,
    text,
    write_video,
)
from video_diffusion_pytorch.clip_info import ClipInfo

TINY_BERT = Path(__file__).parent / "golden" / "tiny_bert"
WIDTH = 32  # of its states


def write_clips(folder, names, ending=".npy", fps=8):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        video = torch.rand(1, 4, 8, 8)
        if ending == ".npy":
            np.save(folder / f"{name}.npy", video.numpy())
        else:
            write_video(video, folder / f"{name}{ending}", fps=fps)


def train(tmp_path, unet=None, **options):
    network = Unet3D(dim=8, channels=1, dim_mults=(1,), attn_heads=1, **(unet or {}))
    diffusion = GaussianDiffusion(network, image_size=8, num_frames=4, timesteps=3)
    options = {"results_folder": tmp_path / "results", "num_sample_rows": 1, **options}
    small = {"train_batch_size": 2, "train_num_steps": 1, "device": "cpu", "num_workers": 0}
    trainer = Trainer(diffusion, tmp_path / "clips", **small, **options)
    trainer.train()
    return trainer


@pytest.fixture
def of_classes(tmp_path):
    for name in ("cat", "dog"):
        write_clips(tmp_path / "clips" / name, range(3))
    return train(tmp_path, {"num_classes": 2}, conditions="label", fit="contain")


@pytest.fixture(autouse=True)
def usual_encoder():
    yield
    text.set_text_encoder()


# There and back


def test_names_of_classes_and_data_settings_come_back(of_classes, tmp_path):
    expected = of_classes.model.clip_info
    assert expected.class_names == ("cat", "dog")
    assert expected.settings["fit"] == "contain"
    assert expected.fps is None
    assert of_classes.ema_model.clip_info == expected
    loaded = load_diffusion(tmp_path / "results")
    assert loaded.clip_info == expected
    loaded.save_pretrained(tmp_path / "shared")
    for again in (
        load_diffusion(tmp_path / "shared"),
        GaussianDiffusion.from_pretrained(tmp_path / "shared"),
    ):
        assert again.clip_info == expected
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "- classes: cat, dog" in card
    assert "fit contain" in card


@pytest.mark.parametrize(
    ("options", "conditions"),
    [
        ({"conditions": "label", "pad": "mask", "pad_position": "center"}, "label"),
        ({"conditions": ["label"], "fit_frames": "all", "vertical_flip": True}, "label"),
        ({"conditions": ("label", "caption"), "missing_captions": "null"}, ["label", "caption"]),
        ({"conditions": lambda path: {"labels": 0}, "clip_start": "all"}, None),
    ],
)
def test_settings_that_differ_from_the_defaults(tmp_path, options, conditions):
    write_clips(tmp_path / "clips" / "cat", range(3))
    unet = {"num_classes": 2, "cond_dim": WIDTH if "missing_captions" in options else None}
    text.set_text_encoder(TINY_BERT)
    found = train(tmp_path, unet, **options).model.clip_info.settings
    named = {"fit", "crop", "frame_skip", "fps", "axes", "square_pixels"}
    changed = {name: value for name, value in found.items() if name not in named}
    expected = {**options, "conditions": conditions}
    assert changed == {name: value for name, value in expected.items() if value is not None}
    assert named <= found.keys()
    assert load_diffusion(tmp_path / "results").clip_info.settings == found


@pytest.mark.usefixtures("of_classes")
def test_labels_by_name(tmp_path):
    model = load_diffusion(tmp_path / "results")
    options = {"seed": 3, "progress": False}
    named = model.sample(labels=["dog", "cat", None], **options)
    assert torch.equal(named, model.sample(labels=[1, 0, -1], **options))
    clips = torch.rand(2, 1, 4, 8, 8)
    torch.manual_seed(0)
    loss = model(clips, labels=["dog", "cat"])
    torch.manual_seed(0)
    assert loss == model(clips, labels=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"labels must be among cat, dog, or -1 .*, got 'cow';"):
        model.sample(labels=["cow"], progress=False)
    fresh = GaussianDiffusion(
        Unet3D(dim=8, channels=1, dim_mults=(1,), attn_heads=1, num_classes=2),
        image_size=8,
        num_frames=4,
    )
    with pytest.raises(ValueError, match=r"labels must be numbers, as the model has no names"):
        fresh.sample(labels=["cat"], progress=False)


@pytest.mark.usefixtures("of_classes")
def test_samples_of_milestones_by_name(tmp_path):
    again = train(
        tmp_path,
        {"num_classes": 2},
        conditions="label",
        sample_conditions={"labels": ["dog"]},
        results_folder=tmp_path / "again",
    )
    assert again.sample().shape == (1, 1, 4, 8, 8)
    again.save_sample(again.sample(), 1)
    assert (tmp_path / "again" / "1.txt").read_text() == "row 1, column 1: dog\n"


@pytest.mark.usefixtures("of_classes")
def test_checkpoints_of_0_8_hold_the_names_of_classes_alone(tmp_path):
    [file] = (tmp_path / "results").glob("model-*.pt")
    state = torch.load(file, weights_only=True)
    state["config"] |= {"class_names": state["config"].pop("clips")["class_names"]}
    torch.save(state, file)
    assert load_diffusion(file).clip_info == ClipInfo(class_names=("cat", "dog"))


def test_names_and_ranges_of_numbers(tmp_path):
    write_clips(tmp_path / "clips", range(4))
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        rows = [(f"{i}.npy", 10 * i + 5, i / 4) for i in range(4)]
        csv.writer(file).writerows([("path", "EF [%]", "age"), *rows])
    columns = {"cond": ["EF [%]", "age"]}
    options = {"manifest": tmp_path / "clips.csv", "conditions": columns, "held_out": 0}
    train(tmp_path, {"cond_dim": 2}, **options)
    found = load_diffusion(tmp_path / "results").clip_info
    assert found.cond_ranges == {"EF [%]": (5.0, 35.0), "age": (0.0, 0.75)}
    assert found.in_words()["cond"] == "EF [%] 5 to 35, age 0 to 0.75"


@pytest.mark.parametrize(("options", "fps"), [({}, 20), ({"frame_skip": 2}, 10), ({"fps": 5}, 5)])
def test_frames_per_second_of_the_clips(tmp_path, options, fps):
    write_clips(tmp_path / "clips", range(2), ".mp4", fps=20)
    assert train(tmp_path, **options).model.clip_info.fps == fps


def test_a_damaged_first_file_does_not_end_the_run(tmp_path):
    write_clips(tmp_path / "clips", range(1, 12), ".mp4", fps=20)
    (tmp_path / "clips" / "0.mp4").write_bytes(b"damaged")
    assert train(tmp_path).model.clip_info.fps == 20


def test_resampled_clips_have_no_frames_per_second(tmp_path):
    write_clips(tmp_path / "clips", range(2), ".mp4", fps=20)
    assert train(tmp_path, fit_frames="all").model.clip_info.fps is None


def test_a_users_own_dataset_leaves_what_was_known(tmp_path):
    clips = [{"video": torch.rand(1, 4, 8, 8), "labels": i % 2} for i in range(4)]
    network = Unet3D(dim=8, channels=1, dim_mults=(1,), attn_heads=1, num_classes=2)
    diffusion = GaussianDiffusion(network, image_size=8, num_frames=4, timesteps=3)
    diffusion.clip_info = ClipInfo(class_names=("cat", "dog"), fps=30)
    folder = {"results_folder": tmp_path, "device": "cpu", "num_workers": 0}
    trainer = Trainer(diffusion, dataset=clips, train_batch_size=2, **folder)
    trainer.save(1)
    assert (
        load_diffusion(tmp_path).clip_info
        == diffusion.clip_info
        == ClipInfo(("cat", "dog"), fps=30.0)
    )


# Text encoders


def caption_model(tmp_path):
    write_clips(tmp_path / "clips", range(3))
    for i in range(3):
        (tmp_path / "clips" / f"{i}.txt").write_text("a whale")
    return train(tmp_path, {"cond_dim": WIDTH}, conditions="caption", held_out=0)


def test_a_model_brings_its_text_encoder(tmp_path):
    text.set_text_encoder(TINY_BERT)
    trainer = caption_model(tmp_path)
    options = {"cond": ["a whale"], "seed": 1, "progress": False}
    expected = trainer.ema_model.sample(**options)
    text.set_text_encoder()
    model = load_diffusion(tmp_path / "results")
    assert model.clip_info.text_encoder == str(TINY_BERT.resolve())
    assert torch.equal(model.sample(**options), expected)
    # it holds for this model only, until the user sets one
    assert text.encoder_name() == str(TINY_BERT.resolve())
    text.set_text_encoder(lambda captions: torch.zeros(len(captions), WIDTH))
    assert not torch.equal(model.sample(**options), expected)


def test_a_text_encoder_that_is_gone_or_was_a_function(tmp_path):
    text.set_text_encoder(lambda captions: torch.ones(len(captions), WIDTH), name="ones")
    caption_model(tmp_path)
    model = load_diffusion(tmp_path / "results")
    model.sample(cond=["a whale"], progress=False)
    text.set_text_encoder()
    with pytest.raises(ValueError, match=r"as in training, by a function named 'ones', got none"):
        model.sample(cond=["a whale"], progress=False)
    model.clip_info = ClipInfo(text_encoder=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"text encoder at .*gone, found none; give set_"):
        model.sample(cond=["a whale"], progress=False)


# Mistakes


@pytest.mark.parametrize(
    "damage",
    [
        7,
        {"class_names": "cat"},
        {"class_names": [1]},
        {"fps": "fast"},
        {"fps": -1},
        {"cond_ranges": {"EF": 3}},
        {"text_encoder": 3},
        {"settings": [1]},
    ],
)
@pytest.mark.usefixtures("of_classes")
def test_damaged_descriptions_are_refused(tmp_path, damage):
    load_diffusion(tmp_path / "results").save_pretrained(tmp_path / "shared")
    file = tmp_path / "shared" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "clips": damage}))
    with pytest.raises(ValueError, match=r"config.json .*the description of the clips must"):
        load_diffusion(tmp_path / "shared")


@pytest.mark.usefixtures("of_classes")
def test_a_shared_model_holds_one_set_of_weights(tmp_path):
    load_diffusion(tmp_path / "results").save_pretrained(tmp_path / "shared")
    with pytest.raises(ValueError, match=r"averaged must be left out .*, got False"):
        load_diffusion(tmp_path / "shared", averaged=False)
