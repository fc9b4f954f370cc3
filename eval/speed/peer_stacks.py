"""The stack of :mod:`eval.speed.stack` with other libraries' tensor parallelism and our weights."""

from __future__ import annotations

import warnings
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from caat.parallel.mesh import Mesh
from caat.supervision.device import PRECISIONS
from caat.training.zero import import_deepspeed
from conf.bench import BenchStackConfig
from eval.speed.stack import ColumnLinear, OurStack, PlainStack, copy_weights
from layers.mlp import swiglu
from layers.rotary import rotary_angles, rotate


def torch_stack(config: BenchStackConfig, device: torch.device, ours: OurStack) -> nn.Module:
    """Return the stack with torch's tensor parallelism, applied as in its tutorial for transformers."""
    stack = PlainStack(config.shape, _linear, _linear, _linear)
    device_mesh = init_device_mesh(device.type, (config.processes,))
    how = {"qkv": ColwiseParallel(), "output": RowwiseParallel(), "gate_up": ColwiseParallel()}
    for block in stack.blocks:
        parallelize_module(block, device_mesh, how | {"down": RowwiseParallel()})
    parallelize_module(stack, device_mesh, {"head": ColwiseParallel()})
    return copy_weights(ours, stack)


def megatron_core_stack(config: BenchStackConfig, ours: OurStack) -> nn.Module | None:
    """Return the stack with megatron-core's linears; None, with one note, if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from megatron.core import ModelParallelConfig, parallel_state, tensor_parallel
        except ImportError:
            if dist.get_rank() == 0:
                print("megatron-core is not installed (pip install megatron-core): left out")
            return None
    warnings.filterwarnings("ignore", message="When using async grad allreduce")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=config.processes)
    settings = ModelParallelConfig(
        tensor_model_parallel_size=config.processes,
        use_cpu_initialization=True,
        params_dtype=PRECISIONS[config.precision],
    )
    common = {"config": settings, "init_method": nn.init.zeros_, "bias": False, "skip_bias_add": False}

    class Column(tensor_parallel.ColumnParallelLinear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs, gather_output=False, **common)

        def forward(self, x):
            return super().forward(x)[0]

    class Row(tensor_parallel.RowParallelLinear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs, input_is_parallel=True, **common)

        def forward(self, x):
            return super().forward(x)[0]

    return copy_weights(ours, PlainStack(config.shape, Column, Row, Column))


def autotp_stack(config: BenchStackConfig, ours: OurStack) -> nn.Module:
    """Return the stack with the linears that DeepSpeed's AutoTP substitutes for a model's own."""
    deepspeed = import_deepspeed()
    from deepspeed.module_inject.layers import LinearAllreduce, LinearLayer, set_autotp_mode

    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    set_autotp_mode(training=True)
    group = dist.new_group()

    def column(inputs: int, outputs: int) -> nn.Module:
        return LinearLayer(_linear(inputs, outputs), group)

    def row(inputs: int, outputs: int) -> nn.Module:
        return LinearAllreduce(_linear(inputs, outputs), group)

    return copy_weights(ours, PlainStack(config.shape, column, row, column))


def domino_stack(config: BenchStackConfig, mesh: Mesh, ours: OurStack) -> nn.Module | None:
    """Return Domino's stack; None, with one note, if Domino cannot run this configuration.

    It halves the batch, and with one head per process its backward calls view() on a gradient that does not
    allow it (DeepSpeed 0.19.8).
    """
    if config.batch > 1 and config.heads > config.processes:
        return DominoStack(config, mesh, ours)
    if dist.get_rank() == 0:
        print("DeepSpeed-Domino needs two sequences, and two heads per process: left out")
    return None


class DominoStack(nn.Module):
    """DeepSpeed-Domino's transformer (arXiv 2409.15241): one half of the batch computes while the other
    half's sums are in flight. Our norms and MLP replace Domino's, so that it computes the same function."""

    def __init__(self, config: BenchStackConfig, mesh: Mesh, ours: OurStack) -> None:
        super().__init__()
        deepspeed = import_deepspeed()
        from deepspeed.runtime.domino.async_linear import DominoAsyncColumnParallelLinear
        from deepspeed.runtime.domino.transformer import DominoTransformer, ModelType

        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        # Domino's in-place sums cause this warning; its gradients are checked against ours.
        warnings.filterwarnings("ignore", message="c10d::allreduce_: an autograd kernel")
        c = self.c = config.shape
        group = dist.new_group()
        mpu = SimpleNamespace(
            get_tensor_model_parallel_world_size=lambda: mesh.processes,
            get_tensor_model_parallel_group=lambda: group,
        )
        settings = SimpleNamespace(
            num_layers=c.layers,
            hidden_size=c.hidden,
            ffn_hidden_size=c.ffn,
            num_attention_heads=c.heads,
            kv_channels=c.head_size,
            layernorm_epsilon=c.norm_eps,
            params_dtype=torch.float32,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            add_bias_linear=False,
            gated_linear_unit=False,
            apply_residual_connection_post_layernorm=False,
            perform_initialization=False,
            init_method=None,
            output_layer_init_method=None,
            domino_intra_layer_overlap=False,
        )
        self.transformer = DominoTransformer(settings, mpu, _turn, ModelType.encoder_or_decoder)
        for layer in self.transformer.layers:
            layer.input_layernorm = nn.RMSNorm(c.hidden, c.norm_eps)
            layer.post_attention_layernorm = nn.RMSNorm(c.hidden, c.norm_eps)
            layer.linear_fc1 = DominoAsyncColumnParallelLinear(
                c.hidden, 2 * c.ffn // mesh.processes, group, settings, None, bias=False
            )
            layer.mlp_activation_func = partial(swiglu, shards=1)
        self.transformer.final_layernorm = nn.RMSNorm(c.hidden, c.norm_eps)
        self.head = ColumnLinear(c.hidden, c.hidden, mesh, "head")
        self._copy_weights(ours)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        angles = rotary_angles(positions, self.c, x.dtype)
        # Domino uses Megatron's layout, [seq, batch, hidden].
        return self.head(self.transformer(x.transpose(0, 1), None, (angles, angles))).square().mean()

    @torch.no_grad()
    def _copy_weights(self, ours: OurStack) -> None:
        """Copy this process's weights of ``ours``, which give the same function at ratio 1."""
        names = {
            "attention_norm": "input_layernorm",
            "attention.qkv": "self_attention.query_key_value",
            "attention.output": "self_attention.dense",
            "mlp_norm": "post_attention_layernorm",
            "mlp.gate_up": "linear_fc1",
            "mlp.down": "linear_fc2",
        }
        ends = {"norm": "transformer.final_layernorm", "head": "head"}
        for name, weight in ours.named_parameters():
            part = name.removesuffix(".weight")
            if part in ends:
                target = ends[part]
            else:
                _, layer, part = part.split(".", 2)
                target = f"transformer.layers.{layer}.{names[part]}"
            if part == "attention.qkv":
                # Domino interleaves query, key and value by head.
                weight = weight.unflatten(0, (3, -1, self.c.head_size)).transpose(0, 1).flatten(0, 2)
            self.get_parameter(f"{target}.weight").copy_(weight)


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


def _turn(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary embedding to [batch, heads, seq, head_dim]."""
    return rotate(x.transpose(1, 2), *angles).transpose(1, 2)
