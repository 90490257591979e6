"""Preference training on `transformers.Trainer`; everything it already does (accumulation, schedules, saving, resuming,
logging services, several processes) is left to it.

What is added: the forward pass returns completion log-probabilities, the loss comes from the registry, its mean is over
the pairs of the *whole* optimiser step, logged means are means over pairs, and evaluation is the code `score` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.monitor import TheoryMonitor
from dpotool.likelihood.batch import SharedBatch
from dpotool.likelihood.completions import TokenLogps, compute_completion_logps
from dpotool.likelihood.layout import PAIRED, SHARED, RowLayout, draws_in_training
from dpotool.likelihood.memory import Plan, need_on_card
from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.likelihood.processes import route_forward
from dpotool.likelihood.scorer import Scorer
from dpotool.losses.spec import PairLogps
from dpotool.models.weights import list_non_finite
from dpotool.progress import SILENT, Progress
from dpotool.training.dataset import PAIR_COLUMNS, PairCollator, PairDataset, read_batch
from dpotool.training.metrics import PairSums, summarize_pairs
from dpotool.training.objective import Objective
from dpotool.training.resumable import NonFiniteError, ResumableTrainer
from dpotool.wording import count

N_CHECKED = 4
"""Pairs that are scored before weights are saved: NaN or infinite weights show in each of them."""


class PreferenceTrainer(ResumableTrainer):
    """Trainer for one `Objective` over preference pairs."""

    objective: Objective

    def __init__(
        self,
        scorer: Scorer,
        args: TrainingArguments,
        objective: Objective,
        *,
        train_dataset: PairDataset,
        eval_dataset: PairDataset | None,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
        progress: Progress = SILENT,
        monitor: TheoryMonitor | None = None,
        keeps_evaluations: bool = True,
    ) -> None:
        """Takes what `Trainer` takes, but a scorer in place of the model, and an objective in place of the loss.

        Args:
            scorer: of the model that is trained, as it is before the first step.
            keeps_evaluations: whether the store is asked for the evaluation of the first weights, and gets that of the
                last ones for `score`. If not, or if weights are sharded, every evaluation is computed and none stored.

        Raises:
            DpotoolError: sharded weights are to be watched.
        """
        model = scorer.model
        rows = _choose_rows(model, scorer.layout, monitor, progress)  # found out before any wrapper shards the weights
        route_forward(model, compute_completion_logps if monitor is None else monitor.compute_logps)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            data_collator=PairCollator(rows, with_rejected=objective.loss.takes_rejected),
            callbacks=callbacks,
        )
        self.objective = objective
        self.policy = model
        self._was_not_finite = frozenset(list_non_finite(model))
        self.pairs = train_dataset.pairs
        self.scorer = scorer
        self.progress = progress
        self.model_accepts_loss_kwargs = True  # the loss is divided by the whole step's count, not by accumulation
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if monitor is not None and is_sharded:
            raise DpotoolError(
                "sharded weights cannot be watched", where="--monitor-theory", remedy="Use one process or DDP"
            )
        self.keeps_evaluations = keeps_evaluations and not is_sharded
        self._sums = PairSums()
        self._monitor = monitor

    def need_on_card(self) -> int:
        """Returns the bytes that a step takes of one card, by the formula of docs/scale.md; 0 where it has no answer.

        For the micro-batch of the longest pairs. The formula does not know what gradient checkpointing, mixed precision
        or another optimiser than AdamW takes.
        """
        args = self.args
        if args.gradient_checkpointing or args.bf16 or "adamw" not in str(args.optim):
            return 0
        size = args.per_device_train_batch_size
        places = sorted(range(len(self.pairs)), key=lambda place: self.pairs[place].longest)[-size:]
        collate: Any = self.data_collator
        dataset: Any = self.train_dataset
        n_tokens = collate([dataset[place] for place in places])["input_ids"].numel()
        n_cards = args.world_size if self.is_fsdp_enabled else 1
        states = 12  # of each weight, in float32: its gradient and AdamW's two averages
        plan = Plan("train", state_bytes=states, n_tokens=n_tokens, keeps_layers=True, n_cards=n_cards)
        return need_on_card(self.policy, plan)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = None

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Counts what the loss is a mean of, pairs or chosen tokens, over all micro-batches and processes of a step."""
        per_token = self.objective.loss.reduction == "chosen_tokens"
        counts = [
            batch["chosen_tokens"].sum() if per_token else torch.tensor(len(batch["chosen_tokens"]))
            for batch in batch_samples
        ]
        total = torch.stack(counts).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Returns this micro-batch's share of the step's mean loss."""
        if return_outputs or num_items_in_batch is None:
            raise RuntimeError("PreferenceTrainer evaluates by `evaluate`, which needs no loss outputs")
        shift: float | Tensor = self.objective.shift_at(self.state.global_step, self.state.max_steps)
        if self.objective.adaptive is not None:
            shift = inputs["shift"]
        batch = read_batch(inputs)
        first: Tensor | None = None
        if self.objective.loss.takes_tokens:
            n_common = torch.minimum(inputs["chosen_tokens"], inputs["rejected_tokens"]).repeat_interleave(2)
            targets = batch.find_targets()
            tokens = TokenLogps(model(completion_batch=batch, by_token=True), targets.completions, targets.token_ids)
            logps, first = tokens.sum_by_row(batch.n_completions), tokens.sum_first_by_row(n_common)
        else:
            logps = model(completion_batch=batch)
        self.n_pairs[SHARED if isinstance(batch, SharedBatch) else PAIRED] += len(inputs["chosen_tokens"])
        pairs = _to_pair_logps(logps, first, inputs, has_rejected=self.objective.loss.takes_rejected)
        losses = self.objective.loss.compute(pairs, self.objective.options, shift)
        if not bool(torch.isfinite(losses).all()):
            raise NonFiniteError(f"the loss of {count(int((~torch.isfinite(losses)).sum()), 'pair')} is not a number")
        self._sums.add(pairs, self.objective.beta, shift)
        # Gradients are averaged over processes, and the count is the whole step's.
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Runs a micro-batch forward and back; a monitor then looks at what came back."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._monitor is not None:
            self._monitor.finish(inputs["reference_chosen_logps"], inputs["reference_rejected_logps"])
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means over all pairs since the last log to a training row."""
        if "loss" in logs:
            logs |= self._sums.pop(self.accelerator)
            if self._monitor is not None:
                logs |= self._monitor.pop(self.accelerator)
        super().log(logs, start_time)

    def evaluate(  # type: ignore[override]  # an evaluation set is always pairs
        self,
        eval_dataset: PairDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Scores the evaluation pairs as `dpotool score` does, and logs their means."""
        dataset = eval_dataset or self.eval_dataset
        if not isinstance(dataset, PairDataset):
            raise TypeError(f"expected a PairDataset to evaluate on, got {type(dataset).__name__}")
        with self.progress.track("evaluating", len(dataset)) as advance:
            logps = self._find_or_score(dataset.pairs, advance)
        prefixes: ScoredPairs | None = None
        if self.objective.loss.takes_tokens:
            prefixes = self._find_or_score([pair.cut_to_common() for pair in dataset.pairs], lambda _: None)
        metrics = summarize_pairs(logps, prefixes, dataset, self.objective, self.state)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _find_or_score(self, pairs: list[TokenizedPair], advance: Callable[[int], None]) -> ScoredPairs:
        """Scores pairs. Before the first step and after the last one, values are read from the store and added to it.

        The first weights are mostly their own reference, whose values were just computed; the last ones are saved, and
        `score` then looks for the values of these weights, types and tokens. Nothing asks for those in between.
        """
        step, is_last = self.state.global_step, self.state.global_step >= self.state.max_steps
        if not self.keeps_evaluations or not (step == 0 or is_last):
            return self.scorer.compute(pairs, on_progress=advance)
        scorer = self.scorer.renewed(self.args.output_dir or "") if is_last else self.scorer
        return scorer.score(pairs, on_progress=advance)

    def check_policy(self) -> None:
        """Raises NonFiniteError where a weight turned non-finite, or the score of one of the first pairs is so.

        A row of an embedding that no pair uses may have been so from the start; if one did, no pair could be scored.
        """
        names = [name for name in list_non_finite(self.policy) if name not in self._was_not_finite]
        if names:
            what = f"{count(len(names), 'parameter is', 'parameters are')} no longer finite, {names[0]} among them"
            raise NonFiniteError(what, is_after_step=True)
        logps = self.scorer.compute(self.pairs[:N_CHECKED])
        values = [*logps.chosen, *(logps.rejected if self.objective.loss.takes_rejected else [])]
        if not bool(torch.isfinite(torch.tensor(values)).all()):
            raise NonFiniteError("the weights give log-probabilities that are not finite", is_after_step=True)

    def export_sums(self) -> dict[str, Any]:
        monitor = {} if self._monitor is None else self._monitor.export_sums()
        return {"pairs": self._sums.export(), "monitor": monitor}

    def restore_sums(self, state: dict[str, Any]) -> None:
        self._sums.restore(state["pairs"], self.args.device)
        if self._monitor is not None:
            self._monitor.restore_sums(state["monitor"])

    def count_layouts(self) -> dict[str, int]:
        """Returns in which layout how many pairs went through the steps of this process and all others."""
        counts = torch.tensor([self.n_pairs[name] for name in (SHARED, PAIRED)], device=self.accelerator.device)
        totals = self.accelerator.reduce(counts, reduction="sum").tolist()
        return dict(zip((SHARED, PAIRED), totals, strict=True))


def _choose_rows(model: nn.Module, layout: str, monitor: TheoryMonitor | None, progress: Progress) -> RowLayout:
    """Returns the layout of the steps' rows; two things need a row for each completion, whatever was asked for."""
    if layout != PAIRED and monitor is not None:
        progress.note("--monitor-theory tells completions apart by their rows: chosen and rejected share none")
        layout = PAIRED
    if layout != PAIRED and draws_in_training(model):
        progress.note("dropout is on: chosen and rejected answers have separate rows and separate random draws")
        layout = PAIRED
    return RowLayout.of(model, layout)


def _to_pair_logps(logps: Tensor, first: Tensor | None, inputs: dict[str, Tensor], *, has_rejected: bool) -> PairLogps:
    """Splits row log-probabilities (chosen_0, rejected_0, chosen_1, ...) and adds the batch's per-pair values."""
    per_pair = {name: inputs[name] for name in PAIR_COLUMNS}
    if first is not None:
        per_pair |= {"policy_chosen_prefix_logps": first[0::2], "policy_rejected_prefix_logps": first[1::2]}
    if not has_rejected:
        return PairLogps(policy_chosen_logps=logps, **per_pair)
    return PairLogps(policy_chosen_logps=logps[0::2], policy_rejected_logps=logps[1::2], **per_pair)
