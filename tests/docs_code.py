"""What the tests of the pages in `docs/` share: a page's code, and a size that takes seconds."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
NETWORK = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 1, "init_kernel_size": 3}
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


def small_options(**more):
    """Options of the command `train` for a small network and a short training."""
    options = {**NETWORK, **TRAINING, "image_size": 16, "num_frames": 4, **more}
    return [f"--{name}={list(v) if name == 'dim_mults' else v}" for name, v in options.items()]
