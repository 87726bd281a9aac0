"""The records of `what_each_gpu_learned.py`: where they are, and all of them."""

import json
from pathlib import Path

FORMAT = 1
FOLDER = Path(__file__).resolve().parents[1] / "claims" / "what-each-gpu-learned"


def read_all(folder: Path) -> list[dict]:
    """All records of a folder, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
