"""The least that every operation and a training step must move and compute, from the recipe alone.

    python benchmarks/roofline.py [--recipe paper] [--batch 128 1024] [--bandwidth GB/s] [--tflops BF16] [--json]

The model is `alexnet_mp/profiling/roofline.py`. MB are 10^6 bytes. The benchmarks and their tests take every such
figure from here."""

import argparse
import json

from alexnet_mp.profiling.roofline import BANDWIDTH, TFLOPS, WIDTH, MapOp, map_ops, products, seconds, sgd_bytes, step  # noqa: F401  (what the benchmarks import from here)
from alexnet_mp.recipes.named import PRESETS


def report(recipe, batches, bandwidth=BANDWIDTH, tflops=TFLOPS):
    """Every figure as plain JSON types. Map operations and products are one tower's; steps and parameters are all
    towers'."""
    maps = [
        {
            "op": op.name,
            "shape": [op.maps, op.height, op.width],
            "pass": mode,
            "dtype": dtype,
            "batch": batch,
            "bytes": op.bytes(mode, batch, dtype),
            "flops": op.flops(mode, batch),
            "saved_bytes": op.saved_bytes(batch, dtype),
            **(
                {f"{way}_bytes": op.traffic(mode, batch, dtype, way) for way in ("eager", "inductor")}
                if op.pool and op.norm != "spatial"
                else {}
            ),
            "limit_us": 1e6 * seconds(op.bytes(mode, batch, dtype), 0, dtype, bandwidth),
        }
        for op in map_ops(recipe)
        for dtype in ("fp32", "bf16")
        for batch in batches
        for mode in ("fwd", "bwd")
    ]
    layers = [
        {
            "layer": size.layer.name,
            "towers": towers,
            "parameters": size.parameters,
            "forward_mflop": forward,
            "training_mflop": passes * forward,
        }
        for size, towers, forward, passes in products(recipe)
    ]
    total = {
        key: sum(row["towers"] * row[key] for row in layers)
        for key in ("parameters", "forward_mflop", "training_mflop")
    }
    steps = [
        {"dtype": dtype, "batch": batch, "ms": times, "images_per_second": 1e3 * batch / times["step"]}
        for dtype in ("fp32", "bf16")
        for batch in batches
        for times in [step(recipe, batch, dtype, bandwidth, tflops)]
    ]
    return {
        "recipe": recipe.name,
        "bandwidth_gb_per_s": bandwidth,
        "bf16_tflop_per_s": tflops,
        "layers": layers,
        "total": total,
        "maps": maps,
        "sgd_bytes": sgd_bytes(recipe),
        "steps": steps,
    }


def _print(figures):
    print(
        f"recipe {figures['recipe']}, limits at {figures['bandwidth_gb_per_s']:g} GB/s and "
        f"{figures['bf16_tflop_per_s']:g} "
        "TFLOP/s in bf16 (half in float32, as TF32)\n\nlayer (a tower)      parameters  MFLOP fwd    train"
    )
    for row in figures["layers"]:
        print(
            f"{row['layer']:8} x {row['towers']} {row['parameters']:18,} {row['forward_mflop']:10.1f} "
            f"{row['training_mflop']:8.1f}"
        )
    total = figures["total"]
    print(f"all towers {total['parameters']:20,} {total['forward_mflop']:10.1f} {total['training_mflop']:8.1f}\n")
    print("map operation (a tower)                     MB  limit us   MFLOP  saved MB  eager MB  inductor MB")
    for row in figures["maps"]:
        label = f"{row['op']} {'x'.join(map(str, row['shape']))} {row['pass']} {row['dtype']} b{row['batch']}"
        extras = f"{row['eager_bytes'] / 1e6:9.1f} {row['inductor_bytes'] / 1e6:12.1f}" if "eager_bytes" in row else ""
        print(
            f"{label:36} {row['bytes'] / 1e6:9.1f} {row['limit_us']:9.1f} {row['flops'] / 1e6:7.0f} "
            f"{row['saved_bytes'] / 1e6:9.1f} {extras}".rstrip()
        )
    print(f"\nSGD, all towers: {figures['sgd_bytes'] / 1e9:.3f} GB\n\ntraining step on one device, ms")
    for row in figures["steps"]:
        times = ", ".join(f"{name} {value:.3f}" for name, value in row["ms"].items())
        print(f"{row['dtype']} b{row['batch']}: {times}; {row['images_per_second']:,.0f} images/s")


def main(arguments=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Bytes, FLOPs, saved bytes and time limits of every operation and of a step."
    )
    parser.add_argument("--recipe", choices=PRESETS, default="paper")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024], help="images (default: 128 1024)")
    parser.add_argument(
        "--bandwidth", type=float, default=BANDWIDTH, help="GB/s, bytes read plus bytes written (default: %(default)g)"
    )
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="TFLOP/s of a bf16 product (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    figures = report(PRESETS[options.recipe](), options.batch, options.bandwidth, options.tflops)
    print(json.dumps(figures, indent=1)) if options.json else _print(figures)


if __name__ == "__main__":
    main()
