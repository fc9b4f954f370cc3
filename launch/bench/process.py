"""One process of a communication benchmark.

Each of the P processes runs ``python -m launch.bench.process KIND SCHEMA SETTINGS OUT``; the first one
writes ``OUT``. ``SCHEMA`` is a class of :mod:`conf.bench`, ``SETTINGS`` a JSON file of its values.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist
from omegaconf import OmegaConf

from caat.parallel.world import local_rank
from caat.supervision.allocator import keep_large_buffers
from caat.supervision.device import choose_device, start_process_group, stop_process_group
from conf import bench
from conf.reading.build import build, literal
from eval.speed.cache import cache_rows
from eval.speed.collectives import collective_rows
from eval.speed.data import data_rows
from eval.speed.islands import island_rows
from eval.speed.measure import measure
from eval.speed.messages import measure_messages
from eval.speed.profiling import profile_rows
from eval.speed.variants import decode_variants, network_variants, peer_variants, prefill_variants
from launch.command.errors import user_errors

VARIANTS = {
    "network": network_variants,
    "peers": peer_variants,
    "prefill": prefill_variants,
    "decode": decode_variants,
}
# Kinds whose rows are compared with the planner's formulas, which need the cost of a message here.
PREDICTED = ("network", "data", "islands")


def main(kind: str, schema: str, settings: Path, out: Path) -> None:
    made = getattr(bench, schema)
    values = OmegaConf.merge(made, literal(json.loads(settings.read_text())))
    config = build(values, made)
    # Hosts of their own, in namespaces, have no backend to choose.
    backend = getattr(config, "backend", "auto")
    device = choose_device(config.device, local_rank(), config.processes, backend, prefix="")
    if device.type == "cpu":
        keep_large_buffers()
    start_process_group(device, backend=backend)
    if kind == "profile":
        rows = profile_rows(config, device)
    elif kind == "data":
        rows = data_rows(config)
    elif kind == "islands":
        rows = island_rows(config)
    elif kind == "collectives":
        rows = collective_rows(config)
    elif kind == "cache":
        rows = cache_rows(config)
    else:
        rows = measure(VARIANTS[kind](config, device), config, device)
    if kind in PREDICTED:
        figures = measure_messages(device).figures()
        rows = [row | figures for row in rows]
    if dist.get_rank() == 0:
        out.write_text(json.dumps(rows))
    stop_process_group()


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
