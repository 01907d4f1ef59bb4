"""A small transformer with a choice of attention kernels and of checkpointing."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

EVERY_KERNEL = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, kernels, dropout, width=16, heads=2):
        super().__init__()
        self.kernels, self.heads = kernels, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 32), nn.Linear(32, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = (t.transpose(-2, -3) for t in (q, k, v))
        with sdpa_kernel(self.kernels):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.project(y.transpose(-2, -3).flatten(-2)))
        return x + self.dropout(self.narrow(F.relu(self.widen(self.norm2(x)))))


class Transformer(nn.Module):
    """Predicts the next token.

    Args:
        kernels: which attention kernels may be used.
        reentrant: how the blocks are checkpointed; None: not.
        dropout: of the blocks.
    """

    def __init__(self, kernels=EVERY_KERNEL, reentrant=None, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.embed = nn.Embedding(10, 16)
        self.position = nn.Parameter(0.1 * torch.randn(12, 16))
        self.blocks = nn.ModuleList(Block(kernels, dropout) for _ in range(2))
        self.head = nn.Linear(16, 10)

    def forward(self, tokens):
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)
