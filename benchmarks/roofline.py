"""The least that every operation and a training step must move and compute, from the recipe alone.

    python benchmarks/roofline.py [--recipe paper] [--batch 128 1024] [--bandwidth GB/s] [--tflops BF16] [--json]

Bytes: every input of an operation is read once, every output written once. A time limit is the larger of bytes / bandwidth and
FLOPs / peak. MB are 10^6 bytes. The defaults of --bandwidth and --tflops are those of one H200, where a large copy moved 4.3 TB/s
(read + written) and a bf16 product of 8192^3 ran at 790 TFLOP/s; float32 products are taken as TF32 at half of that, not
measured. The benchmarks and their tests take every such figure from here.
"""
import argparse
import json
from dataclasses import dataclass

from alexnet_mp import geometry
from alexnet_mp.presets import PRESETS
from alexnet_mp.tower import plan

WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a value
BANDWIDTH, TFLOPS = 4300.0, 790.0  # GB/s; TFLOP/s in bf16 and fp16
SGD_BYTES = 20  # a parameter: read w, v, g and write w, v in float32; bf16 gradients save 2, which a bf16 copy of w takes
INDEX = 8  # bytes of a maximum's position in torch.nn.functional.max_pool2d

# What plain PyTorch moves for bias, ReLU, (LRN,) pool, in multiples of the input; the pool's output and positions come on top.
# torch.compile at its best fuses what is elementwise, but a window over channels or positions ends a kernel.
TRAFFIC = {
    ("eager", "fwd", "lrn"): {"x + bias": 2, "relu": 2, "a * a": 2, "pad": 2, "avg_pool3d": 2, "* alpha": 2, "+ k": 2, "pow": 2,
                              "a / d": 3, "max_pool2d": 1},
    ("eager", "bwd", "lrn"): {"max_pool2d: zeros, gradient": 2, "g / d": 3, "gradient of d: a / d, / d, -, * g": 11,
                              "pow: pow, *, * g": 7, "* alpha": 2, "avg_pool3d: zeros, gradient": 3, "pad: the inner part": 2,
                              "a * a: twice * a": 6, "a's three gradients summed": 6, "relu": 3, "bias: sum": 1},
    ("eager", "fwd", "none"): {"x + bias": 2, "relu": 2, "max_pool2d": 1},
    ("eager", "bwd", "none"): {"max_pool2d: zeros, gradient": 2, "relu": 3, "bias: sum": 1},
    ("inductor", "fwd", "lrn"): {"bias, relu, LRN": 2, "max_pool2d": 1},
    ("inductor", "bwd", "lrn"): {"max_pool2d": 1, "g a d^(-beta-1)": 3, "window sum, relu": 4, "bias: sum": 1},
    ("inductor", "fwd", "none"): {"all": 1},
    ("inductor", "bwd", "none"): {"max_pool2d, relu": 2, "bias: sum": 1},
}


@dataclass(frozen=True)
class MapOp:
    """One fused operation of one tower: (N, maps, height, width) -> (N, maps, out_height, out_width)."""

    name: str  # "lrnpool1", "maxpool5"
    piece: tuple[str, ...]  # the recipe's operations that it computes
    maps: int
    height: int
    width: int
    out_height: int
    out_width: int
    norm: str  # "lrn", "spatial" or "none"
    size: int  # maps in the LRN window, or rows in the square spatial window
    pool: int  # 0 without a pool
    ties: str

    @property
    def inputs(self):
        """Values that go in, for one image."""
        return self.maps * self.height * self.width

    @property
    def outputs(self):
        """Values that come out, for one image."""
        return self.maps * self.out_height * self.out_width

    @property
    def reads_x_again(self):
        """Whether the backward pass needs x: a pool alone finds all it needs in the argmax, which says where nothing goes."""
        return self.norm != "none" or self.ties == "all"

    @property
    def argmax_bytes(self):
        """For one image: one byte an output where the first of tied maxima gets the gradient."""
        return self.outputs if self.pool and self.ties == "first" else 0

    def bytes(self, step, batch, dtype):
        """Bytes of a pass in training: "fwd" x, bias -> y, argmax; "bwd" dy, argmax, x, bias -> dx, dbias; "fwdbwd" both."""
        if step == "fwdbwd":
            return self.bytes("fwd", batch, dtype) + self.bytes("bwd", batch, dtype)
        w = WIDTH[dtype]
        ends = (self.inputs + self.outputs) * w + self.argmax_bytes
        if step == "fwd":
            return batch * ends + self.maps * w
        return batch * (ends + (self.inputs * w if self.reads_x_again else 0)) + self.maps * (w + 4)

    def flops(self, step, batch):
        """Additions, products, comparisons and roots. n terms take n - 1 additions, n x n terms go by rows, then by columns."""
        if step == "fwdbwd":
            return self.flops("fwd", batch) + self.flops("bwd", batch)
        terms = {"lrn": self.size - 1, "spatial": 2 * (self.size - 1), "none": 0}[self.norm]
        d = 3 + terms if terms else 0  # a^2, its sum, times alpha, plus k
        bias = 0 if self.norm == "spatial" else 2  # the sum with the bias, ReLU
        if step == "fwd":  # d^-3/4 takes two roots and a product; times a
            compared = self.pool**2 - 1 if self.pool else 0
            return batch * (self.inputs * (bias + d + (4 if terms else 0)) + self.outputs * compared)
        # bias, ReLU, d again; d^-3/4, d^-7/4, g d^-3/4, g a d^-7/4 and its sum, times 2 alpha beta a, the difference; ReLU, dbias
        again = bias + d + 3 + 1 + 1 + 2 + terms + 2 + 1 if terms else 0
        return batch * (self.inputs * (again + bias) + (self.outputs if self.pool else 0))

    def saved_bytes(self, batch, dtype):
        """What must be kept from forward to backward: x where it is read again, the bias, the argmax."""
        w = WIDTH[dtype]
        return batch * ((self.inputs * w if self.reads_x_again else 0) + self.argmax_bytes) + self.maps * w

    def traffic(self, step, batch, dtype, way):
        """Bytes that plain PyTorch (way="eager") or torch.compile at its best ("inductor") moves for bias, ReLU, (LRN,) pool."""
        if step == "fwdbwd":
            return self.traffic("fwd", batch, dtype, way) + self.traffic("bwd", batch, dtype, way)
        if not self.pool or self.norm == "spatial":
            raise ValueError(f"the traffic of {' -> '.join(self.piece)} was not counted")
        table = TRAFFIC[way, step, self.norm]
        index = INDEX if way == "eager" else 1  # torch.compile keeps one byte for a position in a small window
        return batch * (self.inputs * WIDTH[dtype] * sum(table.values()) + self.outputs * (WIDTH[dtype] + index))


def map_ops(recipe):
    """The recipe's fused operations, one tower's, in order: lrnpool1, lrnpool2 and maxpool5 in the paper's network."""
    found = []
    for number, size in enumerate(geometry.sizes(recipe), 1):
        maps, *sides = size.computed
        for piece in plan(size.layer.then):
            out = size.output[1:] if "max_pool" in piece or "avg_pool" in piece else sides
            if "lrn" in piece or "max_pool" in piece:
                first = "lrn" if "lrn" in piece else "spatial" if "spatial_norm" in piece else "max"
                kind = first + ("pool" if "max_pool" in piece else "")
                norm, window = (("lrn", recipe.lrn_size) if "lrn" in piece else
                                ("spatial", recipe.spatial_size) if "spatial_norm" in piece else ("none", 0))
                found.append(MapOp(f"{kind}{number}", piece, maps, *sides, *out, norm, window,
                                   recipe.pool_size if "max_pool" in piece else 0, recipe.pool_ties))
            sides = out
    return found


def products(recipe):
    """[(size, towers that have the layer, MFLOP of one image forward on one tower, passes)] of the convolutions and products.

    A product of a x b and b x c counts 2 abc. Training takes three such passes, forward, gradient of the weights and of the
    input, and the first layer two.
    """
    rows = []
    for index, size in enumerate(geometry.sizes(recipe)):
        rows.append((size, recipe.towers if size.layer.towers == "each" else 1, 2e-6 * size.products, 2 if index == 0 else 3))
    return rows


def seconds(bytes_, flops, dtype, bandwidth=BANDWIDTH, tflops=TFLOPS):
    """The limit: the larger of the two times. bandwidth in GB/s; tflops: TFLOP/s of a bf16 product, float32 taken as half."""
    return max(bytes_ / (bandwidth * 1e9), flops / (tflops * 1e12 * (0.5 if dtype == "fp32" else 1)))


def step(recipe, batch, dtype, bandwidth=BANDWIDTH, tflops=TFLOPS):
    """Milliseconds that one training step needs at least with all towers on one device, by part."""
    w, parts = WIDTH[dtype], {"conv": 0.0, "fc": 0.0, "maps": 0.0, "relu backward": 0.0, "sgd": 0.0}
    for size, towers, forward, passes in products(recipe):
        values = batch * (_count(size.reads) + _count(size.computed)) + size.parameters
        part = "fc" if size.layer.kind == "fc" else "conv"
        parts[part] += passes * towers * seconds(values * w, forward * 1e6 * batch, dtype, bandwidth, tflops)
        if ("relu",) in plan(size.layer.then):  # forward it rides on the product; backward reads dy and y and writes dx
            parts["relu backward"] += towers * seconds(3 * batch * _count(size.computed) * w, 0, dtype, bandwidth, tflops)
    for op in map_ops(recipe):
        parts["maps"] += recipe.towers * sum(seconds(op.bytes(one, batch, dtype), 0, dtype, bandwidth) for one in ("fwd", "bwd"))
    parts["sgd"] = seconds(sgd_bytes(recipe), 0, dtype, bandwidth)
    return {name: 1e3 * value for name, value in parts.items()} | {"step": 1e3 * sum(parts.values())}


def sgd_bytes(recipe):
    """Bytes of one update of every parameter of all towers."""
    return SGD_BYTES * sum(geometry.parameter_counts(recipe))


def report(recipe, batches, bandwidth=BANDWIDTH, tflops=TFLOPS):
    """Every figure as plain JSON types. Map operations and products are one tower's; steps and parameters are all towers'."""
    maps = [{"op": op.name, "shape": [op.maps, op.height, op.width], "pass": one, "dtype": dtype, "batch": batch,
             "bytes": op.bytes(one, batch, dtype), "flops": op.flops(one, batch), "saved_bytes": op.saved_bytes(batch, dtype),
             **({f"{way}_bytes": op.traffic(one, batch, dtype, way) for way in ("eager", "inductor")}
                if op.pool and op.norm != "spatial" else {}),
             "limit_us": 1e6 * seconds(op.bytes(one, batch, dtype), 0, dtype, bandwidth)}
            for op in map_ops(recipe) for dtype in ("fp32", "bf16") for batch in batches for one in ("fwd", "bwd")]
    layers = [{"layer": size.layer.name, "towers": towers, "parameters": size.parameters, "forward_mflop": forward,
               "training_mflop": passes * forward} for size, towers, forward, passes in products(recipe)]
    total = {key: sum(row["towers"] * row[key] for row in layers) for key in ("parameters", "forward_mflop", "training_mflop")}
    steps = [{"dtype": dtype, "batch": batch, "ms": times, "images_per_second": 1e3 * batch / times["step"]}
             for dtype in ("fp32", "bf16") for batch in batches for times in [step(recipe, batch, dtype, bandwidth, tflops)]]
    return {"recipe": recipe.name, "bandwidth_gb_per_s": bandwidth, "bf16_tflop_per_s": tflops, "layers": layers, "total": total,
            "maps": maps, "sgd_bytes": sgd_bytes(recipe), "steps": steps}


def _count(shape):
    channels, height, width = shape
    return channels * height * width


def _print(figures):
    print(f"recipe {figures['recipe']}, limits at {figures['bandwidth_gb_per_s']:g} GB/s and {figures['bf16_tflop_per_s']:g} "
          "TFLOP/s in bf16 (half in float32, as TF32)\n\nlayer (a tower)      parameters  MFLOP fwd    train")
    for row in figures["layers"]:
        print(f"{row['layer']:8} x {row['towers']} {row['parameters']:18,} {row['forward_mflop']:10.1f} "
              f"{row['training_mflop']:8.1f}")
    total = figures["total"]
    print(f"all towers {total['parameters']:20,} {total['forward_mflop']:10.1f} {total['training_mflop']:8.1f}\n")
    print("map operation (a tower)                     MB  limit us   MFLOP  saved MB  eager MB  inductor MB")
    for row in figures["maps"]:
        label = f"{row['op']} {'x'.join(map(str, row['shape']))} {row['pass']} {row['dtype']} b{row['batch']}"
        rivals = f"{row['eager_bytes'] / 1e6:9.1f} {row['inductor_bytes'] / 1e6:12.1f}" if "eager_bytes" in row else ""
        print(f"{label:36} {row['bytes'] / 1e6:9.1f} {row['limit_us']:9.1f} {row['flops'] / 1e6:7.0f} "
              f"{row['saved_bytes'] / 1e6:9.1f} {rivals}".rstrip())
    print(f"\nSGD, all towers: {figures['sgd_bytes'] / 1e9:.3f} GB\n\ntraining step on one device, ms")
    for row in figures["steps"]:
        times = ", ".join(f"{name} {value:.3f}" for name, value in row["ms"].items())
        print(f"{row['dtype']} b{row['batch']}: {times}; {row['images_per_second']:,.0f} images/s")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Bytes, FLOPs, saved bytes and time limits of every operation and of a step.")
    parser.add_argument("--recipe", choices=PRESETS, default="paper")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024], help="images (default: 128 1024)")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH,
                        help="GB/s, bytes read plus bytes written (default: %(default)g)")
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="TFLOP/s of a bf16 product (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    figures = report(PRESETS[options.recipe](), options.batch, options.bandwidth, options.tflops)
    print(json.dumps(figures, indent=1)) if options.json else _print(figures)


if __name__ == "__main__":
    main()
