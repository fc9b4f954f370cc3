"""8-bit integers on the wire: the rounding, real sums of it, and a model that trains through them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from caat.parallel.collectives import Collectives
from caat.parallel.int8 import pack, unpack
from caat.parallel.mesh import Mesh
from caat.parallel.sums import SumOptions
from conf.partition import shared_channels
from tests.models import SMALL, batch, build, gathered
from tests.reference import loss_and_gradients, random_weights, rounded_to_int8

INT8 = SumOptions(torch.int8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_token_is_its_channels_in_8_bits_and_a_scale(dtype):
    x = (
        torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
        * 10.0 ** torch.arange(-2, 3)[:, None]
    )
    x = x.to(dtype)
    for token in x[:, :, :6].flatten(0, -2):
        torch.testing.assert_close(
            unpack(pack(token[None]))[0].double(), rounded_to_int8(token), rtol=1e-6, atol=0
        )
    packed = pack(x)
    assert packed.dtype is torch.int8 and packed.shape == (15, 68)
    back = unpack(packed).view_as(x)
    torch.testing.assert_close(back.double(), rounded_to_int8(x), rtol=1e-6, atol=0)
    largest = x.double().abs().amax(-1, keepdim=True)
    off = (back.double() - x.double()).abs()
    assert (off <= largest / 127 / 2 * (1 + 1e-4)).all()
    # The largest is exact but for the scale's own rounding, and rounding again changes nothing.
    torch.testing.assert_close(back.double().abs().amax(-1, keepdim=True), largest, rtol=1e-6, atol=0)
    assert torch.equal(unpack(pack(back)).view_as(back), back)


def test_nothing_is_made_up_of_zeros_and_nothing_hides_what_is_not_finite():
    x = torch.randn(5, 8)
    # Their scale would be 0, or so coarse that a number is more than 127 of it.
    x[0], x[1, 2], x[2, 3], x[3] = 0, torch.nan, torch.inf, 2.66e-43
    back = unpack(pack(x))
    assert torch.equal(back[0], torch.zeros(8))
    assert not back[1].isfinite().any() and not back[2].isfinite().any()
    assert back[3].abs().max() < 1e-37 and (back[3] >= 0).all() and back[4].isfinite().all()


def parts(world: int, tokens: int, channels: int) -> list[Tensor]:
    """Everybody's message, with tokens of very different sizes."""
    generator = torch.Generator().manual_seed(tokens)
    size = 10.0 ** torch.randint(-3, 4, (tokens, 1), generator=generator)
    return [torch.randn(tokens, channels, generator=generator) * size for _ in range(world)]


# Fewer tokens than processes, and numbers of them that the processes do not divide.
SIZES = [(1, 8), (1, 3), (2, 3), (7, 64), (256, 16), (257, 5)]


def summed(dtype: torch.dtype):
    rank, world = dist.get_rank(), dist.get_world_size()
    collectives = Collectives(world, None, INT8)
    results = []
    for tokens, channels in SIZES:
        x = parts(world, tokens, channels)[rank].to(dtype).view(1, tokens, channels)
        collectives.start_sum(x, "forward", "sync")()
        results.append(x)
    return results, dict(collectives.ledger.sent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world", [2, 4])
def test_sums_between_processes(ranks, world, dtype):
    """Every part is rounded, then their sum; everybody has the same bits."""
    by_rank = ranks(world).run(summed, dtype)
    assert by_rank[0][1] == {("forward", "sync"): sum(tokens * (k + 4) for tokens, k in SIZES)}
    for index, (tokens, channels) in enumerate(SIZES):
        total = sum(rounded_to_int8(part.to(dtype)) for part in parts(world, tokens, channels))
        want = rounded_to_int8(total.float())
        got = by_rank[0][0][index]
        assert got.dtype is dtype and got.shape == (1, tokens, channels)
        # bfloat16 keeps 8 bits of the result.
        rtol = 1e-6 if dtype is torch.float32 else 2**-8
        torch.testing.assert_close(got[0].double(), want, rtol=rtol, atol=0)
        assert all(torch.equal(got, results[index]) for results, _ in by_rank)


def model_gradients(ratio: float, checkpointing: str, options: SumOptions):
    world = dist.get_world_size()
    model = build(Mesh.create(world, world, options), ratio, checkpointing)
    loss = model(*batch()).mean()
    loss.backward()
    gradients = gathered(model, {name: p.grad for name, p in model.named_parameters()})
    return loss.detach(), gradients, dict(model.mesh.tensor.ledger.sent)


@pytest.mark.parametrize(
    ("world", "ratio", "checkpointing"),
    [(2, 0.5, "none"), (4, 0.5, "none"), (4, 0.25, "full"), (2, 1.0, "selective")],
)
def test_a_model_is_the_reference_with_rounded_sums(ranks, world, ratio, checkpointing):
    """Forward and backward; rounding itself moves the loss a hundred times further than the tolerance."""
    loss, gradients, sent = ranks(world).run(model_gradients, ratio, checkpointing, INT8)[0]
    k = shared_channels(SMALL.hidden, ratio, world)
    model = random_weights(SMALL), SMALL, *batch(), world, k
    want_loss, want = loss_and_gradients(*model, rounded=rounded_to_int8)
    exact_loss, exact = loss_and_gradients(*model)
    assert abs(loss - want_loss) < 1e-6 < abs(exact_loss - want_loss) / 100
    for name, gradient in gradients.items():
        size = exact[name].norm()
        assert (gradient - want[name]).norm() < 1e-5 * size < (exact[name] - want[name]).norm() / 100, name
    tokens = batch()[0].numel()
    assert sent["forward", "sync"] == sent["backward", "sync"] == 2 * SMALL.layers * tokens * (k + 4)
    assert sent["backward", "embedding"] == tokens * (SMALL.hidden + 4)
