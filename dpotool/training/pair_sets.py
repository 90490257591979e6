"""The pairs a run trains on, and those it is evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from dpotool.data.pair_sets import load_pair_set
from dpotool.data.pairs import PairSet
from dpotool.data.sources import has_test_split
from dpotool.progress import Progress
from dpotool.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class RunPairs:
    """Tokenized pairs of one run; `evaluation` is None where the data has no test split and none was named."""

    train: PairSet
    evaluation: PairSet | None

    @property
    def all(self) -> list[PairSet]:
        return [self.train] if self.evaluation is None else [self.train, self.evaluation]


def load_run_pairs(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> tuple[TrainConfig, RunPairs]:
    """Returns the pairs, and the configuration with the evaluation data and the splits filled in."""
    assert config.max_length is not None
    train = load_pair_set(
        config,
        tokenizer,
        max_length=config.max_length,
        seed=config.seed,
        default_split="train",
        progress=progress,
    )
    config = replace(config, split=train.source.split)
    if config.eval_data is None and has_test_split(config.data, config.test_fraction):
        config = replace(config, eval_data=config.data)
    if config.eval_data is None:
        progress.note(f"{config.data} has no test split: no evaluation. Name one with --eval-data or --test-fraction")
        return config, RunPairs(train, None)
    is_same_source = config.eval_data == config.data
    settings = replace(
        config,
        data=config.eval_data,
        split=config.eval_split,
        limit=config.eval_limit,
        test_fraction=config.test_fraction if is_same_source else None,
    )
    evaluation = load_pair_set(
        settings,
        tokenizer,
        max_length=config.max_length,
        seed=config.seed,
        default_split="test",
        progress=progress,
    )
    return replace(config, eval_split=evaluation.source.split), RunPairs(train, evaluation)
