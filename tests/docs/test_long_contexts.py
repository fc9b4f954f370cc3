"""docs/long_contexts: the comparison chooses the rows that the product does, and the page has its figures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from caat.parallel.mesh import Mesh
from conf.cache import CacheConfig
from layers.host_cache import HostKVCache
from tests.models import SMALL, build

DOCS = Path(__file__).parents[2] / "docs"
PAST, TOKENS, KEEP = 40, 60, 3


@pytest.mark.parametrize("index", ["int8", "int4"])
def test_the_comparison_is_generation_token_by_token(index, monkeypatch):
    for folder in ("ablation", "long_contexts"):
        monkeypatch.syspath_prepend(str(DOCS / folder))
    import compare

    config = replace(SMALL, sequence=TOKENS, hidden=128, heads=4, kv_heads=2)
    model = build(Mesh(1), 1.0, dtype=torch.float32, config=config).eval()
    tokens = torch.randint(SMALL.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    case = compare.Case("text", TOKENS, 0, tokens[0].tolist(), PAST, PAST)
    rows = compare.measure(model, case, [KEEP, TOKENS], list(compare.METHODS), set())
    found = {(row["method"], row["keep"]): row for row in rows}

    settings = CacheConfig("host", keep=KEEP, index=index)
    padding = torch.zeros(1, dtype=torch.long)
    cache = HostKVCache(config, model.mesh, padding, TOKENS, torch.float32, settings=settings)
    with torch.inference_mode():
        model(tokens[:, :PAST], cache=cache)
        logits = torch.cat([model(tokens[:, [at]], cache=cache)[0] for at in range(PAST, TOKENS - 1)])
    loss = float(F.cross_entropy(logits, tokens[0, PAST + 1 :]))
    assert found[index, KEEP]["loss"] == pytest.approx(loss, abs=2e-6)
    full = found["full", 0]["loss"]
    assert abs(full - loss) > 1e-5, "16 + 4 + 3 of 60 rows should make a difference"
    for method in compare.METHODS:
        assert found[method, TOKENS]["loss"] == pytest.approx(full, abs=2e-6), method
        assert found[method, TOKENS]["missing"] < 1e-6 < found[method, KEEP]["missing"]
    # A head has 32 components: SparQ reads whole keys.
    assert found["sparq:32", KEEP]["loss"] == pytest.approx(found["best", KEEP]["loss"], abs=2e-6)


def test_the_page_has_the_figures(tmp_path):
    shutil.copytree(DOCS / "long_contexts", tmp_path / "long_contexts")
    (tmp_path / "images").mkdir()
    command = [sys.executable, str(tmp_path / "long_contexts" / "figures.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    page = (DOCS / "long-contexts.md").read_text().splitlines()
    rows = [line for line in printed if line.startswith("|")]
    assert len(rows) > 8 and not set(rows) - set(page)
    assert (tmp_path / "images" / "long-contexts.png").stat().st_size > 10_000
