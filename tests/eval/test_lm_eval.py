"""lm-eval's own Hugging Face model and ours give the same scores; and ours the same on any processes."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install lm-eval")

from lm_eval.api.instance import Instance

from caat.data.tokenizer import load_tokenizer
from caat.parallel.mesh import Mesh
from eval.open import load_model
from eval.quality.evaluate import evaluate
from eval.quality.lm_eval_model import CaatCheckpoint, CaatLM, sampling
from eval.quality.tasks import find_tasks
from tests.eval.tasks import NAMES, write_tasks
from tests.trained import MODEL, write_checkpoint


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        # lm-eval's own model decodes broken UTF-8 another way.
        (n, r): write_checkpoint(folder / f"{n}-{r}", n, r, bytes_are_likely=False)
        for n, r in [(1, 1.0), (2, 1.0), (4, 1.0), (4, 0.5)]
    }


PAIRS = [
    ("The brown fox", " jumped over"),
    ("The brown fox ", "of Rome"),
    ("", "The grey fox"),
    ("Rome", "."),
    ("7 lazy dogs. " * 12, "The end of a context that is cut on the left"),
    ("naïve", " 日本\n\nfox"),
]
TEXTS = ["The brown fox jumped.", "", "x", "The grey fox of Rome jumped over 12 lazy dogs. " * 9]
QUESTIONS = [
    ("The brown fox", {"until": ["\n"], "max_gen_toks": 12}),
    ("Rome", {"until": ["o"], "max_gen_toks": 5}),
    ("The grey fox of Paris jumped over 3", {"until": ["\n"], "max_gen_toks": 12}),
]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def answers(lm) -> tuple[list, list, list]:
    return (
        lm.loglikelihood(requests("loglikelihood", PAIRS)),
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in TEXTS])),
        lm.generate_until(requests("generate_until", QUESTIONS)),
    )


def ours(checkpoint, shards: int, processes: int, batch: int = 0, dtype=torch.float32) -> CaatLM:
    mesh = Mesh(shards) if processes == 1 else Mesh.create(shards, processes)
    tokenizer = load_tokenizer(checkpoint / "tokenizer.model")
    return CaatLM(load_model(checkpoint, mesh, dtype=dtype), tokenizer, batch)


def our_answers(checkpoint, shards, processes, batch=0, dtype=torch.float32):
    return answers(ours(checkpoint, shards, processes, batch, dtype))


def check(found, expected, tolerance: float) -> None:
    for (value, greedy), (other, also) in zip(found[0], expected[0], strict=True):
        assert value == pytest.approx(other, rel=1e-7, abs=tolerance) and greedy == also
    assert found[1] == pytest.approx(expected[1], rel=1e-7, abs=tolerance)
    # lm-eval's own decodes a continuation by itself, which loses the space that it begins with.
    assert [text.lstrip() for text in found[2]] == [text.lstrip() for text in expected[2]]


@pytest.fixture(scope="module")
def hugging_face(checkpoints):
    """lm-eval's own model of the same weights and tokenizer."""
    return hugging_face_model(checkpoints[1, 1.0])


def hugging_face_model(checkpoint):
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaForCausalLM, LlamaTokenizer

    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = LlamaTokenizer.from_pretrained(checkpoint)
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=4,
        max_length=MODEL.sequence,
        # Its sums over tokens, as ours: in float32 they alone are off by a few parts in ten million.
        softmax_dtype="float64",
    )


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_requests_as_lm_evals_own_model(checkpoints, hugging_face, shards):
    check(our_answers(checkpoints[shards, 1.0], shards, 1), answers(hugging_face), 1e-5)


@pytest.mark.slow
def test_requests_as_lm_evals_own_model_on_two_processes(ranks, checkpoints, hugging_face):
    expected = answers(hugging_face)
    for found in ranks(2).run(our_answers, checkpoints[4, 1.0], 4, 2):
        check(found, expected, 1e-5)


def test_private_channels_on_any_processes(ranks, checkpoints):
    checkpoint = checkpoints[4, 0.5]
    expected = our_answers(checkpoint, 4, 1, 0, torch.float64)
    for found in ranks(2).run(our_answers, checkpoint, 4, 2, 0, torch.float64):
        check(found, expected, 1e-10)


@pytest.mark.slow
def test_replicas_share_the_rows(ranks, checkpoints):
    """Two of two processes."""
    checkpoint = checkpoints[4, 0.5]
    expected = our_answers(checkpoint, 4, 1, 0, torch.float64)
    for found in ranks(4).run(our_answers, checkpoint, 4, 2, 2, torch.float64):
        check(found, expected, 1e-10)


def test_the_batch_does_not_matter(checkpoints):
    checkpoint = checkpoints[4, 0.5]
    expected = our_answers(checkpoint, 4, 1, 0, torch.float64)
    for batch in (1, 4):
        check(our_answers(checkpoint, 4, 1, batch, torch.float64), expected, 1e-10)


def test_a_continuation_longer_than_the_context_is_refused_as_lm_evals_own_does(checkpoints, hugging_face):
    lm = ours(checkpoints[1, 1.0], 1, 1)
    room = lm.max_length

    def ask(tokens: int) -> list[Instance]:
        pairs = [("Rome", " fox"), ("Rome", "." * tokens)]
        return [Instance("loglikelihood", {}, pair, 0, metadata=("dots", 0, 1)) for pair in pairs]

    length = len(lm.tok_encode("Rome" + "." * 80)) - len(lm.tok_encode("Rome"))
    fits = next(n for n in range(80) if len(lm.tok_encode("Rome" + "." * n)) == room + 1)
    assert length > room
    expected = hugging_face.loglikelihood(ask(fits))
    for (value, greedy), (other, also) in zip(lm.loglikelihood(ask(fits)), expected, strict=True):
        assert value == pytest.approx(other, rel=1e-7, abs=1e-5) and greedy == also
    for model, error in ((lm, ValueError), (hugging_face, AssertionError)):
        with pytest.raises(error) as refused:
            model.loglikelihood(ask(80))
        if model is lm:
            says = f"task dots has a continuation of {length} tokens (request 2)"
            assert str(refused.value).startswith(says)
    with pytest.raises(ValueError, match="task dots has a continuation of 0 tokens"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("Rome", ""), 0, metadata=("dots", 0, 1))])


def test_nothing_to_continue_begins_a_document(checkpoints):
    lm = ours(checkpoints[4, 0.5], 4, 1)
    how = {"until": ["\n"], "max_gen_toks": 5}
    (text,) = lm.generate_until(requests("generate_until", [("", how)]))
    lm.add_bos = True
    assert lm.generate_until(requests("generate_until", [("", how)])) == [text]


def test_spaces_alone_are_no_context(checkpoints):
    """lm-eval makes them the beginning of what follows."""
    lm = ours(checkpoints[4, 0.5], 4, 1, dtype=torch.float64)
    for word in ("Rome", "brown fox"):
        pairs = [(" ", word), ("", f" {word}")]
        spaces, nothing = lm.loglikelihood(requests("loglikelihood", pairs))
        # Two rows of a batch may be rounded differently, as threads share them out.
        assert spaces[0] == pytest.approx(nothing[0], rel=1e-12) and spaces[1] == nothing[1]


def test_add_bos_is_for_contexts(checkpoints):
    lm = ours(checkpoints[4, 0.5], 4, 1)
    assert lm.tok_encode("Rome") == lm.tok_encode("Rome", add_special_tokens=False)
    before = answers(lm)
    lm.add_bos = True
    after = answers(lm)
    assert lm.tok_encode("Rome")[0] == lm.prefix_token_id
    assert after[0][0] != before[0][0] and after[0][2] == before[0][2]
    assert after[1] == before[1]


def test_drawing_has_the_temperature_of_hugging_face():
    """Its default is 1, and lm-eval adds none if a task asks to draw."""
    assert sampling({"do_sample": True, "top_p": 0.9, "until": ["x"]}).temperature == 1.0
    assert sampling({"until": ["x"]}).temperature == 0.0


def test_other_arguments_of_hugging_face_are_refused_unless_they_have_no_effect():
    assert sampling({"temperature": 0.7, "num_beams": 1, "min_p": None}).top_k == 50
    assert sampling({"temperature": 0.7, "top_k": 5}).top_k == 5
    for name, value in (("repetition_penalty", 1.2), ("num_beams", 4), ("min_p", 0.1), ("spelled", 1)):
        with pytest.raises(ValueError, match=f"its generation_kwargs have {name}={value}, which caat does"):
            sampling({"until": ["x"], name: value})


def test_no_room_to_generate(checkpoints):
    how = {"until": ["\n"], "max_gen_toks": MODEL.sequence}
    with pytest.raises(ValueError, match=r"it generates up to 64 tokens.*lower max_gen_toks"):
        ours(checkpoints[4, 0.5], 4, 1).generate_until(requests("generate_until", [("Rome", how)]))


def results(checkpoint, shards, processes, folder):
    return evaluate(ours(checkpoint, shards, processes), find_tasks([str(folder)]))


def test_tasks_as_lm_evals_own_model(ranks, checkpoints, hugging_face, tasks):
    expected = evaluate(hugging_face, find_tasks([str(tasks)]))
    assert sorted(expected) == sorted(NAMES)
    assert all(expected.values())
    alone = results(checkpoints[2, 1.0], 2, 1, tasks)
    first, second = ranks(2).run(results, checkpoints[2, 1.0], 2, 2, tasks)
    assert second == {}
    for each in (alone, first):
        for task, metrics in expected.items():
            assert each[task] == pytest.approx(metrics, rel=1e-4), task


def test_randomness_elsewhere_is_left_as_it_was(checkpoints, tasks):
    lm, found = ours(checkpoints[4, 0.5], 4, 1), find_tasks([str(tasks)])
    drawn = []
    for run in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if run:
            evaluate(lm, found, limit=2)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_lm_evals_own_command_finds_the_model(checkpoints, tasks, tmp_path):
    command = [
        "eval.quality.lm_eval_command",
        "run",
        "--model",
        "caat",
        "--model_args",
        f"checkpoint={checkpoints[4, 0.5]},dtype=float32",
    ]
    command += ["--include_path", str(tasks), "--tasks", "tiny_choice", "--batch_size", "2"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = results(checkpoints[4, 0.5], 4, 1, tasks)["tiny_choice"]["acc"]
    (shown,) = re.findall(r"\|acc +\|[^|]*\| *([\d.]+)\|", done.stdout)
    assert float(shown) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dtype": "int4"}, "dtype=int4 is not known: choose from float32, bfloat16"),
        ({"precision": "bfloat17"}, "dtype=bfloat17 is not known"),
        ({"dtype": "bfloat16", "precision": "fp32"}, "are the same setting"),
        ({"device": "cuda:1"}, "device=cuda:1 cannot be chosen"),
    ],
)
def test_what_lm_evals_command_cannot_ask_for(arguments, says):
    with pytest.raises(ValueError, match=says):
        CaatCheckpoint("nowhere", **arguments)
