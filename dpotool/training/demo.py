"""The built-in model as a user meets it: built and SFT-trained on first use by dpotool's own loss, then kept.

DPO starts from a model that has learned the task, so the demo's first stage is SFT on the chosen answers, as in the
paper. The result depends on the seed, the grammar and the settings alone; its folder's name is their hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from dpotool.cache.root import DEMO_PREFIX, cache_root
from dpotool.data.demo import SPLITS, generate_demo_rows
from dpotool.models.builtin import BuiltinModel
from dpotool.models.demo import (
    CHAT_TEMPLATE,
    DEMO_SFT,
    VOCAB_SIZE,
    build_demo_config,
    build_demo_model,
    build_demo_tokenizer,
)
from dpotool.models.library_calls import quiet_transformers
from dpotool.progress import SILENT, Progress
from dpotool.settings import DEMO
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

SEED = 42


def ensure_demo_model(progress: Progress = SILENT) -> Path:
    """Returns the folder of the SFT-trained built-in model, making it on first use (under a minute on two cores).

    Raises:
        KeyboardInterrupt: its training was interrupted; nothing is kept, and the next use begins anew.
    """
    found = find_demo_model()
    if found is not None:
        return found
    folder = demo_folder()
    progress.note(f"first use of {DEMO}: training the built-in model, kept in {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        untrained, trained = Path(temporary) / "untrained", Path(temporary) / "trained"
        _save_untrained(untrained)
        if train(_sft_config(untrained, trained), progress=progress).was_interrupted:
            raise KeyboardInterrupt
        if find_demo_model() is None:  # unless another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            trained.rename(folder)
    return folder


def demo_folder() -> Path:
    """Returns where the built-in model lies once it is made."""
    return cache_root() / f"{DEMO_PREFIX}{_content_key()}"


def find_demo_model() -> Path | None:
    """Returns the folder of the built-in model, or None where it is not made yet."""
    folder = demo_folder()
    return folder if (folder / "config.json").is_file() else None


def _save_untrained(folder: Path) -> None:
    with quiet_transformers():
        build_demo_model(SEED).save_pretrained(folder)
    build_demo_tokenizer().save_pretrained(folder)


def _sft_config(model: Path, output: Path) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        data=DEMO,
        split="sft",
        loss="sft",
        learning_rate=DEMO_SFT.learning_rate,
        epochs=DEMO_SFT.epochs,
        batch_size=DEMO_SFT.batch_size,
        device="cpu",
        seed=SEED,
        output=str(output),
        eval_limit=1,  # nobody looks at it
    )


def _content_key() -> str:
    """Returns a hash of everything the trained model depends on but the library versions."""
    rows = json.dumps([generate_demo_rows(split) for split in SPLITS], sort_keys=True)
    model = build_demo_config().to_json_string()
    settings = json.dumps(asdict(DEMO_SFT))
    return hashlib.sha256(
        "\0".join((rows, model, settings, CHAT_TEMPLATE, str(VOCAB_SIZE), str(SEED))).encode()
    ).hexdigest()[:12]


DEMO_MODEL = BuiltinModel(ensure_demo_model, find_demo_model, _save_untrained)
"""What the front door registers under `builtin:demo`."""
