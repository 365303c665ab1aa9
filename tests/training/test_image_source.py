"""Trainers whose clips are trained with images: out of clips, out of a folder, or their own."""

import re

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, text
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

WIDTH = 4


def level(number):
    """The grey value that tells a clip from another."""
    return 10 + 10 * number


@pytest.fixture
def folder(tmp_path):
    """Two classes of five clips, each of one grey value and with a caption."""
    for number in range(10):
        path = tmp_path / "clips" / ("cats", "dogs")[number % 2] / f"{number}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        video_tensor_to_gif(torch.full((1, 5, 8, 8), level(number) / 255), path)
        path.with_suffix(".txt").write_text(f"clip {number}")
    return tmp_path / "clips"


@pytest.fixture
def pictures(tmp_path):
    """Two pictures of cats, one of a horse; the first has a caption."""
    for number, name in enumerate(("cats/1.png", "cats/2.png", "horses/3.jpg")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 200 + 10 * number).save(path)
    (tmp_path / "pictures" / "cats" / "1.txt").write_text("clip 77")
    return tmp_path / "pictures"


@pytest.fixture
def _encoder():
    """Turns `clip 3` into 3, 3, 3, 3."""

    def encode(captions):
        numbers = [float(re.sub(r"\D", "", caption) or -1) for caption in captions]
        return torch.tensor([[number] * WIDTH for number in numbers])

    text.set_text_encoder(encode, name="numbers")
    yield
    text.set_text_encoder()


@pytest.fixture
def make(tmp_path):
    def make(*sources, trainer_class=Trainer, unet=None, diffusion=None, **options):
        torch.manual_seed(0)
        network = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, **(unet or {}))
        model = GaussianDiffusion(
            network, image_size=8, num_frames=3, timesteps=2, **(diffusion or {})
        )
        return trainer_class(
            model,
            *sources,
            **{
                "train_batch_size": 2,
                "gradient_accumulate_every": 1,
                "train_num_steps": 2,
                "save_and_sample_every": 2,
                "num_sample_rows": 1,
                "results_folder": tmp_path / "results",
                "device": "cpu",
                "num_workers": 0,
                "image_frames": 2,
                **options,
            },
        )

    return make


def weights(trainer):
    return torch.cat([tensor.flatten().float() for tensor in trainer.model.state_dict().values()])


def calls_of(trainer):
    """What the network will be called with: the videos and the keywords."""
    calls = []
    trainer.model.denoise_fn.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True
    )
    return calls


# Out of clips


def test_no_image_is_of_its_own_clip_or_of_one_held_out(make, folder):
    trainer = make(folder, held_out=3)
    trained = {int(trainer.ds.paths[index].stem) for index in trainer.order.indices}
    assert len(trained) == 7
    seen = set()
    for _ in range(40):
        videos, told, _ = trainer.next_batch()
        assert videos.shape == (2, 1, 3, 8, 8)
        assert told["images"].shape == (2, 1, 2, 8, 8)
        assert told["images"].dtype == videos.dtype == torch.uint8
        for video, images in zip(videos, told["images"], strict=True):
            own = int(video[0, 0, 0, 0])
            levels = images[0, :, 0, 0].tolist()
            assert len({own, *levels}) == 3
            seen.update(levels)
    assert seen == {level(number) for number in trained}


@pytest.mark.usefixtures("_encoder")
def test_images_have_the_conditions_of_their_clips(make, folder):
    trainer = make(
        folder,
        conditions=["caption", "label"],
        unet={"cond_dim": WIDTH, "num_classes": 2},
        train_num_steps=4,
    )
    calls = calls_of(trainer)
    trainer.train()
    in_training = [call for call in calls if call[1].get("image_frames")]
    assert len(in_training) == 4
    for x, told in in_training:
        assert x.shape == (2, 1, 5, 8, 8)
        assert told["image_frames"] == 2
        images = told["image_conditions"]
        assert images.keys() == {"cond", "labels"}
        assert images["cond"].shape == (2, 2, WIDTH)
        # clip 3 is a dog
        assert torch.equal(images["labels"], images["cond"][..., 0].long() % 2)
        assert not (images["cond"] == told["cond"][:, None]).any()
    # and samples are videos alone
    assert trainer.sample().shape == (1, 1, 3, 8, 8)


def test_states_of_images_differ_in_length(make, folder):
    def encode(captions):
        numbers = [int(re.sub(r"\D", "", caption) or 0) for caption in captions]
        states = torch.ones(len(captions), 10, WIDTH) * torch.tensor(numbers)[:, None, None]
        return states, torch.arange(10) <= torch.tensor(numbers)[:, None]

    text.set_text_encoder(encode)
    unet = {"cond_dim": WIDTH, "num_text_tokens": 2}
    trainer = make(folder, conditions="caption", unet=unet, train_num_steps=4)
    calls = calls_of(trainer)
    trainer.train()
    text.set_text_encoder()
    in_training = [told["image_conditions"] for _, told in calls if told.get("image_frames")]
    assert len(in_training) == 4
    for images in in_training:
        # clip 3 has the state 3, four times
        counts = images["cond_mask"].sum(dim=2)
        assert counts.min() > 0
        assert (
            images["cond"] * images["cond_mask"][..., None] <= counts[..., None, None] - 1
        ).all()
        assert torch.equal(images["cond"][:, :, 0, 0], counts - 1.0)
    assert trainer.sample().shape == (1, 1, 3, 8, 8)


def test_a_dataset_of_the_user(make):
    items = [
        {"video": torch.full((1, 3, 8, 8), i / 10), "cond": torch.full((WIDTH,), i / 10)}
        for i in range(6)
    ]
    trainer = make(dataset=items, unet={"cond_dim": WIDTH})
    for _ in range(10):
        videos, told, _ = trainer.next_batch()
        assert torch.equal(told["images"][:, 0, :, 0, 0], told["image_conditions"]["cond"][..., 0])
        assert not (told["images"] == videos[:, :, :1]).any()
    trainer.train()


def test_batches_that_a_subclass_unpacks(make):
    class Reversed(Trainer):
        def unpack_batch(self, batch):
            return batch[1], {"cond": batch[0]}

    items = [(torch.full((WIDTH,), i / 10), torch.full((1, 3, 8, 8), i / 10)) for i in range(6)]
    trainer = make(dataset=items, trainer_class=Reversed, unet={"cond_dim": WIDTH})
    _, told, _ = trainer.next_batch()
    assert torch.equal(told["images"][:, 0, :, 0, 0], told["image_conditions"]["cond"][..., 0])


# The same again


@pytest.mark.parametrize("source", ["clips", "pictures"])
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(
    make, folder, pictures, tmp_path, source
):
    options = {"image_folder": pictures if source == "pictures" else None}
    whole = make(folder, train_num_steps=4, results_folder=tmp_path / "whole", **options)
    whole.train()
    make(folder, train_num_steps=2, **options).train()
    torch.manual_seed(99)
    second = make(folder, train_num_steps=4, num_workers=2, **options)
    torch.rand(5)
    second.load(-1)
    second.train()
    assert torch.equal(weights(whole), weights(second))
    # images change what is learned
    other = make(folder, train_num_steps=4, image_frames=0, results_folder=tmp_path / "other")
    other.train()
    assert not torch.equal(weights(whole), weights(other))


def test_workers_do_not_matter(make, folder):
    def batches(workers):
        trainer = make(folder, num_workers=workers, horizontal_flip=True)
        batches = [trainer.next_batch() for _ in range(6)]
        return torch.cat([torch.cat((b.videos, b.conditions["images"]), dim=2) for b in batches])

    assert torch.equal(batches(0), batches(2))


def test_clips_are_drawn_as_without_images(make, folder):
    def clips(count):
        trainer = make(folder, image_frames=count, clip_start="random")
        return torch.cat([trainer.next_batch()[0] for _ in range(6)])

    assert torch.equal(clips(0), clips(3))


# Out of a folder


def test_images_out_of_a_folder(make, folder, pictures):
    trainer = make(folder, image_folder=pictures)
    seen = set()
    for _ in range(10):
        _, told, _ = trainer.next_batch()
        seen.update(told["images"][:, 0, :, 0, 0].flatten().tolist())
    assert {200, 210} < seen
    assert len(seen) == 3
    trainer.train()


@pytest.mark.usefixtures("_encoder")
def test_pictures_have_captions_and_the_classes_of_the_clips(make, folder, pictures):
    trainer = make(
        folder,
        image_folder=pictures,
        conditions=["caption", "label"],
        unet={"cond_dim": WIDTH, "num_classes": 2},
    )
    assert "clip 77" in trainer.data.known_captions
    found = set()
    for _ in range(20):
        _, told, _ = trainer.next_batch()
        images, conditions = told["images"], told["image_conditions"]
        for b in range(2):
            for k in range(2):
                without = bool(conditions["null_cond_mask"][b, k])
                vector = None if without else conditions["cond"][b, k, 0].item()
                grey = int(images[b, 0, k, 0, 0])
                found.add((round(grey, -1), int(conditions["labels"][b, k]), vector))
    assert found == {(200, 0, 77.0), (210, 0, None), (220, -1, None)}
    trainer.train()


@pytest.mark.usefixtures("_encoder")
def test_pictures_beside_clips_with_a_column_of_captions(make, folder, pictures):
    (folder / "list.csv").write_text("file,Report\n0,clip 5\n1,clip 6\n")
    options = {"manifest": "list.csv", "conditions": {"cond": "Report"}}
    trainer = make(folder, image_folder=pictures, unet={"cond_dim": WIDTH}, **options)
    assert sorted(trainer.data.known_captions) == ["clip 5", "clip 6", "clip 77"]
    trainer.train()


def test_a_folder_of_pictures_among_the_clips_holds_no_clips(make, folder, pictures):
    inside = pictures.rename(folder / "pictures")
    trainer = make(folder, image_folder=inside)
    assert len(trainer.ds) == 10
    assert len(trainer.data.images.files) == 3


def test_pictures_are_in_the_units_of_the_clips(make, folder, pictures):
    trainer = make(folder, image_folder=pictures, value_range=(0, 255))
    _, told, _ = trainer.next_batch()
    assert told["images"].dtype == torch.float32
    assert told["images"].min() >= 199


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.rand(8, 1, 3, 8, 8))


@pytest.mark.parametrize(
    "source", [{"dataset": Stream()}, {"dataloader": DataLoader(torch.rand(8, 1, 3, 8, 8), 2)}]
)
def test_streams_and_loaders_with_images_out_of_a_folder(make, pictures, source):
    def run():
        trainer = make(image_folder=pictures, **source)
        return [trainer.next_batch()[1]["images"] for _ in range(5)]

    first = run()
    assert first[0].shape == (2, 1, 2, 8, 8)
    assert torch.equal(torch.cat(first), torch.cat(run()))
    assert not torch.equal(first[0], first[1])
    make(image_folder=pictures, **source).train()
    message = (
        "Trainer: image_frames must come from clips that can be read in any order, got a stream "
        "or a loader; pass image_folder"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**source)


# Their own


def with_images(i):
    return {
        "video": torch.full((1, 3, 8, 8), i / 10),
        "labels": i % 2,
        "images": torch.full((1, 4, 8, 8), i / 10),
        "image_conditions": {"labels": torch.tensor([0, 1, -1, i % 2])},
    }


def test_items_may_bring_their_own_images(make):
    items = [with_images(i) for i in range(4)]
    trainer = make(dataset=items, image_frames=0, unet={"num_classes": 2})
    calls = calls_of(trainer)
    trainer.train()
    x, told = calls[0]
    assert x.shape == (2, 1, 7, 8, 8)
    assert torch.equal(told["image_conditions"]["labels"][:, 3], told["labels"])


@pytest.mark.parametrize("kind", ["dataset", "dataloader"])
def test_own_images_and_drawn_ones_are_refused(make, pictures, kind):
    items = [with_images(i) for i in range(4)]
    source = {"dataset": items} if kind == "dataset" else {"dataloader": DataLoader(items, 2)}
    message = (
        "Trainer: image_frames must be 0 if the items have images of their own, got 2; leave it out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**source, image_folder=pictures, unet={"num_classes": 2}).next_batch()


# Mistakes


def test_networks_that_take_no_images(make, folder, tmp_path):
    class Denoiser(torch.nn.Module):
        channels = 1

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, cond=None):
            return x * self.scale

    diffusion = GaussianDiffusion(Denoiser(), image_size=8, num_frames=3, timesteps=2)
    trainer = Trainer(
        diffusion,
        folder,
        image_frames=2,
        results_folder=tmp_path / "r",
        device="cpu",
        num_workers=0,
    )
    with pytest.raises(TypeError, match="image_frames"):
        trainer.train_step()
    with pytest.raises(ValueError, match="image_frames must be 0 in a network with GroupNorm"):
        make(folder, unet={"resnet_groups": 4}).train_step()


def test_numbers_and_folders_that_do_not_go_together(make, folder, pictures):
    with pytest.raises(ValueError, match="image_frames must be at least 0, got -1"):
        make(folder, image_frames=-1)
    with pytest.raises(ValueError, match="with image_folder, image_frames must be at least 1, got"):
        make(folder, image_frames=0, image_folder=pictures)
    with pytest.raises(FileNotFoundError, match=r"expected a folder of videos at .*elsewhere, fou"):
        make(folder, image_folder=pictures / "elsewhere")
