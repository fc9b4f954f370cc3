"""Numbers and paths that nothing can be done with; channels that a ratio means."""

from __future__ import annotations

import pytest

from conf.generate import GenerateConfig
from conf.partition import shared_channels
from conf.reading.verb import load_verb
from launch.run.compose import compose

DIGITS = "1" * 400


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("optim.lr=inf", "optim.lr=inf is not finite"),
        ("optim.weight_decay=inf", "optim.weight_decay=inf is not finite"),
        ("model.rope_base=inf", "model.rope_base=inf is not finite"),
        ("model.norm_eps=inf", "model.norm_eps=inf is not finite"),
        ("optim.eps=1e-320", "optim.eps=1e-320 is too close to 0"),
        ("optim.betas=[0.9,nan]", "optim.betas=nan is not finite"),
        (
            "model.vocab_size=2147483648",
            "model.vocab_size=2147483648 is too large: the maximum is 2,147,483,647",
        ),
        ("seed=9223372036854775808", "seed=9223372036854775808... exceeds 64 bits"),
        (f"optim.lr={DIGITS}", "hundreds of digits"),
        (f"train.steps={DIGITS}", "hundreds of digits"),
        ("tracker.tags=[[a]]", "tracker.tags: it must be a list of texts"),
        ("tracker.name=a\udce9", r"tracker.name=a\udce9 is not UTF-8"),
        ("data.path=~nosuchuser/x", "data.path=~nosuchuser/x: there is no such user"),
        (f"run.dir={'a' * 256}", "its longest name has 256 bytes"),
        (f"data.dir={'é' * 128}", "its longest name has 256 bytes"),
        (f"resume={'a/' * 2100}b", "the path 4201"),
    ],
)
def test_a_number_that_is_none(given, says):
    with pytest.raises(ValueError) as error:
        compose([given])
    assert says in str(error.value)


@pytest.mark.parametrize(
    "given",
    ["temperature=1e-320", "temperature=inf", f"seed={DIGITS}", "stop=[[1]]", "prompts=~nosuchuser/x"],
)
def test_a_number_that_is_none_in_a_verb(given):
    with pytest.raises(ValueError, match=given.split("=")[0]):
        load_verb(GenerateConfig, ["checkpoint=x", "prompt=x", given])


def test_channels_of_every_round_ratio():
    for hidden in (64, 100, 256, 768, 1000, 2048, 4096):
        for percent in range(101):
            assert shared_channels(hidden, percent / 100, 8) == percent * hidden // 100
    assert shared_channels(9, 1 / 3, 8) == 3
    assert shared_channels(100, 0.2899, 8) == 28
