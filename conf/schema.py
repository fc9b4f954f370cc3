"""The schema of all training settings: their types, defaults and rules.

Hydra checks names and types against these classes. ``__post_init__`` and :meth:`Config.check_layout` check
ranges and divisibility, and raise ``ValueError`` with the value, the rule and the remedy. Nothing here
imports torch, so a wrong setting is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.checks import check_seed, require, require_choice, require_positive
from conf.data import DataConfig
from conf.data_sync import DataSyncConfig
from conf.field import setting
from conf.islands import IslandsConfig
from conf.model import ModelConfig
from conf.optim import OptimConfig
from conf.processes import LaunchConfig, ParallelConfig
from conf.sync import SyncConfig
from conf.tracker import TrackerConfig
from conf.train import TrainConfig
from conf.zero import ZeroConfig


@dataclass
class CheckpointConfig:
    """When to save checkpoints and which to keep. Ctrl-C, SIGTERM and SIGUSR1 also save."""

    minutes: float = setting(
        30.0,
        "Save when this many minutes have passed since the last save, or later if saving would take more "
        "than 3 % of the time. 0: do not save by time.",
    )
    every: int = setting(
        0,
        "Also save every this many steps. 0: save only by time, at the end, on a signal to stop, and before "
        "benchmarks.",
    )
    asynchronous: bool = setting(
        True,
        "Write checkpoints in the background, from a copy in host memory. If false, training waits "
        "until the files are on disk.",
    )
    keep: int | None = setting(
        None,
        "Number of recent checkpoints to keep; older ones are deleted. 0: keep all. Default: keep the "
        "last two that were saved by time, and all others.",
    )
    keep_every: int = setting(0, "Also keep the older checkpoints whose step is a multiple of this. 0: none.")
    after: list[str] = setting(
        [],
        "Command to run for each new checkpoint beside training, as a list of arguments: "
        "[rclone,copy,%p,store:run-1/%n], with %p for the path of the checkpoint and %n for its name.",
    )
    on_failure: str = setting(
        "warn",
        "What to do when a checkpoint cannot be written, for example because the disk is full: warn and "
        "continue (warn), or stop.",
    )
    on_damage: str = setting(
        "previous",
        "What to do when the checkpoint to resume from is damaged: warn and take the one before it "
        "(previous), or stop.",
    )

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
    """Benchmarks of lm-eval during training. The validation loss is separate (train.eval_every)."""

    every: int = setting(
        0,
        "Number of steps between runs of the benchmarks, which then also run at the end. 0: never run them.",
    )
    tasks: list[str] = setting(
        ["paper"],
        "Names of lm-eval tasks, `paper` (the seven of the CAAT-Net paper), or folders of task files.",
    )
    limit: int | None = setting(None, "Number of documents to use from the start of each task. Default: all.")

    def __post_init__(self) -> None:
        require(self.every >= 0, f"eval.every={self.every} must not be negative (0: never)")
        require(
            bool(self.tasks),
            "eval.tasks is empty: give a task such as eval.tasks=[paper], or leave it out",
        )
        if self.limit is not None:
            require_positive(eval__limit=self.limit)
        require(
            self.every > 0 or (list(self.tasks) == ["paper"] and self.limit is None),
            "eval.tasks and eval.limit have no effect without eval.every: set it, or leave them out",
        )


@dataclass
class RunConfig:
    dir: str | None = setting(
        None,
        "Run folder. Default: outputs/<date>-<time>-<model>-n<N>-r<ratio>-s<seed>.",
    )


@dataclass
class Config:
    """All settings of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    data_sync: DataSyncConfig = field(default_factory=DataSyncConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    islands: IslandsConfig = field(default_factory=IslandsConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = setting(1, "Seed of the initial weights and of the data order.")
    resume: str = setting(
        "never",
        "Where to resume from: never, auto (the last checkpoint in run.dir, or the start if there is "
        "none), or the path of a checkpoint or a run.",
    )
    initialize: str | None = setting(
        None,
        "Checkpoint to start from, or run whose latest checkpoint to start from, instead of random "
        "weights. Training starts at step 0 without optimizer state. The model and the tokenizer are "
        "those of the checkpoint; parallel.tensor and sync.ratio may differ.",
    )

    def __post_init__(self) -> None:
        # Hydra builds the schema before it merges the YAML: check_layout() checks the complete config later.
        check_seed(self.seed)
        require(
            self.resume != "auto" or self.run.dir is not None,
            "resume=auto needs run.dir=...: give the run folder, the same one at each start",
        )
        require(
            self.initialize is None or self.resume in ("never", "auto"),
            f"resume={self.resume} continues a run and initialize={self.initialize} starts one: give only "
            "one of the two",
        )

    def check_layout(self, world: int) -> None:
        """Raise ``ValueError`` unless model, shards, batch and ``world`` processes fit together."""
        self.model.check_shards(self.parallel.tensor)
        processes = self.parallel.tensor_processes(world)
        self.train.accumulation(world // processes)
        self.islands.check(self.parallel.islands, self.model.layers, self.optim.name)
        self.sync.check_types(self.train.precision)
        require(
            not self.sync.halves or (self.train.micro_batch > 1 and self.train.documents == "packed"),
            f"sync.halves=true cannot split train.micro_batch={self.train.micro_batch} with train.documents="
            f"{self.train.documents}: it needs two sequences or more, and packed documents",
        )
        self.data_sync.check_stage(self.zero.trained(self.train.precision))
        require(
            self.islands.join is None or len(self.sync.schedule) == 1,
            f"sync.ratio={self.sync.describe_ratio()} changes by an island's own steps, which islands.join "
            "does not keep in step: give one ratio, or parallel.islands for islands that are one job",
        )
        last = max(self.sync.schedule)
        require(
            last < self.train.steps,
            f"sync.ratio changes after {last} steps, but train.steps={self.train.steps}: raise train.steps, "
            "or remove that entry",
        )
        require(
            self.train.sequence <= self.model.sequence,
            f"train.sequence={self.train.sequence} is longer than model.sequence={self.model.sequence}: "
            "raise model.sequence too",
        )
        require(
            self.optim.warmup_steps <= self.train.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} is more than train.steps={self.train.steps}: "
            "the learning rate would never reach its peak; lower optim.warmup_steps",
        )
        decay = self.optim.decay(self.train.steps)
        require(
            self.optim.warmup_steps + decay <= self.train.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} plus optim.decay_steps={decay} is more than "
            f"train.steps={self.train.steps}: warm-up and decay would overlap; lower one of the two",
        )
