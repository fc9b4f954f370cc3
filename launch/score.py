"""`caat score`: the log-probability of every next token, from a checkpoint, in one process or several."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from conf.schema import ScoreConfig
from launch.config import load_verb
from launch.processes import run_workers, under_torchrun


def main(argv: list[str]) -> None:
    """Print and write log p(next token), in nats, for each sequence of ``tokens``.

    ``<out>.npy`` holds float64 [batch, length - 1] ([length - 1] for a single sequence), ``<out>.json`` the
    same with the mean and the perplexity; its path is the last line. Raises ``ValueError`` for a wrong
    checkpoint, token file or number of processes, before any process starts.
    """
    config = load_verb(ScoreConfig, argv)
    tokens = read_tokens(config.tokens)
    world = int(os.environ["WORLD_SIZE"]) if under_torchrun() else config.launch.processes
    if world > 1 and not under_torchrun():
        _check(config, tokens, world)
        status = run_workers("launch.score", argv, world)
        if status:
            raise SystemExit(status)
        return
    _score(config, tokens, world)


def read_tokens(path: str) -> np.ndarray:
    """Token numbers, int64 [batch, length] or [length]; raises ``ValueError`` for anything else."""
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokens={path} cannot be read as a .npy file of numbers ({error})") from None
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2) or tokens.shape[-1] < 2 or not tokens.size:
        raise ValueError(
            f"tokens={path} holds {tokens.dtype} of shape {tokens.shape}: give whole numbers of shape "
            "[length] or [batch, length], length 2 or more"
        )
    return tokens.astype(np.int64)


def _check(config: ScoreConfig, tokens: np.ndarray, world: int) -> Path:
    """Everything that can be wrong with the checkpoint and the layout; returns the checkpoint folder."""
    from caat.training.checkpoint.architecture import read_architecture
    from caat.training.checkpoint.folder import find

    folder = find(config.checkpoint)
    architecture = read_architecture(folder)
    if architecture.shards % world:
        raise ValueError(
            f"{world} processes do not divide the checkpoint's {architecture.shards} shards: "
            "choose launch.processes that does"
        )
    if tokens.min() < 0 or tokens.max() >= architecture.model.vocab_size:
        raise ValueError(
            f"tokens={config.tokens} holds {tokens.min()} to {tokens.max()}, but the model knows 0 to "
            f"{architecture.model.vocab_size - 1}: use the checkpoint's tokenizer"
        )
    if tokens.shape[-1] - 1 > architecture.model.sequence and os.environ.get("RANK", "0") == "0":
        print(
            f"note: {tokens.shape[-1]} tokens are more than the model's context of "
            f"{architecture.model.sequence}: it was not trained for the later ones",
            file=sys.stderr,
        )
    return folder


def _score(config: ScoreConfig, tokens: np.ndarray, world: int) -> None:
    import torch

    from caat.parallel.mesh import Mesh
    from caat.training.checkpoint.architecture import read_architecture
    from caat.training.device import DTYPES, choose_device, start_process_group, stop_process_group
    from eval.score import load_model, next_token_log_probabilities

    folder = _check(config, tokens, world)
    device = choose_device(config.launch.device, int(os.environ.get("LOCAL_RANK", "0")), world)
    dtype = DTYPES[config.precision]
    shards = read_architecture(folder).shards
    if world == 1:
        mesh = Mesh(shards)
    else:
        start_process_group(device)
        mesh = Mesh.create(shards, world)
    model = load_model(folder, mesh, device, dtype)
    rows = torch.from_numpy(np.atleast_2d(tokens)).to(device)
    scores = torch.cat([next_token_log_probabilities(model, part) for part in rows.split(config.batch)])
    if world > 1:
        stop_process_group()
    if mesh.tensor_rank == 0:
        _write(config, folder, scores.double().cpu().numpy().reshape(*tokens.shape[:-1], -1))


def _write(config: ScoreConfig, folder: Path, scores: np.ndarray) -> None:
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    out = Path(config.out) if config.out else run / "scores"
    out = out.with_suffix("") if out.suffix in (".json", ".npy") else out
    out.parent.mkdir(parents=True, exist_ok=True)
    np.save(out.with_name(out.name + ".npy"), scores)
    result = {
        "checkpoint": str(folder),
        "tokens": config.tokens,
        "mean_log_probability": float(scores.mean()),
        "perplexity": float(np.exp(-scores.mean())),
        "log_probabilities": scores.tolist(),
    }
    path = out.with_name(out.name + ".json")
    path.write_text(json.dumps(result) + "\n")
    for row in np.atleast_2d(scores):
        print(" ".join(f"{value:.6f}" for value in row))
    print(f"mean {scores.mean():.6f} nats per token, perplexity {np.exp(-scores.mean()):.3f}")
    print(path)


if __name__ == "__main__":
    from launch.errors import user_errors

    with user_errors():
        main(sys.argv[1:])
