"""`caat generate`: the verb, its result, and the messages for users' mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from caat.data.tokenizer import load_tokenizer
from caat.training.checkpoint.folder import find
from launch import generate
from tests.trained import MODEL, write_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    write_checkpoint(folder, 4, 0.5)
    return folder


def result(capsys) -> tuple[str, dict]:
    """Return the printed text, and the JSON whose path is its last line."""
    printed = capsys.readouterr().out
    with open(printed.splitlines()[-1], encoding="utf-8") as file:
        return printed, json.load(file)


def test_one_prompt_is_streamed(run, capsys):
    generate.main([f"checkpoint={run}", "prompt=The brown fox", "max_new_tokens=8"])
    printed, found = result(capsys)
    (text,) = found["results"]
    assert printed.startswith("The brown fox" + text["text"])
    assert len(text["tokens"]) == 8 and text["ending"] == "length"
    assert printed.splitlines()[-1] == str(run / "generations.json")


def test_a_prompt_may_spell_out_its_begin_and_end_tokens(run, capsys):
    """As chats do: the begin token is not doubled, and an end token is one."""
    made = []
    for prompt in ("The brown fox", "<s>The brown fox", "<s>The</s>brown fox"):
        generate.main([f"checkpoint={run}", f"prompt={prompt}", "max_new_tokens=8", "precision=fp64"])
        made.append(result(capsys)[1]["results"][0]["tokens"])
    assert made[0] == made[1]
    tokenizer = load_tokenizer(next(run.rglob("tokenizer.model")))
    tokens = generate._encode("<s>The</s>brown fox", tokenizer, True)
    assert [tokens.count(number) for number in (tokenizer.bos_id(), tokenizer.eos_id())] == [1, 1]


def test_a_prompt_without_a_begin_token(run, capsys):
    """As for imported models whose tokenizer adds none."""
    tokenizer = load_tokenizer(next(run.rglob("tokenizer.model")))
    assert generate._encode("The fox", tokenizer, False) == tokenizer.encode("The fox")
    made = []
    for prompt in ("The brown fox", "<s>The brown fox"):
        generate.main([f"checkpoint={run}", f"prompt={prompt}", "max_new_tokens=8", "add_bos=false"])
        made.append(result(capsys)[1]["results"][0]["tokens"])
    assert made[0] != made[1]
    with pytest.raises(ValueError, match=r"an empty prompt has no token to continue: .* add_bos=true"):
        generate.main([f"checkpoint={run}", "prompt=", "add_bos=false"])


def test_several_prompts(run, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('\ufeff"The"\n\n"Rome\\nand"\n"grey fox"\n')
    prompts = f"prompts={tmp_path / 'prompts.jsonl'}"
    common = [f"checkpoint={run}", "max_new_tokens=6", f"out={tmp_path / 'out.json'}"]
    generate.main([*common, prompts, "batch=2", "precision=fp64"])
    _, found = result(capsys)
    assert [each["prompt"] for each in found["results"]] == ["The", "Rome\nand", "grey fox"]
    generate.main([*common, "prompt=grey fox", "precision=fp64"])
    _, alone = result(capsys)
    assert alone["results"] == found["results"][2:]


def test_a_cache_in_host_memory(run, capsys):
    common = [f"checkpoint={run}", "prompt=The brown fox ran to Rome and the", "max_new_tokens=12"]
    generate.main(common)
    _, device = result(capsys)
    generate.main([*common, "cache.place=host"])
    printed, host = result(capsys)
    # Rows of the prompt are fetched once.
    assert host["results"] == device["results"] and 0 < host["cache"]["fetched_bytes"] < 2**14
    assert "share of the attention left out: at most 0, 0 on average" in " ".join(printed.split())
    generate.main([*common, "cache.place=host", "cache.keep=1", "cache.error=1e-3"])
    _, close = result(capsys)
    assert close["cache"]["missing_worst"] <= 1e-3 and "cache" not in device
    with pytest.raises(ValueError, match=r"cache\.keep=8 has no effect with cache\.place=device"):
        generate.main([*common, "cache.keep=8"])


def test_what_was_made_is_kept_when_the_rest_is_not(run, tmp_path, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text('"The"\n"Rome"\n"fox"\n')
    shown = []

    def interrupted(text="", **_):
        shown.append(text)
        if text.startswith("[2]"):
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    arguments = [f"prompts={tmp_path / 'prompts.jsonl'}", f"out={tmp_path / 'out.json'}", "batch=1"]
    with pytest.raises(KeyboardInterrupt):
        generate.main([f"checkpoint={run}", "max_new_tokens=4", *arguments])
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [each["prompt"] for each in found] == ["The", "Rome"]
    assert shown[-1] == f"[2] Rome{found[-1]['text']}\n"


def test_what_was_streamed_is_kept_too(run, tmp_path, monkeypatch):
    shown = []

    def interrupted(text="", **_):
        shown.append(text)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate.main([f"checkpoint={run}", "max_new_tokens=30", PROMPT, f"out={tmp_path / 'out.json'}"])
    (found,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert found["ending"] is None and found["text"].startswith("".join(shown[1:])) and found["tokens"]


@pytest.mark.slow
def test_any_number_of_processes_and_torchrun(run, tmp_path):
    arguments = [f"checkpoint={run}", "prompt=The", "max_new_tokens=8", "temperature=1", "precision=fp64"]
    texts = []
    for number, command in enumerate(
        [
            ["launch.generate", *arguments],
            ["launch.generate", *arguments, "launch.processes=2"],
            ["torch.distributed.run", "--nproc-per-node=4", "-m", "launch.generate", *arguments],
        ]
    ):
        out = tmp_path / f"{number}.json"
        done = subprocess.run(
            [sys.executable, "-m", *command, f"out={out}"], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(out)
        texts.append(json.loads(out.read_text())["results"])
    assert texts[0] == texts[1] == texts[2]


PROMPT = "prompt=The"
GOOD = ["prompts=good.jsonl", "max_new_tokens=4"]
MISTAKES = {
    "neither prompt": ([], ["give either prompt="]),
    "both prompts": ([PROMPT, "prompts=x"], ["give either prompt="]),
    "no such file": (["prompts=none.jsonl"], ["prompts=none.jsonl cannot be read"]),
    "not JSON": (["prompts=plain.txt"], ["prompts=plain.txt: line 1 is not JSON", "in quotes"]),
    "not text": (["prompts=number.jsonl"], ["line 2 holds 5, which must be a valid string", "in quotes"]),
    "half a character": (["prompts=surrogate.jsonl"], ["surrogate.jsonl: line 3 is not JSON", "surrogate"]),
    "not UTF-8": (["prompts=latin.jsonl"], ["latin.jsonl: line 2 is not JSON", "unicode"]),
    "a folder": (["prompts=folder"], ["prompts=folder cannot be read (Is a directory)"]),
    "empty file": (["prompts=empty.jsonl"], ["prompts=empty.jsonl is empty"]),
    "long prompt": (["prompt=" + "fox 7 " * 60], ["the prompt has", "context of 64", "shorten it"]),
    "long result": ([PROMPT, "max_new_tokens=64"], ["max_new_tokens=64", "context of 64", "give max_new"]),
    "temperature": ([PROMPT, "temperature=-1"], ["temperature=-1.0 must be"]),
    "top_p": ([PROMPT, "temperature=1", "top_p=0"], ["top_p=0.0 is outside (0, 1]"]),
    "top_k": ([PROMPT, "top_k=3"], ["have no effect with temperature=0"]),
    "stop": ([PROMPT, "stop=END"], ["stop=END", "a list of texts"]),
    "processes": ([PROMPT, "launch.processes=3"], ["3 processes do not divide", "4 shards"]),
    "checkpoint": ([PROMPT, "checkpoint=nowhere"], ["checkpoint=nowhere is not a folder"]),
    "precision": ([PROMPT, "precision=fp8"], ["precision=fp8 is not known"]),
    "own prompts": ([*GOOD, "out=good.jsonl"], ["would overwrite prompts=good.jsonl"]),
    "own checkpoint": ([*GOOD, "out=checkpoint/config.json"], ["is a file of the checkpoint"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_the_model_is_loaded(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "on_mesh", lambda *_: 1 / 0)
    (tmp_path / "plain.txt").write_text("The fox\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "good.jsonl").write_text('"The"\n')
    (tmp_path / "checkpoint").symlink_to(find(run))
    (tmp_path / "number.jsonl").write_text('"The"\n5\n')
    (tmp_path / "surrogate.jsonl").write_text('"hello"\r\n""\r\n"\\ud83d"\r\n')
    (tmp_path / "latin.jsonl").write_bytes(b'"The"\n"caf\xe9"\n')
    (tmp_path / "folder").mkdir()
    arguments, says = MISTAKES[name]
    with pytest.raises(ValueError) as error:
        generate.main([f"checkpoint={run}", *arguments])
    message = str(error.value)
    assert not [part for part in says if part not in message], message
    assert len(message.splitlines()) == 1


def other_tokenizer(checkpoint) -> None:
    """The tokenizer has more pieces than the model's vocabulary."""
    from caat.data.tokenizer import train_tokenizer

    lines = (f"number {n} is a quick brown {n * n}" for n in range(200))
    train_tokenizer(lines, MODEL.vocab_size + 5, checkpoint / "tokenizer.model")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: (folder / "tokenizer.model").unlink(), "holds no tokenizer"),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"x"), "not a SentencePiece model"),
        (other_tokenizer, "has 306 pieces, but the model knows 301"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    ],
)
def test_a_broken_checkpoint(run, tmp_path, break_it, says):
    shutil.copytree(run, tmp_path / "run")
    break_it(tmp_path / "run" / "checkpoints" / "step-00000001")
    with pytest.raises(ValueError, match=says):
        generate.main([f"checkpoint={tmp_path / 'run'}", PROMPT, "max_new_tokens=4"])
