"""Every shipped configuration composes, fits its own layout, and describes the model it is named for."""

from __future__ import annotations

import pytest
import torch

from caat.parallel.mesh import Mesh
from conf.reading.options import GROUPS
from conf.schema import Config
from launch.run.compose import compose
from layers import GPT

# Worked out by hand: 2 V h + layers (2 h² + 2 h² kv_heads / heads + 3 h ffn + 2 h) + h.
PARAMETERS = {
    "tiny": 5_310_720,
    "130m": 134_105_856,
    "350m": 367_969_280,
    "760m": 777_856_512,
    "1.1b": 1_123_117_056,
    "7b": 6_738_415_616,
    # As Meta's model cards of Llama 3.2 3B, 3 8B, 2 13B and 2 70B count.
    "3b": 3_212_749_824,
    "8b": 8_030_261_248,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
}
# From the papers' tables: lr, min_lr, eps, sequence, global batch, steps, warm-up, precision.
RECIPES = {
    "tiny": (1e-3, 1e-4, 1e-8, 256, 16, 200, 20, "fp32"),
    "130m": (6e-4, 6e-5, 1e-8, 1024, 256, 30010, 2000, "bf16"),
    "1.1b": (4e-4, 4e-5, 1e-5, 2048, 1024, 10710, 2000, "bf16"),
    "7b": (3e-4, 3e-5, 1e-8, 4096, 1024, 32130, 2000, "bf16"),
    "350m": (3e-4, 3e-5, 1e-8, 2048, 256, 14040, 715, "bf16"),
    "760m": (2.5e-4, 2.5e-5, 1e-8, 2048, 256, 29670, 715, "bf16"),
    "3b": (1.6e-4, 1.6e-5, 1e-8, 4096, 256, 61280, 358, "bf16"),
    "8b": (3e-4, 3e-5, 1e-8, 8192, 512, 38290, 2000, "bf16"),
    "13b": (3e-4, 3e-5, 1e-5, 4096, 1024, 62060, 2000, "bf16"),
    "70b": (1.5e-4, 1.5e-5, 1e-5, 4096, 1024, 328910, 2000, "bf16"),
}


@pytest.mark.parametrize("override", [f"{group}={name}" for group in GROUPS for name in GROUPS[group]])
def test_every_option_composes(override):
    config = compose([override])
    config.check_layout(config.launch.processes)


def test_defaults():
    config = compose([])
    assert (config.model.name, config.parallel.tensor, config.sync.ratio) == ("tiny", 8, 0.5)
    assert (config.zero.stage, config.tracker.wandb, config.optim.betas) == (1, "none", [0.9, 0.95])
    # What YAML does not say is what the schema says.
    assert config.train.log_every == Config().train.log_every


@pytest.mark.parametrize("name", GROUPS["model"])
def test_model(name):
    config = compose([f"model={name}"])
    c, o = config.train, config.optim
    recipe = (o.lr, o.min_lr, o.eps, c.sequence, c.global_batch, c.steps, o.warmup_steps, c.precision)
    assert recipe == RECIPES[name]
    assert config.data.vocab_size == config.model.vocab_size
    assert (o.betas, o.weight_decay, o.clip, o.schedule) == ([0.9, 0.95], 0.1, 1.0, "cosine")
    for world in (1, 2, 4, 8, 16):
        config.check_layout(world)
    # One process holds all eight shards, so its parameters are the model's.
    with torch.device("meta"):
        model = GPT(config.model, Mesh(shards=8), config.sync.ratio)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_the_command_line_overrules_an_experiment_and_that_a_model():
    quickstart = compose(["experiment=quickstart"])
    assert (quickstart.parallel.tensor, quickstart.launch.processes) == (4, 2)
    assert (quickstart.train.precision, quickstart.train.eval_every) == ("fp32", 50)
    config = compose(["experiment=quickstart", "model=130m", "parallel.tensor=2", "optim.lr=0.001"])
    assert (config.parallel.tensor, config.optim.lr, config.optim.min_lr) == (2, 1e-3, 6e-5)
    assert (config.model.name, config.train.precision) == ("130m", "fp32")


def test_a_data_option_does_not_change_the_vocabulary_of_the_model():
    assert compose(["data=fineweb_edu", "model=tiny"]).data.vocab_size == 4096
