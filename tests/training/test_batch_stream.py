from itertools import islice

import pytest

from video_diffusion_pytorch.training.batch_stream import Endless


def test_endless_begins_again():
    batches = Endless([1, 2])
    assert list(islice(batches, 5)) == [1, 2, 1, 2, 1]
    batches.restart()
    assert next(batches) == 1


def test_endless_goes_on_after_an_interrupt():
    def loader():
        yield 1
        raise KeyboardInterrupt

    class Loader:
        __iter__ = staticmethod(loader)

    batches = Endless(Loader())
    assert next(batches) == 1
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert next(batches) == 1


def test_endless_refuses_an_empty_loader():
    with pytest.raises(ValueError, match="must give at least one batch, got none; check"):
        next(Endless([]))
