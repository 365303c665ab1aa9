"""The Frechet distance against closed forms."""

import numpy as np
import pytest
import torch
from scipy import linalg

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch.evaluation.video_scores import FeatureStatistics, frechet_distance


def statistics_of(features, sizes=None):
    found = FeatureStatistics(features.shape[1])
    for part in features.split(sizes or [len(features)]):
        found.add(part)
    return found


def exactly(mean, covariance):
    """Statistics with a given mean and covariance."""
    width = len(mean)
    root = torch.linalg.cholesky(covariance)
    unit = torch.cat((torch.eye(width), -torch.eye(width))).double()
    unit = unit * ((2 * width - 1) / 2) ** 0.5
    return statistics_of(unit @ root.T + mean)


def test_batches_together_equal_one():
    torch.manual_seed(0)
    features = torch.randn(50, 6) * torch.arange(1, 7) + 1000
    found = statistics_of(features, [1, 20, 0, 29])
    torch.testing.assert_close(found.mean, features.double().mean(0))
    torch.testing.assert_close(found.covariance, features.double().T.cov())
    assert found.count == 50


def test_distance_of_known_normal_distributions():
    # of diagonal covariances: squared distance of means and of standard deviations
    first = exactly(torch.tensor([0.0, 1.0]), torch.diag(torch.tensor([4.0, 9.0])).double())
    second = exactly(torch.tensor([3.0, 1.0]), torch.diag(torch.tensor([1.0, 25.0])).double())
    assert frechet_distance(first, second) == pytest.approx(9 + 1 + 4, rel=1e-9)


def test_distance_of_covariances_that_do_not_commute():
    torch.manual_seed(1)
    a, b = torch.randn(2, 4, 4, dtype=torch.float64)
    a, b = a @ a.T + torch.eye(4), b @ b.T + torch.eye(4)
    # the eigenvalues of the product itself, which is not symmetric
    root = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = (a.trace() + b.trace() - 2 * root).item()
    zero = torch.zeros(4, dtype=torch.float64)
    assert frechet_distance(exactly(zero, a), exactly(zero, b)) == pytest.approx(expected, rel=1e-6)


def with_scipy(first, second):
    """The usual formula, with the root of the covariances' product."""
    a, b = (np.cov(features.double().numpy(), rowvar=False) for features in (first, second))
    apart = first.double().mean(0) - second.double().mean(0)
    root = linalg.sqrtm(a @ b).real
    return (apart @ apart).item() + np.trace(a) + np.trace(b) - 2 * np.trace(root)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (300, 100)])
def test_it_equals_the_formula_with_scipys_matrix_root(count, width):
    torch.manual_seed(2)
    first, second = torch.randn(count, width), torch.randn(count + 9, width)
    second = second @ torch.randn(width, width) + 1
    found = frechet_distance(statistics_of(first), statistics_of(second, [9, count]))
    assert found == pytest.approx(with_scipy(first, second), rel=1e-9)


def test_it_equals_the_distance_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Rows(torch.nn.Module):
        num_features = 8

        def forward(self, pictures):
            return pictures.flatten(1).float()

    torch.manual_seed(3)
    theirs = fid.FrechetInceptionDistance(Rows(), input_img_size=(2, 2, 2)).set_dtype(torch.float64)
    first, second = torch.rand(50, 8), torch.rand(60, 8) ** 2
    theirs.update(first.view(-1, 2, 2, 2), real=True)
    theirs.update(second.view(-1, 2, 2, 2), real=False)
    found = frechet_distance(statistics_of(first), statistics_of(second))
    assert found == pytest.approx(theirs.compute().item(), rel=1e-5)


few_videos = pytest.mark.filterwarnings("ignore:frechet_distance. a covariance of")


@few_videos
def test_a_set_has_no_distance_to_itself_even_if_it_is_small():
    few = statistics_of(torch.randn(5, 32))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


@few_videos
def test_sets_that_are_smaller_than_the_features_are_wide():
    # one feature tells of each: the others' covariances are all zeros
    torch.manual_seed(4)
    values = torch.randn(9, 2, dtype=torch.float64)
    first, second = torch.zeros(2, 9, 20, dtype=torch.float64)
    first[:, 3], second[:, 3] = values[:, 0], 5 * values[:, 1] + 2
    alone = frechet_distance(statistics_of(first[:, 3:4]), statistics_of(second[:, 3:4]))
    found = frechet_distance(statistics_of(first), statistics_of(second))
    assert found == pytest.approx(alone, rel=1e-12)


@few_videos
def test_it_does_not_depend_on_the_order_of_sets():
    torch.manual_seed(5)
    small, large = statistics_of(torch.randn(5, 12)), statistics_of(torch.randn(40, 12) * 3)
    there, back = frechet_distance(small, large), frechet_distance(large, small)
    assert there == pytest.approx(back, rel=1e-9)


def test_too_few_videos_give_a_warning():
    few = statistics_of(torch.randn(8, 8))
    with pytest.warns(UserWarning, match=r"covariance of 8 features must come from more than 8"):
        frechet_distance(few, few)
    enough = statistics_of(torch.randn(9, 8))
    frechet_distance(enough, enough)


def test_one_video_has_no_covariance():
    one, two = FeatureStatistics(2), FeatureStatistics(2)
    one.add(torch.zeros(1, 2))
    two.add(torch.eye(2))
    with pytest.raises(ValueError, match=r"sets must have at least two videos, got 1"):
        frechet_distance(two, one)


def test_processes_together_equal_one():
    torch.manual_seed(6)
    features = torch.randn(50, 6) + 1000
    parts = [statistics_of(features[:13]), FeatureStatistics(6), statistics_of(features[13:])]
    for joined in in_turns([part.over_processes for part in parts]):
        torch.testing.assert_close(joined.mean, features.double().mean(0))
        torch.testing.assert_close(joined.covariance, features.double().T.cov())
        assert joined.count == 50


def test_statistics_are_restored_from_a_state_dict():
    found = statistics_of(torch.randn(9, 3))
    again = FeatureStatistics.from_state(found.state_dict())
    assert torch.equal(again.covariance, found.covariance)
    again.add(torch.ones(1, 3))
    assert (again.count, found.count) == (10, 9)
