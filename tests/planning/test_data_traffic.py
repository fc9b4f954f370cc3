"""What DeepSpeed sends between replicas: counted on the data axis, planned to the byte, and waited for."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from caat.parallel.data_axis import DataAxis
from caat.parallel.mesh import Mesh
from caat.planning import data_traffic
from caat.planning.data_traffic import full_messages, sent_bytes
from caat.planning.data_wait import data_wait, gather_seconds
from caat.planning.parameters import Parameter, local_parameters
from caat.planning.prediction import Link, MessageCost
from caat.topology.bound import least_seconds
from caat.topology.choose import best_schedule
from caat.topology.read import topology
from caat.topology.simulate import seconds
from caat.training.engine import Engine
from conf.data_sync import DataSyncConfig
from conf.model import ModelConfig
from conf.schema import OptimConfig
from layers.gpt import GPT
from layers.weights import initial_weights

# DeepSpeed's names: what it is, which argument goes in, and whether all replicas' make up the message.
COLLECTIVES = {
    "all_reduce": ("all_reduce", 0, False),
    "reduce_scatter_tensor": ("reduce_scatter", 1, False),
    "all_gather_into_tensor": ("all_gather", 1, True),
}
# Sizes that 4 replicas do not divide, so that DeepSpeed pads: as a whole, each optimizer group, each weight.
ODD = ModelConfig(layers=2, hidden=14, ffn=9, heads=1, kv_heads=1, sequence=16, vocab_size=31)
EVEN = ModelConfig(layers=2, hidden=12, ffn=10, heads=2, kv_heads=2, sequence=16, vocab_size=61)
STAGES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
# Limits of stage 3 in place of DeepSpeed's, so that of these small models most weights are cut, and the first
# ones are gathered again for the backward pass.
CUT = {"PERSISTENT": 200, "LIVE": 2500}


def counted_data_bytes(config: ModelConfig, processes: int, accumulation: int, cut: bool = False) -> list:
    """One step at each stage: counts of the ledger, bytes as DeepSpeed hands them to torch, and the plan."""
    mesh = Mesh.create(max(1, processes), processes)
    held = local_parameters(config, mesh.shards, processes)
    found = []
    for stage, precision in [(3, "fp32"), (3, "bf16")] if cut else STAGES:
        with limits(cut):
            engine = small_engine(config, mesh, stage, precision, accumulation)
            text = torch.randint(config.vocab_size, (accumulation, 2, 17))
            batches = [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in text]
            engine.step(batches, 1e-4)
            mesh.data.ledger.reset()
            with deepspeed_calls(mesh.data) as called:
                engine.step(batches, 1e-4)
            counts = mesh.data.ledger.totals("gradients", "weights", "control", "loss")
            case = (held, mesh.data_size, stage, precision, accumulation)
            planned = full_messages(*case), sent_bytes(*case)
        found.append((f"stage {stage} {precision}", counts, called, planned))
    return found


def small_engine(config: ModelConfig, mesh: Mesh, stage: int, precision: str, accumulation: int) -> Engine:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = GPT.empty(config, mesh, 0.5, dtype=dtype).fill(initial_weights(config, 1))
    return Engine(model, mesh, OptimConfig(), stage=stage, precision=precision, accumulation=accumulation)


@contextmanager
def limits(cut: bool):
    """Both DeepSpeed and the plan with the limits of :data:`CUT`."""
    settings, kept = Engine._settings, {name: getattr(data_traffic, name) for name in CUT}

    def with_limits(self, *rest):
        values = settings(self, *rest)
        values["zero_optimization"] |= {
            "stage3_param_persistence_threshold": CUT["PERSISTENT"],
            "stage3_max_live_parameters": CUT["LIVE"],
            "stage3_max_reuse_distance": CUT["LIVE"],
            "stage3_prefetch_bucket_size": 100,
        }
        return values

    try:
        if cut:
            Engine._settings = with_limits
            for name, value in CUT.items():
                setattr(data_traffic, name, value)
        yield
    finally:
        Engine._settings = settings
        for name, value in kept.items():
            setattr(data_traffic, name, value)


@contextmanager
def deepspeed_calls(axis: DataAxis):
    """Bytes of whole messages by collective, as DeepSpeed hands them to torch: a second count."""
    from deepspeed.comm.comm import cdb

    sent = {"all_reduce": 0, "reduce_scatter": 0, "all_gather": 0}
    originals = {name: getattr(cdb, name) for name in COLLECTIVES}

    def counting(name: str):
        kind, place, gathered = COLLECTIVES[name]

        def counted(*arguments, **named):
            message = (
                arguments[place] if len(arguments) > place else named.get("input_tensor", named.get("tensor"))
            )
            if any(value is axis.process_group for value in (*arguments, *named.values())):
                sent[kind] += message.nbytes * (axis.processes if gathered else 1)
            return originals[name](*arguments, **named)

        return counted

    try:
        for name in COLLECTIVES:
            setattr(cdb, name, counting(name))
        yield sent
    finally:
        for name, original in originals.items():
            setattr(cdb, name, original)


@pytest.mark.parametrize(
    ("config", "processes", "accumulation", "cut"),
    [(ODD, 1, 2, False), (EVEN, 2, 1, False), (ODD, 1, 2, True)],
)
def test_data_parallel_bytes_are_those_counted(ranks, config, processes, accumulation, cut):
    check_counts(ranks(4).run(counted_data_bytes, config, processes, accumulation, cut)[0], 4 // processes)


def check_counts(found: list, replicas: int) -> None:
    for case, counts, called, (full, sent) in found:
        assert (counts["bytes_gradients"], counts["bytes_weights"]) == sent, case
        assert counts["bytes_control"] + counts["bytes_loss"] <= 60, case
        # DeepSpeed's own calls are these and the numbers of control, which count as rings.
        whole = {kind: full.get(kind, 0) for kind in called}
        control = called["all_reduce"] - whole.pop("all_reduce")
        assert 0 <= control <= 40 and {kind: called[kind] for kind in whole} == whole, case
        assert counts["bytes_control"] == pytest.approx(control * 2 * (replicas - 1) / replicas, abs=5), case


CODECS = ("int8", "topk:0.1,index=bitmap", "powersgd:2", "randomk:0.1")


def counted_with_codecs(accumulation: int) -> list:
    """The bytes of a step with each codec, at stages that differ in who needs what, and the plan of them."""
    held, found = local_parameters(ODD, 1, 1), []
    for stage, precision in [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")]:
        for codec in CODECS:
            weights = "int8" if stage in (1, 2) else "none"
            sync = DataSyncConfig(codec=codec, weights_codec=weights)
            mesh = Mesh.create(1, 1, data_sync=sync)
            engine = small_engine(ODD, mesh, stage, precision, accumulation)
            text = torch.randint(ODD.vocab_size, (accumulation, 2, 17))
            batches = [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in text]
            for step in (1, 2):
                mesh.data.start_step(step)
                engine.step(batches, 1e-4)
            counts = mesh.data.ledger.totals("gradients", "weights")
            planned = sent_bytes(held, 3, stage, precision, accumulation, sync=sync)
            found.append(((stage, precision, codec), counts, planned))
    return found


def test_bytes_through_codecs_are_those_counted(ranks):
    for case, counts, planned in ranks(3).run(counted_with_codecs, 2)[0]:
        assert (counts["bytes_gradients"], counts["bytes_weights"]) == planned, case


def test_rings_by_hand():
    # Four processes: three steps around the ring, of 100 bytes each.
    link = Link(rate=100.0, delay=1.0)
    assert gather_seconds(300, 4, link) == pytest.approx(3 * (1 + 1))
    assert gather_seconds(0, 4, link) == 0


@pytest.mark.parametrize(
    ("codec", "stage", "messages", "rounds"),
    [
        ("none", 0, 1, 2),
        ("none", 1, 1, 1),
        ("int8", 0, 1, 2),
        ("topk:0.1", 0, 1, 1),
        ("topk:0.1", 1, 1, 1),
        ("randomk:0.1", 1, 1, 2),
        ("powersgd:2", 0, 2, 4),
        ("powersgd:2", 1, 2, 4),
    ],
)
def test_messages_that_wait_for_each_other(codec, stage, messages, rounds):
    """Only the delay of gradients and the cost of their messages is left on a link without a limit."""
    link, where = Link(1e30, 1.0, MessageCost(1000.0)), {"forward": 0.0, "backward": 0.0, "layers": 1}
    wait = data_wait([Parameter(5000)], 4, stage, "fp32", 1, link=link, sync=DataSyncConfig(codec), **where)
    of_weights = 1000 + 3 if stage == 1 else 0
    assert wait == pytest.approx(messages * 1000 + rounds * 3 + of_weights, abs=1e-6)


def test_along_a_schedule_the_wait_is_simulated():
    """Plan and simulator agree: the schedule that a run takes, at the rate and delay of the plan."""
    network, held = topology("mesh:2x3", 1e8, 1e-3), [Parameter(3_000_000), Parameter(6000, norm=True)]
    along = DataSyncConfig(schedule="auto", topology="mesh:2x3")
    where = {"forward": 0.0, "backward": 0.0, "layers": 1}
    link = Link(1e8, 1e-3, MessageCost(0.25))
    at_zero = data_wait(held, 6, 0, "fp32", 1, link=link, sync=along, **where)
    best = best_schedule(topology("mesh:2x3", 125e6, 1e-4), "all-reduce", 4 * 3_006_000)
    simulated = seconds(best.schedule, network, 4 * 3_006_000, best.pieces)
    assert at_zero == 0.25 + simulated
    assert simulated >= 0.99 * least_seconds(network, 4 * 3_006_000)
    # At stage 1 sums go to their owners, and weights and norms are gathered; each message costs the same.
    at_one = data_wait(held, 6, 1, "fp32", 1, link=link, sync=along, **where)
    assert at_one - 3 * 0.25 == pytest.approx(simulated, rel=0.1)
    ring = data_wait(held, 6, 0, "fp32", 1, link=link, **where)
    assert ring > at_zero


@pytest.mark.parametrize(
    ("forward", "backward", "waits"),
    [
        # A message of 4e9 bytes goes round two replicas in 2 s; of 8 layers, one takes 0.25 s.
        (9.0, 9.0, [0.25, 0.25, 0.25, 0.25]),
        (1.5, 9.0, [0.5, 0.25, 0.5, 0.25]),
        (9.0, 3.0, [0.25, 0.5, 0.25, 0.5]),
        (0.0, 0.0, [2.0, 3.5, 2.0, 3.5]),
    ],
)
def test_what_zero_3_hides_by_hand(forward, backward, waits):
    """Two micro-batches: weights before each forward; gradients and six of eight weights beside backward."""
    how = {"link": Link(rate=1e9), "layers": 8}
    held = [Parameter(250_000_000)] * 8
    given = how | {"forward": forward, "backward": backward}
    assert data_wait(held, 2, 3, "bf16", 2, **given) == pytest.approx(sum(waits))
    assert data_wait(held, 2, 1, "bf16", 2, **given) == pytest.approx(4 + 2)
    eighth = DataSyncConfig(codec="int8", weights_codec="int8")
    assert data_wait(held, 2, 1, "bf16", 2, **given, sync=eighth) == pytest.approx((2 + 1) * 260 / 256)
    # A smaller model keeps its weights from the forward pass to the backward pass.
    smaller = how | {"forward": forward / 10, "backward": backward / 10}
    fetched, sent = max(0.25, 2 - forward) / 10, max(0.25, 2 - backward) / 10
    wait = data_wait([Parameter(25_000_000)] * 8, 2, 3, "bf16", 2, **smaller)
    assert wait == pytest.approx(2 * (fetched + sent))
    # Small weights are gathered once, after the step, where nothing hides it.
    wait = data_wait([Parameter(100_000)] * 8, 2, 3, "bf16", 2, **how, forward=9.0, backward=9.0)
    assert wait == pytest.approx(8e-4 + 2 * 1e-4)
