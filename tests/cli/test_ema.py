"""The command `ema`."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, posthoc_average
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.moving_digits import write_moving_digits


class Means(torch.nn.Module):
    """Features of videos that need no file of weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3, 4])[:, :1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Clips, a network in TorchScript, and a run with eight snapshots."""
    folder = tmp_path_factory.mktemp("ema")
    write_moving_digits(folder / "clips", num_clips=5, image_size=24, num_frames=3)
    torch.manual_seed(0)
    unet = Unet3D(dim=4, dim_mults=(1, 2), channels=1, attn_heads=1)
    model = GaussianDiffusion(unet, image_size=12, num_frames=3, timesteps=3)
    options = {"train_batch_size": 1, "train_num_steps": 8, "save_and_sample_every": 8}
    options |= {"update_ema_every": 1, "num_sample_rows": 1, "num_workers": 0, "device": "cpu"}
    options |= {"ema_decay": "posthoc", "snapshot_every": 1, "results_folder": folder / "results"}
    Trainer(model, folder / "clips", **options).train()
    # saying so, torch develops TorchScript no further
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(Means()).save(folder / "i3d.pt")
    return folder


@pytest.fixture
def at_home(made, tmp_path, monkeypatch):
    """The working folder, with what is made in it by its own name."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for path in ("clips", "i3d.pt", *(f"results/{p.name}" for p in (made / "results").iterdir())):
        Path(path).symlink_to(made / path)


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


@pytest.mark.usefixtures("at_home")
def test_models_of_several_widths_are_written(capsys):
    assert main(["ema", "results", "--std", "0.05", "0.12"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wrote results/ema-0.05-step8: width 0.05, profile error 0.00%"
    assert lines[1].startswith("wrote results/ema-0.12-step8: width 0.12, profile error ")
    found = []
    for std in (0.05, 0.12):
        model = GaussianDiffusion.from_pretrained(f"results/ema-{std}-step8")
        found.append(weights(model))
        assert torch.equal(found[-1], weights(posthoc_average("results", std)))
        assert model.clip_info.settings
    assert not torch.equal(*found)
    sample = ["sample", "results/ema-0.12-step8", "-n", "1", "-o", "a.npy", "--device", "cpu"]
    assert main(sample) is None
    assert Path("a.npy").is_file()


@pytest.mark.usefixtures("at_home")
def test_of_an_earlier_step_into_another_folder():
    assert main(["ema", "results", "--std", "0.1", "--step", "5", "-o", "new/models"]) is None
    model = GaussianDiffusion.from_pretrained("new/models/ema-0.1-step5")
    assert torch.equal(weights(model), weights(posthoc_average("results", 0.1, step=5)))
    assert not list(Path("results").glob("ema-*"))


@pytest.mark.usefixtures("at_home")
def test_a_table_of_scores(capsys):
    evaluate = ["--evaluate", "clips", "--features", "i3d.pt", "-n", "6", "--device", "cpu"]
    assert main(["ema", "results", "--std", "0.1", "0.05", *evaluate, "--sampler", "ddim"]) is None
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert head[:2] == ["std", "fvd"]
    assert [row[0] for row in rows] == ["0.1", "0.05"]
    for std, *scores in rows:
        result = json.loads(Path(f"results/evaluation-ema-{std}-step8.json").read_text())
        assert [f"{result['scores'][name]:.4g}" for name in head[1:]] == scores
        folder = f"results/ema-{std}-step8"
        assert result["model"] == {"checkpoint": folder, "step": 8, "ema_std": float(std)}
        assert result["protocol"]["samples"]["sampler"] == "ddim, eta=0.0"
    # as the command for one of them measures it
    evaluate[0] = "--data"
    assert main(["evaluate", folder, *evaluate, "--sampler", "ddim"]) is None
    again = json.loads(Path("results/evaluation-ema-0.05-step8-2.json").read_text())
    assert (again["scores"], again["protocol"]) == (result["scores"], result["protocol"])


@pytest.mark.usefixtures("at_home")
def test_snapshots_are_described(capsys):
    assert main(["info", "results"]) is None
    lines = capsys.readouterr().out
    assert "  averages            post-hoc, of widths 0.1, 0.05\n" in lines
    assert "  snapshots           8 of averages, steps 1 to 8: for video-diffusion ema\n" in lines
    assert main(["info", "results/averages-3.pt"]) is None
    lines = capsys.readouterr().out
    assert "  step                3\n" in lines
    assert "optimizer" not in lines


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["results"], "the following arguments are required: std"),
        (
            ["clips", "--std", "0.1"],
            "expected snapshots averages-N.pt of a training with ema_decay",
        ),
        (["results", "--std", "0.1", "0.4"], "std must be in (0, 0.2886], got 0.4"),
        (["results", "--std", "0.004"], "that the snapshots in results up to step 8 can make, 0.0"),
        (["results", "--std", "0.1", "--step", "9"], "step must be that of a snapshot, 1, 2, 3,"),
        (["results", "--std", "0.1", "--feature_size", "8"], "--feature_... must go with a file"),
        (["results", "--std", "0.1", "--evaluate", "none"], "none"),
    ],
)
def test_mistakes_are_named(capsys, options, message):
    assert main(["ema", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("at_home")
def test_the_option_of_training(capsys):
    train = ["train", "clips", "--image_size", "12", "--channels", "1", "--print_config"]
    Path("options.yaml").write_text("trainer:\n  ema_decay: posthoc\n  snapshot_every: 5e2\n")
    for options in (
        ["--ema_decay", "posthoc", "--snapshot_every", "500"],
        ["--config", "options.yaml"],
    ):
        with pytest.raises(SystemExit):
            main([*train, *options])
        printed = capsys.readouterr().out
        assert "  ema_decay: posthoc\n" in printed
        assert "  snapshot_every: 500\n" in printed
    assert main([*train[:2], "--ema_decay", "post-hoc"]) == 2
    assert "ema_decay does not take the value 'post-hoc'" in capsys.readouterr().err
