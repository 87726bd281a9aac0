"""Words, numbers and tables of the page of `what_each_gpu_learned.py`."""

# A question's title, an answer for every arm, how it was found, and a table in Markdown.
Answer = tuple[str, list[str], str, str]


def by_name(entries, field, name):
    return next((entry for entry in entries if entry[field] == name), None)


def seeds(records):
    return f"{len(records)} seed{'s' * (len(records) > 1)}"


def span(summary, digits=0):
    if summary.n == 1:
        return f"{summary.mean:.{digits}f}"
    return f"{summary.mean:.{digits}f} ({summary.low:.{digits}f} to {summary.high:.{digits}f})"


def listed(words):
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def numbers(values):
    return ", ".join(f"{value:,}" for value in values)


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def steps(values):
    """Steps of a training, mean and range."""
    mean, low, high = round(sum(values) / len(values)), min(values), max(values)
    return f"{mean:,}" if low == high else f"{mean:,} ({low:,} to {high:,})"
