"""Inner products of gradients of the form sum_t g_t x_tᵀ, without ever holding such a gradient for a whole layer.

Two ways, the cheaper is taken per pair and layer:

- Gram: <sum_t g_t x_tᵀ, sum_s g'_s x'_sᵀ> = sum_{t,s} (x_t . x'_s)(g_t . g'_s). Layers with the same input (q, k and v;
  gate and up) share the left factor, and its prompt part is the same for both completions.
- Blocks: the gradients themselves, but only as many elements at a time as stay in a processor's cache.

Products are float32 (float64 for a float64 model); sums of more than a block's are float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dpotool.gradients.ghost.gram import Tiling, compute_joint_gram, sum_joint
from dpotool.gradients.ghost.layout import PairSpan
from dpotool.gradients.ghost.sums import Products, Vectors, compute_dense_products

BLOCK_ELEMENTS = 2**18
"""Elements of a gradient alive at a time, per pair."""
BLOCK_ELEMENTS_ON_GPU = 2**24
"""The same on an accelerator, which has no cache to stay within and much to do at a time."""
TOUCH = 20
"""How many multiplications of a matrix product take the time of multiplying and adding up one stored element."""
TOUCH_ON_GPU = 1000
"""The same on an accelerator, whose matrix units are fast and whose memory is slow beside them."""
LONGEST_JOINT = 80
"""Tokens of a row up to which all pairs of a batch are worked on in one operation; on an accelerator of any length, as
each operation has a fixed cost of launching it (H100, 8B, 4 pairs of 400 tokens: tiles took longer than the model)."""
JOINT = (-1, 0)

RowVectors = Float[Tensor, "rows tokens features"]


@dataclass(slots=True)
class SharedInput:
    """An activation that one or more layers take in, with its Gram matrices while some of these layers are to come."""

    n_features: int
    n_outputs: int = 0
    """Features of the outputs of all layers with this input."""
    n_layers: int = 0
    n_remaining: int = 0
    tiles: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Span -> weighted tiles (`gram.Tiling`)."""

    def add_layer(self, n_outputs: int) -> None:
        self.n_outputs += n_outputs
        self.n_layers += 1
        self.n_remaining += 1

    def finish_layer(self) -> None:
        self.n_remaining -= 1
        if self.n_remaining <= 0:
            self.tiles.clear()

    def is_joint_gram_cheaper(self, n_tokens: int, device: torch.device) -> bool:
        """Tells whether rows are short enough for one large operation to beat many small ones."""
        gram = 4 * n_tokens**2 * (self.n_features + self.n_outputs)
        n_elements = self.n_features * self.n_outputs
        if device.type == "cpu":
            return n_tokens <= LONGEST_JOINT and gram < 2 * n_tokens * n_elements
        return gram < n_elements * (2 * n_tokens + 3 * TOUCH_ON_GPU)

    def is_gram_cheaper(self, n_chosen: int, n_rejected: int, n_shared: int) -> bool:
        """Compares the multiplications of both ways, over all layers with this input."""
        tiling = Tiling(n_chosen, n_rejected, n_shared)
        n_elements = self.n_features * self.n_outputs
        gram = tiling.n_input_dots * self.n_features + tiling.n_elements * (self.n_outputs + TOUCH * self.n_layers)
        return gram < n_elements * (n_chosen + n_rejected + 3 * TOUCH)


def compute_gram_products(
    shared: SharedInput, span: PairSpan, inputs: tuple[Vectors, Vectors], output_grads: tuple[Vectors, Vectors]
) -> Products:
    """Computes <W,L>, ‖W‖², ‖L‖² of one layer from Gram matrices.

    Args:
        inputs, output_grads: of the chosen and of the rejected completions.
    """
    tiling = Tiling(inputs[0].shape[1], inputs[1].shape[1], span.n_shared)
    if span.key not in shared.tiles:
        shared.tiles[span.key] = tiling.compute_weighted_tiles(*inputs)
    products = tiling.compute_tiles(*output_grads).mul_(shared.tiles[span.key])
    return tiling.sum_parts(products)


def compute_joint_products(
    shared: SharedInput, inputs: RowVectors, output_grads: RowVectors
) -> Float[Tensor, "pairs 2 2"]:
    """Computes the products of chosen and rejected with each other from Gram matrices of all pairs of a batch at once.

    Padding and all, and in the precision of the factors, at least float32.
    """
    if JOINT not in shared.tiles:
        shared.tiles[JOINT] = compute_joint_gram(inputs)
    return sum_joint(compute_joint_gram(output_grads).mul_(shared.tiles[JOINT]))


def compute_block_products(inputs: tuple[Vectors, Vectors], output_grads: tuple[Vectors, Vectors]) -> Products:
    """Computes <W,L>, ‖W‖², ‖L‖² of one layer from its gradients, block after block."""
    if inputs[0].shape[2] > output_grads[0].shape[2]:  # blocks are cut from the longer side; the products are the same
        inputs, output_grads = output_grads, inputs
    n_pairs, _, n_features = inputs[0].shape
    size = max(1, (BLOCK_ELEMENTS if inputs[0].device.type == "cpu" else BLOCK_ELEMENTS_ON_GPU) // n_features)
    total = inputs[0].new_zeros(n_pairs, 3, dtype=torch.float64)
    for start in range(0, output_grads[0].shape[2], size):
        W, L = (
            _multiply(grads[:, :, start : start + size], vectors)
            for vectors, grads in zip(inputs, output_grads, strict=True)
        )
        total += compute_dense_products(W, L)
    return total


def _multiply(grads: Vectors, vectors: Vectors) -> Float[Tensor, "pairs outputs inputs"]:
    if len(grads) == 1:  # a plain matrix product, which takes faster paths than a batch of one
        return torch.mm(grads[0].T, vectors[0])[None]
    return torch.bmm(grads.mT, vectors)
