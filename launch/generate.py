"""`caat generate`: continues texts with a trained model, in one process or several."""

from __future__ import annotations

import sys
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from caat.data.tokenizer import Tokenizer
from caat.parallel.world import is_first_rank
from caat.storage.records import parse_record
from caat.training.checkpoint.architecture import Architecture
from conf.checks import require
from conf.generate import GenerateConfig, SamplingConfig
from conf.reading.verb import load_verb
from launch.command.results import keep_input, write_json
from launch.command.trained import (
    find_trained,
    on_mesh,
    ran_in_processes,
    result_path,
    tokenizer_of,
)

if TYPE_CHECKING:
    from eval.generation.continuation import Continuation
    from layers.host_cache import Transfers


def main(argv: list[str]) -> None:
    """Continue ``prompt``, printed as it is generated, or each of ``prompts``; write the results as JSON.

    The file's path is the last line. Raises ``ValueError`` for a wrong checkpoint, prompt, number of
    processes or setting, before any process starts.
    """
    config = load_verb(GenerateConfig, argv)
    folder, architecture = find_trained(config.checkpoint, config.launch)
    prompts = read_prompts(config)
    tokenizer = tokenizer_of(folder, architecture)
    rows = [_encode(prompt, tokenizer, config.add_bos) for prompt in prompts]
    check_lengths(config, rows, architecture)
    out = result_path(folder, config.out, "generations.json")
    keep_input(out, config.out, prompts=config.prompts)
    if not ran_in_processes(f"{__package__}.generate", argv, config.launch):
        _generate(config, folder, tokenizer, architecture.ends, prompts=prompts, rows=rows, out=out)


def read_prompts(config: GenerateConfig) -> list[str]:
    """Return the texts to continue; raise ``ValueError`` if the file is missing or malformed."""
    if config.prompts is None:
        return [str(config.prompt)]
    path = Path(config.prompts).expanduser()
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    except OSError as error:
        raise ValueError(f"prompts={config.prompts} cannot be read ({error.strerror})") from None
    prompts = [
        _prompt(line, f"prompts={config.prompts}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    require(
        bool(prompts), f'prompts={config.prompts} is empty: write a JSON string per line, "Once upon a time"'
    )
    return prompts


def _prompt(line: bytes, name: str) -> str:
    try:
        return parse_record(line, str, name)
    except ValueError as error:
        raise ValueError(
            f'{error}: write a JSON string in quotes, such as "Once upon a time", with \\n for a new line'
        ) from None


def _encode(prompt: str, tokenizer: Tokenizer, add_bos: bool) -> list[int]:
    """Return the tokens of ``prompt``, which may spell out begin and end tokens, as texts of chats do."""
    tokens, _ = tokenizer.encode_places(prompt)
    require(add_bos or bool(tokens), "an empty prompt has no token to continue: give a text, or add_bos=true")
    return [tokenizer.bos_id(), *tokens] if add_bos and tokens[:1] != [tokenizer.bos_id()] else tokens


def check_lengths(config: GenerateConfig, rows: Sequence[Sequence[int]], architecture: Architecture) -> None:
    """Raise ``ValueError`` if a prompt and its continuation do not fit into the model's context."""
    context = architecture.model.sequence
    for number, row in enumerate(rows, 1):
        which = f"prompt {number}" if config.prompts else "the prompt"
        require(
            len(row) < context,
            f"{which} has {len(row)} tokens, which leaves no room in the model's context of {context}: "
            "shorten it",
        )
        require(
            len(row) + config.max_new_tokens <= context,
            f"{which} has {len(row)} tokens, which with max_new_tokens={config.max_new_tokens} more exceed "
            f"the model's context of {context}: give max_new_tokens={context - len(row)} or a shorter prompt",
        )


def _generate(
    config: GenerateConfig,
    folder: Path,
    tokenizer: Tokenizer,
    ends: Sequence[int],
    *,
    prompts: Sequence[str],
    rows: Sequence[Sequence[int]],
    out: Path,
) -> None:
    from eval.generation.generate import generate
    from layers.host_cache import Transfers

    settings = SamplingConfig(**{each.name: getattr(config, each.name) for each in fields(SamplingConfig)})
    streaming = is_first_rank() and len(prompts) == 1
    texts: list[Continuation] = []
    transfers, moved = Transfers(), None
    try:
        with on_mesh(folder, config.launch, config.precision) as model:
            started = perf_counter()
            if streaming:
                print(prompts[0], end="", flush=True)
            for first in range(0, len(rows), config.batch):
                generate(
                    model,
                    rows[first : first + config.batch],
                    tokenizer,
                    settings,
                    show=lambda _, piece: print(piece, end="", flush=True) if streaming else None,
                    numbers=range(first, min(first + config.batch, len(rows))),
                    cache=config.cache,
                    transfers=transfers,
                    ends=ends,
                    texts=texts,
                )
                if is_first_rank() and not streaming:
                    for number in range(first, len(texts)):
                        print(f"[{number + 1}] {prompts[number]}{texts[number].text}\n", flush=True)
            seconds = perf_counter() - started
            if config.cache.place == "host":
                moved = transfers.over(model.mesh, model.norm.weight.device)
    finally:
        # Also write what there is after an interrupt, or when the reader of our output is gone.
        begun = [each for each in zip(prompts, texts, strict=False) if each[1].tokens or each[1].ended]
        if is_first_rank() and begun:
            results = [
                {"prompt": prompt, "text": text.text, "tokens": text.tokens, "ending": text.ending}
                for prompt, text in begun
            ]
            made = {"checkpoint": str(folder), "settings": asdict(settings), "results": results}
            write_json(out, made | _figures(config, moved))
    if is_first_rank():
        _show_speed(texts, seconds)
        if moved is not None:
            _show_cache(moved)
        print(out)


def _figures(config: GenerateConfig, moved: Transfers | None) -> dict[str, Any]:
    """Return what the result says of a cache in host memory; nothing of one on the device."""
    if moved is None:
        return {}
    return {
        "cache": {
            **asdict(config.cache),
            "fetched_bytes": moved.fetched_bytes,
            "stored_bytes": moved.stored_bytes,
            "full_bytes": moved.full_bytes,
            "missing_worst": moved.missing_worst,
            "missing_mean": moved.missing_mean,
        }
    }


def _show_cache(moved: Transfers) -> None:
    steps = max(1, moved.steps)
    each, full = (n / steps / 2**20 for n in (moved.fetched_bytes, moved.full_bytes))
    print(
        f"cache in host memory: {each:.3f} MiB fetched per step, where all rows are {full:.3f} MiB; share "
        f"of the attention left out: at most {moved.missing_worst:.2g}, {moved.missing_mean:.2g} on average"
    )


def _show_speed(texts: Sequence[Continuation], seconds: float) -> None:
    tokens = sum(len(text.tokens) for text in texts)
    if len(texts) == 1:
        print()
    print(f"{tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f} tokens/s)")


if __name__ == "__main__":
    from launch.command.errors import user_errors

    with user_errors():
        main(sys.argv[1:])
