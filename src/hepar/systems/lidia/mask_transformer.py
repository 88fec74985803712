"""Mask transformer: queries that attend to where their mask lies, and answer a class and a mask.

Cheng B. et al.: Masked-attention Mask Transformer for Universal Image Segmentation (Mask2Former),
CVPR 2022, section 3.2, in three dimensions; LIDIA, MICCAI 2024, section 2.1, "Mask Transformer".

| Mask2Former | code | shape |
|---|---|---|
| X_0, learned query features, and their positions | `query_features`, `query_positions` | Q, C |
| K, V, of level l | `memory` | b, N_l, C |
| M_l, the attention mask of Eq. 2 | `MaskTransformer.blocked` | b, Q, N_l |
| softmax(M + f_Q(X) f_K^T) V + X (Eq. 1) | `Attention`, `DecoderLayer` | b, Q, C |
| class logits, "no object" last | `Queries.classes` | b, Q, K + 1 |
| mask embeddings; a mask is their product with the mask features | `Queries.masks` | b, Q, C |

The first prediction is made of the queries as they are learned, one more after each layer, and all
are trained. A mask is linear in the mask features, so that no mask is computed where it is not
looked at: its size at a level is that of the features resized, its value at a voxel that of the
features there.

Where the paper is silent: three layers instead of nine, no dropout, norms after each addition, and
positions counted in voxels of the level, each axis to 2 pi.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from hepar.networks.blocks import at_least_float32, full_precision

TEMPERATURE = 10_000.0


@dataclass(frozen=True)
class Queries:
    """What a mask transformer answers: a list has an entry for each prediction, the first first.

    Attributes:
        classes: logits of the classes and of "no object", which is the last.
        masks: mask embeddings; their product with `features` are the logits of the masks.
        states: query features, normalized, that both were made of.
        features: mask features.
    """

    classes: list[Float[Tensor, "b q k1"]]
    masks: list[Float[Tensor, "b q c"]]
    states: list[Float[Tensor, "b q c"]]
    features: Float[Tensor, "b c z y x"]


def sine_positions(size: Sequence[int], width: int) -> Float[Tensor, "n c"]:
    """Sines and cosines of where a voxel lies: a third of the channels for each axis.

    Channel 2j of an axis with d of them is `sin(p / T^(2j/d))`, channel 2j + 1 the cosine, with
    `p = 2 pi (i + 1) / n` for voxel i of n and T = 10000. Of channels that three axes cannot share
    evenly, z has fewer: 64 are 20 + 22 + 22.

    Args:
        size: (z, y, x).
        width: c, even.
    """
    in_plane = 2 * math.ceil(width / 6)
    shares = (width - 2 * in_plane, in_plane, in_plane)
    parts = []
    for axis, (n, channels) in enumerate(zip(size, shares, strict=True)):
        place = torch.arange(1, n + 1, dtype=torch.float64) * (2 * math.pi / n)
        power = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        angle = place[:, None] / TEMPERATURE**power
        waves = rearrange([angle.sin(), angle.cos()], "two n j -> n (j two)").float()
        shape = [n if at == axis else 1 for at in range(3)]
        parts.append(waves.view(*shape, channels).expand(*size, channels))
    return rearrange(torch.cat(parts, dim=-1), "z y x c -> (z y x) c")


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al., NeurIPS 2017, section 3.2).

    Args:
        width: C, of everything.
        heads: a divisor of it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        key: Float[Tensor, "b n c"],
        value: Float[Tensor, "b n c"],
        blocked: Bool[Tensor, "b q n"] | None = None,
    ) -> Float[Tensor, "b q c"]:
        """What each query finds.

        Args:
            query: who looks.
            key: what is compared with it.
            value: what is found.
            blocked: True where a query does not look (Mask2Former, Eq. 1 and 2); at least one
                place of each query must be open.
        """
        q, k, v = (
            rearrange(layer(x), "b n (h d) -> b h n d", h=self.heads)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = einsum(q / math.sqrt(q.shape[-1]), k, "b h q d, b h n d -> b h q n")
        if blocked is not None:
            scores = scores.masked_fill(blocked.unsqueeze(1), -math.inf)
        weights = at_least_float32(scores).softmax(dim=-1).to(v.dtype)
        found = einsum(weights, v, "b h q n, b h n d -> b h q d")
        return self.out(rearrange(found, "b h q d -> b q (h d)"))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, a perceptron; a layer norm after each addition.

    Args:
        width: C.
        heads: of both attentions.
        feedforward: hidden channels of the perceptron.
    """

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.cross, self.among = Attention(width, heads), Attention(width, heads)
        self.perceptron = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(inplace=True), nn.Linear(feedforward, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        for weight in (p for p in self.parameters() if p.ndim > 1):
            nn.init.xavier_uniform_(weight)

    def forward(
        self,
        x: Float[Tensor, "b q c"],
        where: Float[Tensor, "b q c"],
        memory: Float[Tensor, "b n c"],
        places: Float[Tensor, "n c"],
        blocked: Bool[Tensor, "b q n"],
    ) -> Float[Tensor, "b q c"]:
        """Queries after the layer.

        Args:
            x: query features.
            where: query positions, added wherever queries are compared.
            memory: features of a level.
            places: of its voxels.
            blocked: see `Attention`.
        """
        seen = self.cross(x + where, memory + places, memory, blocked)
        x = self.norms[0](x + seen)
        x = self.norms[1](x + self.among(x + where, x + where, x))
        return self.norms[2](x + self.perceptron(x))


class MaskTransformer(nn.Module):
    """The transformer decoder and its prediction heads.

    Args:
        classes: K, without "no object".
        width: C, of memory, queries and mask features.
        queries: Q.
        heads, feedforward: see `DecoderLayer`.
        layers: how many.
        levels: of the memory; layer i attends to level i mod `levels`.
    """

    def __init__(
        self,
        classes: int,
        width: int,
        *,
        queries: int = 50,
        heads: int = 8,
        feedforward: int = 512,
        layers: int = 3,
        levels: int = 3,
    ) -> None:
        super().__init__()
        self.query_features = nn.Parameter(torch.randn(queries, width))
        self.query_positions = nn.Parameter(torch.randn(queries, width))
        self.level_embeddings = nn.Parameter(torch.randn(levels, width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes + 1)
        relu = nn.ReLU(inplace=True)
        self.embed = nn.Sequential(
            *(nn.Linear(width, width), relu, nn.Linear(width, width), relu),
            nn.Linear(width, width),
        )

    def forward(
        self, memory: Sequence[Float[Tensor, "b c _ _ _"]], features: Float[Tensor, "b c z y x"]
    ) -> Queries:
        """All predictions.

        Args:
            memory: a level of the pixel decoder for each level embedding, coarsest first.
            features: mask features.
        """
        sizes = [tuple(level.shape[2:]) for level in memory]
        tokens = [
            rearrange(level, "b c z y x -> b (z y x) c") + embedding
            for level, embedding in zip(memory, self.level_embeddings, strict=True)
        ]
        places = [sine_positions(size, features.shape[1]).to(features.device) for size in sizes]
        with torch.no_grad():
            resized = [
                functional.interpolate(features, size=size, mode="trilinear", align_corners=False)
                for size in sizes
            ]
        x = self.query_features.repeat(len(features), 1, 1)
        where = self.query_positions.repeat(len(features), 1, 1)
        found = Queries([], [], [], features)
        self.predict(x, found)
        for number, layer in enumerate(self.layers):
            level = number % len(tokens)
            blocked = self.blocked(found.masks[-1], resized[level])
            x = layer(x, where, tokens[level], places[level], blocked)
            self.predict(x, found)
        return found

    def predict(self, x: Float[Tensor, "b q c"], found: Queries) -> None:
        """One more prediction."""
        state = self.norm(x)
        found.states.append(state)
        found.classes.append(self.classify(state))
        found.masks.append(self.embed(state))

    @staticmethod
    @torch.no_grad()
    def blocked(
        masks: Float[Tensor, "b q c"], features: Float[Tensor, "b c z y x"]
    ) -> Bool[Tensor, "b q n"]:
        """Where each query does not look: the sigmoid of its mask is below one half (Eq. 2).

        A query whose mask is empty looks everywhere.

        Args:
            masks: mask embeddings.
            features: mask features at the size of the level.
        """
        closed = einsum(masks, features, "b q c, b c z y x -> b q z y x").flatten(2) < 0
        return closed & ~closed.all(dim=-1, keepdim=True)


def semantic_map(
    classes: Float[Tensor, "b q k1"],
    masks: Float[Tensor, "b q c"],
    features: Float[Tensor, "b c z y x"],
) -> Float[Tensor, "b k z y x"]:
    """Probabilities of the classes at every voxel, float32, which sum to 1.

    `S_c = sum_q softmax(classes)_qc sigmoid(mask)_q`, without "no object", over `sum_c S_c`.

    Source: Cheng et al., MaskFormer, NeurIPS 2021, section 3.4, semantic inference; the division is
    that of PLAN (Yan et al., MICCAI 2023).
    """
    with full_precision(features):
        scores = at_least_float32(classes).softmax(dim=-1)[..., :-1]
        logits = einsum(
            at_least_float32(masks), at_least_float32(features), "b q c, b c z y x -> b q z y x"
        )
        total = einsum(scores, logits.sigmoid_(), "b q k, b q z y x -> b k z y x")
        return (total / total.sum(dim=1, keepdim=True).clamp(min=1e-6)).float()
