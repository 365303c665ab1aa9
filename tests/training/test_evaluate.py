"""Evaluation on clips, with models whose videos are known, and with small ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset, Subset

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch import DDIM, GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.evaluation import frame_classifier
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.evaluation.temporal_scores import TemporalStatistics, temporal_scores
from video_diffusion_pytorch.training.evaluate import (
    EvaluationClips,
    evaluate_diffusion,
    make_evaluator,
    sampling_options,
)


def means(videos):
    return videos.mean((2, 3, 4))


MEANS = FeatureNetwork(means, name="means", channels=None)
BY_MEANS = Evaluation(features=MEANS)


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
    source = Dataset(clips, 8, 1, 3, as_uint8=True) if isinstance(clips, Path) else clips
    return make_evaluator(diffusion, source, Evaluation(**told), **options)


def real_means(clips):
    return torch.stack([video.mean() for video in Dataset(clips, 8, 1, 3)]).double()


def test_the_distance_is_that_of_the_clips_and_the_videos(clips):
    model = Known()
    found = evaluator(model, clips)(model)
    # one feature: normal distributions of one dimension
    real, drawn = real_means(clips), torch.arange(12).double() / 10
    expected = (real.mean() - drawn.mean()) ** 2 + (real.std() - drawn.std()) ** 2
    assert found["fvd"] == pytest.approx(expected.item(), rel=1e-5)
    assert [one["seed"] for one in model.told] == [[*range(5)], [*range(5, 10)], [10, 11]]
    assert all(one["steps"] == 2 and one["sampler"] == "dpm++sde" for one in model.told)


def test_scores_of_motion_are_those_of_the_clips_and_the_videos(clips):
    model, real, drawn = Known(), TemporalStatistics(12), TemporalStatistics(7)
    found = evaluator(model, clips, {"count": 7})(model)
    real.add(torch.stack([*Dataset(clips, 8, 1, 3)]), range(12))
    drawn.add(torch.arange(7).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 8, 8) / 10, range(7))
    expected = temporal_scores(real, drawn)
    assert found == pytest.approx({"fvd": found["fvd"], **expected}, rel=1e-4)
    assert found["change_distance"] > 1


def test_two_frames_have_no_scores_of_motion():
    clip = torch.rand(1, 2, 8, 8)
    model = diffusion(num_frames=2)
    assert evaluator(model, [clip, clip], {"count": 2})(model).keys() == {"fvd"}


def test_it_is_the_same_at_every_measurement_and_leaves_the_random_numbers(clips):
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
    by_condition = {"cond_scale": {"labels": 3.0}}
    measure = evaluator(model, dataset, told | by_condition, class_names=("a", "aa", "b"))
    assert measure.protocol["samples"]["cond_scale"] == [["labels", 3.0]]
    measure(model)
    assert model.told[-1]["cond_scale"] == {"labels": 3.0}
    with pytest.raises(ValueError, match=r"^Evaluation: cond_scale must be .* labels, got {'cond'"):
        evaluator(model, dataset, {"cond_scale": {"cond": 3.0}}, class_names=("a", "b"))
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


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_model_that_has_diverged(clips, value):
    class Diverged(Known):
        def sample(self, seed, batch_size, **told):
            videos = super().sample(seed, batch_size, **told).clone()
            videos[torch.tensor(seed) % 6 == 0, :, 1] = value
            return videos

    model = Diverged()
    with pytest.raises(FloatingPointError, match=r"drawn videos must be finite, got 2 of 12 with"):
        evaluator(model, clips)(model)


def test_an_evaluation_can_be_interrupted(clips):
    model = Known()
    assert evaluator(model, clips)(model, lambda: True) is None
    assert len(model.told) == 1


def test_statistics_in_a_file(clips, tmp_path, monkeypatch):
    model, file = Known(), tmp_path / "clips.pt"
    first = evaluator(model, clips, {"statistics": file})(model)
    assert file.is_file()
    # the clips are not looked at again
    monkeypatch.setattr(EvaluationClips, "batches", None)
    assert evaluator(model, clips, {"statistics": file, "seed": 0})(model) == first
    with pytest.raises(
        ValueError, match=r"got others, with .*clips.number 12 and 4; remove the file"
    ):
        evaluator(model, clips, {"statistics": file, "clips": 4})
    other = FeatureNetwork(means, name="other", channels=None)
    with pytest.raises(ValueError, match=r"with features.name 'means' and 'other'"):
        evaluator(model, clips, {"statistics": file, "features": other})
    file.write_bytes(b"no statistics")
    with pytest.raises(ValueError, match=r"statistics must be a file of real clips' statistics"):
        evaluator(model, clips, {"statistics": file})


def test_statistics_that_lack_the_scores_of_motion_are_written_anew(clips, tmp_path):
    model, file = Known(), tmp_path / "clips.pt"
    first = evaluator(model, clips, {"statistics": file})(model)
    state = torch.load(file, weights_only=True)
    protocol = json.loads(state["protocol"])
    del state["statistics"]["temporal"], state["classifier"], protocol["labels"]
    torch.save({**state, "protocol": json.dumps(protocol)}, file)
    assert evaluator(model, clips, {"statistics": file})(model) == first
    assert "temporal" in torch.load(file, weights_only=True)["statistics"]


# Labels


@pytest.fixture
def of_two(tmp_path, monkeypatch):
    """Dark clips of the class a and bright ones of the class b, eight of each, in sub-folders."""
    monkeypatch.setattr(frame_classifier, "_STEPS", 40)
    for number in range(16):
        path = tmp_path / "two" / "ab"[number % 2] / f"{number:02}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = (0.2, 0.8)[number % 2]
        write_video(shade + 0.2 * torch.rand(1, 3, 8, 8), path)
    return tmp_path / "two"


class OfTwo(Known):
    """Draws dark videos without labels, and else those of the class or, if it errs, the other."""

    errs = False

    def sample(self, seed, batch_size, **told):
        self.told.append({"seed": seed, **told})
        labels = told.get("labels", torch.zeros(batch_size))
        bright = (labels == 1) ^ self.errs
        return 0.3 + 0.6 * bright.float().view(-1, 1, 1, 1, 1).expand(-1, *self.clip_shape)


def labelled(folder, **options):
    return Dataset(folder, 8, 1, 3, as_uint8=True, conditions="label", **options)


def test_a_classifier_of_frames(of_two):
    model = OfTwo()
    found = evaluator(model, labelled(of_two), {"labels": True})(model)
    scores = {"sureness", "constancy", "constant_clips"}
    of_labels = {"label_frames", "label_clips"}
    assert scores <= found.keys()
    assert not of_labels & found.keys()
    assert all(found[f"{name}_real"] > 0.9 for name in scores | of_labels)
    assert all("labels" not in one for one in model.told)
    measured = evaluator(model, labelled(of_two), {"labels": True}).protocol
    assert measured["labels"]["size"] == 32
    assert evaluator(model, labelled(of_two), {"labels": False}, unpack=alone)(model).keys() == {
        "fvd", *(f"{name}_distance{end}" for name in ("change", "flicker", "persistence")
                 for end in ("", "_real")),
    }  # fmt: skip


def alone(batch):
    return batch["video"], {}


@pytest.mark.parametrize("errs", [False, True])
def test_videos_that_should_show_a_class(of_two, errs):
    model = OfTwo(num_classes=3)
    model.errs = errs
    # in training there was a class before these two
    options = {"class_names": ("A", "a", "b")}
    model.sample = lambda **told: OfTwo.sample(model, **{**told, "labels": told["labels"] - 1})
    found = evaluator(model, labelled(of_two), {"labels": True}, **options)(model)
    assert (found["label_frames"], found["label_clips"]) == ((0, 0) if errs else (1, 1))
    assert found["constancy"] == found["constant_clips"] == 1


def test_processes_share_the_classifier(of_two):
    whole = evaluator(OfTwo(), labelled(of_two), {"labels": True})(OfTwo())

    def work(process):
        return lambda total: evaluator(
            OfTwo(), labelled(of_two), {"labels": True}, share=(process, 2), total=total
        )(OfTwo())

    assert in_turns([work(0), work(1)]) == [pytest.approx(whole)] * 2


def test_the_classifier_is_kept_with_the_statistics(of_two, tmp_path, monkeypatch):
    model, file = OfTwo(), tmp_path / "clips.pt"
    options = {"labels": True, "statistics": file}
    first = evaluator(model, labelled(of_two), options)(model)
    monkeypatch.setattr(EvaluationClips, "batches", None)
    assert evaluator(model, labelled(of_two), options)(model) == first
    with pytest.raises(ValueError, match=r"got others, with .*labels\.size 32 and None"):
        evaluator(model, labelled(of_two), {"statistics": file}, unpack=alone)
    (of_two / "a" / "00.gif").rename(of_two / "b" / "00.gif")
    with pytest.raises(ValueError, match=r"got others, with .*clips\.labels "):
        evaluator(model, labelled(of_two), options)


def test_labels_while_training(of_two, tmp_path):
    trainer = Trainer(
        diffusion(num_classes=2),
        of_two,
        conditions="label",
        evaluation=Evaluation(features=MEANS, labels=True, count=4),
        results_folder=tmp_path / "results",
        device="cpu",
        num_workers=0,
    )
    found = trainer.evaluate()
    assert found["label_clips_real"] > 0.9
    assert 0 <= found["label_frames"] <= 1
    assert found == trainer.evaluate()


def test_clips_without_labels(clips):
    with pytest.raises(
        ValueError, match=r"for labels=True clips must have labels, got no condition with them; so"
    ):
        evaluator(Known(), clips, {"labels": True})


# The clips


def protocol(source, count=6, **options):
    """What a result says of the clips."""
    found = evaluator(Known(**options), source, {"clips": count}).protocol["clips"]
    return {name: value for name, value in found.items() if name not in ("number", "value_range")}


def test_the_hash_is_of_the_files_wherever_they_are(clips, tmp_path):
    here = protocol(Dataset(clips, 8, 1, 3))
    shutil.copytree(clips, tmp_path / "elsewhere")
    assert protocol(Dataset(tmp_path / "elsewhere", 8, 1, 3)) == here
    write_video(torch.rand(1, 5, 8, 8), tmp_path / "elsewhere" / "00.gif")
    assert protocol(Dataset(tmp_path / "elsewhere", 8, 1, 3))["files"] != here["files"]
    assert (here["frames"], here["size"], here["fit"]) == (3, [8, 8], "cover")
    skipped = protocol(Dataset(clips, 8, 1, 3, frame_skip=2, pad="repeat"))
    assert (skipped["frame_skip"], skipped["pad"], skipped["files"]) == (2, "repeat", here["files"])


def test_parts_and_other_datasets(clips):
    dataset = Dataset(clips, 8, 1, 3)
    first = protocol(Subset(dataset, [3, 4, 5]))
    assert first == protocol(Subset(Subset(dataset, [2, 5, 4, 3]), [3, 2, 1]))
    assert first != protocol(dataset)
    assert protocol([dataset[0], dataset[1]]) == {"dataset": "list"}


def test_the_split_of_a_manifest(clips, tmp_path):
    rows = "".join(f"{i:02}.gif,test\n" for i in range(3))
    (tmp_path / "clips.csv").write_text(f"path,split\n{rows}")
    dataset = Dataset(clips, 8, 1, 3, manifest=tmp_path / "clips.csv", split="test")
    assert protocol(dataset)["split"] == "test"
    assert protocol(Dataset(clips, 8, 1, 3))["split"] is None


def test_units(clips):
    def limits(model, **options):
        return evaluator(model, clips, options).protocol["clips"]["value_range"]

    assert limits(Known()) is None
    raw = diffusion()
    raw.auto_normalize = False
    assert limits(raw, value_range=(-3, 3)) == [[-3.0], [3.0]]
    with pytest.raises(ValueError, match="need a value_range of the clips, got none"):
        limits(raw)


def test_clips_that_cannot_be_evaluated_on(clips):
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1, 3, 8, 8)

    for source, found in ((Stream(), "a stream"), (None, "a stream"), ([0], "1")):
        with pytest.raises(ValueError, match=f"in any order and be at least 2, got {found}; pass"):
            make_evaluator(Known(), source, Evaluation())
    in_kelvin = Dataset(clips, 8, 1, 3, value_range=(250, 310))
    with pytest.raises(ValueError, match="must be in the model's units, got a value_range, "):
        evaluator(Known(), in_kelvin)


# What is measured


def samples(model, **options):
    """What a result says of how videos are drawn."""
    clip = torch.rand(model.clip_shape)
    return make_evaluator(model, [clip, clip], Evaluation(**options)).protocol["samples"]


def test_the_distance_of_random_features_is_not_called_fvd():
    assert Evaluation().networks(1).distance == "random_feature_distance"
    assert Evaluation(features=MEANS).networks(1).distance == "fvd"


@pytest.mark.parametrize(
    ("options", "steps", "name"),
    [
        ({}, 20, "dpm++sde"),
        ({"steps": 7}, 7, "dpm++sde"),
        ({"sampler": "ddpm"}, 30, "ddpm"),
        ({"sampler": "ancestral"}, 30, "ancestral"),
        ({"sampler": "ddim"}, 30, "ddim, eta=0.0"),
        ({"sampler": DDIM(eta=0.5)}, 30, "DDIM(eta=0.5, langevin_delta=0.0, spacing='trailing')"),
    ],
)
def test_the_protocol_says_the_steps_that_are_taken(options, steps, name):
    model = diffusion(timesteps=30)
    found = samples(model, **options)
    assert (found["steps"], found["sampler"]) == (steps, name)
    chosen = Evaluation(**options)
    sampling = sampling_options(model, chosen.sampler, chosen.steps, chosen.cond_scale)
    assert sampling["steps"] == steps
    model.sample(**sampling, batch_size=1, progress=False)


def test_the_models_own_number_of_steps():
    model = diffusion(timesteps=30)
    model.sampling_timesteps = 4
    assert samples(model)["steps"] == 4


def test_tasks():
    model = diffusion()
    assert samples(model)["task"] == "generation"
    assert Evaluation().similarity(model) is None
    guided = samples(model, given_frames=1, similarities=("psnr",))
    assert guided["task"] == "prediction by guidance"
    trained = Known(given_frames=2, cond_channels=2)
    found = samples(trained, similarities=("psnr",))
    assert (found["task"], found["given_frames"]) == ("prediction", 2)


def test_options_that_cannot_be():
    least = {"clips": 2, "count": 2, "max_batch": 1, "given_frames": 0, "seed": 0, "splits": 1}
    for name, number in {**least, "steps": 1}.items():
        with pytest.raises(ValueError, match=rf"Evaluation: {name} must be at least {number}, got"):
            Evaluation(**{name: number - 1})
    with pytest.raises(ValueError, match=r"sampler must be one of .*, got 'pndm'; choose one"):
        samples(diffusion(), sampler="pndm")
    with pytest.raises(ValueError, match=r"outputs must be one of logits, probabilities, got 'x'"):
        samples(diffusion(), class_outputs="x")
    with pytest.raises(ValueError, match=r"given_frames must be 2, as in training, got 1; leave"):
        samples(Known(given_frames=2, cond_channels=2), given_frames=1)
    with pytest.raises(ValueError, match=r"for LPIPS frames must be predicted, got given_frames=0"):
        Evaluation(lpips="alex").similarity(diffusion())
    with pytest.raises(
        ValueError, match=r"must leave some of 3 frames to predict, got 3; give few"
    ):
        samples(diffusion(), given_frames=3)


def test_making_one_leaves_the_random_numbers():
    state = torch.get_rng_state()
    Evaluation().networks(3)
    assert torch.equal(torch.get_rng_state(), state)


# A folder


QUIET = {"progress": False, "num_workers": 0}


def diffusion(value_range=None, channels=1, timesteps=2, num_frames=3, **options):
    torch.manual_seed(0)
    unet = Unet3D(dim=4, dim_mults=(1, 2), channels=channels, attn_heads=1, **options)
    size = {"image_size": 8, "num_frames": num_frames, "timesteps": timesteps}
    return GaussianDiffusion(unet, **size, value_range=value_range)


@pytest.fixture
def of_classes(tmp_path):
    folder = tmp_path / "classes"
    for number in range(6):
        of_class = folder / "ab"[number % 2]
        of_class.mkdir(parents=True, exist_ok=True)
        write_video(torch.rand(1, 4, 8, 8), of_class / f"{number}.gif")
        (of_class / f"{number}.txt").write_text(f"clip {number}")
    return folder


def test_a_result_says_what_was_measured_and_how(of_classes):
    model = diffusion().train()
    result = evaluate_diffusion(model, of_classes, BY_MEANS, about={"step": 7}, **QUIET)
    assert model.training
    assert result["scores"]["fvd"] > 0
    assert result["model"] == {"step": 7}
    assert result["device"] == "cpu"
    assert (result["protocol"]["clips"]["number"], result["protocol"]["samples"]["number"]) == (
        6,
        6,
    )
    again = evaluate_diffusion(model, str(of_classes), BY_MEANS, **QUIET)
    assert again["scores"] == result["scores"]


def test_options_of_the_folder_are_in_the_protocol(of_classes):
    result = evaluate_diffusion(
        diffusion(), of_classes, BY_MEANS, frame_skip=2, pad="repeat", **QUIET
    )
    assert result["protocol"]["clips"]["frame_skip"] == 2
    with pytest.raises(TypeError, match=r"frame_skip must go with a folder of clips, got a list"):
        evaluate_diffusion(diffusion(), [1, 2], BY_MEANS, frame_skip=2)


def test_conditions_are_those_of_the_clips(of_classes):
    labels = diffusion(num_classes=2)
    result = evaluate_diffusion(labels, of_classes, BY_MEANS, **QUIET)
    assert result["protocol"]["samples"]["conditions"] == ["labels"]
    vectors = diffusion(cond_dim=2)
    for text in of_classes.rglob("*.txt"):
        text.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"got none for 6.*trained with vectors, conditions="
    ):
        evaluate_diffusion(vectors, of_classes, BY_MEANS, **QUIET)
    told = lambda path: {"cond": torch.ones(2)}  # noqa: E731
    evaluate_diffusion(vectors, of_classes, BY_MEANS, conditions=told, **QUIET)
    with pytest.raises(FileNotFoundError, match=r"expected .*none"):
        evaluate_diffusion(labels, of_classes / "missing", BY_MEANS, **QUIET)


@pytest.mark.filterwarnings("ignore:FrameClassifier. more than")
def test_labels_of_a_folder(of_classes, monkeypatch):
    monkeypatch.setattr(frame_classifier, "_STEPS", 1)
    measured = Evaluation(features=MEANS, labels=True)
    found = evaluate_diffusion(diffusion(), of_classes, measured, **QUIET)
    assert {"constancy", "label_frames_real"} <= found["scores"].keys()
    assert "label_frames" not in found["scores"]
    rows = "\n".join(f"{n}.gif,{n % 3},{n}" for n in range(6))
    (of_classes / "list.csv").write_text(f"path,label,EF\n{rows}")
    table = {"manifest": of_classes / "list.csv"}
    # beside the conditions that the model takes
    conditions = {"cond": ["EF"]}
    model = diffusion(cond_dim=1)
    vectors = evaluate_diffusion(
        model, of_classes, measured, conditions=conditions, **table, **QUIET
    )
    assert "label_frames" not in vectors["scores"]
    hashes = [one["protocol"]["clips"]["labels"] for one in (found, vectors)]
    assert hashes[0] != hashes[1]
    told = lambda path: {"labels": int(path.stem) % 2}  # noqa: E731
    evaluate_diffusion(diffusion(), of_classes, measured, conditions=told, **QUIET)
    conditions = [{"labels": "label"}, "caption"]
    model = diffusion(num_classes=3)
    classes = evaluate_diffusion(
        model, of_classes, measured, conditions={"labels": "label"}, **table, **QUIET
    )
    assert "label_frames" in classes["scores"]


def test_what_the_model_knows_is_the_default(of_classes):
    model = diffusion(num_classes=3)
    model.clip_info = ClipInfo(class_names=("a", "b", "c"), settings={"fit": "stretch", "fps": 4.0})
    found = evaluate_diffusion(model, of_classes, BY_MEANS, **QUIET)["protocol"]["clips"]
    assert (found["fit"], found["fps"]) == ("stretch", 4)
    found = evaluate_diffusion(model, of_classes, BY_MEANS, frame_skip=2, fit="cover", **QUIET)
    clips = found["protocol"]["clips"]
    assert (clips["fit"], clips["fps"], clips["frame_skip"]) == ("cover", None, 2)
    # options for training alone are not
    settings = {"clip_start": "all", "horizontal_flip": True, "pad": "repeat"}
    model.clip_info = ClipInfo(settings={**settings, "conditions": ["label"]})
    found = evaluate_diffusion(model, of_classes, BY_MEANS, **QUIET)["protocol"]
    clips = found["clips"]
    assert (clips["pad"], clips["clip_start"], clips["flips"]) == ("repeat", "first", [False] * 2)
    assert found["samples"]["conditions"] == ["labels"]
    found = evaluate_diffusion(model, of_classes, BY_MEANS, fit_frames="all", **QUIET)
    clips = found["protocol"]["clips"]
    assert (clips["fit_frames"], clips["pad"]) == ("all", "black")
    model.clip_info = ClipInfo(class_names=("a", "c"))
    with pytest.raises(ValueError, match="of the classes that are trained on, a, c, got b; remove"):
        evaluate_diffusion(model, of_classes, BY_MEANS, **QUIET)
    # numbers are columns of a manifest
    rows = [f"{path.name},{i}" for i, path in enumerate(sorted(of_classes.rglob("*.gif")))]
    (of_classes / "list.csv").write_text("\n".join(["path,EF", *rows]))
    model = diffusion(cond_dim=1)
    model.clip_info = ClipInfo(cond_ranges={"EF": (0, 5)})
    table = {"manifest": of_classes / "list.csv"}
    found = evaluate_diffusion(model, of_classes, BY_MEANS, **table, **QUIET)
    assert found["protocol"]["samples"]["conditions"] == ["cond"]


def test_arrays_in_units_of_their_own(tmp_path):
    for number in range(4):
        write_video(torch.rand(5, 3, 8, 8) * 60 + 250, tmp_path / f"{number}.npy")
    model = diffusion(value_range=(250, 310), channels=5)
    with pytest.warns(UserWarning, match="must come from more than 64 videos, got 4"):
        result = evaluate_diffusion(model, tmp_path, **QUIET)
    assert result["scores"]["random_feature_distance"] > 0
    assert result["protocol"]["clips"]["value_range"] == [[250.0] * 5, [310.0] * 5]
