"""Where training computes and in which precision, and the parts that a Trainer is made of."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer
from video_diffusion_pytorch.training import evaluate
from video_diffusion_pytorch.training import processes as engine
from video_diffusion_pytorch.training.metrics import read_metrics
from video_diffusion_pytorch.training.processes import (
    Processes,
    compile_network,
    half_precision,
    make_accelerator,
)


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


def weights(trainer):
    return torch.cat([t.flatten().float() for t in trainer.model.state_dict().values()])


# precision


@pytest.mark.parametrize(
    ("amp", "mixed_precision", "told", "expected"),
    [
        (False, None, None, "no"),
        (True, None, None, "bf16"),
        (False, "no", None, "no"),
        (False, "bf16", None, "bf16"),
        (True, "bf16", None, "bf16"),
        # what the launcher was told counts where the script says nothing
        (False, None, "bf16", "bf16"),
        (False, None, "no", "no"),
        (False, "no", "bf16", "no"),
        (True, None, "no", "bf16"),
    ],
)
def test_who_chooses_the_precision(monkeypatch, amp, mixed_precision, told, expected):
    if told is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    accelerator = make_accelerator(amp, "cpu", mixed_precision=mixed_precision)
    assert accelerator.mixed_precision == expected
    assert accelerator.device.type == "cpu"


@pytest.mark.parametrize(("amp", "wanted"), [(False, "half"), (True, "no"), (False, "fp8")])
def test_unknown_precisions_are_refused(amp, wanted):
    message = (
        "Trainer: mixed_precision must be one of no, bf16, fp16, and not 'no' with amp=True, got "
        f"{wanted!r}; leave one of the two out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_accelerator(amp, "cpu", mixed_precision=wanted)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_half_precision_is_the_hardwares(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert half_precision("cuda") == expected
    assert half_precision("cpu") == half_precision("mps") == "bf16"


def test_losses_are_made_in_the_precision_that_was_asked_for(make_trainer):
    found = {}
    for precision in ("no", "bf16"):
        trainer = make_trainer(mixed_precision=precision, gradient_accumulate_every=1)
        dtypes = []
        trainer.model.denoise_fn.init_conv.register_forward_hook(
            lambda module, args, output, dtypes=dtypes: dtypes.append(output.dtype)
        )
        torch.manual_seed(0)
        found[precision] = [trainer.train_step() for _ in range(2)]
        assert {*dtypes} == {torch.float32 if precision == "no" else torch.bfloat16}
        # weights, averages and what the optimizer remembers stay in full
        state = trainer.checkpoint_state()
        remembered = [v for s in state["optimizer"]["state"].values() for v in s.values()]
        for tensor in (*state["model"].values(), *state["ema"].values(), *remembered):
            assert tensor.dtype == torch.float32
    assert found["bf16"] == pytest.approx(found["no"], rel=0.05)
    assert found["bf16"] != found["no"]


# devices


def test_thefastest_device_is_taken(monkeypatch):
    for cuda, mps, expected in ((1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: bool(mps))
        assert engine.fastest_device() == expected


def test_a_missing_device_is_refused(monkeypatch):
    monkeypatch.setattr(engine, "fastest_device", lambda: "mps")
    message = (
        "Trainer: device must be 'cpu' or this machine's accelerator, 'mps', got 'cuda'; leave it "
        "out to use the fastest"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_accelerator(False, "cuda")


# one process


def test_one_process_is_the_main_one_and_all_of_them(make_trainer):
    trainer = make_trainer()
    assert trainer.is_main
    assert (trainer.process, trainer.num_processes) == (0, 1)
    tensor = torch.ones(2)
    processes = trainer.processes
    assert processes.sum(tensor) is tensor
    assert processes.gather(tensor) is tensor
    assert processes.from_main("a") == "a"
    assert processes.from_all("a") == ["a"]
    assert trainer.parallel_model is trainer.model
    with processes.main_first():
        pass
    with pytest.raises(ZeroDivisionError), processes.main_first():
        raise ZeroDivisionError


def one_of_two(is_main):
    return SimpleNamespace(is_main_process=is_main, num_processes=2, device=torch.device("cpu"))


def test_others_hear_why_the_main_process_stopped(monkeypatch):
    store = SimpleNamespace(wait=lambda keys, timeout: None)
    monkeypatch.setattr(engine, "_store", lambda: store)

    class Second(Processes):
        heard = None

        def from_main(self, value):
            return self.heard

    process, done = Second(one_of_two(is_main=False)), []
    with process.main_first():
        done.append(1)
    process.heard = "FileNotFoundError: no clips"
    message = "^Trainer: the main process stopped, see there: FileNotFoundError: no clips$"
    with pytest.raises(RuntimeError, match=message), process.main_first():
        done.append(2)
    assert done == [1]


def test_the_main_process_tells_why_it_stopped():
    class First(Processes):
        def from_main(self, value):
            told.append(value)

    told = []
    with First(one_of_two(is_main=True)).main_first():
        pass
    with pytest.raises(KeyError), First(one_of_two(is_main=True)).main_first():
        raise KeyError("clips")
    assert told == [None, "KeyError: 'clips'"]


def test_fsdp_needs_a_launcher(make_trainer):
    message = (
        "Trainer: fsdp must be run in several processes, got one that no launcher started; start "
        "the script with torchrun or accelerate launch, or leave fsdp out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(fsdp=True)
    assert Processes(one_of_two(is_main=True), fsdp=True).fsdp
    assert not Processes(one_of_two(is_main=True)).fsdp


def test_a_launcher_may_say_fsdp(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert Processes(one_of_two(is_main=True)).fsdp


# compiling


@pytest.fixture
def compiled(monkeypatch):
    """The functions that are compiled. To save time only the first is, and runs as it is."""
    found = []
    compile_ = torch.compile

    def quickly(function=None, **options):
        found.append(function)
        is_first = len(found) == 1
        return compile_(function, backend="eager", **options) if is_first else function

    monkeypatch.setattr(torch, "compile", quickly)
    yield found
    torch.compiler.reset()


# torch's own, while it traces
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_network_trains_alike(make_trainer, compiled):
    options = {"seed": 4, "gradient_accumulate_every": 1}
    plain, trainer = make_trainer(**options), make_trainer(**options, compile=True)
    assert compiled
    for each in (plain, trainer):
        each.train_step()
    torch.testing.assert_close(weights(trainer), weights(plain), rtol=1e-4, atol=1e-5)
    # the names in a checkpoint are as ever
    assert trainer.checkpoint_state()["model"].keys() == plain.checkpoint_state()["model"].keys()
    trainer.save(1)
    assert make_trainer(resume="auto").step == 1


def test_other_networks_are_compiled_as_a_whole():
    class Plain(torch.nn.Module):
        compiled = False

        def forward(self, x, t, cond=None):
            return x

        def compile(self):
            self.compiled = True

    networks = [Plain(), Plain()]
    options = {"image_size": 4, "num_frames": 2, "timesteps": 2, "channels": 1}
    compile_network(*(GaussianDiffusion(network, **options) for network in networks))
    assert all(network.compiled for network in networks)


# optimizer and learning rate


def test_optimizer_and_schedule_are_those_asked_for(make_trainer):
    trainer = make_trainer(
        optimizer="adamw",
        betas=(0.8, 0.9),
        weight_decay=0.25,
        lr_schedule="linear",
        warmup_steps=2,
        train_num_steps=4,
    )
    decays = [group["weight_decay"] for group in trainer.opt.param_groups]
    assert sorted(decays) == [0.0, 0.25]
    assert {group["betas"] for group in trainer.opt.param_groups} == {(0.8, 0.9)}
    assert isinstance(trainer.opt.optimizer, torch.optim.AdamW)
    rates = []
    trainer.train(log_fn=lambda log: rates.append(log["lr"]))
    # told after the step: that of the one to come
    assert rates == [pytest.approx(1e-2 * share) for share in (1, 1, 0.5, 0)]


def test_an_optimizer_of_the_user(make_trainer):
    trainer = make_trainer(
        optimizer=partial(torch.optim.SGD, lr=0.1),
        train_lr=1e-4,
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        train_num_steps=2,
    )
    before = weights(trainer)
    rates = []
    trainer.train(log_fn=lambda log: rates.append(log["lr"]))
    assert rates == [pytest.approx(0.05), pytest.approx(0.025)]
    assert not torch.equal(weights(trainer), before)
    resumed = make_trainer(
        optimizer=partial(torch.optim.SGD, lr=0.1),
        train_lr=1e-4,
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        resume="auto",
    )
    assert [group["lr"] for group in resumed.opt.param_groups] == [pytest.approx(0.025)]


def test_a_subclass_makes_its_own(make_trainer):
    class Own(Trainer):
        def make_optimizer(self):
            return torch.optim.SGD(self.model.parameters(), lr=1.0)

        def make_schedule(self):
            return None

    trainer = make_trainer(Own, lr_schedule="cosine")
    assert isinstance(trainer.opt.optimizer, torch.optim.SGD)
    assert trainer.scheduler is None
    trainer.train_step()


# trackers


def test_tensorboard_gets_losses_and_samples(make_trainer, results, monkeypatch):
    monkeypatch.setattr(evaluate, "_LEAST", 3)
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    options = {"log_with": "tensorboard", "project": "small", "log_every": 1}
    options |= {"gradient_accumulate_every": 1, "num_sample_rows": 1}
    make_trainer(**options, train_num_steps=2, validation_split=0.25).train()
    events = event_accumulator.EventAccumulator(str(results / "small")).Reload()
    lines = read_metrics(results / "metrics.jsonl")
    for name, steps in (("loss", [1, 2]), ("validation_loss", [2])):
        shown = events.Scalars(name)
        assert [event.step for event in shown] == steps
        told = [line[name] for line in lines if name in line]
        assert [event.value for event in shown] == pytest.approx(told)
    images = events.Images("samples")
    assert [image.step for image in images] == [2]
    assert images[0].encoded_image_string == (results / "1.gif").read_bytes()


def test_settings_are_plain_values(make_trainer):
    settings = make_trainer(train_batch_size=3).settings()
    assert settings["trainer"]["train_batch_size"] == 3
    assert settings["trainer"]["train_lr"] == 1e-2
    assert settings["unet"]["dim"] == 4
    assert settings["diffusion"]["timesteps"] == 2
    assert not any(name.startswith("_") for name in settings["trainer"])
