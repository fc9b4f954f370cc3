"""Every setting, its default and its rule: the structured schema behind the YAML groups beside it.

Hydra checks names and types against these classes; ranges and what must divide what are checked
in each ``__post_init__`` and in :meth:`Config.check_layout`. Nothing here imports torch, so a wrong
setting is reported at once. All checks raise ``ValueError`` with the value, the rule and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import check_seed, require, require_choice, require_positive
from conf.data import DataConfig
from conf.model import ModelConfig
from conf.processes import LaunchConfig, ParallelConfig
from conf.sync import SyncConfig


@dataclass
class ZeroConfig:
    """DeepSpeed ZeRO cuts over data parallelism: 1 optimizer state, 2 and gradients, 3 and weights."""

    # 0 cuts nothing; in bf16, stage 1 takes its place.
    stage: int = 1

    def __post_init__(self) -> None:
        require(self.stage in (0, 1, 2, 3), f"zero.stage={self.stage} is not known: choose 0, 1, 2 or 3")


@dataclass
class OptimConfig:
    """AdamW. Weight decay acts on matrices, embeddings and head included, never on norm weights."""

    # Learning rate after the warm-up, before it falls.
    lr: float = 1e-3
    # What it falls to.
    min_lr: float = 1e-4
    # Decay of AdamW's means of the gradient and of its square.
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    # Added to the root of the mean square.
    eps: float = 1e-8
    # Share of a weight, times the learning rate, that each step takes off.
    weight_decay: float = 0.1
    # Largest global gradient norm; 0 switches clipping off.
    clip: float = 1.0
    # Warm-up is linear in all: then cosine or linear to min_lr, constant, or
    # wsd (warm-up, stable, decay: constant until the last `decay_steps`, then linear to min_lr).
    schedule: str = "cosine"
    # Steps over which the learning rate rises from 0.
    warmup_steps: int = 20
    # Steps of wsd's decay; default: a tenth of all.
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        require_positive(optim__lr=self.lr, optim__eps=self.eps)
        require(
            0.0 <= self.min_lr <= self.lr, f"optim.min_lr={self.min_lr} is outside [0, optim.lr={self.lr}]"
        )
        require(
            len(self.betas) == 2 and all(0.0 <= b < 1.0 for b in self.betas),
            f"optim.betas={list(self.betas)} must be two numbers in [0, 1)",
        )
        for name in ("weight_decay", "clip", "warmup_steps"):
            value = getattr(self, name)
            require(value >= 0, f"optim.{name}={value} must not be negative")
        require_choice("optim.schedule", self.schedule, ("cosine", "linear", "constant", "wsd"))
        if self.decay_steps is not None:
            require_positive(optim__decay_steps=self.decay_steps)
            require(
                self.schedule == "wsd",
                f"optim.decay_steps={self.decay_steps} means nothing to optim.schedule={self.schedule}: "
                "leave it out, or give optim.schedule=wsd",
            )

    def decay(self, steps: int) -> int:
        """The last of ``steps`` steps, over which wsd falls; 0 of other schedules. Default a tenth."""
        return (self.decay_steps or max(1, steps // 10)) if self.schedule == "wsd" else 0


@dataclass
class TrainConfig:
    # Optimizer steps.
    steps: int = 100
    # Tokens of a sequence; at most model.sequence.
    sequence: int = 256
    # Sequences per process and forward pass; gradient accumulation follows from global_batch.
    micro_batch: int = 4
    # Sequences per optimizer step over all data-parallel replicas.
    global_batch: int = 16
    # bf16 (float32 master weights and optimizer state) or fp32.
    precision: str = "bf16"
    # Recompute in backward: none, full (every block; collectives are kept, never repeated),
    # selective (attention core and SwiGLU: large to store, cheap to repeat).
    activation_checkpointing: str = "none"
    # torch.compile what lies between the GEMMs (attention with its rotary embedding, SwiGLU): faster steps,
    # tens of seconds at the start; needs a C++ compiler.
    compile: bool = False
    # Validate every so many steps (0: only at the end) on `eval_sequences` held-out sequences.
    eval_every: int = 50
    # Held-out sequences that a validation reads.
    eval_sequences: int = 64
    # Steps between two lines of a log; metrics.jsonl has every step.
    log_every: int = 10
    # Same bits on every run: deterministic kernels only. Costs speed on a GPU.
    deterministic: bool = False
    # Stop after so many steps in a row were skipped for a non-finite loss or gradient.
    max_skipped: int = 10
    # Compare what must be the same on several processes every so many steps; 0: never.
    check_replicas_every: int = 100
    # The device's peak in TFLOP/s for MFU, where the device is not in our table.
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        require_positive(
            train__steps=self.steps,
            train__sequence=self.sequence,
            train__micro_batch=self.micro_batch,
            train__global_batch=self.global_batch,
            train__eval_sequences=self.eval_sequences,
            train__log_every=self.log_every,
            train__max_skipped=self.max_skipped,
        )
        require(
            self.eval_every >= 0,
            f"train.eval_every={self.eval_every} must not be negative (0: only at the end)",
        )
        require(
            self.check_replicas_every >= 0,
            f"train.check_replicas_every={self.check_replicas_every} must not be negative (0: never)",
        )
        require_choice("train.precision", self.precision, ("fp32", "bf16"))
        require_choice(
            "train.activation_checkpointing", self.activation_checkpointing, ("none", "full", "selective")
        )
        if self.peak_tflops is not None:
            require_positive(train__peak_tflops=self.peak_tflops)

    def accumulation(self, data_parallel: int) -> int:
        """Micro-batches per step; raises ``ValueError`` if ``global_batch`` is not a multiple."""
        per_pass = self.micro_batch * data_parallel
        require(
            self.global_batch % per_pass == 0,
            f"train.global_batch={self.global_batch} is not a multiple of train.micro_batch="
            f"{self.micro_batch} times {data_parallel} data-parallel replicas: change one of the two",
        )
        return self.global_batch // per_pass


@dataclass
class CheckpointConfig:
    """Saved by time, every so many steps, at the end, and on Ctrl-C, SIGTERM and SIGUSR1."""

    # Save when so many minutes have gone by since the last save, later where saving would take more than 3 %
    # of the time; 0: not by time.
    minutes: float = 30.0
    # Save every so many steps as well; 0: by time, at the end, when told to stop, and before benchmarks.
    every: int = 0
    # Write beside training, from a copy in host memory; else training waits until the files are on disk.
    asynchronous: bool = True
    # Keep so many of the last checkpoints and delete older ones; 0: keep all. Default: of those saved by time
    # the last two, and all others.
    keep: int | None = None
    # Of the older ones, keep those whose step is a multiple of this; 0: none.
    keep_every: int = 0
    # When a checkpoint cannot be written, as on a full disk: warn and train on, or stop.
    on_failure: str = "warn"
    # When the checkpoint to resume from is damaged: take the previous one, with a warning, or stop.
    on_damage: str = "previous"

    def __post_init__(self) -> None:
        require(self.minutes >= 0, f"checkpoint.minutes={self.minutes} must not be negative (0: not by time)")
        require(self.every >= 0, f"checkpoint.every={self.every} must not be negative (0: not by steps)")
        require(
            self.keep is None or self.keep >= 0,
            f"checkpoint.keep={self.keep} must not be negative (0: keep all)",
        )
        require(
            self.keep_every >= 0, f"checkpoint.keep_every={self.keep_every} must not be negative (0: none)"
        )
        require_choice("checkpoint.on_failure", self.on_failure, ("warn", "stop"))
        require_choice("checkpoint.on_damage", self.on_damage, ("previous", "stop"))


@dataclass
class EvalConfig:
    """Benchmarks of lm-eval while training; validation loss is another matter (train.eval_every)."""

    # Run them every so many steps and at the end; 0: never.
    every: int = 0
    # Task names of lm-eval, `paper` (the seven of the CAAT-Net paper), folders of task files.
    tasks: list[str] = field(default_factory=lambda: ["paper"])
    # Only the first so many documents of each task.
    limit: int | None = None

    def __post_init__(self) -> None:
        require(self.every >= 0, f"eval.every={self.every} must not be negative (0: never)")
        require(
            bool(self.tasks),
            "eval.tasks is empty: give eval.tasks=[paper], or leave eval.every out",
        )
        if self.limit is not None:
            require_positive(eval__limit=self.limit)
        require(
            self.every > 0 or (list(self.tasks) == ["paper"] and self.limit is None),
            "eval.tasks and eval.limit mean nothing without eval.every: give it, or leave them out",
        )


@dataclass
class TrackerConfig:
    """Besides metrics.jsonl, which is always written; several at once with tracker=[wandb,tensorboard]."""

    # Weights & Biases: none, online, or offline (synchronised later with `wandb sync`).
    wandb: str = "none"
    # Event files in the run folder, for TensorBoard.
    tensorboard: bool = False
    # Project of Weights & Biases.
    project: str = "caat"
    # What the run is called; default: its folder.
    name: str | None = None
    # What it is shown with; default: the sweep that it is of, else the model.
    group: str | None = None
    # Beside ratio-<sync.ratio> and N-<parallel.tensor>.
    tags: list[str] = field(default_factory=list)
    # Held-out sequences shown at each validation, with the loss of every token; 0: none.
    samples: int = 4
    # Send the last checkpoint and the run's report along when it has finished (Weights & Biases).
    artifacts: bool = False

    def __post_init__(self) -> None:
        require_choice("tracker.wandb", self.wandb, ("none", "online", "offline"))
        require(self.samples >= 0, f"tracker.samples={self.samples} must not be negative (0: none)")
        require(
            not self.artifacts or self.wandb != "none",
            "tracker.artifacts=true needs Weights & Biases: give tracker=wandb or tracker=wandb_offline",
        )


@dataclass
class RunConfig:
    # The run folder; default: outputs/<date>-<time>-<model>-n<N>-r<ratio>-s<seed>.
    dir: str | None = None


@dataclass
class Config:
    """One training run, whole."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    # Of the initial weights and of the order of the text.
    seed: int = 1
    # never; auto: from the last checkpoint in run.dir, from the start if there is none; or the path of a
    # checkpoint or a run.
    resume: str = "never"
    # Start from the weights of this checkpoint, or of a run's latest, instead of random ones: step 0, no
    # optimizer state. Its model and tokenizer are taken over; N and sync.ratio may be others.
    initialize: str | None = None

    def __post_init__(self) -> None:
        # Hydra builds the schema before the YAML is merged; only a finished config is checked further.
        check_seed(self.seed)
        require(
            self.resume != "auto" or self.run.dir is not None,
            "resume=auto needs run.dir=...: the folder of the run, the same each time it is started",
        )
        require(
            self.initialize is None or self.resume in ("never", "auto"),
            f"resume={self.resume} continues a run and initialize={self.initialize} begins one: give one of "
            "the two",
        )

    def check_layout(self, world: int) -> None:
        """Raise ``ValueError`` unless model, shards, batch and ``world`` processes fit together."""
        self.model.check_shards(self.parallel.tensor)
        processes = self.parallel.tensor_processes(world)
        self.train.accumulation(world // processes)
        self.sync.check_types(self.train.precision)
        last = max(self.sync.schedule)
        require(
            last < self.train.steps,
            f"sync.ratio changes after {last} steps, but train.steps={self.train.steps}: raise train.steps, "
            "or leave that entry out",
        )
        require(
            self.train.sequence <= self.model.sequence,
            f"train.sequence={self.train.sequence} is longer than model.sequence={self.model.sequence}: "
            "raise model.sequence too",
        )
        require(
            self.optim.warmup_steps <= self.train.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} is more than train.steps={self.train.steps}: "
            "the learning rate would never reach its peak",
        )
        decay = self.optim.decay(self.train.steps)
        require(
            self.optim.warmup_steps + decay <= self.train.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} plus optim.decay_steps={decay} is more than "
            f"train.steps={self.train.steps}: the learning rate would fall before it has risen",
        )
