import torch
from torch import distributed, nn

from caat.parallel.autograd import sum_gradient
from caat.parallel.mesh import Mesh
from caat.parallel.partial.stream import enter
from layers import ColumnParallelLinear, RowParallelLinear, vocab_parallel_cross_entropy


class Block(nn.Module):
    def __init__(self, mesh, width=64):
        super().__init__()
        self.mesh, self.gamma = mesh, nn.Parameter(torch.ones(width))
        self.qkv = ColumnParallelLinear(width, (width, width, width), mesh)
        self.out = RowParallelLinear(width, width, mesh, ratio=0.5)

    def forward(self, stream):  # stream.stack() is [local shards, batch, seq, channels]
        gamma = sum_gradient(self.gamma, self.mesh.tensor, "replicated")
        qkv = self.qkv(torch.rms_norm(stream.stack(), gamma.shape, gamma)).unflatten(-1, (-1, 3, 16))
        heads = nn.functional.scaled_dot_product_attention(*qkv.transpose(1, 2).unbind(3), is_causal=True)
        return self.out(heads.transpose(1, 2).flatten(-2), stream)


distributed.init_process_group("gloo")
mesh = Mesh.create(shards=4, processes=distributed.get_world_size())
torch.manual_seed(1)  # the same everywhere: each process draws full matrices and keeps its shards
model = nn.Sequential(nn.Embedding(256, 64), Block(mesh), Block(mesh), ColumnParallelLinear(64, 256, mesh))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
text = torch.from_file(__file__, size=8 * 129, dtype=torch.uint8).long().view(8, 129)
for step in range(20):
    stream = model[1:3](enter(model[0](text[:, :-1]), 32, mesh))  # 32 of 64 channels are shared
    loss = vocab_parallel_cross_entropy(model[3](stream.stack()), text[:, 1:], 256, mesh).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if distributed.get_rank() == 0:
        print(f"step {step} loss {loss:.6f}")
distributed.barrier()  # no process may exit while gloo still has work
distributed.destroy_process_group()
