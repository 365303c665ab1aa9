"""Models by name: they build, have the table's numbers, and the command knows them."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.presets import PRESETS, Preset, preset

ROOT = Path(__file__).parents[1]
PAPER = [name for name, chosen in PRESETS.items() if isinstance(chosen, Preset)]
every_preset = pytest.mark.parametrize("name", PAPER)


def on_meta(name):
    with torch.device("meta"):
        unet = Unet3D(**PRESETS[name].unet)
    return GaussianDiffusion(unet, **PRESETS[name].diffusion)


@every_preset
def test_they_build_and_run_on_tensors_without_memory(name):
    diffusion = on_meta(name)
    unet, (c, f, h, w) = diffusion.denoise_fn, diffusion.clip_shape
    k = PRESETS[name].trainer["image_frames"]
    x = torch.empty(1, c, f + k, h, w, device="meta")
    time = torch.empty(1, device="meta")
    assert unet(x, time, null_cond_prob=1.0, image_frames=k).shape == x.shape
    # attention at 8, 16 and 32 pixels, after each block, of both kinds
    sizes = {i: h // 2**i for i in range(len(unet.downs))}
    for i, level in enumerate(unet.downs):
        kinds = [name for name, _ in level.named_children() if "_attn" in name]
        blocks = PRESETS[name].unet["blocks_per_level"]
        assert len(kinds) == (2 * blocks if sizes[i] in (8, 16, 32) else 0)
    assert unet.init_temporal_attn is None


@every_preset
def test_the_docs_give_their_parameters(name):
    count = sum(weight.numel() for weight in on_meta(name).parameters() if weight.requires_grad)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| `{name}` \|.*$", page, re.M)
    assert f"| {count / 1e6:.0f} M |" in row


def test_numbers_of_the_table():
    """A few of appendix A's, by column."""
    ucf, bair, sr = PRESETS["ucf101"], PRESETS["bair"], PRESETS["sr_9x128"]
    assert ucf.trainer["betas"] == (0.9, 0.99)
    assert ucf.trainer["train_lr"] == 3e-4
    assert ucf.sampler.gamma == 0.1
    assert ucf.sampling_steps == 256
    assert bair.diffusion["objective"] == "pred_v"
    assert bair.trainer["optimizer"] == "adamw"
    assert bair.sampler.langevin_delta == 0.1
    assert bair.guidance_weight == 50
    assert PRESETS["kinetics600"].trainer["train_batch_size"] == 256
    assert sr.diffusion["num_frames"] == 9
    assert sr.unet["attn_dim_head"] == 128
    assert {p.text_encoder for p in (ucf, bair)} == {None}
    assert sr.text_encoder == "bert-large-uncased"


def test_an_unknown_name():
    message = (
        "preset: name must be one of small, ucf101, bair, kinetics600, text_small, text_large, "
        "sr_9x128, got 'ucf'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        preset("ucf")


SMALL = [
    "--unet.dim=8", "--unet.dim_mults=[1,2]", "--full_attn_levels=[1]",
    "--temporal_attn_levels=[1]", "--unet.emb_dim=16", "--image_size=24", "--num_frames=2",
    "--train_batch_size=2", "--train_num_steps=2", "--save_and_sample_every=2",
    "--num_sample_rows=1", "--image_frames=1", "--num_workers=0", "--device=cpu",
    "--timesteps=4",
]  # fmt: skip


def test_a_preset_trains_and_samples_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_moving_digits("clips", num_clips=4, image_size=24, num_frames=2)
    assert main(["train", "clips", "--preset", "bair", *SMALL]) is None
    out = capsys.readouterr().out
    assert "--preset bair -o results/samples.gif" in out
    diffusion = load_diffusion("results/model-1.pt")
    assert diffusion.denoise_fn.config["time_input"] == "log_snr"
    assert diffusion.denoise_fn.config["blocks_per_level"] == 3
    assert diffusion.objective == "pred_v"
    assert diffusion.is_continuous

    drawn = {}
    sample = GaussianDiffusion.sample
    monkeypatch.setattr(
        GaussianDiffusion, "sample", lambda self, **how: drawn.update(how) or sample(self, **how)
    )
    options = ["sample", "results/model-1.pt", "--preset", "bair", "--steps", "2", "-n", "1"]
    assert main(options) is None
    assert drawn["sampler"].langevin_delta == 0.1
    assert drawn["steps"] == 2


@pytest.mark.parametrize("conditions", [[], ["--conditions=label", "--num_classes=2"]])
def test_the_small_preset_guides_where_there_are_conditions(
    conditions, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for path in write_moving_digits("written", num_clips=4, image_size=24, num_frames=2):
        folder = Path("clips") / str(int(path.stem[:4]) % 2)
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    small = [option for option in SMALL if "levels" not in option and "image_frames" not in option]
    options = ["train", "clips", "--preset", "small", *small, "--warmup_steps=1", *conditions]
    assert main(options) is None
    assert load_diffusion("results/model-1.pt").objective == "flow"
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("samples: video-diffusion sample results/model-1.pt ")
    drawn = {}
    sample = GaussianDiffusion.sample
    monkeypatch.setattr(
        GaussianDiffusion, "sample", lambda self, **how: drawn.update(how) or sample(self, **how)
    )
    assert main([*line.split()[2:], "-n", "1", "--steps", "2"]) is None
    assert drawn["cond_scale"] == (3.0 if conditions else 1.0)
    assert drawn["sampler"] == "dpm++sde"
    if conditions:
        assert main([*line.split()[2:], "-n", "1", "--steps", "2", "--cond_scale", "1"]) is None
        assert drawn["cond_scale"] == 1


def test_a_preset_in_a_file_and_options_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("preset: text_small\nunet: {dropout: 0.2}\n")
    with pytest.raises(SystemExit):
        main(["train", "clips", "--config", "run.yaml", "--dim", "32", "--print_config", "full"])
    options = yaml.safe_load(capsys.readouterr().out)
    assert options["unet"]["dim"] == 32
    assert options["unet"]["dropout"] == 0.2
    assert options["unet"]["text_pooling"] == "attention"
    assert options["data"]["conditions"] == "caption"
    assert options["text_encoder"] == "bert-large-uncased"


@pytest.mark.parametrize("options", [["--preset", "ucf"], ["--preset=ucf"]])
def test_an_unknown_preset_is_one_line(options, capsys):
    assert main(["train", "clips", *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("video-diffusion: error: preset: name must be one of small, ucf101")


@pytest.mark.parametrize("content", ["preset: [", "- preset", "\x00"])
def test_a_file_that_cannot_be_read_is_one_line(content, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    assert main(["train", "clips", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "video-diffusion: error: " in capsys.readouterr().err


def test_presets_keywords_are_those_of_the_classes():
    """With the batch as it is, and nothing built."""
    import inspect

    from video_diffusion_pytorch.cli.train import option_names

    known = {*inspect.signature(Trainer).parameters, *option_names("data")}
    for of_paper in PRESETS.values():
        assert {*of_paper.trainer} <= known


def test_a_preset_is_the_callers_own():
    preset("small").unet["dim"] = 8
    assert preset("small").unet["dim"] == PRESETS["small"].unet["dim"] == 32
