"""What the tests of the pages in `docs/` share: a page's code, and a size that takes seconds."""

import re
import shlex
from pathlib import Path

import numpy as np
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.write_video import write_video

ROOT = Path(__file__).parents[1]
NETWORK = {"dim": 8, "dim_mults": (1,), "attn_heads": 1, "init_kernel_size": 3}
TRAINING = {
    "train_batch_size": 2, "gradient_accumulate_every": 1, "train_num_steps": 1,
    "save_and_sample_every": 1, "num_sample_rows": 1, "device": "cpu", "num_workers": 0,
}  # fmt: skip
TINY_BERT = ROOT / "tests/golden/tiny_bert"
TINY_BERT_DIM = 32


class Page:
    """A page of `docs/`.

    Attributes:
        text: All of it.
        sections: Its parts, by the title above them.
        start: The title of the page, above the code that all other code runs after.
    """

    def __init__(self, name):
        self.name = name
        self.text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        self.sections = {}
        title, is_code = "", False
        for line in self.text.splitlines(keepends=True):
            is_code ^= line.startswith("```")
            if line.startswith("#") and not is_code:
                title = line.strip("# \n")
            else:
                self.sections[title] = self.sections.get(title, "") + line
        self.start = next(iter(self.sections))

    def blocks(self, title, language="python"):
        """The blocks of a language in a section."""
        return re.findall(rf"```{language}\n(.*?)```", self.sections[title], re.S)

    def commands(self, title):
        """The words of each command in a section, without comments."""
        lines = "".join(self.blocks(title, "bash")).replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def run(self, code, names):
        """Runs code as if it were on the page."""
        exec(compile(code, self.name, "exec"), names)


class SmallPage:
    """Runs code of a page in one namespace, with small networks and short training.

    Args:
        page: The page, whose first code is run.
        smaller: Numbers in its code, and what stands in their place.

    Attributes:
        names: What the code has defined.
        small: What stands for the classes of the same names.
        trainers: Those that the code has made, in order.
    """

    def __init__(self, page, smaller):
        self.page, self.smaller = page, smaller
        self.names, self.trainers = {}, []
        self.run(*page.blocks(page.start))
        self.small = {"Unet3D": unet, "GaussianDiffusion": diffusion, "Trainer": self._trainer()}
        self.names |= {name: made for name, made in self.small.items() if name in self.names}

    def run(self, *blocks):
        for block in blocks:
            # to start processes would take longer than what they have to do
            code = block.replace("num_workers=2", "num_workers=0")
            small = re.sub(r"\b\d+\b", lambda n: self.smaller.get(n[0], n[0]), code)
            self.page.run(small, self.names)

    def _trainer(self):
        made = self.trainers

        class SmallTrainer(Trainer):
            def __init__(self, *args, **options):
                super().__init__(*args, **{**options, **TRAINING})
                made.append(self)

        return SmallTrainer


def unet(*, use_bert_text_cond=False, **options):
    """A `Unet3D` of few parameters, for the tiny encoder in the place of BERT."""
    if use_bert_text_cond:
        options["cond_dim"] = TINY_BERT_DIM
    return Unet3D(**{**options, **NETWORK})


def diffusion(unet, **options):
    """A `GaussianDiffusion` of few steps."""
    return GaussianDiffusion(unet, **{**options, "timesteps": 2})


def small_options(**more):
    """Options of the command `train` for a small network and a short training."""
    options = {**NETWORK, **TRAINING, "image_size": 16, "num_frames": 4, **more}
    return [f"--{name}={list(v) if name == 'dim_mults' else v}" for name, v in options.items()]


# Files that pages take for granted


def clip(name, channels=3, num_frames=8, fps=8.0):
    """Writes a clip of noise, of 18 x 24 pixels."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(torch.rand(channels, num_frames, 18, 24), path, fps=fps)
    return path


def array(name, shape, dtype=np.float32):
    """Writes an array of numbers from 0 to 3."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.random.default_rng(0).uniform(0, 3, shape).astype(dtype))


def films():
    """Writes a folder of clips of several kinds."""
    clip("films/whale.mp4")
    clip("films/bird.gif")
    for number in range(5):
        clip(f"films/walk/frame_{number}.png", num_frames=1)


def checkpoints(folder, models):
    """Writes a checkpoint `results/NAME/model-1.pt` of each of some diffusions."""
    for name, model in models.items():
        item = {"video": torch.zeros(model.channels, *(4, *[model.image_size] * 2))}
        is_told = model.denoise_fn.config["cond_dim"] is not None
        item |= {"cond": torch.zeros(TINY_BERT_DIM)} if is_told else {}
        item |= {"labels": 0} if model.denoise_fn.config["num_classes"] else {}
        results = folder / "results" / name
        results.mkdir(parents=True)
        options = {**TRAINING, "dataset": [item, item], "results_folder": results}
        Trainer(model, **options).save(1)
