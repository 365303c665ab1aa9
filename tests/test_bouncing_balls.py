"""The benchmark of bouncing balls: the physics, the clips and the count of balls."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.dataset import Dataset

PATH = Path(__file__).parents[1] / "benchmarks" / "bouncing_balls.py"
BOX, RADIUS = 16.0, 3.0


@pytest.fixture(scope="module")
def balls():
    spec = importlib.util.spec_from_file_location("bouncing_balls", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def energy(velocities):
    return (velocities**2).sum()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_balls_keep_their_energy_and_neither_overlap_nor_leave(balls, count, seed):
    places, velocities = balls.place_balls(count, BOX, RADIUS, np.random.default_rng(seed))
    start = energy(velocities)
    for _ in range(200):
        places, velocities = balls.advance(places, velocities, 1.0, BOX, RADIUS)
        assert energy(velocities) == pytest.approx(start, rel=1e-9)
        assert places.min() >= RADIUS - 1e-9
        assert places.max() <= BOX - RADIUS + 1e-9
        apart = np.linalg.norm(places[:, None] - places, axis=-1)[~np.eye(count, dtype=bool)]
        assert apart.min(initial=np.inf) >= 2 * RADIUS - 1e-9


def test_one_step_equals_many_short_ones(balls):
    start = balls.place_balls(3, BOX, RADIUS, np.random.default_rng(4))
    long, short = balls.advance(*start, 12.0, BOX, RADIUS), start
    for _ in range(96):
        short = balls.advance(*short, 0.125, BOX, RADIUS)
    np.testing.assert_allclose(short, long, atol=1e-6)
    # there were collisions
    assert not np.allclose(long[1], start[1])


def test_time_is_reversible(balls):
    places, velocities = balls.place_balls(3, BOX, RADIUS, np.random.default_rng(5))
    later, turned = balls.advance(places, velocities, 10.0, BOX, RADIUS)
    back, _ = balls.advance(later, -turned, 10.0, BOX, RADIUS)
    np.testing.assert_allclose(back, places, atol=1e-6)


def test_a_wall_reflects(balls):
    # 2 to the wall on the right, and 2 back with half of the speed along it
    places, velocities = np.array([[8.0, 11.0]]), np.array([[0.5, 1.0]])
    places, velocities = balls.advance(places, velocities, 4.0, BOX, RADIUS)
    np.testing.assert_allclose(places, [[10.0, 11.0]])
    np.testing.assert_allclose(velocities, [[0.5, -1.0]])


def test_balls_that_meet_head_on_exchange_their_velocities(balls):
    places = np.array([[8.0, 4.0], [8.0, 12.0]])
    velocities = np.array([[0.0, 1.0], [0.0, -0.5]])
    places, after = balls.advance(places, velocities, 2.0, BOX, RADIUS)
    np.testing.assert_allclose(after, velocities[::-1])
    # they touched after 4 / 3, with centres at 4 + 4 / 3 and 12 - 2 / 3
    np.testing.assert_allclose(places[:, 1], [4 + 4 / 3 - 0.5 * 2 / 3, 12 - 2 / 3 + 2 / 3])


@pytest.mark.parametrize("seed", range(5))
def test_balls_that_collide_keep_their_momentum(balls, seed):
    # so wide a box that no wall is met
    rng = np.random.default_rng(seed)
    places = 500 + np.array([[0.0, 0.0], [10.0, 0.0]]) + rng.uniform(-1, 1, (2, 2))
    velocities = np.array([[2.0, 0.0], [-1.0, 0.0]]) + rng.uniform(-0.1, 0.1, (2, 2))
    _, after = balls.advance(places, velocities, 20.0, 1000.0, RADIUS)
    assert abs(after - velocities).max() > 0.1
    np.testing.assert_allclose(after.sum(axis=0), velocities.sum(axis=0), atol=1e-9)
    assert energy(after) == pytest.approx(energy(velocities))


def test_every_frame_shows_the_number_of_balls_of_its_clip(balls):
    videos, counts = balls.make_clips(60, frames=10, seed=3)
    assert videos.shape == (60, 1, 10, 16, 16)
    assert videos.dtype == torch.uint8
    assert set(counts.tolist()) == {2, 3}
    expected = counts[:, None].expand(-1, 10)
    assert torch.equal(balls.count_balls(videos), expected)
    assert torch.equal(balls.count_balls(videos.float() / 255), expected)
    # balls move
    assert (videos[:, :, 1:] != videos[:, :, :-1]).flatten(3).any(-1).all()


def test_a_clip_depends_on_the_seed_and_its_number(balls):
    videos, counts = balls.make_clips(6, frames=3, seed=1)
    again, _ = balls.make_clips(4, frames=3, seed=1)
    other, _ = balls.make_clips(4, frames=3, seed=2)
    assert torch.equal(videos[:4], again)
    assert all(not torch.equal(*pair) for pair in zip(again, other, strict=True))
    assert len(counts) == 6


def test_a_drawn_ball_has_its_area_and_place(balls):
    frame = balls.draw_balls(np.array([[[9.0, 20.5]]]), 32, 5.0)[0, 0].double() / 255
    centres = torch.arange(32) + 0.5
    assert frame.sum() == pytest.approx(np.pi * 25, rel=0.02)
    assert (frame.sum(1) * centres).sum() / frame.sum() == pytest.approx(9.0, abs=0.01)
    assert (frame.sum(0) * centres).sum() / frame.sum() == pytest.approx(20.5, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count"),
        ({"count": 1, "balls": (0,)}, "balls"),
        ({"count": 1, "size": 4}, "must fit into the square, got .* of radius 1.5 in a square"),
        ({"count": 1, "balls": (40,)}, "got 40 of radius 3 in a square of side 16; take fewer"),
    ],
)
def test_what_cannot_be_made_is_refused(balls, arguments, message, monkeypatch):
    monkeypatch.setattr(balls, "TRIES", 10)
    with pytest.raises(ValueError, match=message):
        balls.make_clips(**arguments)


def test_the_report_tells_which_videos_keep_their_balls(balls):
    two, three = (balls.make_clips(2, [n], frames=4, seed=n)[0] for n in (2, 3))
    mixed = torch.cat((two[:1, :, :2], three[:1, :, :2]), dim=2)
    videos = torch.cat((two, three[:1], mixed))
    assert balls.report(videos, [2]) == (
        "4 videos: the number of balls stays in 75%, at one of 2 in 50%; neighbouring frames agree "
        "in 92%; frames by number of balls: 2: 62%, 3: 38%"
    )


def test_the_command_writes_clips_and_scores_samples(balls, tmp_path, capsys):
    size = {"image_size": 24, "num_frames": 4, "channels": 1}
    folder, samples = tmp_path / "clips", tmp_path / "samples.npy"
    balls.main([str(folder), "--clips", "5", "--frames", "4", "--size", "24"])
    clips = Dataset(folder, **size)
    assert len(clips) == 5
    assert all("_balls.gif" in str(path) for path in clips.paths)
    np.save(samples, torch.stack([clips[i] for i in range(5)]).numpy())
    balls.main([str(samples), "--score", "--balls", "2", "3"])
    wrote, scored = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote 5 clips to {folder}"
    assert scored.startswith("5 videos: the number of balls stays in 100%, at one of 2, 3 in 100%")
