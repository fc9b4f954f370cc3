"""`caat bench WHAT`: benchmarks, each with a table and a JSON file; ratios are measured within one run."""

from __future__ import annotations

from importlib import import_module

BENCHMARKS = {
    "step": "time and bytes of a step on this machine's network, by ratio, with and without overlap",
    "link": "the same over a slow network emulated on this machine (needs root)",
    "peers": "the same blocks with the tensor parallelism of torch, megatron-core and DeepSpeed",
    "generate": "time to the first token and tokens per second, by ratio, here or over a slow network",
    "profile": "the same steps in torch's profiler: GEMMs, copies, the rest, saved memory",
    "kernels": "kernels of a block on a GPU and the bytes that they move, counted without one",
    "predict": "step time by ratio on another machine, from a closed formula",
    "mfu": "a training step in one process as a share of the device's peak, by shard count",
    "gpu": "all that is worth measuring on one GPU, in ten minutes: one JSON and one page",
    "shards": "the shard axis in one process against plain nn.Linear: time and memory",
    "codecs": "codecs of gradients on one core or GPU: encoding and decoding speed, bytes and error",
    "data": "training steps of replicas over an emulated slow network, by codec, and by DeepSpeed and DDP",
    "islands": "training steps of islands over an emulated slow network, against replicas that sum gradients",
    "cache": "new tokens with a KV cache in the memory of another host, by how much of it is fetched",
    "collectives": "all-reduces on an emulated network of any topology, by schedule, against the optimum",
    "checkpoint": "the cost of a save during training, and loading against reading the bytes",
    "tokenize": "tokenising against bare SentencePiece, and memory against the size of the corpus",
}


def main(argv: list[str]) -> int:
    """Run the benchmark that ``argv`` starts with and return its exit status.

    Raises ``ValueError`` if it is unknown.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: caat bench WHAT [setting=value ...]   (caat bench WHAT --help for its settings)\n")
        for name, text in BENCHMARKS.items():
            print(f"  {name:<11} {text}")
        return 0
    if argv[0] not in BENCHMARKS:
        raise ValueError(f"{argv[0]} is not a benchmark: choose one of {', '.join(BENCHMARKS)}")
    return import_module(f"{__package__}.{argv[0]}").main(argv[1:]) or 0
