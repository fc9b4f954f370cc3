"""`caat convert`: the tokenizer is the one that transformers uses, in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import transformers
from sentencepiece import SentencePieceTrainer

from caat.data.sentencepiece_export import as_huggingface
from caat.data.tokenizer import find_tokenizer, load_tokenizer, train_tokenizer
from launch.convert import main
from layers.huggingface.tokenizers import choose_tokenizer
from tests.launch.test_convert import convert, same_tokens
from tests.layers.huggingface.llamas import write_family, write_llama


def test_a_sentencepiece_tokenizer_gives_the_same_tokens(tmp_path):
    write_llama(tmp_path / "hf", tokenizer=False)
    words = [a + b + c for a in ("quick", "over", "Ü") for b in ("ing", "ed", "ly") for c in "abcdefghij"]
    train_tokenizer(
        (f"  {a} and  {b} 17" for a in words for b in words[:9]), 400, tmp_path / "hf" / "tokenizer.model"
    )
    convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    convert(f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}")
    same_tokens(tmp_path / "back", tmp_path / "ours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    # Documents begin with this token in training.
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize(
    "kind",
    [
        {"model_type": "unigram"},
        {
            "model_type": "bpe",
            "user_defined_symbols": ["<sep>"],
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
        },
    ],
    ids=["unigram", "a piece of its own"],
)
def test_a_sentencepiece_tokenizer_without_an_equal_goes_along_as_it_is(tmp_path, kind):
    import sentencepiece

    write_llama(tmp_path / "hf", tokenizer=False)
    words = [a + b for a in ("quick", "over", "lazy", "brown") for b in ("ing", "ed", "ly", "er", "est")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{a} and {b}" for a in words for b in words),
        model_prefix=str(tmp_path / "hf" / "tokenizer"),
        vocab_size=60 if kind["model_type"] == "unigram" else 300,
        hard_vocab_limit=False,
        minloglevel=2,
        **kind,
    )
    convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    result = convert(f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}")
    assert result["tokenizer"] == "tokenizer.model alone: transformers has no equivalent"
    assert not (tmp_path / "back" / "tokenizer.json").exists()


def with_both_tokenizers(folder: Path) -> Path:
    """Write a Llama with a SentencePiece model and its tokenizer.json; return the folder."""
    write_llama(folder, tokenizer=False)
    train_tokenizer((f"line {i} says {i * i} words" for i in range(500)), 300, folder / "tokenizer.model")
    for name, content in as_huggingface(folder / "tokenizer.model").items():
        (folder / name).write_bytes(content)
    return folder


def test_the_tokenizer_is_the_one_that_transformers_uses(tmp_path):
    folder = with_both_tokenizers(tmp_path / "hf")
    assert choose_tokenizer(folder).name == "tokenizer.model"  # it gives the same numbers

    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    fast.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<|im_end|>"}))
    result = convert(f"from={folder}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    assert (result["tokenizer"], result["begin_and_end"]) == ("tokenizer.json", "1 and 300, 2")
    assert load_tokenizer(find_tokenizer(tmp_path / "ours")).encode("<|im_start|>") == [301]

    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # a tiktoken file
    assert choose_tokenizer(folder).name == "tokenizer.json"


def test_a_control_piece_that_is_read_from_text_needs_the_tokenizer_json(tmp_path):
    """As [INST] in Mistral: SentencePiece would spell it out."""
    folder, turns = tmp_path / "hf", ["[INST]", "[/INST]"]
    write_llama(folder, tokenizer=False)
    lines = (f"line {i} says {i * i} words" for i in range(500))
    model = folder / "tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(model), vocab_size=300, model_type="bpe", minloglevel=2,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, control_symbols=turns, pad_id=-1,
    )  # fmt: skip
    for name, content in as_huggingface(folder / "tokenizer.model").items():
        (folder / name).write_bytes(content)
    assert choose_tokenizer(folder).name == "tokenizer.model"
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.add_special_tokens(turns)
    fast.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(choose_tokenizer(folder)).encode("[INST]") == [3]


def test_equal_vocabularies_with_other_numbers_are_not_the_same_tokenizer(tmp_path):
    folder = with_both_tokenizers(tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert choose_tokenizer(folder).name == "tokenizer.json"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "added_tokens.json",
            {"<pad>": 300},
            r"added_tokens.json adds the token <pad> \(300\) to .* lost",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1": {"content": "<s>"}, "300": {"content": "<|im_end|>"}}},
            r"tokenizer_config.json adds the token <\|im_end\|> \(300\)",
        ),
        (
            "special_tokens_map.json",
            {"eos_token": {"content": "<unk>"}},
            "names eos_token <unk>, but .* has </s>",
        ),
        ("tokenizer_config.json", {"bos_token": 5}, "has bos_token=5, which must be a string"),
        ("added_tokens.json", {"<pad>": "300"}, 'added_tokens.json has <pad>="300", which must be'),
    ],
)
def test_a_sentencepiece_model_alone_that_lacks_tokens_is_refused(tmp_path, name, content, says):
    folder = with_both_tokenizers(tmp_path / "hf")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    assert choose_tokenizer(folder).name == "tokenizer.model"
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says):
        main([f"from={folder}", f"to={tmp_path / 'ours'}", "parallel.tensor=2"])


def test_a_class_with_rules_of_its_own_does_not_change_the_numbers(tmp_path):
    """LlamaTokenizer would start every text in another way than its tokenizer.json does."""
    folder = with_both_tokenizers(tmp_path / "hf")
    (folder / "tokenizer.model").unlink()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = content["normalizer"]["normalizers"][1]  # no space before a text
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(f"from={folder}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    convert(f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    ours = load_tokenizer(find_tokenizer(tmp_path / "ours"))
    for text in ("line 3 says", " two  spaces\n\nx", "<s>line </s>"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)


def test_qwen2_with_rules_of_another_tokenizer_says_how_to_load_it(tmp_path, capsys):
    """AutoTokenizer would take Qwen2's own rules."""
    write_family(tmp_path / "hf", "Qwen2")
    how = ": load it with transformers.PreTrainedTokenizerFast, not with AutoTokenizer"
    for rules in ("gpt2", "qwen2"):
        if rules == "qwen2":
            theirs = transformers.Qwen2Tokenizer().backend_tokenizer
            content = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
            for part in ("normalizer", "pre_tokenizer"):
                content[part] = json.loads(theirs.to_str())[part]
            (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(content))
        convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / rules}", "parallel.tensor=2")
        capsys.readouterr()
        convert(f"from={tmp_path / rules}", f"to={tmp_path / rules}-back")
        assert (how in capsys.readouterr().out) == (rules == "gpt2")
        auto = transformers.AutoTokenizer.from_pretrained(f"{tmp_path / rules}-back")
        ours, text = load_tokenizer(find_tokenizer(tmp_path / rules)), "document 123 says  words"
        assert (auto.encode(text) == ours.encode(text)) == (rules == "qwen2")


def test_tokens_that_only_the_map_of_special_tokens_names_are_kept(tmp_path):
    write_llama(tmp_path / "hf")
    names = {"pad_token": {"content": "<|end|>", "lstrip": False}, "unk_token": "<|begin|>"}
    (tmp_path / "hf" / "special_tokens_map.json").write_text(json.dumps(names))
    convert(f"from={tmp_path / 'hf'}", f"to={tmp_path / 'ours'}", "parallel.tensor=2")
    convert(f"from={tmp_path / 'ours'}", f"to={tmp_path / 'back'}")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert (theirs.pad_token, theirs.unk_token) == ("<|end|>", "<|begin|>")
