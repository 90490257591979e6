"""Opens what is examined: tokenizer, model, pairs, and the log-probabilities of policy and reference on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpotool.data.pair_sets import load_pair_set
from dpotool.data.pairs import PairSet
from dpotool.errors import DpotoolError, find_place
from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.likelihood.processes import wants_shards
from dpotool.likelihood.scorer import Scorer
from dpotool.models.determinism import resolve_max_length
from dpotool.models.identity import check_same_tokens, check_token_ids
from dpotool.models.loading import load_model, load_tokenizer, resolve_device
from dpotool.models.subject import Subject
from dpotool.progress import Progress
from dpotool.runs.about import Fingerprints
from dpotool.runs.manifest import collect_manifest
from dpotool.wording import count

_OF_THIS_CALL = ("output", "format", "device", "device_map", "dry_run", "trust_remote_code")
"""Settings that say where and how a table is written, not what is in it."""


@dataclass(frozen=True, slots=True)
class OpenSubject:
    """A subject with everything loaded."""

    subject: Subject
    tokenizer: PreTrainedTokenizerBase
    policy_scorer: Scorer
    reference_scorer: Scorer | None
    pair_set: PairSet
    max_length: int

    @property
    def policy(self) -> nn.Module:
        return self.policy_scorer.model

    @property
    def dtype(self) -> str:
        """Numeric type of the policy's weights."""
        return str(next(self.policy.parameters()).dtype).removeprefix("torch.")

    @property
    def reference(self) -> nn.Module | None:
        return None if self.reference_scorer is None else self.reference_scorer.model

    def shard(self, progress: Progress) -> None:
        """Spreads both models' weights over all processes, where they were opened for it (`open_subject`)."""
        if not wants_shards():
            return
        device = resolve_device(self.subject.config.device)
        for scorer in filter(None, (self.policy_scorer, self.reference_scorer)):
            scorer.shard(device)
        progress.note(f"the weights are spread over {count(PartialState().num_processes, 'process', 'processes')}")

    def compute_policy_logps(self, progress: Progress, *, with_tokens: bool = False) -> ScoredPairs:
        """Returns log pi of every pair under the policy, from the store where it has them."""
        name = self.subject.label
        return self.policy_scorer.score_showing(self.pair_set.pairs, name, progress, with_tokens=with_tokens)

    def describe(self, command: str, fingerprints: Fingerprints) -> dict[str, Any]:
        """Returns what a table of this subject says of itself, whichever kind it is of (`runs.about`)."""
        subject, source = self.subject, self.pair_set.source
        settings = subject.config.to_dict() | {"beta": subject.beta, "reference": subject.reference}
        # a run's own mixed precision holds only where no type is named
        settings["dtype"] = subject.config.dtype if subject.bf16 else subject.dtype
        return {
            "command": command,
            "settings": {name: value for name, value in settings.items() if name not in _OF_THIS_CALL},
            "model": subject.model,
            "label": subject.label,
            "reference": subject.reference,
            "data": source.name,
            "split": source.split,
            "variant": subject.variant,
            "beta": subject.beta,
            "max_length": self.max_length,
            "dtype": self.dtype,
            "autocast": "bfloat16" if subject.bf16 else None,
            "fingerprints": fingerprints,
        }

    def note_run(self, kind: str, fingerprints: Mapping[str, str | None] | None = None) -> None:
        """Writes the manifest of finished work into the subject's folder, unless that is a run already.

        run.yaml stays that of a folder's first work; each table says for itself with which settings it was made.
        """
        folder = self.subject.folder
        if folder.manifest_path.exists():
            return
        subject = self.subject
        settings = {**subject.config.to_dict(), "model": subject.model, "max_length": self.max_length}
        if not subject.bf16:  # a run's own mixed precision holds only where no type is named
            settings["dtype"] = self.dtype
        manifest = collect_manifest(kind, settings, fingerprints=fingerprints, data=asdict(self.pair_set.source))
        folder.write_manifest(manifest | {"status": "finished"})

    def compute_reference_logps(self, progress: Progress, *, with_tokens: bool = False) -> ScoredPairs | None:
        """Returns log pi_ref of every pair, or None where there is no reference.

        Warns where the model that a run names as its reference is no longer the one it trained against.
        """
        if self.reference_scorer is None:
            return None
        scorer = self.reference_scorer
        logps = scorer.score_showing(self.pair_set.pairs, "reference", progress, with_tokens=with_tokens)
        fingerprint = scorer.fingerprint
        if self.subject.reference_fingerprint not in (None, fingerprint):
            progress.warn(
                f"{self.subject.label}: its reference {self.subject.reference} is not the model it was trained "
                f"against (fingerprint {fingerprint}, then {self.subject.reference_fingerprint}); "
                "log-ratios are against the new one"
            )
        return logps


def _check_owner(subject: Subject) -> None:
    """Raises DpotoolError where the folder to write to holds what another model gave: its run.yaml would name that."""
    folder = subject.folder
    if not folder.manifest_path.exists():
        return
    manifest = folder.read_manifest()
    theirs = manifest["config"].get("model")
    if manifest["kind"] in ("train", "sweep", "import", "blend") or theirs is None:
        return
    if theirs != subject.model and find_place(theirs) != find_place(subject.model):
        raise DpotoolError(
            "holds what another model gave", where=str(folder.path), expected=theirs, got=subject.model,
            remedy="Choose another folder with --output",
        )  # fmt: skip


def open_subject(
    subject: Subject,
    progress: Progress,
    *,
    dtype: str | None = None,
    device_map: str | None = None,
    shards: bool = False,
) -> OpenSubject:
    """Loads tokenizer, policy and pairs, and the reference in the policy's numeric type.

    Args:
        dtype: type to take gradients in, for which 'auto' may be too coarse; without it the policy is only scored.
        device_map: spreads both models over several devices (`load_model`).
        shards: the caller will have the weights spread over all processes if the launcher says so (`shard`), and until
            then they stay in the machine's memory.
    """
    _check_owner(subject)
    config = subject.config
    if subject.on_training_pairs:
        progress.warn(
            f"{subject.label} has no evaluation pairs, so its training pairs are used. Name held-out pairs with --data"
        )
    trust = config.trust_remote_code
    device = "cpu" if shards and wants_shards() else config.device
    tokenizer = load_tokenizer(subject.model, trust_remote_code=trust, progress=progress)
    policy = load_model(
        subject.model,
        dtype=dtype or subject.dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust,
        needs_gradients=dtype is not None,
        progress=progress,
    )
    max_length = resolve_max_length(config.max_length, policy, tokenizer)
    pair_set = load_pair_set(config, tokenizer, max_length=max_length, seed=config.seed, progress=progress)
    check_token_ids(policy, pair_set.pairs, tokenizer, where=subject.model)
    reference = None
    if subject.reference is not None:
        check_same_tokens(tokenizer, subject.reference, pair_set.pairs, trust_remote_code=trust)
        policy_dtype = str(next(policy.parameters()).dtype).removeprefix("torch.")
        reference = load_model(
            subject.reference,
            dtype=policy_dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=trust,
            progress=progress,
        )
        reference.requires_grad_(False)
        check_token_ids(reference, pair_set.pairs, tokenizer, where=subject.reference)
    make = partial(Scorer.configured, settings=config, bf16=subject.bf16)
    return OpenSubject(
        subject,
        tokenizer,
        policy_scorer=make(policy, label=subject.model),
        reference_scorer=None if reference is None else make(reference, label=subject.reference),
        pair_set=pair_set,
        max_length=max_length,
    )
