from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from importlib import metadata

from dpotool.runs import manifest as module
from dpotool.runs.manifest import collect_manifest, read_git_sha


def test_a_manifest_says_what_could_change_the_numbers():
    manifest = collect_manifest(
        "train", {"seed": 7, "loss": "dpo"}, fingerprints={"model": "ab"}, data={"name": "demo"}, devices=["H200"]
    )

    assert (manifest["kind"], manifest["status"], manifest["seed"]) == ("train", "running", 7)
    assert manifest["versions"]["torch"] == metadata.version("torch")
    assert manifest["versions"]["python"] == sys.version.split()[0]
    assert manifest["hardware"]["n_cpus"] >= 1
    assert manifest["hardware"]["devices"] == ["H200"]
    assert manifest["hardware"]["cpu"]
    assert datetime.fromisoformat(manifest["created"]).tzinfo is not None


def test_a_package_that_is_not_installed_is_not_listed(monkeypatch):
    def find(name: str) -> str:
        if name != "numpy":
            raise metadata.PackageNotFoundError(name)
        return "2.0"

    monkeypatch.setattr(metadata, "version", find)
    monkeypatch.setattr(module, "_read_versions", module._read_versions.__wrapped__)

    assert set(collect_manifest("train", {})["versions"]) == {"python", "numpy"}


def test_the_commit_is_marked_when_tracked_files_differ(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a", "--no-verify")
    sha = git("rev-parse", "HEAD").strip()
    (tmp_path / "untracked").write_text("")
    assert read_git_sha(tmp_path) == sha

    (tmp_path / "a").write_text("2")
    assert read_git_sha(tmp_path) == f"{sha}-dirty"


def test_no_program_that_a_repository_names_is_run(tmp_path):
    """A monitor, a hook, filters and a transport that each leave a file behind, in a repository that came with data."""
    repository, proof = tmp_path / "repository", tmp_path / "proof"
    repository.mkdir()

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)

    git("init", "-q")
    (repository / "a.txt").write_text("a\n")
    (repository / ".gitattributes").write_text("*.txt filter=evil filter=evil diff=evil\n")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho run >> {proof}\ncat\n")
    program.chmod(0o755)
    hooks = repository / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "fsmonitor-watchman", "post-checkout"):
        (hooks / name).write_text(program.read_text())
        (hooks / name).chmod(0o755)
    for setting in (
        "core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.external",
        "diff.evil.command", "diff.evil.textconv", "core.sshCommand", "core.pager", "core.editor", "gpg.program",
    ):  # fmt: skip
        git("config", setting, str(program))
    git("config", "filter.evil.required", "true")
    (repository / "a.txt").write_text("b\n")
    os.utime(repository / "a.txt", (0, 0))
    proof.unlink(missing_ok=True)
    assert read_git_sha(repository).endswith("-dirty")
    assert not proof.exists()


def test_outside_git_there_is_no_commit(tmp_path):
    assert read_git_sha(tmp_path) is None


def test_results_and_plots_import_no_torch():
    code = (
        "import sys, pkgutil, importlib, dpotool.runs, dpotool.stats, dpotool.compare, dpotool.theory, dpotool.plots\n"
        "for room in (dpotool.runs, dpotool.stats, dpotool.compare, dpotool.theory, dpotool.plots):\n"
        "    modules = list(pkgutil.iter_modules(room.__path__, room.__name__ + '.'))\n"
        "    assert modules\n"
        "    for module in modules: importlib.import_module(module.name)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
