from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from importlib import metadata

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
