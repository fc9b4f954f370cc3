"""`caat convert order=TEXT`: the same function, with the largest channels of the stream first."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from caat.data.tokenizer import load_tokenizer
from caat.parallel.mesh import Mesh
from eval.open import load_model
from eval.quality.score import next_token_log_probabilities
from launch.convert import main
from layers.huggingface.ordering import TOKENS
from layers.huggingface.tokenizers import choose_tokenizer
from tests.layers.huggingface.llamas import prompt, write_family, write_llama

TEXT = "A channel that all shards share is sent; one that is private is not. "


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{TEXT} {number}"}) for number in range(1500)))
    return path


def sizes_by_transformers(model, folder, text) -> torch.Tensor:
    """The mean square [h] of the normalised stream before each layer, as transformers computes the stream."""
    tokenizer, tokens = load_tokenizer(choose_tokenizer(folder)), []
    for line in text.read_text().splitlines():
        tokens += tokenizer.encode(json.loads(line)["text"])
    batch = torch.tensor(tokens[:TOKENS]).view(-1, model.config.max_position_embeddings)
    with torch.no_grad():
        # The last one is after the norm at the end.
        streams = torch.stack(model(batch, output_hidden_states=True).hidden_states[:-1]).double()
    return (streams**2 / (streams**2).mean(-1, keepdim=True)).flatten(0, -2).mean(0)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("Llama", {"tie_word_embeddings": True}), ("Qwen2", {}), ("Qwen3", {"head_dim": 12})],
)
def test_the_largest_channels_come_first_and_nothing_else_changes(tmp_path, capsys, text, kind, changes):
    theirs, ours = write_family(tmp_path / "hf", kind, **changes), tmp_path / "ours"
    main([f"from={tmp_path / 'hf'}", f"to={ours}", "parallel.tensor=2", f"order={text}"])
    with torch.no_grad():
        want = theirs(prompt()).logits.log_softmax(-1)[:, :-1].gather(-1, prompt()[:, 1:, None])[..., 0]
    got = next_token_log_probabilities(load_model(ours, Mesh(2)), prompt())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)

    sizes = sizes_by_transformers(theirs, tmp_path / "hf", text)
    order = sizes.argsort(descending=True)
    embedding = load_file(ours / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(embedding, theirs.model.embed_tokens.weight[:, order])
    half = sizes[order[:16]].sum() / sizes.sum()
    assert f"the first half has {half:.1%} of the stream's square" in capsys.readouterr().out


def test_a_text_that_cannot_be_used(tmp_path, text):
    write_llama(tmp_path / "hf")
    ours, short = tmp_path / "ours", tmp_path / "short.txt"
    short.write_text(TEXT)
    other = tmp_path / "text.csv"
    other.write_text(TEXT)
    for order, message in (
        (short, r"order=.*short.txt has \d+ tokens: give a text of 8,192 or more"),
        (other, r"order=.*text.csv is not a text file: give one that ends in .txt, .jsonl"),
        (tmp_path / "gone.txt", r"order=.*gone.txt is not a text file"),
    ):
        with pytest.raises(ValueError, match=message):
            main([f"from={tmp_path / 'hf'}", f"to={ours}", "parallel.tensor=2", f"order={order}"])
        assert not ours.exists()


def test_only_models_without_private_channels_are_ordered(tmp_path, text):
    write_llama(tmp_path / "hf")
    ours, back = tmp_path / "ours", tmp_path / "back"
    main([f"from={tmp_path / 'hf'}", f"to={ours}", "parallel.tensor=2", "sync.ratio=0.5", f"order={text}"])
    with pytest.raises(ValueError, match=r"order=.* is for a model that comes from Hugging Face"):
        main([f"from={ours}", f"to={back}", f"order={text}"])
    main([f"from={ours}", f"to={back}"])
    with pytest.raises(ValueError, match=r"order=.* would change the model: .* sync.ratio=0.5"):
        main([f"from={back}", f"to={tmp_path / 'again'}", f"order={text}"])
