"""Where batches come from, and what is told of each clip."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion, text
from video_diffusion_pytorch.cli.info import describe_checkpoint
from video_diffusion_pytorch.data import dataset as clip_files
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.training import data_source as training_data

# how many numbers tell a caption from another
WIDTH = 4


class Clips(Dataset):
    """Clips with items of any kind."""

    def __init__(self, make, count=8):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(torch.rand(1, 3, 8, 8), index)


class Stream(IterableDataset):
    """The same, one after the other."""

    def __init__(self, make, count=8):
        self.clips = Clips(make, count)

    def __iter__(self):
        return (self.clips[index] for index in range(len(self.clips)))


def vector(video, index):
    return {"video": video, "cond": torch.full((WIDTH,), float(index))}


@pytest.fixture
def train(tmp_path):
    """Trains two steps of a small network; gives the trainer and what the network was told."""

    def run(*sources, unet=None, diffusion=None, steps=2, **options):
        torch.manual_seed(0)
        network = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, **(unet or {}))
        model = GaussianDiffusion(
            network, image_size=8, num_frames=3, timesteps=2, **(diffusion or {})
        )
        trainer = Trainer(
            model,
            *sources,
            **{
                "train_batch_size": 2,
                "gradient_accumulate_every": 1,
                "train_num_steps": steps,
                "save_and_sample_every": 2,
                "num_sample_rows": 2,
                "results_folder": tmp_path / "results",
                "device": "cpu",
                "num_workers": 0,
                **options,
            },
        )
        told = []
        network.register_forward_pre_hook(
            lambda module, args, kwargs: told.append(kwargs), with_kwargs=True
        )
        trainer.train()
        assert trainer.step == steps
        return trainer, told

    return run


@pytest.fixture
def folder(tmp_path):
    """Two classes of three clips, each with a caption, a vector for each frame and a field."""
    for index in range(6):
        path = tmp_path / "clips" / ("cats", "dogs")[index % 2] / f"{index}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        video_tensor_to_gif(torch.rand(1, 3, 8, 8), path)
        path.with_suffix(".txt").write_text(f"clip {index}")
    return tmp_path / "clips"


def write_arrays(folder, shape):
    for path in folder.glob("*/*.gif"):
        np.save(path.with_suffix(".npy"), np.full(shape, float(path.stem), np.float32))


@pytest.fixture
def encoder():
    """Turns `clip 3` into 3, 3, 3, 3; remembers what it was asked for."""
    asked = []

    def encode(captions):
        asked.extend(captions)
        numbers = [float(re.sub(r"\D", "", caption) or -1) for caption in captions]
        return torch.tensor([[number] * WIDTH for number in numbers])

    text.set_text_encoder(encode, name="numbers")
    yield asked
    text.set_text_encoder()


# Sources


@pytest.mark.parametrize("kind", [Clips, Stream])
@pytest.mark.parametrize(
    "make",
    [
        vector,
        lambda video, index: (video, torch.full((WIDTH,), float(index))),
        lambda video, index: (video, [float(index)] * WIDTH),
    ],
    ids=["dict", "tuple", "list of numbers"],
)
def test_datasets_of_any_kind(train, kind, make):
    _, told = train(unet={"cond_dim": WIDTH}, dataset=kind(make))
    assert all(call["cond"].shape[1] == WIDTH for call in told)


def test_plain_tensors(train):
    train(dataset=Clips(lambda video, index: video))
    train(dataset=[torch.rand(1, 3, 8, 8) for _ in range(4)])


def test_a_loader(train):
    trainer, _ = train(unet={"cond_dim": WIDTH}, dataloader=DataLoader(Clips(vector), 4))
    assert trainer.ds is None
    assert trainer.order.position == 8
    # the samples have the conditions of the first batch
    assert trainer.data.sample_conditions["cond"][:, 0].tolist() == [0, 1, 2, 3]


def test_a_generator_of_batches_in_a_list(train):
    batches = [(torch.rand(2, 1, 3, 8, 8), torch.tensor([0, 1]))]
    _, told = train(unet={"num_classes": 2}, dataloader=batches)
    assert told[0]["labels"].tolist() == [0, 1]


def test_workers(train):
    train(unet={"cond_dim": WIDTH}, dataset=Clips(vector), num_workers=2)
    train(unet={"cond_dim": WIDTH}, dataset=Stream(vector), num_workers=1)


@pytest.mark.parametrize(
    ("sources", "got"), [({}, "none"), ({"dataset": [1], "dataloader": [2]}, "dataset and datal")]
)
def test_one_source(train, sources, got):
    message = f"one of folder, dataset and dataloader must be given, got {got}.*; choose where"
    with pytest.raises(ValueError, match=message):
        train(**sources)


def test_options_of_clips_need_a_folder(train):
    with pytest.raises(TypeError, match="clip_start must go with a folder of clips, got a datase"):
        train(dataset=Clips(vector), clip_start="all")


def test_unknown_keywords(train, folder):
    with pytest.raises(TypeError, match="got 'clip_stat'; is 'clip_start' meant"):
        train(folder, clip_stat="all")
    with pytest.raises(TypeError, match="got 'train_lrr'; is 'train_lr' meant"):
        train(folder, train_lrr=1)
    with pytest.raises(TypeError, match="got 'qqqq'; leave it out"):
        train(folder, qqqq=1)
    # what the Trainer says by itself
    with pytest.raises(TypeError, match="got 'image_size'"):
        train(folder, image_size=16)


def test_the_first_clip_must_fit(train):
    message = r"clips must be a tensor of shape \(b, 1, 3, 8, 8\), .*, got \(1, 1, 3, 8, 9\); cut"
    with pytest.raises(ValueError, match=message):
        train(dataset=[torch.rand(1, 3, 8, 9)])


# Conditions from files


def test_captions_are_embedded_once(train, folder, encoder):
    options = {"conditions": "caption", "unet": {"cond_dim": WIDTH}, "steps": 6}
    trainer, told = train(folder, **options)
    assert sorted(encoder) == [f"clip {index}" for index in range(6)]
    for call in told[: 2 * 3]:
        assert set(call["cond"].flatten().tolist()) <= set(range(6))
    assert trainer.data.captions.file.parent == folder
    # nor again in another run
    train(folder, **options)
    assert len(encoder) == 6
    lines = (trainer.results_folder / "1.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all(re.fullmatch(r"row \d, column \d: clip \d", line) for line in lines)


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"cond_dim": 3}, r"must have the network's 3 numbers, got 4; build .* with cond_dim=4$"),
        (
            {"use_bert_text_cond": True},
            r"network's 768 numbers, got 4; .* with use_bert_text_cond=False and cond_dim=4$",
        ),
    ],
)
def test_vectors_of_captions_that_the_network_does_not_take(train, folder, unet, message):
    with pytest.raises(ValueError, match=message):
        train(folder, conditions="caption", unet=unet, steps=0)


def test_a_missing_caption_is_the_null_condition(train, folder, encoder):
    for path in folder.glob("*/*.txt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="expected a caption for each of 6 clips"):
        train(folder, conditions="caption", unet={"cond_dim": WIDTH})
    _, told = train(folder, conditions="caption", missing_captions="null", unet={"cond_dim": WIDTH})
    assert told[0]["null_cond_mask"].all()


# Sequences of states

TOKENS = {"cond_dim": WIDTH, "num_text_tokens": 2}


@pytest.fixture
def speller():
    """Turns `clip 3` into as many states as it has letters; remembers what it was asked for."""
    asked = []

    def encode(captions):
        asked.extend(captions)
        longest = max(map(len, captions))
        states = torch.zeros(len(captions), longest, WIDTH)
        mask = torch.zeros(len(captions), longest, dtype=torch.bool)
        for row, caption in enumerate(captions):
            states[row] = float(re.sub(r"\D", "", caption) or -1)
            mask[row, : len(caption)] = True
        return states, mask

    text.set_text_encoder(encode, name="letters")
    yield asked
    text.set_text_encoder()


def test_captions_as_states_are_encoded_once(train, folder, speller):
    lengths = {}
    for path in folder.glob("*/*.txt"):
        path.write_text(f"clip {path.stem}{'!' * int(path.stem)}")
        lengths[float(path.stem)] = len(path.read_text())
    options = {"conditions": "caption", "unet": TOKENS, "steps": 6, "held_out": 2}
    trainer, told = train(folder, **options, validation_split=0.2, sample_cond_scale=2.0)
    assert len(speller) == 6
    for call in told:
        counts = call["cond_mask"].sum(dim=1)
        assert call["cond"].shape[:2] == call["cond_mask"].shape
        for states, there, count in zip(call["cond"], call["cond_mask"], counts, strict=True):
            if there[0]:
                assert lengths[float(states[0, 0])] == count
                assert (states[there] == states[0]).all()
    assert trainer.data.captions.file.parent == folder
    assert len(set(trainer.data.sample_conditions["cond"])) == 4
    # nor again in another run
    train(folder, **options)
    assert len(speller) == 6
    lines = (trainer.results_folder / "1.txt").read_text().splitlines()
    assert all(re.fullmatch(r"row \d, column \d: clip \d!*", line) for line in lines)


def test_missing_captions_have_no_states(train, folder, speller):
    for path in sorted(folder.glob("*/*.txt"))[::2]:
        path.unlink()
    options = {"conditions": "caption", "missing_captions": "null", "held_out": 0}
    _, told = train(folder, **options, unet=TOKENS, steps=4, sample_cond_scale=2.0)
    for call in told:
        missing = call.get("null_cond_mask", torch.zeros(len(call["cond"])).bool())
        # a clip with a caption has the states of its own, which are its number
        assert (call["cond_mask"].any(dim=1) | missing).all()
        assert (call["cond"][call["cond_mask"] & ~missing[:, None]] >= 0).all()
    assert any("null_cond_mask" in call for call in told)


def spelt_out(video, index):
    mask = torch.arange(5) < 1 + index % 5
    return {"video": video, "cond": torch.full((5, WIDTH), float(index)), "cond_mask": mask}


@pytest.mark.parametrize("with_mask", [True, False])
def test_states_of_a_dataset(train, with_mask):
    def make(video, index):
        item = spelt_out(video, index)
        return item if with_mask else {"video": item["video"], "cond": item["cond"]}

    trainer, told = train(unet=TOKENS, dataset=Clips(make), held_out=2)
    assert all(call["cond"].shape[1:] == (5, WIDTH) for call in told)
    assert all(("cond_mask" in call) == with_mask for call in told)
    if with_mask:
        [first, *_] = told
        numbers = first["cond"][:, 0, 0].long()
        assert first["cond_mask"].sum(dim=1).tolist() == (1 + numbers % 5).tolist()
    assert trainer.sample().shape == (4, 1, 3, 8, 8)
    lines = (trainer.results_folder / "1.txt").read_text().splitlines()
    assert lines[0] == "row 1, column 1: cond (5, 4): 0, 0, 0, 0, ..."


def test_states_of_the_users_choice(train):
    chosen = {"cond": torch.ones(1, 3, WIDTH), "cond_mask": torch.ones(1, 3).bool()}
    trainer, _ = train(unet=TOKENS, dataset=Clips(spelt_out), sample_conditions=chosen)
    assert trainer.sample().shape == (4, 1, 3, 8, 8)
    message = "sample_conditions must hold rows of cond, got {'cond_mask':"
    vectors = {"cond": torch.ones(1, WIDTH), "cond_mask": torch.ones(1, 3).bool()}
    with pytest.raises(ValueError, match=message):
        train(unet={"cond_dim": WIDTH}, dataset=Clips(vector), sample_conditions=vectors)
    with pytest.raises(ValueError, match=r"must hold rows of cond, got \['a whale'\]; give"):
        train(unet={"cond_dim": WIDTH}, dataset=Clips(vector), sample_conditions=["a whale"])


def test_a_mask_needs_a_network_of_states(train):
    make = Clips(lambda video, index: {**vector(video, index), "cond_mask": torch.ones(5).bool()})
    with pytest.raises(ValueError, match="the network takes cond, got cond, cond_mask from the"):
        train(unet={"cond_dim": WIDTH}, dataset=make)


def test_a_mask_of_captions_is_the_encoders(train, speller):
    def make(video, index):
        return {"video": video, "caption": "clip", "cond_mask": torch.ones(4).bool()}

    message = r"cond_mask must be left out with captions, whose .* got one of shape \(2, 4\)"
    with pytest.raises(ValueError, match=message):
        train(unet=TOKENS, dataset=Clips(make))


def test_classes(train, folder):
    trainer, told = train(folder, conditions="label", unet={"num_classes": 2})
    assert set(told[0]["labels"].tolist()) <= {0, 1}
    lines = (trainer.results_folder / "1.txt").read_text()
    assert set(re.findall(r": (\w+)", lines)) == {"cats", "dogs"}


def test_other_classes_than_before_are_refused(train, folder):
    train(folder, conditions="label", unet={"num_classes": 2})
    (folder / "cats").rename(folder / "birds")
    trainer, _ = train(
        folder, conditions="label", unet={"num_classes": 2}, results_folder=folder / ".other"
    )
    message = r"classes of .*model-1\.pt, cats, dogs, got birds, dogs; train on the same classes"
    with pytest.raises(ValueError, match=message):
        trainer.load(folder.parent / "results" / "model-1.pt")


def test_vectors(train, folder):
    write_arrays(folder, (WIDTH,))
    _, told = train(folder, conditions="vector", unet={"cond_dim": WIDTH})
    assert told[0]["cond"].shape == (2, WIDTH)


def test_vectors_of_frames(train, folder):
    write_arrays(folder, (3, 5))
    _, told = train(folder, conditions="frame_vectors", unet={"frame_cond_dim": 5})
    assert told[0]["frame_cond"].shape == (2, 3, 5)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 3, 8, 8)])
def test_fields(train, folder, shape):
    write_arrays(folder, shape)
    _, told = train(folder, conditions="field", unet={"cond_channels": 2})
    assert told[0]["cond_video"].shape == (2, *shape)


def test_first_frames_and_captions_together(train, folder, encoder):
    trainer, told = train(
        folder,
        conditions="caption",
        unet={"cond_dim": WIDTH, "cond_channels": 2},
        diffusion={"given_frames": 1},
        sample_cond_scale=2.0,
    )
    assert {"cond", "cond_video"} <= told[0].keys()
    assert trainer.data.sample_conditions["first_frames"].shape == (4, 1, 1, 8, 8)
    assert np.load(trainer.results_folder / "1.npy").shape == (4, 1, 3, 8, 8)


def test_samples_with_a_scale_by_condition(train, folder, encoder):
    options = {
        "conditions": ["caption", "label"],
        "unet": {"cond_dim": WIDTH, "cond_channels": 2, "num_classes": 2},
        "diffusion": {"given_frames": 1},
    }
    scale = {"first_frames": 2.0, "cond": 3.0}
    trainer, _ = train(folder, **options, sample_cond_scale=scale)
    assert np.load(trainer.results_folder / "1.npy").shape == (4, 1, 3, 8, 8)
    message = (
        "Trainer: sample_cond_scale must be a number, or a mapping to finite numbers from "
        "conditions that are given, cond, labels, first_frames, got {'label': 2.0}; correct it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        train(folder, **options, sample_cond_scale={"label": 2.0})


def test_a_function(train, folder):
    _, told = train(
        folder,
        conditions=lambda path: {"cond": torch.full((WIDTH,), float(path.stem))},
        unet={"cond_dim": WIDTH},
    )
    assert told[0]["cond"].shape == (2, WIDTH)


def test_a_condition_that_the_network_does_not_take(train):
    message = "the network takes no condition, got cond from the data; set conditions, change the"
    with pytest.raises(ValueError, match=message):
        train(unet={}, dataset=Clips(vector))


class Noting(Trainer):
    """Notes what each loss was made of."""

    def compute_loss(self, videos, **kwargs):
        losses = super().compute_loss(videos, **kwargs)
        self.__dict__.setdefault("noted", []).append((kwargs, kwargs["noise"], losses))
        return losses


class Padded(Clips):
    """Clips of which the first `index % 3 + 1` of 3 frames are real."""

    def __init__(self):
        super().__init__(lambda video, index: {"video": video, "frame_mask": FIRST[index % 3]})


FIRST = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()


def short_clips(folder):
    for number in range(8):
        video_tensor_to_gif(torch.rand(1, number % 3 + 1, 8, 8), folder / f"{number}.gif")
    return folder


@pytest.mark.parametrize("kind", ["folder", "dataset", "loader"])
def test_padding_is_left_out_of_the_loss(tmp_path, kind):
    torch.manual_seed(0)
    network = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    outputs = []
    network.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    model = GaussianDiffusion(network, image_size=8, num_frames=3, timesteps=2)
    clips = Padded()
    sources = {
        "folder": lambda: {"folder": short_clips(tmp_path), "pad": "mask"},
        "dataset": lambda: {"dataset": clips},
        "loader": lambda: {"dataloader": DataLoader(clips, batch_size=4)},
    }
    trainer = Noting(
        model, **sources[kind](), train_batch_size=4, gradient_accumulate_every=2, device="cpu",
        results_folder=tmp_path / "results", num_workers=0, num_sample_rows=1,
    )  # fmt: skip
    loss = trainer.train_step()
    expected = []
    for (told, noise, losses), output in zip(trainer.noted, outputs, strict=True):
        each = (output - noise).abs().mean(dim=(1, 3, 4))
        real = told["frame_mask"]
        by_hand = torch.stack([row[mask].mean() for row, mask in zip(each, real, strict=True)])
        torch.testing.assert_close(losses.detach(), by_hand)
        expected.append(by_hand)
    # each clip counts as much as any other, however short
    assert loss == pytest.approx(torch.cat(expected).mean().item(), rel=1e-5)
    assert {row.sum().item() for told, _, _ in trainer.noted for row in told["frame_mask"]} == {
        1, 2, 3,
    }  # fmt: skip
    by_noise = trainer.metrics.take(1, 0.0, lambda sums: sums)["loss_by_noise"]
    assert any(by_noise)


def test_a_mask_that_does_not_fit_is_refused_before_the_first_step(train):
    def item(video, index):
        return {"video": video, "frame_mask": torch.ones(2, dtype=torch.bool)}

    message = r"frame_mask must be boolean .* = \(1, 3\), got torch.bool of shape \(1, 2\)"
    with pytest.raises(ValueError, match=message):
        train(dataset=Clips(item))


def test_images_beside_padded_clips(train, tmp_path):
    short_clips(tmp_path)
    trainer, told = train(tmp_path, pad="mask", image_frames=2, train_batch_size=4)
    assert told[0]["image_frames"] == 2
    assert trainer.losses["training"] > 0


def test_what_is_cut_away_is_reported_once_and_draws_nothing(train, tmp_path, caplog, monkeypatch):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.zeros((1, 9, 8, 24), np.uint8))

    def read(path):
        np.random.rand()
        torch.rand(1)
        return np.load(path)

    def drawn_after_training():
        np.random.seed(0)
        trainer, _ = train(tmp_path, exts="npy", read_fn=read, seed=0)
        return trainer, np.random.rand(), torch.rand(1).item()

    trainer, *after = drawn_after_training()
    said = [message for message in caplog.messages if "%" in message]
    assert [re.split("[,;]", message)[0] for message in said] == [
        "67 % of each frame is cropped",
        "67 % of all frames of the files are never seen",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(training_data, "report_clips", lambda clips: None)
        assert drawn_after_training()[1:] == (*after,)
    # a dataset of the user's own is taken as it is
    caplog.clear()
    train(dataset=trainer.ds)
    assert not any("%" in message for message in caplog.messages)


def test_a_condition_that_nobody_gives(train, folder):
    message = "the network takes cond, labels, got none from the data; set conditions"
    with pytest.raises(ValueError, match=message):
        train(folder, unet={"num_classes": 2, "cond_dim": WIDTH})


# Conditions of the samples


def test_held_out_clips_give_the_samples_conditions(train):
    trainer, told = train(unet={"cond_dim": WIDTH}, dataset=Clips(vector), held_out=3, steps=8)
    *apart, other = trainer.data.sample_conditions["cond"][:, 0].tolist()
    assert apart == [0, 4, 7] or apart == [0, 3, 7]
    # a trained one fills up
    assert other == 1
    trained = {n for call in told if len(call["cond"]) == 2 for n in call["cond"][:, 0].tolist()}
    assert trained & set(apart) == set()


def test_where_none_is_held_out_the_conditions_are_spread(train):
    trainer, _ = train(unet={"cond_dim": WIDTH}, dataset=Clips(vector, 13), held_out=0)
    assert trainer.data.sample_conditions["cond"][:, 0].tolist() == [0, 3, 6, 9]


def test_nothing_is_left_to_train_on(train):
    with pytest.raises(ValueError, match="held_out must leave clips to train on, got 8 of 8; hold"):
        train(unet={"cond_dim": WIDTH}, dataset=Clips(vector), held_out=8)


def test_by_default_a_twentieth_is_held_out(train):
    trainer, _ = train(unet={"cond_dim": WIDTH}, dataset=Clips(vector, 41))
    assert len(trainer.order.indices) == 39
    trainer, _ = train(dataset=Clips(lambda video, index: video, 41))
    assert len(trainer.order.indices) == 41


def test_conditions_of_the_users_choice(train):
    trainer, _ = train(
        unet={"cond_dim": WIDTH},
        dataset=Clips(vector),
        sample_conditions={"cond": torch.ones(1, WIDTH)},
    )
    assert (trainer.results_folder / "1.txt").read_text().splitlines()[3] == (
        "row 2, column 2: cond (4,): 1, 1, 1, 1"
    )


def test_conditions_and_noise_are_the_same_at_every_milestone(train):
    trainer, _ = train(unet={"cond_dim": WIDTH}, dataset=Clips(vector))
    assert torch.equal(trainer.sample(), trainer.sample())


def test_conditions_are_those_of_the_first_run_after_a_resume(train, folder):
    options = {"diffusion": {"given_frames": 1}, "unet": {"cond_channels": 2}}
    for path in folder.glob("*/*.gif"):
        video_tensor_to_gif(torch.rand(1, 30, 8, 8), path)
    first, _ = train(folder, clip_start="random", **options)
    torch.rand(3)
    second, _ = train(folder, clip_start="random", results_folder=folder / ".other", **options)
    frames = [trainer.data.sample_conditions["first_frames"] for trainer in (first, second)]
    second.order.seed += 1  # as if it had been made with another seed
    second.data.restart()
    assert not torch.equal(second.data.sample_conditions["first_frames"], frames[0])
    second.load(first.results_folder / "model-1.pt")
    assert torch.equal(second.data.sample_conditions["first_frames"], frames[0])
    assert torch.equal(first.sample(), second.sample())


def test_a_loader_gives_no_conditions_before_its_first_batch(train):
    trainer, _ = train(unet={"cond_dim": WIDTH}, dataloader=DataLoader(Clips(vector), 4))
    trainer.data._sample_conditions = None
    with pytest.raises(ValueError, match="must be conditioned on cond, got none; train first"):
        trainer.sample()


def test_another_number_of_clips_after_a_resume(train, caplog):
    train(dataset=Clips(lambda video, index: video, 8))
    other, _ = train(dataset=Clips(lambda video, index: video, 9), steps=4)
    with caplog.at_level("WARNING", "video_diffusion_pytorch"):
        other.load(1)
        other.load(2)
    assert caplog.text.count("clips, and now there are 9") == 0
    (other.results_folder / "model-1.pt").unlink()
    train(dataset=Clips(lambda video, index: video, 8))
    with caplog.at_level("WARNING", "video_diffusion_pytorch"):
        other.load(1)
    assert "was trained on 8 clips, and now there are 9" in caplog.text


def test_an_empty_dataset(train):
    with pytest.raises(ValueError, match="the dataset must hold clips, got none; check where it"):
        train(dataset=[])


def test_clips_in_double_precision(train):
    train(dataset=Clips(lambda video, index: video.double()))


# Units


def fields(folder, scale=5.0):
    folder.mkdir(exist_ok=True)
    for index in range(3):
        values = np.random.default_rng(index).uniform(-scale, scale, (1, 4, 8, 8))
        values[0, 0, 0, :2] = -scale, scale
        np.save(folder / f"{index}.npy", values)
    return folder


@pytest.mark.parametrize("value_range", ["fit", (-5, 5)])
def test_samples_are_in_the_units_of_the_clips(train, tmp_path, value_range):
    trainer, _ = train(fields(tmp_path / "fields"), value_range=value_range)
    assert trainer.model.config["value_range"] == ((-5.0,), (5.0,))
    samples = trainer.sample()
    assert samples.min() >= -5
    assert samples.max() <= 5
    assert samples.max() > 1
    # another scale is refused
    options = {"value_range": (-7, 7), "results_folder": tmp_path / "other"}
    other, _ = train(fields(tmp_path / "larger", 7.0), **options)
    with pytest.raises(ValueError, match=r"must have the model's value_range, .*7.0.*, got .*5.0"):
        other.load(tmp_path / "results" / "model-1.pt")


def test_a_range_that_was_fitted_stays_that_of_the_weights(train, tmp_path):
    train(fields(tmp_path / "fields"), value_range="fit")
    # more clips have another one
    folder = fields(tmp_path / "larger", 7.0)
    other, _ = train(folder, value_range="fit", results_folder=tmp_path / "other")
    other.load(tmp_path / "results" / "model-1.pt")
    assert other.model.config["value_range"] == ((-5.0,), (5.0,))
    assert other.ema_model.config["value_range"] == ((-5.0,), (5.0,))
    # limits are no standard deviations
    third, _ = train(folder, value_range="standardize", results_folder=tmp_path / "third")
    with pytest.raises(ValueError, match=r"must have the model's value_range, .*got .*5.0"):
        third.load(tmp_path / "results" / "model-1.pt")


def deviation_of(folder):
    values = np.stack([np.load(path)[:, :3] for path in sorted(folder.glob("*.npy"))])
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) * 2 - 1).std()


def test_sigma_data_is_fitted_with_the_range(train, tmp_path):
    folder = fields(tmp_path / "fields")
    options = {"value_range": "fit", "diffusion": {"objective": "edm"}}
    trainer, _ = train(folder, **options)
    found = trainer.model.config["sigma_data"]
    assert found == pytest.approx(deviation_of(folder), rel=1e-3)
    assert found != 0.5
    for model in (trainer.model, trainer.ema_model):
        assert model.sigma_data.item() == pytest.approx(found)
    file = tmp_path / "results" / "model-1.pt"
    assert load_diffusion(file).config["sigma_data"] == found
    assert any(f", sigma_data {found}" in line for line in describe_checkpoint(file))
    # items of a dataset, too, and a dataset that has fitted them itself
    items = [torch.from_numpy(np.load(path)[:, :3]).float() for path in sorted(folder.glob("*"))]
    own = clip_files.Dataset(
        folder, 8, channels=1, num_frames=3, exts=["npy"], axes="cfhw", value_range="fit"
    )
    for dataset, more in ((items, options), (own, {**options, "value_range": None})):
        more = {name: value for name, value in more.items() if value is not None}
        other, _ = train(dataset=dataset, results_folder=tmp_path / "other", **more)
        assert other.model.config["sigma_data"] == found
    # more clips in the same range have another, but a run goes on with its own
    np.save(folder / "more.npy", np.full((1, 4, 8, 8), 5.0))
    other, _ = train(folder, results_folder=tmp_path / "larger", **options)
    assert other.model.config["sigma_data"] != found
    other.load(file)
    for model in (other.model, other.ema_model):
        assert model.sigma_data.item() == pytest.approx(found)
        assert model.config["sigma_data"] == found
    # new runs on its weights choose
    message = "the model's sigma_data, .*; or keep its own with init_without=.'sigma_data"
    more = {**options, "results_folder": tmp_path / "new", "init_from": file}
    with pytest.raises(ValueError, match=message):
        train(folder, **more)
    other, _ = train(folder, init_without="sigma_data*", **more)
    assert other.model.config["sigma_data"] != found


def test_a_sigma_data_that_is_given_stays(train, tmp_path):
    folder = fields(tmp_path / "fields")
    trainer, _ = train(
        folder, value_range=(-5, 5), diffusion={"objective": "edm", "sigma_data": 0.4}
    )
    assert trainer.model.config["sigma_data"] == 0.4
    trainer, _ = train(folder, value_range="fit", results_folder=tmp_path / "other")
    assert trainer.model.config["sigma_data"] == 0.5
    assert trainer.model.sigma_data is None


def test_units_of_model_and_clips_must_agree(train, tmp_path):
    folder = fields(tmp_path / "fields")
    train(folder, value_range=(-5, 5), diffusion={"value_range": (-5, 5)})
    message = r"clips must be in the model's value_range, .*6.0.*, got .*5.0.*; give one of them"
    with pytest.raises(ValueError, match=message):
        train(folder, value_range=(-5, 5), diffusion={"value_range": (-6, 6)})


def test_clips_without_units_are_refused(train, tmp_path):
    message = r"clips must be in \[0, 1\], got values from -5 to 5 in .*0.npy; pass value_range='f"
    with pytest.raises(ValueError, match=message):
        train(fields(tmp_path / "fields"))


# How long it waits


def test_the_share_of_waiting_is_logged(train, tmp_path):
    trainer, _ = train(dataset=[torch.rand(1, 3, 8, 8)] * 4)
    trainer.train_num_steps += 3
    logs = []
    trainer.train(log_fn=logs.append)
    assert all(0 < log["data_wait"] < 1 for log in logs)


# what the items of a dataset are


def array(video, index):
    return video.numpy()


@pytest.mark.parametrize("source", ["dataset", "stream", "loader"])
@pytest.mark.parametrize("wrap", [lambda clip: clip, lambda clip: {"video": clip}, lambda c: (c,)])
def test_masked_values_are_refused(train, source, wrap):
    def item(video, index):
        values = np.ma.masked_greater(video.numpy(), 2)
        values[0, 0, 0, 0] = np.ma.masked if index in masked else 0.5
        return wrap(values)

    def given():
        clips = Clips(item)
        if source == "loader":
            return {"dataloader": DataLoader(clips, 2)}
        return {"dataset": clips if source == "dataset" else Stream(item)}

    masked = {3}
    where = "item 3" if source == "dataset" else "an item"
    message = f"a number for each value, got 1 masked ones of 192 in {where}.*; fill them, as by"
    with pytest.raises(ValueError, match=message):
        train(**given(), steps=8)
    # a mask that hides nothing is none
    masked = {}
    train(**given(), steps=8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.astype(object), TypeError, "can't convert np.ndarray of type numpy.object_"),
        (
            lambda a: a.astype("M8[s]"),
            TypeError,
            "can't convert np.ndarray of type numpy.datetime6",
        ),
        (lambda a: Image.new("L", (8, 8)), TypeError, r"must contain tensors.*PIL.Image.Image"),
        (lambda a: [Image.new("L", (8, 8))] * 3, TypeError, r"must contain tensors.*PIL.Image"),
        (lambda a: a.tolist(), TypeError, "got list for the clips"),
        (
            lambda a: None,
            TypeError,
            "a batch must be a tensor, a tuple or a dict, got|got NoneType",
        ),
        (lambda a: a + 1j, ValueError, r"floating-point or uint8, got torch.complex.*; convert"),
        (lambda a: a.astype("i8"), ValueError, r"floating-point or uint8, got torch.int64; conver"),
        (lambda a: a.astype("u2"), ValueError, r"floating-point or uint8, got torch.int64; conver"),
        (lambda a: a > 0.5, ValueError, r"floating-point or uint8, got torch.bool; convert"),
    ],
)
def test_clips_that_are_no_numbers(train, change, error, message):
    with pytest.raises(error, match=message):
        train(dataset=Clips(lambda video, index: change(video.numpy())))


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", ">f8"])
def test_arrays_of_any_float_train_alike(train, kind):
    """Of any byte order and strides, and those that may not be written to."""

    def plain(video, index):
        values = np.random.default_rng(index).integers(0, 256, (1, 3, 8, 8)) / 256
        return torch.tensor(values).float()

    def strange(video, index):
        values = plain(video, index).numpy()[..., ::-1].astype(kind)[..., ::-1]
        values.flags.writeable = False
        return values

    found = []
    for item in (plain, strange):
        trainer, _ = train(dataset=Clips(item), seed=1)
        found.append([value.clone() for value in trainer.model.parameters()])
    assert all(map(torch.equal, *found))


def test_types_are_not_mixed_in_a_batch(train):
    def item(video, index):
        return (video * 255).long() if index == 3 else video

    with pytest.raises(
        ValueError, match=r"one type of numbers, got torch.float32, torch.int64; co"
    ):
        train(dataset=Clips(item), steps=8)


# their units


@pytest.mark.parametrize("source", ["dataset", "stream", "loader"])
def test_units_far_outside_are_refused_before_the_first_step(train, source):
    def item(video, index):
        return video * 50 + 101_325

    given = {
        "dataset": {"dataset": Clips(item)},
        "stream": {"dataset": Stream(item)},
        "loader": {"dataloader": DataLoader(Clips(item), 2)},
    }[source]
    where = "the first item" if source == "dataset" else "the first batch"
    message = rf"clips must be in \[0, 1\], got values from 1.01e\+05 to .* in {where}; pass value"
    with pytest.raises(ValueError, match=message):
        train(**given)
    # where a range says what they are
    train(**given, diffusion={"value_range": (101_000, 102_000)})


def test_the_first_item_of_a_stream_is_trained_on(tmp_path):
    """It is looked at, and not lost."""

    class Once(IterableDataset):
        def __iter__(self):
            yield from items

    values = [i / 10 for i in range(8)]
    items = iter([torch.full((1, 3, 8, 8), value) for value in values])
    seen = []

    class Watching(Trainer):
        def compute_loss(self, videos, **told):
            seen.extend(videos[:, 0, 0, 0, 0].tolist())
            return super().compute_loss(videos, **told)

    network = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    model = GaussianDiffusion(network, image_size=8, num_frames=3, timesteps=2)
    options = {"train_batch_size": 2, "gradient_accumulate_every": 1, "num_sample_rows": 1}
    options |= {"results_folder": tmp_path, "device": "cpu", "train_num_steps": 4}
    Watching(model, dataset=Once(), **options).train()
    assert seen == pytest.approx(values)


def test_the_range_of_a_dataset_is_found(train):
    def item(video, index):
        if index == 2:
            raise UnreadableVideoError("cannot read it")
        return video * 0 + torch.linspace(-index, 10.0 * index, 8)

    trainer, _ = train(dataset=Clips(item, 20), value_range="fit")
    assert trainer.model.config["value_range"] == ((-19.0,), (190.0,))
    trainer, _ = train(dataset=Clips(item, 20), value_range=(-20, 200))
    assert trainer.model.config["value_range"] == ((-20.0,), (200.0,))


def test_ranges_of_a_dataset_that_cannot_be_found(train):
    with pytest.raises(ValueError, match=r"with a dataset that has a length, got a Stream; give"):
        train(dataset=Stream(array), value_range="fit")
    integers = Clips(lambda video, index: torch.zeros(1, 3, 8, 8, dtype=torch.uint16))
    with pytest.raises(ValueError, match=r"Trainer: clips must be .* or uint8, got torch\.uint16"):
        train(dataset=integers, value_range="fit")
    nan = Clips(lambda video, index: video / (index != 3))
    with pytest.raises(
        ValueError, match="must be finite, got NaN or infinite values in item 3; rep"
    ):
        train(dataset=nan, value_range="fit")
    constant = Clips(lambda video, index: torch.ones(1, 3, 8, 8))
    with pytest.raises(ValueError, match="must find values that differ in each channel, got"):
        train(dataset=constant, value_range="fit")
    with pytest.raises(
        TypeError, match="value_range must go with a folder of clips, got a dataload"
    ):
        train(dataloader=DataLoader(Clips(array), 2), value_range=(0, 1))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_that_read_the_same_clips_of_a_stream_are_named(train, caplog, num_workers):
    stream = Stream(lambda video, index: torch.full_like(video, index / 8))
    train(dataset=stream, num_workers=num_workers)
    assert ("the first two batches are equal" in caplog.text) == (num_workers > 1)


def test_workers_that_divide_a_stream_are_not_named(train, caplog):
    class Divided(Stream):
        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            return (self.clips[i] for i in range(info.id, len(self.clips), info.num_workers))

    train(dataset=Divided(lambda video, index: torch.full_like(video, index / 8)), num_workers=2)
    assert "the first two batches" not in caplog.text


def test_a_folder_is_a_path(train):
    with pytest.raises(TypeError, match="the path of a folder, got a Clips; pass clips as dataset"):
        train(Clips(lambda video, index: video))
