"""What a run's validation loss is put beside."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from launch.summary import baselines
from tests.data.conftest import write_shards


@pytest.mark.parametrize(("count", "used"), [(3, 3), (100, 4)])
def test_unigram_model_of_the_validated_targets(tmp_path, count, used):
    tokens = write_shards(tmp_path / "shards", [30, 20], 40, "validation")
    counts = np.random.default_rng(1).integers(1000, size=40)
    np.save(tmp_path / "shards" / "unigram.npy", counts)
    found = baselines(tmp_path / "shards", 11, count)
    # Sequences of 11 tokens, each with its targets one further.
    targets = np.concatenate([tokens[11 * i + 1 : 11 * i + 12] for i in range(used)])
    each = [log((counts[token] + 1) / (counts.sum() + 40)) for token in targets]
    assert found == {"uniform": log(40), "unigram": pytest.approx(-sum(each) / len(each), abs=1e-12)}
