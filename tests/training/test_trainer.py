import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.video_file import UnreadableVideoError, gif_to_tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def weights(trainer):
    tensors = [*trainer.model.state_dict().values(), *trainer.ema_model.state_dict().values()]
    return torch.cat([tensor.flatten().float() for tensor in tensors])


def test_training_lowers_the_loss_and_writes_checkpoints_and_samples(make_trainer, tmp_path):
    logs = []
    trainer = make_trainer(train_num_steps=40, save_and_sample_every=20)
    trainer.train(log_fn=logs.append)
    assert [log["step"] for log in logs] == list(range(1, 41))
    assert all(log["lr"] == 1e-2 for log in logs)
    assert sum(log["loss"] for log in logs[-8:]) < sum(log["loss"] for log in logs[:8])
    assert [log["sample"] for log in logs if "sample" in log] == [
        str(tmp_path / "results" / f"{milestone}.gif") for milestone in (1, 2)
    ]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "1.gif",
        "1.npy",
        "2.gif",
        "2.npy",
        "metrics.jsonl",
        "model-1.pt",
        "model-2.pt",
    ]
    # two rows and columns of 8 pixels with a frame of 2 around each
    assert gif_to_tensor(tmp_path / "results" / "2.gif", channels=1).shape == (1, 3, 24, 24)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(make_trainer, tmp_path, stop):
    whole = make_trainer(train_num_steps=6, results_folder=tmp_path / "whole")
    whole.train(prob_focus_present=0.5)

    first = make_trainer(train_num_steps=stop)
    first.train(prob_focus_present=0.5)
    torch.manual_seed(99)
    second = make_trainer(train_num_steps=6)
    torch.rand(5)
    second.load(-1)
    assert second.step == stop
    second.train(prob_focus_present=0.5)
    assert torch.equal(weights(whole), weights(second))
    assert torch.equal(weights(whole), weights(whole))
    assert not torch.equal(weights(whole), weights(first))


def test_an_interrupted_run_keeps_its_checkpoint_and_continues(make_trainer, tmp_path):
    whole = make_trainer(train_num_steps=6, results_folder=tmp_path / "whole")
    whole.train()

    def interrupt(log):
        if log["step"] == 3:
            raise KeyboardInterrupt

    trainer = make_trainer(train_num_steps=6)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(log_fn=interrupt)
    resumed = make_trainer(train_num_steps=6)
    resumed.load(-1)
    resumed.train()
    assert torch.equal(weights(whole), weights(resumed))
    # in a notebook, the trainer that was interrupted goes on by itself
    trainer.train()
    assert trainer.step == 6


def test_an_interrupt_while_reading_loses_no_step(make_trainer):
    class Interrupted(Trainer):
        reads = 0

        def make_dataset(self, *args):
            dataset = super().make_dataset(*args)
            read = dataset.transform

            def transform(frame):
                Interrupted.reads += 1
                if Interrupted.reads == 30:
                    raise KeyboardInterrupt
                return read(frame)

            dataset.transform = transform
            return dataset

    trainer = make_trainer(Interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    before = trainer.step
    assert 0 < before < 4
    trainer.train()
    assert trainer.step == 4


def test_an_interrupt_while_writing_keeps_the_old_file(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(train_num_steps=2)
    trainer.train()
    before = (tmp_path / "results" / "model-1.pt").read_bytes()

    def half_written(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        trainer.save(1)
    assert (tmp_path / "results" / "model-1.pt").read_bytes() == before
    assert [path.name for path in (tmp_path / "results").glob(".*")] == []


def test_gradients_are_those_of_the_whole_batch(make_trainer, monkeypatch):
    """Four micro-batches of two give the step that one batch of eight gives."""

    class FixedNoise(Trainer):
        def compute_loss(self, videos, **kwargs):
            t = torch.zeros(len(videos), dtype=torch.long)
            return self.model.p_losses(videos * 2 - 1, t, noise=videos)

    small = make_trainer(FixedNoise, gradient_accumulate_every=4)
    large = make_trainer(FixedNoise, gradient_accumulate_every=1, train_batch_size=8)
    losses = [trainer.train_step() for trainer in (small, large)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    gradients = [
        torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        for trainer in (small, large)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_the_average_starts_as_a_copy_and_then_lags(make_trainer):
    trainer = make_trainer(train_num_steps=8, step_start_ema=3, ema_decay=0.9)
    expected = None
    for step in range(8):
        trainer.train_step()
        model = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        expected = model if step < 3 else 0.9 * expected + 0.1 * model
        average = torch.cat([p.flatten() for p in trainer.ema_model.parameters()])
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)


def test_update_ema_every_leaves_out_steps(make_trainer):
    trainer = make_trainer(update_ema_every=3, step_start_ema=0)
    trainer.train_step()
    average = torch.cat([p.flatten() for p in trainer.ema_model.parameters()])
    for _ in range(2):
        trainer.train_step()
        now = torch.cat([p.flatten() for p in trainer.ema_model.parameters()])
        assert torch.equal(now, average)
    trainer.train_step()
    now = torch.cat([p.flatten() for p in trainer.ema_model.parameters()])
    assert not torch.equal(now, average)


class Conditional(torch.utils.data.Dataset):
    """Clips with their own number as the condition, as dicts or tuples."""

    def __init__(self, as_dict):
        self.as_dict = as_dict

    def __len__(self):
        return 5

    def __getitem__(self, i):
        video, cond = torch.full((1, 3, 8, 8), i / 5), torch.full((4,), float(i))
        return {"video": video, "cond": cond} if self.as_dict else (video, cond)


@pytest.mark.parametrize("as_dict", [True, False])
def test_conditions_of_real_clips_reach_the_loss_and_the_samples(make_trainer, as_dict):
    class ConditionalTrainer(Trainer):
        def make_dataset(self, folder, diffusion):
            return Conditional(as_dict)

    trainer = make_trainer(ConditionalTrainer, cond_dim=4, train_num_steps=2)
    seen = []
    trainer.ema_model.sample = lambda cond, cond_scale, batch_size, progress: (
        seen.append(cond),
        torch.rand(batch_size, 1, 3, 8, 8),
    )[1]
    trainer.train()
    assert trainer.model.denoise_fn.null_cond_emb.grad is not None
    conds = torch.cat(seen)
    assert conds.shape == (4, 4)
    assert set(conds[:, 0].tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_focus_on_the_present_reaches_the_network(make_trainer):
    trainer = make_trainer(train_num_steps=1, save_and_sample_every=100)
    seen = []
    trainer.model.denoise_fn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    mask = torch.tensor([True, False])
    trainer.train(prob_focus_present=0.25, focus_present_mask=mask)
    assert seen[0]["prob_focus_present"] == 0.25
    assert torch.equal(seen[0]["focus_present_mask"], mask)


def test_broken_files_are_skipped_and_named_once(make_trainer, clips, caplog):
    (clips / "05.gif").write_bytes((clips / "05.gif").read_bytes()[:60])
    trainer = make_trainer(train_num_steps=8, save_and_sample_every=100)
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        trainer.train()
    assert [record for record in caplog.records if "05.gif" in record.getMessage()]
    assert len(caplog.records) == 1


def test_too_many_broken_files_end_the_training(make_trainer, clips):
    for name in ("03", "04", "05"):
        (clips / f"{name}.gif").write_bytes(b"GIF89a")
    with pytest.raises(UnreadableVideoError, match="a tenth of the 12 files"):
        make_trainer(train_num_steps=12, save_and_sample_every=100).train()


def test_clips_that_are_no_pictures_train_and_are_shown(make_trainer, tmp_path):
    class Fields(Trainer):
        def make_dataset(self, folder, diffusion):
            return [torch.randn(2, 3, 8, 12) * 40 for _ in range(4)]

    unet = Unet3D(dim=4, dim_mults=(1,), channels=2, attn_heads=1)
    diffusion = GaussianDiffusion(
        unet, image_size=(8, 12), num_frames=3, timesteps=2, auto_normalize=False
    )
    trainer = Fields(
        diffusion,
        tmp_path,
        train_batch_size=2,
        train_num_steps=1,
        save_and_sample_every=1,
        num_sample_rows=1,
        results_folder=tmp_path / "fields",
        device="cpu",
    )
    trainer.train()
    with Image.open(tmp_path / "fields" / "1.gif") as gif:
        assert gif.size == (24 + 1 + 4, 8 + 4)  # two channels, a line between, and the frame


def test_amp_on_a_cpu_is_bfloat16_and_trains(make_trainer):
    trainer = make_trainer(amp=True, train_num_steps=2, max_grad_norm=0.5)
    assert trainer.accelerator.mixed_precision == "bf16"
    assert trainer.scaler is None
    dtypes = []
    trainer.model.denoise_fn.init_conv.register_forward_hook(
        lambda module, args, output: dtypes.append(output.dtype)
    )
    trainer.train()
    # the samples are drawn in full precision, the losses in half
    assert torch.bfloat16 in dtypes
    # and a second trainer of the process may be in another precision
    assert make_trainer(amp=False).accelerator.mixed_precision == "no"


def test_max_grad_norm_clips_gradients(make_trainer):
    trainer = make_trainer(max_grad_norm=1e-3)
    trainer.train_step()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    assert torch.cat(gradients).norm() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("version", ["0.7.0", "0.6.3"])
def test_the_references_training_files_load(version, tmp_path, clips, caplog):
    expected = torch.load(GOLDEN / f"trainer_{version}.pt", weights_only=True)
    groups = 8 if version == "0.6.3" else None
    unet = Unet3D(**expected["unet"], resnet_groups=groups)
    diffusion = GaussianDiffusion(unet, **expected["diffusion"])
    trainer = Trainer(diffusion, clips, results_folder=tmp_path, device="cpu")
    shutil.copy(GOLDEN / f"reference_results_{version}" / "model-2.pt", tmp_path)
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        trainer.load(expected["milestone"])
    assert "holds no optimizer state" in caplog.text
    assert trainer.step == 4
    with torch.no_grad():
        output = trainer.ema_model.denoise_fn(expected["x"], expected["t"])
    largest = expected["ema_output"].abs().max().item()
    torch.testing.assert_close(output, expected["ema_output"], rtol=0, atol=1e-5 * largest)
    torch.manual_seed(5)
    sample = trainer.ema_model.sample(batch_size=2, progress=False)
    torch.testing.assert_close(sample, expected["ema_sample_seed_5_batch_2"], rtol=0, atol=1e-4)


def test_load_finds_numbers_fractions_and_paths(make_trainer, tmp_path):
    trainer = make_trainer()
    for step, milestone in ((1, 3), (2, 12), (3, 100.1)):
        trainer.step = step
        trainer.save(milestone)
    for wanted, step in ((3, 1), (12, 2), (100.1, 3), (-1, 3)):
        trainer.load(wanted, map_location="cpu")
        assert trainer.step == step
    trainer.load(tmp_path / "results" / "model-12.pt")
    assert trainer.step == 2
    trainer.load(str(tmp_path / "results" / "model-3.pt"), strict=True)
    assert trainer.step == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'stric'"):
        trainer.load(3, stric=True)


def test_a_checkpoint_holds_what_rebuilds_the_model(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.save(1)
    state = torch.load(tmp_path / "results" / "model-1.pt", weights_only=True)
    unet = Unet3D(**state["config"]["unet"])
    GaussianDiffusion(unet, **state["config"]["diffusion"]).load_state_dict(state["ema"])
    assert state["version"] == "0.8.0"
    assert {"optimizer", "random_states", "scaler", "data"} <= state.keys()


def test_a_folder_without_clips_is_refused(make_trainer, clips):
    for path in clips.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected files ending in \.gif"):
        make_trainer()


def test_an_unknown_device_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"device must be 'cpu' or .* got 'gpu'"):
        make_trainer(device="gpu")


def test_steps_may_be_written_as_a_float(make_trainer):
    trainer = make_trainer(train_num_steps=2e0, lr_schedule="cosine")
    trainer.train()
    assert (trainer.step, repr(trainer.train_num_steps)) == (2, "2")
