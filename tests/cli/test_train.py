"""What `train` takes from a preset, a file and the command line, and which of them wins."""

import os
import re
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion, text
from video_diffusion_pytorch.cli import main, parse
from video_diffusion_pytorch.cli.train import rewrite
from video_diffusion_pytorch.data.moving_digits import write_moving_digits

GOLDEN = Path(__file__).parents[1] / "golden"
TINY_BERT = GOLDEN / "tiny_bert"
REFERENCE = GOLDEN / "reference_results_0.7.0" / "model-2.pt"


@pytest.fixture
def mistake(capsys):
    """Runs a command that must fail; gives the one line it prints."""

    def run(*argv):
        assert main([*argv]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bair.yaml").write_text("preset: bair\nunet: {dropout: 0.2}\n")
    Path("other.yaml").write_text("unet: {dim: 32}\n")
    Path("null.yaml").write_text("preset: null\n")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["clips", "--preset", "ucf101"], "ucf101"),
        (["clips", "--preset=ucf101"], "ucf101"),
        (["--config", "bair.yaml"], "bair"),
        (["--config=bair.yaml", "--config=other.yaml"], "bair"),
        (["--config", "bair.yaml", "--config", "null.yaml"], None),
        (["--config", "bair.yaml", "--preset", "ucf101"], "ucf101"),
        (["--config", "bair.yaml", "--preset", "null"], None),
        (["clips", "--preset"], None),
        ([], None),
    ],
)
def test_the_preset_that_arguments_name(argv, name):
    assert rewrite(argv)[1].preset == name


def printed(capsys, *argv):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "clips", *argv, "--print_config", "full"])
    return yaml.safe_load(capsys.readouterr().out)


def printed_short(capsys, *argv):
    """The text that is printed unless all options are asked for."""
    with pytest.raises(SystemExit, match="0"):
        main(["train", *argv])
    return capsys.readouterr().out


SHORT = """\
# Folder of clips, also in subfolders. Required, here or in the file of options.
folder: films
# Model whose settings become the defaults: small, ucf101, bair, kinetics600, text_small,
# text_large, sr_9x128. All but small, which trains in minutes on a CPU, are the paper's.
preset: bair

# Network (unet)
unet:
  # Channels of the network at full resolution, even; more are better and slower.
  dim: 128
  # Channels of the clips: 3 for RGB, 1 for grayscale, more for fields.
  channels: 3
  # Width of a head of the temporal attention.
  attn_dim_head: 32
"""


@pytest.mark.usefixtures("files")
def test_the_short_file_has_the_main_options_and_changed_ones_with_comments(capsys):
    options = ["--preset", "bair", "--attn_dim_head", "32", "--max-grad-norm=1", "--dropout=0"]
    text = printed_short(capsys, "--print_config", "films", *options)
    assert text.startswith(SHORT)
    found = yaml.safe_load(text)
    assert found["trainer"] == {
        "train_batch_size": 128,
        "train_num_steps": 660_000,
        "results_folder": "./results",
        "max_grad_norm": 1.0,
    }
    assert found["data"] == {"conditions": None}
    assert max(map(len, text.splitlines())) <= 100
    Path("short.yaml").write_text(text)
    # the same run, whichever is given
    everything = printed(capsys, *options)
    assert printed(capsys, "--config", "short.yaml") == everything
    assert everything["unet"]["dropout"] == 0
    assert printed_short(capsys, "films", "--config=short.yaml", "--print_config") == text


@pytest.mark.usefixtures("files")
def test_null_instead_of_a_default_is_printed(capsys):
    text = printed_short(capsys, "films", "--attn_heads", "null", "--print_config")
    assert yaml.safe_load(text)["unet"]["attn_heads"] is None


def test_print_config_is_one_of_two(mistake):
    line = mistake("train", "--print_config=all")
    assert "--print_config must be left without a value or be full, got 'all'; correct" in line


FLAT = """
image-size: 32
dim: 8
unet: {channels: 1, attn-heads: 2}
diffusion.timesteps: 20
train_num_steps: 1e5
save_and_sample_every: 1.0e+3
validation_split: 0.1
value_range: [0, 2]
"""


def test_short_names_in_a_file(tmp_path):
    (tmp_path / "flat.yaml").write_text(FLAT)
    options = parse(["train", "clips", "--config", str(tmp_path / "flat.yaml")]).train
    unet, diffusion, trainer = options.unet, options.diffusion, options.trainer
    assert (unet.dim, unet.channels, unet.attn_heads) == (8, 1, 2)
    assert (diffusion.image_size, diffusion.timesteps) == (32, 20)
    assert (trainer.train_num_steps, trainer.save_and_sample_every) == (100_000, 1_000)
    assert type(trainer.save_and_sample_every) is int
    assert trainer.validation_split == 0.1
    assert (options.data.value_range, diffusion.value_range) == ([0, 2], None)


@pytest.mark.parametrize("given", ["1e5", "100000.0", "100000"])
def test_whole_floats_are_numbers_of_steps(given):
    for argv in (["--train_num_steps", given], [f"--trainer.train-num-steps={given}"]):
        assert parse(["train", "clips", *argv]).train.trainer.train_num_steps == 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "dim: 8\nunet: {dim: 4}",
            "each option must be given once, got dim and unet.dim for unet.dim in options.yaml; re",
        ),
        (
            "unet: {init-dim: 8, init_dim: 8}",
            "got unet.init-dim and unet.init_dim for unet.init_dim in options.yaml; remove one",
        ),
        ("imagesize: 8", "of train in options.yaml, got imagesize (is image_size meant?); see"),
        ("unet: {timestep: 8}", "got unet.timestep; see video-diffusion train --help_all"),
        ("trainer: {batch-size: 8}", "got trainer.batch-size (is trainer.train_batch_size meant?)"),
        ("trainers: {train_lr: 8}", "got trainers (is trainer meant?); see"),
        ("steps: 8", "got steps; see"),
        ("presets: bair", "got presets (is preset meant?); see"),
        ("1: 2", "got 1; see"),
    ],
)
def test_wrong_names_in_a_file(tmp_path, monkeypatch, mistake, content, message):
    monkeypatch.chdir(tmp_path)
    Path("options.yaml").write_text(content)
    assert message in mistake("train", ".", "--config", "options.yaml")


@pytest.mark.usefixtures("files")
def test_options_come_before_files_and_files_before_presets(capsys):
    settings = printed(
        capsys, "--config", "bair.yaml", "--config", "other.yaml", "--emb_layers", "3"
    )
    assert settings["preset"] == "bair"
    assert settings["unet"]["blocks_per_level"] == 3
    assert settings["unet"]["dropout"] == 0.2
    assert settings["unet"]["dim"] == 32
    assert settings["unet"]["emb_layers"] == 3
    assert settings["data"]["horizontal_flip"] is True
    assert printed(capsys, "--config", "bair.yaml", "--preset", "null")["unet"]["dim"] == 64


@pytest.mark.usefixtures("files")
def test_a_printed_preset_is_a_file_with_the_same_settings(capsys):
    settings = printed(capsys, "--preset", "text_small")
    Path("all.yaml").write_text(yaml.safe_dump(settings))
    assert printed(capsys, "--config", "all.yaml") == settings


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("options", "conditions"),
    [
        (["--conditions", "label"], "label"),
        (["--conditions", "[caption, label]"], ["caption", "label"]),
        (["--conditions", '{"cond": ["EF", "ESV"]}'], {"cond": ["EF", "ESV"]}),
        (["--conditions.cond", "[EF]", "--conditions.labels=Class"],
         {"cond": ["EF"], "labels": "Class"}),
        (["--conditions", '[{"cond": ["EF"]}, label]'], [{"cond": ["EF"]}, "label"]),
    ],
)  # fmt: skip
def test_conditions_are_printed_as_they_are(options, conditions, capsys):
    settings = printed(capsys, *options, "--manifest-columns.path", "FileName")
    assert settings["data"]["conditions"] == conditions
    assert settings["data"]["manifest_columns"] == {"path": "FileName"}
    Path("all.yaml").write_text(yaml.safe_dump(settings))
    assert printed(capsys, "--config", "all.yaml") == settings


# Fine-tuning

SETTINGS = {"dim": 8, "dim_mults": (1, 2), "channels": 1, "attn_heads": 2, "attn_dim_head": 8}
RUN = ["--train_batch_size=2", "--num_sample_rows=1", "--device=cpu", "--num_workers=0"]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A working folder with `clips` and the results folder of a run on them."""
    monkeypatch.chdir(tmp_path)
    write_moving_digits("clips", num_clips=4, image_size=24, num_frames=3)
    diffusion = GaussianDiffusion(
        Unet3D(**SETTINGS), image_size=8, num_frames=3, timesteps=20, objective="pred_v"
    )
    trainer = Trainer(diffusion, "clips", results_folder="old", device="cpu", fit="contain")
    trainer.save(1)
    trainer.ema_model.save_pretrained("shared")
    return diffusion.eval()


@pytest.mark.parametrize("given", ["old", "old/model-1.pt", "shared"])
def test_the_settings_of_a_model_become_the_defaults(trained, given, capsys):
    settings = printed(capsys, "--init_from", given, "--num_classes", "3")
    assert {name: settings["unet"][name] for name in SETTINGS} == {**SETTINGS, "dim_mults": [1, 2]}
    assert settings["unet"]["num_classes"] == 3
    assert (settings["diffusion"]["objective"], settings["diffusion"]["timesteps"]) == (
        "pred_v",
        20,
    )
    assert (settings["data"]["fit"], settings["init_from"]) == ("contain", given)
    # a file does the same, and a preset comes after it
    Path("tune.yaml").write_text(f"init_from: {given}\nnum_classes: 3\n")
    assert printed(capsys, "--config", "tune.yaml") == settings
    with_preset = printed(capsys, "--config", "tune.yaml", "--preset", "bair")
    assert with_preset["unet"]["dim"] == 8
    assert with_preset["trainer"]["train_lr"] == 2e-4


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (
            {"objective": "flow", "time_distribution": "logit_normal", "time_shift": "3"},
            "objective 'flow', beta_schedule 'flow', sampling_timesteps 4, "
            "time_distribution (0.0, 1.0), time_shift 3.0",
        ),
        (
            {"objective": "edm", "time_distribution": "[-1, 1.4]", "sigma_data": "0.4"},
            "objective 'edm', beta_schedule 'edm', sampling_timesteps 4, "
            "time_distribution (-1.0, 1.4), sigma_data 0.4",
        ),
        (
            {"objective": "flow", "frame_noise": "independent", "shared_noise_prob": "0.2"},
            "objective 'flow', beta_schedule 'flow', sampling_timesteps 4, "
            "frame_noise 'independent', shared_noise_prob 0.2",
        ),
    ],
)
def test_flow_matching_and_edm_on_the_command_line(
    tmp_path, monkeypatch, capsys, options, settings
):
    monkeypatch.chdir(tmp_path)
    write_moving_digits("clips", num_clips=3, image_size=24, num_frames=3)
    network = ["--dim=8", "--dim_mults=[1]", "--unet.channels=1", "--attn_heads=1"]
    sizes = ["--image_size=8", "--num_frames=3", "--timesteps=4", "--train_num_steps=1"]
    given = [f"--{name}={value}" for name, value in options.items()]
    steps = ["--save_and_sample_every=1", "--gradient_accumulate_every=1"]
    assert main(["train", "clips", *given, *network, *sizes, *steps, *RUN]) is None
    # a run from its weights has the same settings
    more = ["--init_from", "results", "--results_folder", "tuned", "--train_num_steps=1"]
    assert main(["train", "clips", *more, *steps, *RUN]) is None
    for folder in ("results", "tuned"):
        capsys.readouterr()
        assert main(["info", folder]) is None
        assert settings in capsys.readouterr().out
    for sampler in ([], ["--sampler", "euler", "--steps", "2"], ["--sampler", "heun"]):
        assert main(["sample", "results", "-n", "1", "-o", "a.gif", *sampler]) is None
    assert Path("a.gif").is_file()


@pytest.mark.usefixtures("files")
def test_a_file_of_the_reference_has_no_size(capsys):
    settings = printed(capsys, "--init_from", str(REFERENCE), "--image_size", "16")
    assert settings["unet"]["dim"] == 8
    assert settings["diffusion"]["image_size"] == 16


def test_a_run_starts_from_a_model_and_then_resumes(trained, capsys):
    argv = ["train", "clips", "--init_from", "old", *RUN, "--train_lr", "0"]
    assert (
        main([*argv, "--num_frames", "2", "--train_num_steps", "1", "--freeze", "*.downs.*"])
        is None
    )
    out = capsys.readouterr().out
    assert "starts from the weights of old, with num_frames 2 instead of 3\n" in out
    new = load_diffusion("results", averaged=False)
    assert new.num_frames == 2
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], value)
    argv += ["--train_num_steps", "2", "--freeze", '["*.downs.*"]']
    assert main(argv) is None
    out = capsys.readouterr().out
    assert "resumes from results/model-0.001.pt, step 1; old is not read again\n" in out
    assert "starts from" not in out


def test_other_conditions_start_anew(trained, mistake, capsys):
    for index, path in enumerate(sorted(Path("clips").iterdir())):
        folder = Path("kinds", "ab"[index % 2])
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    argv = ["train", "kinds", "--init-from", "shared", "--conditions", "label", "--held_out", "0"]
    argv += ["--num_classes", "2", "--train_num_steps", "1", *RUN]
    assert "init_without=('*.label_emb" in mistake(*argv)
    assert main([*argv, "--init_without", "*.label_emb*"]) is None
    assert "weights of shared, with num_classes 2 instead of None\n" in capsys.readouterr().out
    line = mistake("train", "kinds", "--init_from", "none.pt")
    assert "expected a checkpoint at none.pt, found none: no such file or folder; check" in line


@pytest.fixture
def _default_encoder_again():
    yield
    text.set_text_encoder()


@pytest.mark.usefixtures("_default_encoder_again")
def test_clips_are_read_as_those_of_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in map(Path, write_moving_digits("clips", num_clips=4, image_size=24, num_frames=3)):
        path.with_suffix(".txt").write_text("a digit")
    argv = ["train", "clips", *RUN, "--train_num_steps=1", "--image_size=8", "--num_frames=2"]
    argv += ["--dim=8", "--dim_mults=[1]", "--attn_heads=1", "--channels=1", "--timesteps=3"]
    how = ["--conditions=caption", "--clip_start=random", "--horizontal_flip=true"]
    assert main([*argv, "--text_encoder", str(TINY_BERT), *how]) is None
    new = ["--init_from", "results", "--results_folder", "new"]
    data = printed(capsys, *new)["data"]
    assert (data["conditions"], data["clip_start"]) == ("caption", "random")
    assert data["horizontal_flip"]
    assert main(["train", "clips", *RUN, "--train_num_steps=1", *new]) is None
    info = load_diffusion("new").clip_info
    assert (info.settings["conditions"], info.text_encoder) == ("caption", str(TINY_BERT))
    assert main(["info", "new"]) is None
    assert re.search(r"data .*clip_start random, .*conditions caption", capsys.readouterr().out)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("argv", "steps"),
    [
        ([], 50),
        (["--timesteps", "20"], 20),
        (["--config", "few.yaml"], 20),
        (["--config", "few.yaml", "--timesteps=1e2"], 50),
        (["--sampling_timesteps", "null"], None),
        (["--timesteps=20", "--sampling_timesteps=50"], 50),
        (["--preset", "bair"], 50),
    ],
)
def test_samples_of_milestones_take_few_steps(argv, steps, capsys):
    Path("few.yaml").write_text("timesteps: 20")
    assert printed(capsys, *argv)["diffusion"]["sampling_timesteps"] == steps


def test_steps_of_samples_of_a_model_are_its_own(trained, capsys):
    assert printed(capsys, "--init_from", "old")["diffusion"]["sampling_timesteps"] is None


def test_more_steps_of_samples_than_of_training(trained, mistake):
    argv = ["train", "clips", "--timesteps=20", "--sampling_timesteps=50"]
    assert "sampling_timesteps must be a whole number from 1 to timesteps = 20" in mistake(*argv)


BY_NAME = "--config must hold options by name, and those of unet, diffusion, data, trainer in a map"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xe4", r"--config must be a YAML file in UTF-8, got options.yaml \('utf-8' codec"),
        (
            b"[" * 100_000,
            r"--config must be a YAML file in UTF-8, got options.yaml \(maximum recurs",
        ),
        (b"unet: !!set {a}", BY_NAME),
        (b"unet: 5", BY_NAME),
        (b"- 1", BY_NAME),
        (b"", BY_NAME),
        (b"config: other.yaml", BY_NAME),
        (b"preset: [1]", r"name must be one of .*, got '\[1\]'"),
        (b"preset: !!python/name:os.system ''", "could not determine a constructor for the tag"),
        (b"&" + b"a" * 200_000, r"video-diffusion: error: .{1,2200}\n$"),
    ],
)
def test_files_that_hold_no_options(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    Path("options.yaml").write_bytes(content)
    assert main(["train", ".", "--config", "options.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines(keepends=True)
    assert re.search(message, line)


def test_a_pipe_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=["---\npreset: bair\nseed: 3\n"])
    writer.start()
    options = parse(["train", "--config", "pipe"]).train
    writer.join()
    assert (options.seed, options.unet.dim) == (3, 128)


def repeated(depth):
    """A text of a few lines that stands for 9 to the power of its depth values."""
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        repeated(9),
        "unet: &a {x: *a}",
        "folder: " + "x" * 300_000,
    ],
)
def test_a_file_that_would_keep_the_parser_busy_is_refused(tmp_path, capsys, text):
    (tmp_path / "options.yaml").write_text(text)
    began = time.monotonic()
    assert main(["train", "--config", str(tmp_path / "options.yaml")]) == 2
    assert time.monotonic() - began < 10
    [line] = capsys.readouterr().err.splitlines()
    assert "--config must be a file of at most 262144 characters and 20000 values (alia" in line


@pytest.mark.parametrize(
    "text",
    [
        "exts: &a [gif, mp4]\nfull_attn_levels: &b [1, 2]\ntemporal_attn_levels: *b\nsplit: null",
        f"beta_schedule: [{'0.5, ' * 4000}1]",
    ],
)
def test_files_within_the_limits(tmp_path, text):
    (tmp_path / "options.yaml").write_text(text)
    assert rewrite(["--config", str(tmp_path / "options.yaml")])[1].preset is None
