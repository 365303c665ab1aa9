"""Captions become vectors, or sequences of states."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import cli, text

GOLDEN = Path(__file__).parent / "golden"
TINY_BERT = GOLDEN / "tiny_bert"
RECORDED = torch.load(GOLDEN / "text_0.7.0.pt", weights_only=True)
LIMIT = 32  # the tiny encoder's longest input


@pytest.fixture(autouse=True)
def _tiny_encoder():
    text.set_text_encoder(TINY_BERT)
    yield
    text.set_text_encoder()


# Tokens


def test_tokens_are_padded_with_zeros():
    ids = text.tokenize(["a whale", "a whale breaching from afar"])
    lengths = [len(text.tokenize(caption)[0]) for caption in ("a whale", "a whale breaching from")]
    assert ids.dtype == torch.int64
    assert ids.shape == (2, lengths[1] + 1)
    assert (ids[0, : lengths[0]] != 0).all()
    assert (ids[0, lengths[0] :] == 0).all()
    assert (ids[1] != 0).all()


@pytest.mark.parametrize("kind", [list, tuple])
def test_one_caption_is_a_batch_of_one(kind):
    alone = text.tokenize("fireworks")
    assert alone.shape[0] == 1
    assert torch.equal(text.tokenize(kind(["fireworks"])), alone)


def test_special_tokens_can_be_left_out():
    framed, bare = text.tokenize("a whale"), text.tokenize("a whale", add_special_tokens=False)
    assert torch.equal(framed[:, 1:-1], bare)
    assert text.tokenize("", add_special_tokens=False).dtype == torch.int64


def test_long_captions_are_cut_to_what_the_encoder_takes():
    long = text.tokenize(["a " * 100, "a"])
    assert long.shape == (2, LIMIT)
    assert torch.equal(long[0, -1:], text.tokenize("a")[0, -1:])  # the end token is kept
    assert text.bert_embed(long).isfinite().all()


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], ValueError, "texts must hold at least one caption, got none; pass ''"),
        (7, TypeError, "texts must be a string or a list of strings, got 7"),
        (["a", 7], TypeError, r"texts must be a string or a list of strings, got \['a', 7\]"),
    ],
)
def test_wrong_texts(texts, error, message):
    with pytest.raises(error, match=message):
        text.tokenize(texts)


# Vectors


def test_same_numbers_as_the_reference():
    ids = text.tokenize(RECORDED["texts"])
    assert torch.equal(ids, RECORDED["token_ids"])
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(text.bert_embed(ids), RECORDED["mean"], **close)
    cls = text.bert_embed(ids, return_cls_repr=True)
    torch.testing.assert_close(cls, RECORDED["cls"], **close)


@pytest.mark.parametrize("return_cls_repr", [True, False])
def test_padding_changes_nothing(return_cls_repr):
    ids = text.tokenize("a whale")
    padded = torch.nn.functional.pad(ids, (0, 9))
    torch.testing.assert_close(
        text.bert_embed(padded, return_cls_repr), text.bert_embed(ids, return_cls_repr)
    )


def test_another_padding_token():
    ids = text.tokenize("a whale")
    padded = torch.nn.functional.pad(ids, (0, 5), value=59)
    torch.testing.assert_close(text.bert_embed(padded, pad_id=59), text.bert_embed(ids))


def test_mean_is_over_all_tokens_but_the_first():
    ids = text.tokenize("a whale breaching")
    hidden = text.get_bert()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(text.bert_embed(ids), hidden[:, 1:].mean(dim=1))
    torch.testing.assert_close(text.bert_embed(ids, return_cls_repr=True), hidden[:, 0])
    assert text.bert_embed(ids[:, :1]).abs().max() == 0


def test_result_is_an_ordinary_tensor():
    vectors = text.bert_embed(text.tokenize("a whale"))
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    weight = torch.ones(32, requires_grad=True)
    (vectors * weight).sum().backward()
    assert torch.equal(weight.grad, vectors[0])


def test_int32_tokens():
    ids = text.tokenize("a whale")
    assert torch.equal(text.bert_embed(ids.int()), text.bert_embed(ids))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_result_is_on_the_device_of_the_tokens():
    ids = text.tokenize("a whale")
    on_cpu = text.bert_embed(ids)
    on_gpu = text.bert_embed(ids.cuda())
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4)
    assert text.bert_embed(ids).device.type == "cpu"


def test_more_tokens_than_the_encoder_takes():
    with pytest.raises(ValueError, match=r"at most 32 tokens per caption .* got 33; truncate them"):
        text.bert_embed(torch.ones(1, 33, dtype=torch.int64))


# Loading


def test_nothing_is_loaded_before_first_use_and_only_once():
    assert text.MODEL is None
    assert text.TOKENIZER is None
    assert text.get_bert() is text.get_bert() is text.MODEL
    assert text.get_tokenizer() is text.get_tokenizer() is text.TOKENIZER


def test_model_is_frozen_also_where_first_used_in_inference_mode():
    with torch.inference_mode():
        model = text.get_bert()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_half_precision_weights_are_used_in_float32(tmp_path):
    text.get_bert().half().save_pretrained(tmp_path)
    text.set_text_encoder(tmp_path)
    assert text.get_bert().dtype == torch.float32


def test_another_encoder_replaces_the_loaded_one(tmp_path):
    ids = text.tokenize("a whale")
    before = text.bert_embed(ids)
    changed = text.get_bert()
    with torch.no_grad():
        changed.embeddings.word_embeddings.weight.neg_()
    changed.save_pretrained(tmp_path)
    text.get_tokenizer().save_pretrained(tmp_path)
    text.set_text_encoder(str(tmp_path))
    assert text.MODEL is None
    assert text.TOKENIZER is None
    assert torch.equal(text.tokenize("a whale"), ids)
    assert (text.bert_embed(ids) - before).abs().max() > 0.1


def test_loading_is_silent(capfd):
    text.bert_embed(text.tokenize("a whale"))
    assert capfd.readouterr() == ("", "")


def test_transformers_settings_are_put_back():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    text.get_bert()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    logging.disable_progress_bar()
    try:
        text.set_text_encoder(TINY_BERT)
        text.get_bert()
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()


@pytest.mark.parametrize("missing", ["{}/gone", "./gone", "~/no-such-folder", "a/b/c"])
def test_missing_folder_is_noticed_at_once(tmp_path, missing):
    with pytest.raises(FileNotFoundError, match=r"folder with a text encoder at .*, found none;"):
        text.set_text_encoder(missing.format(tmp_path))
    with pytest.raises(FileNotFoundError, match="its path, or its name on the Hugging Face Hub"):
        text.set_text_encoder(tmp_path / "gone")
    assert text.tokenize("a whale").shape[0] == 1  # the encoder set before still holds


def test_folder_without_an_encoder(tmp_path):
    text.set_text_encoder(tmp_path)
    message = r"expected the text encoder's {} in the folder .*; go online once .*--text_encoder"
    with pytest.raises(OSError, match=message.format("tokenizer")) as caught:
        text.tokenize("a whale")
    assert caught.value.__cause__ is not None
    with pytest.raises(OSError, match=message.format("model")):
        text.bert_embed(torch.ones(1, 4, dtype=torch.int64))


def test_default_encoder_without_a_network(monkeypatch):
    import transformers

    def offline(name, **options):
        assert name == "bert-base-cased"
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    text.set_text_encoder()
    with pytest.raises(OSError, match="in the folder 'bert-base-cased', or under that") as caught:
        text.tokenize("a whale")
    assert "ConnectionError: no route to host; go online" in str(caught.value)


def test_a_network_that_is_down_is_noticed_at_once(monkeypatch):
    import transformers

    given = []

    def local(name, *, local_files_only, **options):
        given.append(local_files_only)
        raise OSError("not in the cache.")

    def refused(address, timeout):
        assert address == ("huggingface.co", 443)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refused)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", local)
    text.set_text_encoder()
    with pytest.raises(OSError, match=r"not in the cache; go online once .* --text_encoder\) a fo"):
        text.tokenize("a whale")
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    with pytest.raises(OSError, match="not in the cache; go online"):
        text.tokenize("a whale")
    assert given == [True, False]


def test_padding_token_must_be_zero(tmp_path):
    folder = shutil.copytree(TINY_BERT, tmp_path / "bert")
    words = (folder / "vocab.txt").read_text().splitlines()
    words[0], words[1] = words[1], words[0]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    text.set_text_encoder(folder)
    with pytest.raises(ValueError, match="must use 0 as its padding token, got 1; choose one li"):
        text.get_tokenizer()


def test_imports_are_cheap():
    names = ["text", "data.video_file", "data.dataset", "data.moving_digits"]
    imports = ", ".join(f"video_diffusion_pytorch.{name}" for name in names)
    heavy = {"transformers", "huggingface_hub", "PIL", "torchvision", "accelerate", "av"}
    command = [sys.executable, "-c"]
    command.append(f"import sys, {imports}; print(sorted({heavy} & set(sys.modules)))")
    root = Path(__file__).parents[1]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True).stdout == "[]\n"


# An encoder of one's own


def lengths(captions):
    return torch.tensor([[float(len(caption)), 1.0] for caption in captions])


def test_captions_are_embedded_in_one_go():
    captions = ["a whale", "fireworks from afar"]
    for use_cls in (False, True):
        expected = text.bert_embed(text.tokenize(captions), return_cls_repr=use_cls)
        assert torch.equal(text.embed_captions(captions, use_cls=use_cls, device="cpu"), expected)
    assert text.embed_captions(tuple(captions)).shape == (2, 32)


def test_a_function_may_be_the_encoder():
    text.set_text_encoder(lengths, name="lengths")
    expected = torch.tensor([[7.0, 1.0], [1.0, 1.0]])
    for use_cls in (False, True):
        assert torch.equal(text.embed_captions(("a whale", "b"), use_cls=use_cls), expected)
    text.set_text_encoder(TINY_BERT)
    assert text.embed_captions(["a whale"]).shape == (1, 32)


def test_a_functions_vectors_have_no_gradient():
    weight = torch.ones(1, 2, requires_grad=True)
    text.set_text_encoder(lambda captions: lengths(captions) * weight)
    assert not text.embed_captions(["a"]).requires_grad


def test_the_encoder_has_a_name():
    assert text.encoder_name() == str(TINY_BERT)
    text.set_text_encoder()
    assert text.encoder_name() == "bert-base-cased"
    text.set_text_encoder(lengths, name="lengths")
    assert text.encoder_name() == "lengths"
    text.set_text_encoder(lengths)
    assert text.encoder_name() is None


def test_a_folders_name_does_not_depend_on_the_working_folder(monkeypatch):
    monkeypatch.chdir(GOLDEN)
    text.set_text_encoder("./tiny_bert")
    assert text.encoder_name() == str(TINY_BERT)


def test_only_a_function_is_named():
    message = r"name must be None unless .* is a function, got 'tiny' with '.*'; leave it out"
    with pytest.raises(ValueError, match=message):
        text.set_text_encoder(str(TINY_BERT), name="tiny")
    assert text.encoder_name() == str(TINY_BERT)


def test_the_width_of_an_encoder():
    text.set_text_encoder(TINY_BERT)
    assert text.encoder_width() == text.embed_captions(["a whale"]).shape[1]
    text.set_text_encoder(lengths)
    assert text.encoder_width() is None


def test_a_function_has_no_tokens():
    text.set_text_encoder(lengths)
    message = r"text encoder must be one with a {}, got a function; call embed_captions"
    with pytest.raises(ValueError, match=message.format("tokenizer")):
        text.tokenize("a whale")
    with pytest.raises(ValueError, match=message.format("model")):
        text.bert_embed(torch.ones(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([[1.0]], r"must return floating-point vectors of shape \(1, d\), got list; a network"),
        (
            torch.ones(2, 3),
            r"vectors of shape \(1, d\), got torch.float32 of shape \(2, 3\); a network takes",
        ),
        (
            torch.ones(1),
            r"vectors of shape \(1, d\), got torch.float32 of shape \(1,\)",
        ),
        (torch.ones(1, 3).long(), r"floating-point vectors .*, got torch.int64 of"),
        (
            torch.ones(1, 4, 3),
            r"got .* of shape \(1, 4, 3\); a network takes states if it is built with num_text_tok",
        ),
        (
            (torch.ones(1, 4, 3), torch.ones(1, 4).bool()),
            r"got .* of shape \(1, 4, 3\); a network takes states",
        ),
    ],
)
def test_invalid_vectors_of_a_function(result, message):
    text.set_text_encoder(lambda captions: result)
    with pytest.raises(ValueError, match=message):
        text.embed_captions(["a whale"])


@pytest.mark.parametrize("call", [text.embed_captions, text.encode_captions])
@pytest.mark.parametrize("encoder", [lengths, TINY_BERT])
def test_wrong_captions(encoder, call):
    text.set_text_encoder(encoder)
    with pytest.raises(TypeError, match="texts must be a string or a list of strings, got"):
        call([7])
    with pytest.raises(ValueError, match="texts must hold at least one caption, got none; pass ''"):
        call([])


# Sequences of states


def test_states_are_the_encoders_last_ones():
    states, mask = text.encode_captions(["a whale breaching"])
    ids = text.tokenize("a whale breaching")
    assert torch.equal(states, text.get_bert()(input_ids=ids).last_hidden_state)
    assert mask.all()
    assert mask.shape == ids.shape
    # [CLS] and the mean of the others are what a network of vectors takes
    vectors = {
        cls: text.embed_captions(["a whale breaching"], use_cls=cls) for cls in (True, False)
    }
    torch.testing.assert_close(states[:, 0], vectors[True])
    torch.testing.assert_close(states[:, 1:].mean(dim=1), vectors[False])


def test_a_caption_has_the_same_states_alone_and_with_a_longer_one():
    captions = ["a whale", "a whale breaching from afar", "fireworks"]
    states, mask = text.encode_captions(captions)
    assert states.dtype == torch.float32
    assert not states.requires_grad
    assert (states[~mask] == 0).all()
    for caption, own, there in zip(captions, states, mask, strict=True):
        alone, all_there = text.encode_captions([caption])
        assert all_there.all()
        torch.testing.assert_close(own[there], alone[0])


def test_a_function_may_give_states():
    states = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    text.set_text_encoder(lambda captions: states)
    found, mask = text.encode_captions(["a", "b"])
    assert torch.equal(found, states.float())
    assert not found.requires_grad
    assert mask.all()
    # what is at padding does not count, whatever it is
    there = torch.tensor([[True, True, False], [False, False, False]])
    text.set_text_encoder(
        lambda captions: (states.masked_fill(~there[..., None], torch.nan), there)
    )
    found, mask = text.encode_captions(("a", "b"), device="cpu")
    assert torch.equal(mask, there)
    assert torch.equal(found[0, :2], states[0, :2].float())
    assert found[~there].abs().max() == 0


def test_captions_without_tokens_have_a_place_that_does_not_count():
    text.set_text_encoder(lambda captions: torch.ones(len(captions), 0, 5))
    states, mask = text.encode_captions(["", ""])
    assert states.tolist() == torch.zeros(2, 1, 5).tolist()
    assert not mask.any()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            [[[1.0]]],
            r"states of shape \(1, n, d\), or a tuple of them .*, got list; a network",
        ),
        ((torch.ones(1, 2, 3), [True]), r"mask must be boolean, of shape \(1, 2\), .* got list;"),
        (
            torch.ones(1, 3),
            r"states of shape \(1, n, d\), .* got torch.float32 of shape \(1, 3\); a network",
        ),
        (torch.ones(2, 4, 3), r"got .* of shape \(2, 4, 3\); a network takes states"),
        (torch.ones(1, 4, 3).long(), "floating-point states .*, got torch.int64 of"),
        (
            (torch.ones(1, 4, 3), torch.ones(1, 4)),
            r"mask must be boolean, of shape \(1, 4\), .*, got torch.float32 of .*; compare token",
        ),
        ((torch.ones(1, 4, 3), torch.ones(1, 3).bool()), r"got .* of shape \(1, 3\)"),
    ],
)
def test_invalid_states_of_a_function(result, message):
    text.set_text_encoder(lambda captions: result)
    with pytest.raises(ValueError, match=message):
        text.encode_captions(["a whale"])


def test_half_an_emoji_is_a_question_mark():
    for encode in (
        text.tokenize,
        text.embed_captions,
        lambda texts: text.encode_captions(texts)[0],
    ):
        assert torch.equal(encode(["a \ud83d cat"]), encode(["a ? cat"]))


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
        f"the text encoder '{folder}' must have no Python code of its own, got code for its .*; "
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


def test_padded_states_keep_their_numbers():
    sequences = [torch.randn(n, 3).half() for n in (2, 5, 0)]
    states, mask = text.pad_states(sequences)
    assert states.shape == (3, 5, 3)
    assert states.dtype == torch.float16
    assert mask.sum(dim=1).tolist() == [2, 5, 0]
    for sequence, row, there in zip(sequences, states, mask, strict=True):
        assert torch.equal(row[there], sequence)
        assert (row[~there] == 0).all()


def test_empty_sequences_have_a_place():
    states, mask = text.pad_states([torch.ones(0, 3)] * 2)
    assert states.shape == (2, 1, 3)
    assert not mask.any()
