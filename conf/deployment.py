"""Which settings say where and how a run is trained, and not what comes of it."""

# Settings, by how their names begin, that say where a run is kept and watched;
KEEPING = (
    *("run.", "resume", "launch.hang_seconds", "launch.max_restarts", "tracker", "checkpoint."),
    *("data.dir", "data.workers", "train.max_skipped", "train.log_every", "train.check_replicas_every"),
    *("train.peak_tflops", "train.eval_every", "eval.every"),
)
# and those that say where and how it is trained, not what comes of it.
DEPLOYMENT = (*KEEPING, "launch.", "zero", "parallel.processes", "train.micro_batch")
