"""The parts of `caat bench gpu`: commands, each in a size for a large GPU and in one for a trial on CPUs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from conf.bench.gpu import PARTS, BenchGpuConfig

_TINY = "model=tiny model.layers=1 model.sequence=64"
_MFU = f"{_TINY} micro_batch=1 rounds=2"
# The processes share the GPU, which only gloo allows: its messages go through the host.
_SHARED = "device={device} backend=gloo out={here}.json"
_STACK = "layers=4 hidden=1024 ffn=2816 heads=16 sequence=512 batch=4 rounds=8 ratios=[1.0,0.5]"
_SMALL_STACK = "layers=1 hidden=64 ffn=96 heads=2 sequence=32 batch=2 rounds=2 ratios=[0.5]"
_RUN = (
    "model=130m train.micro_batch=64 train.compile=true train.steps=45 optim.warmup_steps=15 "
    "train.eval_every=15 train.eval_sequences=64"
)
_SMALL_RUN = (
    f"{_TINY} train.sequence=64 train.steps=3 optim.warmup_steps=1 train.eval_every=0 train.eval_sequences=8"
)
_TRAIN = "data.path={folder}/tokenize parallel.tensor=8 launch.device={device} run.dir={here}"


@dataclass(frozen=True)
class _Recipe:
    """``command``: the words that both sizes have."""

    about: str
    command: str
    large: str
    small: str


_RECIPES = {
    "doctor": _Recipe("what this machine has", "doctor out={here}.json", "", ""),
    "kernels": _Recipe(
        "kernels of a block and their bytes, by counting", "bench kernels out={here}.json", "", ""
    ),
    "mfu-1.1b": _Recipe(
        "a training step of 1.1b, compiled",
        "bench mfu shards=[1,8] device={device} out={here}.json",
        "model=1.1b micro_batch=8 rounds=8 compile=true",
        _MFU,
    ),
    "mfu-1.1b-eager": _Recipe(
        "a training step of 1.1b, eager",
        "bench mfu shards=[1,8] device={device} out={here}.json",
        "model=1.1b micro_batch=4 rounds=8",
        _MFU,
    ),
    "mfu-130m": _Recipe(
        "a training step of 130m, compiled",
        "bench mfu shards=[1,8] device={device} out={here}.json",
        "model=130m micro_batch=64 compile=true",
        _MFU,
    ),
    "shards": _Recipe(
        "shards in one process against plain nn.Linear",
        "bench shards device={device} out={here}.json",
        "precision=bf16 layers=4 hidden=2048 ffn=5632 heads=32 sequence=2048 batch=4 vocab_size=32000 "
        "rounds=6 compile=true",
        "layers=1 hidden=64 ffn=96 sequence=32 batch=2 rounds=2",
    ),
    "codecs": _Recipe(
        "codecs of gradients",
        "bench codecs device={device} out={here}.json",
        "numbers=64000000 rounds=5",
        "numbers=20000 rounds=2",
    ),
    "step": _Recipe(
        "two processes that share the GPU: a training step",
        f"bench step {_SHARED}",
        _STACK,
        _SMALL_STACK,
    ),
    "prefill": _Recipe(
        "two processes that share the GPU: prompts and new tokens",
        f"bench generate new_tokens=4 {_SHARED}",
        _STACK,
        _SMALL_STACK,
    ),
    "profile": _Recipe(
        "two processes that share the GPU: kinds of operations",
        f"bench profile {_SHARED}",
        _STACK,
        _SMALL_STACK,
    ),
    "tokenize": _Recipe(
        "the text to train on",
        "tokenize {data} out={here}",
        "data.vocab_size=4096 data.validation=0.02",
        "data.vocab_size=400 data.validation=0.1",
    ),
    "train-half": _Recipe("training at ratio 0.5", f"pretrain sync.ratio=0.5 {_TRAIN}", _RUN, _SMALL_RUN),
    "train-full": _Recipe("training at ratio 1", f"pretrain sync.ratio=1 {_TRAIN}", _RUN, _SMALL_RUN),
    "generate": _Recipe(
        "text by the model of ratio 0.5",
        "generate checkpoint={folder}/train-half launch.device={device} 'prompt=The city of' out={here}.json",
        "max_new_tokens=100",
        "max_new_tokens=8",
    ),
}
assert tuple(_RECIPES) == PARTS


@dataclass(frozen=True)
class Part:
    """``command``: words after `caat`."""

    name: str
    about: str
    command: tuple[str, ...]

    def line(self) -> str:
        return shlex.join(("caat", *self.command))


def parts_of(config: BenchGpuConfig, folder: Path) -> list[Part]:
    """Return the chosen parts. They write to ``folder``/NAME, plus ``.json`` if it is one file of figures."""
    return [_part(name, config, folder) for name in PARTS if name in config.parts]


def _part(name: str, config: BenchGpuConfig, folder: Path) -> Part:
    recipe = _RECIPES[name]
    size = recipe.small if config.device == "cpu" else recipe.large
    data = "" if config.data is None else f"data.path={config.data}"
    # Split before paths are filled in, which may contain spaces.
    words = (
        word.format(device=config.device, folder=folder, here=folder / name, data=data)
        for word in shlex.split(f"{recipe.command} {size}")
    )
    return Part(name, recipe.about, tuple(word for word in words if word))
