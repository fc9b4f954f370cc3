"""docs/definitions.md: its code is the order that training has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from caat.data.loader import Loader
from caat.data.shards import TokenShards
from tests.data.conftest import write_shards

PAGE = Path(__file__).parents[2] / "docs" / "definitions.md"


@pytest.mark.parametrize(("count", "seed"), [(1, 1), (2, 7), (37, 1), (64, 3), (65, 123456)])
def test_the_order_of_the_data(tmp_path, count, seed):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    tokens = write_shards(tmp_path / "shards", [4 * count + 1])
    loader = Loader(TokenShards(tmp_path / "shards", "train"), 4, 2, 6, seed)
    for step in range(2 * count // 6 + 2):
        rows = [row.tolist() for inputs, _ in loader.step() for row in inputs]
        numbers = [names["sequence_at"](place, count, seed) for place in range(6 * step, 6 * step + 6)]
        assert rows == [tokens[4 * number : 4 * number + 4].tolist() for number in numbers]
