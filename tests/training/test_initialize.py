"""Fine-tuning: a run starts from the weights of a file, and some parameters are frozen."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.fsdp import write_sharded

GOLDEN = Path(__file__).parents[1] / "golden"
LEARNT = ("step", "model", "ema", "optimizer", "scheduler", "data")


def learnt(trainer):
    state = trainer.checkpoint_state()
    return json.dumps({n: state[n] for n in LEARNT}, default=lambda value: value.tolist())


def make_diffusion(seed=7, **network):
    torch.manual_seed(seed)
    options = {"dim": 4, "dim_mults": (1,), "channels": 1, "attn_heads": 1, **network}
    return GaussianDiffusion(Unet3D(**options), image_size=8, num_frames=3, timesteps=2)


@pytest.fixture
def base(tmp_path, make_trainer):
    """A folder of a trained model that knows something of its clips."""
    trainer = make_trainer(results_folder=tmp_path / "base", ema_decay=(0.9, 0.5))
    trainer.model.clip_info = ClipInfo(text_encoder="known", fps=5.0)
    trainer.train()
    return tmp_path / "base"


@pytest.fixture
def fine_tune(clips, tmp_path):
    """Makes trainers of a new model."""

    def make(folder=clips, seed=7, network=None, results="fine", **options):
        defaults = {
            "train_batch_size": 2,
            "train_lr": 1e-2,
            "train_num_steps": 4,
            "save_and_sample_every": 2,
            "num_sample_rows": 1,
            "results_folder": tmp_path / results,
            "device": "cpu",
            "num_workers": 0,
            "seed": 3,
        }
        model = make_diffusion(seed, **(network or {}))
        return Trainer(model, folder, **{**defaults, **options})

    return make


@pytest.fixture
def classes(tmp_path, clips):
    """The clips in folders of three classes."""
    for i, clip in enumerate(sorted(clips.iterdir())):
        folder = tmp_path / "classes" / "xyz"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder)
    return tmp_path / "classes"


def assert_weights(model, tensors):
    own = model.state_dict()
    assert own.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(own[name], value), name


# the weights of a file


@pytest.mark.parametrize(
    ("averaged", "part"),
    [(True, ("ema",)), (False, ("model",)), (0.9, ("ema",)), (0.5, ("emas", "0.5"))],
)
def test_a_run_starts_from_the_weights_of_a_file(base, fine_tune, averaged, part):
    tensors = read_checkpoint(base / "model-2.pt")
    for key in part:
        tensors = tensors[key]
    # a results folder stands for its newest checkpoint
    for path in (base / "model-2.pt", str(base)):
        trainer = fine_tune(init_from=path, init_averaged=averaged)
        assert trainer.step == 0
        assert trainer.opt.state_dict()["state"] == {}
        for model in (trainer.model, trainer.ema_model):
            assert_weights(model, tensors)
            assert model.clip_info.text_encoder == "known"
            # what the clips say comes first
            assert model.clip_info.fps != 5.0
    trainer.train()
    assert trainer.step == 4
    assert trainer.model.clip_info == trainer.ema_model.clip_info


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_run_starts_from_every_kind_of_model(base, fine_tune, tmp_path, make_trainer):
    trainer = make_trainer()
    trainer.load(base / "model-2.pt")
    expected = trainer.ema_model.state_dict()
    trainer.ema_model.save_pretrained(tmp_path / "shared")
    write_sharded(trainer.checkpoint_state(), tmp_path / "model-2.sharded", trainer.processes)
    state = trainer.checkpoint_state()
    wrapped = {f"module.{name}": value for name, value in state["ema"].items()}
    torch.save({"step": 1, "model": wrapped, "ema": wrapped}, tmp_path / "wrapped.pt")
    for name in ("shared", "model-2.sharded", "wrapped.pt"):
        assert_weights(fine_tune(init_from=tmp_path / name).model, expected)
    with pytest.raises(ValueError, match=r"init_averaged must be left out for the shared model"):
        fine_tune(init_from=tmp_path / "shared", init_averaged=False)
    with pytest.raises(ValueError, match=r"init_averaged must be True, False or the decay of an"):
        fine_tune(init_from=base, init_averaged=0.7)
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        fine_tune(init_from=tmp_path / "missing.pt")


def test_a_run_starts_from_a_file_of_the_reference(tmp_path, clips):
    record = torch.load(GOLDEN / "trainer_0.7.0.pt", weights_only=True)
    file = GOLDEN / "reference_results_0.7.0" / "model-2.pt"
    model = GaussianDiffusion(Unet3D(**record["unet"]), **record["diffusion"])
    expected = GaussianDiffusion(Unet3D(**record["unet"]), **record["diffusion"])
    expected.load_state_dict(torch.load(file, weights_only=True)["ema"])
    options = {"results_folder": tmp_path / "fine", "device": "cpu", "num_workers": 0}
    trainer = Trainer(model, clips, init_from=file, num_sample_rows=1, **options)
    assert_weights(trainer.model, expected.state_dict())


def test_a_run_that_resumes_does_not_read_it(base, fine_tune, tmp_path, caplog):
    whole = fine_tune(init_from=base, results="whole")
    whole.train()
    fine_tune(init_from=base, train_num_steps=2, resume="auto").train()
    shutil.rmtree(base)
    with caplog.at_level(logging.INFO):
        resumed = fine_tune(init_from=base, resume="auto")
    assert f"resumes from a checkpoint: init_from={str(base)!r} is not read" in caplog.text
    assert resumed.step == 2
    resumed.train()
    assert learnt(resumed) == learnt(whole)


def test_the_same_weights_train_as_if_they_were_the_models_own(base, fine_tune):
    weights = read_checkpoint(base / "model-2.pt")["ema"]
    model = make_diffusion()
    model.load_state_dict(weights)
    first, second = fine_tune(init_from=base), fine_tune(seed=1, results="other")
    second.model.load_state_dict(weights)
    second.reset_parameters()
    for trainer in (first, second):
        torch.manual_seed(0)
        trainer.train()
    assert learnt(first) == learnt(second)


# other parameters


def test_new_parameters_start_with_the_models_values(base, fine_tune, classes):
    new = {"network": {"num_classes": 3}, "folder": classes, "conditions": "label"}
    message = (
        "the file must have the parameters of the network, got one that lacks *.label_emb.*, as "
        "the network has num_classes 3 instead of None; build the network with the same settings, "
        "or, to let these parameters start afresh, pass init_without=('*.label_emb.*',)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        fine_tune(init_from=base, **new)
    trainer = fine_tune(init_from=base, init_without=("*.label_emb.*",), **new)
    tensors = read_checkpoint(base / "model-2.pt")["ema"]
    fresh = make_diffusion(num_classes=3).denoise_fn.label_emb.weight
    assert_weights(trainer.model, {**tensors, "denoise_fn.label_emb.weight": fresh})
    assert trainer.model.clip_info.class_names == ("x", "y", "z")


def test_parameters_of_another_shape_and_of_the_file_alone(fine_tune, classes, tmp_path, caplog):
    options = {"folder": classes, "conditions": "label", "train_num_steps": 1}
    fine_tune(network={"num_classes": 3}, results="base", **options).train()
    base = tmp_path / "base"
    with pytest.raises(ValueError, match=r"that has in another shape \*\.label_emb\.\*, as the"):
        fine_tune(init_from=base, network={"num_classes": 4}, **options)
    with pytest.raises(ValueError, match=r"got one that alone has \*\.label_emb\.\*, as the netw"):
        fine_tune(init_from=base)
    for number in (4, None):
        chosen = options if number else {}
        network = {"num_classes": number}
        trainer = fine_tune(init_from=base, init_without="*.label_emb.*", network=network, **chosen)
        tensors = read_checkpoint(base / "model-0.5.pt")["ema"]
        fresh = make_diffusion(**network).state_dict()
        kept = {name: v for name, v in fresh.items() if "label_emb" in name}
        tensors.pop("denoise_fn.label_emb.weight")
        assert_weights(trainer.model, tensors | kept)
    assert "classes" not in caplog.text
    # a weight in both is left out as well
    fresh = make_diffusion(num_classes=3).denoise_fn.label_emb.weight
    trainer = fine_tune(
        init_from=base, init_without="*.label_emb.*", network={"num_classes": 3}, **options
    )
    assert torch.equal(trainer.model.denoise_fn.label_emb.weight, fresh)


def test_many_differences_are_named_by_their_cause(base, fine_tune):
    with pytest.raises(ValueError, match=r"in all.*, as the network has dim 8 instead of 4; build"):
        fine_tune(init_from=base, network={"dim": 8})


def test_other_classes_are_warned_of(fine_tune, classes, tmp_path, caplog):
    options = {"conditions": "label", "network": {"num_classes": 3}}
    fine_tune(classes, results="base", train_num_steps=1, **options).train()
    (classes / "x").rename(classes / "w")
    caplog.clear()
    fine_tune(classes, init_from=tmp_path / "base", **options)
    assert "was trained on the classes x, y, z, and the clips are of w, y, z" in caplog.text
    caplog.clear()
    fine_tune(classes, init_from=tmp_path / "base", init_without=["*.label_emb.*"], **options)
    assert "classes" not in caplog.text


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        ({"timesteps": 3}, "settings of .*model-2.pt to start from .*, got timesteps 3 instead of"),
        ({"objective": "pred_v"}, "init_from='.*must have the model's objective, 'pred_v', got"),
        ({"beta_schedule": "linear"}, "must have the model's beta_schedule, 'linear', got"),
    ],
)
def test_another_diffusion_is_refused(base, clips, tmp_path, diffusion, message):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    options = {"image_size": 8, "num_frames": 3, "timesteps": 2, **diffusion}
    model = GaussianDiffusion(unet, **options)
    with pytest.raises(ValueError, match=message):
        Trainer(model, clips, results_folder=tmp_path / "fine", device="cpu", init_from=base)


def test_settings_without_weights_are_those_of_the_file(base, fine_tune):
    message = "got token_shift time instead of None; build the model with the same"
    with pytest.raises(ValueError, match=message):
        fine_tune(init_from=base, network={"token_shift": "time"})


def test_new_clips_may_have_another_range(fine_tune, clips, tmp_path):
    fine_tune(results="base", value_range=(0, 255), train_num_steps=1).train()
    base = tmp_path / "base"
    message = (
        r"must have the model's value_range, \(-1\.0, 2\.0\), got \(0\.0, 255\.0\); .* keep its "
        r"own with init_without=\('value_\*',\)"
    )
    with pytest.raises(ValueError, match=message):
        fine_tune(init_from=base, value_range=(-1, 2))
    trainer = fine_tune(init_from=base, value_range=(-1, 2), init_without=("value_*",))
    assert trainer.model.config["value_range"] == ((-1.0,), (2.0,))
    assert trainer.model.value_low.item() == -1
    weights = read_checkpoint(base / "model-0.5.pt")["ema"]
    name = "denoise_fn.init_conv.weight"
    assert torch.equal(trainer.model.state_dict()[name], weights[name])
    assert fine_tune(init_from=base, init_without=("value_*",)).model.config["value_range"] is None


def test_patterns_that_match_nothing(base, fine_tune):
    with pytest.raises(ValueError, match=r"of init_without must .* got '\*\.lable_emb\.\*'"):
        fine_tune(init_from=base, init_without=("*.lable_emb.*",))
    message = r"each pattern of freeze must .*, got 'denoise_fn\.down\.\*'; .* denoise_fn\.downs\.0"
    with pytest.raises(ValueError, match=message):
        fine_tune(freeze=("denoise_fn.down.*",))
    with pytest.raises(ValueError, match="init_without must go with init_from, got none"):
        fine_tune(init_without=("*.label_emb.*",))


@pytest.mark.parametrize(("schedule", "is_warned"), [("cosine", True), ("constant", False)])
def test_a_finished_run_that_resumes_on_other_clips(fine_tune, clips, caplog, schedule, is_warned):
    hint = "learning rate has decayed to 0.0e+00, as at the end of a run: to train its weights on"
    fine_tune(train_num_steps=2, lr_schedule=schedule, warmup_steps=1).train()
    longer = {"resume": "auto", "lr_schedule": schedule, "warmup_steps": 1, "train_num_steps": 4}
    fine_tune(**longer)
    assert hint not in caplog.text
    (clips / "00.gif").unlink()
    path = fine_tune(**longer).resumed_from
    assert (f"{hint} these clips, start a new run with init_from={str(path)!r}" in caplog.text) == (
        is_warned
    )


# frozen parameters


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "weight_decay": 0.1}])
def test_frozen_parameters_stay_and_others_learn(base, fine_tune, tmp_path, options):
    frozen = ("denoise_fn.downs.*", "*.time_mlp.*")
    options = {"init_from": base, "freeze": frozen, "lr_schedule": "cosine", **options}
    whole = fine_tune(results="whole", **options)
    before = {name: value.clone() for name, value in whole.model.named_parameters()}
    whole.train()
    for models in (whole.model, whole.ema_model):
        for name, value in models.named_parameters():
            is_frozen = "downs" in name or "time_mlp" in name or "rotary" in name
            assert torch.equal(value, before[name]) == is_frozen, name
    held = {id(p) for group in whole.opt.param_groups for p in group["params"]}
    parameters = dict(whole.model.named_parameters())
    assert [name for name in parameters if id(parameters[name]) not in held] == whole.frozen
    assert all("downs" in name or "time_mlp" in name for name in whole.frozen)

    fine_tune(**{**options, "train_num_steps": 4}, save_every=1).train()
    (tmp_path / "fine" / "model-2.pt").unlink()
    resumed = fine_tune(resume=tmp_path / "fine" / "model-1.pt", **options)
    assert resumed.step == 2
    resumed.train()
    assert learnt(resumed) == learnt(whole)
    for other in ((), ("denoise_fn.ups.*",), ("denoise_fn.downs.*",)):
        with pytest.raises(ValueError, match="one of other parameters; pass the same optimizer, w"):
            fine_tune(resume=tmp_path / "fine" / "model-1.pt", **{**options, "freeze": other})


def test_something_must_be_left_to_train(fine_tune):
    with pytest.raises(ValueError, match=r"freeze must leave parameters to train, got \*, which"):
        fine_tune(freeze="*")


def test_weights_of_one_padding_are_a_start_for_another(base, fine_tune):
    trainer = fine_tune(init_from=base, network={"padding_mode": "circular"})
    assert_weights(trainer.model, fine_tune(init_from=base).model.state_dict())
    # but not the rest of a run
    with pytest.raises(ValueError, match="padding_mode circular instead of zeros; pass the same"):
        trainer.load(base / "model-2.pt")
