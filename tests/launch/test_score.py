"""`caat score`: the verb, its result, and the messages for users' mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128

from caat.training.checkpoint.state import write_checksums
from launch import convert, evaluate, generate, score
from tests.eval.tasks import write_tasks
from tests.reference import token_losses
from tests.trained import MODEL, write_checkpoint


@pytest.fixture
def run(tmp_path):
    write_checkpoint(tmp_path / "run", 4, 0.5)
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(MODEL.vocab_size, size=(3, 20)))
    return tmp_path


def arguments(run, *more: str) -> list[str]:
    return [f"checkpoint={run / 'run'}", f"tokens={run / 'tokens.npy'}", *more]


def test_of_every_next_token(run, capsys):
    score.main(arguments(run, "precision=fp64", "batch=2"))
    path = capsys.readouterr().out.splitlines()[-1]
    assert path == str(run / "run" / "scores.json")
    scores = np.load(run / "run" / "scores.npy")
    result = json.loads((run / "run" / "scores.json").read_text())
    assert scores.shape == (3, 19) and result["log_probabilities"] == scores.tolist()
    assert result["mean_log_probability"] == pytest.approx(scores.mean(), abs=1e-12)
    saved = load_file(run / "run" / "checkpoints" / "step-00000001" / "model.safetensors")
    weights = {name: value.double() for name, value in saved.items()}
    tokens = torch.from_numpy(np.load(run / "tokens.npy"))
    want = -token_losses(weights, MODEL, tokens[:, :-1], tokens[:, 1:], 4, MODEL.hidden // 2)
    np.testing.assert_allclose(scores, want, atol=1e-10)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_files_give_no_numbers(run, name):
    folder = run / "run" / "checkpoints" / "step-00000001"
    files = {path.name: xxh3_128(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    # The optimizer's files are not read.
    write_checksums(folder, {**files, "optimizer.exp_avg.safetensors": "0"})
    score.main(arguments(run))
    content = bytearray((folder / name).read_bytes())
    if name == "config.json":
        content = content.replace(b'"private_scale": 2.0', b'"private_scale": 2.5')
    else:
        content[-3] ^= 4
    assert content != (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged: its content does not match the checksum"):
        score.main(arguments(run))


def test_the_tokens_are_not_overwritten(run):
    before = (run / "tokens.npy").read_bytes()
    with pytest.raises(ValueError, match=r"out=.*tokens would overwrite tokens="):
        score.main(arguments(run, f"out={run / 'tokens'}"))
    assert (run / "tokens.npy").read_bytes() == before


def spoil(checkpoint, name: str, value: float) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights[name][-1] = value
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})


def test_weights_that_are_not_finite_give_nothing(run, tmp_path):
    """They give neither scores nor text nor an export, although all checksums match."""
    checkpoint = run / "run" / "checkpoints" / "step-00000001"
    spoil(checkpoint, "model.layers.1.mlp.up_proj.weight", np.nan)
    write_checksums(checkpoint, {p.name: xxh3_128(p.read_bytes()).hexdigest() for p in checkpoint.iterdir()})
    with pytest.raises(ValueError, match=r"step-00000001: .*up.* holds nan or inf: give an earlier"):
        score.main(arguments(run))
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="holds nan or inf"):
            generate.main(
                [f"checkpoint={run / 'run'}", "prompt=The", "max_new_tokens=4", f"temperature={temperature}"]
            )
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj.weight holds nan or inf"):
        convert.main([f"from={run / 'run'}", f"to={tmp_path / 'new'}"])
    assert not list(tmp_path.glob("*new*")) and not list(run.glob("run/*.json"))


def test_numbers_that_overflow_give_nothing(run, tmp_path):
    checkpoint = run / "run" / "checkpoints" / "step-00000001"
    spoil(checkpoint, "model.norm.weight", 3e38)
    with pytest.raises(ValueError, match=r"scores of .* are not finite"):
        score.main(arguments(run))
    for temperature in (0, 1):
        with pytest.raises(ValueError, match="logits are not finite"):
            generate.main(
                [f"checkpoint={run / 'run'}", "prompt=The", "max_new_tokens=4", f"temperature={temperature}"]
            )
    tasks = write_tasks(tmp_path / "tasks")
    (tasks / "tiny_generation.yaml").unlink()
    with pytest.raises(ValueError, match=r"task \w+ cannot be run: .*logits are not finite"):
        evaluate.main([f"checkpoint={run / 'run'}", f"tasks={tasks}", "limit=2"])
    assert not list(run.glob("run/*.json"))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (np.array([1, MODEL.vocab_size]), f"holds 1 to {MODEL.vocab_size}, but the model knows 0 to 300"),
        (np.array([2, 2**63 + 5], dtype=np.uint64), "holds 2 to 9223372036854775813"),
        (np.array([-1, 2]), "holds -1 to 2"),
        (np.array([1.0, 2.0]), "holds float64 of shape"),
        (np.array([[1], [2]]), "length 2 or more"),
        (np.array([1, "a"], dtype=object), "cannot be read as a .npy file of numbers"),
    ],
)
def test_tokens_that_are_none(run, tokens, said):
    np.save(run / "tokens.npy", tokens, allow_pickle=True)
    with pytest.raises(ValueError, match=said):
        score.main(arguments(run))


def header(claim: str) -> bytes:
    """Return a .npy file with this header and a few bytes of data."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {claim}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        header("(1000000000000,)"),
        header("(1000000, 1000000)"),
        header("(-1, 2)"),
        header(f"({10**400},)"),
        header("(True, 2)"),
        header("((("),
        b"",
        b"PK\x03\x04",
    ],
)
def test_a_token_file_that_is_damaged(run, content):
    (run / "tokens.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokens\.npy (cannot be read as a \.npy file|holds int64)"):
        score.main(arguments(run))


def test_a_folder_of_tokens_is_none(run):
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        score.main([*arguments(run), f"tokens={run}"])


def test_a_place_that_takes_no_result_is_said_before_the_work(run):
    (run / "file").write_text("")
    (run / "taken.npy").mkdir()
    places = (
        (run / "file" / "scores", "is not a folder"),
        ("/proc/scores", "/proc: "),
        (run / "taken", "taken.npy .it is a folder"),
    )
    for out, said in places:
        with pytest.raises(ValueError, match=f"cannot be written to .*{said}.*give another out="):
            score.main(arguments(run, f"out={out}"))
