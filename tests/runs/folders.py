"""Run folders as training leaves them, without training."""

from __future__ import annotations

import json
from pathlib import Path

from conf.reading.saved import save_config
from conf.schema import Config
from launch.run.compose import compose

LOSSES = {(1.0, 1): 3.0, (1.0, 2): 3.2, (0.5, 1): 3.1, (0.5, 2): 3.4, (0.0, 3): 3.9}


def write_run(
    folder: Path, config: Config, losses: list[float], status: str = "finished", sent: int = 0
) -> None:
    """A run folder as training leaves it: a record a step, the last of them validated."""
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    (folder / "status.json").write_text(json.dumps({"status": status}))
    lines = []
    for step, loss in enumerate(losses, 1):
        record = {
            "step": step,
            "tokens": 1000 * step,
            "loss": loss + 0.5,
            "step_seconds": 0.1 * step,
            "tokens_per_second": 100.0,
            "mfu": None,
            "tensor_parallel_bytes_forward": sent // 2,
            "tensor_parallel_bytes_backward": sent // 2,
        }
        if sent:  # older runs did not record these
            record |= {"tensor_parallel_processes": 4}
            record |= {"data_parallel_bytes_gradients": 2**19, "data_parallel_bytes_weights": 2**18}
            record |= {"data_parallel_calls_gradients": 2, "data_parallel_calls_weights": 3}
        lines.append(json.dumps(record | {"validation_loss": loss}))
    # As `caat evaluate` adds them: the later replaces the earlier, but not that of a later checkpoint.
    for step, off in ((len(losses), 1.0), (len(losses), 0.0), (1, 2.0)):
        scores = {"eval/news/bits_per_byte": 2 * loss + off} if losses else {}
        lines.append(json.dumps({"step": step, "tokens": 1000 * step, **scores}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_sweep(top: Path) -> Path:
    """Runs of three ratios, one that was cut, and one that cannot be read."""
    for (ratio, seed), loss in LOSSES.items():
        config = compose([f"sync.ratio={ratio}", f"seed={seed}", f"run.dir=r{ratio}-s{seed}"])
        write_run(top / f"r{ratio}-s{seed}", config, [9.0, 8.0, 7.0, 5.0, loss], sent=int(ratio * 2**21))
    write_run(top / "deep" / "cut", compose(["sync.ratio=0.25"]), [8.0, 7.5], status="running")
    # wandb keeps a file of this name inside a run.
    inside = top / "r0.0-s3" / "wandb" / "files"
    inside.mkdir(parents=True)
    (inside / "config.yaml").write_text("wandb_version: 1\n")
    damaged = top / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("model: {layers: many}\n")
    return top
