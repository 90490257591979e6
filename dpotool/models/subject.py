"""The model that a command examines, with the reference, data and precision recorded in its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpotool.errors import DpotoolError, expand_home, find_place, suggest_nearest
from dpotool.hub import check_name
from dpotool.models.adapters import is_adapter_folder, read_adapter_base
from dpotool.models.builtin import choose_pairs, is_builtin
from dpotool.models.library_calls import refuse_without_model
from dpotool.runs.folder import RunFolder, is_checkpoint_name
from dpotool.runs.tables import FORMATS
from dpotool.settings.shared import DEFAULT_BETA, DEMO, SubjectSettings

_INHERITED = ("split", "limit", "test_fraction", "max_length", "truncation", "skip_invalid", "seed", "split_seed")


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with all settings of its scoring resolved."""

    model: str
    label: str
    reference: str | None
    """None: there is no reference, and no rewards."""
    reference_fingerprint: str | None
    """What the run's reference was when it trained; None for a model from elsewhere or another reference."""
    folder: RunFolder
    config: SubjectSettings
    beta: float
    dtype: str
    bf16: bool
    loss: str | None = None
    """What the run was trained by; None for a model from elsewhere."""
    variant: str = ""
    """What differs from the run's recorded settings, e.g. limit-50; part of the score table's name."""
    on_training_pairs: bool = False
    """The run has no evaluation pairs, so it is scored on its training pairs."""


def describe_subject(model: str, config: SubjectSettings, *, needs_pairs: bool = True) -> Subject:
    """Works out what a model is compared with and on which pairs, from its run folder if it has one.

    Args:
        needs_pairs: False for a command that reads questions in place of pairs.

    Raises:
        DpotoolError: it is a run folder that holds no trained model, or a path where nothing is; nothing says which
            pairs are meant; or the tables' format is none.
    """
    if config.format not in FORMATS:
        raise DpotoolError(
            f"unknown table format {config.format!r}", where="--format", remedy=suggest_nearest(config.format, FORMATS)
        )
    if not is_builtin(model):
        check_name(model)
    run = read_training_run(model)
    if run is None:
        return _from_elsewhere(model, config, needs_pairs)
    trained: Mapping[str, Any] = run["config"]
    own_reference = trained.get("reference") or trained["model"]
    fingerprint = (run.get("fingerprints") or {}).get("reference")
    return Subject(
        model=model,
        label=RunFolder(Path(model)).name,
        reference=config.reference or own_reference,
        reference_fingerprint=fingerprint if config.reference in (None, own_reference) else None,
        folder=RunFolder(Path(config.output or model)),
        config=inherit_data(config, trained),
        # a loss without a reference has a beta of another kind, that is no scale of log-ratios
        beta=(trained.get("beta") if fingerprint or not run.get("fingerprints") else None) or DEFAULT_BETA,
        dtype=trained.get("dtype", "auto") if config.dtype == "auto" else config.dtype,
        bf16=bool(trained.get("bf16")) and config.dtype == "auto",
        loss=trained.get("loss"),
        variant=_name_variant(config, trained),
        on_training_pairs=config.data is None and not trained.get("eval_data"),
    )


def read_training_run(model: str) -> dict[str, Any] | None:
    """Returns the manifest of a folder that `dpotool train` or `blend` wrote, or None for any other model.

    A checkpoint in such a folder has its run's.

    Raises:
        DpotoolError: the folder is a run of another kind.
    """
    folder = RunFolder(Path(model))
    folder = folder.holder or folder
    if not folder.manifest_path.is_file():
        return None
    manifest = folder.read_manifest()
    if manifest.get("kind") not in ("train", "blend"):
        raise DpotoolError(
            "holds no trained model", where=model, expected="a run of kind train", got=f"kind {manifest.get('kind')}"
        )
    return manifest


def inherit_data(config: SubjectSettings, trained: Mapping[str, Any]) -> SubjectSettings:
    """Fills in the data that a run was evaluated on, row for row, unless the user names other data.

    Raises:
        DpotoolError: the user asks for another split of the run's data, whose test part may contain training pairs.
    """
    if config.data is not None:
        return replace(config, max_length=config.max_length or trained.get("max_length"))
    if config.test_fraction not in (None, trained.get("test_fraction")):
        raise DpotoolError(
            "the pairs of a run are divided as in training",
            where="--test-fraction",
            expected=str(trained.get("test_fraction") or "none"),
            got=str(config.test_fraction),
            remedy="Leave it out, or name the pairs too with --data",
        )
    if config.split_seed not in (None, trained.get("split_seed")):
        raise DpotoolError(
            "the pairs of a run are divided as in training",
            where="--split-seed",
            expected=str(
                trained.get("split_seed") or f"none, as in training, which cut by --seed {trained.get('seed')}"
            ),
            got=str(config.split_seed),
            remedy="Leave it out, or name the pairs too with --data",
        )
    if trained.get("eval_data"):
        own: dict[str, Any] = {name: trained.get(name) for name in _INHERITED}
        own |= {"data": trained["eval_data"], "split": trained.get("eval_split"), "limit": trained.get("eval_limit")}
    else:
        own = {name: trained.get(name) for name in (*_INHERITED, "data")}
    own["split_seed"] = trained.get("seed") if own["split_seed"] is None else own["split_seed"]
    unset = type(config)()
    own = {name: getattr(unset, name) if value is None else value for name, value in own.items()}
    return replace(config, **(own | _given(config)))


def _given(config: SubjectSettings) -> dict[str, Any]:
    """The user's settings that can be combined with the data recorded in a run."""
    unset = type(config)()
    names = ("split", "limit", "max_length", "truncation", "skip_invalid", "seed")
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(unset, name)}


def _name_variant(config: SubjectSettings, trained: Mapping[str, Any]) -> str:
    """Names the user's settings that change the numbers, except for data and split."""
    own = {**trained, "reference": trained.get("reference") or trained["model"]}
    evaluated = "eval_" if trained.get("eval_data") else ""
    is_own_data = config.data in (None, trained.get(f"{evaluated}data"))
    own["limit"] = trained.get(f"{evaluated}limit") if is_own_data else None
    asked = _given(config) | {name: getattr(config, name, None) for name in ("reference", "beta", "dtype")}
    changed = {
        name: Path(str(value)).name if name == "reference" else value
        for name in ("limit", "max_length", "truncation", "reference", "beta", "dtype")
        if (value := asked.get(name)) not in (None, "auto", own.get(name))
    }
    return "-".join(f"{name.replace('_', '-')}-{value}" for name, value in changed.items())


def _refuse_other_scores(folder: RunFolder, model: str) -> None:
    """Refuses a folder with the results of another model of the same last name, or with another run."""
    if not folder.manifest_path.is_file():
        return
    manifest = folder.read_manifest()
    other = str((manifest.get("config") or {}).get("model"))
    is_same = find_place(expand_home(other)) == find_place(expand_home(model))
    if manifest.get("kind") == "train" or not is_same:
        raise DpotoolError(
            "holds the run of another model"
            if manifest.get("kind") == "train"
            else "holds the scores of another model of that name",
            where=str(folder.path),
            expected=model,
            got=other,
            remedy="Name another folder with --output",
        )


def _from_elsewhere(model: str, config: SubjectSettings, needs_pairs: bool) -> Subject:
    base = read_adapter_base(model) if is_adapter_folder(model) else None
    path = Path(model)
    local = RunFolder(path).name if is_checkpoint_name(path.name) else path.name
    name = (local if path.exists() else model).replace("/", "--").replace(":", "-")
    folder = RunFolder(Path(config.output) if config.output else Path("runs") / name)
    _refuse_other_scores(folder, model)
    if needs_pairs and config.data is None and not is_builtin(model):
        refuse_without_model(model)
    return Subject(
        model=model,
        label=name,
        reference=config.reference or base,
        reference_fingerprint=None,
        folder=folder,
        config=replace(config, data=choose_pairs(model if needs_pairs else DEMO, config.data)),
        beta=DEFAULT_BETA,
        dtype=config.dtype,
        bf16=False,
        variant="" if config.limit is None else f"limit-{config.limit}",
    )
