"""Benchmarks of a model while it trains, at every ZeRO stage, without a trace in what training computes."""

from __future__ import annotations

from collections.abc import Callable

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
) -> dict[str, float]:
    """``eval/<task>/<metric>`` of the engine's model as it is now. Collective.

    ``watch`` is told of every batch, ``tick`` whenever lm-eval itself gets on.
    """
    with engine.evaluating() as forward:
        # At stage 3 every replica takes part in every forward pass: none can have rows of its own.
        lm = CaatLM(model, tokenizer, forward=forward, watch=watch, share=engine.stage < 3)
        return flat(evaluate(lm, tasks, limit, tick=tick))
