"""The records of `what_each_gpu_learned.py`: where they are, and all of them."""

import json
from pathlib import Path

FORMAT = 1
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "claims" / "what-each-gpu-learned"


def read_all(folder: Path) -> tuple[list[dict], list[dict]]:
    """The records of a folder, in the order of their names: of a network each, and of towers of several seeds each."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [one for one in records if "run" in one], [one for one in records if "runs" in one]


def as_json(record: dict) -> str:
    """JSON with a line for every field, and for every entry of one that has many; six digits of every number."""

    def short(value):
        if isinstance(value, float):
            return float(f"{value:.6g}")
        if isinstance(value, dict):
            return {name: short(each) for name, each in value.items()}
        return [short(each) for each in value] if isinstance(value, (list, tuple)) else value

    def lines(value):
        inner = short(value)
        if isinstance(inner, list) and inner and isinstance(inner[0], (dict, list)):
            return "[\n  " + ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in inner) + "]"
        if isinstance(inner, dict) and any(isinstance(each, list) and len(each) > 3 for each in inner.values()):
            return "{\n  " + ",\n  ".join(f"{json.dumps(name)}: {lines(each)}" for name, each in inner.items()) + "}"
        return json.dumps(inner, ensure_ascii=False)

    return "{\n" + ",\n".join(f" {json.dumps(name)}: {lines(value)}" for name, value in record.items()) + "\n}\n"
