"""Mistakes in `model.rope_scaling`: each gives one line with the value, the rule and the remedy."""

from __future__ import annotations

import pytest

from launch.run.compose import compose

LLAMA3 = {"kind": "llama3", "factor": 8, "original_sequence": 64, "low_freq_factor": 1, "high_freq_factor": 4}
YARN = {"kind": "yarn", "factor": 4, "original_sequence": 64}
MISTAKES = [
    ({"kind": "longrope"}, ["kind=longrope is not known", "none, linear, dynamic, llama3, yarn"]),
    ({"kind": "linear"}, ["factor is required", "kind=linear", "give model.rope_scaling.factor=..."]),
    ({"kind": "yarn", "factor": 4}, ["original_sequence is required", "kind=yarn"]),
    ({**LLAMA3, "low_freq_factor": "null"}, ["low_freq_factor is required", "kind=llama3"]),
    ({"factor": 2}, ["factor=2.0 has no effect", "kind=none", "leave it out"]),
    ({"kind": "dynamic", "factor": 2, "original_sequence": 64}, ["original_sequence=64 has no effect"]),
    ({**LLAMA3, "truncate": "false"}, ["truncate=False has no effect", "kind=llama3"]),
    ({"kind": "linear", "factor": 0.5}, ["factor=0.5 must be at least 1"]),
    ({"kind": "linear", "factor": "twice"}, ["factor=twice is not a number or null"]),
    ({**YARN, "original_sequence": 0}, ["original_sequence=0 must be above 0"]),
    ({**YARN, "original_sequence": 2**31}, ["original_sequence=2147483648 is too large"]),
    ({**YARN, "attention_factor": -1}, ["attention_factor=-1.0 must be above 0"]),
    ({**YARN, "beta_fast": 0.5}, ["beta_fast=0.5 must not be below model.rope_scaling.beta_slow=1.0"]),
    ({**LLAMA3, "low_freq_factor": 4}, ["high_freq_factor=4.0 must be above", "low_freq_factor=4.0"]),
    ({**YARN, "rope_base": 1}, ["model.rope_base=1.0 must be above 1"]),
    ({"kind": "dynamic", "factor": 2, "hidden": 16}, ["model.hidden / model.heads = 2 must be above 2"]),
]


@pytest.mark.parametrize(("given", "says"), MISTAKES)
def test_mistake(given, says):
    model = [f"model.{name}={given[name]}" for name in ("hidden", "rope_base") if name in given]
    scaling = [name for name in given if name not in ("hidden", "rope_base")]
    with pytest.raises(ValueError) as error:
        compose([*model, *(f"model.rope_scaling.{name}={given[name]}" for name in scaling)])
    assert not [part for part in says if part not in str(error.value)], str(error.value)
    assert len(str(error.value).splitlines()) == 1
