"""Settings that do not affect the trained weights."""

# Prefixes of the settings for storing and monitoring a run.
KEEPING = (
    *("run.", "resume", "launch.hang_seconds", "launch.max_restarts", "tracker", "checkpoint."),
    *("data.dir", "data.workers", "train.max_skipped", "train.log_every", "train.check_replicas_every"),
    *("train.peak_tflops", "train.profile", "train.eval_every", "eval.every"),
)
# These, and prefixes of the settings for the processes, ZeRO stage and micro-batch that train it.
DEPLOYMENT = (*KEEPING, "launch.", "zero", "parallel.processes", "train.micro_batch")
