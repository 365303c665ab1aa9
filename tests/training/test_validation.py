"""The loss on clips that are not trained on, which is the same however often it is measured."""

import math
import re
from functools import wraps
from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, text
from video_diffusion_pytorch.data.dataset import Dataset as Clips
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.training import evaluate as validation
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.evaluate import Validation
from video_diffusion_pytorch.training.metrics import read_metrics
from video_diffusion_pytorch.training.splits import files_of, split_by_position, split_off


class Numbers(Dataset):
    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError
        return torch.tensor(index)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def few_draws(monkeypatch):
    """Makes validations quick and rough."""
    monkeypatch.setattr(validation, "_LEAST", 6)


def weights(trainer):
    return torch.cat([t.flatten().float() for t in trainer.model.state_dict().values()])


# which clips


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3, 12, 101])
def test_a_split_has_two_sides(count, fraction):
    left, apart = split_off(Numbers(count), fraction)
    assert sorted(left + apart) == list(range(count))
    assert left
    assert len(apart) == min(max(1, round(count * fraction)), count - 1)
    # it depends on nothing else
    torch.manual_seed(count)
    assert split_off(Numbers(count), fraction) == (left, apart)


def test_all_clips_of_a_file_are_on_one_side(make_trainer, clips):
    for path in clips.iterdir():
        video_tensor_to_gif(torch.rand(1, 7, 8, 8), path)
    trainer = make_trainer(clip_start="all", pad="repeat", validation_split=0.25, seed=1)
    file_of = {i: file for file, found in files_of(trainer.ds).items() for i in found}
    assert len(file_of) == 24
    trained = {file_of[i] for i in trainer.order.indices}
    validated = {file_of[i] for i in trainer.data.validation.indices}
    assert trained.isdisjoint(validated)
    assert (len(trained), len(validated)) == (9, 3)
    assert len(trainer.order.indices) + len(trainer.data.validation.indices) == 24
    # and so in every run on this folder
    other = make_trainer(clip_start="all", pad="repeat", validation_split=0.25, seed=2)
    assert other.order.indices == trainer.order.indices
    assert other.data.validation.indices == trainer.data.validation.indices


def test_clips_held_out_for_samples_are_others(make_trainer):
    trainer = make_trainer(validation_split=0.25, held_out=3)
    assert len(trainer.order.indices) == 6
    assert not {*trainer.order.indices} & {*trainer.data.validation.indices}


def test_the_clips_that_are_used_are_spread_over_all():
    spread = Validation(Numbers(101), range(101), at_most=5, batch_size=2)
    assert spread.indices == [0, 25, 50, 75, 100]
    few = Validation(Numbers(), [3, 4], at_most=5, batch_size=2)
    assert few.indices == [3, 4]


@pytest.mark.parametrize(("clips", "draws"), [(1, 64), (5, 65), (63, 126), (64, 64), (100, 100)])
def test_number_of_draws(clips, draws):
    assert Validation(Numbers(200), range(clips), at_most=200, batch_size=2).draws == draws


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize(("count", "batch_size"), [(5, 4), (100, 7), (64, 64)])
def test_processes_share_the_draws(processes, count, batch_size):
    of_processes = []
    for process in range(processes):
        shared = Validation(
            Numbers(200),
            range(10, 10 + count),
            at_most=200,
            batch_size=batch_size,
            share=(process, processes),
        )
        of_processes.append(list(shared.parts(0)))
    # each has as many batches as the others, or they would wait for each other
    assert len({len(parts) for parts in of_processes}) == 1
    counted = []
    for part in (part for parts in of_processes for part in parts):
        assert part.batch.tolist() == [10 + number % count for number in part.numbers]
        assert len(part.batch) <= batch_size
        counted += part.numbers[: part.counted]
    assert counted == list(range(shared.draws))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_number_of_workers(workers):
    whole = Validation(Numbers(), range(12), at_most=12, batch_size=5)
    numbers = [number for part in whole.parts(workers) for number in part.numbers]
    assert numbers == list(range(72))


def test_as_many_as_are_asked_for():
    whole = Validation(Numbers(), range(4), at_most=4, batch_size=3)
    parts = list(whole.parts(0, draws=5))
    assert [part.numbers for part in parts] == [[0, 1, 2], [3, 4]]
    assert [part.batch.tolist() for part in parts] == [[0, 1, 2], [3, 0]]


# the loss


@pytest.mark.usefixtures("few_draws")
def test_validation_repeats_exactly(make_trainer):
    # crops and flips are the same each time, too
    trainer = make_trainer(validation_split=0.25, horizontal_flip=True, seed=1, step_start_ema=0)
    found = trainer.validate()
    torch.rand(3)
    assert trainer.validate() == found
    assert set(found) == {"validation_loss", "validation_loss_ema_0.995"}
    # whatever the seed, the batch size and the number of workers
    other = make_trainer(
        validation_split=0.25, horizontal_flip=True, seed=2, num_workers=2, train_batch_size=3
    )
    assert other.validate() == {name: pytest.approx(loss, rel=1e-5) for name, loss in found.items()}
    # and another one after a step
    trainer.train_step()
    assert trainer.validate()["validation_loss"] != found["validation_loss"]


@pytest.mark.parametrize("options", [{}, {"frame_skip": 2, "pad": "mask"}], ids=str)
def test_it_is_the_mean_over_the_draws(make_trainer, options):
    trainer = make_trainer(validation_split=0.25, **options)
    measured, losses = trainer.data.validation, []
    model = trainer.model.eval()
    for number in range(measured.draws):
        item = trainer.ds[measured.indices[number % len(measured.indices)]]
        drawn = trainer.clip_draws.fixed([number], 3)
        if options:
            # of 3 frames 2 are left, and the third is padding
            item, drawn["frame_mask"] = item["video"], torch.tensor([[True, True, False]])
        with torch.no_grad():
            losses.append(model(item[None], **drawn).item())
    assert len(losses) == 66
    expected = sum(losses) / len(losses)
    assert trainer.validate()["validation_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("few_draws")
def test_weights_and_each_average_are_reported(make_trainer, results):
    trainer = make_trainer(
        validation_split=0.25, ema_decay=(0.5, 0.9), step_start_ema=0, train_num_steps=4
    )
    logs = []
    trainer.train(log_fn=logs.append)
    names = ["validation_loss", "validation_loss_ema_0.5", "validation_loss_ema_0.9"]
    measured = [log for log in logs if "validation_loss" in log]
    assert [log["step"] for log in measured] == [2, 4]
    for log in measured:
        assert len({log[name] for name in names}) == 3
        assert all(math.isfinite(log[name]) for name in names)
    # each is that of a model with these weights
    last = trainer.validate()
    assert last == {name: measured[-1][name] for name in names}
    trainer.averages.copy(trainer.model)
    assert set(trainer.validate().values()) == {last["validation_loss"]}
    # the lines of the file, and the loss a checkpoint is chosen by: that of the first average
    lines = [line for line in read_metrics(results / "metrics.jsonl") if names[0] in line]
    assert [line["step"] for line in lines[:2]] == [2, 4]
    for line, log in zip(lines, measured, strict=False):
        assert {name: line[name] for name in names} == {name: log[name] for name in names}
        assert len(line["validation_by_noise"]) == 10
    for milestone, log in enumerate(measured, 1):
        losses = read_checkpoint(results / f"model-{milestone}.pt")["losses"]
        assert losses["validation"] == log[names[1]]
    logged = [log["loss"] for log in logs if log["step"] in (3, 4)]
    assert losses["training"] == pytest.approx(sum(logged) / 2)


@pytest.mark.usefixtures("few_draws")
def test_validation_leaves_training_unchanged(make_trainer, tmp_path):
    """The same weights, bit for bit, with and without."""

    class Drawing(Trainer):
        """One that draws from the global generators, too."""

        def compute_loss(self, videos, **kwargs):
            return super().compute_loss(videos, **kwargs) * torch.rand(())

    found = []
    for name, every in (("with", 1), ("without", 100)):
        torch.manual_seed(4)
        trainer = make_trainer(
            Drawing, validation_split=0.25, validate_every=every, results_folder=tmp_path / name
        )
        torch.manual_seed(5)
        logs = []
        trainer.train(log_fn=logs.append)
        assert sum("validation_loss" in log for log in logs) == (4 if every == 1 else 0)
        found.append(weights(trainer))
    assert torch.equal(*found)


@pytest.mark.usefixtures("few_draws")
def test_a_model_that_draws_for_itself_repeats_too(make_trainer, clips, tmp_path):
    class ForwardOfTheReference(GaussianDiffusion):
        def forward(self, x, *args, **kwargs):
            t = torch.randint(0, self.num_timesteps, (len(x),))
            return self.p_losses(x * 2 - 1, t, *args, **kwargs)

    class Floats(Trainer):
        def make_dataset(self, folder, diffusion):
            return [torch.rand(1, 3, 8, 8) for _ in range(8)]

    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    diffusion = ForwardOfTheReference(unet, image_size=8, num_frames=3, timesteps=2)
    trainer = Floats(
        diffusion,
        clips,
        validation_split=0.25,
        train_batch_size=2,
        results_folder=tmp_path,
        device="cpu",
    )
    trainer.train_step()
    before = torch.get_rng_state()
    found = trainer.validate()
    assert trainer.validate() == found
    assert torch.equal(torch.get_rng_state(), before)
    assert all(math.isfinite(loss) for loss in found.values())


@pytest.mark.usefixtures("few_draws")
def test_a_folder_of_its_own(make_trainer, tmp_path):
    folder = tmp_path / "held out"
    folder.mkdir()
    for i in range(3):
        video_tensor_to_gif(torch.rand(1, 3, 8, 8), folder / f"{i}.gif")
    trainer = make_trainer(validation_folder=folder)
    assert len(trainer.order.indices) == 12
    assert [path.parent for path in trainer.data.validation.dataset.paths] == [folder] * 3
    [found] = {*trainer.validate().values()}
    # of the clips there, and of none other
    (folder / "2.gif").unlink()
    assert {*make_trainer(validation_folder=folder).validate().values()} != {found}
    assert {*make_trainer(validation_split=0.25).validate().values()} != {found}


def test_at_most_so_many_clips(make_trainer):
    trainer = make_trainer(validation_split=0.5, validation_clips=2)
    assert len(trainer.data.validation.indices) == 2
    assert len(trainer.order.indices) == 6
    assert trainer.data.validation.draws == 64


# conditions


@pytest.fixture
def recorded(monkeypatch):
    """What networks are told in validations."""
    seen = []
    forward = Unet3D.forward

    # its keywords say what it is told
    @wraps(forward)
    def record(self, x, time, **kwargs):
        if not torch.is_grad_enabled():
            seen.append(kwargs)
        return forward(self, x, time, **kwargs)

    monkeypatch.setattr(Unet3D, "forward", record)
    return seen


def make_told(folder, results, unet, **options):
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, **unet)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2, cond_drop_prob=1.0)
    options = {"validation_split": 0.25, "train_batch_size": 4, "num_workers": 0, **options}
    return Trainer(diffusion, folder, results_folder=results, device="cpu", **options)


def test_classes_are_never_dropped_in_validation(clips, results, recorded):
    for path in [*clips.iterdir()]:
        kind = clips / ("even" if int(path.stem) % 2 == 0 else "odd")
        kind.mkdir(exist_ok=True)
        path.rename(kind / path.name)
    trainer = make_told(clips, results, {"num_classes": 2}, conditions="label")
    found = trainer.validate()
    labels = [int("odd" in str(trainer.ds.paths[i])) for i in trainer.data.validation.indices]
    told = torch.cat([kwargs["labels"] for kwargs in recorded]).tolist()
    # 66 draws, by the weights and by the average
    assert sorted(told) == sorted(2 * 22 * labels)
    assert len({*told}) == 2
    assert not any(kwargs["drop_mask"].any() for kwargs in recorded)
    assert trainer.validate() == found


def test_validation_is_conditioned_on_captions(clips, results, recorded):
    def encode(captions):
        asked.extend(captions)
        return torch.tensor([[float(caption), 1.0, 0.0, 0.0] for caption in captions])

    asked = []
    for path in [*clips.iterdir()]:
        path.with_suffix(".txt").write_text(path.stem)
    text.set_text_encoder(encode, name="numbers of captions")
    try:
        trainer = make_told(clips, results, {"cond_dim": 4}, conditions="caption")
        found = trainer.validate()
        # before the training, and each once
        assert sorted(asked) == sorted(path.stem for path in clips.glob("*.gif"))
        assert trainer.validate() == found
    finally:
        text.set_text_encoder()
    told = {row[0].item() for kwargs in recorded for row in kwargs["cond"]}
    assert told == {float(trainer.ds.paths[i].stem) for i in trainer.data.validation.indices}
    assert not any(kwargs["drop_mask"].any() for kwargs in recorded)


# the best


@pytest.mark.usefixtures("few_draws")
def test_the_checkpoints_of_the_lowest_loss_are_kept(make_trainer, results):
    trainer = make_trainer(
        validation_split=0.25,
        train_num_steps=5,
        save_every=1,
        validate_every=1,
        keep_last=1,
        keep_best=1,
        save_and_sample_every=5,
    )
    losses = {}

    def note(log):
        losses[log["step"]] = log["validation_loss_ema_0.995"]

    trainer.train(log_fn=note)
    best = min(losses, key=losses.get)
    trainer.load("best")
    assert trainer.step == best
    assert trainer.validate()["validation_loss_ema_0.995"] == losses[best]


# mistakes


def raises(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5])
def test_a_share_is_between_none_and_all(fraction):
    message = (
        f"Trainer: validation_split must be between 0 and 1, got {fraction}; give the share of "
        "the files to validate on, such as 0.05, or the name of a manifest's split"
    )
    with raises(message):
        split_off(Numbers(), fraction)


@pytest.mark.parametrize("dataset", [Endless(), None])
def test_a_stream_is_not_split(dataset):
    message = (
        "Trainer: validation_split must go with clips that can be read in any order, got a "
        "stream or a loader; pass a validation_folder or a validation_dataset"
    )
    with raises(message):
        split_off(dataset, 0.5)


def test_one_file_is_not_split():
    message = (
        "Trainer: validation_split must leave files to train on, and others to validate on that "
        "were not trained on before, got 0 of 1 to validate on; give more clips, or start in "
        "another results_folder"
    )
    with raises(message):
        split_off(Numbers(1), 0.5)


@pytest.mark.parametrize(
    ("dataset", "indices", "got"), [(Endless(), [0], "a stream"), (Numbers(), [], "0")]
)
def test_clips_must_be_there_and_in_any_order(dataset, indices, got):
    message = (
        "the clips to validate or evaluate on must be read in any order and be at least 1, got "
        f"{got}; pass a folder, or a dataset with a length"
    )
    with raises(message):
        Validation(dataset, indices, at_most=3, batch_size=2)


def test_a_trainer_without_clips_to_validate_on(make_trainer):
    with raises("Trainer.validate: there must be clips to validate on, got none"):
        make_trainer().validate()


def test_an_empty_folder_is_named(make_trainer, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        make_trainer(validation_folder=tmp_path / "empty")


@pytest.mark.usefixtures("few_draws")
def test_losses_fall_in_training(make_trainer):
    trainer = make_trainer(
        validation_split=0.25, train_num_steps=16, save_and_sample_every=100, validate_every=8
    )
    found = [trainer.validate()["validation_loss"]]
    trainer.train(log_fn=lambda log: found.append(log.get("validation_loss")))
    measured = [loss for loss in found if loss is not None]
    assert len(measured) == 3
    assert all(after < before for before, after in pairwise(measured))


# the sides of a split


def sides(trainer):
    """Names of the files that are trained on and validated on."""
    measured = trainer.data.validation
    trained = {trainer.ds.paths[i].resolve() for i in trainer.order.indices}
    return trained, {measured.dataset.paths[i].resolve() for i in measured.indices}


@pytest.fixture
def rows(tmp_path):
    """Writes a manifest of the clips; gives its path."""

    def write(*rows, head="path,split", name="clips.csv"):
        table = tmp_path / name
        table.write_text("\n".join([head, *rows]))
        return table

    return write


@pytest.fixture
def table(rows):
    splits = ["train"] * 8 + ["val"] * 3 + ["test"]
    return rows(*(f"{i:02}.gif,{split}" for i, split in enumerate(splits)))


@pytest.mark.parametrize(
    "how", ["split", "folder", "manifest", "folder and split", "dataset"]
)  # fmt: skip
def test_the_rows_of_a_manifest(make_trainer, clips, table, how):
    chosen = {
        "split": {"validation_split": "val"},
        "folder": {"validation_folder": clips},
        "manifest": {"validation_manifest": table},
        "folder and split": {"validation_folder": clips, "validation_split": "val"},
        "dataset": {
            "validation_dataset": Clips(clips, 8, 1, 3, exts=None, manifest=table, split="val")
        },
    }[how]
    trained, validated = sides(make_trainer(manifest=table, **chosen))
    assert {path.name for path in validated} == {"08.gif", "09.gif", "10.gif"}
    assert {path.name for path in trained} == {f"{i:02}.gif" for i in range(8)}


def test_a_manifest_of_the_validation_folder_alone(make_trainer, tmp_path, rows):
    folder = tmp_path / "held out"
    folder.mkdir()
    for i in range(4):
        video_tensor_to_gif(torch.rand(1, 3, 8, 8), folder / f"{i}.gif")
    table = rows("1.gif", "3.gif", head="path")
    trainer = make_trainer(validation_folder=folder, validation_manifest=table)
    assert sides(trainer)[1] == {folder / "1.gif", folder / "3.gif"}
    assert len(trainer.order.indices) == 12


def test_rows_that_cannot_be_chosen(make_trainer, clips, table, rows):
    with pytest.raises(ValueError, match=r"'dev', got \['test', 'train', 'val'\]; name the column"):
        make_trainer(manifest=table, validation_split="dev")
    message = r"split by name must be of a folder's manifest, got validation_split='val' and no man"
    with pytest.raises(ValueError, match=message):
        make_trainer(validation_split="val")
    plain = rows("00.gif", "01.gif", head="path", name="plain.csv")
    message = r"plain.csv must list clips of the split 'val', got \[\]; name the column"
    with pytest.raises(ValueError, match=message):
        make_trainer(manifest=plain, validation_split="val")
    other = rows("00.gif,train", "01.gif,held", name="other.csv")
    message = r"must say which rows of the manifest to validate on, got .* 'held', 'train'; choose"
    with pytest.raises(ValueError, match=message):
        make_trainer(manifest=other, validation_folder=clips)


def test_no_file_is_on_both_sides(make_trainer, clips, rows, caplog):
    """Whatever leads to it: parts of one file, links, absolute paths, rows that come twice."""
    (clips / "hard.gif").hardlink_to(clips / "05.gif")
    (clips / "soft.gif").symlink_to("06.gif")
    listed = [f"{i:02}.gif,train,," for i in range(9)]
    listed += ["03.gif,val,0,0.1", f"{clips}/04.gif,val,,", "hard.gif,val,,", "./soft.gif,val,,"]
    table = rows(*listed, *listed, head="path,split,start,end")
    trained, validated = sides(make_trainer(manifest=table, validation_split="val"))
    names = {path.name for path in trained}
    assert names == {f"{i:02}.gif" for i in (0, 1, 2, 7, 8)}
    assert len(validated) == 4
    assert "4 of the 9 files to train on are validated on, such as" in caplog.text
    # by a share, too
    for fraction in (0.2, 0.5, 0.8):
        trained, validated = sides(make_trainer(validation_split=fraction))
        same = [{clips / "hard.gif", clips / "05.gif"}, {clips / "06.gif"}]
        assert trained.isdisjoint(validated)
        assert not any(both & trained and both & validated for both in same)


def test_all_files_on_both_sides_is_an_error(make_trainer, clips, tmp_path):
    message = "on must not be trained on, got 12 of the 12 files .*, such as .*00.gif; pass"
    (tmp_path / "link").symlink_to(clips)
    for folder in (clips, tmp_path / "link", tmp_path):
        with pytest.raises(ValueError, match=message):
            make_trainer(validation_folder=folder)


def test_a_folder_inside_of_a_manifest_is_not_trained_on(make_trainer, clips, rows):
    (clips / "inside").mkdir()
    for name in ("00.gif", "01.gif"):
        (clips / name).rename(clips / "inside" / name)
    table = rows("inside/00.gif", "inside/01.gif", "02.gif", "03.gif", head="path")
    every = rows("00.gif", "01.gif", head="path", name="inside.csv")
    inside = {"validation_folder": clips / "inside", "validation_manifest": every}
    trained, validated = sides(make_trainer(manifest=table, **inside))
    assert {path.name for path in trained} == {"02.gif", "03.gif"}
    assert {path.name for path in validated} == {"00.gif", "01.gif"}


def test_parts_of_one_dataset(tmp_path):
    def trainer(**options):
        unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
        diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2)
        return Trainer(
            diffusion, num_workers=0, device="cpu", results_folder=tmp_path / "r", **options
        )

    whole = [torch.rand(1, 3, 8, 8) for _ in range(6)]
    first, last = Subset(whole, range(4)), Subset(whole, range(3, 6))
    found = trainer(dataset=first, validation_dataset=last)
    assert found.order.indices == [0, 1, 2]
    assert found.data.validation.indices == [0, 1, 2]
    for same in ({"dataset": whole}, {"dataloader": DataLoader(first, 2)}):
        with pytest.raises(ValueError, match="validated on must not be trained on, got"):
            trainer(**same, validation_dataset=whole)
    with pytest.raises(ValueError, match="read in any order and be at least 1, got a stream"):
        trainer(dataset=whole, validation_dataset=Endless())


def test_images_are_not_of_clips_that_are_validated_on(make_trainer, clips):
    trainer = make_trainer(validation_split=0.25, image_frames=1, image_folder=clips)
    pictures = trainer.data.images.dataset.paths
    drawn = {pictures[index].resolve() for [index] in trainer.data.images.files}
    assert len(drawn) == 9
    assert drawn.isdisjoint(sides(trainer)[1])


# the sides of a split in a run that goes on


def change(clips):
    """Half of the files go, and as many come."""
    for i in range(0, 12, 2):
        (clips / f"{i:02}.gif").unlink()
        video_tensor_to_gif(torch.rand(1, 3, 8, 8), clips / f"new-{i}.gif")


def test_files_stay_on_their_side(make_trainer, clips, caplog):
    options = {"validation_split": 0.4, "resume": "auto", "held_out": 1}
    trainer = make_trainer(train_num_steps=2, **options)
    before = sides(trainer)
    everything = {path.resolve() for path in trainer.ds.paths}
    trainer.train()
    assert sides(make_trainer(**options)) == before
    assert "do not compare" not in caplog.text
    change(clips)
    for share in (0.4, 0.6, 0.1):
        trained, validated = sides(make_trainer(**{**options, "validation_split": share}))
        assert validated.isdisjoint(before[0])
        assert validated & everything == {path for path in before[1] if path.exists()}
        assert trained.isdisjoint(before[1])
    assert "losses before and after do not compare" in caplog.text
    trainer = make_trainer(train_num_steps=4, **options)
    middle = sides(trainer)
    trainer.train()
    # and once more, although the names are as at the beginning
    for i in range(0, 12, 2):
        (clips / f"new-{i}.gif").rename(clips / f"{i:02}.gif")
    trained, validated = sides(make_trainer(**options))
    assert validated.isdisjoint(before[0] | middle[0])


def test_the_share_does_not_depend_on_other_files(make_trainer, clips):
    """New files are taken by their own names only."""
    options = {"validation_split": 0.3, "resume": "auto"}
    make_trainer(train_num_steps=2, **options).train()
    found = []
    for first in (0, 40):
        for i in range(first, first + 40):
            video_tensor_to_gif(torch.rand(1, 3, 8, 8), clips / f"later-{i}.gif")
        found.append(sides(make_trainer(**options))[1])
    assert found[0] < found[1]
    assert 10 < len(found[1]) < 45


def test_checkpoints_without_sides(make_trainer, results, caplog):
    """They were split by position: so the run goes on where nothing has changed."""
    options = {"validation_split": 0.25, "resume": "auto"}
    trainer = make_trainer(train_num_steps=2, **options)
    left, apart = split_by_position(trainer.ds, 0.25)
    assert apart != trainer.data.validation.indices
    trainer.train()
    state = read_checkpoint(results / "model-1.pt")
    del state["data"]["files"]
    torch.save(state, results / "model-1.pt")
    again = make_trainer(**options)
    assert (again.order.indices, again.data.validation.indices) == (left, apart)
    assert "may have been trained on" not in caplog.text
    again.train()
    after = make_trainer(**options)
    assert (after.order.indices, after.data.validation.indices) == (left, apart)
    # of other numbers of clips nobody knows
    (trainer.ds.folder / "00.gif").unlink()
    make_trainer(**{**options, "resume": results / "model-1.pt"})
    assert "may have been trained on files that are validated on now" in caplog.text


def test_clips_that_were_trained_on_are_named_as_such(make_trainer, table, caplog):
    make_trainer(manifest=table, validation_split="val", train_num_steps=2).train()
    table.write_text(table.read_text().replace("07.gif,train", "07.gif,val"))
    make_trainer(manifest=table, validation_split="val", resume="auto")
    assert "was trained on 1 files that are validated on now" in caplog.text
    # a share finds new files only, and there are none
    table.write_text("\n".join(["path", *(f"{i:02}.gif" for i in range(7))]))
    with pytest.raises(ValueError, match="that were not trained on before, got 0 of 7 to validate"):
        make_trainer(manifest=table, validation_split=0.2, resume="auto")


def test_no_split_before_is_reported(make_trainer, caplog):
    make_trainer(train_num_steps=2).train()
    make_trainer(validation_split=0.25, resume="auto")
    assert "may have been trained on files that are validated on now" in caplog.text
