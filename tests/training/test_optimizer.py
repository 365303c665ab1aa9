import copy
import functools

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from video_diffusion_pytorch.training.optimizer import make_optimizer


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3))
        self.norm = nn.LayerNorm(4)
        self.null_cond_emb = nn.Parameter(torch.zeros(1, 4))
        self.gamma = nn.Parameter(torch.ones(1, 4, 1, 1, 1))
        self.linear = nn.Linear(4, 5)
        self.conv.weight.data = self.conv.weight.data.contiguous(
            memory_format=torch.channels_last_3d
        )


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


def train(model, optimizer, seeds):
    for seed in seeds:
        set_gradients(model, seed)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def plain_adam(model, **options):
    """Adam as a run without the fused kernel made it."""
    return torch.optim.Adam(model.parameters(), lr=0.1, fused=False, foreach=False, **options)


@pytest.mark.parametrize(
    ("kind", "plain", "weight_decay"),
    [
        ("adam", torch.optim.Adam, 0.0),
        ("adamw", torch.optim.AdamW, 0.0),
        ("adam", torch.optim.Adam, 0.3),
        ("adamw", torch.optim.AdamW, 0.3),
    ],
)
def test_it_is_torchs_to_a_millionth(kind, plain, weight_decay):
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    matrices = [theirs.conv.weight, theirs.linear.weight]
    vectors = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors}]
    expected = plain(groups, lr=0.1, betas=(0.8, 0.9), weight_decay=0, fused=False)
    actual = make_optimizer(ours, kind, lr=0.1, betas=(0.8, 0.9), weight_decay=weight_decay)
    assert type(actual) is plain
    before = copy.deepcopy(list(ours.parameters()))
    results = zip(train(ours, actual, range(5)), train(theirs, expected, range(5)), strict=True)
    for start, (a, b) in zip(before, results, strict=True):
        assert not torch.equal(start, a)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_without_weight_decay_there_is_one_group_in_the_models_order():
    model = Model()
    optimizer = make_optimizer(model)
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [
        id(p) for p in model.parameters()
    ]
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["lr"] == 1e-4


def test_gains_biases_and_null_embeddings_do_not_decay():
    model = Model()
    optimizer = make_optimizer(model, "adamw", lr=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        lost = 0.05 if name in ("conv.weight", "linear.weight") else 0
        torch.testing.assert_close(p.detach(), before[name] * (1 - lost))


def test_the_optimizer_may_be_a_custom():
    model = Model()
    optimizer = make_optimizer(model, functools.partial(torch.optim.RMSprop, lr=0.5))
    assert type(optimizer) is torch.optim.RMSprop
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


# one kernel for all


def test_it_is_fused_where_every_weight_can_be():
    assert make_optimizer(Model()).param_groups[0]["fused"] is True
    elsewhere = Model()
    elsewhere.other = nn.Parameter(torch.ones(2, device="meta"))
    assert make_optimizer(elsewhere).param_groups[0]["fused"] is None
    with_gaps = Model()
    with_gaps.view = nn.Parameter(torch.ones(2, 6)[:, :3])
    assert make_optimizer(with_gaps).param_groups[0]["fused"] is None


def test_other_strides_give_the_same_weights():
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    actual, expected = make_optimizer(ours, lr=0.1), plain_adam(theirs)
    for seed in range(3):
        for model, optimizer in ((ours, actual), (theirs, expected)):
            set_gradients(model, seed)
            model.conv.weight.grad = model.conv.weight.grad.contiguous()
            for state in optimizer.state.values():
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = state[name].contiguous()
            optimizer.step()
    assert ours.conv.weight.stride() != ours.conv.weight.contiguous().stride()
    torch.testing.assert_close(ours.conv.weight, theirs.conv.weight, rtol=1e-6, atol=1e-6)


# its state


@pytest.mark.parametrize("prepared", [False, True])
def test_a_run_continues_as_if_it_had_not_stopped(prepared):
    def make(model):
        optimizer = make_optimizer(model, "adamw", lr=0.1, weight_decay=0.1)
        return Accelerator(cpu=True).prepare(optimizer) if prepared else optimizer

    model = Model()
    start = copy.deepcopy(model)
    expected = train(model, make(model), range(6))
    first = make(start)
    train(start, first, range(3))
    resumed = copy.deepcopy(start)
    second = make(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for a, b in zip(train(resumed, second, range(3, 6)), expected, strict=True):
        assert torch.equal(a, b)


def test_the_state_of_a_plain_adam_continues_in_the_fused_one():
    model = Model()
    old = plain_adam(model)
    train(model, old, range(3))
    copied = copy.deepcopy(model)
    new = make_optimizer(copied)
    state = copy.deepcopy(old.state_dict())  # loaded tensors are the state's own
    new.load_state_dict(state)
    assert new.param_groups[0]["fused"] is True
    assert state["param_groups"][0]["fused"] is False  # the caller's is as it was
    assert new.param_groups[0]["lr"] == 0.1
    for a, b in zip(train(copied, new, (3, 4)), train(model, old, (3, 4)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_loss_scaling_continues_with_a_plain_state():
    model = Model()
    old = plain_adam(model)
    train(model, old, [0])
    new = make_and_load(model, old)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    expected = copy.deepcopy(model)
    train(expected, make_and_load(expected, old), [1])
    set_gradients(model, 1)
    scaler.scale(torch.ones(()))
    for p in model.parameters():
        p.grad *= 4
    scaler.step(new)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def make_and_load(model, other):
    optimizer = make_optimizer(model)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    return optimizer


def test_adam_stays_adam_on_a_state_of_adamw():
    model = Model()
    adamw = make_optimizer(model, "adamw", weight_decay=0.1)
    train(model, adamw, [0])
    adam = make_optimizer(model, "adam", weight_decay=0.1)
    adam.load_state_dict(adamw.state_dict())
    fresh = torch.optim.Adam([nn.Parameter(torch.ones(1))]).param_groups[0]
    name = "decoupled_weight_decay"
    assert adam.param_groups[0].get(name) == fresh.get(name)


def test_a_state_with_other_groups_is_refused():
    model = Model()
    state = make_optimizer(model).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        make_optimizer(model, "adamw", weight_decay=0.1).load_state_dict(state)


# mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "adm"}, "must be one of adam, adamw or a function .*, got 'adm'"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(Model(), **options)


@pytest.mark.parametrize(
    "option", [{"lr": 1e-3}, {"betas": (0.5, 0.9)}, {"weight_decay": 0.1}], ids=str
)
def test_numbers_that_a_custom_optimizer_would_not_see_are_refused(option):
    message = r"betas and weight decay must be left out, got \{.*\}; use functools.partial"
    with pytest.raises(ValueError, match=message):
        make_optimizer(Model(), torch.optim.RMSprop, **option)


def test_a_function_must_return_an_optimizer():
    with pytest.raises(TypeError, match="function must return a torch Optimizer, got None"):
        make_optimizer(torch.nn.Linear(2, 2), lambda parameters: None)
