"""Every loss by name. To add one: write its function, add its entry, and test it against values from elsewhere.

`register_loss` adds one from outside; so does a package that names a `LossSpec` as an entry point of the group
`dpotool.losses`, which the command line then finds too. What reads these entries: the options and help of `train`, the
axes of `sweep`, run.yaml, docs/losses.md and shell completion. Imports no torch.
"""

from __future__ import annotations

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.losses.options import ChoiceOption
from dpotool.losses.options import beta_option as _beta
from dpotool.losses.options import number_option as _number
from dpotool.losses.options import share_option as _share
from dpotool.losses.options import weight_option as _weight
from dpotool.losses.scores import validate_score_gaps, validate_scores
from dpotool.losses.spec import LossSpec, Need
from dpotool.plugins import register_installed

ENTRY_POINTS = "dpotool.losses"
_REFERENCE: frozenset[Need] = frozenset({"reference"})
_LENGTHS: frozenset[Need] = frozenset({"lengths"})

BETA = _beta()
_SMOOTHING = "probability that a label is wrong"
_MARGIN = "dpotool.losses.preference"
_AGAINST = "dpotool.losses.remedies"
_EACH = "dpotool.losses.anchored"
_FREE = "dpotool.losses.reference_free"

_ENTRIES = (
    LossSpec(
        "sft",
        f"{_MARGIN}:compute_sft_losses",
        "Maximum likelihood of the chosen answers: the stage before preference training.",
        "-log pi(chosen), a mean over the step's chosen tokens",
        r"-\log\pi(y_w)\,/\,\text{chosen tokens of the step}",
        "maximum likelihood",
        needs=frozenset(),
        takes_rejected=False,
        reduction="chosen_tokens",
    ),
    LossSpec(
        "dpo",
        f"{_MARGIN}:compute_dpo_losses",
        "The baseline; with --label-smoothing its conservative form, cDPO.",
        "-log s(beta (a - b)); with label smoothing e, -(1-e) log s(beta (a - b)) - e log s(-beta (a - b))",
        r"-(1-e)\log\sigma(\beta(a-b)) - e\log\sigma(-\beta(a-b))",
        "arXiv:2305.18290",
        options=(BETA, _number("label_smoothing", 0.0, f"{_SMOOTHING}, as in cDPO", 0.0, 0.5)),
        aliases=("sigmoid", "cdpo"),
    ),
    LossSpec(
        "shift",
        f"{_MARGIN}:compute_shift_losses",
        "DPO-Shift: multiplies the rejected reward by --lambda, so that the chosen answers fall less.",
        "-log s(beta a - f beta b), f from lambda",
        r"-\log\sigma(\beta a - f\beta b)",
        "arXiv:2502.07599",
        options=(BETA,),
        aliases=("dpo-shift",),
        is_dpo_at="lambda 1",
        takes_lambda=True,
    ),
    LossSpec(
        "odpo",
        f"{_MARGIN}:compute_odpo_losses",
        "DPO with an offset: pushes pairs with a large score difference further apart. Needs scores.",
        "-log s(beta (a - b) - alpha offset(scores))",
        r"-\log\sigma(\beta(a-b) - \alpha\,\Delta), \Delta = \text{offset of the scores}",
        "arXiv:2402.10571",
        needs=frozenset({"reference", "scores"}),
        options=(
            BETA,
            ChoiceOption(
                "score_offset",
                "log",
                "how it follows from the scores: log of their difference, their difference (raw), log of their ratio",
                ("log", "raw", "ratio"),
            ),
            _weight("alpha", 1.0, "factor on the score offset"),
        ),
        is_dpo_at="alpha 0",
        validate_pairs=validate_scores,
    ),
    LossSpec(
        "ipo",
        f"{_MARGIN}:compute_ipo_losses",
        "Pulls the margin per token to a target, so that it does not grow without end and over-fit.",
        "(a/|chosen| - b/|rejected| - 1/(2 beta))^2",
        r"\left(\frac{a}{\lvert y_w\rvert} - \frac{b}{\lvert y_l\rvert} - \frac{1}{2\beta}\right)^2",
        "arXiv:2310.12036",
        needs=_REFERENCE | _LENGTHS,
        options=(BETA,),
    ),
    LossSpec(
        "hinge",
        f"{_MARGIN}:compute_hinge_losses",
        "Stops pushing a pair once its reward margin is 1 (SLiC).",
        "max(0, 1 - beta (a - b))",
        r"\max(0, 1 - \beta(a-b))",
        "arXiv:2305.10425",
        options=(BETA,),
        aliases=("slic",),
    ),
    LossSpec(
        "robust",
        f"{_MARGIN}:compute_robust_losses",
        "DPO when a known share of the labels is wrong.",
        "[-(1-e) log s(beta (a - b)) + e log s(-beta (a - b))] / (1 - 2e)",
        r"\frac{-(1-e)\log\sigma(\beta(a-b)) + e\log\sigma(-\beta(a-b))}{1-2e}",
        "arXiv:2403.00409",
        options=(BETA, _number("label_smoothing", 0.1, f"{_SMOOTHING}, as in robust DPO", 0.0, 0.5, open_ends="high")),
        is_dpo_at="label smoothing 0",
    ),
    LossSpec(
        "dpop",
        f"{_AGAINST}:compute_dpop_losses",
        "DPO-Positive: a penalty wherever a chosen answer falls below the reference.",
        "-log s(beta (a - b - lambda_dpop max(0, -a)))",
        r"-\log\sigma(\beta(a - b - \lambda\max(0, -a)))",
        "arXiv:2402.13228",
        options=(BETA, _weight("lambda_dpop", 50.0, "weight of the penalty; the paper takes 50")),
        aliases=("dpo-positive", "smaug"),
        is_dpo_at="lambda_dpop 0",
    ),
    LossSpec(
        "rpo",
        f"{_AGAINST}:compute_rpo_losses",
        "DPO with a maximum-likelihood term on the chosen answer (iterative RPO).",
        "-log s(beta (a - b)) - alpha log pi(chosen)/|chosen|",
        r"-\log\sigma(\beta(a-b)) - \alpha\frac{\log\pi(y_w)}{\lvert y_w\rvert}",
        "arXiv:2404.19733",
        needs=_REFERENCE | _LENGTHS,
        options=(BETA, _weight("alpha", 1.0, "weight of the maximum-likelihood term")),
        aliases=("irpo",),
        is_dpo_at="alpha 0",
    ),
    LossSpec(
        "r-dpo",
        f"{_AGAINST}:compute_r_dpo_losses",
        "DPO with a penalty on length, so that longer answers do not win by being long.",
        "-log s(beta (a - b) + alpha (|chosen| - |rejected|))",
        r"-\log\sigma(\beta(a-b) + \alpha(\lvert y_w\rvert - \lvert y_l\rvert))",
        "arXiv:2403.19159",
        needs=_REFERENCE | _LENGTHS,
        options=(BETA, _weight("alpha", 0.01, "reward taken off for each token")),
        is_dpo_at="alpha 0",
    ),
    LossSpec(
        "ld-dpo",
        f"{_AGAINST}:compute_ld_dpo_losses",
        "DPO in which tokens beyond the length of the shorter answer count less.",
        "dpo, with log pi = log pi(first min(|chosen|, |rejected|) tokens) + alpha log pi(the rest)",
        r"-\log\sigma(\beta(a'-b')), \log\pi' = \log\pi(y_{\le m}) + \alpha\log\pi(y_{>m}), "
        r"m = \min(\lvert y_w\rvert, \lvert y_l\rvert)",
        "arXiv:2409.06411",
        needs=frozenset({"reference", "tokens"}),
        options=(BETA, _share("alpha", 0.5, "weight of the tokens beyond the shorter answer's length")),
        is_dpo_at="alpha 1",
    ),
    LossSpec(
        "mappo",
        f"{_AGAINST}:compute_mappo_losses",
        "Like DPO-Shift with a factor from each pair's scores: close pairs push the rejected answer down less.",
        "-log s(beta a - D beta b), D = (score_chosen - score_rejected) / score_range",
        r"-\log\sigma(\beta a - \Delta_r\beta b), \Delta_r = (s_w - s_l)\,/\,\text{score range}",
        "arXiv:2507.21183",
        needs=frozenset({"reference", "scores"}),
        options=(
            BETA,
            _number(
                "score_range",
                10.0,
                "width of the scores' scale: 10 for scores of 0 to 10, 1 for rewards of 0 to 1",
                0.0,
                1e6,
                open_ends="low",
            ),
        ),
        is_dpo_at="a gap of the whole range",
        validate_pairs=validate_score_gaps,
    ),
    LossSpec(
        "bdpo",
        f"{_AGAINST}:compute_bdpo_losses",
        "Bounded DPO: pushing the rejected answer down lowers the loss only up to a bound.",
        "-log s(beta a - beta log(l e^b + 1 - l)), l = lambda_bdpo",
        r"-\log\sigma(\beta a - \beta\log(\lambda e^{b} + 1 - \lambda))",
        "arXiv:2506.12725",
        options=(
            BETA,
            _share("lambda_bdpo", 0.5, "share of the policy in the mixture with the reference", open_ends="low"),
        ),
        is_dpo_at="lambda_bdpo 1",
    ),
    LossSpec(
        "cal-dpo",
        f"{_EACH}:compute_cal_dpo_losses",
        "DPO that also pulls each answer's log-ratio to a target: +1/(2 beta) chosen, -1/(2 beta) rejected.",
        "-log s(a - b) + (a - 1/(2 beta))^2 + (b + 1/(2 beta))^2",
        r"-\log\sigma(a-b) + (a - \tfrac{1}{2\beta})^2 + (b + \tfrac{1}{2\beta})^2",
        "arXiv:2412.14516",
        options=(BETA,),
    ),
    LossSpec(
        "apo-zero",
        f"{_EACH}:compute_apo_zero_losses",
        "Raises the chosen and lowers the rejected answer: for chosen answers better than the model's own.",
        "1 - s(beta a) + s(beta b)",
        r"1 - \sigma(\beta a) + \sigma(\beta b)",
        "arXiv:2408.06266",
        options=(BETA,),
    ),
    LossSpec(
        "apo-down",
        f"{_EACH}:compute_apo_down_losses",
        "Lowers both, the rejected more: for chosen answers worse than the model's own.",
        "s(beta a) + 1 - s(beta (a - b))",
        r"\sigma(\beta a) + 1 - \sigma(\beta(a-b))",
        "arXiv:2408.06266",
        options=(BETA,),
    ),
    LossSpec(
        "nca",
        f"{_EACH}:compute_nca_losses",
        "Noise-contrastive alignment: each answer against the reference rather than against the other.",
        "-log s(beta a) - 0.5 log s(-beta a) - 0.5 log s(-beta b)",
        r"-\log\sigma(\beta a) - \tfrac12\log\sigma(-\beta a) - \tfrac12\log\sigma(-\beta b)",
        "arXiv:2402.05369",
        options=(BETA,),
        aliases=("nca-pair",),
    ),
    LossSpec(
        "sppo",
        f"{_EACH}:compute_sppo_losses",
        "Pulls log-ratios to +1/(2 beta) and -1/(2 beta) (self-play preference optimisation, hard labels).",
        "(a - 1/(2 beta))^2 + (b + 1/(2 beta))^2",
        r"(a - \tfrac{1}{2\beta})^2 + (b + \tfrac{1}{2\beta})^2",
        "arXiv:2405.00675",
        options=(BETA,),
        aliases=("sppo-hard",),
    ),
    LossSpec(
        "simpo",
        f"{_FREE}:compute_simpo_losses",
        "Without a reference: compares log-likelihoods per token, with a target margin.",
        "-log s(beta (log pi(chosen)/|chosen| - log pi(rejected)/|rejected|) - gamma_simpo)",
        r"-\log\sigma\left(\beta\left(\frac{\log\pi(y_w)}{\lvert y_w\rvert} - "
        r"\frac{\log\pi(y_l)}{\lvert y_l\rvert}\right) - \gamma\right)",
        "arXiv:2405.14734",
        needs=_LENGTHS,
        options=(
            _beta(2.0, "scale of the log-likelihoods per token; the paper takes 2 to 2.5"),
            _weight(
                "gamma_simpo",
                1.0,
                "target margin of beta times log-likelihood per token; the paper takes 0.3 to 1.6",
            ),
        ),
    ),
    LossSpec(
        "cpo",
        f"{_FREE}:compute_cpo_losses",
        "Without a reference: DPO with a uniform one, and maximum likelihood of the chosen answer.",
        "-log s(beta (log pi(chosen) - log pi(rejected))) - alpha log pi(chosen)",
        r"-\log\sigma(\beta(\log\pi(y_w) - \log\pi(y_l))) - \alpha\log\pi(y_w)",
        "arXiv:2401.08417",
        needs=frozenset(),
        options=(
            _beta(0.1, "scale of the log-likelihoods"),
            _weight("alpha", 1.0, "weight of the maximum-likelihood term"),
        ),
    ),
    LossSpec(
        "orpo",
        f"{_FREE}:compute_orpo_losses",
        "Without a reference: maximum likelihood of the chosen answer, and the odds of chosen over rejected.",
        "-log pi(chosen)/|chosen| - lambda_orpo log s(log odds(chosen) - log odds(rejected)), "
        "odds of p = pi^(1/tokens)",
        r"-\frac{\log\pi(y_w)}{\lvert y_w\rvert} - \lambda\log\sigma\left(\log\frac{p_w}{1-p_w} - "
        r"\log\frac{p_l}{1-p_l}\right), p = \pi(y)^{1/\lvert y\rvert}",
        "arXiv:2403.07691",
        needs=_LENGTHS,
        options=(_weight("lambda_orpo", 0.1, "weight of the odds ratio; the paper takes 0.1 to 0.2"),),
    ),
)

LOSSES: dict[str, LossSpec] = {spec.name: spec for spec in _ENTRIES}
"""Name -> loss, in the order that help and docs show them; `find_losses` also has those of other packages."""


def register_loss(spec: LossSpec) -> LossSpec:
    """Adds a loss from outside; `train`, `sweep`, help, docs and completion of this process then know it.

    Raises:
        ValueError: there is a loss of that name, by its own name or as an alias.
    """
    taken = {name for known in LOSSES.values() for name in (known.name, *known.aliases)}
    if repeated := taken & {spec.name, *spec.aliases}:
        raise ValueError(f"there is a loss named {', '.join(sorted(repeated))} already")
    LOSSES[spec.name] = spec
    return spec


def find_losses() -> dict[str, LossSpec]:
    """Returns every loss, those of installed packages included."""
    register_installed(ENTRY_POINTS, register_loss)
    return LOSSES


def get_loss(name: str) -> LossSpec:
    """Returns the loss of that name or alias; `apo_zero` is `apo-zero`.

    Raises:
        DpotoolError: there is none; the message lists the known ones and the nearest.
    """
    losses = find_losses()
    wanted = name.strip().lower().replace("_", "-")
    for spec in losses.values():
        if wanted in (spec.name, *spec.aliases):
            return spec
    raise DpotoolError(f"unknown loss {name!r}", where="--loss", remedy=suggest_nearest(name, losses))
