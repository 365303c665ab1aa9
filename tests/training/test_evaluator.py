"""The evaluator, with models whose videos are known."""

import json

import pytest
import torch

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.training.evaluation_options import Evaluation
from video_diffusion_pytorch.training.evaluator import Evaluator


def means(videos):
    return videos.mean((2, 3, 4))


MEANS = FeatureNetwork(means, name="means", channels=None)


class Known(GaussianDiffusion):
    """Draws videos of one value, which its seeds say, and notes what it was told."""

    def __init__(self, given_frames=0, values=None, **options):
        unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, **options)
        super().__init__(
            unet, image_size=8, num_frames=3, timesteps=2, given_frames=given_frames,
            value_range=values,
        )  # fmt: skip
        self.told = []

    def sample(self, seed, batch_size, **told):
        self.told.append({"seed": seed, **told})
        torch.rand(3)
        return torch.tensor(seed).float().view(-1, 1, 1, 1, 1).expand(-1, *self.clip_shape) / 10

    def predict(self, frames, *, seed, **told):
        self.told.append({"seed": seed, "frames": frames, **told})
        drawn = self.sample(seed, len(frames))
        return torch.cat((frames.float() / 255, drawn[:, :, frames.shape[2] :]), dim=2)


def evaluator(diffusion, clips, evaluation=None, **options):
    told = {"features": MEANS, "max_batch": 5, **(evaluation or {})}
    source = Dataset(clips, 8, 1, 3, as_uint8=True) if not isinstance(clips, Dataset) else clips
    return Evaluator(diffusion, source, Evaluation(**told), **options)


def real_means(clips):
    return torch.stack([video.mean() for video in Dataset(clips, 8, 1, 3)]).double()


def test_the_distance_is_that_of_the_clips_and_the_videos(clips):
    model = Known()
    found = evaluator(model, clips)(model)
    # one feature: normal distributions of one dimension
    real, drawn = real_means(clips), torch.arange(12).double() / 10
    expected = (real.mean() - drawn.mean()) ** 2 + (real.std() - drawn.std()) ** 2
    assert found == {"fvd": pytest.approx(expected.item(), rel=1e-5)}
    assert [one["seed"] for one in model.told] == [[*range(5)], [*range(5, 10)], [10, 11]]
    assert all(one["steps"] == 2 and one["sampler"] == "dpm++sde" for one in model.told)


def test_it_is_the_same_whenever_it_is_measured_and_leaves_the_random_numbers(clips):
    model = Known()
    measure = evaluator(model, clips)
    state = torch.get_rng_state()
    first = measure(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert measure(model) == first == evaluator(model, clips, {"max_batch": 12})(model)


def test_counts_and_seeds(clips):
    model = Known()
    measure = evaluator(model, clips, {"count": 7, "clips": 4, "seed": 2})
    measure(model)
    assert model.told[0]["seed"][0] == 2 * 1_000_003
    assert sum(len(one["seed"]) for one in model.told) == 7
    assert measure.protocol["clips"]["number"] == 4
    assert measure.protocol["samples"]["number"] == 7
    assert json.loads(json.dumps(measure.protocol)) == measure.protocol


def test_clips_tell_videos_their_conditions(clips, tmp_path):
    for number, name in ((0, "b"), (1, "a"), (2, "b")):
        folder = tmp_path / "classes" / name
        folder.mkdir(parents=True, exist_ok=True)
        (clips / f"{number:02}.gif").rename(folder / f"{number}.gif")
    dataset = Dataset(tmp_path / "classes", 8, 1, 3, conditions="label")
    model = Known(num_classes=3)
    # in training there was a class between these two
    told = {"count": 5, "max_batch": 4, "cond_scale": 2.0}
    evaluator(model, dataset, told, class_names=("a", "aa", "b"))(model)
    assert torch.cat([one["labels"] for one in model.told]).tolist() == [0, 2, 2, 0, 2]
    assert {one["cond_scale"] for one in model.told} == {2.0}
    with pytest.raises(
        ValueError, match=r"must be of the classes that are trained on, a, c, got b"
    ):
        evaluator(model, dataset, class_names=("a", "c"))


def test_conditions_are_made_ready(clips):
    for path in clips.iterdir():
        path.with_suffix(".txt").write_text(path.stem)
    model = Known(cond_dim=2)
    dataset = Dataset(clips, 8, 1, 3, conditions="caption")
    ready = lambda told: {"cond": torch.ones(len(told["cond"]), 2)}  # noqa: E731
    evaluator(model, dataset, ready=ready)(model)
    assert model.told[0]["cond"].shape == (5, 2)


@pytest.mark.parametrize("is_trained", [True, False])
def test_prediction(clips, is_trained):
    pytest.importorskip("torchmetrics")
    model = Known(given_frames=1, cond_channels=2) if is_trained else Known()
    told = {"similarities": ("psnr",), "given_frames": 1}
    measure = evaluator(model, clips, told)
    found = measure(model)
    frames = model.told[0]["first_frames" if is_trained else "frames"]
    videos = torch.stack([*Dataset(clips, 8, 1, 3, as_uint8=True)])
    assert torch.equal(frames, videos[:5, :, :1])
    # the two frames that follow
    values = torch.arange(12).view(-1, 1, 1, 1, 1) / 10
    errors = (videos[:, :, 1:] / 255 - values).square().mean((1, 3, 4))
    assert found["psnr"] == pytest.approx((-10 * errors.log10()).mean().item(), rel=1e-5)
    # whole videos: the clips' first frames, and what was drawn
    whole = torch.cat((videos[:, :, :1] / 255, values.expand(-1, 1, 2, 8, 8)), dim=2)
    drawn, real = means(whole).double(), real_means(clips)
    expected = (real.mean() - drawn.mean()) ** 2 + (real.std() - drawn.std()) ** 2
    assert found["fvd"] == pytest.approx(expected.item(), rel=1e-4)


def test_clips_in_units_of_their_own(clips):
    # bytes are their values, here between -1 and 255
    model = Known(values=(-1, 255))
    found = evaluator(model, Dataset(clips, 8, 1, 3, value_range=(-1, 255)))(model)
    real, drawn = (real_means(clips) * 255 + 1) / 256, (torch.arange(12).double() / 10 + 1) / 256
    expected = (real.mean() - drawn.mean()) ** 2 + (real.std() - drawn.std()) ** 2
    assert found["fvd"] == pytest.approx(expected.item(), rel=1e-4)


def test_processes_share_the_videos(clips):
    model = Known()
    whole = evaluator(model, clips, {"count": 7})(model)
    models = [Known(), Known()]

    def work(process):
        return lambda total: evaluator(
            models[process], clips, {"count": 7}, share=(process, 2), total=total
        )(models[process])

    assert in_turns([work(0), work(1)]) == [pytest.approx(whole)] * 2
    seeds = [[seed for one in model.told for seed in one["seed"]] for model in models]
    # as many each, so that a model that they share takes the same steps
    assert seeds == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_model_that_has_diverged(clips):
    class Diverged(Known):
        def sample(self, seed, batch_size, **told):
            videos = super().sample(seed, batch_size, **told).clone()
            videos[torch.tensor(seed) % 6 == 0, :, 1] = torch.nan
            return videos

    model = Diverged()
    with pytest.raises(FloatingPointError, match=r"drawn videos must be finite, got 2 of 12 that"):
        evaluator(model, clips)(model)


def test_it_can_be_given_up(clips):
    model = Known()
    assert evaluator(model, clips)(model, lambda: True) is None
    assert len(model.told) == 1


def test_statistics_in_a_file(clips, tmp_path, monkeypatch):
    model, file = Known(), tmp_path / "clips.pt"
    first = evaluator(model, clips, {"statistics": file})(model)
    assert file.is_file()
    # the clips are not looked at again
    monkeypatch.setattr(Evaluator, "_look_at_clips", None)
    assert evaluator(model, clips, {"statistics": file, "seed": 0})(model) == first
    with pytest.raises(
        ValueError, match=r"that differ in .*clips.number: 12 and 4; remove the file"
    ):
        evaluator(model, clips, {"statistics": file, "clips": 4})
    other = FeatureNetwork(means, name="other", channels=None)
    with pytest.raises(ValueError, match=r"differ in features.name: 'means' and 'other'"):
        evaluator(model, clips, {"statistics": file, "features": other})
    file.write_bytes(b"no statistics")
    with pytest.raises(ValueError, match=r"statistics must be a file of real clips' statistics"):
        evaluator(model, clips, {"statistics": file})
