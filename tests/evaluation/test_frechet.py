"""The Frechet distance against closed forms."""

import pytest
import torch

from video_diffusion_pytorch.evaluation.frechet import FeatureStatistics, frechet_distance


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


def test_batches_add_up_to_the_whole():
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


def test_a_set_has_no_distance_to_itself_even_if_it_is_small():
    few = statistics_of(torch.randn(5, 32))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_sets_that_cannot_be_compared():
    with pytest.raises(ValueError, match=r"both sets must have features of one width, got 3 and"):
        frechet_distance(FeatureStatistics(3), FeatureStatistics(2))
    with pytest.raises(ValueError, match=r"covariance needs at least 2 feature vectors, got 1"):
        _ = statistics_of(torch.randn(1, 3)).covariance
    with pytest.raises(ValueError, match=r"features must have the shape \(b, 3\), got \(2, 4\)"):
        FeatureStatistics(3).add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"features must be finite, got some that are not"):
        FeatureStatistics(1).add(torch.tensor([[float("nan")]]))
