"""The only code in dpotool that turns hidden states into log-probabilities.

The decoder runs over whole rows; the output layer runs over completion positions only, in chunks, so that no
`[rows, seq, vocab]` tensor ever exists. What a model does to its logits after the output layer (Gemma-2's soft-capping,
Granite's and Cohere's scaling) is done by the model itself: its forward method runs over the gathered hidden states,
without the decoder. Whether that reproduces the model is checked once per model; where it does not, the full logits are
computed.
"""

from __future__ import annotations

import inspect
import logging
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from dpotool.likelihood.batch import CompletionBatch, SharedBatch
from dpotool.likelihood.part_attention import mark_mask
from dpotool.models.determinism import goes_by_row_length, tell_row_lengths

logger = logging.getLogger(__name__)

CHUNK_ELEMENTS = 2**24
"""Logits alive at a time (64 MiB in float32); chunks hold CHUNK_ELEMENTS // vocab completion positions."""
CHUNK_ELEMENTS_ON_GPU = 2**26
"""The same on an accelerator (256 MiB): a smaller chunk would wait for the output layer's weights to be read."""


@dataclass
class _HiddenStates(BaseModelOutputWithPast):
    """The output of a replaced decoder; None for every other attribute that an architecture may look up."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


_PICKS = re.compile(r"^(index_topk(_blocks)?|keep_window_size)$")
"""How many tokens (or blocks of them, which is fewer) sparse attention picks: DeepSeek-V3.2's indexer, Doge's."""
_splits: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Log-probabilities of the completion tokens of a batch, flat, completion after completion."""

    logps: Float[Tensor, " tokens"]
    """Nats, float32 or better."""
    rows: Int[Tensor, " tokens"]
    """Index of the completion that each token belongs to; if each completion has its row, also the index of the row."""
    token_ids: Int[Tensor, " tokens"]

    def sum_by_row(self, n_rows: int) -> Float[Tensor, " rows"]:
        """Sums over each completion's tokens, in float64."""
        sums = torch.zeros(n_rows, dtype=torch.float64, device=self.logps.device)
        return sums.index_add(0, self.rows, self.logps.double())

    def sum_first_by_row(self, n_tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Sums over each completion's first tokens, as many as are said, in float64."""
        counts = self.rows.bincount(minlength=len(n_tokens))
        places = torch.arange(len(self.rows), device=self.rows.device) - (counts.cumsum(0) - counts)[self.rows]
        logps = torch.where(places < n_tokens[self.rows], self.logps.double(), 0.0)
        return torch.zeros(len(n_tokens), dtype=torch.float64, device=logps.device).index_add(0, self.rows, logps)


def compute_completion_logps(model: nn.Module, batch: CompletionBatch | SharedBatch) -> Float[Tensor, " completions"]:
    """Computes log pi(completion | prompt) of every completion: nats, float64, summed over its tokens including EOS.

    Differentiable. The soft-max is taken in float32 (float64 for a float64 model), the sum in float64.
    """
    return compute_token_logps(model, batch).sum_by_row(batch.n_completions)


def compute_token_logps(model: nn.Module, batch: CompletionBatch | SharedBatch) -> TokenLogps:
    """Computes log pi(token | all before it) of every completion token of the batch, in nats."""
    causal_lm = get_causal_lm(model)
    if not can_split_head(causal_lm):
        targets = batch.find_targets()
        logits = call_model(causal_lm, batch)[targets.rows, targets.positions]
        return TokenLogps(gather_logps(logits, targets.token_ids), targets.completions, targets.token_ids)
    states = compute_completion_states(causal_lm, batch)
    return TokenLogps(chunked_logps(causal_lm, states.hidden, states.token_ids), states.rows, states.token_ids)


@dataclass(frozen=True, slots=True)
class CompletionStates:
    """What the decoder alone makes of a batch: the states that predict its completion tokens, as in `TokenLogps`."""

    hidden: Float[Tensor, "tokens hidden"]
    rows: Int[Tensor, " tokens"]
    token_ids: Int[Tensor, " tokens"]


def compute_completion_states(model: nn.Module, batch: CompletionBatch | SharedBatch) -> CompletionStates:
    """Runs the decoder only, for a caller that applies the output layer itself, in parts (`compute_state_logps`).

    The model must be one that `can_split_head`.
    """
    targets = batch.find_targets()
    hidden = call_decoder(get_causal_lm(model), batch)[targets.rows, targets.positions]  # (tokens, hidden)
    return CompletionStates(hidden, targets.completions, targets.token_ids)


def compute_state_logps(
    model: nn.Module, hidden: Float[Tensor, "tokens hidden"], token_ids: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Computes the log-probabilities (nats) of tokens from the states that predict them; all logits at once."""
    return gather_logps(apply_head(get_causal_lm(model), hidden), token_ids)


def get_causal_lm(model: nn.Module) -> PreTrainedModel:
    """Returns the transformers model inside a PEFT wrapper, or the model itself; adapters act inside its layers."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def count_head_rows(model: PreTrainedModel) -> int:
    """Returns how many logits a position has, also where this process holds none of the output layer's weights."""
    weight = model.get_output_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])  # DeepSpeed's stage 3 leaves an empty tensor behind


def count_chunk_elements(device: torch.device) -> int:
    """Returns how many logits may be alive at a time."""
    return CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS_ON_GPU


def chunked_logps(
    model: PreTrainedModel, hidden: Float[Tensor, "tokens hidden"], token_ids: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    head = partial(compute_state_logps, model)
    size = max(1, count_chunk_elements(hidden.device) // count_head_rows(model))
    if len(hidden) <= size:
        return head(hidden, token_ids)
    run: Callable[..., Tensor] = head
    if torch.is_grad_enabled() and hidden.requires_grad:
        # Recomputing a chunk's logits in the backward pass is what keeps only one chunk of them alive.
        def run(chunk: Tensor, targets: Tensor) -> Tensor:
            return checkpoint(head, chunk, targets, use_reentrant=False)

    return torch.cat([run(*chunk) for chunk in zip(hidden.split(size), token_ids.split(size), strict=True)])


def gather_logps(logits: Float[Tensor, "tokens vocab"], token_ids: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    chosen = logits.gather(1, token_ids[:, None]).squeeze(1)
    return chosen - torch.logsumexp(logits, dim=1)


def call_decoder(model: PreTrainedModel, batch: CompletionBatch | SharedBatch) -> Float[Tensor, "rows seq hidden"]:
    """Returns the decoder's last hidden states."""
    return _run(model, batch, model.get_decoder())


def call_model(model: PreTrainedModel, batch: CompletionBatch | SharedBatch) -> Float[Tensor, "rows seq vocab"]:
    """Returns the logits of every position."""
    return _run(model, batch, _forward_of(model))


def _run(
    model: PreTrainedModel, batch: CompletionBatch | SharedBatch, forward: Callable[..., Any]
) -> Float[Tensor, "rows seq size"]:
    """Runs all rows at once; where attention picks the best tokens of a longer row, rows of one length at a time.

    Which of several equally good tokens are picked depends on how many stand behind them, padding too. Not where
    weights are sharded, as processes run equally many passes.
    """
    if not picks_among(model, batch.input_ids.shape[1]) or is_sharded(model) or isinstance(batch, SharedBatch):
        states: Tensor = forward(**_inputs_of(model, batch))[0]
        return states
    lengths = _find_lengths(batch)
    found: Tensor | None = None
    for length in lengths.unique().tolist():
        places = (lengths == length).nonzero().squeeze(1)
        part = forward(**_inputs_of(model, batch.select(places, length)))[0]
        if found is None:
            found = part.new_zeros(*batch.input_ids.shape, part.shape[2])
        found[places, :length] = part
    assert found is not None
    return found


def picks_among(model: PreTrainedModel, n_tokens: int) -> bool:
    """Tells whether attention picks the best of so many tokens rather than all, by the model's configuration."""
    config = model.config.get_text_config()
    values = [getattr(config, name, None) for name in vars(config) if _PICKS.search(name)]
    return any(isinstance(value, int) and 0 < value < n_tokens for value in values)


def is_sharded(model: nn.Module) -> bool:
    """Tells whether a model's weights are spread over processes, by `fully_shard` or by DeepSpeed's stage 3."""
    one = next(model.parameters())
    return hasattr(one, "device_mesh") or hasattr(one, "ds_id")


def call_model_for_states(
    model: PreTrainedModel, batch: CompletionBatch | SharedBatch
) -> tuple[Float[Tensor, "rows seq vocab"], Float[Tensor, "rows seq hidden"]]:
    """Returns the logits of every position and the last hidden states, for a model whose decoder cannot run apart."""
    output: Any = _forward_of(model)(**_inputs_of(model, batch), output_hidden_states=True)
    return output[0], output.hidden_states[-1]


def _inputs_of(model: PreTrainedModel, batch: CompletionBatch | SharedBatch) -> dict[str, object]:
    inputs: dict[str, object] = {"input_ids": batch.input_ids, "use_cache": False}
    decoder = model.get_decoder()
    if goes_by_row_length(decoder):
        tell_row_lengths(decoder, _find_lengths(batch))
    if "position_ids" in inspect.signature(type(decoder).forward).parameters:  # Bloom and Mamba have none
        inputs["position_ids"] = batch.position_ids
    if isinstance(batch, SharedBatch):
        mask = batch.build_mask(_find_attention_dtype(model, batch.input_ids.device))
        inputs["attention_mask"] = mark_mask(mask, batch.block_ids)
    return inputs


def _find_lengths(batch: CompletionBatch | SharedBatch) -> Int[Tensor, " rows"]:
    """Returns how many positions the longest sequence of each row has; padding is none."""
    ends = batch.find_ends()
    last = batch.position_ids[ends.rows, ends.positions]
    return last.new_zeros(len(batch.input_ids)).scatter_reduce(0, ends.rows, last, "amax") + 1


def _find_attention_dtype(model: PreTrainedModel, device: torch.device) -> torch.dtype:
    """Returns the type attention scores are taken in, which a mask has to have; autocast leaves float64 alone."""
    is_mixed = torch.is_autocast_enabled(device.type) and model.dtype != torch.float64
    return torch.get_autocast_dtype(device.type) if is_mixed else model.dtype


def apply_head(model: PreTrainedModel, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
    """Runs the model's forward method on hidden states that are known: output layer, soft-capping, scaling."""
    placeholder = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    with _decoder_returns(model, hidden[None]):
        return _forward_of(model)(input_ids=placeholder, use_cache=False)[0][0]


def _forward_of(model: PreTrainedModel) -> Callable[..., tuple[Tensor, ...]]:
    """Returns the forward method of the architecture, even where a trainer has wrapped it."""
    return type(model).forward.__get__(model)


@contextmanager
def _decoder_returns(model: PreTrainedModel, hidden: Float[Tensor, "1 tokens hidden"]) -> Iterator[None]:
    decoder = model.get_decoder()
    kept = decoder.__dict__.get("forward")

    def stand_in(*_args: object, **_kwargs: object) -> _HiddenStates:
        return _HiddenStates(last_hidden_state=hidden)

    decoder.forward = stand_in
    try:
        yield
    finally:
        if kept is None:
            del decoder.forward
        else:
            decoder.forward = kept


def can_split_head(model: PreTrainedModel) -> bool:
    """Tells whether decoder and output layer, run apart, give the model's logits; tested once per model."""
    if model not in _splits:
        _splits[model] = _check_split(model)
        if not _splits[model]:
            logger.warning("%s: decoder and output layer do not come apart; using full logits", type(model).__name__)
    return _splits[model]


@torch.no_grad()
def _check_split(model: PreTrainedModel) -> bool:
    decoder = model.get_decoder()
    if decoder is model or model.get_output_embeddings() is None:
        return False
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        ids = torch.arange(1, 6, device=device)[None]
        probe = CompletionBatch(ids, torch.arange(5, device=device)[None], torch.ones_like(ids))
        expected = call_model(model, probe)[0]
        got = apply_head(model, call_decoder(model, probe)[0])
    except (TypeError, AttributeError, ValueError, IndexError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    tolerance = 100 * torch.finfo(expected.dtype).eps * expected.abs().max().clamp(min=1.0)
    return expected.shape == got.shape and bool((expected - got).abs().max() <= tolerance)
