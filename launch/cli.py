"""The command `caat`: finds the verb and runs it."""

from __future__ import annotations

import sys
from importlib import import_module

VERBS = {
    "pretrain": "train a model, or one for each of several settings (-m)",
    "tokenize": "turn text into token shards, before a run or for another machine",
    "score": "compute the log-probability of every next token under a trained model",
    "evaluate": "run lm-eval benchmarks on a trained model",
    "generate": "continue a text with a trained model",
    "convert": "convert a Hugging Face Llama into a checkpoint to train on, or a model to Hugging Face",
    "report": "compare a set of runs: a page with tables and plots",
    "islands": "start the lighthouse at which islands that come and go meet",
    "plan": "predict memory, bytes, time and days of a run before it is queued",
    "doctor": "show what this machine can do, and what to install for the rest",
    "dashboard": "create a Weights & Biases dashboard for a project",
    "bench": "measure what partial synchronisation saves on this machine",
}


def main() -> int:
    """Run the verb given on the command line and return its exit status."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from caat import __version__

        print(f"caat {__version__}")
        return 0
    from launch.command.errors import announce, fail, user_errors

    verb, *rest = argv
    if verb not in VERBS:
        from difflib import get_close_matches

        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(VERBS)}"
        fail(f"{verb} is not a verb of caat: {hint}")
    with user_errors():
        if verb == "pretrain":
            announce(rest)
        return import_module(f"{__package__}.{verb}").main(rest) or 0


def _help() -> str:
    lines = [f"  {verb:<10} {line}" for verb, line in VERBS.items()]
    return "\n".join(
        [
            "caat: train GPT models with tensor parallelism that synchronises only a chosen fraction of the",
            "activation channels, on any number of processes, with or without GPUs.",
            "",
            "usage: caat VERB [setting=value ...]",
            "",
            *lines,
            "",
            "caat VERB --help lists the settings of a verb; every verb is also python -m launch.VERB.",
            "caat --version prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
