"""docs/ablation/variants.py: the product where both know the pattern; every pattern sends as much."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from caat.parallel.mesh import Mesh
from layers import GPT
from tests.models import FAMILIES, SMALL, batch, gathered
from tests.reference import loss_and_gradients as reference_gradients
from tests.reference import random_weights, rounded_to_int8
from tests.trained import SENTENCES, write_checkpoint

OTHER = FAMILIES["biases and norms"]
FILE = Path(__file__).parents[2] / "docs" / "ablation" / "variants.py"


@pytest.fixture(scope="module")
def variants():
    spec = importlib.util.spec_from_file_location("variants", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loss_and_gradients(build, ratio: float, scale: float, c=SMALL):
    weights = random_weights(c)
    model = build(c, Mesh(4), ratio, scale, dtype=torch.float64)
    model.fill(lambda name, _: weights[name])
    loss = model(*batch()).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("case", [(1.0, 1.0), (0.5, 2.0), (0.25, 1.0), (0.0, 3.0), (0.5, 1.0, OTHER)])
def test_the_fixed_pattern_is_the_product(variants, case):
    loss, gradients = loss_and_gradients(variants.VariedGPT.empty, *case)
    expected_loss, expected = loss_and_gradients(GPT.empty, *case)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_all_patterns_send_the_same(variants):
    for ratio in (0.25, 0.5):
        for window in variants.PATTERNS.values():
            sizes = [window(number, 8, ratio)[1] for number in range(8)]
            assert sum(sizes) / 8 == pytest.approx(ratio), window
            assert all(0 <= size <= 1 for size in sizes), window


def test_a_ratio_that_cannot_be_shared_out_is_refused_before_anything_starts(
    variants, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, ratio in (("attention", 0.75), ("periodic", 0.1), ("ends", 0.9)):
        with pytest.raises(SystemExit) as end:
            variants.run(name, ["run.dir=run", f"sync.ratio={ratio}"])
        assert end.value.code == 2
        assert capsys.readouterr().err == (
            f"caat: error: sync.ratio={ratio} cannot be shared out by {name}: give sync.ratio=0.25 or 0.5\n"
        )
    assert not list(tmp_path.iterdir())


def test_rotating_windows_go_round(variants, monkeypatch):
    assert [variants.rotating(number, 8, 0.25)[0] for number in range(8)] == [0, 0.25, 0.5, 0.75] * 2
    monkeypatch.setattr(variants.VariedGPT, "window", staticmethod(variants.rotating))
    model = variants.VariedGPT.empty(SMALL, Mesh(4), 0.25, dtype=torch.float64)
    model.fill(lambda name, _: random_weights(SMALL)[name])
    a = torch.randn(2, 9, SMALL.hidden, dtype=torch.float64)
    for number in range(4):
        added = model._mixed(a, model.blocks[0].attention.output, number)
        shared = (added == added[0]).flatten(0, -2).all(0).nonzero().flatten().tolist()
        assert shared == list(range(32 * number, 32 * number + 32))
        product = a @ model.blocks[0].attention.output.weight.T
        torch.testing.assert_close(added[0][..., shared], product[..., shared])


def test_8_bit_integers_are_those_of_as_many_processes(variants, monkeypatch):
    """But for the embedding's gradient, which only processes send."""
    weights = random_weights(SMALL)
    model = weights, SMALL, *batch(), 4, SMALL.hidden // 2, 1.0
    want_loss, want = reference_gradients(*model, rounded=rounded_to_int8)
    exact_loss, exact = reference_gradients(*model)
    monkeypatch.setattr(variants.VariedGPT, "sums", variants.SUMS["int8"])
    varied = variants.VariedGPT.empty(SMALL, Mesh(4), 0.5, 1.0, dtype=torch.float64)
    varied.fill(lambda name, _: weights[name])
    loss = varied(*batch()).mean()
    loss.backward()
    assert abs(loss - want_loss) < 1e-6 < abs(exact_loss - want_loss) / 100
    gradients = gathered(varied, {name: p.grad for name, p in varied.named_parameters()})
    for name in gradients.keys() - {"model.embed_tokens.weight"}:
        error, size = (gradients[name] - want[name]).norm(), exact[name].norm()
        assert error < 1e-5 * size < (exact[name] - want[name]).norm() / 100, name


def test_a_scaled_start_is_the_factor_before_the_first_step(variants, monkeypatch):
    """The same loss as with the factor in the forward pass; the weights are as many times larger."""
    expected, _ = loss_and_gradients(GPT.empty, 0.5, 2.0)
    monkeypatch.setattr(variants.VariedGPT, "scaled_start", True)
    loss, _ = loss_and_gradients(variants.VariedGPT.empty, 0.5, 1.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "error"), [("int8", 0.0085), ("int8_parts", 0.006), ("bf16", 0.002), ("bf16_sums", 0.005)]
)
def test_low_bit_sums(variants, name, error):
    """Relative to the root mean square of the sum, of normal numbers: no more than this, and not exact."""
    forward, backward = variants.SUMS[name]
    parts = torch.randn(8, 64, 256, generator=torch.Generator().manual_seed(0))
    for add_up in (forward, backward):
        off = (add_up(parts) - parts.double().sum(0)).norm() / parts.double().sum(0).norm()
        assert error / 4 < off < error * 1.5


def test_the_error_of_low_bit_sums_in_a_model(tmp_path):
    checkpoint = write_checkpoint(tmp_path, shards=8, ratio=0.5)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(SENTENCES * 10))
    command = [sys.executable, str(FILE.with_name("wire_error.py")), str(checkpoint), str(text)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    errors = {line.split(":")[0]: float(line.split()[-6].rstrip("%")) for line in printed}
    assert len(errors) == 8
    for direction in ("forward", "backward"):
        assert 0.1 < errors[f"bf16, {direction}"] < errors[f"bf16_sums, {direction}"] < 1
        assert 0.1 < errors[f"int8_parts, {direction}"] < errors[f"int8, {direction}"] < 2
