"""One model's log-probabilities of pairs: the model, and all that decides how its values are computed and stored.

    scorer = Scorer(model, label="runs/my-run")
    logps = scorer.score(pairs)  # from the store where it has them; the rest is computed, and stored

Policies and references are scored by the same object; whoever needs log-probabilities is given one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dpotool.cache.entries import name_store, store_root
from dpotool.cache.parts import Values
from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.pair_logps import DEFAULT_BATCH_TOKENS, Advance, ScoredPair, ScoredPairs, compute_pair_logps
from dpotool.likelihood.processes import shard_weights
from dpotool.likelihood.store import StoreKeeper, describe_types, look_up, name_model
from dpotool.models.identity import fingerprint_model
from dpotool.models.precision import choose_kernels
from dpotool.progress import Progress
from dpotool.settings.shared import AUTO, ComputeSettings
from dpotool.wording import count


class Scorer:
    """Scores pairs under one model, whose weights must stay as they are: their fingerprint is taken once."""

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_tokens: int | str = DEFAULT_BATCH_TOKENS,
        layout: str = AUTO,
        autocast: torch.dtype | None = None,
        label: str | None = None,
        store: Path | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Takes a model that is loaded; nothing is computed yet, the fingerprint neither.

        Args:
            batch_tokens: budget of padded tokens a batch, or 'auto' (`likelihood.budget`).
            layout: of the rows, auto, shared or paired (`RowLayout`).
            autocast: mixed-precision type for matrix products, as in a `--bf16` training run.
            label: name or path of the model, for people who look into the store.
            store: folder to keep values in; without it the user's cache.
            fingerprint: of the model's weights, where it is known already.
        """
        self.model = model
        self.batch_tokens = batch_tokens
        self.layout = layout
        self.autocast = autocast
        self.label = label
        self.store = store
        self._known_fingerprint = fingerprint

    @classmethod
    def configured(cls, model: nn.Module, settings: ComputeSettings, *, bf16: bool, label: str | None) -> Scorer:
        """Returns a scorer that computes as a command's settings say.

        Args:
            bf16: compute in mixed precision, as the training run did or does.
        """
        return cls(
            model,
            batch_tokens=settings.batch_tokens,
            layout=settings.layout,
            autocast=torch.bfloat16 if bf16 else None,
            label=label,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model's weights and settings; takes seconds for a large model, so nobody asks for it in vain."""
        return self._known_fingerprint or fingerprint_model(self.model)

    def shard(self, device: torch.device) -> None:
        """Spreads the weights over all processes and onto their devices, once their fingerprint is taken."""
        self._known_fingerprint = self.fingerprint
        shard_weights(self.model, device)
        choose_kernels(device, next(self.model.parameters()).dtype)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def types(self) -> str:
        """Numeric types that values depend on: of the weights, then of mixed precision ('float32-None')."""
        return describe_types(self.model, self.autocast)

    @property
    def rows(self) -> RowLayout:
        """How pairs are laid out for this model."""
        return RowLayout.of(self.model, self.layout)

    @property
    def folder(self) -> Path:
        """Where the store keeps this model's values in these types."""
        return (self.store or store_root()) / name_store(self.fingerprint, self.types)

    def renewed(self, label: str) -> Scorer:
        """Returns a scorer of the same model after its weights have moved, under another name."""
        return Scorer(
            self.model,
            batch_tokens=self.batch_tokens,
            layout=self.layout,
            autocast=self.autocast,
            label=label,
            store=self.store,
        )

    def score(
        self, pairs: Sequence[TokenizedPair], *, with_tokens: bool = False, on_progress: Advance | None = None
    ) -> ScoredPairs:
        """Returns log pi of every pair's chosen and rejected completion, from the store where it has them.

        Missing pairs are computed and added to the store, in parts while the work goes on: a kill loses a minute's
        work, any other interruption none.

        Args:
            with_tokens: also return per-token values. The store has none, so every pair is computed; the sums of those
                that are stored stay what they were.
            on_progress: called with numbers of pairs that are done, first of all with those that were stored.
        """
        keys, known, missing = self.look_up(pairs)
        todo = dict(zip(keys, pairs, strict=True)) if with_tokens else missing
        if on_progress is not None:
            on_progress(sum(key not in todo for key in keys))
        computed = ScoredPairs(np.zeros(0), np.zeros(0))
        if keys:
            with self.keeping() as keeper:  # also where nothing is new: that the values were used is noted
                if todo:
                    computed = self._compute_and_keep(todo, missing, keeper, with_tokens, on_progress)
        sums = zip(computed.chosen, computed.rejected, strict=True)
        known = dict(zip(todo, sums, strict=True)) | known
        values = np.array([known[key] for key in keys], dtype=np.float64).reshape(-1, 2)
        tokens = dict(zip(todo, computed.tokens, strict=True)) if with_tokens else {}
        return ScoredPairs(
            chosen=values[:, 0].copy(),
            rejected=values[:, 1].copy(),
            tokens=[tokens[key] for key in keys] if with_tokens else [],
            n_shared=computed.n_shared,
            n_paired=computed.n_paired,
            n_stored=sum(key not in missing for key in keys),
        )

    def score_showing(
        self, pairs: Sequence[TokenizedPair], name: str, progress: Progress, *, with_tokens: bool = False
    ) -> ScoredPairs:
        """Scores as `score` does, with a progress bar, and notes how many pairs were in the store."""
        with progress.track(f"scoring {name}", len(pairs)) as advance:
            logps = self.score(pairs, with_tokens=with_tokens, on_progress=advance)
        progress.note(f"{name}: {logps.n_stored} of {count(len(pairs), 'pair')} were in the store")
        return logps

    def _compute_and_keep(
        self,
        todo: Mapping[str, TokenizedPair],
        wanted: Collection[str],
        keeper: StoreKeeper,
        with_tokens: bool,
        on_progress: Advance | None,
    ) -> ScoredPairs:
        """Computes pairs, by key; the keeper gets the wanted ones batch by batch."""
        keys = list(todo)

        def keep(scored: Sequence[ScoredPair]) -> None:
            new = {keys[pair.index]: pair.sums for pair in scored}
            keeper.take({key: sums for key, sums in new.items() if key in wanted})

        return self.compute(list(todo.values()), with_tokens=with_tokens, on_progress=on_progress, on_scored=keep)

    def compute(
        self,
        pairs: Sequence[TokenizedPair],
        *,
        batch_tokens: int | str | None = None,
        with_tokens: bool = False,
        on_progress: Advance | None = None,
        on_scored: Callable[[Sequence[ScoredPair]], None] | None = None,
    ) -> ScoredPairs:
        """Computes every pair, whatever the store has, and leaves the store as it is (`compute_pair_logps`).

        Args:
            batch_tokens: another budget than the scorer's.
        """
        return compute_pair_logps(
            self.model,
            pairs,
            batch_tokens=self.batch_tokens if batch_tokens is None else batch_tokens,
            autocast=self.autocast,
            layout=self.layout,
            with_tokens=with_tokens,
            on_progress=on_progress,
            on_scored=on_scored,
        )

    def find_missing(self, pairs: Sequence[TokenizedPair], suffix: str = "") -> list[TokenizedPair]:
        """Returns the pairs that the store does not have for this model, each once."""
        return list(self.look_up(pairs, suffix)[2].values())

    def look_up(
        self, pairs: Sequence[TokenizedPair], suffix: str = ""
    ) -> tuple[list[str], Values, dict[str, TokenizedPair]]:
        """Returns the pairs' keys, the values that the store has of them, and by key the pairs that it lacks.

        Args:
            suffix: of the keys; `cache.entries.SECOND` for second values.
        """
        return look_up(self.folder, pairs, suffix)

    def folder_of_products(self, parameters: Collection[str]) -> Path:
        """Returns the store's folder of gradient products over the parameters of these names."""
        return self.folder.with_name(name_store(self.fingerprint, self.types, parameters))

    @contextmanager
    def keeping(self, folder: Path | None = None) -> Iterator[StoreKeeper]:
        """Yields what takes values into the store; they are written at the latest when the block is left.

        Args:
            folder: of the store, where it is not that of the log-probabilities.
        """
        keeper = StoreKeeper(folder or self.folder, name_model(self.model, self.label))
        try:
            yield keeper
        except KeyboardInterrupt:
            keeper.finish()
            if not keeper.n_written:
                raise
            stored = f"what was computed of {count(keeper.n_written, 'pair')} is stored"
            raise KeyboardInterrupt(f"{stored}, and the same command computes the rest") from None
        finally:
            keeper.finish()
