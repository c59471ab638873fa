"""Synthetic Q and K with massive pairs, and how much rounding K changes attention."""

import torch


def structured_states(seq=96, heads=4, kv_heads=2, head_dim=16, seed=0):
    """Q and K: two pairs of every KV head are massive in both, one in Q alone; each KV head has others."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(seq, heads, head_dim, generator=generator)
    k = torch.randn(seq, kv_heads, head_dim, generator=generator)
    half = head_dim // 2
    for kv_head in range(kv_heads):
        group = slice(kv_head * heads // kv_heads, (kv_head + 1) * heads // kv_heads)
        for pair, q_scale, k_scale in ((half - 2 - kv_head, 2.0, 5.0), (half - 4, 2.0, 4.0), (1 + kv_head, 4.0, 1.0)):
            dims = [pair, pair + half]
            q[:, group, dims] *= q_scale
            k[:, kv_head, dims] = k_scale * (k[:, kv_head, dims] + 3)
    return q, k


def attention_kl(q, k, k_hat):
    """Mean KL divergence of causal attention with K rounded from attention with K as it was."""
    seq, heads, head_dim = q.shape
    causal = torch.ones(seq, seq, dtype=torch.bool).tril()

    def log_attention(keys):
        repeated = keys.double().repeat_interleave(heads // keys.shape[1], dim=1)
        logits = torch.einsum("qhd,khd->hqk", q.double(), repeated) / head_dim**0.5
        return logits.masked_fill(~causal, -torch.inf).log_softmax(-1)

    exact, rounded = log_attention(k), log_attention(k_hat)
    return float((exact.exp() * (exact - rounded)).masked_fill(~causal, 0).sum(-1).mean())
