"""Makes the demo model: `python make.py [WORK_DIR]`. Each stage is skipped where its result stands."""

import subprocess
import sys
import time
from pathlib import Path

import torch

import evaluate
import export
import icons
import language_model
import oracle
import projector
import sae
import vision
from models import Demo

MAKE_ASSETS = Path(__file__).parents[1] / "scripts/make-assets.sh"


def main() -> None:
    work = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "work")
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    drawings, pictures = work / "icons.npz", work / "pictures.npz"
    shallow, base, encoder, sae_folder = work / "shallow", work / "base", work / "vit", work / "sae"
    weights, llava, usual, gguf = work / "projector.pt", work / "llava", work / "usual", work / "gguf"
    stages = [
        ("drawings", drawings, lambda: icons.make(drawings)),
        ("tokenizer", work / "tokenizer.model", lambda: language_model.train_tokenizer(work)),
        ("language model, on text", shallow, lambda: language_model.train(work, shallow)),
        ("one more block, on text", base, lambda: language_model.deepen(shallow, work, base)),
        ("SAE, on text", sae_folder, lambda: sae.train(base, work, sae_folder)),
        ("labels, from text", sae_folder / "labels.json", lambda: sae.label(sae_folder, base, work)),
        ("pictures", pictures, lambda: vision.make_pictures(drawings, pictures)),
        ("vision encoder", encoder, lambda: vision.train(pictures, encoder)),
        ("projector", weights, lambda: projector.train(pictures, encoder, base, work, weights)),
        ("export", llava, lambda: export.export(encoder, base, weights, work, llava)),
        ("pictures for the baseline", usual, lambda: evaluate.write_usual_pictures(drawings, usual)),
        ("GGUF files", gguf, lambda: subprocess.run(["sh", MAKE_ASSETS, work, usual, gguf], check=True)),
        ("evaluation", work / "evaluation.json", lambda: evaluate.evaluate(work)),
        (
            "oracle",
            work / "oracle" / "oracle.json",
            lambda: oracle.make(Demo(llava, sae_folder, work), llava, sae_folder, drawings, work / "oracle"),
        ),
    ]
    for name, result, make in stages:
        if result.exists():
            print(f"{name}: there already")
            continue
        print(name, flush=True)
        start = time.time()
        make()
        print(f"  {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
