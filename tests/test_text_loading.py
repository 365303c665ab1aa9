"""Parts of a text encoder come from a folder or the hub; test_text holds what becomes of them."""

from pathlib import Path

import pytest

from video_diffusion_pytorch.text_loading import load_part

TINY_BERT = Path(__file__).parent / "golden" / "tiny_bert"


def test_each_part_is_read_by_its_class():
    config = load_part(str(TINY_BERT), "configuration", "AutoConfig")
    assert config.hidden_size == 32
    assert load_part(str(TINY_BERT), "tokenizer", "AutoTokenizer").pad_token_id == 0


def test_what_cannot_be_read_is_told_by_its_part_and_place(tmp_path):
    message = f"encoder's configuration was expected in the folder {tmp_path}, but loading it gave"
    with pytest.raises(OSError, match="go online once to fill the cache, or call") as caught:
        load_part(str(tmp_path), "configuration", "AutoConfig")
    assert message in str(caught.value)
    assert caught.value.__cause__ is not None
