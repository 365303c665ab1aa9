"""Runs the code and the commands of `docs/sampling.md`, at a size that takes seconds."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.docs_code import TINY_BERT, TINY_BERT_DIM, Page, checkpoints, unet
from video_diffusion_pytorch import GaussianDiffusion, Unet3D, read_video, text
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess, cosine_beta_schedule
from video_diffusion_pytorch.diffusion.samplers import SAMPLERS
from video_diffusion_pytorch.diffusion.sampling_steps import SPACINGS, Prediction

PAGE = Page("sampling.md")
# the page's clips have 16 frames of 64 x 64, those of the test 4 of 16 x 16
SMALLER = {"4": "2", "8": "2", "16": "4", "32": "8", "40": "5", "64": "16", "96": "24", "999": "7"}
STEPS = {"steps": 3, "timesteps": 8}
# a section that goes on from the first block of another one
AFTER = {"A guidance of your own": "7. Around what is known"}


def smaller(code):
    code = re.sub(r"steps( ?= ?)\d+", rf"steps\g<1>{STEPS['steps']}", code)
    code = code.replace('"cuda"', '"cpu"')
    return re.sub(r"\b\d+\b(?!\.)", lambda number: SMALLER.get(number[0], number[0]), code)


def diffusion(network, **options):
    clips = {"image_size": 16, "num_frames": 4, "timesteps": STEPS["timesteps"]}
    return GaussianDiffusion(network, **clips, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoints that the page takes for granted."""
    root = tmp_path_factory.mktemp("page")
    models = {
        "films": diffusion(unet()),
        "captioned": diffusion(unet(cond_dim=TINY_BERT_DIM)),
        "flows": diffusion(unet(channels=2), value_range=(-3, 3)),
        "small": diffusion(unet()),
        "wild": diffusion(unet(cond_dim=TINY_BERT_DIM, num_classes=2)),
    }
    checkpoints(root, models)
    (root / "captions.txt").write_text("a whale\na ship\n")
    return root


@pytest.fixture(autouse=True)
def _workplace(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    text.set_text_encoder(TINY_BERT)
    yield
    text.set_text_encoder()


def run(number_or_title):
    """The names that a section's code defines, run after the page's beginning."""
    [title] = [title for title in PAGE.sections if title.startswith(number_or_title)]
    before = [*PAGE.blocks(PAGE.start)]
    if title in AFTER:
        before += PAGE.blocks(AFTER[title])
    names = {}
    for block in [*before, *PAGE.blocks(title)]:
        PAGE.run(smaller(block), names)
    return names


def shape(names, name):
    return tuple(names[name].shape)


def test_every_section_with_code_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    run_here = re.findall(r'run\("(.*?)"\)', source)
    for title in PAGE.sections:
        if PAGE.blocks(title) and title != PAGE.start:
            assert any(title.startswith(name) for name in run_here), title


def test_fewer_steps():
    names = run("1.")
    assert shape(names, "videos") == (2, 3, 4, 16, 16)
    assert names["films"].sampling_timesteps == STEPS["steps"]


def test_what_makes_sampling_fast(monkeypatch):
    compiled = []
    monkeypatch.setattr(Unet3D, "compile_blocks", lambda network: compiled.append(network))
    names = run("What makes sampling fast")
    assert shape(names, "videos") == (16, 3, 4, 16, 16)
    assert compiled == [names["films"].denoise_fn]


def test_a_sampler_of_your_own():
    assert shape(run("2."), "videos") == (2, 3, 4, 16, 16)


def test_the_sampler_of_your_own_is_of_second_order():
    """By normal data, of which the end of each beginning is known."""
    variance, process = 0.1, ForwardProcess(cosine_beta_schedule(1000))
    x = torch.full((1, 1, 1, 1, 1), 0.7, dtype=torch.float64)

    def denoise(x_t, level):
        x_start = variance * level.alpha / (variance * level.alpha**2 + level.sigma**2) * x_t
        return Prediction(x_start, (x_t - level.alpha * x_start) / level.sigma, x_t)

    heun = run("2.")["Heun"](spacing="spectrum")
    errors = []
    for steps in (20, 40):
        levels = heun.levels(process, steps)
        *_, before, _ = heun.run(x, levels, denoise, torch.randn_like)
        first, last = (
            variance * level.alpha**2 + level.sigma**2 for level in (levels[0], levels[-2])
        )
        errors.append(abs(float(before / x) - (last / first) ** 0.5))
    assert errors[1] < 0.35 * errors[0]


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # what diffusers does with numpy
def test_schedulers_of_diffusers():
    pytest.importorskip("diffusers")
    assert shape(run("3."), "videos") == (2, 3, 4, 16, 16)


def test_the_same_video_every_time():
    names = run("4.")
    code = PAGE.blocks("4. The same video every time")[0]
    assert "# as videos[2]" in code
    assert "# as videos[0]" in code
    # a network that has learned nothing makes more of rounding than others
    first = names["films"].sample(batch_size=5, steps=STEPS["steps"], seed=7)
    assert torch.allclose(names["the_third"], first[2], atol=1e-2)
    assert torch.allclose(names["again"], first[0], atol=1e-2)


def test_stronger_and_cleaner_guidance():
    assert shape(run("5."), "videos") == (2, 3, 4, 16, 16)


def test_a_scale_for_each_condition():
    assert shape(run("A scale for each condition"), "videos") == (1, 3, 4, 16, 16)


def test_a_worse_model_as_guide():
    assert shape(run("A worse model as guide"), "videos") == (2, 3, 4, 16, 16)


def test_where_guidance_acts():
    assert shape(run("Where guidance acts"), "videos") == (1, 3, 4, 16, 16)


def test_other_sizes_and_lengths():
    names = run("6.")
    assert shape(names, "longer") == (2, 3, 8, 16, 16)
    assert shape(names, "wider") == (2, 3, 4, 16, 24)


def test_around_what_is_known():
    names = run("7.")
    assert torch.equal(
        names["videos"][:, :, names["ends"]],
        names["video"][:, :, names["ends"]].expand(5, -1, -1, -1, -1),
    )
    assert shape(names, "velocities") == (2, 2, 4, 16, 16)
    assert shape(names, "misfit") == ()


def test_a_guidance_of_your_own():
    names = run("A guidance of your own")
    assert shape(names, "velocities") == (2, 2, 4, 16, 16)
    # a flow that turns has no divergence, one from a source has
    y, x = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    turning, source = (torch.stack(uv)[None, :, None] for uv in ((-y, x), (x, y)))
    error = names["Incompressible"]().squared_error
    assert error(turning).item() < 1e-6
    assert error(source).item() > 1


def test_looking_at_them():
    names = run("8.")
    assert read_video("films.mp4")[1] == 12
    assert names["grid"].video.shape[:2] == (3, 4)


def test_watching_it_happen():
    assert len(run("During sampling")["trajectory"]) == STEPS["steps"]


def test_the_pages_commands_run(capsys):
    for program, *argv in PAGE.commands("9. From the command line"):
        assert program == "video-diffusion"
        if "--steps" in argv:
            argv[argv.index("--steps") + 1] = "3"
        assert argv[0] == "sample"
        assert main(argv) is None, (argv, capsys.readouterr())
        assert Path(argv[argv.index("-o") + 1]).stat().st_size > 0
    assert np.load("many.npy").shape == (40, 3, 4, 16, 16)


# What the page says beside its code


def test_the_page_knows_all_choices_and_options():
    for choice in (*SAMPLERS, *SPACINGS):
        assert f'"{choice}"' in PAGE.text, choice
    own = ("self", "cond", "frame_cond", "cond_video", "first_frames", "null_cond_mask")
    own += ("cond_mask",)
    sampling = set(inspect.signature(GaussianDiffusion.sample).parameters).difference(own)
    for name in (*sampling, "zoom", "columns", "fps", "captions", "value_range", "false_colour"):
        assert name in PAGE.text, name


def test_the_table_of_samplers_has_their_defaults():
    rows = re.findall(r'^\| `"([^"]+)"` \| `(\w+)\((.*?)\)` \| (\w+) \|', PAGE.text, re.M)
    assert [name for name, *_ in rows] == list(SAMPLERS)
    for name, kind, options, steps in rows:
        made = SAMPLERS[name]()
        assert type(made).__name__ == kind
        assert str(made.default_steps or "all") == steps
        for option, value in re.findall(r"(\w+)=([^,]+)", options):
            assert str(getattr(made, option)) == value, (name, option)


def test_the_table_of_spacings_has_the_samplers_defaults():
    for made in (make() for name, make in SAMPLERS.items() if name != "ddpm"):
        [row] = re.findall(rf'^\| `"{made.spacing}"` \|.*$', PAGE.text, re.M)
        assert f"`{type(made).__name__}`" in row
