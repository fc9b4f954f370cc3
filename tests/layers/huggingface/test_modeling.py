"""The exported modelling file against our model: two implementations that share no code."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from caat.training.checkpoint.architecture import Architecture
from conf.model import ModelConfig
from conf.partition import shared_channels
from layers.huggingface.modeling_caat import CACHE, CaatConfig, CaatForCausalLM
from tests.models import FAMILIES, SMALL, batch, build, gathered
from tests.reference import random_weights

TOLERANCE = dict(rtol=0, atol=1e-10)
CASES = [(1, 0.5), (2, 0.0), (4, 0.25), (4, 0.5), (8, 0.5), (8, 1.0)]


def theirs(shards: int, ratio: float, c: ModelConfig = SMALL) -> CaatForCausalLM:
    """The small model with the reference's weights, as Hugging Face would load it."""
    k = shared_channels(c.hidden, ratio, shards)
    config = CaatConfig(**Architecture(c, shards, ratio, k, shards**0.5).to_json())
    model = CaatForCausalLM(config).double()
    model.load_state_dict(random_weights(c), strict=not c.tie_embeddings)
    return model.eval()


def our_logits(model, tokens: torch.Tensor) -> torch.Tensor:
    return model.head.after_norm(model.hidden(tokens))[1][..., : SMALL.vocab_size]


@pytest.mark.parametrize(
    ("shards", "ratio", "c"),
    [*((*case, SMALL) for case in CASES), *((4, 0.5, c) for c in FAMILIES.values())],
)
def test_logits_and_gradients(shards, ratio, c):
    ours, model = build(Mesh(shards), ratio, config=c), theirs(shards, ratio, c)
    tokens, targets = batch()
    logits = model(tokens).logits
    torch.testing.assert_close(logits, our_logits(ours, tokens), **TOLERANCE)

    ours(tokens, targets).mean().backward()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    want = gathered(ours, {name: p.grad for name, p in ours.named_parameters()})
    got = {name: p.grad for name, p in model.named_parameters()}
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("shards", "ratio"), [(4, 0.5), (2, 0.0)])
def test_the_loss_of_labels(shards, ratio):
    tokens, targets = batch()
    whole = torch.cat([tokens, targets[:, -1:]], 1)
    loss = theirs(shards, ratio)(whole, labels=whole).loss
    want = build(Mesh(shards), ratio)(tokens, targets).mean()
    # Hugging Face computes losses in float32.
    torch.testing.assert_close(loss, want.float(), rtol=0, atol=1e-6)


def test_documents_packed_into_a_row_are_apart():
    """As in Llama, where positions do not go on; without a cache and a mask."""
    model, (tokens, _) = theirs(4, 0.5), batch()
    places = torch.cat([torch.arange(5), torch.arange(tokens.shape[1] - 5)])[None]
    packed = model(tokens, position_ids=places, use_cache=False).logits
    alone = [model(part, use_cache=False).logits for part in tokens.split([5, tokens.shape[1] - 5], 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), **TOLERANCE)
    plain = model(tokens, position_ids=torch.arange(tokens.shape[1])[None], use_cache=False).logits
    torch.testing.assert_close(plain, model(tokens).logits, **TOLERANCE)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_and_left_padding(cache):
    """Each of two prompts of different lengths continues as it does alone in our model without a cache."""
    ours, model = build(Mesh(4), 0.5), theirs(4, 0.5)
    prompts = [batch(seed=3, size=1, length=7)[0], batch(seed=4, size=1, length=4)[0]]
    new = 6
    rows = torch.zeros(2, 7, dtype=torch.long)
    mask = torch.zeros_like(rows)
    for row, prompt in enumerate(prompts):
        rows[row, 7 - prompt.shape[1] :], mask[row, 7 - prompt.shape[1] :] = prompt[0], 1
    logits: list[torch.Tensor] = []
    # Do not use the logits that generate() returns: they are rounded to float32.
    model.register_forward_hook(lambda module, inputs, out: logits.append(out.logits[:, -1]))
    sequences = model.generate(
        rows,
        attention_mask=mask,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation=cache,
    )
    for row, prompt in enumerate(prompts):
        text = prompt
        for step in range(new):
            with torch.no_grad():
                want = our_logits(ours, text)[0, -1]
            torch.testing.assert_close(logits[step][row], want, **TOLERANCE)
            text = torch.cat([text, want.argmax().view(1, 1)], 1)
        assert sequences[row, 7:].tolist() == text[0, prompt.shape[1] :].tolist()


def test_the_last_logits_alone():
    model, (tokens, _) = theirs(4, 0.25), batch()
    whole = model(tokens).logits
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, whole[:, -2:], **TOLERANCE)


def test_an_argument_that_is_not_known_is_refused():
    """Other versions of transformers may name the cache differently; ignoring it would give wrong text."""
    model, (tokens, _) = theirs(2, 0.5), batch()
    with pytest.raises(TypeError, match="does not know the argument cache_of_tomorrow"):
        model(tokens, cache_of_tomorrow=object())
    model(tokens, token_type_ids=torch.zeros_like(tokens), output_attentions=False)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_by_either_name(name):
    model, (tokens, _) = theirs(4, 0.25), batch()
    first = model(tokens[:, :5], use_cache=True)
    rest = model(tokens[:, 5:], **{name: first[CACHE]}).logits
    torch.testing.assert_close(rest, model(tokens).logits[:, 5:], **TOLERANCE)
