"""The checkpoint on disk: the same function at any process count, in our hands and in Hugging Face's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from caat.parallel.mesh import Mesh
from caat.supervision.control import Control
from caat.training.checkpoint import files
from caat.training.checkpoint.architecture import Architecture, read_architecture
from caat.training.checkpoint.folder import find
from caat.training.checkpoint.reading import damage, load_master_weights, load_optimizer, load_weights
from caat.training.checkpoint.saver import Saver
from caat.training.checkpoint.state import State, read_state
from caat.training.engine import Engine
from conf.optim import OptimConfig
from conf.partition import shared_channels
from conf.schema import CheckpointConfig
from eval.open import load_model
from eval.quality.score import next_token_log_probabilities
from layers.full_tensors import full_tensors
from tests.models import SMALL, batch, build, gathered
from tests.reference import random_weights, token_losses
from tests.trained import MODEL, write_checkpoint

LR = 1e-2
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def architecture(shards: int, ratio: float) -> Architecture:
    k = shared_channels(SMALL.hidden, ratio, shards)
    return Architecture(SMALL, shards, ratio, k, shards**0.5)


def state(step: int, **values) -> State:
    return State(step=step, tokens=step * 32, position=step * 2, sequence=16, seed=1, data="0", **values)


def saver(folder: Path, engine: Engine, ratio: float, **settings) -> Saver:
    tokenizer = folder / "t.model"
    if dist.get_rank() == 0:
        tokenizer.write_bytes(b"not looked into here")
    dist.barrier()
    model = engine.model
    return Saver(
        folder / "checkpoints",
        full_tensors(model),
        lambda: architecture(engine.mesh.shards, ratio),
        tokenizer,
        live=engine.live,
        settings=CheckpointConfig(**settings),
    )


def start(shards: int, processes: int, ratio: float, stage: int, precision: str = "fp32") -> Engine:
    mesh = Mesh.create(shards, processes)
    model = build(mesh, ratio, dtype=torch.float32)
    return Engine(model, mesh, OptimConfig(), stage=stage, precision=precision, accumulation=1)


def write(
    folder: Path, shards: int, processes: int, ratio: float, stage: int, steps: int, share_bytes: int, **how
):
    """Train a few steps and save; every rank's full optimizer state, gathered by other means."""
    files.SHARE_BYTES = share_bytes
    engine = start(shards, processes, ratio, stage)
    for step in range(steps):
        engine.step([batch(seed=step)], LR)
    writer = saver(folder, engine, ratio, **how)
    writer.save(state(7))
    # What training does to the state while the files are written must not reach them.
    full = whole_state(engine)
    engine.step([batch(seed=99)], LR)
    writer.wait()
    return full


def whole_state(engine: Engine) -> dict[str, dict[str, torch.Tensor]]:
    """Full tensors by kind and Hugging Face name: what replicas hold is added up, then shards are joined."""
    held, mesh = engine.live.fragments(), engine.mesh

    def local(each, kind: str) -> torch.Tensor:
        fragment, shape = held[each.parameter, kind], each.local_shape(mesh.processes)
        total = torch.zeros(torch.Size(shape).numel())
        if fragment.size and (engine.stage > 0 or mesh.data_rank == 0):
            total.narrow(0, fragment.start, fragment.size).copy_(fragment.numbers)
        dist.all_reduce(total, group=mesh.data.group)
        return total.view(shape)

    tensors = full_tensors(engine.model)
    return {
        kind.name: gathered(engine.model, {each.parameter: local(each, kind.name) for each in tensors})
        for kind in engine.live.kinds
    }


def on_disk(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob(f"{files.stem(kind)}[-.]*safetensors"):
        with safe_open(path, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


def load(folder: Path, shards: int, processes: int, ratio: float, stage: int, precision: str = "fp32"):
    """The engine's whole state after loading, and the loss of the next step."""
    mesh = Mesh.create(shards, processes)
    model = build(mesh, ratio, dtype=torch.float32)
    load_weights(model, full_tensors(model), mesh.local_shards, folder)
    engine = Engine(model, mesh, OptimConfig(), stage=stage, precision=precision, accumulation=1)
    load_master_weights(engine.live, full_tensors(model), folder)
    assert load_optimizer(engine.live, full_tensors(model), folder) == []
    return whole_state(engine), engine.live.optimizer.steps


def score(folder: Path, shards: int, processes: int):
    mesh = Mesh.create(shards, processes)
    text = torch.cat([batch()[0], batch()[1][:, -1:]], 1)
    return next_token_log_probabilities(load_model(folder, mesh), text)


def differing(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> list[str]:
    """Tensors that are not the same, bit for bit."""
    assert a.keys() == b.keys() and all(a[kind].keys() == b[kind].keys() for kind in a)
    return [
        f"{kind} {name}" for kind in a for name in a[kind] if not torch.equal(a[kind][name], b[kind][name])
    ]


@pytest.mark.parametrize(("stage", "ratio"), [(0, 0.5), (1, 0.25), (2, 1.0), (3, 0.5)])
def test_saved_anywhere_scored_anywhere(ranks, tmp_path, stage, ratio):
    ranks(4).run(write, tmp_path, 4, 2, ratio, stage, 0, 2**26)
    folder = find(tmp_path / "checkpoints")
    assert folder.name == "step-00000007"
    k = shared_channels(SMALL.hidden, ratio, 4)
    weights = {name: w.float().double() for name, w in random_weights(SMALL).items()}
    want = -token_losses(weights, SMALL, *batch(), 4, k)
    for world in (1, 2, 4):
        for got in ranks(world).run(score, folder, 4, world):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("share_bytes", [pytest.param(2**26, marks=pytest.mark.slow), 20_000])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_optimizer_state_survives_every_change_of_layout(ranks, tmp_path, stage, share_bytes):
    """Written by one stage on four processes, in one file of each kind or several; read by all others."""
    want = ranks(4).run(write, tmp_path, 4, 2, 0.5, stage, 2, share_bytes)[0]
    folder = find(tmp_path)
    count = len(list(folder.glob("model*.safetensors")))
    assert count == 1 if share_bytes == 2**26 else count > 2
    disk = {kind: on_disk(folder, kind) for kind in KINDS}
    assert differing(disk, want) == []
    assert float(disk["exp_avg_sq"]["lm_head.weight"].abs().max()) > 0
    for world, processes, other in ((1, 1, 1), (2, 2, 3), (4, 4, 2), (4, 1, 3), (4, 2, 0), (2, 1, 1)):
        for got, steps in ranks(world).run(load, folder, 4, processes, 0.5, other):
            assert differing(got, want) == [], f"stage {stage} to {other} on {processes} of {world}"
            assert steps == 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_keeps_its_master_weights(ranks, tmp_path, stage):
    want = ranks(4).run(write, tmp_path, 4, 2, 0.5, 1, 2, 2**26)[0]
    for got, _ in ranks(4).run(load, find(tmp_path), 4, 2, 0.5, stage, "bf16"):
        assert differing(got, want) == []


def test_waiting_for_the_disk_gives_the_same_files(ranks, tmp_path):
    for name, asynchronous in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        ranks(2).run(write_with, tmp_path / name, asynchronous)
    a, b = (find(tmp_path / name) for name in "ab")
    assert read_state(a)[1] == read_state(b)[1]


def write_with(folder: Path, asynchronous: bool) -> None:
    write(folder, 4, 2, 0.5, 1, 1, 2**26, asynchronous=asynchronous)


def test_hugging_face_reads_ratio_one(ranks, tmp_path):
    transformers = pytest.importorskip("transformers")
    ranks(2).run(write, tmp_path, 2, 2, 1.0, 1, 0, 2**10)
    folder = find(tmp_path / "checkpoints")
    theirs, loading = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokens, targets = batch()
    with torch.no_grad():
        logits = theirs(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    ours = load_model(folder, Mesh(1))(tokens, targets)
    torch.testing.assert_close(ours.flatten(), loss, rtol=0, atol=1e-5)


def test_several_files_and_their_index(ranks, tmp_path):
    ranks(4).run(write, tmp_path, 4, 2, 0.5, 1, 0, 2**10)
    folder = find(tmp_path)
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    assert names == [f"model-{i + 1:05}-of-{len(names):05}.safetensors" for i in range(4)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    sizes = [(folder / name).stat().st_size for name in names]
    # Even but for the size of a parameter, the largest of which is the fused q, k and v.
    fused = SMALL.hidden + 2 * SMALL.kv_heads * SMALL.head_size
    assert max(sizes) - min(sizes) < 2 * 4 * SMALL.hidden * fused


def write_in_parts(folder: Path, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    """:func:`write` where no file may hold more than about a quarter of a kind, whatever the ranks."""
    whole = files.FILE_BYTES
    files.FILE_BYTES = 200_000
    try:
        return write(folder, 4, processes, 0.5, 1, 2, 2**26)
    finally:
        files.FILE_BYTES = whole


@pytest.mark.parametrize("world", [1, 2, 4])
def test_kinds_above_the_size_of_a_file(ranks, tmp_path, world):
    """Cut into as many files by one rank as by several, and read on any number of processes."""
    want = ranks(world).run(write_in_parts, tmp_path, min(world, 2))[0]
    folder = find(tmp_path)
    for kind in KINDS:
        names = sorted(path.name for path in folder.glob(f"{files.stem(kind)}-*.safetensors"))
        assert names == [files.file_name(files.stem(kind), i, 4) for i in range(4)]
        assert (folder / files.index_name(files.stem(kind))).is_file()
    assert differing({kind: on_disk(folder, kind) for kind in KINDS}, want) == []
    assert verify(folder) == []
    for processes in (1, 2, 4):
        for got, steps in ranks(processes).run(load, folder, 4, processes, 0.5, 1):
            assert differing(got, want) == [] and steps == 2


@pytest.fixture
def saved(ranks, tmp_path) -> Path:
    ranks(1).run(write, tmp_path, 4, 1, 0.5, 1, 1, 2**26)
    return find(tmp_path)


@pytest.mark.parametrize(("shards", "ratio"), [(4, 1.0), (1, 0.5)])
def test_where_nothing_is_private_any_shards_will_do(shards, ratio, tmp_path):
    """Whatever the vocabulary was padded to: 61 tokens are 64 rows on 4 shards and 62 on 2."""
    saved = write_checkpoint(tmp_path / "run", shards, ratio)
    text = torch.randint(MODEL.vocab_size, (2, 17), generator=torch.Generator().manual_seed(1))
    scores = [
        next_token_log_probabilities(load_model(saved, Mesh(n), dtype=torch.float64), text) for n in (1, 2, 4)
    ]
    for score in scores[1:]:
        torch.testing.assert_close(score, scores[0], rtol=0, atol=1e-12)


def test_other_shards_are_refused(saved):
    with pytest.raises(ValueError, match=r"parallel.tensor=2, but the checkpoint was trained with 4 shards"):
        load_model(saved, Mesh(2))


def test_channels_as_caat_once_rounded_are_kept(saved):
    """int(0.29 · 32), and of a larger model one less than that of today."""
    (saved / "state.json").unlink()
    edit_config(saved, hidden_size=3200, num_attention_heads=8, num_key_value_heads=8)
    ours = json.loads((saved / "config.json").read_text())["caat"]
    edit_config(saved, caat={**ours, "ratio": 0.29, "shared_channels": int(0.29 * 3200)})
    found = read_architecture(saved)
    assert shared_channels(3200, 0.29, 4) == 928 and int(0.29 * 3200) == 927
    assert found.shared_channels == 927 == shared_channels(3200, found.ratio, 4)
    edit_config(saved, caat={**ours, "ratio": 0.29, "shared_channels": 929})
    with pytest.raises(ValueError, match=r"shared_channels=929, but .* are 928: it was changed by hand"):
        read_architecture(saved)


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def verify(folder: Path) -> list[str]:
    return damage(folder, Control())
