"""Continued texts: the tokens of a plain loop without a cache, at every N, P and ratio."""

from __future__ import annotations

import pytest
import torch

from caat.data.tokenizer import load_tokenizer
from caat.parallel.mesh import Mesh
from conf.generate import SamplingConfig
from eval.generation.generate import generate
from eval.open import load_model
from tests.trained import MODEL, write_checkpoint

PROMPTS = ["The brown fox", "", "Rome", "The grey fox of Paris jumped over 12 lazy"]
NEW = 12


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    cases = [(1, 1.0), (2, 0.0), (2, 0.5), (4, 0.5), (4, 1.0)]
    return {case: write_checkpoint(folder / f"{case[0]}-{case[1]}", *case) for case in cases}


def mesh_of(shards: int, processes: int) -> Mesh:
    return Mesh(shards) if processes == 1 else Mesh.create(shards, processes)


def continued(checkpoint, shards, processes, prompts, settings):
    """Tokens and texts, and what was shown of them."""
    model = load_model(checkpoint, mesh_of(shards, processes), dtype=torch.float64)
    tokenizer = load_tokenizer(checkpoint / "tokenizer.model")
    rows = [[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in prompts]
    shown = [""] * len(prompts)

    def show(number: int, piece: str) -> None:
        shown[number] += piece

    texts = generate(model, rows, tokenizer, settings, show=show)
    return [text.tokens for text in texts], [text.text for text in texts], shown


@torch.no_grad()
def recomputed(model, tokenizer, prompt) -> list[int]:
    """Greedy, the whole text again for every token."""
    row, tokens = [tokenizer.bos_id(), *tokenizer.encode(prompt)], []
    for _ in range(NEW):
        token = int(model(torch.tensor([row + tokens]))[0, -1, : MODEL.vocab_size].argmax())
        if token == tokenizer.eos_id():
            break
        tokens.append(token)
    return tokens


def test_greedy_without_and_with_a_cache(checkpoints):
    settings = SamplingConfig(max_new_tokens=NEW)
    for (shards, _), checkpoint in checkpoints.items():
        tokens, texts, shown = continued(checkpoint, shards, 1, PROMPTS, settings)
        model = load_model(checkpoint, Mesh(shards), dtype=torch.float64)
        tokenizer = load_tokenizer(checkpoint / "tokenizer.model")
        assert tokens == [recomputed(model, tokenizer, prompt) for prompt in PROMPTS]
        assert texts == shown


def all_of(checkpoints, processes, settings):
    return [
        continued(checkpoint, shards, processes, PROMPTS, settings)
        for (shards, _), checkpoint in checkpoints.items()
        if shards % processes == 0
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_on_every_process(ranks, checkpoints, temperature):
    settings = SamplingConfig(max_new_tokens=NEW, temperature=temperature, seed=7)
    expected = all_of({case: path for case, path in checkpoints.items() if case[0] > 1}, 1, settings)
    assert ranks(2).run(all_of, checkpoints, 2, settings) == [expected] * 2


def test_a_text_is_continued_alike_alone_and_among_others(checkpoints):
    checkpoint, settings = checkpoints[4, 0.5], SamplingConfig(max_new_tokens=NEW)
    together, _, _ = continued(checkpoint, 4, 1, PROMPTS, settings)
    alone = [continued(checkpoint, 4, 1, [prompt], settings)[0][0] for prompt in PROMPTS]
    assert together == alone


def test_stop_strings_end_each_text_on_its_own(checkpoints):
    checkpoint = checkpoints[2, 0.5]
    _, texts, _ = continued(checkpoint, 2, 1, PROMPTS, SamplingConfig(max_new_tokens=NEW))
    stop = texts[0][3:5]
    settings = SamplingConfig(max_new_tokens=NEW, stop=[stop])
    _, stopped, shown = continued(checkpoint, 2, 1, PROMPTS, settings)
    assert stopped == [text.split(stop)[0] for text in texts] == shown
    assert stopped[0] != texts[0]


def test_all_ended_costs_no_more_tokens(checkpoints):
    checkpoint = checkpoints[1, 1.0]
    model = load_model(checkpoint, Mesh(1))
    tokenizer = load_tokenizer(checkpoint / "tokenizer.model")
    prompt = tokenizer.encode("The brown fox")
    first = generate(model, [prompt], tokenizer, SamplingConfig(max_new_tokens=1))[0]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    stop = [first.text[:1]] if first.text else []
    generate(model, [prompt], tokenizer, SamplingConfig(max_new_tokens=20, stop=stop))
    assert len(calls) == (1 if stop else 20)
