"""Ways of getting log pi(chosen) and log pi(rejected) of pairs, to be timed side by side.

Every builder takes the model, its tokenizer and the pairs, and returns a function of (number of pairs, batch size) that
gives an array (pairs, 2) of sums in nats. All are fed the same token ids; tokenising is nobody's time. A batch size
counts pairs, and for lm-evaluation-harness rows, as its own does; dpotool has its token budget instead.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from workloads import MAX_LENGTH

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.settings.shared import AUTO

Score = Callable[[int, int], np.ndarray]
Build = Callable[[nn.Module, PreTrainedTokenizerBase, Sequence[TokenizedPair]], Score]

DPOTOOL, TRL, LM_EVAL, LOOP = "dpotool", "TRL", "lm-eval", "padded loop"


def build_dpotool(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair]) -> Score:
    """dpotool: `compute_pair_logps` as `score` and `train` call it, at its default budget."""

    def score(n_pairs: int, _batch_size: int) -> np.ndarray:
        logps = compute_pair_logps(model, pairs[:n_pairs], batch_tokens=AUTO)
        return np.stack([logps.chosen, logps.rejected], axis=1)

    return score


def build_trl(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair]) -> Score:
    """TRL: `DPOTrainer`'s own reference precomputation, `precompute_ref_log_probs=True`, its caching included."""
    from training_methods import build_trl_trainer, make_trl_dataset

    trainer = build_trl_trainer(model, tokenizer, pairs[:1], tempfile.mkdtemp(), batch_size=1, n_steps=1)

    def score(n_pairs: int, batch_size: int) -> np.ndarray:
        trainer._precompute_model_hash = uuid.uuid4().hex  # it would find what it computed the time before
        dataset = trainer._precompute_ref_logps(make_trl_dataset(pairs[:n_pairs]), "train", batch_size)
        return np.array([dataset["ref_chosen_logps"], dataset["ref_rejected_logps"]]).T

    return score


def build_lm_eval(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair]) -> Score:
    """lm-evaluation-harness: what `HFLM.loglikelihood` does once its texts are token ids."""
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=MAX_LENGTH)
    rows = [(p.prompt_ids, ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
    requests = [(("", ""), list(prompt), list(completion)) for prompt, completion in rows]

    def score(n_pairs: int, batch_size: int) -> np.ndarray:
        harness.batch_size_per_gpu = batch_size  # on a CPU too; `batch_size` reads it
        answers = harness._loglikelihood_tokens(requests[: 2 * n_pairs], disable_tqdm=True)
        return np.array([logps for logps, _ in answers]).reshape(-1, 2)

    return score


def build_loop(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair]) -> Score:
    """The loop one would write: pairs in order, padded, full logits, log-softmax, sums over the completion."""

    device = next(model.parameters()).device

    @torch.no_grad()
    def score_batch(batch: Sequence[TokenizedPair]) -> np.ndarray:
        rows = [(p.prompt_ids, ids) for p in batch for ids in (p.chosen_ids, p.rejected_ids)]
        length = max(len(prompt) + len(completion) for prompt, completion in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        attention_mask, counts = torch.zeros_like(input_ids), torch.zeros(len(rows), length - 1)
        for row, (prompt, completion) in enumerate(rows):
            end = len(prompt) + len(completion)
            input_ids[row, :end] = torch.tensor([*prompt, *completion])
            attention_mask[row, :end] = 1
            counts[row, len(prompt) - 1 : end - 1] = 1
        input_ids, attention_mask, counts = (tensor.to(device) for tensor in (input_ids, attention_mask, counts))
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        logps = torch.log_softmax(logits.float(), dim=-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
        return (logps * counts).sum(1).view(-1, 2).cpu().numpy()

    def score(n_pairs: int, batch_size: int) -> np.ndarray:
        return np.concatenate(
            [score_batch(pairs[start : min(start + batch_size, n_pairs)]) for start in range(0, n_pairs, batch_size)]
        )

    return score


SCORERS: dict[str, Build] = {DPOTOOL: build_dpotool, TRL: build_trl, LM_EVAL: build_lm_eval, LOOP: build_loop}
