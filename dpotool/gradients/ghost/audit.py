"""Decides, before anything is computed, which parameters the fast engine can serve and which it must not.

A small forward pass is watched with gradients on. A parameter is claimed only if every edge of the autograd graph into
it comes from a recognised operation, if that operation keeps the rows of the batch apart, and if there is one such
operation, or two that make an embedding and the output layer tied to it. Every other parameter goes to the fallback.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dpotool.gradients.ghost.uses import Form, ParameterUses, Part, Use
from dpotool.likelihood.batch import CompletionBatch, collate_rows
from dpotool.likelihood.completions import (
    can_split_head,
    compute_completion_logps,
    compute_completion_states,
    compute_state_logps,
    get_causal_lm,
)

N_ROWS, N_TOKENS, N_SHARED = 3, 11, 7
"""The watched batch: numbers that tell its axes apart; the rows begin alike, which a causal decoder must preserve."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Every selected parameter, once: in `forms` or in `fallback`."""

    forms: dict[str, tuple[Form, ...]]
    """name -> what its gradient looks like; (LOOKUP, OUTER) for a tied embedding and output layer."""
    fallback: tuple[str, ...]
    """Names without a rule, in the model's order."""

    @property
    def tied(self) -> list[str]:
        """Names of tables that are both embedding and output layer."""
        return [name for name in self.forms if self.is_tied(name)]

    def is_tied(self, name: str) -> bool:
        return len(self.forms[name]) > 1

    def restrict(self, names: Collection[str]) -> Claims:
        """Returns the claims on these parameters, in this order; those that were not claimed go to the fallback."""
        forms = {name: self.forms[name] for name in names if name in self.forms}
        return Claims(forms, tuple(name for name in names if name not in forms))


@dataclass(slots=True)
class _Seen:
    """What the watched pass showed of one tensor, a parameter or an alias of it."""

    name: str
    tensor: Tensor
    n_consumers: int = 0
    keeps_rows_apart: bool = True
    parts: list[Part] = field(default_factory=list)


class _Recorder(ParameterUses):
    """Records the uses of each parameter, and whether each use keeps the rows of a batch separate."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__(named)
        self.seen = {id(tensor): _Seen(name, tensor) for name, tensor in named.items()}
        self.in_head = False

    def on_use(self, use: Use, compute: Callable[[], Tensor]) -> Tensor:
        output = compute()
        for part in use.parts:
            seen = self.seen[id(part.tensor)]
            seen.n_consumers += 1
            seen.parts.append(part)
            keeps_apart = _keeps_tokens_apart if self.in_head else _keeps_rows_apart
            seen.keeps_rows_apart &= keeps_apart(use, part, output)
        return output

    def on_alias(self, name: str, source: Tensor, alias: Tensor) -> None:
        self.seen[id(source)].n_consumers += 1
        self.seen[id(alias)] = _Seen(name, alias)


def audit_parameters(model: nn.Module, named: Mapping[str, nn.Parameter]) -> Claims:
    """Finds out what the model does with the named parameters. They are left as they were.

    The model must be in evaluation mode.
    """
    before = {name: parameter.requires_grad for name, parameter in named.items()}
    recorder = _Recorder(named)
    try:
        for parameter in named.values():
            parameter.requires_grad_(True)
        n_edges = _count_edges(_watch(model, recorder))
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(before[name])
    forms: dict[str, tuple[Form, ...]] = {}
    for name in named:
        found = _find_forms(name, recorder, n_edges)
        if found is not None:
            forms[name] = found
    return Claims(forms, tuple(name for name in named if name not in forms))


@torch.enable_grad()
def _watch(model: nn.Module, recorder: _Recorder) -> Tensor:
    causal_lm = get_causal_lm(model)
    batch = _collate_probe(causal_lm).to(next(model.parameters()).device)
    if not can_split_head(causal_lm):
        with recorder:
            return compute_completion_logps(model, batch).sum()
    with recorder:
        states = compute_completion_states(model, batch)
        recorder.in_head = True
        return compute_state_logps(model, states.hidden, states.token_ids).sum()


def _collate_probe(model: nn.Module) -> CompletionBatch:
    vocab = getattr(model.config, "vocab_size", 2)
    prompt = [(token + 1) % vocab for token in range(N_SHARED)]
    length = N_TOKENS - N_SHARED
    return collate_rows([(prompt, [(3 * row + token + 5) % vocab for token in range(length)]) for row in range(N_ROWS)])


def _keeps_rows_apart(use: Use, part: Part, output: Tensor) -> bool:
    """Tells whether the rows of the batch lead the output's axes, alone or times tokens, and the operand's too."""
    n_vectors = output.shape[:-1].numel()
    if part.form in (Form.OUTER, Form.LOOKUP) and n_vectors != N_ROWS * N_TOKENS:
        return False
    if use.operand is not None and part.form is not Form.SHIFT:
        last = use.operand.dim() - (part.form is not Form.LOOKUP)
        if use.operand.shape[:last] != output.shape[:-1]:
            return False
    if output.shape[0] == N_ROWS * N_TOKENS:
        return _begins_alike(output.unflatten(0, (N_ROWS, N_TOKENS)))
    return output.dim() > 1 and output.shape[0] == N_ROWS and (output.shape[1] != N_TOKENS or _begins_alike(output))


def _keeps_tokens_apart(use: Use, part: Part, output: Tensor) -> bool:
    """The same for the output layer, which runs over completion tokens without rows."""
    return part.form is not Form.LOOKUP and output.shape[:-1].numel() == N_ROWS * (N_TOKENS - N_SHARED)


def _begins_alike(rows: Tensor) -> bool:
    """Tells whether the rows' common first tokens show: they would not, had the tokens been reordered on the way."""
    beginnings = rows.detach()[:, :N_SHARED].double()
    scale = beginnings.abs().max().clamp(min=1e-6)
    return bool((beginnings - beginnings[:1]).abs().max() <= 0.02 * scale)  # bfloat16 kernels may round rows apart


def _count_edges(root: Tensor) -> Counter[object]:
    """Counts the edges into every node of the graph; leaf nodes go by the id of their variable."""
    n_edges: Counter[object] = Counter()
    to_visit = [root.grad_fn]
    while to_visit:
        for node, _ in to_visit.pop().next_functions:  # type: ignore[union-attr]
            if node is None:
                continue
            if n_edges[_key_of(node)] == 0:
                to_visit.append(node)
            n_edges[_key_of(node)] += 1
    return n_edges


def _key_of(node: object) -> object:
    variable = getattr(node, "variable", None)
    return node if variable is None else id(variable)


def _find_forms(name: str, recorder: _Recorder, n_edges: Counter[object]) -> tuple[Form, ...] | None:
    seen = [seen for seen in recorder.seen.values() if seen.name == name]
    for one in seen:
        key = id(one.tensor) if one.tensor.is_leaf else one.tensor.grad_fn
        if n_edges[key] != one.n_consumers or not one.keeps_rows_apart:
            return None
    parts = [part for one in seen for part in one.parts]
    forms = tuple(sorted((part.form for part in parts), key=lambda form: form is Form.OUTER))
    is_tied = forms == (Form.LOOKUP, Form.OUTER) and not any(part.is_transposed for part in parts)
    return forms if len(forms) == 1 or is_tied else None
