"""The benchmark of a KV cache in the memory of another process: what is fetched, and that it is exact."""

from __future__ import annotations

from conf.bench import BenchCacheConfig
from conf.bench.cache import WARM_UP
from eval.speed.cache import cache_rows
from layers.host_cache import FIRST, LAST

LAYERS, HEADS, D, TOKENS, BATCH, ROUNDS = 2, 2, 16, 60, 2, 3
CONFIG = BenchCacheConfig(
    layers=LAYERS,
    hidden=HEADS * D,
    ffn=48,
    heads=HEADS,
    sequence=TOKENS,
    batch=BATCH,
    vocab_size=64,
    keeps=[4, 100],
    sparq=D,
    rounds=ROUNDS,
)


def test_with_all_rows_every_way_is_exact_and_bytes_are_counted(ranks):
    rows, nothing = ranks(2).run(cache_rows, CONFIG)
    assert nothing == []
    by = {row["mode"]: row for row in rows}
    few, many = ("host, keep 4", "host, keep 100")
    assert list(by) == ["device", "full fetch", few, many, "sparq:16, keep 4", "sparq:16, keep 100"]
    assert by["device"]["error"] == by[many]["error"] == 0 == by["device"]["bytes"]
    # Each way stores its own new tokens.
    assert abs(by["full fetch"]["error"]) < 1e-8 > abs(by["sparq:16, keep 100"]["error"])
    # Reading all components is choosing by the logits themselves.
    assert by[few]["error"] > 1e-6 < by["sparq:16, keep 4"]["error"]

    number, request, capacity = 4, 4 * 8, TOKENS + ROUNDS + WARM_UP
    row = 2 * D * number
    stored = LAYERS * (HEADS * row + request / BATCH)
    assert by["full fetch"]["bytes"] == stored + LAYERS * (HEADS * row * capacity + request / BATCH)
    kept = LAYERS * HEADS * (4 + FIRST + LAST) * (row + 4)
    components = LAYERS * HEADS * (D * capacity * number + D * 4)
    assert by["sparq:16, keep 4"]["bytes"] == stored + kept + components + 2 * LAYERS * request / BATCH
    # Nothing but the new row is fetched once all are on the device.
    assert by[many]["bytes"] == stored < by[few]["bytes"] < stored + kept + LAYERS * request / BATCH
    assert all(row["token_ms"] > 0 for row in rows) and by["full fetch"]["speed_up"] == 1
