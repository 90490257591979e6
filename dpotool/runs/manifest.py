"""The manifest run.yaml: the settings of a run, and everything else that could change its numbers."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dpotool.errors import DpotoolError
from dpotool.runs.checked import check_value, find_not_finite, load_yaml

COMMANDS = {
    "train": "train", "score": "score", "theory": "theory-gap", "prediction": "predict", "sweep": "sweep",
    "import": "import", "generate": "generate", "diagnose": "diagnose",
    "blend": "blend", "judge": "judge",
}  # fmt: skip
"""Kind of run -> the command that makes it."""
KINDS = tuple(COMMANDS)
STATUSES = ("running", "finished", "failed", "interrupted")

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
"""No run has more; and a larger integer may not fit the columns and pictures that it goes into."""
Scalar = bool | int | float | str | None
LossName = Annotated[str, msgspec.Meta(pattern=r"^[\w.+-]{1,64}$")]
"""Of a loss, which need not be known here: it may come with a package of another machine."""


class Config(msgspec.Struct, kw_only=True):
    """What is read of the settings of a run, whichever command it is of; all else is a text, a number or a switch."""

    model: str | None = None
    reference: str | None = None
    output: str | None = None
    loss: LossName | None = None
    beta: Positive | None = None
    lambda_: float | None = None
    lambda_schedule: str | None = None
    lambda_min: float | None = None
    lambda_max: float | None = None
    adaptive_rule: str | None = None
    data: str | None = None
    split: str | None = None
    limit: Count | None = None
    test_fraction: float | None = None
    skip_invalid: bool | None = None
    eval_data: str | None = None
    eval_split: str | None = None
    eval_limit: Count | None = None
    seed: int | None = None
    split_seed: int | None = None
    max_length: Count | None = None
    truncation: str | None = None
    dtype: str | None = None
    bf16: bool | None = None
    file: str | None = None


class Part(msgspec.Struct, kw_only=True):
    """Where the training or evaluation pairs of a run came from, and what became of their rows."""

    name: str | None = None
    split: str | None = None
    n_rows: Count | None = None
    n_pairs: Count | None = None
    n_excluded: dict[str, int] | None = None
    n_truncated: Count | None = None
    n_boundary_merged: Count | None = None
    n_identical: Count | None = None
    n_duplicate: Count | None = None


class Parts(Part, kw_only=True):
    """The pairs of a training run, which has two parts, or of any other command."""

    train: Part | None = None
    eval: Part | None = None


class Blend(msgspec.Struct, kw_only=True):
    """The two models of a blend, the share of the second one, and the lambda that it stands for where that is known."""

    first: str
    second: str
    weight: Annotated[float, msgspec.Meta(ge=0, le=1)]
    lambda_: float | None = msgspec.field(name="lambda")


class Manifest(msgspec.Struct, kw_only=True):
    """run.yaml."""

    kind: str
    status: str
    created: str
    config: dict[str, Any]
    seed: int | None = None
    data: dict[str, Any] = {}
    fingerprints: dict[str, str | None] | None = None
    versions: dict[str, str] | None = None
    git_sha: str | None = None
    hardware: dict[str, Any] | None = None
    blend: Blend | None = None


_REPEAT = "Run that command again, or delete the folder"

_PACKAGES = (
    "dpotool", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "bitsandbytes",
    "safetensors", "numpy", "scipy", "pandas", "pyarrow",
)  # fmt: skip


def collect_manifest(
    kind: str,
    config: Mapping[str, Any],
    *,
    fingerprints: Mapping[str, str | None] | None = None,
    data: Mapping[str, Any] | None = None,
    devices: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the manifest of a run that starts now, status `running`.

    Args:
        config: the resolved settings; `--config run.yaml` repeats the run from them.
        fingerprints: model, reference, tokenizer, data: content hashes.
        data: where the pairs came from (a DataSource as a dict).
        devices: names of accelerators in use; asked of torch by the caller, as this room does not import it.
    """
    return {
        "kind": kind,
        "status": "running",
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "config": dict(config),
        "seed": config.get("seed"),
        "data": dict(data or {}),
        "fingerprints": dict(fingerprints or {}),
        "versions": collect_versions(),
        "git_sha": read_git_sha(),
        "hardware": collect_hardware(devices),
    }


def collect_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that can change numbers, without importing them."""
    return dict(_read_versions())


@functools.cache
def _read_versions() -> dict[str, str]:
    """Reads them once: a process keeps the packages it began with, and reading takes 10 ms."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def collect_hardware(devices: Sequence[str] = ()) -> dict[str, Any]:
    """Returns platform, processor, the number of processors this process may use, and the accelerators named."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux only
    n_cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return {"platform": platform.platform(), "cpu": _read_cpu_name(), "n_cpus": n_cpus, "devices": list(devices)}


def read_git_sha(folder: str | Path = ".") -> str | None:
    """Returns the commit that `folder` is at, with "-dirty" behind it if tracked files differ; None outside git.

    No program that the repository's own settings name is run: no file system monitor, hook, filter or transport.
    """
    try:
        sha = _run_git(folder, "rev-parse", "HEAD")
        filters = _run_git(folder, "config", "--null", "--name-only", "--get-regexp", r"^filter\.", may_fail=True)
        names = [name for name in filters.split("\0") if name]
        if any("=" in name or "\n" in name for name in names):  # no setting of that name can be overruled
            return sha
        overruled = [f"{name}={'false' if name.endswith('.required') else ''}" for name in names]
        changed = _run_git(
            folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all", settings=overruled
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{sha}-dirty" if changed else sha


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks a run.yaml.

    Raises DpotoolError when it is missing, unreadable, cut short or says nothing that a run would say.
    """
    try:
        manifest = load_yaml(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DpotoolError(
            "not a run folder, it has no run.yaml",
            where=str(path.parent),
            remedy="Name the output folder of `dpotool train`, `score`, `theory-gap` or `sweep`",
        ) from error
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read ({error})") from error
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict):
        raise _broken(path, "is empty or cut short")
    needed = ("kind", "status", "created", "config", *(("blend",) if manifest.get("kind") == "blend" else ()))
    missing = [key for key in needed if key not in manifest]
    if missing:
        raise _broken(path, f"lacks {', '.join(missing)}")
    for key, known in (("kind", KINDS), ("status", STATUSES)):
        if manifest[key] not in known:
            raise _broken(path, f"{key} is {manifest[key]!r}, not one of {', '.join(known)}")
    check_value(manifest, Manifest, where=str(path), remedy=_REPEAT)
    typed: dict[str, Any] = {"config": Config, "data": Parts}
    for name, schema in typed.items():
        check_value(manifest.get(name) or {}, schema, where=f"{path}: {name}", remedy=_REPEAT)
    for key, value in manifest["config"].items():
        check_value(value, Scalar | list[Scalar], where=f"{path}: config.{key}", remedy=_REPEAT)  # type: ignore[arg-type]
    for key in find_not_finite(manifest["config"]):
        raise DpotoolError("is not a finite number", where=f"{path}: config.{key}", remedy=_REPEAT)


def _broken(path: Path, what: str) -> DpotoolError:
    return DpotoolError(what, where=str(path), remedy=_REPEAT)


_NO_PROGRAMS = (
    "core.fsmonitor=false", f"core.hooksPath={os.devnull}", f"core.attributesFile={os.devnull}",
    "status.submoduleSummary=false",
)  # fmt: skip
_NO_TRANSPORT = {
    "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "GIT_TERMINAL_PROMPT": "0",
}  # fmt: skip


def _run_git(folder: str | Path, *arguments: str, settings: Sequence[str] = (), may_fail: bool = False) -> str:
    words = [word for setting in (*_NO_PROGRAMS, *settings) for word in ("-c", setting)]
    result = subprocess.run(
        ["git", *words, *arguments],
        cwd=folder,
        env=os.environ | _NO_TRANSPORT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=not may_fail,
        timeout=10,
    )
    return result.stdout.strip()


def _read_cpu_name() -> str:
    """The processor's model; /proc knows it on Linux, where `platform.processor` is often empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
