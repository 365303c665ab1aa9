"""The command `sample`: conditions, known clips, steps and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, text
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.cli.sample import outside_of_training, read_conditions, repeat
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.data.video_file import read_video
from video_diffusion_pytorch.data.write_video import write_video

TINY_BERT = Path(__file__).parents[1] / "golden" / "tiny_bert"


OF_DIFFUSION = ("timesteps", "num_frames", "given_frames", "value_range", "frame_noise")


def diffusion(info=None, **options):
    own = {name: options.pop(name) for name in OF_DIFFUSION if name in options}
    network = Unet3D(**{"dim": 4, "dim_mults": (1, 2), "channels": 1, "attn_heads": 1, **options})
    model = GaussianDiffusion(network, **{"image_size": 8, "num_frames": 3, "timesteps": 2, **own})
    model.clip_info = ClipInfo(**(info or {}))
    return model


def read(model, **options):
    return read_conditions(model, options)


# Conditions


def test_arrays_of_all_kinds(tmp_path):
    shapes = {"cond": (3, 5), "frame_cond": (3, 3, 2), "cond_video": (1, 2, 8, 8)}
    for name, shape in shapes.items():
        np.save(tmp_path / f"{name}.npy", np.ones(shape))
    model = diffusion(cond_dim=5, frame_cond_dim=2, cond_channels=2)
    files = {name: str(tmp_path / f"{name}.npy") for name in shapes}
    found = read(model, **{**files, "cond": [files["cond"]]})
    assert {name: value.shape for name, value in found.items()} == shapes
    assert all(value.dtype == torch.float32 for value in found.values())
    model.sample(**{name: repeat(value, 1, 3) for name, value in found.items()}, progress=False)


def test_captions_and_arrays_for_a_network_of_states(tmp_path):
    np.save(tmp_path / "cond.npy", np.ones((2, 7, 5)))
    model = diffusion(cond_dim=5, num_text_tokens=2)
    found = read(model, cond=[str(tmp_path / "cond.npy")])
    assert found["cond"].shape == (2, 7, 5)
    model.sample(**found, progress=False)
    with pytest.raises(ValueError, match=r"--cond must be a \.npy for a model of text states"):
        read(model, cond=["1"])
    found = read(model, text=["a", "a longer one"])
    assert found == {"cond": ["a", "a longer one"]}
    text.set_text_encoder(lambda captions: torch.ones(len(captions), len(captions[0]), 5))
    captions, negative = repeat(found["cond"], 2, 2), repeat(["blurry"], 2, 2)
    videos = model.sample(captions, cond_scale=2.0, negative_cond=negative, progress=False)
    text.set_text_encoder()
    assert videos.shape == (4, 1, 3, 8, 8)


def test_captions_of_a_file(tmp_path):
    model, file = diffusion(cond_dim=5), tmp_path / "captions.txt"
    file.write_text("a whale\n\n  a ship, far away \n")
    assert read(model, text=[str(file)])["cond"] == ["a whale", "a ship, far away"]
    assert read(model, text=[str(file), "b"])["cond"] == [str(file), "b"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="--text must be a file with a caption in each line, got"):
        read(model, text=[str(file)])
    with pytest.raises(
        FileNotFoundError, match=r"expected captions in no\.txt, found no such file"
    ):
        read(model, text=["no.txt"])


def test_numbers_on_the_line():
    model = diffusion({"cond_ranges": {"EF": (30, 80)}}, cond_dim=1)
    assert read(model, cond=["30", "-6e1"])["cond"].tolist() == [[30], [-60]]
    model = diffusion({"cond_ranges": {"EF": (30, 80), "age": (0, 9)}}, cond_dim=2)
    assert read(model, cond=["30", "1", "60", "2"])["cond"].tolist() == [[30, 1], [60, 2]]
    with pytest.raises(ValueError, match=r"2 numbers for each condition, EF, age, one .* got 3; "):
        read(model, cond=["30", "1", "60"])
    for wrong in ("many", "nan", "1_0"):
        with pytest.raises(ValueError, match=f"--cond must be numbers, or one .npy, got 1 {wrong}"):
            read(model, cond=["1", wrong])


def test_numbers_outside_of_the_training_clips():
    info = ClipInfo(cond_ranges={"EF": (30, 80), "age": (0, 9)})
    cond = torch.tensor([[30, 9.5], [81, 0], [81, 0]])
    assert outside_of_training(info, cond) == [
        "note: EF 81 is outside of the training clips, 30 to 80",
        "note: age 9.5 is outside of the training clips, 0 to 9",
    ]
    for other in (None, ["a caption"], torch.ones(1, 3)):
        assert outside_of_training(info, other) == []


def test_first_frames_of_a_file_or_a_folder(tmp_path):
    for index in range(2):
        write_video(torch.full((1, 4, 16, 24), index / 2), tmp_path / f"{index}.gif")
    model = diffusion(given_frames=2, cond_channels=2)
    one = read(model, first_frames=str(tmp_path / "1.gif"))["first_frames"]
    assert one.shape == (1, 1, 2, 8, 8)
    assert one.unique().tolist() == [pytest.approx(128 / 255)]
    both = read(model, first_frames=str(tmp_path))["first_frames"]
    assert both.shape == (2, 1, 2, 8, 8)
    write_video(torch.zeros(1, 1, 8, 8), tmp_path / "0.gif")
    with pytest.raises(ValueError, match=r"must have 2 frames, got 1; give a longer clip"):
        read(model, first_frames=str(tmp_path))


def test_first_frames_of_clips_that_were_resampled_in_time(tmp_path):
    write_video(ramp(7), tmp_path / "clip.npy")
    for fit_frames, second in (("all", 3), ("short", 1), (None, 1)):
        info = {"settings": {"fit_frames": fit_frames}}
        model = diffusion(info, given_frames=2, cond_channels=2)
        found = read(model, first_frames=str(tmp_path / "clip.npy"))["first_frames"]
        torch.testing.assert_close(found[0], ramp(7)[:, [0, second]])


def test_bytes_of_a_field_stay_bytes(tmp_path):
    np.save(tmp_path / "x.npy", np.full((1, 2, 8, 8), 255, np.uint8))
    model = diffusion(cond_channels=2)
    found = read(model, cond_video=str(tmp_path / "x.npy"))["cond_video"]
    assert found.dtype == torch.uint8
    np.save(tmp_path / "x.npy", np.full((1, 2), "a"))
    with pytest.raises(
        ValueError, match=r"--cond_video must be a .npy of numbers, got .*x.npy \(val"
    ):
        read(model, cond_video=str(tmp_path / "x.npy"))


def test_labels_by_name_and_number():
    model = diffusion({"class_names": ("x", "y", "z")}, num_classes=3)
    assert read(model, labels=["z", "0", "-1"])["labels"].tolist() == [2, 0, -1]
    for wrong in ("3", "-2"):
        with pytest.raises(
            ValueError, match=f"must be from 0 to 2, or -1 for no class, got {wrong}"
        ):
            read(model, labels=[wrong])
    with pytest.raises(ValueError, match="among x, y, z, or -1 for none, got 'w'; choose one"):
        read(model, labels=["w"])
    with pytest.raises(ValueError, match="must be numbers, as the model has no names of classes"):
        read(diffusion(num_classes=3), labels=["z"])


def test_captions_and_vectors_exclude_each_other():
    model = diffusion(cond_dim=4)
    with pytest.raises(ValueError, match=r"only one of --text and --cond .* got both; remove one"):
        read(model, text=["a"], cond=["a.npy"])


def test_missing_and_damaged_files(tmp_path):
    model, file = diffusion(cond_dim=4), tmp_path / "x.npy"
    with pytest.raises(FileNotFoundError, match=r"x\.npy"):
        read(model, cond=[str(file)])
    for content in ("no array", ""):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"--cond must be a .npy of numbers, got .*x.npy \("):
            read(model, cond=[str(file)])


def test_conditions_that_the_model_was_not_trained_with():
    with pytest.raises(ValueError, match=r"with, none, got --labels; correct the options$"):
        read(diffusion(), labels=["0"])
    with pytest.raises(ValueError, match=r"with, none, got --cond; correct the options$"):
        read(diffusion(), cond=["0"])
    with pytest.raises(
        ValueError, match=r"--labels, got none; .* options, as --labels -1 for no c"
    ):
        read(diffusion(num_classes=2))
    for network, info, takes in (
        ({"cond_dim": 2}, {}, "--text or --cond, --labels"),
        ({"cond_dim": 2}, {"cond_ranges": {"EF": (0, 1)}}, "--cond, --labels"),
        ({"cond_dim": 2}, {"text_encoder": "bert"}, "--text, --labels"),
        ({"use_bert_text_cond": True}, {}, "--text, --labels"),
    ):
        with pytest.raises(ValueError, match=f"trained with, {takes}, got --labels; correct"):
            read(diffusion(info, num_classes=2, **network), labels=["0"])
    assert read(diffusion()) == {}


def test_a_row_is_repeated_for_each_video():
    assert repeat(["a", "b"], 2, 2) == ["a", "a", "b", "b"]
    assert repeat(torch.arange(2), 2, 2).tolist() == [0, 0, 1, 1]
    assert repeat(["a"], 2, 3) == ["a"] * 6


# The command


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Saves a model as the folder `model` in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def save(*args, **kwargs):
        torch.manual_seed(0)
        diffusion(*args, **kwargs).save_pretrained("model")

    return save


@pytest.fixture
def lines(capsys):
    """Runs `sample model` with options; returns the lines it prints."""

    def run(*options):
        capsys.readouterr()
        assert main(["sample", "model", "--device", "cpu", *map(str, options)]) is None
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def values(lines):
    """As `lines`; returns the videos."""

    def run(*options):
        lines("-o", "out.npy", *options)
        return torch.from_numpy(np.load("out.npy"))

    return run


@pytest.fixture
def mistake(capsys):
    """Runs `sample model` with options that are refused; returns the line it prints."""

    def run(*options):
        capsys.readouterr()
        assert main(["sample", "model", *map(str, options)]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_few_good_steps_by_default(at, lines, values):
    at(timesteps=60)
    first, _ = lines("-n", "1")
    assert first == (
        "samples in 50 steps of dpm++sde, almost as good as all 60: for these add --sampler ddpm"
    )
    expected = values("-n", "1", "--sampler", "dpm++sde", "--steps", "50")
    assert torch.equal(values("-n", "1"), expected)
    # with fewer steps than all, the same sampler
    expected = values("-n", "1", "--sampler", "dpm++sde", "--steps", "3")
    assert torch.equal(values("-n", "1", "--steps", "3"), expected)


def test_a_model_s_own_number_of_steps_and_a_short_schedule(tmp_path, monkeypatch, lines, values):
    monkeypatch.chdir(tmp_path)
    for model in (diffusion(timesteps=60), diffusion(timesteps=50)):
        if model.num_timesteps == 60:
            model = GaussianDiffusion(
                model.denoise_fn, image_size=8, num_frames=3, timesteps=60, sampling_timesteps=4
            )
        model.save_pretrained("model")
        *notes, _ = lines("-n", "1")
        note = (
            "samples in 4 steps of dpm++sde, the model's sampling_timesteps: for all 60 add --sam"
        )
        assert [line.startswith(note) for line in notes] == [True] * (model.num_timesteps == 60)
        if notes:
            np.testing.assert_array_equal(values("-n", "1"), values("-n", "1", "--steps", "4"))
            assert len(lines("-n", "1", "--sampler", "ddim")) == 1


def test_a_device_is_chosen(at, monkeypatch):
    at()
    seen = []

    def load(*args, device, **kwargs):
        seen.append(device)
        raise ValueError("seen")

    monkeypatch.setattr("video_diffusion_pytorch.cli.sample.load_diffusion", load)
    monkeypatch.setattr("video_diffusion_pytorch.cli.sample.fastest_device", lambda: "fast")
    for options in ([], ["--device", "cpu"]):
        assert main(["sample", "model", *options]) == 2
    assert seen == ["fast", "cpu"]


def test_a_file_of_each_video_and_the_grid(at, lines):
    at({"class_names": ("cat", "dog"), "fps": 25}, num_classes=2)
    [line] = lines("-n", "2", "--labels", "dog", "-1", "-o", "out/of/it")
    assert line == (
        "wrote 4 videos of 3 frames, 8 x 8 pixels, to out/of/it/1.mp4 to 4.mp4, with grid.gif and "
        "conditions.txt"
    )
    assert names("out/of/it") == [
        *("1.mp4", "2.mp4", "3.mp4", "4.mp4", "conditions.txt", "grid.gif"),
    ]
    text = "1: dog\n2: dog\n3: (no class)\n4: (no class)\n"
    assert Path("out/of/it/conditions.txt").read_text() == text
    video, fps = read_video("out/of/it/1.mp4")
    assert (video.shape, fps) == ((3, 3, 8, 8), 25)
    with Image.open("out/of/it/grid.gif") as image:
        assert image.size == (24, 24)
    lines("-n", "1", "--labels", "0", "-o", "one/", "--format", "webp")
    assert names("one") == ["1.webp", "conditions.txt", "grid.gif"]


def test_fields_are_arrays_and_grey_pictures(at, lines):
    at(value_range=(-300.0, 500.0))
    lines("-n", "1", "-o", "fields")
    assert names("fields") == ["1.npy", "grid.gif"]
    field = torch.from_numpy(np.load("fields/1.npy"))
    assert field.shape == (1, 3, 8, 8)
    lines("-n", "1", "-o", "pictures", "--format", "png")
    sheet = read_video("pictures/1.png", channels=3)[0] / 255
    expected = (field[0, 0] + 300) / 800
    torch.testing.assert_close(sheet[:, 0, :8, :8], expected.expand(3, -1, -1), rtol=0, atol=0.003)


def test_the_rate_of_files(at, lines, mistake):
    at({"fps": 60})
    assert "a .gif plays 50 frames per second, not 60" in lines("-n", "1")[0]
    assert len(lines("-n", "1", "-o", "x.mp4")) == 1
    assert read_video("x.mp4")[1] == 60
    lines("-n", "1", "-o", "x.mp4", "--fps", "12.5")
    assert read_video("x.mp4")[1] == 12.5
    assert "--fps must be 0.01 to 1000 frames per second, got 0.0" in mistake("--fps", "0")


def test_one_video_has_no_frame(at, lines, values):
    at()
    video = values("-n", "1")[0].expand(3, -1, -1, -1)
    lines("-n", "1", "-o", "x.webp")
    found = read_video("x.webp", channels=3)[0] / 255
    torch.testing.assert_close(found, video, rtol=0, atol=0.003)
    for name in ("x.mp4", "x.gif"):
        lines("-n", "1", "-o", name)
        assert read_video(name)[0].shape[2:] == (8, 8)
    lines("-n", "1", "-o", "x.png")
    with Image.open("x.png") as image:
        # three frames with a border, and a free place
        assert image.size == (24, 24)


def test_frames_between_keep_the_speed(at, lines):
    at({"fps": 20}, num_frames=4)
    lines("-n", "1", "--interpolate", "3", "-o", "x.mp4")
    assert read_video("x.mp4")[1] == 60
    lines("-n", "1", "--interpolate", "3", "-o", "x.mp4", "--fps", "12.5")
    assert read_video("x.mp4")[1] == 12.5
    assert "a .gif plays 50 frames per second, not 60" in lines("-n", "1", "--interpolate", "3")[0]
    # all frames of a clip, at its own rate
    write_video(ramp(3, 16), "clip.mp4", fps=5)
    lines("-n", "1", "--interpolate", "2", "--clip", "clip.mp4", "-o", "x.mp4")
    assert read_video("x.mp4")[1] == 10
    write_video(ramp(3), "clip.npy")
    lines("-n", "1", "--interpolate", "2", "--clip", "clip.npy", "-o", "x.mp4")
    assert read_video("x.mp4")[1] == 40


def test_mistakes_in_files(at, mistake):
    at()
    Path("file").write_text("")
    assert "a file with an ending, or a folder without checkp" in mistake("-o", "file")
    assert "--format must be one of mp4, gif, webp, npy, png, nc, " in mistake(
        "-o", "new", "--format", "avi"
    )
    assert "--format must go with a folder, in which it is that of the files, got the f" in mistake(
        "-o", "x.mp4", "--format", "mp4"
    )
    assert not Path("new").exists()


# Known clips


def ramp(frames, size=8):
    """A grey clip whose frames get brighter, `(1, f, size, size)`."""
    return torch.linspace(0, 1, frames).view(1, -1, 1, 1).expand(1, frames, size, size)


def test_a_clip_is_continued(at, values, mistake):
    at({"settings": {"frame_skip": 2}}, num_frames=4)
    write_video(ramp(6), "clip.npy")
    # every second frame, as in training
    for options, length in ((["-n", "2"], 4), (["--extend_to", "7", "-n", "2"], 7)):
        videos = values("--continue_from", "clip.npy", *options)
        assert videos.shape == (2, 1, length, 8, 8)
        for video in videos:
            torch.testing.assert_close(video[:, :3], ramp(6)[:, ::2])
    write_video(ramp(12), "long.npy")
    assert values("--continue_from", "long.npy", "-n", "1").shape[2] == 6 + 2
    line = mistake("--continue_from", "clip.npy", "--extend_to", "3")
    assert "more than the clip's 3 frames, got 3; give a greater number, or take fewer" in line
    assert line.endswith("frames of the clip by --clip_frames")
    line = mistake("--continue_from", "clip.npy", "--clip_frames", "0")
    assert "--clip_frames must be" in line
    line = mistake("--extend_to", "4")
    assert line.endswith("more than the model's 4 frames, got 4; give a greater number")
    options = ["--clip_frames", "2", "--extend_to", "3", "-n", "1"]
    videos = values("--continue_from", "clip.npy", *options)
    torch.testing.assert_close(videos[0, :, :2], ramp(6)[:, [0, 2]])
    Path("two").mkdir()
    write_video(ramp(6), "two/a.npy")
    write_video(ramp(6), "two/b.npy")
    assert values("--continue_from", "two", "-n", "2").shape[0] == 4
    write_video(ramp(4), "two/b.npy")
    line = mistake("--continue_from", "two")
    assert "--continue_from must be a clip, or clips of one shape, got (1, 3, 8, 8) in" in line


def test_a_model_of_given_frames_takes_those_of_the_clip(at, values):
    at(given_frames=1, cond_channels=2)
    write_video(ramp(2), "clip.npy")
    videos = values("--continue_from", "clip.npy", "-n", "1")
    torch.testing.assert_close(videos[:, :, :2], ramp(2)[None])


def test_a_part_of_a_clip_is_drawn_anew(at, values, mistake):
    at()
    write_video(ramp(3, 16), "clip.npy")
    mask = np.zeros((16, 16), np.uint8)
    mask[:8, :8] = 1
    Image.fromarray(mask).save("mask.png")
    np.save("mask.npy", mask)
    # black that is not quite black, as in a jpg
    Image.fromarray(np.where(mask, 250, 5).astype(np.uint8)).save("noisy.png")
    for file in ("mask.png", "mask.npy", "noisy.png"):
        videos = values("--inpaint", "clip.npy", "--mask", file, "-n", "1")
        known = ramp(3)[None].clone()
        is_known = torch.ones(8, 8, dtype=torch.bool)
        is_known[:5, :5] = False
        torch.testing.assert_close(videos[..., is_known], known[..., is_known])
        assert not torch.equal(videos[..., :4, :4], known[..., :4, :4])
    by_frame = np.zeros((3, 8, 8), bool)
    by_frame[1] = True
    np.save("mask.npy", by_frame)
    videos = values("--inpaint", "clip.npy", "--mask", "mask.npy", "-n", "1")
    torch.testing.assert_close(videos[:, :, [0, 2]], ramp(3)[None][:, :, [0, 2]])
    for array, got in ((np.zeros((8, 8)), "a black one"), (np.ones(8), r"the shape (8,)")):
        np.save("mask.npy", array)
        line = mistake("--inpaint", "clip.npy", "--mask", "mask.npy")
        assert f"nonzero there, got {got} in mask.npy; correct it" in line


def test_frames_between_and_more_pixels(at, values, mistake):
    at({"settings": {"frame_skip": 2}}, num_frames=4)
    assert values("--interpolate", "2", "-n", "1").shape == (1, 1, 7, 8, 8)
    write_video(ramp(3, 4), "clip.npy")
    videos = values("--interpolate", "3", "--clip", "clip.npy", "-n", "1")
    torch.testing.assert_close(videos[:, :, ::3], ramp(3)[None])
    assert values("--upsample", "16", "-n", "1").shape == (1, 1, 4, 16, 16)
    assert values("--upsample", "[8,10]", "--clip", "clip.npy", "-n", "1").shape[2:] == (2, 8, 10)
    # the center, of the shape of the result
    wide = torch.full((1, 2, 4, 16), 0.9)
    wide[..., 6:10] = 0.1
    write_video(wide, "wide.npy")
    assert values("--upsample", "8", "--clip", "wide.npy", "-n", "1").mean() < 0.5
    for factor in ("1", "4"):
        line = mistake("--interpolate", factor)
        assert "--interpolate must be from 2 to 3, so that a clip of the model has t" in line
    videos = values("--interpolate", "3", "--clip", "clip.npy", "--clip_frames", "2", "-n", "1")
    assert videos.shape[2] == 4
    line = mistake("--upsample", "3", "--clip", "wide.npy")
    assert line.endswith(
        "more than the clip's 4 x 4 pixels, got 3 x 3; give a greater size, or leave out --clip, "
        "which is read at its own size, to upsample samples"
    )
    for size in ("8", "[4,16]"):
        assert "--upsample must be more than the model's 8 x 8 pixels, got" in mistake(
            "--upsample", size
        )


def test_a_mask_of_all_frames_of_the_file(at, values, mistake):
    write_video(ramp(9), "clip.npy")
    mask = np.zeros((9, 8, 8))
    mask[4] = 1
    np.save("mask.npy", mask)
    options = ("--inpaint", "clip.npy", "--mask", "mask.npy", "-n", "1")
    for settings, frames, drawn in (
        ({"fit_frames": "all"}, [0, 4, 8], 1),
        ({"fit_frames": "short", "frame_skip": 4}, [0, 4, 8], 1),
        ({"frame_skip": 2}, [0, 2, 4, 6, 8], 2),
    ):
        at({"settings": settings})
        videos = values(*options)[0]
        is_kept = [number for number in range(len(frames)) if number != drawn]
        expected = ramp(9)[:, frames]
        torch.testing.assert_close(videos[:, is_kept], expected[:, is_kept])
        assert not torch.equal(videos[:, drawn], expected[:, drawn])
    np.save("mask.npy", mask[:7])
    assert (
        "--mask must have 1 frame, the 9 of clip.npy, or the 5 that the model takes of it, got 7; "
        "correct it"
    ) in mistake(*options)


def test_the_order_of_axes_and_formats_of_other_libraries(at, values, mistake):
    at(num_frames=4)
    np.save("clip.npy", ramp(2)[0].permute(1, 2, 0).numpy())
    videos = values("--continue_from", "clip.npy", "-n", "1", "--axes", "hwf")
    torch.testing.assert_close(videos[:, :, :2], ramp(2)[None])
    line = mistake("--continue_from", "clip.npy")
    assert "state the order, for example --axes fhw for frames" in line
    Path("scan.nrrd").write_bytes(b"")
    line = mistake("--continue_from", "scan.nrrd")
    assert "needs Python: read = lambda path: nrrd.read(path)" in line
    assert line.endswith(
        "prepare_clip(path, diffusion, read_fn=read); or save the array as .npy and give that file"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--continue_from a --inpaint b", "only one of --continue_from, --inpaint, --interpolate,"),
        ("--clip a", "--clip must go with --interpolate or --upsample, got --clip; correct"),
        ("--inpaint a", "--inpaint and --mask must be given together, got --inpaint; correct"),
        ("--mask a", "--inpaint and --mask must be given together, got --mask; correct"),
        ("--clip_frames 2", "--clip_frames must go with --continue_from, --inpaint or --clip, got"),
        ("--upsample 16 --extend_to 9", "--extend_to must go with samples or --continue_from, got"),
        (
            "--given_noise 0.1",
            "--given_noise must go with known frames, got --given_noise; correct",
        ),
        ("--continue_from a --first_frames b", "--first_frames must be left out with a clip, whi"),
        ("--continue_from a.mp4", "a.mp4"),
        ("--inpaint model --mask a.png", "expected"),
    ],
)
def test_options_that_make_no_sense_together(at, mistake, options, line):
    at()
    assert line in mistake(*options.split())


def test_a_model_with_a_noise_level_per_frame(at, values, mistake):
    at(frame_noise="independent")
    np.save("clip.npy", np.random.default_rng(0).random((4, 8, 8), dtype=np.float32))
    options = ["--continue_from", "clip.npy", "--axes", "fhw", "-n", "1", "--extend_to", "7"]
    drawn = [values(*options, "--given_noise", noise) for noise in ("0", "0.5")]
    assert drawn[0].shape[2] == 7
    assert torch.equal(drawn[0], values(*options))
    assert not torch.equal(*drawn)
    at()
    assert "given_noise needs a model trained with frame_noise" in mistake(
        *options, "--given_noise", "0.5"
    )


def test_conditions_of_each_frame_of_longer_videos(at, values):
    at(frame_cond_dim=2)
    np.save("poses.npy", np.ones((1, 7, 2)))
    videos = values("--frame_cond", "poses.npy", "--extend_to", "7", "-n", "1")
    assert videos.shape[2] == 7


# Guidance


def test_guidance_by_an_earlier_checkpoint_and_in_an_interval(at, values, mistake):
    at(num_frames=4)
    model = GaussianDiffusion.from_pretrained("model")
    for weight in model.denoise_fn.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained("worse")
    plain, options = values("-n", "2"), ["-n", "2", "--guide", "worse"]
    guided = values(*options, "--guide_scale", "3")
    assert not torch.equal(guided, plain)
    # as in Python
    whole = GaussianDiffusion.from_pretrained("model")
    torch.manual_seed(0)
    expected = whole.sample(batch_size=2, guide=model, guide_scale=3, progress=False)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5)
    interval = ["--guidance_interval", "0.01", "inf"]
    assert torch.equal(values(*options, "--guide_scale", "3", *interval), guided)
    interval = ["--guidance_interval", "1e-9", "1e-8"]
    torch.testing.assert_close(values(*options, *interval), plain, rtol=0, atol=1e-5)
    assert values(*options, "--extend_to", "7").shape[2] == 7
    diffusion(num_frames=5).save_pretrained("longer")
    line = mistake("--guide", "longer")
    assert "guide must have the model's clip shape, (1, 4, 8, 8), got (1, 5, 8, 8); take" in line


def test_a_scale_for_each_condition(at, values, mistake):
    at(cond_dim=2, num_classes=3)
    options = ["--cond", "1", "2", "--labels", "1", "-n", "2"]
    both = values(*options, "--cond_scale", "{cond: 3, labels: 3}")
    assert torch.equal(both, values(*options, "--cond_scale", "3"))
    for written in ("{labels: 1.5, cond: 3}", '{"labels": 1.5, "cond": 3}'):
        found = values(*options, "--cond_scale", written)
        assert not torch.equal(found, values(*options, "--cond_scale", "{cond: 3, labels: 1.5}"))
    each = ["--cond_scale.labels", "1.5", "--cond_scale.cond", "3"]
    assert torch.equal(values(*options, *each), found)
    line = mistake(*options, "--cond_scale", "{text: 3}")
    assert "conditions that are given, cond, labels, got {'text': 3.0}; correct it" in line


# What the model knows


def test_the_text_encoder_of_the_training_and_another(at, values):
    at({"text_encoder": str(TINY_BERT)}, cond_dim=32)
    videos = values("--text", "a whale", "-n", "1")
    again = values("--text", "a whale", "-n", "1", "--text_encoder", TINY_BERT)
    text.set_text_encoder()
    assert torch.equal(videos, again)
    at({"text_encoder": "./not/here"}, cond_dim=32)
    assert values("--text", "a whale", "-n", "1", "--text_encoder", TINY_BERT).shape[0] == 1
    text.set_text_encoder()


def test_a_shared_model_has_one_set_of_weights(at, mistake):
    at()
    assert json.loads(Path("model/config.json").read_text())["diffusion"]["num_frames"] == 3
    assert "averaged must be left out for the shared model model" in mistake("--ema_decay", "0.9")
