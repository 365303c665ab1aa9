"""What test_train_with_jax.py runs beside it: `jax_process.py FOLDER`, with four devices.

JAX learns how many devices to simulate when it is imported, and torchax changes torch for the whole
process: neither may happen in the process of the other tests.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
# not where pytest looks for doctests
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

    import train_with_jax

from tests.docs_code import Page  # noqa: E402
from video_diffusion_pytorch import GaussianDiffusion, Unet3D  # noqa: E402

PAGE = Page("jax.md")


def refusal(call, *args):
    """What an error says."""
    try:
        call(*args)
    except (ValueError, AttributeError) as error:
        return str(error)
    return None


def copies(state):
    """Weights, their averages and Adam's mean gradients, as tensors of their own."""
    parts = {"weights": state.weights, "average": state.average, "mean": state.optimizer[0].mu}
    return {name: train_with_jax.to_torch(part) for name, part in parts.items()}


def run_page(folder):
    """Runs the page's script with a model and batches of the test."""
    given = torch.load(folder / "given.pt")
    diffusion = GaussianDiffusion(Unet3D(**given["unet"]), **given["diffusion"])
    diffusion.load_state_dict(given["weights"])
    # the page's loop takes the first batch, the others follow by its step
    first, *others = given["batches"]
    names = {"diffusion": diffusion, "batches": [first]}
    for block in PAGE.blocks("3. Your own script"):
        PAGE.run(block, names)
    take_step, share = names["take_step"], names["parallel"].share
    states, losses = [copies(names["state"])], [names["loss"].item()]
    for batch in others:
        names["state"], loss = take_step(names["state"], share(batch))
        states.append(copies(names["state"]))
        losses.append(loss.item())
    undrawn = {name: value for name, value in first.items() if name != "noise"}
    return {
        "states": states,
        "losses": losses,
        "compiled": take_step._cache_size(),
        "shares": [len(shard.data) for shard in share(first)["video"].addressable_shards],
        "drawn": names["with_draws"](first["video"]),
        "odd batch": refusal(share, {"video": first["video"][:3]}),
        "undrawn": refusal(take_step, names["state"], share(undrawn)),
    }


def run_script(folder):
    """Runs the example as its command does; gives what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train_with_jax.main([
            str(folder / "clips"), "--results_folder", str(folder / "results"), "--steps", "3",
            "--image_size", "8", "--num_frames", "3", "--channels", "1", "--dim", "8",
            "--dim_mults", "1", "2", "--attn_heads", "1", "--train_batch_size", "4", "--train_lr",
            "1e-2", "--ema_decay", "0.5", "--print_every", "1", "--save_every", "2", "--seed", "5",
        ])  # fmt: skip
    return said.getvalue()


def main(folder):
    found = {
        "batch size": train_with_jax._options(PAGE.commands("2. Train")[0][2:]).train_batch_size,
        "removed": refusal(lambda: torch.ops.aten.prod.dim_Dimname),
        "page": run_page(folder),
        "printed": run_script(folder),
        "too many devices": refusal(train_with_jax.main, [str(folder), "--devices", "5"]),
    }
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main(Path.cwd())
