"""Training of what other families than Llama 1 and 2 have: one plain process, and the planned bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.models import FAMILIES, OPTIONS
from tests.planning.test_data_traffic import EVEN, ODD, check_counts, counted_data_bytes
from tests.training.test_engine import LAMB, OPTIM, check, train, train_with_no_weight_whole


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_equals_one_plain_process(ranks, family, stage):
    config, optim = replace(FAMILIES[family], layers=1), LAMB if stage == 1 else OPTIM
    how = train_with_no_weight_whole if stage == 3 else train
    by_rank = ranks(4).run(how, config, 4, 2, 0.5, stage, "fp32", "none", None, optim)
    check(by_rank, config, 4, 0.5, 2, f"{family}, stage {stage}", optim=optim)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_between_replicas(ranks, family):
    config = replace(EVEN, **OPTIONS[family])
    check_counts(ranks(4).run(counted_data_bytes, config, 2, 1)[0], 2)


@pytest.mark.parametrize(("layers", "vocab_size"), [(2, 31), (3, 31), (3, 70)])
def test_tied_embeddings_are_gathered_once(ranks, layers, vocab_size):
    """At stage 3, where other weights that far apart are gathered twice."""
    config = replace(ODD, layers=layers, vocab_size=vocab_size, tie_embeddings=True)
    check_counts(ranks(4).run(counted_data_bytes, config, 1, 2, True)[0], 4)
