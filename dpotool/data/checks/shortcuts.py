"""Checks for shortcuts: features that separate chosen from rejected answers and that training may learn instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpotool.data.checks.check import Answers, Check, Found, Material, quote
from dpotool.wording import count

BIASED = 0.6
"""Share of pairs whose longer answer is chosen (or whose shorter is) from which length is a cause for concern."""
SEPARABLE = 0.7
"""Share of unseen pairs that a bag of words, or the first words, may get right before that is a cause for concern."""
OPENING_WORDS = 3
MOST_PAIRS = 5000
"""Pairs that a classifier is fitted on; of more, this many are drawn."""
FEWEST_PAIRS = 50
_FOLDS = 5

_REFUSAL = re.compile(
    r"\bI(?:['’]m| am) (?:sorry,? (?:but )?)?(?:not able|unable|not going) to "
    r"(?:help|assist|provide|answer|do that|give)"
    r"|\bI(?:['’]m| am) sorry,? (?:but )?I (?:can ?not|can['’]t|won['’]t)"
    r"|\bI (?:can ?not|can['’]t|won['’]t|will not|refuse to) "
    r"(?:help (?:you )?(?:with|do|to)|assist|provide|answer|fulfill|comply|engage|give you|recommend)"
    r"|\bas an (?:AI|artificial)\b|\bas a language model\b|\bI(?:['’]d| would) rather not\b",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|(?:great|good) question|(?:i['’]d be )?happy to help"
    r"|here(?:['’]s| is| are)(?= (?:a|an|some|the|my)\b[^\n]{0,40}:))\b[^\n]{0,40}[!,:.]"
    r"|\b(?:I hope (?:this|that) helps|let me know if (?:you|there)|feel free to (?:ask|reach|contact)"
    r"|is there anything else)",
    re.IGNORECASE,
)
_DANGLING = frozenset(
    "a an the and or but of to in with for is are was were by as at from if because which".split()  # noqa: SIM905
)
_CLOSED = ".!?…\"'”’)]}*`>。！？」』"
_SMILEY = re.compile(r"[:;=][-*'^]?\($|--$")
_LONG_ENOUGH = 5
_MOSTLY = 0.95


def _length_bias(material: Material) -> Found | None:
    from scipy.stats import binomtest, mannwhitneyu

    sizes = np.array([[len(each.chosen), len(each.rejected)] for each in material.answers])
    differ = sizes[:, 0] != sizes[:, 1]
    n = int(differ.sum())
    if not n:
        return None
    longer = sizes[:, 0] > sizes[:, 1]
    share = float(longer.sum() / n)
    auc = float(mannwhitneyu(sizes[:, 0], sizes[:, 1]).statistic / len(sizes) ** 2)
    interval = binomtest(int(longer.sum()), n).proportion_ci(method="wilson")
    is_biased = n >= FEWEST_PAIRS and (interval.low > BIASED or interval.high < 1 - BIASED)
    concerned = longer if share >= 0.5 else differ & ~longer
    word = "longer" if share >= 0.5 else "shorter"
    says = (
        f"the {word} answer is chosen in {100 * max(share, 1 - share):.0f} % of the {count(n, 'pair')} whose "
        "lengths differ; "
        f"length alone tells a chosen from a rejected answer with an AUC of {max(auc, 1 - auc):.2f} (0.5 is chance)"
    )
    rows = {
        each.pair_id: f"{len(each.chosen)} against {count(len(each.rejected), 'character')}: {each.show()}"
        for each, is_one in zip(material.answers, concerned, strict=True)
        if is_one
    }
    figures = {
        "longer_chosen": share,
        "longer_chosen_low": float(interval.low),
        "longer_chosen_high": float(interval.high),
        "length_auc": auc,
        "mean_characters_chosen": float(sizes[:, 0].mean()),
        "mean_characters_rejected": float(sizes[:, 1].mean()),
    }
    return Found(rows, says, figures, is_biased)


def _find_sides(material: Material, is_so: Callable[[str], bool], word: str, *, one_sided: bool) -> Found:
    """Rows in which one answer is so (`one_sided`: and the other not), with how often it is which."""
    rows, counts = {}, {"chosen": 0, "rejected": 0}
    for each in material.answers:
        sides = [side for side, text in each.sides.items() if is_so(text)]
        if not sides or (one_sided and len(sides) == 2):
            continue
        for side in sides:
            counts[side] += 1
        rows[each.pair_id] = "; ".join(f"{side} {quote(each.sides[side], 110)}" for side in sides)
    says = f"{word}: {counts['chosen']} chosen and {counts['rejected']} rejected answers"
    return Found(rows, says if rows else "", {f"n_{side}": count for side, count in counts.items()})


def _breaks_off(text: str) -> bool:
    """Tells by its last word or sign that a text does not end where a text would."""
    text = text.rstrip()
    if text.count("```") % 2:
        return True
    if text[-1:] in (",", "(", ":", "–", "-") and not _SMILEY.search(text):
        return len(text.split()) >= _LONG_ENOUGH
    last = re.findall(r"[^\W\d_]+$", text)
    return bool(last) and last[0] in _DANGLING and len(text.split()) >= _LONG_ENOUGH


def _cut_off(material: Material) -> Found:
    ends = [text.rstrip()[-1:] in _CLOSED for each in material.answers for text in each.sides.values()]
    punctuated = sum(ends) / max(1, len(ends)) >= _MOSTLY

    def is_cut(text: str) -> bool:
        is_open = punctuated and text.rstrip()[-1:].isalpha() and len(text.split()) >= 40
        return is_open or _breaks_off(text)

    return _find_sides(material, is_cut, "cut off", one_sided=False)


def _refusals(material: Material) -> Found:
    return _find_sides(material, lambda text: bool(_REFUSAL.search(text)), "only one side refuses", one_sided=True)


def _boilerplate(material: Material) -> Found:
    return _find_sides(
        material, lambda text: bool(_BOILERPLATE.search(text)), "only one side has set phrases", one_sided=True
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _opening(text: str) -> list[str]:
    """The first words, each with its place."""
    return [f"{place} {word}" for place, word in enumerate(_words(text)[:OPENING_WORDS])]


def _separable(material: Material, features: Callable[[str], Sequence[str]], what: str) -> Found | None:
    """How well a linear classifier tells chosen from rejected in pairs it was not fitted on.

    Logistic regression on the difference of the two answers' features (each there or not), five folds, pairs of one
    prompt in one fold. A difference of exactly nothing counts as half right.
    """
    pairs = [each for each in material.answers if each.chosen != each.rejected]
    if len(pairs) > MOST_PAIRS:
        drawn = np.random.default_rng(material.seed).choice(len(pairs), MOST_PAIRS, replace=False)
        pairs = [pairs[place] for place in sorted(drawn)]
    if len(pairs) < FEWEST_PAIRS or len({each.prompt for each in pairs}) < _FOLDS:
        return None
    margins = _predict_unseen(pairs, features)
    right = margins > 0
    accuracy = float((right + 0.5 * (margins == 0)).mean())
    half = 1.96 * (accuracy * (1 - accuracy) / len(pairs)) ** 0.5
    says = (
        f"{what} picks the chosen answer in {100 * accuracy:.0f} % ± {100 * half:.0f} of {count(len(pairs), 'pair')} "
        "it was not fitted on (50 % is chance)"
    )
    order = np.argsort(-margins, kind="stable")
    rows = {pairs[place].pair_id: pairs[place].show() for place in order if right[place]}
    return Found(rows, says, {"accuracy": accuracy, "n_pairs": float(len(pairs))}, accuracy - half > SEPARABLE)


def _predict_unseen(pairs: Sequence[Answers], features: Callable[[str], Sequence[str]]) -> np.ndarray:
    """Returns by how much each pair's chosen answer is preferred by a classifier fitted on the other folds."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    vectorizer: Any = CountVectorizer(analyzer=features, binary=True, min_df=2, max_features=20_000, dtype=np.float64)
    texts = [text for each in pairs for text in (each.chosen, each.rejected)]
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # no word stands in two answers
        return np.zeros(len(pairs))
    difference = (counts[0::2] - counts[1::2]).tocsr()
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(each.prompt for each in pairs))}
    groups = [numbers[each.prompt] for each in pairs]
    margins = np.zeros(len(pairs))
    for fitted, unseen in GroupKFold(_FOLDS).split(difference, groups=groups):
        both = vstack([difference[fitted], -difference[fitted]])
        labels = np.repeat([1, 0], len(fitted))
        model: Any = LogisticRegression(fit_intercept=False, max_iter=500).fit(both, labels)
        margins[unseen] = difference[unseen] @ model.coef_[0]
    return margins


CHECKS = (
    Check(
        "length-bias",
        "shortcuts",
        "warning",
        "length tells the chosen answer",
        "DPO learns length as part of the preference, and a longer answer begins with a lower log-likelihood.",
        "Compare with `--loss sft` or a length-normalised loss, and judge answers with length control.",
        _length_bias,
        is_of_set=True,
    ),
    Check(
        "cut-off",
        "shortcuts",
        "warning",
        "an answer breaks off",
        "An answer that stops at a limit of tokens still gets an end token: the model learns to stop anywhere.",
        "Sample again with a higher limit, or leave these pairs out.",
        _cut_off,
    ),
    Check(
        "refusal",
        "shortcuts",
        "note",
        "only one of the answers refuses",
        "If nearly all refusals are on one side, the model learns to refuse (or never to), whatever is asked.",
        "Check on which side they are, and whether you want to teach that.",
        _refusals,
    ),
    Check(
        "boilerplate",
        "shortcuts",
        "note",
        "only one of the answers has set phrases",
        "“Sure!” or “I hope this helps” on one side is an easy difference to learn.",
        "Check on which side they are, and remove phrases that say nothing from both sides.",
        _boilerplate,
    ),
    Check(
        "separable-words",
        "shortcuts",
        "warning",
        "a bag of words tells chosen from rejected",
        "Answers that a bag of words can tell apart teach words, not quality, and test accuracy measures that.",
        "Check which source each side comes from: two different writers are easy to tell apart.",
        lambda material: _separable(material, _words, "a bag of words"),
        is_of_set=True,
    ),
    Check(
        "separable-opening",
        "shortcuts",
        "warning",
        "the first three words tell chosen from rejected",
        "The first tokens decide the label, so the gradient goes there and the rest of the answer hardly matters.",
        "Make both sides begin alike, or draw them from the same model.",
        lambda material: _separable(material, _opening, "the first three words alone"),
        is_of_set=True,
    ),
)
