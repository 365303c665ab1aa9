"""The commands `evaluate` and `compare`."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.evaluation import frame_classifier


class Means(torch.nn.Module):
    """Features of videos that need no file of weights."""

    def forward(self, x: torch.Tensor, power: int = 1) -> torch.Tensor:
        return (x**power).mean(dim=[2, 3, 4])[:, :1]


class Pictures(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Clips, a results folder with a checkpoint, and networks in TorchScript."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_moving_digits(folder / "clips", num_clips=5, image_size=24, num_frames=3)
    torch.manual_seed(0)
    unet = Unet3D(dim=4, dim_mults=(1, 2), channels=1, attn_heads=1)
    model = GaussianDiffusion(unet, image_size=12, num_frames=3, timesteps=3)
    trainer = Trainer(model, folder / "clips", results_folder=folder / "results", device="cpu")
    trainer.save(1)
    for name, network in {"i3d": Means(), "inception": Pictures()}.items():
        # saying so, torch develops TorchScript no further
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.jit.script(network).save(folder / f"{name}.pt")
    return folder


@pytest.fixture
def at_home(made, tmp_path, monkeypatch):
    """The working folder, with what is made in it by its own name."""
    monkeypatch.chdir(tmp_path)
    for path in ("clips", "i3d.pt", "inception.pt"):
        Path(path).symlink_to(made / path)
    Path("results").mkdir()
    Path("results/model-1.pt").write_bytes((made / "results" / "model-1.pt").read_bytes())
    return tmp_path


EVALUATE = ["evaluate", "results", "--data", "clips", "--features", "i3d.pt"]


@pytest.mark.usefixtures("at_home")
def test_a_results_folder_is_evaluated_and_compared(capsys):
    assert main([*EVALUATE, "-n", "6"]) is None
    out = capsys.readouterr().out
    assert "fvd: " in out
    assert "step 0, 6 videos against 5 clips, dpm++sde with 3 steps" in out
    assert "wrote results/evaluation-model-1.json" in out
    # a second one replaces nothing
    main([*EVALUATE, "-n", "6", "--steps", "2"])
    files = ["results/evaluation-model-1.json", "results/evaluation-model-1-2.json"]
    assert all(Path(file).is_file() for file in files)
    capsys.readouterr()

    assert main(["compare", *files]) == 2
    assert "with samples.steps 3 and 2;" in capsys.readouterr().err
    assert main(["compare", *files, "--allow", "samples.steps"]) is None
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:4] == ["result", "step", "fvd", "change_distance"]
    assert [row[:2] for row in rows] == [[file, "0"] for file in files]


@pytest.mark.usefixtures("at_home")
def test_options_reach_the_protocol():
    network = ["--feature_size", "20", "--feature_range", "-1", "1", "--feature_resize=bicubic"]
    network += ["--feature_arguments", '{"power": 2}', "--frame_features", "inception.pt"]
    network += ["--frame_feature_range", "[-2,-2,-1]", "[2,2,1]", "--frame-feature-size=[10,12]"]
    clips = ["--clips", "4", "--frame_skip", "2", "--pad", "repeat", "--seed", "3"]
    sampling = ["--sampler", "ddim", "--steps", "2", "--max_batch", "3"]
    assert main([*EVALUATE, *network, *clips, *sampling, "-o", "a.json"]) is None
    found = json.loads(Path("a.json").read_text())
    temporal = {"change_distance", "flicker_distance", "persistence_distance"}
    temporal |= {f"{name}_real" for name in temporal}
    assert found["scores"].keys() == {"fvd", "fid_avg", "fid_first", *temporal}
    assert found["model"]["step"] == 0
    protocol = found["protocol"]
    features, frames = protocol["features"], protocol["frame_features"]
    assert (features["size"], features["value_range"], features["resize"]) == (
        [20, 20], [-1, 1], "bicubic",
    )  # fmt: skip
    assert (features["arguments"], features["layout"]) == ({"power": 2}, "bcfhw")
    assert (frames["size"], frames["layout"]) == ([10, 12], "bchw")
    assert frames["value_range"] == [[-2, -2, -1], [2, 2, 1]]
    assert (protocol["clips"]["number"], protocol["clips"]["frame_skip"]) == (4, 2)
    assert (protocol["samples"]["seed"], protocol["samples"]["steps"]) == (3, 2)


@pytest.mark.usefixtures("at_home")
def test_clips_are_prepared_as_in_training():
    model = load_diffusion("results")
    model.clip_info = ClipInfo(settings={"fit": "contain", "fps": 5.0, "pad": "repeat"})
    model.save_pretrained("shared")
    options = ["--data", "clips", "--features", "i3d.pt", "-n", "4"]
    for given, expected in (
        ([], ("contain", 5, 1, "repeat")),
        (["--fit", "cover", "--frame_skip", "2"], ("cover", None, 2, "repeat")),
    ):
        assert main(["evaluate", "shared", *options, *given, "-o", "a.json"]) is None
        clips = json.loads(Path("a.json").read_text())["protocol"]["clips"]
        assert (clips["fit"], clips["fps"], clips["frame_skip"], clips["pad"]) == expected


@pytest.mark.usefixtures("at_home")
def test_a_shared_model_is_evaluated(capsys):
    Path("models").mkdir()
    load_diffusion("results").save_pretrained("models/digits")
    assert main(["evaluate", "models/digits", *EVALUATE[2:], "-n", "6"]) is None
    out = capsys.readouterr().out
    assert "\n6 videos against 5 clips, dpm++sde with 3 steps" in out
    assert "wrote models/evaluation-digits.json" in out
    assert json.loads(Path("models/evaluation-digits.json").read_text())["model"]["step"] is None


@pytest.mark.usefixtures("at_home")
def test_the_fastest_device_is_taken(monkeypatch):
    seen = []

    def load(*args, device, **kwargs):
        seen.append(device)
        raise ValueError("seen")

    monkeypatch.setattr("video_diffusion_pytorch.cli.sample.load_diffusion", load)
    monkeypatch.setattr("video_diffusion_pytorch.cli.sample.fastest_device", lambda: "fast")
    for options in ([], ["--device", "cpu"]):
        assert main([*EVALUATE, *options]) == 2
    assert seen == ["fast", "cpu"]


@pytest.mark.usefixtures("at_home")
def test_without_files_the_distance_is_that_of_random_features(capsys):
    with pytest.warns(UserWarning, match="covariance of 64 features must come from more than 64"):
        main(["evaluate", "results/model-1.pt", "--data", "clips", "-o", "a.json"])
    assert "random_feature_distance: " in capsys.readouterr().out


@pytest.mark.usefixtures("at_home")
@pytest.mark.filterwarnings("ignore:FrameClassifier. more than")
def test_labels_of_a_manifest(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_classifier, "_STEPS", 2)
    write_moving_digits("digits", num_clips=40, image_size=24, num_frames=3)
    options = [*EVALUATE[2:], "--data", "digits", "--labels", "true", "-n", "4", "-o", "a.json"]
    assert main(["evaluate", "results", *options, "--manifest", "digits/manifest.csv"]) is None
    out = capsys.readouterr().out
    assert "constancy: " in out
    assert "label_frames_real: " in out
    assert json.loads(Path("a.json").read_text())["protocol"]["labels"]["steps"] == 400
    # gifs in the folder itself have no class
    assert main(["evaluate", "results", *options]) == 2
    assert "expected a class for each clip" in capsys.readouterr().err


@pytest.mark.usefixtures("at_home")
def test_prediction(capsys):
    pytest.importorskip("torchmetrics")
    main([*EVALUATE, "--given_frames", "1", "--similarities", '["psnr"]', "-o", "a.json"])
    assert "psnr: " in capsys.readouterr().out


@pytest.mark.usefixtures("at_home")
def test_mistakes_are_one_line(capsys):
    def mistake(*argv):
        assert main([*EVALUATE[:4], *argv]) == 2
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        [line] = [line for line in lines if line.startswith("video-diffusion: error: ")]
        return line

    assert "--feature_... must go with a file of the network" in mistake("--feature_size", "9")
    assert "expected a folder at none to write a.json into" in mistake("-o", "none/a.json")
    assert "expected a TorchScript file at none.pt" in mistake("--classes", "none.pt")
    assert "sampler must be one of" in mistake("--sampler", "rk4")
    assert "count must be at least 2, got 1" in mistake("-n", "1")
    assert "steps must be at least 1, got 0" in mistake("--steps", "0")
    assert "--output must be a file, got the folder ." in mistake("-o", ".")
    assert "expected a folder at none to keep statistics" in mistake("--statistics", "none/a.pt")
    assert "got the shape (5, 3, 12); wrap it" in mistake("--features", "inception.pt")
