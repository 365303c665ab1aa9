"""One's own clips, prepared as in training."""

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import (
    Dataset,
    GaussianDiffusion,
    Trainer,
    Unet3D,
    prepare_clip,
    write_video,
)
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.data.errors import UnreadableVideoError


def model(channels=1, value_range=None, **settings):
    unet = Unet3D(dim=4, dim_mults=(1, 2), channels=channels, attn_heads=1)
    diffusion = GaussianDiffusion(
        unet, image_size=(8, 12), num_frames=3, timesteps=2, value_range=value_range
    )
    diffusion.clip_info = ClipInfo(settings=settings)
    return diffusion


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fit": "contain"},
        {"fit": "stretch", "frame_skip": 2},
        {"fps": 5.0},
        {"value_range": (-300, 500), "fit": "contain"},
    ],
)
@pytest.mark.parametrize("ending", ["gif", "npy"])
def test_a_clip_is_as_in_training(tmp_path, options, ending):
    # arrays have no timestamps
    ending = "gif" if "fps" in options else ending
    write_video(torch.rand(1, 6, 20, 24), tmp_path / f"clip.{ending}", fps=10)
    clips = Dataset(tmp_path, (8, 12), 1, 3, exts=None, **options)
    diffusion = model(value_range=options.get("value_range"), **clips.frame_options)
    found = prepare_clip(tmp_path / f"clip.{ending}", diffusion, num_frames=3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, clips[0][None])


def test_a_trained_model_knows_how_its_clips_were_prepared(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    write_video(torch.rand(1, 6, 20, 24), clips / "clip.gif")
    data = {"fit": "stretch", "frame_skip": 2, "crop": "random", "num_workers": 0}
    trainer = Trainer(model(), clips, results_folder=tmp_path, device="cpu", **data)
    found = prepare_clip(clips / "clip.gif", trainer.model)
    expected = Dataset(clips, (8, 12), 1, 3, fit="stretch", frame_skip=2)
    torch.testing.assert_close(found, expected[0][None])


def test_all_frames_or_some(tmp_path):
    write_video(torch.rand(1, 6, 8, 12), tmp_path / "clip.npy")
    clip = torch.from_numpy(np.load(tmp_path / "clip.npy"))
    diffusion = model(frame_skip=4)
    assert torch.equal(prepare_clip(tmp_path / "clip.npy", diffusion)[0], clip[:, ::4])
    kept = prepare_clip(tmp_path / "clip.npy", diffusion, keep_rate=True)
    assert torch.equal(kept[0], clip)
    with pytest.raises(
        ValueError, match=r"clip\.npy must have 3 frames, got 2; give a longer clip"
    ):
        prepare_clip(tmp_path / "clip.npy", diffusion, num_frames=3)


def test_files_resampled_in_time(tmp_path):
    def frames(path, kind, **options):
        clip = prepare_clip(path, model(fit_frames=kind, frame_skip=2), **options)[0, 0]
        return (clip.mean(dim=(1, 2)) * 20).round().int().tolist()

    for length in (4, 20):
        numbers = torch.arange(length).view(1, -1, 1, 1).expand(1, length, 8, 12) / 20
        (tmp_path / f"{length}").mkdir()
        write_video(numbers, tmp_path / f"{length}" / "clip.npy")
    short, long = (tmp_path / name / "clip.npy" for name in ("4", "20"))
    for path in (short, long):
        for kind in ("all", "short"):
            expected = Dataset(path.parent, (8, 12), 1, 3, exts=None, frame_skip=2, fit_frames=kind)
            found = prepare_clip(path, model(fit_frames=kind, frame_skip=2))
            torch.testing.assert_close(found[0, :, :3], expected[0])
    assert frames(short, "all") == frames(short, "short") == [0, 2, 2]
    assert frames(long, "all") == [0, 10, 18]
    assert frames(long, "short") == [*range(0, 20, 2)]
    assert frames(long, "all", num_frames=2) == [0, 18]
    assert frames(long, "short", num_frames=2) == [0, 2]
    assert frames(short, "short", num_frames=4) == [0, 0, 2, 2]
    assert frames(short, "all", keep_rate=True) == [0, 1, 2, 3]


def test_the_order_of_axes(tmp_path):
    clip = torch.rand(3, 8, 12)
    np.save(tmp_path / "clip.npy", clip.permute(1, 2, 0).numpy())
    for diffusion, axes in ((model(axes="hwf"), None), (model(axes="fhw"), "hwf")):
        found = prepare_clip(tmp_path / "clip.npy", diffusion, axes=axes)
        torch.testing.assert_close(found[0, 0], clip)


def test_other_sizes(tmp_path):
    for ending in ("npy", "gif"):
        path = tmp_path / f"clip.{ending}"
        write_video(torch.rand(1, 2, 4, 6), path)
        shapes = [prepare_clip(path, model(), image_size=s).shape[3:] for s in ("own", 10, (2, 4))]
        assert shapes == [(4, 6), (10, 10), (2, 4)]
    videos = model().upsample(prepare_clip(path, model(), image_size="own"), progress=False)
    assert videos.shape == (1, 1, 2, 8, 12)


def test_bytes_and_numbers_of_a_model_with_units(tmp_path):
    np.save(tmp_path / "clip.npy", np.full((1, 2, 8, 12), 51, np.uint8))
    for units, value in ((None, 0.2), ((0, 255), 51)):
        found = prepare_clip(tmp_path / "clip.npy", model(value_range=units))
        assert found.unique().tolist() == [pytest.approx(value)]


def test_a_reader_of_ones_own(tmp_path):
    (tmp_path / "clip.raw").write_bytes(bytes(range(12)))

    def read(path):
        return np.frombuffer(path.read_bytes(), np.uint8).reshape(1, 3, 2, 2) / np.float32(11)

    found = prepare_clip(tmp_path / "clip.raw", model(), read_fn=read, image_size="own")
    torch.testing.assert_close(found.flatten(), torch.arange(12) / 11)


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.mp4"):
        prepare_clip(tmp_path / "no.mp4", model())
    write_video(torch.rand(3, 2, 8, 12), tmp_path / "clip.npy")
    with pytest.raises(UnreadableVideoError, match="channel"):
        prepare_clip(tmp_path / "clip.npy", model())
