"""What tests share: the demo model, its pictures, and the command of the same installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llava_sae

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "assets/pictures"
PICTURE = PICTURES / "carrot-mushroom.png"


@pytest.fixture(scope="session")
def model():
    with llava_sae.demo() as model:
        yield model


@pytest.fixture(scope="session")
def image(model):
    return model.image(PICTURE)


def command(*args: object) -> str:
    """Run the command and return what it prints. `LLAVA_SAE_PROGRAM` names another program."""
    program = os.environ.get("LLAVA_SAE_PROGRAM")
    line = [*([program] if program else [sys.executable, "-m", "llava_sae"]), *map(str, args)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_json(*args: object) -> dict:
    return json.loads(command(*args, "--json"))
