"""The `video-diffusion` command."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, __version__, cli, text
from video_diffusion_pytorch.cli import main, parse
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.data.video_file import read_video
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
REFERENCE = GOLDEN / "reference_results_0.7.0" / "model-2.pt"
TINY_BERT = GOLDEN / "tiny_bert"
TINY_BERT_DIM = 32
SMALL = """
unet: {dim: 8, dim_mults: [1], channels: 1, attn_heads: 1, init_kernel_size: 3}
diffusion: {image_size: 24, num_frames: 3, timesteps: 2}
trainer:
  {train_batch_size: 2, gradient_accumulate_every: 1, save_and_sample_every: 2, train_num_steps: 3,
  num_sample_rows: 1, device: cpu}
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working folder with `clips` and `small.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_moving_digits("clips", num_clips=3, image_size=24, num_frames=3)
    Path("small.yaml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def mistake(capsys):
    """Runs a command that must fail; gives the one line it prints."""

    def run(*argv):
        assert main([str(argument) for argument in argv]) == 2
        out, err = capsys.readouterr()
        # a progress bar may have begun
        lines = [line for line in err.splitlines() if line and "it/s]" not in line]
        assert len(lines) == 1
        assert lines[0].startswith("video-diffusion: error: ")
        assert not out
        return lines[0]

    return run


def make_checkpoint(cond_dim=None):
    """Writes `model-1.pt` of a small untrained model."""
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=1, cond_dim=cond_dim)
    model = GaussianDiffusion(unet, image_size=24, num_frames=3, timesteps=2)
    vector = None if cond_dim is None else (lambda path: {"cond": torch.zeros(cond_dim)})
    trainer = Trainer(model, "clips", results_folder=".", device="cpu", conditions=vector)
    trainer.save(1)
    return trainer.ema_model.eval()


def process(*argv, options=(), env=None):
    return subprocess.run(
        [sys.executable, *options, "-m", "video_diffusion_pytorch", *argv],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


# The process


def test_the_module_is_the_command(tmp_path):
    done = process("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(__version__)


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = process("sample", str(tmp_path / "missing.pt"))
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("video-diffusion: error: expected a checkpoint at ")
    assert done.stderr.count("\n") == 1


def test_an_interrupt_during_the_imports_is_one_line(tmp_path):
    # in place of torch, which takes long to import
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    folders = [str(tmp_path), str(Path(cli.__file__).parents[2])]
    done = process("train", "clips", env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)})
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "video-diffusion: interrupted during start-up\n"


def test_warnings_are_one_line(monkeypatch, capsys):
    def warn(*_):
        # as Python prints it, where pytest doesn't catch it
        text = warnings.formatwarning(UserWarning("few videos"), UserWarning, "scores.py", 1)
        sys.stderr.write(text)
        warnings.warn("few", stacklevel=1)

    shown = warnings.formatwarning
    monkeypatch.setitem(cli.COMMANDS, "info", cli.COMMANDS["info"]._replace(run=warn))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["info", "model-1.pt"]) == 2
    lines = "video-diffusion: warning: few videos\nvideo-diffusion: error: few\n"
    assert capsys.readouterr().err == lines
    assert warnings.formatwarning is shown


def test_warnings_as_errors_harm_no_command(tmp_path):
    done = process("train", "--help", options=["-W", "error"])
    assert (done.returncode, done.stderr) == (0, "")


# Help

IN_PYTHON_ONLY = {
    "denoise_fn", "diffusion_model", "folder", "dataset", "dataloader", "data_options", "return",
    "evaluation", "validation_dataset",
}  # fmt: skip
SET_BY_OTHERS = {"block_type", "out_dim", "cond_standardization"}


@pytest.fixture
def help_of(capsys, monkeypatch):
    """The help text of a command on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*argv):
        with pytest.raises(SystemExit, match="0"):
            main([*argv])
        return capsys.readouterr().out

    return run


def test_help_of_training_begins_with_what_most_runs_need(help_of):
    text = help_of("train", "--help")
    assert help_of("train", "-h") == text
    lines = text.splitlines()
    assert len(lines) <= 45
    options = re.findall(r"^  (?:--)?(\w+)", text, flags=re.MULTILINE)
    assert options[:6] == ["folder", "config", "image_size", "num_frames", "channels", "conditions"]
    assert {"dim", "train_batch_size", "train_num_steps", "results_folder"} <= {*options}
    assert "Height and width of the clips in pixels, as 64 or [48, 64].\n" in text
    assert "[default: ./results]" in text
    assert "--help_all lists the other options" in text


def test_help_all_lists_every_option_that_has_an_effect(help_of):
    text = help_of("train", "--help-all")
    out = " ".join(text.split())
    assert "Network (unet): --dim N Channels of the network" in out
    assert "--train_lr X Learning rate, at least 0. [default: 0.0001]" in out
    assert "--objective OBJECTIVE What the network predicts: pred_noise, pred_x_start, or" in out
    assert '{"path": "FileName", "split": "Set"}; null to ignore' in out
    for constructor in (Unet3D, GaussianDiffusion, Trainer):
        names = set(constructor.__init__.__annotations__)
        for name in names - IN_PYTHON_ONLY - SET_BY_OTHERS:
            assert f" --{name} " in out, name
    for name in ("conditions", "clip_start", "cache", "manifest"):
        assert f" --{name} " in out, name
    # one place each
    assert text.count("--channels N") == text.count("--value_range ") == 1
    assert "--block_type" not in text


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_help_is_in_the_words_of_the_command_line(command, help_of):
    for shown in (help_of(command, "--help"), help_of("train", "--help_all")):
        assert not re.search(r"subclass|<class|\(type|None|True|False|`|Tensor|==|PathLike", shown)
        assert max(map(len, shown.splitlines())) <= 100


# Training


def test_printed_options_are_a_file_that_trains(workplace, capsys):
    options = ["--config", "small.yaml", "--dim", "4", "--trainer.results-folder", "out"]
    with pytest.raises(SystemExit, match="0"):
        main(["train", "clips", *options, "--print_config"])
    Path("run.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", "run.yaml"]) is None
    out = capsys.readouterr().out
    assert "trained to step 3: " in out
    assert [path.name for path in list_checkpoints(Path("out"))] == ["model-1.pt", "model-1.5.pt"]
    config = read_checkpoint(Path("out/model-1.5.pt"))["config"]
    assert config["unet"]["dim"] == 4
    assert list(config["unet"]["dim_mults"]) == [1]
    assert config["diffusion"]["image_size"] == 24


@pytest.mark.usefixtures("workplace")
def test_the_command_line_overrides_the_file():
    before = ["--num-frames=5", "--train_lr", "2e-3", "--image_size", "[16, 32]", "--channels=3"]
    for argv in ([*before, "--config=small.yaml"], ["--config", "small.yaml", *before]):
        options = parse(["train", "clips", *argv]).train
        assert (options.folder, options.resume) == ("clips", "auto")
        assert (options.diffusion.num_frames, options.diffusion.timesteps) == (5, 2)
        assert tuple(options.diffusion.image_size) == (16, 32)
        assert options.trainer.train_lr == 2e-3
        assert (options.unet.channels, options.diffusion.channels) == (3, None)


def test_without_options_there_are_defaults():
    options = parse(["train", "clips"]).train
    assert options.unet.dim == options.diffusion.image_size == 64
    assert options.diffusion.num_frames == 16


@pytest.mark.usefixtures("workplace")
def test_training_resumes_where_it_ended(capsys, mistake):
    train = ["train", "clips", "--config", "small.yaml"]
    main(train)
    capsys.readouterr()
    main(train)
    assert "training is complete: to continue, raise --train_num_steps above 3" in (
        capsys.readouterr().out
    )
    main([*train, "--train_num_steps", "4"])
    out = capsys.readouterr().out
    assert "resumes from results/model-1.5.pt, step 3" in out
    assert "trained to step 4: results/model-2.pt" in out
    assert "choose another results_folder" in mistake(*train, "--resume", "never")
    assert "got dim 4 instead of 8" in mistake(*train, "--dim", 4)
    main([*train, "--resume", "results/model-1.pt", "--results_folder", "other"])
    assert "resumes from results/model-1.pt, step 2" in capsys.readouterr().out
    assert main([*train, "--resume", "never", "--results_folder", "third"]) is None


@pytest.mark.usefixtures("workplace")
def test_an_interrupt_names_the_last_checkpoint(monkeypatch, capsys, caplog):
    step = Trainer.train_step

    def interrupted(self, **kwargs):
        if self.step == self.stop_before:
            raise KeyboardInterrupt
        return step(self, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    for stop_before, line in (
        (0, "stopped at step 0: there is no checkpoint yet"),
        (
            2,
            "stopped at step 2: the last checkpoint is results/model-1.pt, from which training",
        ),
    ):
        monkeypatch.setattr(Trainer, "stop_before", stop_before, raising=False)
        assert main(["train", "clips", "--config", "small.yaml"]) == 130
        assert line in caplog.messages[-1]
        err = capsys.readouterr().err
        assert "video-diffusion: " not in err
        assert "Traceback" not in err


@pytest.mark.usefixtures("workplace")
def test_an_interrupt_before_training_names_the_last_checkpoint(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    train = ["train", "clips", "--config", "small.yaml"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "make_dataset", interrupted)
        assert main(train) == 130
    line = (
        "video-diffusion: interrupted before the first checkpoint; the same command starts again\n"
    )
    assert capsys.readouterr().err == line
    main([*train, "--train_num_steps", "2"])
    capsys.readouterr()
    monkeypatch.setattr(Trainer, "make_dataset", interrupted)
    last = "video-diffusion: interrupted; the last checkpoint is results/model-1.pt, from which "
    for resume, again in (
        ("auto", "the same command resumes\n"),
        ("results/model-1.pt", "the command with --resume auto resumes\n"),
    ):
        assert main([*train, "--resume", resume]) == 130
        assert capsys.readouterr().err == last + again


@pytest.mark.usefixtures("workplace")
def test_an_interrupt_elsewhere_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    command = cli.COMMANDS["sample"]._replace(run=interrupted)
    monkeypatch.setitem(cli.COMMANDS, "sample", command)
    assert main(["sample", "model-1.pt"]) == 130
    assert capsys.readouterr().err == "video-diffusion: interrupted\n"


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], 'expected "command" to be one of {demo,train,sample,'),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "expected a folder of clips, got none; give it after train"),
        (["train", "missing"], "expected a folder of videos at missing, found none"),
        (["train", "empty"], "in empty and its subfolders, got no file at all"),
        (["train", "clips", "--unet.dimm", "3"], "--unet.dimm 3 (is --unet.dim meant?); see"),
        (["train", "clips", "--learning", "3"], "nrecognized arguments: --learning 3; see"),
        (["train", "clips", "--steps", "3"], "nrecognized arguments: --steps 3; see"),
        (["train", "clips", "--batch-size=3"], "--batch_size=3 (is --train_batch_size meant?)"),
        (["train", "clips", "--resum", "never"], "--resum never (is --resume meant?)"),
        (
            ["train", "clips", "--dim", "wide"],
            "does not take the value 'wide', only a whole num",
        ),
        (
            ["train", "clips", "--amp", "1"],
            "amp does not take the value '1', only true or fa",
        ),
        (
            ["train", "clips", "--save_every", "x"],
            "value 'x', only a whole number or null; see",
        ),
        (["train", "clips", "--betas", "[1]"], "trainer.betas does not take the value '[1]'; see"),
        (["train", "clips", "--image_size", "[1]"], "diffusion.image_size does not take the value"),
        (["train", "clips", "--unet.dim", "0"], "dim must be a whole number of at least 1, got 0"),
        (
            ["train", "clips", "--loss_type", "l3"],
            "loss_type must be one of l1, l2, huber, got 'l3'",
        ),
        (["train", "clips", "--train_batch_size", "0"], "train_batch_size must be at least 1"),
        (
            ["train", "clips", "--cond_dim", "3"],
            "the network takes cond, got none from the data; set",
        ),
        (["train", "clips", "--conditions", "label"], "expected a class for each clip, in"),
        (["train", "clips", "--conditions", "mood"], "conditions must be among caption, label"),
        (
            ["train", "scans"],
            "in scans and its subfolders, got 1 × .nrrd; pass other exts, and a read_fn for "
            "other formats. A read_fn is a function and needs Python: read = lambda path: nrrd",
        ),
        (["train", "scans", "--exts", "nrrd"], "T[None]  # (c, f, h, w); Trainer(diffusion, F"),
        (["train", "clips", "--fit", "fill"], "fit must be one of cover, contain, stretch, got"),
        (["train", "clips", "--trainer.device", "abacus"], "device must be 'cpu' or"),
        (
            ["train", "clips", "--config", "no.yaml"],
            "--config must be a YAML file that can be read, got no.yaml (No such file or "
            "directory); correct the path",
        ),
        (
            ["train", "clips", "--config", "bad.yaml"],
            "--config must be a YAML file in UTF-8, got bad.yaml (while parsing",
        ),
        (["train", "clips", "--config", "unknown.yaml"], "unet.dimm (is unet.dim meant?); see"),
        (["train", "clips", "--resume", "no.pt"], "expected a checkpoint at no.pt, found none"),
    ],
)
def test_mistakes_in_training_are_one_line(argv, line, mistake):
    Path("empty").mkdir()
    Path("scans").mkdir()
    Path("scans/scan.nrrd").write_bytes(b"scan")
    Path("bad.yaml").write_text("unet: [1")
    Path("unknown.yaml").write_text("unet: {dimm: 3}")
    assert line in mistake(*argv)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(cli.train, "Trainer", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train", "clips"])


# Sampling


@pytest.mark.usefixtures("workplace")
def test_sampling_needs_nothing_but_the_file(capsys):
    model = make_checkpoint()
    assert main(["sample", "model-1.pt", "-n", "6", "-o", "six.gif", "--seed", "3"]) is None
    assert capsys.readouterr().out.endswith(
        "wrote 6 videos of 3 frames, 24 x 24 pixels, to six.gif\n"
    )
    with Image.open("six.gif") as image:
        assert (image.n_frames, image.size) == (3, (3 * 28, 2 * 28))
    main(["sample", "model-1.pt", "-n18", "-o", "many.npy", "--seed", "3", "--device", "cpu"])
    torch.manual_seed(3)
    expected = model.sample(batch_size=16, progress=False)
    values = np.load("many.npy")
    assert values.shape == (18, 1, 3, 24, 24)
    np.testing.assert_array_equal(values[:16], expected.numpy())


@pytest.mark.usefixtures("workplace")
def test_few_steps_and_many_frames(capsys):
    make_checkpoint()
    argv = ["sample", "model-1.pt", "-n", "3", "--sampler", "dpm++", "--steps", "2"]
    assert main([*argv, "--extend_to", "8", "--max-batch", "2", "-o", "long.npy"]) is None
    assert capsys.readouterr().out.endswith(
        "wrote 3 videos of 8 frames, 24 x 24 pixels, to long.npy\n"
    )
    assert main([*argv, "-o", "short.npy"]) is None
    np.testing.assert_allclose(np.load("long.npy")[:2, :, :3], np.load("short.npy")[:2], atol=1e-6)


@pytest.mark.usefixtures("workplace")
def test_a_size_overrides_that_of_the_file(capsys):
    make_checkpoint()
    size = ["--image-size", "[8,16]", "--num-frames", "2"]
    assert main(["sample", "model-1.pt", "-n", "1", *size]) is None
    assert "wrote 1 video of 2 frames, 8 x 16 pixels, to samples.gif" in capsys.readouterr().out


def test_the_references_files_give_its_samples(tmp_path, mistake):
    output = tmp_path / "two.npy"
    argv = ["sample", str(REFERENCE), "-n", "2", "--seed", "5", "-o", str(output), "--device=cpu"]
    assert "pass image_size and num_frames" in mistake(*argv)
    assert main([*argv, "--image_size", "16", "--num_frames", "4"]) is None
    recorded = torch.load(GOLDEN / "trainer_0.7.0.pt", weights_only=True)
    expected = recorded["ema_sample_seed_5_batch_2"]
    torch.testing.assert_close(torch.from_numpy(np.load(output)), expected, atol=1e-4, rtol=0)


@pytest.fixture
def _default_encoder_again():
    yield
    text.set_text_encoder()


@pytest.mark.usefixtures("workplace", "_default_encoder_again")
def test_captions_guide_the_samples(capsys, mistake):
    model = make_checkpoint(cond_dim=TINY_BERT_DIM)
    argv = ["sample", "model-1.pt", "-n2", "--device=cpu", "--text-encoder", str(TINY_BERT)]
    captions = ["--text", "a whale", "7"]
    assert "was trained with, --text or --cond, got none; correct the opt" in mistake(*argv)
    assert main([*argv, *captions, "--cond-scale", "2", "-o", "four.npy"]) is None
    torch.manual_seed(0)
    expected = model.sample(cond=["a whale", "a whale", "7", "7"], cond_scale=2.0, progress=False)
    np.testing.assert_allclose(np.load("four.npy"), expected.numpy(), atol=1e-6)
    against = ["--negative-text", "a fish", "--guidance-rescale", "0.7"]
    assert main([*argv, *captions, "--cond-scale", "2", *against, "-o", "other.npy"]) is None
    assert not np.allclose(np.load("other.npy"), expected.numpy(), atol=1e-3)
    capsys.readouterr()
    three = ["--cond-scale", "2", "--negative-text", "a", "b", "c"]
    assert "negative_cond must have 1 row or one per video, 4, got 6" in mistake(
        *argv, *captions, *three
    )
    assert main([*argv, *captions]) is None
    with Image.open("samples.gif") as image:
        assert image.size == (2 * 28, 2 * 28)
    capsys.readouterr()
    wrong = ["--text-encoder", "./nowhere"]
    assert "expected a folder with a text encoder" in mistake(*argv, *captions, *wrong)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--text", "a whale"], "it was trained with, none, got --text; correct the options"),
        (["-o", "missing/out.gif"], "expected a folder at missing to write out.gif into"),
        (["-o", "out.avi"], "or be a folder, got out.avi; rename it, as in out.gif, or end a"),
        (["-o", "."], "or a folder without checkpoints, whose samples it could replace, got ."),
        (["--preset", "bair", "--steps", "0"], "steps must be a whole number from 1 to the"),
        (["-n", "0"], "--count must be a whole number of at least 1, got 0"),
        (["--sampler", "rk4"], "sampler must be one of ddpm, ancestral, ddim, euler, heun, dpm"),
        (["--sampler", "ddpm", "--steps", "1"], "DDPM: steps must be all 2 of the model, got 1"),
        (["--steps", "4"], "steps must be a whole number from 1 to the model's 2, got 4"),
        (["--extend_to", "3"], "--extend_to must be more than the model's 3 frames, got 3"),
        (["--max_batch", "0"], "max_batch must be a whole number of at least 1, got 0"),
        (["--negative_text", "grey"], "negative_cond needs a cond_scale other than 1, got 1"),
        (["-n", "few"], "count does not take the value 'few'"),
        (["--image_size", "23"], "height and width must be multiples of 2"),
        (["--device", "abacus"], "device must be one that this machine has, got 'abacus'"),
        (["--cond-scale", "3"], "--cond_scale must be 1 for a model without conditions, got 3.0"),
        (["--cond-scale", "{cond: 3}"], "--cond_scale must be 1 for a model without conditions"),
        (["--guidance_interval", "5", "1"], "0 <= low < high, got (5.0, 1.0); pass for example"),
        (["--guidance_interval", "0", "all"], "0 <= low < high, got (0.0, nan); pass for example"),
        (["--guide", "missing.pt"], "missing.pt"),
        (["--guide_scale", "3"], "guide_scale is that of guide, which must be given, got 3.0 and"),
        (["--cond-scale", "x"], "cond_scale does not take the value 'x'"),
        (["--cond-scal", "2"], "--cond_scal 2 (is --cond_scale meant?)"),
        (["--colour", "red"], "nrecognized arguments: --colour red; see video-diffusion sample"),
    ],
)
def test_mistakes_in_sampling_are_one_line(options, line, mistake):
    make_checkpoint()
    assert line in mistake("sample", "model-1.pt", *options)


@pytest.mark.usefixtures("workplace")
def test_a_file_that_is_no_checkpoint_is_named(mistake):
    Path("model-1.pt").write_bytes(b"nothing of the kind")
    assert "expected a checkpoint in model-1.pt, got one that is" in mistake("sample", "model-1.pt")
    assert "arguments are required: checkpoint; see" in mistake("sample")


# Clips with conditions


@pytest.fixture
def classes(workplace):
    """Clips of two classes in several formats, with a caption each, and `small.yaml`."""
    clip = torch.rand(1, 3, 24, 24)
    endings = ["a.gif", "b.mp4", "c.webp", "d.npy", "e.gif", "f.mp4"]
    for index, name in enumerate(endings):
        path = Path("classes", ("cats", "dogs")[index % 2], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(clip, path)
        path.with_suffix(".txt").write_text(f"clip {name}")
    return workplace


def train(*options):
    config = ["--config", "small.yaml", "--num_workers", "0", "--held_out", "2"]
    assert main(["train", "classes", *config, *options]) is None


def values(*options):
    """The samples of a checkpoint."""
    assert main(["sample", "results/model-1.5.pt", "-o", "out.npy", *options]) is None
    return np.load("out.npy")


@pytest.mark.usefixtures("classes")
def test_classes_by_name(mistake, capsys):
    train("--conditions", "label", "--num_classes", "2")
    # the line that says how to sample names the conditions
    assert "sample results/model-1.5.pt --labels cats dogs -o results" in capsys.readouterr().out
    assert re.fullmatch(r"row 1, column 1: (cats|dogs)\n", Path("results/1.txt").read_text())
    names = values("-n", "2", "--labels", "dogs", "cats", "--cond_scale", "2")
    assert names.shape == (4, 1, 3, 24, 24)
    np.testing.assert_array_equal(names, values("-n", "2", "--labels", "1", "0", "--cond_scale=2"))
    # of a results folder, the newest
    main(["sample", "results", "-n", "2", "--labels", "dogs", "cats", "-o", "again.npy"])
    assert np.load("again.npy").shape == names.shape
    capsys.readouterr()
    line = mistake("sample", "results/model-1.5.pt", "--labels", "birds")
    assert "labels must be among cats, dogs, or -1 for none, got 'birds'; choose one" in line
    line = mistake("sample", "results/model-1.5.pt")
    assert "trained with, --labels, got none; correct the options, as --labels -1 for no" in line
    line = mistake("sample", "classes", "--labels", "dogs")
    assert "expected a checkpoint model-N.pt or model-N.sharded in " in line
    assert "found none that can be read; train first, or give" in line


@pytest.mark.usefixtures("classes")
def test_columns_of_numbers_tell_the_width(mistake, capsys):
    rows = [f"{name},{number},{number / 4}" for number, name in enumerate("abcdef")]
    Path("list.csv").write_text("\n".join(["FileName,EF,ESV", *rows]))
    table = ["--manifest", "list.csv", "--held_out", "2"]
    train(*table, "--conditions.cond", "[EF, ESV]")
    assert "sample results/model-1.5.pt --cond 2.5 0.625 -o results" in capsys.readouterr().out
    numbers = values("-n", "1", "--cond", "1", "0.25", "9", "1")
    assert numbers.shape == (2, 1, 3, 24, 24)
    assert "note: EF 9 is outside of the training clips, 0 to 5\n" in capsys.readouterr().out
    line = mistake("sample", "results", "--cond", "1", "2", "3")
    assert "--cond must have 2 numbers for each condition, EF, ESV, one condition after" in line
    config = read_checkpoint(Path("results/model-1.5.pt"))["config"]
    assert config["unet"]["cond_dim"] == 2
    np.save("cond.npy", np.float32([[1, 0.25]]))
    assert values("-n", "1", "--cond", "cond.npy").shape == (1, 1, 3, 24, 24)
    options = ["--config", "small.yaml", *table, "--conditions", '{"cond": ["EF"]}']
    capsys.readouterr()
    line = mistake("train", "classes", *options, "--cond_dim", 3)
    assert "cond must have the shape (1, 3), got (1, 1); check" in line
    assert "network's cond_dim" in line


@pytest.mark.usefixtures("classes", "_default_encoder_again")
def test_captions_without_an_encoder_mean_bert(mistake, monkeypatch):
    def offline(name, **options):
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", offline)
    line = mistake("train", "classes", "--config", "small.yaml", "--conditions", "caption")
    assert "no route to bert-base-cased" in line
    assert "--text_encoder" in line


@pytest.mark.usefixtures("classes", "_default_encoder_again")
def test_captions_and_first_frames(mistake, capsys):
    encoder = ["--text_encoder", str(TINY_BERT)]
    # the encoder and the frames say how wide conditions are, whatever is said of BERT
    train("--conditions", "caption", *encoder, "--given_frames=1", "--use_bert_text_cond=true")
    unet = read_checkpoint(Path("results/model-1.5.pt"))["config"]["unet"]
    assert (unet["cond_dim"], unet["use_bert_text_cond"]) == (TINY_BERT_DIM, False)
    assert unet["cond_channels"] == 2
    how = f"--text 'clip a.gif' --first_frames ... --text_encoder {TINY_BERT} -o results"
    assert f"sample results/model-1.5.pt {how}" in capsys.readouterr().out
    given = [*encoder, "--text", "a cat", "--first_frames"]
    assert values("-n", "3", *given, "classes/cats/a.gif").shape == (3, 1, 3, 24, 24)
    assert values("-n", "1", *given, "classes/cats").shape == (3, 1, 3, 24, 24)
    capsys.readouterr()
    line = mistake("sample", "results/model-1.5.pt", *encoder, "--text", "a cat")
    assert "it was trained with, --text or --cond, --first_frames, got --text;" in line


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("ending", [".gif", ".webp", ".mp4", ".png"])
def test_samples_in_any_format(ending):
    train()
    assert main(["sample", "results/model-1.5.pt", "-o", f"out{ending}", "-n", "2"]) is None
    video, _ = read_video(f"out{ending}")
    assert video.shape[1] == (1 if ending == ".png" else 3)


@pytest.mark.usefixtures("workplace")
def test_fields_in_units_of_their_own(capsys):
    Path("fields").mkdir()
    for index in range(3):
        field = np.random.default_rng(index).uniform(-5, 5, (1, 3, 24, 24))
        np.save(f"fields/{index}.npy", field)
    config = ["--config", "small.yaml", "--value_range", "fit"]
    assert main(["train", "fields", *config]) is None
    low, high = read_checkpoint(Path("results/model-1.5.pt"))["config"]["diffusion"]["value_range"]
    assert -5 <= low[0] < -4.9
    assert 4.9 < high[0] <= 5
    samples = values("-n", "2")
    assert samples.min() >= low[0] - 1e-5
    assert samples.max() <= high[0] + 1e-5
    assert np.abs(samples).max() > 1


@pytest.mark.parametrize(("given", "split"), [("0.05", 0.05), ("val", "val"), ("null", None)])
def test_a_share_or_the_name_of_a_split(given, split):
    argv = ["train", "films", "--validation_split", given, "--validation_manifest", "clips.csv"]
    trainer = parse(argv).train.trainer
    assert (trainer.validation_split, trainer.validation_manifest) == (split, "clips.csv")
