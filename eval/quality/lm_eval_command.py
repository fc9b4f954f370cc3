"""lm-eval's own command line, which has no hook for models of others, with `--model caat` in it.

`python -m eval.quality.lm_eval_command run --model caat --model_args checkpoint=DIR --tasks piqa`
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

import eval.quality.lm_eval_model  # noqa: F401  registers the model

if __name__ == "__main__":
    cli_evaluate()
