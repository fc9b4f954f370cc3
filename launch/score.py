"""`caat score`: computes the log-probability of every next token, in one process or several."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from caat.parallel.world import is_first_rank
from caat.storage.arrays import map_array
from conf.checks import require
from conf.reading.verb import load_verb
from conf.score import ScoreConfig
from launch.command.results import keep_input, result_file, write_json
from launch.command.trained import find_trained, on_mesh, ran_in_processes, result_path


def main(argv: list[str]) -> None:
    """Print and write log p(next token), in nats, for each sequence of ``tokens``.

    ``<out>.npy`` holds float64 [batch, length - 1] ([length - 1] for a single sequence), ``<out>.json`` the
    same with the mean and the perplexity. The path of the JSON file is the last line. Raises ``ValueError``
    for a wrong checkpoint, token file or number of processes, before any process starts.
    """
    config = load_verb(ScoreConfig, argv)
    tokens = read_tokens(config.tokens)
    folder, architecture = find_trained(config.checkpoint, config.launch)
    known = architecture.model.vocab_size
    require(
        tokens.min() >= 0 and tokens.max() < known,
        f"tokens={config.tokens} holds {tokens.min()} to {tokens.max()}, but the model knows 0 to "
        f"{known - 1}: use the checkpoint's tokenizer",
    )
    name = config.out and f"{config.out.removesuffix('.npy').removesuffix('.json')}.json"
    out = result_path(folder, name, "scores.json")
    scores = result_file(out.with_suffix(".npy"))
    keep_input(scores, config.out, tokens=config.tokens)
    if not ran_in_processes(f"{__package__}.score", argv, config.launch):
        _score(config, folder, architecture.model.sequence, tokens, out)


def read_tokens(path: str) -> np.ndarray:
    """Return whole numbers [batch, length] or [length]; raise ``ValueError`` for anything else."""
    try:
        tokens = map_array(Path(path).expanduser())
    except ValueError as error:
        raise ValueError(f"tokens={path} {error}") from None
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2) or tokens.shape[-1] < 2 or not tokens.size:
        raise ValueError(
            f"tokens={path} holds {tokens.dtype} of shape {tokens.shape}: give whole numbers of shape "
            "[length] or [batch, length], length 2 or more"
        )
    return tokens


def _score(config: ScoreConfig, folder: Path, context: int, tokens: np.ndarray, out: Path) -> None:
    import torch

    from eval.quality.score import next_token_log_probabilities

    if tokens.shape[-1] - 1 > context and is_first_rank():
        print(
            f"note: {tokens.shape[-1]} tokens exceed the model's context of {context}: it was not trained "
            "for the later positions",
            file=sys.stderr,
        )
    with on_mesh(folder, config.launch, config.precision) as model:
        rows = torch.from_numpy(np.atleast_2d(tokens.astype(np.int64))).to(model.norm.weight.device)
        scores = torch.cat([next_token_log_probabilities(model, part) for part in rows.split(config.batch)])
    require(
        bool(scores.isfinite().all()),
        f"the scores of {folder} are not finite: its values are too large for precision={config.precision}. "
        "Give precision=fp32 or an earlier checkpoint",
    )
    if is_first_rank():
        _write(config, folder, scores.double().cpu().numpy().reshape(*tokens.shape[:-1], -1), out)


def _write(config: ScoreConfig, folder: Path, scores: np.ndarray, out: Path) -> None:
    result = {
        "checkpoint": str(folder),
        "tokens": config.tokens,
        "mean_log_probability": float(scores.mean()),
        "perplexity": float(np.exp(-scores.mean())),
        "log_probabilities": scores.tolist(),
    }
    write_json(out, result, indent=None)
    np.save(out.with_suffix(".npy"), scores)
    for row in np.atleast_2d(scores):
        print(" ".join(f"{value:.6f}" for value in row))
    print(f"mean {scores.mean():.6f} nats per token, perplexity {np.exp(-scores.mean()):.3f}")
    print(out)


if __name__ == "__main__":
    from launch.command.errors import user_errors

    with user_errors():
        main(sys.argv[1:])
