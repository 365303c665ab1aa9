"""A run goes on from a checkpoint as if nothing had been, or says what is different."""

import json
import logging

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.cli.info import describe_checkpoint
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.checkpoint_file import (
    read_checkpoint,
    write_checkpoint,
)
from video_diffusion_pytorch.training.metrics import read_metrics

# Of a checkpoint, what the weights to come follow from
LEARNT = ("step", "model", "ema", "emas", "optimizer", "scheduler", "data")
# Many settings at once, each of which has a state or a way to draw
MANY = {
    "num_workers": 2,
    "horizontal_flip": True,
    "vertical_flip": True,
    "clip_start": "random",
    "crop": "random",
    "lr_schedule": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "optimizer": "adamw",
    "ema_decay": (0.9, 0.99),
    "ema_warmup": "power",
    "max_grad_norm": 1.0,
}


def learnt(trainer):
    state = trainer.checkpoint_state()
    return json.dumps({n: state[n] for n in LEARNT}, default=lambda value: value.tolist())


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def warned(caplog):
    """The warnings so far, which are then forgotten."""

    def take():
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        yield take


# bit for bit


@pytest.fixture
def large_clips(clips):
    """Clips of which there is more than a model sees."""
    generator = torch.Generator().manual_seed(0)
    for path in clips.iterdir():
        video_tensor_to_gif(torch.rand(1, 5, 10, 12, generator=generator), path)
    return clips


@pytest.mark.usefixtures("large_clips")
def test_a_run_resumed_at_any_step_ends_as_the_uninterrupted_one(make_trainer, tmp_path, warned):
    # twelve clips, of which a step takes four: every third step ends an epoch
    options = {**MANY, "train_num_steps": 7, "save_every": 1}
    whole = make_trainer(results_folder=tmp_path / "whole", **options)
    states = [learnt(whole)]
    whole.train(prob_focus_present=0.5, log_fn=lambda log: states.append(learnt(whole)))
    assert len(set(states)) == 8
    for stop in (1, 5):
        # another beginning, of which nothing may be left
        torch.manual_seed(stop)
        resumed = make_trainer(results_folder=tmp_path / f"from {stop}", **options)
        torch.rand(stop)
        resumed.load(tmp_path / "whole" / f"model-{stop / 2:g}.pt")
        assert learnt(resumed) == states[stop]
        seen = []
        resumed.train(
            prob_focus_present=0.5, log_fn=lambda log, r=resumed, s=seen: s.append(learnt(r))
        )
        assert seen == states[stop + 1 :]
    assert not warned()


@pytest.mark.usefixtures("large_clips")
def test_a_run_that_is_stopped_and_resumed_again_and_again(make_trainer, tmp_path):
    options = {**MANY, "num_workers": 0, "train_num_steps": 5, "seed": 3}
    whole = make_trainer(results_folder=tmp_path / "whole", **options)
    whole.train()

    def stop(log):
        raise ZeroDivisionError

    for step in range(1, 5):
        trainer = make_trainer(resume="auto", save_every=1, **options)
        assert trainer.step == step - 1
        with pytest.raises(ZeroDivisionError):
            trainer.train(log_fn=stop)
    trainer = make_trainer(resume="auto", **options)
    trainer.train()
    assert learnt(trainer) == learnt(whole)
    # each step has been measured once
    lines = read_metrics(tmp_path / "results" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert sum(line["steps"] for line in lines) == 5


# what has changed since


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_changed_learning_rate_takes_effect(make_trainer, results, schedule):
    def rates(**options):
        trainer = make_trainer(lr_schedule=schedule, **options)
        trainer.train(log_fn=lambda log: found.append(log["lr"]))
        return trainer

    found = []
    rates(train_num_steps=4)
    old = list(found)
    found.clear()
    trainer = make_trainer(lr_schedule=schedule, train_lr=5e-3, train_num_steps=4)
    trainer.load(1)
    trainer.train(log_fn=lambda log: found.append(log["lr"]))
    assert found == [pytest.approx(rate / 2) for rate in old[2:]]
    assert old[0] == pytest.approx(1e-2 * (0.75 if schedule == "linear" else 1))
    # and is the checkpoint's own from then on
    found.clear()
    longer = make_trainer(
        lr_schedule=schedule, train_lr=5e-3, train_num_steps=5, resume=results / "model-2.pt"
    )
    longer.train(log_fn=lambda log: found.append(log["lr"]))
    assert found == [pytest.approx(5e-3 if schedule == "constant" else 0)]


def test_an_unchanged_learning_rate_changed_by_hand_stays(make_trainer):
    trainer = make_trainer(train_num_steps=2)
    for group in trainer.opt.param_groups:
        group["lr"] = 3e-3
    trainer.train()
    resumed = make_trainer(resume="auto")
    assert [group["lr"] for group in resumed.opt.param_groups] == [3e-3]


def test_an_optimizer_with_other_groups_is_refused(make_trainer):
    make_trainer(train_num_steps=2, weight_decay=0.1).train()
    message = (
        r"^the optimizer must be that of .*model-1\.pt to resume from it, got one with other "
        r"groups of parameters \(.*\); pass the same optimizer, weight_decay and freeze, or start"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(resume="auto")


def test_a_network_with_other_settings_is_refused(make_trainer, clips, results):
    make_trainer(train_num_steps=2).train()
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2)
    message = (
        r"^the model must be that of the checkpoint .*model-1\.pt to resume from it, got dim 8 "
        r"instead of 4; pass the same settings, or start a new run in another results folder$"
    )
    with pytest.raises(ValueError, match=message):
        Trainer(diffusion, clips, results_folder=results, device="cpu", resume="auto")


@pytest.mark.parametrize("shape", [(0,), (1,), (), "transposed"])
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_of_another_shape_are_refused(make_trainer, results, name, shape):
    make_trainer(train_num_steps=2).train()
    path = results / "model-1.pt"
    state = read_checkpoint(path)
    moments = next(m for m in state["optimizer"]["state"].values() if m[name].squeeze().ndim > 1)
    moments[name] = moments[name].T if shape == "transposed" else torch.zeros(shape)
    write_checkpoint(state, path)
    message = rf"the optimizer of .*model-1\.pt must have {name} of the weights' shapes, got \("
    with pytest.raises(ValueError, match=message):
        make_trainer(resume="auto")


def test_averages_of_another_shape_are_refused(make_trainer, results):
    options = {"ema_decay": (0.5, 0.9)}
    make_trainer(train_num_steps=2, **options).train()
    path = results / "model-1.pt"
    for ema in (lambda state: state["ema"], lambda state: state["emas"]["0.9"]):
        state = read_checkpoint(path)
        name = next(name for name, value in ema(state).items() if value.ndim > 1)
        ema(state)[name] = torch.zeros(3)
        write_checkpoint(state, results / "model-3.pt")
        with pytest.raises(ValueError, match=r"the model must be that .* size mismatch for"):
            make_trainer(resume=results / "model-3.pt", **options)


@pytest.mark.parametrize("step", ["9", None, 1e9, torch.tensor(9), True, -1])
def test_strangers_among_the_checkpoints_are_passed_over(make_trainer, results, warned, step):
    make_trainer(train_num_steps=2).train()
    state = read_checkpoint(results / "model-1.pt")
    torch.save({**state, "step": step}, results / "model-8.pt")
    torch.save([1, 2], results / "model-5.pt")
    strangers = ("model-8.pt", "model-5.pt")
    warned()
    trainer = make_trainer(resume="auto", keep_last=1, train_num_steps=6)
    assert trainer.step == 2
    said = " ".join(warned())
    assert all(name in said for name in strangers)
    assert describe_checkpoint(results)[0].startswith(f"{results / 'model-1.pt'}: ")
    trainer.train()
    assert all((results / name).exists() for name in strangers)
    assert not (results / "model-1.pt").exists()
    trainer.load(-1)
    assert trainer.step == 6


def test_averages_are_known_by_their_decay(make_trainer, warned):
    trainer = make_trainer(train_num_steps=3, ema_decay=(0.5, 0.9), step_start_ema=0)
    trainer.train()
    first, second = (json.dumps(learnt_of(m)) for m in trainer.averages.models.values())
    assert first != second
    resumed = make_trainer(resume="auto", ema_decay=(0.9, 0.5))
    assert [json.dumps(learnt_of(m)) for m in resumed.averages.models.values()] == [second, first]
    assert not warned()


def learnt_of(module):
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


def test_one_average_more(make_trainer, warned):
    make_trainer(train_num_steps=2, ema_decay=0.5, step_start_ema=0).train()
    assert not warned()
    resumed = make_trainer(resume="auto", ema_decay=(0.5, 0.9))
    [message] = warned()
    assert message.endswith(
        "model-1.pt holds no average with decay 0.9: it starts from that with decay 0.5"
    )
    assert learnt_of(resumed.averages.choose(0.9)) == learnt_of(resumed.averages.choose(0.5))
    assert learnt_of(resumed.ema_model) != learnt_of(resumed.model)


def test_one_average_less(make_trainer, warned):
    trainer = make_trainer(train_num_steps=3, ema_decay=(0.5, 0.9), step_start_ema=0)
    trainer.train()
    for kept, left_out in ((0.5, 0.9), (0.9, 0.5)):
        resumed = make_trainer(resume="auto", ema_decay=kept)
        [message] = warned()
        assert message.endswith(
            f"model-1.5.pt holds an average with decay {left_out}, which is left out"
        )
        assert learnt_of(resumed.ema_model) == learnt_of(trainer.averages.choose(kept))


def test_another_decay_goes_on_from_the_average_there_is(make_trainer, warned):
    trainer = make_trainer(train_num_steps=3, ema_decay=0.5, step_start_ema=0)
    trainer.train()
    resumed = make_trainer(resume="auto", ema_decay=0.9)
    assert learnt_of(resumed.ema_model) == learnt_of(trainer.ema_model)
    assert not warned()


def test_a_checkpoint_of_an_older_version_goes_on_bit_for_bit(make_trainer, results, warned):
    whole = make_trainer(train_num_steps=4)
    # as all were
    whole.clip_draws.is_even = False
    whole.train()
    path = results / "model-1.pt"
    state = read_checkpoint(path)
    of_old = ("step", "model", "ema", "optimizer", "scaler", "config", "version", "data")
    old = {name: state[name] for name in of_old}
    [old["random_states"]] = state["random_states"]
    write_checkpoint(old, path)
    (results / "model-2.pt").unlink()
    resumed = make_trainer(resume=path)
    assert resumed.step == 2
    resumed.train()
    assert learnt(resumed) == learnt(whole)
    assert not warned()


def test_random_states_of_another_number_of_processes(make_trainer, results):
    make_trainer(train_num_steps=2).train()
    path = results / "model-1.pt"
    state = read_checkpoint(path)
    state["random_states"] *= 3
    write_checkpoint(state, path)
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        make_trainer(resume="auto")
        drawn.append(torch.rand(3).tolist())
    # none of theirs, but the same each time
    assert drawn[0] == drawn[1]
    torch.set_rng_state(state["random_states"][0]["torch"])
    assert torch.rand(3).tolist() != drawn[0]


# which checkpoint


def test_never(make_trainer):
    make_trainer(train_num_steps=2, resume="never").train()
    message = (
        r"^Trainer: with resume='never' the results folder must be without checkpoints, got "
        r".*results with model-1\.pt; choose another results_folder, or resume='auto'$"
    )
    with pytest.raises(FileExistsError, match=message):
        make_trainer(resume="never")


def test_auto_begins_where_there_is_nothing(make_trainer):
    trainer = make_trainer(resume="auto")
    assert trainer.step == 0
    assert trainer.resumed_from is None


def test_none_does_not_look(make_trainer):
    make_trainer(train_num_steps=2).train()
    assert make_trainer().step == 0


def test_a_path(make_trainer, results, tmp_path):
    make_trainer().train()
    for path in (results / "model-1.pt", str(results / "model-1.pt")):
        trainer = make_trainer(resume=path, results_folder=tmp_path / "other")
        assert trainer.step == 2
        assert trainer.resumed_from == results / "model-1.pt"
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint at .*model-9\.pt, found"):
        make_trainer(resume=results / "model-9.pt")


class Told(Trainer):
    """Whose checkpoints have these validation losses, by their steps."""

    told = (5.0, 1.0, 3.0, 2.0, 4.0, 6.0)

    def checkpoint_state(self):
        state = super().checkpoint_state()
        return state | {"losses": {"training": 1.0, "validation": self.told[self.step - 1]}}


def test_the_best(make_trainer, results):
    trainer = make_trainer(Told, train_num_steps=4)
    for _ in range(4):
        trainer.train_step()
        trainer.save(trainer.step)
    trainer.load("best")
    assert trainer.step == 2
    assert trainer.losses["validation"] == 1.0
    for path in list_checkpoints(results):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="with a validation loss"):
        trainer.load("best")


# which are written, and kept


def test_checkpoints_between_milestones_have_fractions(make_trainer, results):
    trainer = make_trainer(train_num_steps=7, save_and_sample_every=3, save_every=2)
    logs = []
    trainer.train(log_fn=logs.append)
    # at steps 2, 3, 4 and 6, and the last one
    saved = {"0.666667": 2, "1": 3, "1.333333": 4, "2": 6, "2.333333": 7}
    assert names(results) == [f"model-{number}.pt" for number in saved]
    for number, step in saved.items():
        assert read_checkpoint(results / f"model-{number}.pt")["step"] == step
    assert [log["step"] for log in logs if "sample" in log] == [3, 6]
    trainer.load(1.333333)
    assert trainer.step == 4


def test_the_smallest_fraction_is_found_again(make_trainer, results):
    trainer = make_trainer(train_num_steps=1, save_and_sample_every=100_000)
    trainer.train()
    assert names(results) == ["model-0.00001.pt"]
    assert make_trainer(resume="auto").step == 1


def test_the_last_step_is_saved_once(make_trainer, monkeypatch):
    saved = []
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda self, m: (saved.append(m), save(self, m)))
    make_trainer(train_num_steps=4, save_every=1).train()
    assert saved == [0.5, 1, 1.5, 2]
    # what is complete is not written again
    make_trainer(resume="auto").train()
    assert saved == [0.5, 1, 1.5, 2]


def test_the_newest_are_kept(make_trainer, results):
    make_trainer(train_num_steps=7, save_every=1, keep_last=2).train()
    assert names(results) == ["model-3.pt", "model-3.5.pt"]
    # samples and numbers are
    assert len(list(results.glob("*.gif"))) == 3


def test_the_best_are_kept_besides(make_trainer, results):
    trainer = make_trainer(
        Told,
        train_num_steps=6,
        save_and_sample_every=6,
        validate_every=100,
        save_every=1,
        keep_last=1,
        keep_best=2,
        validation_split=0.2,
    )
    trainer.train()
    kept = [read_checkpoint(path)["step"] for path in list_checkpoints(results)]
    assert kept == [2, 4, 6]
    trainer.load("best")
    assert trainer.step == 2


def test_settings_without_weights_are_those_of_the_checkpoint(clips, results):
    def trainer(shift):
        unet = Unet3D(4, dim_mults=(1,), channels=1, attn_heads=1, token_shift=shift)
        diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2)
        return Trainer(diffusion, clips, results_folder=results, device="cpu", num_workers=0)

    trainer("time").save(1)
    message = "to resume from it, got token_shift None instead of time; pass the same settings"
    with pytest.raises(ValueError, match=message):
        trainer(None).load(1)
    trainer("time").load(1)
