"""Runs benchmarks during training, at every ZeRO stage, without changing what training computes."""

from __future__ import annotations

from collections.abc import Callable, Collection

from caat.data.tokenizer import Tokenizer
from caat.training.engine import Engine
from eval.quality.evaluate import evaluate, flat
from eval.quality.lm_eval_model import CaatLM
from eval.quality.tasks import Tasks
from layers.gpt import GPT


def run_benchmarks(
    engine: Engine,
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Tasks,
    limit: int | None,
    *,
    watch: Callable[[int, int], None],
    tick: Callable[[], None] = lambda: None,
    ends: Collection[int] = (),
) -> dict[str, float]:
    """Return ``eval/<task>/<metric>`` of the engine's current model. Collective.

    ``watch`` is called after every batch, ``tick`` whenever lm-eval itself makes progress. ``ends``: tokens
    that end a text besides the tokenizer's.
    """
    with engine.evaluating() as forward:
        # At stage 3 every replica takes part in every forward pass, so replicas cannot share the rows.
        lm = CaatLM(model, tokenizer, forward=forward, watch=watch, share=engine.stage < 3, ends=ends)
        return flat(evaluate(lm, tasks, limit, tick=tick))
