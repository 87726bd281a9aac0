"""The records of `what_each_gpu_learned.py`: where they are, and all of them."""

import json
from pathlib import Path

FORMAT = 1
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "claims" / "what-each-gpu-learned"


def read_all(folder: Path) -> tuple[list[dict], list[dict]]:
    """The records of a folder, in the order of their names: of a network each, and of towers of several seeds each."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [record for record in records if "run" in record], [record for record in records if "runs" in record]


def as_json(record: dict) -> str:
    """JSON with a line for every field, and for every entry of one that has many; six digits of every number."""

    def short(value):
        if isinstance(value, float):
            return float(f"{value:.6g}")
        if isinstance(value, dict):
            return {name: short(item) for name, item in value.items()}
        return [short(item) for item in value] if isinstance(value, (list, tuple)) else value

    def lines(value):
        content = short(value)
        if isinstance(content, list) and content and isinstance(content[0], (dict, list)):
            return "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in content) + "]"
        if isinstance(content, dict) and any(isinstance(item, list) and len(item) > 3 for item in content.values()):
            return "{\n  " + ",\n  ".join(f"{json.dumps(name)}: {lines(item)}" for name, item in content.items()) + "}"
        return json.dumps(content, ensure_ascii=False)

    return "{\n" + ",\n".join(f" {json.dumps(name)}: {lines(value)}" for name, value in record.items()) + "\n}\n"
