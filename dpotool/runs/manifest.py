"""What a run writes down about itself in run.yaml: its settings, and all else that could change its numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from dpotool.errors import DpotoolError

KINDS = ("train", "score", "theory", "prediction", "sweep", "import", "generate")
STATUSES = ("running", "finished", "failed", "interrupted")

_PACKAGES = (
    "dpotool", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "bitsandbytes",
    "safetensors", "numpy", "scipy", "pandas", "pyarrow",
)  # fmt: skip


def collect_manifest(
    kind: str,
    config: Mapping[str, Any],
    *,
    seed: int | None = None,
    fingerprints: Mapping[str, str | None] | None = None,
    data: Mapping[str, Any] | None = None,
    devices: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the manifest of a run that starts now, status `running`.

    Args:
        config: the resolved settings; `--config run.yaml` repeats the run from them.
        seed: by default the config's own.
        fingerprints: model, reference, tokenizer, data: content hashes.
        data: where the pairs came from (a DataSource as a dict).
        devices: names of accelerators in use; asked of torch by the caller, as this room does not import it.
    """
    return {
        "kind": kind,
        "status": "running",
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "config": dict(config),
        "seed": config.get("seed") if seed is None else seed,
        "data": dict(data or {}),
        "fingerprints": dict(fingerprints or {}),
        "versions": collect_versions(),
        "git_sha": read_git_sha(),
        "hardware": collect_hardware(devices),
    }


def collect_versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that can change numbers, without importing them."""
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
    """Returns the commit that `folder` is at, with "-dirty" behind it if tracked files differ; None outside git."""
    try:
        sha = _run_git(folder, "rev-parse", "HEAD")
        changed = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{sha}-dirty" if changed else sha


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks a run.yaml.

    Raises DpotoolError when it is missing, unreadable, cut short or says nothing that a run would say.
    """
    try:
        manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DpotoolError(
            "not a run folder, it has no run.yaml",
            where=str(path.parent),
            remedy="Name the output folder of `dpotool train`, `score`, `theory-gap` or `sweep`",
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _broken(path, f"cannot be read ({_first_line(error)})") from error
    _check_manifest(path, manifest)
    return manifest


def _check_manifest(path: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict):
        raise _broken(path, "is empty or cut short")
    missing = [key for key in ("kind", "status", "created", "config") if key not in manifest]
    if missing:
        raise _broken(path, f"lacks {', '.join(missing)}")
    for key, known in (("kind", KINDS), ("status", STATUSES)):
        if manifest[key] not in known:
            raise _broken(path, f"{key} is {manifest[key]!r}, not one of {', '.join(known)}")
    if not isinstance(manifest["config"], dict):
        raise _broken(path, "config is not a mapping")


def _broken(path: Path, what: str) -> DpotoolError:
    return DpotoolError(what, where=str(path), remedy="Run that command again, or delete the folder")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _run_git(folder: str | Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return result.stdout.strip()


def _read_cpu_name() -> str:
    """The processor's model; /proc knows it on Linux, where `platform.processor` is often empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
