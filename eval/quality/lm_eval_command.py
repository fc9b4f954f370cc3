"""lm-eval's command line with `--model caat`; lm-eval has no hook for external models.

`python -m eval.quality.lm_eval_command run --model caat --model_args checkpoint=DIR --tasks piqa`
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

import eval.quality.lm_eval_model  # noqa: F401  registers the model

if __name__ == "__main__":
    cli_evaluate()
