"""The next token: against plain references, and the same on every process."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from conf.generate import SamplingConfig
from eval.generation.sampling import Sampler, largest, nucleus
from layers.loss import mask_padding

VOCABULARY, PADDED, ROWS = 61, 64, 5


def logits(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(ROWS, PADDED, generator=generator, dtype=torch.float64)


def local(mesh: Mesh, seed: int = 0) -> torch.Tensor:
    """This process's slice; the padding would be the largest, were it not masked."""
    whole = logits(seed)
    whole[:, VOCABULARY:] = 100.0
    return mask_padding(whole.chunk(mesh.processes, -1)[mesh.tensor_rank], VOCABULARY, mesh)


def mesh_of(processes: int) -> Mesh:
    return Mesh(4) if processes == 1 else Mesh.create(4, processes)


def draws(processes: int, settings: SamplingConfig, count: int) -> tuple[torch.Tensor, dict]:
    mesh = mesh_of(processes)
    sampler = Sampler(settings, VOCABULARY, mesh, range(ROWS))
    drawn = torch.stack([sampler(local(mesh, seed)) for seed in range(count)])
    return drawn, {**mesh.tensor.ledger.calls, "bytes": sum(mesh.tensor.ledger.sent.values())}


def plain_distribution(row: torch.Tensor, settings: SamplingConfig) -> torch.Tensor:
    """Token by token, from the definitions."""
    scaled = row[:VOCABULARY] / settings.temperature
    allowed = set(range(VOCABULARY))
    if settings.top_k:
        allowed = set(sorted(allowed, key=lambda token: -float(scaled[token]))[: settings.top_k])
    weights = [float(scaled[token].exp()) if token in allowed else 0.0 for token in range(VOCABULARY)]
    total, reached = sum(weights), 0.0
    for token in sorted(allowed, key=lambda token: -weights[token]):
        if reached >= settings.top_p:
            weights[token] = 0.0
        else:
            reached += weights[token] / total
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


SETTINGS = [
    dict(temperature=1.0),
    dict(temperature=0.5, top_k=5),
    dict(temperature=2.0, top_p=0.6),
    dict(temperature=1.3, top_k=20, top_p=0.9),
    dict(temperature=1.0, top_k=1000),
]


@pytest.mark.parametrize("how", SETTINGS)
def test_draws_follow_the_distribution(how):
    settings, count = SamplingConfig(**how), 4000
    sampler = Sampler(settings, VOCABULARY, Mesh(4), range(ROWS))
    same = local(Mesh(4))
    drawn = torch.stack([sampler(same) for _ in range(count)])
    for number in range(ROWS):
        expected = plain_distribution(logits()[number], settings)
        found = torch.bincount(drawn[:, number], minlength=VOCABULARY).double() / count
        assert not found[expected == 0].any()
        deviation = (expected * (1 - expected) / count).sqrt()
        assert ((found - expected).abs() <= 5 * deviation + 1e-9).all()


def test_greedy_is_the_largest():
    sampler = Sampler(SamplingConfig(), VOCABULARY, Mesh(4), range(ROWS))
    assert torch.equal(sampler(local(Mesh(4))), logits()[:, :VOCABULARY].argmax(-1))


@pytest.mark.parametrize("how", [{}, *SETTINGS])
@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_draws_what_one_alone_would(ranks, how, processes):
    settings, count = SamplingConfig(**how), 20
    expected, _ = draws(1, settings, count)
    candidates = 1 if not how else settings.top_k or VOCABULARY
    for found, counts in ranks(processes).run(draws, processes, settings, count):
        assert torch.equal(found, expected)
        assert counts["forward", "sampling"] == count  # one message a token
        slice_size = PADDED // processes
        size = 2 * candidates if candidates < slice_size else slice_size
        assert counts["bytes"] == count * ROWS * 8 * size


def test_what_is_drawn_does_not_depend_on_the_batch():
    settings = SamplingConfig(temperature=5.0)
    row = logits()[:1, :VOCABULARY]
    alone = [Sampler(settings, VOCABULARY, Mesh(1), [number]) for number in range(40)]
    together = Sampler(settings, VOCABULARY, Mesh(1), range(40))
    for _ in range(3):
        expected = torch.cat([sampler(row) for sampler in alone])
        assert torch.equal(together(row.expand(40, -1)), expected)
        assert len(expected.unique()) > 5, "equal prompts draw for themselves"


def test_another_seed_draws_something_else():
    first, second = (draws(1, SamplingConfig(temperature=1.0, seed=seed), 20)[0] for seed in (1, 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("count", [1, 7, VOCABULARY])
def test_largest(count):
    values, tokens = largest(local(Mesh(4)), count, Mesh(4))
    expected = logits()[:, :VOCABULARY].sort(-1, descending=True)
    assert torch.equal(values, expected.values[:, :count])
    assert torch.equal(tokens, expected.indices[:, :count])


def test_the_nucleus_keeps_the_token_that_reaches_top_p():
    kept = nucleus(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), 0.7)
    assert kept.tolist() == [[0.5, pytest.approx(0.3), 0.0, 0.0]]
    assert nucleus(torch.tensor([[0.9, 0.1]]), 0.01).count_nonzero() == 1


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.75, 2), (1.0, 4)])
def test_the_nucleus_ends_with_what_reaches_top_p_exactly(top_p, kept):
    assert nucleus(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), top_p).count_nonzero() == kept


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (dict(temperature=-0.1), "temperature=-0.1 must be"),
        (dict(temperature=float("nan")), "temperature=nan must be"),
        (dict(temperature=1.0, top_p=0.0), "top_p=0.0 is outside"),
        (dict(temperature=1.0, top_p=1.1), "top_p=1.1 is outside"),
        (dict(temperature=1.0, top_k=-1), "top_k=-1 must not be negative"),
        (dict(top_k=5), "have no effect with temperature=0"),
        (dict(max_new_tokens=0), "max_new_tokens=0 must be above 0"),
        (dict(stop=["a", ""]), "stop contains an empty string"),
        (dict(seed=-1), "seed=-1"),
    ],
)
def test_mistakes(values, says):
    with pytest.raises(ValueError, match=says):
        SamplingConfig(**values)


@pytest.mark.parametrize(
    "settings", [SamplingConfig(temperature=1.0), SamplingConfig()], ids=["drawn", "largest"]
)
def test_entries_that_the_tokenizer_lacks_are_never_drawn(settings):
    pieces = 40
    whole = logits()
    whole[:, pieces:] = 100.0
    sampler = Sampler(settings, pieces, Mesh(4), range(ROWS))
    assert max(int(sampler(whole).max()) for _ in range(20)) < pieces
