"""What encoders take and give: lists of captions, vectors, sequences of states."""

import torch

from video_diffusion_pytorch.text_states import as_captions, pad_states


def test_a_caption_is_a_list_of_one():
    assert as_captions("a whale") == ["a whale"]
    given = ("a", "b")
    assert as_captions(given) == ["a", "b"]


def test_padded_states_keep_their_numbers():
    sequences = [torch.randn(n, 3).half() for n in (2, 5, 0)]
    states, mask = pad_states(sequences)
    assert states.shape == (3, 5, 3)
    assert states.dtype == torch.float16
    assert mask.sum(dim=1).tolist() == [2, 5, 0]
    for sequence, row, there in zip(sequences, states, mask, strict=True):
        assert torch.equal(row[there], sequence)
        assert (row[~there] == 0).all()


def test_empty_sequences_have_a_place():
    states, mask = pad_states([torch.ones(0, 3)] * 2)
    assert states.shape == (2, 1, 3)
    assert not mask.any()
