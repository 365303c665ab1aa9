import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from video_diffusion_pytorch.training.ema import EMA, WARMUPS, Averages, decay_at


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([True, False]))


class Number(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("table", torch.tensor(value), persistent=False)

    def become(self, value):
        for tensor in (self.value.data, self.seen, self.table):
            tensor.fill_(value)


def test_parameters_and_buffers_are_averaged_and_the_rest_copied():
    old, new = Model(), Model()
    with torch.no_grad():
        new.norm.running_mean += 4
        new.norm.num_batches_tracked += 7
        new.mask.logical_not_()
    before = copy.deepcopy(old.state_dict())
    ema = EMA(0.75)
    ema.update_model_average(old, new)
    for name, value in old.state_dict().items():
        current = new.state_dict()[name]
        if value.is_floating_point():
            expected = ema.update_average(before[name], current)
            torch.testing.assert_close(value, expected)
            assert name.endswith(("running_var", "norm.weight", "norm.bias")) or not torch.equal(
                value, before[name]
            )
        else:
            assert torch.equal(value, current)


def test_an_average_of_one_is_itself():
    assert torch.equal(EMA(0.5).update_average(None, torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {beta}; 0.995"):
        EMA(beta)


# the decay of an update


@pytest.mark.parametrize("warmup", ["power", "inverse_gamma"])
def test_the_decay_grows_from_0_to_the_one_asked_for(warmup):
    decays = [decay_at(warmup, 0.99, n) for n in range(1, 2000)]
    assert decays[0] == 0
    assert decays[-1] == 0.99
    assert decays == sorted(decays)
    assert len({d for d in decays if d < 0.99}) > 100


def test_a_warm_up_by_copying_has_one_decay():
    assert {decay_at("copy", 0.99, n) for n in (1, 2, 1000)} == {0.99}


def weights(warmup, updates):
    """The share of each snapshot in the average after so many updates."""
    model = Number()
    averages = Averages(model, 0.999999, warmup=warmup, every=1)
    shares = []
    for snapshot in range(updates):
        # the average is linear in the snapshots: all are 0 but for one
        one = copy.deepcopy(averages)
        for step in range(updates):
            model.become(1.0 if step == snapshot else 0.0)
            one.update(model, step)
        shares.append(one.first.value.item())
    return torch.tensor(shares, dtype=torch.float64)


def test_the_power_function_weighs_snapshots_by_a_power_of_their_time():
    # the integral of the power function over the time of each snapshot
    n = 20
    borders = torch.arange(n + 1, dtype=torch.float64) ** 7.94 / n**7.94
    torch.testing.assert_close(weights("power", n), borders.diff())


def test_the_power_functions_width_is_a_tenth_of_the_training():
    n = 2000
    time = torch.arange(1, n + 1, dtype=torch.float64)
    # the same recursion as above, with numbers for weights
    share = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        share *= decay_at("power", 0.999999, i + 1)
        share[i] += 1 - share.sum()
    mean = (share * time).sum()
    width = ((share * (time - mean) ** 2).sum()).sqrt() / n
    assert width.item() == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("warmup", ["power", "inverse_gamma"])
def test_the_weights_sum_to_one_and_forget_what_was_before(warmup):
    shares = weights(warmup, 12)
    assert shares.sum().item() == pytest.approx(1, abs=1e-12)
    assert (shares >= 0).all()
    assert shares[-1] > shares[0]


# the averages of a run


@pytest.mark.parametrize("warmup", WARMUPS)
def test_the_first_update_copies_the_model(warmup):
    model = Number()
    averages = Averages(model, [0.9, 0.5], warmup=warmup, start=1)
    model.become(3.0)
    averages.update(model, 0)
    for average in averages.models.values():
        assert [t.item() for t in (average.value, average.seen, average.table)] == [3, 3, 3]


def test_it_copies_up_to_the_start_and_then_averages_every_so_often():
    model = Number()
    averages = Averages(model, 0.75, start=4, every=2)
    seen = []
    for step in range(8):
        model.become(step + 1.0)
        averages.update(model, step)
        seen.append(averages.first.value.item())
    fifth = 0.75 * 3 + 0.25 * 5
    seventh = 0.75 * fifth + 0.25 * 7
    assert seen == [1, 1, 3, 3, fifth, fifth, seventh, seventh]


@pytest.mark.parametrize("warmup", WARMUPS)
def test_several_averages_are_those_of_several_runs(warmup):
    decays = [0.9, 0.1, 0.0]
    options = {"warmup": warmup, "start": 3, "every": 2}
    torch.manual_seed(0)
    model = Model()
    together = Averages(model, decays, **options)
    alone = [Averages(model, decay, **options) for decay in decays]
    for step in range(9):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.copy_(torch.randn(tensor.shape))
        for averages in (together, *alone):
            averages.update(model, step)
    assert list(together.models) == decays
    for average, run in zip(together.models.values(), alone, strict=True):
        expected = run.first.state_dict()
        for name, value in average.state_dict().items():
            assert torch.equal(value, expected[name])
    first, second, last = (m.linear.weight for m in together.models.values())
    assert not torch.equal(first, second)
    assert not torch.equal(second, last)


def test_a_copy_takes_all_tensors_and_no_random_numbers():
    model = Number()
    averages = Averages(model, [0.9, 0.5])
    model.become(3.0)
    before = torch.get_rng_state()
    averages.copy(model)
    assert torch.equal(torch.get_rng_state(), before)
    for average in averages.models.values():
        assert [t.item() for t in (average.value, average.seen, average.table)] == [3, 3, 3]
        assert average.value is not model.value


def test_the_averages_are_models_for_sampling():
    model = Model().train()
    averages = Averages(model, 0.9)
    assert list(averages.models) == [0.9]
    assert averages.first is averages.models[0.9]
    assert not averages.first.training
    assert not any(p.requires_grad for p in averages.first.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_an_average_is_found_by_its_decay():
    averages = Averages(Number(), [0.9, 0.9999999, 0.99999999])
    assert list(averages.named()) == ["0.9", "0.9999999", "0.99999999"]
    assert averages.choose(None) is averages.first
    assert averages.choose(0.9999999) is averages.named()["0.9999999"]
    message = "the decay must be one of 0.9, 0.9999999, 0.99999999, got 0.99"
    with pytest.raises(ValueError, match=message):
        averages.choose(0.99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decays": [0.9, 1.0]}, r"EMA: the decay must be in \[0, 1\), got 1.0; 0.995"),
        ({"decays": math.nan}, r"EMA: the decay must be in \[0, 1\), got nan; 0.995"),
        ({"decays": []}, r"there must be different decays, got \[\]"),
        ({"decays": [0.9, 0.9]}, r"there must be different decays, got \[0.9, 0.9\]"),
        ({"warmup": "karras"}, "must be one of copy, power, inverse_gamma, got 'karras'; 'copy'"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Averages(Number(), **{"decays": 0.9, **options})


# sharded models


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("gathered", [False, True])
def test_sharded_models_are_averaged_like_whole_ones(mesh, gathered):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("sharding needs torch 2.6")
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    start = copy.deepcopy(whole)
    averages, expected = (
        Averages(whole, [0.75, 0.5], start=1),
        Averages(whole, [0.75, 0.5], start=1),
    )
    for model in (whole, *averages.models.values()):
        fsdp.fully_shard(model[0], mesh=mesh)
        fsdp.fully_shard(model, mesh=mesh)
    with torch.no_grad():
        for step in range(2):
            for sharded, plain in zip(whole.parameters(), start.parameters(), strict=True):
                sharded.to_local().mul_(step + 2)
                plain.mul_(step + 2)
            if gathered:  # by a forward, as to draw samples
                for model in (whole, *averages.models.values()):
                    model.eval()(torch.ones(1, 3))
                    assert not any(hasattr(p, "to_local") for p in model[2].parameters())
            averages.update(whole, step * 10)
            expected.update(start, step * 10)
    for decay, average in averages.models.items():
        for name, value in average.state_dict().items():
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            torch.testing.assert_close(value, expected.models[decay].state_dict()[name])
    assert not torch.equal(expected.first[0].weight, start[0].weight)
