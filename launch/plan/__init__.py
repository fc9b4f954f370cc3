"""`caat plan`: the memory, traffic and time of a run on a given cluster, by formula."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from caat.planning.compare_layouts import compare, fastest
from caat.planning.costs import flops_per_token
from caat.planning.data_traffic import sent_bytes
from caat.planning.island_traffic import bytes_per_step
from caat.planning.layouts import Layout, check_schedules, layout_of, needs, pass_of
from caat.planning.link_needed import rate_needed
from caat.planning.memory import Memory
from caat.planning.parameters import local_parameters
from caat.planning.times import Machine, accumulation_of, time_of
from caat.planning.traffic import StepTime, tensor_bytes
from conf.checks import require
from conf.codec import parse_codec
from conf.plan import PlanConfig
from conf.reading.settings import settings_of
from conf.reading.verb import load_verb
from conf.schema import Config
from conf.units import memory_bytes
from launch.command.results import keep_input, result_file, write_json
from launch.plan import budget
from launch.plan.show import show
from launch.run.compose import compose
from layers.weights import parameter_count


def main(argv: list[str]) -> None:
    """Print the plan and write it as JSON; raise ``ValueError`` for settings that do not go together."""
    if any(text.partition("=")[0] == "budget" for text in argv):
        return budget.main(argv)
    own = settings_of(PlanConfig)
    asked = [text for text in argv if text.partition("=")[0] in own or text in ("-h", "--help")]
    plan = load_verb(PlanConfig, asked)
    out = result_file(plan.out or f"outputs/plan-{datetime.now():%Y%m%d-%H%M%S}.json")
    config = compose([*(text for text in argv if text not in asked), *_along(plan, argv)])
    for route in (config.data_sync.route, config.islands.route):
        keep_input(out, plan.out, **{route.names[-1]: str(route.file) if route.file else None})
    result = make_plan(plan, config)
    write_json(out, result)
    show(result)
    print(out)


def _along(plan: PlanConfig, argv: list[str]) -> list[str]:
    """Return the settings of training that ``topology`` is short for."""
    if plan.topology is None:
        return []
    given = [text for text in argv if text.startswith(("data_sync.schedule=", "data_sync.topology="))]
    require(
        not given,
        f"topology={plan.topology} is short for data_sync.schedule=auto data_sync.topology={plan.topology}: "
        f"leave it out, or {' and '.join(given)}",
    )
    return ["data_sync.schedule=auto", f"data_sync.topology={plan.topology}"]


def _notes(plan: PlanConfig, config: Config) -> list[str]:
    """Return what the times leave out."""
    notes = []
    if config.train.precision == "fp32" and plan.tflops is None:
        notes.append(
            "the times are those of products in bfloat16: in train.precision=fp32 they take several times as "
            "long; tflops= says how fast a GPU is"
        )
    given = (config.data_sync.codec, config.data_sync.weights_codec, config.islands.codec)
    for codec in sorted({each for each in given if parse_codec(each).kind == "threshold"}):
        notes.append(f"{codec} sends what a message has above it, which is not known: all of it is counted")
    if config.sync.halves:
        notes.append("sync.halves=true hides sums that count as waited for at ratio 1 below")
    return notes


def make_plan(plan: PlanConfig, config: Config) -> dict[str, Any]:
    """Return everything that is printed, in bytes and seconds."""
    machine = Machine.of(plan)
    config.check_layout(machine.world)
    layout = layout_of(config, machine.world)
    check_schedules(config, layout)
    limit = int(memory_bytes(plan.hardware.memory) * (1 - plan.spare))
    c = config.train
    tokens_per_step = c.global_batch * c.sequence
    tokens = plan.tokens or c.steps * tokens_per_step
    steps = tokens / tokens_per_step
    layouts = compare(config, machine, limit, steps)
    return {
        "model": config.model.name,
        "parameters": parameter_count(config.model),
        "shards": config.parallel.tensor,
        "ratio": config.sync.describe_ratio(),
        "precision": c.precision,
        "notes": _notes(plan, config),
        "wire_dtype": config.sync.wire_dtype,
        "sequence": c.sequence,
        "global_batch": c.global_batch,
        "accumulation": accumulation_of(config, layout),
        "gpu": plan.gpu,
        "world": machine.world,
        "nodes": plan.nodes,
        "layout": asdict(layout),
        "between_replicas": config.data_sync.describe() if layout.replicas > 1 else None,
        "waiting": plan.waiting,
        "outer_steps": config.islands.describe(layout.islands) if layout.islands > 1 else None,
        "joins": config.islands.join is not None,
        "memory": _parts(needs(config, layout)),
        "memory_limit": limit,
        "tokens": tokens,
        "steps": _by_ratio(plan, config, layout, machine, steps),
        "layouts": layouts,
        "fastest": fastest(layouts),
    }


def _by_ratio(
    plan: PlanConfig, config: Config, layout: Layout, machine: Machine, steps: float
) -> list[dict[str, Any]]:
    """Return time and bytes of a step at each ratio, and the days that ``steps`` of them take."""
    c = config.train
    accumulation = accumulation_of(config, layout)
    held = local_parameters(config.model, config.parallel.tensor, layout.processes)
    sent = sent_bytes(held, layout.replicas, layout.stage, c.precision, accumulation, sync=config.data_sync)
    wire = config.sync.wire_format(c.precision)
    flops = flops_per_token(config.model, c.sequence) * c.global_batch * c.sequence
    peak = (c.peak_tflops or plan.hardware.peak) * 1e12 * machine.world
    rows = []
    for ratio in sorted({*plan.ratios, *config.sync.schedule.values()}, reverse=True):
        time = time_of(config, layout, ratio, machine)
        rows.append(
            {
                "ratio": ratio,
                "tensor_bytes": tensor_bytes(pass_of(config, layout, ratio), accumulation, wire),
                "data_bytes": sent.total,
                "island_bytes": round(bytes_per_step(config, layout)),
                "island_link_needed_bits_per_second": _link_needed(plan, config, layout, machine, time),
                "compute_seconds": time.compute,
                "tensor_exposed_seconds": time.tensor_exposed,
                "data_exposed_seconds": time.data_exposed,
                "island_exposed_seconds": time.island_exposed,
                "step_seconds": time.seconds,
                "tokens_per_second": c.global_batch * c.sequence / time.seconds,
                "mfu": flops / time.seconds / peak,
                "days": steps * time.seconds / 86400,
            }
        )
    return rows


def _link_needed(
    plan: PlanConfig, config: Config, layout: Layout, machine: Machine, time: StepTime
) -> float | None:
    """Return the rate of an island's link at which it waits a fraction ``plan.waiting`` of the time."""
    if layout.islands == 1:
        return None
    inside = time.seconds - time.island_exposed
    link = machine.island_link(layout)
    rate = rate_needed(config, layout, link, step_seconds=inside, waiting=plan.waiting)
    return None if rate is None else 8 * rate * layout.processes * layout.replicas


def _parts(memory: Memory) -> dict[str, Any]:
    return asdict(memory) | {"total": memory.total}
