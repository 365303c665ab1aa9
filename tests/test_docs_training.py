"""Runs the code and the commands of `docs/training.md`, at a size that takes seconds."""

import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.docs_code import TRAINING, Page, clip, small_options, unet
from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.diffusion.noise_schedule import SCHEDULES as NOISE_SCHEDULES
from video_diffusion_pytorch.diffusion.objective import LOSSES, OBJECTIVES
from video_diffusion_pytorch.training import evaluate as validation
from video_diffusion_pytorch.training.ema import STDS, WARMUPS
from video_diffusion_pytorch.training.fsdp import write_sharded
from video_diffusion_pytorch.training.optimizer import OPTIMIZERS, SCHEDULES
from video_diffusion_pytorch.training.posthoc_ema import snapshot_weights

PAGE = Page("training.md")
# a step instead of thousands; the page's clips have 16 frames of 64 x 64, those here 4 of 16 x 16
SMALL = {**TRAINING, "validate_every": 1, "warmup_steps": 1}
HUB = "user/films-model"


def diffusion(network, **options):
    return GaussianDiffusion(network, **{**options, "image_size": 16, "num_frames": 4}, timesteps=8)


class SmallTrainer(Trainer):
    def __init__(self, model, folder, **options):
        asked = set(options) | set(TRAINING)
        small = {name: value for name, value in SMALL.items() if name in asked}
        super().__init__(model, folder, **{**options, **small})


MADE_SMALL = {"Unet3D": unet, "GaussianDiffusion": diffusion, "Trainer": SmallTrainer}
# where models are made of what was saved
SHARED = {"Unet3D": Unet3D, "GaussianDiffusion": GaussianDiffusion}


def record_what_is_slow_or_far(patch):
    """Notes what would be compiled and uploaded; the hub's repository is a folder."""
    known = inspect.signature(GaussianDiffusion.push_to_hub)
    recorded = {"compiled": [], "pushed": []}

    def push_to_hub(model, *args, **options):
        repo = known.bind(model, *args, **options).arguments["repo_id"]
        recorded["pushed"].append(repo)
        model.save_pretrained(repo)

    patch.setattr(Unet3D, "compile_blocks", lambda net: recorded["compiled"].append(net))
    patch.setattr(GaussianDiffusion, "push_to_hub", push_to_hub)
    return recorded


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names that the page's code has defined after each section, and where it was run."""
    root = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        # each clip with one time step instead of a dozen
        patch.setattr(validation, "_LEAST", 1)
        for number in range(6):
            clip(f"films/{number}.gif", num_frames=5)
        names, after = {}, {"root": root, **record_what_is_slow_or_far(patch)}
        for title in PAGE.sections:
            for block in PAGE.blocks(title):
                if title != PAGE.start:
                    names |= SHARED if title.startswith("11.") else MADE_SMALL
                PAGE.run(block, names)
            after[title.split(".")[0]] = dict(names)
    return after


def results(ran, name):
    return ran["root"] / "results" / name


def test_it_starts(ran):
    assert ran["1"]["trainer"].step == 1
    assert ran["1"]["trainer"].amp
    assert results(ran, "films/1.gif").is_file()


def test_what_the_network_learns_to_predict(ran):
    config = ran["2"]["diffusion"].config
    assert (config["objective"], config["min_snr_gamma"]) == ("pred_v", 5)


def test_memory_is_counted(ran):
    assert ran["5"]["kept"] > 0


def test_the_table_of_memory_has_the_networks_sizes():
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|", PAGE.text, re.M)
    assert len(rows) == 3
    for dim, millions, state in rows:
        with torch.device("meta"):
            count = sum(p.numel() for p in Unet3D(dim=int(dim)).parameters())
        assert f"{count / 1e6:.3g}" == millions
        # weights, an average, gradients and two moments, of four bytes each
        assert abs(5 * 4 * count / 2**30 - float(state)) < 0.02


def test_a_compiled_network(ran):
    trainer = ran["6"]["trainer"]
    assert trainer.step == 1
    networks = [trainer.model.denoise_fn, trainer.ema_model.denoise_fn]
    assert all(a is b for a, b in zip(ran["compiled"], networks, strict=True))


def test_optimizer_learning_rate_and_averages(ran):
    names = ran["7"]
    assert names["videos"].shape == (1, 3, 4, 16, 16)
    assert isinstance(names["average"], GaussianDiffusion)
    loaded = names["diffusion"].state_dict()
    state = torch.load(results(ran, "tuned/model-1.pt"), weights_only=True)
    assert list(state["emas"]) == ["0.9999"]
    average = state["emas"]["0.9999"]
    assert all(torch.equal(loaded[name], value) for name, value in average.items())
    groups = state["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert groups[0]["initial_lr"] == 3e-4
    sgd = torch.load(results(ran, "sgd/model-1.pt"), weights_only=True)["optimizer"]
    assert sgd["param_groups"][0]["momentum"] == 0.9


def test_averages_of_any_width(ran):
    names = ran["Post-hoc averages"]
    assert names["trainer"].ema_model is names["trainer"].averages.choose(0.1)
    narrow, stored = (
        model.state_dict() for model in (names["narrow"], names["trainer"].averages.choose(0.05))
    )
    assert all(torch.allclose(value, stored[name], atol=1e-6) for name, value in narrow.items())
    assert isinstance(names["wide"], GaussianDiffusion)


def test_the_widths_that_snapshots_can_make():
    section = PAGE.sections["Post-hoc averages"]
    rows = re.findall(
        r"^\| (\d+) \| ([\d.]+) to ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", section, re.M
    )
    assert len(rows) == 4
    for count, *given in rows:
        stds, times = [*STDS] * int(count), np.repeat(np.arange(1, int(count) + 1), 2).tolist()
        widths = [number / 1000 for number in range(5, 289, 5)]
        errors = {w: snapshot_weights(stds, times, w, times[-1])[1] for w in widths}
        found = [[w for w, error in errors.items() if error <= limit] for limit in (0.05, 0.2)]
        assert [float(number) for number in given] == [w for f in found for w in (f[0], f[-1])]


def test_validation(ran):
    named = set(re.findall(r'"(validation_loss\w*(?:\.\d+)?)": \.\.\.', PAGE.text))
    assert ran["8"]["losses"].keys() == named
    assert results(ran, "validated/model-1.pt").is_file()


def test_checkpoints_and_going_on(ran):
    trainer = ran["9"]["trainer"]
    assert trainer.step == 1
    assert trainer.resumed_from == Path("results/films/model-1.pt")


def test_fine_tuning(ran):
    tuned = ran["Fine-tuning"]["tuned"]
    assert tuned.step == 1
    assert all(name.startswith("denoise_fn.downs.") for name in tuned.frozen)
    state = torch.load(results(ran, "fine-tuned/model-1.pt"), weights_only=True)
    assert state["frozen"] == tuned.frozen


def test_the_table_of_entries_is_that_of_a_checkpoint(ran):
    section = PAGE.sections["9. Checkpoints and resuming"]
    table = section[section.index("| entry") : section.index("A file is written")]
    entries = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row[:70])]
    state = torch.load(results(ran, "films/model-1.pt"), weights_only=True)
    assert sorted(entries) == sorted(state)


def test_what_a_run_tells(ran):
    assert list(ran["10"]["losses"]) == [1]
    assert list(results(ran, "tracked/films").rglob("events.out.tfevents.*"))


def test_the_table_of_keys_is_that_of_the_metrics(ran):
    section = PAGE.sections["10. Metrics and trackers"]
    rows = re.findall(r"^\| (`.*?) \|", section, re.M)
    keys = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    found = set()
    for line in (results(ran, "validated") / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line).keys()
    found = {"validation_loss_ema_D" if "_ema_" in name else name for name in found}
    # those of a skipped step, of which this run has none
    assert keys == found | {"event", "clips"}


def test_sharing_a_model(ran):
    assert ran["pushed"] == [HUB]
    names = ran["11"]
    ours, theirs = names["trainer"].ema_model.state_dict(), names["diffusion"].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert isinstance(names["unet"], Unet3D)


def test_a_loss_of_your_own(ran):
    trainer = ran["12"]["trainer"]
    assert type(trainer).__name__ == "Lively"
    assert trainer.step == 1
    assert not trainer.skipped_steps


def test_every_section_with_code_is_looked_at():
    source = Path(__file__).read_text(encoding="utf-8")
    with_code = {t.split(".")[0] for t in PAGE.sections if PAGE.blocks(t)} - {PAGE.start}
    assert with_code == set(re.findall(r'ran\["(\d+|[A-Z][\w -]+)"\]', source))


# commands


def commands(*programs):
    return [
        words
        for title in PAGE.sections
        for words in PAGE.commands(title)
        if words[0] in programs and not title.startswith("A cluster")
    ]


# a checkpoint as of several processes is written by one
@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
# six clips instead of hundreds
@pytest.mark.filterwarnings("ignore:frechet_distance. a covariance of 64 features:UserWarning")
def test_the_pages_commands_run(ran, monkeypatch, capsys):
    monkeypatch.chdir(ran["root"])
    trainer = SmallTrainer(
        diffusion(unet()), "films", results_folder="results/films", resume="auto"
    )
    path = Path("results/films/model-3.sharded")
    write_sharded(trainer.checkpoint_state(), path, trainer.processes)
    [options] = PAGE.blocks("1. Start", "yaml")
    Path("films.yaml").write_text(options)
    own = commands("video-diffusion")
    assert {argv[1] for argv in own} == {"train", "gather", "sample", "plot", "info", "ema"}
    for _, *argv in own:
        # to start from a model, as many as it has
        timesteps = trainer.model.num_timesteps if "--init_from" in argv else 2
        argv += small_options(timesteps=timesteps) if argv[0] == "train" else []
        # after one step
        argv = [word.replace("step200000", "step1") for word in argv]
        assert main(argv) is None, (argv, capsys.readouterr().err)
        if "-o" in argv:
            assert Path(argv[argv.index("-o") + 1]).stat().st_size > 0
    assert Path("results/films/metrics.png").is_file()
    assert Path("results/command/model-1.pt").is_file()
    assert "Unet3D" in capsys.readouterr().out


def test_the_launchers_know_the_commands_options():
    torchrun = pytest.importorskip("torch.distributed.run").get_args_parser()
    found = commands("torchrun")
    found += [words[1:] for words in PAGE.commands("A cluster with Slurm") if words[0] == "srun"]
    assert len(found) > 3
    for _, *argv in found:
        argv = ["2" if word == "$SLURM_NNODES" else word for word in argv]
        options = torchrun.parse_args(argv)
        is_module = options.module and options.training_script == "video_diffusion_pytorch"
        assert is_module or options.training_script == "train.py"
        if is_module:
            assert options.training_script_args[0] == "train"

    from accelerate.commands.launch import launch_command_parser

    found = commands("accelerate")
    assert len(found) > 3
    for _, command, *argv in found:
        assert command == "launch"
        assert launch_command_parser().parse_args(argv).training_script == "train.py"


def test_the_slurm_script_is_a_script(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    [script] = PAGE.blocks("A cluster with Slurm", "bash")
    path = tmp_path / "films.sh"
    path.write_text(script)
    assert script.startswith("#!/bin/bash\n#SBATCH")
    subprocess.run([bash, "-n", path], check=True)


# What the page says beside its code


def test_the_page_knows_all_choices_and_options():
    choices = (*OBJECTIVES, *NOISE_SCHEDULES, *LOSSES, *WARMUPS, *SCHEDULES, *OPTIMIZERS)
    for choice in (*choices, "auto", "never", "bf16", "fp16", "no"):
        assert f'"{choice}"' in PAGE.text, choice
    names = list(inspect.signature(Trainer).parameters)
    # what came after the reference's, and is not about data and samples
    for name in [*names[names.index("mixed_precision") : -1], "seed", "amp", "max_grad_norm"]:
        if name != "validation_folder":
            assert re.search(rf"[`(\s]{name}\b", PAGE.text), name


def test_defaults_that_the_page_gives():
    given = re.findall(r"`(log_every|max_skipped_steps|update_ema_every)[`=,](\d+| )", PAGE.text)
    parameters = inspect.signature(Trainer).parameters
    assert ("log_every", "10") in given
    assert ("max_skipped_steps", "10") in given
    assert parameters["log_every"].default == 10
    assert parameters["max_skipped_steps"].default == 10
    assert "every `update_ema_every` steps, 10 by default" in PAGE.text
    assert parameters["update_ema_every"].default == 10
