"""What many pairs of towers would have to send in a training step, and from which step time on they pay: arithmetic, no
measurement.

    python tools/scaling_plan.py [--recipe paper] [--batch 128] [--pairs 1,2,4,8,64,512]

Of each scheme the largest number of bytes that one device sends in one direction, in float32:

  towers   one pair: the halves that cross between its towers (the analytic ledger, `recipes.shapes.crossings`)
  pairs    P pairs, each with 1/P of the minibatch: those halves, of 1/P of the images; and a ring that adds the
           gradients, which sends 2 (P - 1) / P of a tower's parameters
  owt      2P devices (Krizhevsky 2014): convolutions by images, their gradients by a ring; fully connected layers by
           units, so that each device sends its images' last maps to all others, and its units of every hidden layer;
           gradients return the same way, but of the last layer's sums, from which every device computes the loss

A link is its nominal rate, used whole in both directions, without latency. `pays from` is the time that a step of one
pair must take for P pairs to be faster at all, if nothing that is sent hides behind the computation and P pairs compute
in 1/P of the time: (t_P - t_1) P / (P - 1), t the time on the link."""

import argparse

from alexnet_mp.profiling import link_rates
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.recipes.recipe import Recipe
from alexnet_mp.recipes.shapes import BYTES_FP32, crossings, parameter_counts, sizes

LINKS = {
    "PCIe 2.0 x16 (2012)": link_rates.PCIE_2_X16,
    "PCIe 5.0 x16": link_rates.PCIE_5_X16,
    "NVLink 4 (900 GB/s both ways)": link_rates.NVLINK_4,
    "100 Gbit/s": link_rates.NETWORK_100,
    "400 Gbit/s": link_rates.NETWORK_400,
}


def towers(recipe: Recipe, batch: float) -> float:
    """Bytes that cross in the busier direction of a step of so many images."""
    # The ledger is in proportion to the images.
    ledger = crossings(recipe, 1)
    return batch * max(sum(size for _, way, _, size in ledger if way == direction) for direction in ("a->b", "b->a"))


def ring(parameters: int, devices: int) -> float:
    """Bytes that each of the devices sends for the sum of a gradient that all of them get."""
    return 2 * (devices - 1) / devices * parameters * BYTES_FP32


def pairs(recipe: Recipe, batch: int, count: int) -> float:
    return towers(recipe, batch / count) + ring(max(parameter_counts(recipe)), count)


def owt(recipe: Recipe, batch: int, count: int) -> float:
    devices, layers = 2 * count, sizes(recipe)
    convolutions = sum(recipe.towers * size.parameters for size in layers if size.layer.kind != "fc")
    # What the fully connected layers read, of one image: the last maps, then units; gradients return.
    inputs, predecessor = 0, None
    for size in layers:
        if size.layer.kind == "fc":
            channels, height, width = predecessor.output
            inputs += recipe.towers * channels * height * width
        predecessor = size
    # A device has 1/n of all that is read, by images or by units, and sends it to the n - 1 others; 1/n of the sums.
    own_bytes = batch / devices * (2 * inputs + predecessor.output[0]) * BYTES_FP32
    return ring(convolutions, devices) + (devices - 1) * own_bytes


def table(recipe: Recipe, batch: int, counts: list[int]) -> list[str]:
    """Lines of Markdown: bytes; then, of each link, the time and the step time from which it pays."""
    pair_bytes = towers(recipe, batch)
    traffic = {
        count: {"pairs": pairs(recipe, batch, count), "owt": owt(recipe, batch, count)}
        if count > 1
        else {"towers": pair_bytes}
        for count in counts
    }
    lines = ["| pairs | scheme | MB a step | " + " | ".join(LINKS) + " |", "|---|---|---:|" + "---:|" * len(LINKS)]
    for count, schemes in traffic.items():
        for scheme, size in schemes.items():
            cells = []
            for rate in LINKS.values():
                seconds, pair_seconds = size / rate, pair_bytes / rate
                text = f"{1e3 * seconds:,.2f} ms"
                if count > 1:
                    break_even = (seconds - pair_seconds) * count / (count - 1)
                    text += f"; pays from {1e3 * break_even:,.2f} ms" if break_even > 0 else "; always pays"
                cells.append(text)
            lines.append(f"| {count} | {scheme} | {size / 1e6:,.1f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--batch", type=int, default=128, help="images in the whole minibatch")
    parser.add_argument("--pairs", default="1,2,4,8,64,512")
    options = parser.parse_args()
    counts = [int(count) for count in options.pairs.split(",")]
    if options.batch < 1 or min(counts) < 1:
        parser.error("--batch and --pairs are at least 1")
    print("\n".join(table(PRESETS[options.recipe](), options.batch, counts)))


if __name__ == "__main__":
    main()
