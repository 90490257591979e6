"""Judges, a registry: a server, a reward model, the built-in grammar, overlap with the reference.

A judge either compares two texts it is shown together (`compares`: both orders matter) or scores each answer
separately; of two scores the higher wins. `caveat` is what must be said wherever its verdicts appear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.judging.answers import Answer
from dpotool.judging.questions import Question
from dpotool.progress import Progress
from dpotool.settings.answers import JudgeConfig

Item = tuple[Question, Answer]
Score = Callable[[Sequence[Item]], "list[float | None]"]
"""Returns a score for each answer, more being better; None where the judge has nothing to go by."""


@dataclass(frozen=True, slots=True)
class JudgeKind:
    """A kind of judge."""

    name: str
    definition: str
    caveat: str
    open: Callable[[JudgeConfig, Progress], Score] | None
    """Makes the scoring function; None for a judge that compares."""
    needs: tuple[str, ...] = ()
    """Options it cannot do without."""
    is_proxy: bool = False
    """It only approximates a judgment of quality, and output labels it as a proxy."""

    @property
    def compares(self) -> bool:
        return self.open is None


def _open_grammar(_config: JudgeConfig, _progress: Progress) -> Score:
    """The quality with which the built-in pairs were drawn, read from the answer."""
    from dpotool.data.demo_reading import rate_text, read_prompt

    def score(items: Sequence[Item]) -> list[float | None]:
        scores: list[float | None] = []
        for question, answer in items:
            request = read_prompt(question.texts[-1])
            scores.append(None if request is None else rate_text(request, answer.text).quality)
        return scores

    return score


def _open_chrf(_config: JudgeConfig, _progress: Progress) -> Score:
    """chrF2 of each answer against the reference, 0 to 100 (Popović 2015), by sacrebleu."""
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise DpotoolError(
            "chrF needs the package sacrebleu, which is not installed",
            where="--judge chrf",
            remedy="Install it with: pip install 'dpotool[judge]'",
        ) from None
    metric = CHRF()

    def score(items: Sequence[Item]) -> list[float | None]:
        return [
            None if not question.references else metric.sentence_score(answer.text, [question.references[-1]]).score
            for question, answer in items
        ]

    return score


def _open_reward(config: JudgeConfig, progress: Progress) -> Score:
    from dpotool.judging.reward import open_reward_model

    return open_reward_model(config, progress)


JUDGES = {
    judge.name: judge
    for judge in (
        JudgeKind(
            "endpoint",
            "a model on a server that speaks the OpenAI protocol, shown both answers and the reference",
            "a language model may prefer long answers, its own style, or the first answer",
            None,
            needs=("endpoint", "judge_model"),
        ),
        JudgeKind(
            "reward",
            "a reward model (AutoModelForSequenceClassification) that scores each answer",
            "it repeats the preferences of its training data; far from those data its scores mean little",
            _open_reward,
            needs=("judge_model",),
        ),
        JudgeKind(
            "grammar",
            "the grammar of the built-in pairs, which knows the right answer",
            "exact, but only for a toy language",
            _open_grammar,
        ),
        JudgeKind(
            "chrf",
            "overlap of characters with the reference answer (chrF2, sacrebleu)",
            "a proxy: it measures likeness to one reference, not quality",
            _open_chrf,
            is_proxy=True,
        ),
    )
}
"""Every kind of judge, by the name that `--judge` takes."""


def choose_judge(config: JudgeConfig, is_demo: bool) -> JudgeKind:
    """Returns the judge that the user names, else grammar for the built-in pairs, else a server if one is given.

    Raises:
        DpotoolError: there is no such judge, it lacks an option, or none is named.
    """
    name = config.judge or ("endpoint" if config.endpoint else "grammar" if is_demo else None)
    if name is None:
        choices = "; ".join(f"{judge.name}: {judge.definition}" for judge in JUDGES.values())
        raise DpotoolError("no judge is named", where="--judge", expected=choices)
    if name not in JUDGES:
        raise DpotoolError(f"unknown judge {name!r}", where="--judge", remedy=suggest_nearest(name, JUDGES))
    judge = JUDGES[name]
    missing = [option for option in judge.needs if getattr(config, option) is None]
    if missing:
        flags = " and ".join(f"--{option.replace('_', '-')}" for option in missing)
        raise DpotoolError(f"needs {flags}", where=f"--judge {name}")
    return judge


def name_judge(judge: JudgeKind, config: JudgeConfig) -> str:
    """Returns how the judge is called in files and titles: its kind, or the model behind it."""
    if config.judge_model is None:
        return judge.name
    return config.judge_model.rstrip("/").rpartition("/")[2].replace(":", "-")
