"""A caat model behind lm-evaluation-harness's interface; on its command line it is `--model caat`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import isfinite
from numbers import Real
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from caat.data.tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from caat.parallel.data_axis import DataAxis
from caat.supervision.device import PRECISIONS
from caat.training.checkpoint.architecture import read_architecture
from caat.training.checkpoint.folder import find
from conf.cache import CacheConfig
from conf.checks import require
from conf.generate import SamplingConfig
from eval.generation.batches import AUTOMATIC, Batches
from eval.generation.generate import Forward, generate
from eval.generation.sampling import NOT_FINITE, largest
from eval.open import open_model
from eval.quality.task_error import TaskError
from layers.gpt import GPT
from layers.loss import vocab_parallel_cross_entropy

# The default of lm-eval's own models for tasks that do not set it.
MAX_NEW_TOKENS = 256
# The default of Hugging Face's `generate` for drawing.
TOP_K = 50
NUMBERS: dict[str, type] = {"max_gen_toks": int, "temperature": Real, "top_k": int, "top_p": Real}
# The generation arguments of a task that are read, and values with which others have no effect.
READ = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "diversity_penalty": 0.0,
    "early_stopping": False,
    "use_cache": True,
}
TORCH_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float64": "fp64", "auto": "fp32"}

# lm-eval's form of a request: its texts, the tokens of the context, and the tokens of the continuation.
Scored = tuple[Any, list[int], list[int]]


class Unscorable(ValueError):
    """A continuation that cannot be scored; ``request`` is its number among the requests."""

    def __init__(self, request: int, length: int, context: int) -> None:
        self.request = request
        super().__init__(
            f"has a continuation of {length} tokens (request {request + 1}), but a model with a context of "
            f"{context} scores 1 to {context}: leave the task out, or use a model with a longer context"
        )


class CaatLM(TemplateLM):
    """Log-likelihoods and continuations from a model that may be sharded over processes.

    Every process creates it and runs the same evaluation: to lm-eval each is rank 0 of 1, and all get all
    results. ``batch``: rows per forward pass; 0: chosen by their length. ``add_bos``: contexts start with the
    begin-of-text token, which lm-eval's Hugging Face model omits unless the tokenizer adds it. ``forward``
    replaces the model if something wraps it; ``watch`` as in :class:`~eval.generation.batches.Batches`.
    ``share``: each replica takes its share of the rows; otherwise all replicas compute all rows. ``kv_cache``
    is that of tasks that generate, and ``ends`` are the tokens that end a text besides the tokenizer's.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        batch: int = 0,
        *,
        add_bos: bool = False,
        forward: Forward | None = None,
        watch: Callable[[int, int], None] = lambda done, total: None,
        share: bool = True,
        kv_cache: CacheConfig | None = None,
        ends: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.model, self.tokens, self.add_bos = model, tokenizer, add_bos
        self.forward, self._kv_cache, self._ends = forward or model, kv_cache, ends
        self._device = model.norm.weight.device
        mesh = model.mesh if share else replace(model.mesh, data_rank=0, data=DataAxis())
        # If rows are not shared (ZeRO 3), replicas gather weights from each other in every pass.
        alone = mesh.processes == 1 and (share or model.mesh.data_size == 1)
        self.batches = Batches(mesh, batch, AUTOMATIC[self._device.type], watch, alone)

    @property
    def max_length(self) -> int:
        return self.model.config.sequence

    @property
    def eot_token_id(self) -> int:
        return self.tokens.eos_id()

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes texts without a context."""
        return self.tokens.bos_id()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        begin = self.add_bos if add_special_tokens is None else add_special_tokens
        return [self.prefix_token_id] * begin + self.tokens.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        try:
            for number, request in enumerate(requests):
                if not request.args[1]:
                    raise Unscorable(number, 0, self.max_length)
            return super().loglikelihood(requests, disable_tqdm)
        except Unscorable as error:
            raise TaskError(f"task {requests[error.request].task_name} {error}") from error

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        scored = [len(following) for *_, following in requests]
        for number, length in enumerate(scored):
            if not 0 < length <= self.max_length:
                raise Unscorable(number, length, self.max_length)
        # lm-eval moves a context's trailing spaces to the continuation, so the context may be empty.
        begin = [self.prefix_token_id]
        rows = [
            [*(context or begin), *following][-(self.max_length + 1) :] for _, context, following in requests
        ]

        def work(batch: list[int]) -> list[tuple[float, bool]]:
            return self._score([rows[number] for number in batch], [scored[number] for number in batch])

        results = self.batches.run([len(row) - 1 for row in rows], work)
        # Once all replicas have all results: each saw its own rows, and one alone must not give up.
        require(all(isfinite(value) for value, _ in results), NOT_FINITE)
        for (texts, *_), result in zip(requests, results, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def _score(self, rows: list[list[int]], scored: list[int]) -> list[tuple[float, bool]]:
        """Return the log-probability of each row's last ``scored`` tokens, and whether all are greedy."""
        longest = max(map(len, rows))
        # Padding is on the right of all scored tokens, where causal attention does not see it.
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._device)
        tokens, targets = padded[:, :-1], padded[:, 1:]
        counts = torch.zeros(targets.shape, dtype=torch.bool)
        for number, (row, count) in enumerate(zip(rows, scored, strict=True)):
            counts[number, len(row) - 1 - count : len(row) - 1] = True
        counts = counts.to(self._device)
        # Keep only the scored positions: the vocabulary is by far the largest axis.
        logits, targets = self.forward(tokens)[counts], targets[counts]
        mesh, config = self.model.mesh, self.model.config
        log_probabilities = -vocab_parallel_cross_entropy(logits, targets, config.vocab_size, mesh)
        greedy = largest(logits, 1, mesh)[1][:, 0] == targets
        pairs = zip(log_probabilities.double().split(scored), greedy.split(scored), strict=True)
        return [(float(values.sum()), bool(hits.all())) for values, hits in pairs]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[Scored] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tokens.encode(request.args[0])
            rolling = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            parts = [make_disjoint_window(window) for window in rolling]
            windows += [(None, list(context), list(following)) for context, following in parts]
            owners += [number] * len(parts)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        texts = [""] * len(requests)
        for settings, numbers in _grouped(requests):
            room = self.max_length - settings.max_new_tokens
            require(
                room > 0,
                f"it generates up to {settings.max_new_tokens} tokens, which leaves no room in the model's "
                f"context of {self.max_length}: lower max_gen_toks in its generation_kwargs",
            )
            contexts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            rows = [context[-room:] or [self.prefix_token_id] for context in contexts]

            def work(batch: list[int], rows=rows, settings=settings, numbers=numbers) -> list[str]:
                prompts, of_all = [rows[each] for each in batch], [numbers[each] for each in batch]
                made = generate(
                    self.model,
                    prompts,
                    self.tokens,
                    settings,
                    forward=self.forward,
                    numbers=of_all,
                    cache=self._kv_cache,
                    ends=self._ends,
                )
                return [each.text for each in made]

            found = self.batches.run([len(row) + settings.max_new_tokens for row in rows], work)
            for number, text in zip(numbers, found, strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts


def _grouped(requests: Sequence[Instance]) -> list[tuple[SamplingConfig, list[int]]]:
    """Group requests with equal generation arguments; return the numbers in each group."""
    groups: dict[str, tuple[SamplingConfig, list[int]]] = {}
    for number, request in enumerate(requests):
        how = request.args[1]
        _, numbers = groups.setdefault(json.dumps(how, sort_keys=True), (sampling(how), []))
        numbers.append(number)
    return list(groups.values())


def sampling(how: dict[str, Any]) -> SamplingConfig:
    """Translate lm-eval's generation arguments, which are those of Hugging Face's `generate`.

    Raises ``ValueError`` for invalid values, and for arguments that would have an effect there and have none
    here; errors of lm-eval's own checks pass through.
    """
    known = dict(normalize_gen_kwargs(how, MAX_NEW_TOKENS))
    for name, value in known.items():
        require(
            name in READ or value is None or (name in NEUTRAL and value == NEUTRAL[name]),
            f"its generation_kwargs have {name}={value}, which caat does not support: take it out. "
            f"Known are {', '.join(READ)}",
        )
    for name, kind in NUMBERS.items():
        value = known.get(name)
        require(
            value is None or (isinstance(value, kind) and not isinstance(value, bool)),
            f"its generation_kwargs have {name}={value!r}: give a {'whole ' * (kind is int)}number",
        )
    until = [each for each in known["until"] if each is not None]
    temperature = known.get("temperature")
    if temperature is None:
        temperature = 1.0 if known.get("do_sample") else 0.0
    require(
        all(isinstance(text, str) and text for text in until),
        f"until={until} in its generation_kwargs must be non-empty texts",
    )
    # top_k and top_p have no meaning for greedy decoding.
    draw = {"top_k": TOP_K, **known} if temperature > 0 else {}
    draw = {name: draw[name] for name in ("top_k", "top_p") if draw.get(name) is not None}
    return SamplingConfig(
        max_new_tokens=known["max_gen_toks"],
        temperature=temperature,
        stop=until,
        **draw,
    )


@register_model("caat")
class CaatCheckpoint(CaatLM):
    """`--model caat --model_args checkpoint=DIR,dtype=float32` of lm-eval: a run or checkpoint folder.

    ``dtype`` is lm-eval's name for ``precision``.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        precision: str | None = None,
        dtype: str | None = None,
        add_bos: bool = False,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        require(precision is None or dtype is None, "precision and dtype are the same setting: give one")
        asked = TORCH_NAMES.get(dtype, dtype) if dtype else precision or "fp32"
        require(
            asked in PRECISIONS,
            f"dtype={dtype or precision} is not known: choose from {', '.join([*TORCH_NAMES, *PRECISIONS])}",
        )
        require(
            device in (None, "cpu", "cuda", "cuda:0"),
            f"device={device} cannot be chosen: each process uses the GPU of its local rank. Leave it out, "
            "or give cpu; CUDA_VISIBLE_DEVICES selects the GPUs",
        )
        folder = find(checkpoint)
        tokenizer = load_tokenizer(find_tokenizer(folder))
        batch = int(batch_size) if str(batch_size).isdigit() else 0
        # lm-eval passes cuda:0 by default, even without a GPU, and leaves the choice to the model.
        model = open_model(folder, "cpu" if device == "cpu" else "auto", asked)
        super().__init__(model, tokenizer, batch, add_bos=add_bos, ends=read_architecture(folder).ends)
