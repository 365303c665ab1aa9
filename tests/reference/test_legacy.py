"""The reference's small helpers do what they did there."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.model.attention import Attention
from video_diffusion_pytorch.reference.legacy import (
    EinopsToAndFrom,
    LazyModule,
    PreNorm,
    Residual,
    cycle,
    default,
    exists,
    identity,
    is_odd,
    num_to_groups,
)

GOLDEN = Path(__file__).parents[1] / "golden"


@torch.no_grad()
def test_nested_as_in_the_reference_they_give_its_numbers():
    cases = torch.load(GOLDEN / "blocks_0.7.0.pt", weights_only=True)["cases"]
    case = cases["EinopsToAndFrom_Residual_PreNorm"]
    attention = Attention(16, heads=2, dim_head=8)
    layer = Residual(PreNorm(16, EinopsToAndFrom("b c f h w", "b (h w) f c", attention)))
    layer.load_state_dict(case["state_dict"])
    expected = case["output"]
    torch.testing.assert_close(
        layer(*case["args"], **case["call"]),
        expected,
        rtol=0,
        atol=1e-5 * expected.abs().max().item(),
    )


def test_what_is_none_and_what_is_not():
    assert not exists(None)
    assert exists(0)
    assert default(0, 5) == 0
    assert default(None, 5) == 5
    assert default(None, lambda: 6) == 6
    assert default(False, lambda: pytest.fail("called for nothing")) is False


def test_numbers():
    assert [is_odd(n) for n in (0, 1, 2, 3, -1)] == [False, True, False, True, True]
    assert num_to_groups(10, 4) == [4, 4, 2]
    assert num_to_groups(8, 4) == [4, 4]
    assert num_to_groups(3, 4) == [3]


def test_identity_ignores_all_but_the_first():
    thing = object()
    assert identity(thing, 1, two=2) is thing


def test_cycle_goes_round():
    assert list(islice(cycle([1, 2, 3]), 7)) == [1, 2, 3, 1, 2, 3, 1]


def test_layers_hand_further_arguments_on():
    class Scale(nn.Module):
        def forward(self, x, by=1.0):
            return x * by

    x = torch.randn(2, 4, 3, 5, 5)
    assert torch.equal(Residual(Scale())(x, by=3.0), x * 3 + x)
    assert torch.equal(Residual(Scale())(x, 3.0), x * 3 + x)
    moved = EinopsToAndFrom("b c f h w", "(b f) (h w) c", Scale())
    assert torch.equal(moved(x, by=2.0), x * 2)
    norm = PreNorm(4, Scale())
    torch.testing.assert_close(norm(x, by=2.0), norm.norm(x) * 2)


def test_a_lazy_module_is_the_module_once_it_is_used():
    lazy = LazyModule("fractions")
    assert lazy.Fraction(1, 2) == 0.5
    with pytest.raises(AttributeError, match="nothing_there"):
        _ = lazy.nothing_there
    text = r"no_such_module\.part\.anything needs no_such_module, .*, got No module named"
    with pytest.raises(ImportError, match=f"{text}.* pip install no_such_module"):
        _ = LazyModule("no_such_module.part").anything
    # asking what kind of thing it is imports nothing
    assert not hasattr(LazyModule("no_such_module"), "__wrapped__")
