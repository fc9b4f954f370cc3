"""The benchmark of a KV cache in the memory of another process: what is fetched, and that it is exact."""

from __future__ import annotations

from conf.bench import BenchCacheConfig
from conf.bench.cache import WARM_UP
from eval.speed.cache import cache_rows
from layers.host_cache import FIRST, LAST
from tests.trained import MODEL, SENTENCES, write_checkpoint

LAYERS, HEADS, D, TOKENS, BATCH, ROUNDS = MODEL.layers, MODEL.kv_heads, MODEL.head_size, 60, 2, 3


def test_with_all_rows_every_way_is_exact_and_bytes_are_counted(ranks, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(SENTENCES))
    config = BenchCacheConfig(
        checkpoint=str(write_checkpoint(tmp_path / "run", 2, 0.5)),
        text=str(text),
        sequence=TOKENS,
        batch=BATCH,
        keeps=[100, 4],
        sparq=D,
        rounds=ROUNDS,
    )
    rows, nothing = ranks(2).run(cache_rows, config)
    assert nothing == []
    by = {row["mode"]: row for row in rows}
    few, many = ("host, keep 4", "host, keep 100")
    assert list(by) == ["device", "full fetch", many, few, "sparq:8, keep 100", "sparq:8, keep 4"]
    assert by["device"]["error"] == by[many]["error"] == 0 == by["device"]["bytes"]
    # The last way loses much: the others must not read the new tokens that it stores.
    assert abs(by["full fetch"]["error"]) < 1e-6 > abs(by["sparq:8, keep 100"]["error"])
    # Reading all components is choosing by the logits themselves.
    assert by[few]["error"] > 1e-2 < by["sparq:8, keep 4"]["error"]

    number, request, capacity = 4, 4 * 8, TOKENS + ROUNDS + WARM_UP
    row = 2 * D * number
    stored = LAYERS * (HEADS * row + request / BATCH)
    assert by["full fetch"]["bytes"] == stored + LAYERS * (HEADS * row * capacity + request / BATCH)
    kept = LAYERS * HEADS * (4 + FIRST + LAST) * (row + 4)
    components = LAYERS * HEADS * (D * capacity * number + D * 4)
    assert by["sparq:8, keep 4"]["bytes"] == stored + kept + components + 2 * LAYERS * request / BATCH
    # Nothing but the new row is fetched once all are on the device.
    assert by[many]["bytes"] == stored < by[few]["bytes"] < stored + kept + LAYERS * request / BATCH
    assert all(row["token_ms"] > 0 for row in rows) and by["full fetch"]["speed_up"] == 1
