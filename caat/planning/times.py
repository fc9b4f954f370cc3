"""Step time of a layout on the planned machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from caat.planning.island_traffic import island_wait
from caat.planning.kernels import Kernels
from caat.planning.layouts import Layout, pass_of
from caat.planning.parameters import local_parameters
from caat.planning.prediction import Link, MessageCost
from caat.planning.traffic import StepTime, step_time
from conf.plan import PlanConfig
from conf.schema import Config
from conf.units import delay_seconds, rate_bytes


@dataclass(frozen=True)
class Machine:
    """Nodes of GPUs; rates in bytes/s per direction, ``flops`` in FLOP/s of one GPU.

    ``island_rate`` is that of the link of an island, which its processes share. With ``kernels``, they take
    the place of ``flops``.
    """

    nodes: int
    gpus: int
    flops: float
    node_rate: float
    rate: float
    delay: float
    island_rate: float
    island_delay: float
    cost: MessageCost
    kernels: Kernels | None = None

    @classmethod
    def of(cls, plan: PlanConfig) -> Machine:
        its = plan.hardware
        node_rate, rate = rate_bytes(its.node_link), rate_bytes(its.link)
        delay = delay_seconds(plan.delay)
        kernels = Kernels(plan.gemm * its.peak * 1e12, its.memory_rate * 1e9) if plan.gemm else None
        return cls(
            plan.nodes,
            plan.gpus,
            its.tflops * 1e12,
            node_rate,
            rate,
            delay,
            island_rate=rate_bytes(plan.island_link) if plan.island_link else rate * plan.gpus,
            island_delay=delay_seconds(plan.island_delay) if plan.island_delay else delay,
            cost=MessageCost(plan.message_seconds, plan.core_bytes_per_second),
            kernels=kernels,
        )

    @property
    def world(self) -> int:
        return self.nodes * self.gpus

    def island(self, islands: int) -> Machine:
        """Return the machine of one of ``islands`` islands: some of the nodes, or a part of one."""
        if self.nodes % islands == 0:
            return replace(self, nodes=self.nodes // islands)
        return replace(self, nodes=1, gpus=self.world // islands) if self.nodes < islands else self

    def island_link(self, layout: Layout) -> Link:
        """Return the part of a process in the link between islands."""
        sharers = layout.processes * layout.replicas
        return Link(self.island_rate / sharers, self.island_delay, self.cost, sharers)

    def tensor_link(self, processes: int) -> Link:
        """Return the link between the processes of a replica, which have consecutive ranks."""
        if self.nodes == 1 or self.gpus % processes == 0:
            return Link(self.node_rate, self.delay, self.cost)
        # The smallest number of a replica's processes on one node.
        return self._between(gcd(processes, self.gpus))

    def data_link(self, processes: int) -> Link:
        """Return the link between the processes of different replicas that hold the same shards."""
        if self.nodes == 1:
            return Link(self.node_rate, self.delay, self.cost)
        return self._between(self.gpus // processes)

    def _between(self, together: int) -> Link:
        """Return the link of a group with ``together`` GPUs per node: NCCL uses the links of all of them."""
        return Link(min(self.node_rate, max(1, together) * self.rate), self.delay, self.cost)


def time_of(config: Config, layout: Layout, ratio: float, machine: Machine) -> StepTime:
    """Return the time of one step at a ratio, between islands as an average over the steps."""
    c = config.train
    p = pass_of(config, layout, ratio)
    p = replace(p, model=replace(p.model, sequence=c.sequence))
    held = local_parameters(config.model, config.parallel.tensor, layout.processes)
    inside, kernels = machine.island(layout.islands), machine.kernels
    step = step_time(
        p,
        ratio,
        overlap=config.sync.overlap,
        accumulation=accumulation_of(config, layout),
        wire=config.sync.wire_format(c.precision),
        flops_per_second=kernels.sustained(p) if kernels else machine.flops,
        tensor_link=inside.tensor_link(layout.processes),
        held=held,
        replicas=layout.replicas,
        stage=layout.stage,
        precision=c.precision,
        # A network or a schedule that is given says which link a message takes.
        data_link=(
            Link(inside.rate, inside.delay, inside.cost)
            if config.data_sync.route
            else inside.data_link(layout.processes)
        ),
        data_sync=config.data_sync,
    )
    if kernels:
        stepped = sum(each.numbers for each in held) // (layout.replicas if layout.stage else 1)
        optimizer = kernels.optimizer_seconds(stepped, p.element_size, config.optim)
        step = replace(step, compute=step.compute + optimizer)
    wait = island_wait(config, layout, machine.island_link(layout), step.seconds)
    return replace(step, island_exposed=wait)


def seconds_of(config: Config, layout: Layout, machine: Machine) -> float:
    """Return the seconds of a step, averaged over all steps if ``sync.ratio`` is a schedule."""
    starts = [*config.sync.schedule, config.train.steps]
    spans = zip(config.sync.schedule.values(), starts, starts[1:], strict=False)
    total = sum(
        (end - start) * time_of(config, layout, ratio, machine).seconds for ratio, start, end in spans
    )
    return total / config.train.steps


def accumulation_of(config: Config, layout: Layout) -> int:
    """Return the number of micro-batches per step."""
    return config.train.global_batch // (layout.micro_batch * layout.all_replicas)
