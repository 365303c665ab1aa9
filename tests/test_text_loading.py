"""Parts of a text encoder come from a folder or the hub; test_text holds what becomes of them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from video_diffusion_pytorch import cli, text
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


def test_code_of_an_encoder_is_run_only_if_it_is_trusted(tmp_path, monkeypatch):
    mark = tmp_path / "ran"
    folder = tmp_path / "encoder"
    shutil.copytree(TINY_BERT, folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import BertConfig\n\n\n"
        "class Config(BertConfig):\n    model_type = 'own'\n"
    )
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked on the terminal"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    text.set_text_encoder(folder)
    message = (
        f"encoder's .* was expected in the folder {folder} without code of its own, got an .*"
        r"choose another encoder, or .* call .*set_text_encoder\('.*', trust_remote_code=True\), .*"
        r"python -c \".*\" train FOLDER"
    )
    for load in (text.get_tokenizer, text.get_bert):
        with pytest.raises(OSError, match=message) as caught:
            load()
    assert not mark.exists()
    text.set_text_encoder(folder, trust_remote_code=True)
    assert text.get_tokenizer().model_max_length > 0
    assert mark.exists()
    # what the message says to run
    code = re.search(r'python -c "(.*)"', str(caught.value))[1]
    monkeypatch.setattr(text, "_trust_remote_code", False)
    monkeypatch.setattr(cli, "main", lambda: None)
    exec(code)
    assert text._trust_remote_code
    text.set_text_encoder()
    assert not text._trust_remote_code
