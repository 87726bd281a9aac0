"""The least that every operation and a training step must move and compute, from the recipe alone.

Bytes: every input of an operation is read once, every output written once. A time limit is the larger of bytes /
bandwidth and FLOPs / peak. The default bandwidth and peak are said to be those of one H200, where a large copy moves
4.3 TB/s (read + written) and a bf16 product of 8192^3 runs at 790 TFLOP/s; this project has no record of them. Float32
products are taken as TF32 at half of that. `train --profile` measures both where it runs, and uses no default. `python
benchmarks/roofline.py` prints all of it."""

from dataclasses import dataclass
from typing import Literal

from ..network.layer import plan
from ..recipes import shapes
from ..recipes.recipe import Recipe

DType = Literal["fp32", "bf16", "fp16"]
Pass = Literal["fwd", "bwd", "fwdbwd"]
WIDTH = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a value
BANDWIDTH, TFLOPS = 4300.0, 790.0  # GB/s; TFLOP/s in bf16 and fp16
# a parameter: read w, v, g and write w, v in float32; bf16 gradients save 2, which a bf16 copy of w takes
SGD_BYTES = 20
ALONE = {("relu",), ("relu", "dropout")}  # runs in which a ReLU belongs to no map operation
INDEX = 8  # bytes of a maximum's position in torch.nn.functional.max_pool2d

# What plain PyTorch moves for bias, ReLU, (LRN,) pool, in multiples of the input; the pool's output and positions come
# on top. torch.compile at its best fuses what is elementwise, but a window over channels or positions ends a kernel.
TRAFFIC = {
    ("eager", "fwd", "lrn"): {
        "x + bias": 2,
        "relu": 2,
        "a * a": 2,
        "pad": 2,
        "avg_pool3d": 2,
        "* alpha": 2,
        "+ k": 2,
        "pow": 2,
        "a / d": 3,
        "max_pool2d": 1,
    },
    ("eager", "bwd", "lrn"): {
        "max_pool2d: zeros, gradient": 2,
        "g / d": 3,
        "gradient of d: a / d, / d, -, * g": 11,
        "pow: pow, *, * g": 7,
        "* alpha": 2,
        "avg_pool3d: zeros, gradient": 3,
        "pad: the inner part": 2,
        "a * a: twice * a": 6,
        "a's three gradients summed": 6,
        "relu": 3,
        "bias: sum": 1,
    },
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
    fused: tuple[str, ...]  # the recipe's operations that it computes
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
    def inputs(self) -> int:
        """Values that go in, for one image."""
        return self.maps * self.height * self.width

    @property
    def outputs(self) -> int:
        """Values that come out, for one image."""
        return self.maps * self.out_height * self.out_width

    @property
    def reads_x_again(self) -> bool:
        """Whether the backward pass needs x: a pool alone finds all it needs in the argmax, which says where nothing
        goes."""
        return self.norm != "none" or self.ties == "all"

    @property
    def argmax_bytes(self) -> int:
        """For one image: one byte an output where the first of tied maxima gets the gradient."""
        return self.outputs if self.pool and self.ties == "first" else 0

    def bytes(self, step: Pass, batch: float, dtype: DType) -> float:
        """Bytes of a pass in training: "fwd" x, bias -> y, argmax; "bwd" dy, argmax, x, bias -> dx, dbias; "fwdbwd"
        both."""
        if step == "fwdbwd":
            return self.bytes("fwd", batch, dtype) + self.bytes("bwd", batch, dtype)
        w = WIDTH[dtype]
        ends = (self.inputs + self.outputs) * w + self.argmax_bytes
        if step == "fwd":
            return batch * ends + self.maps * w
        return batch * (ends + (self.inputs * w if self.reads_x_again else 0)) + self.maps * (w + 4)

    def flops(self, step: Pass, batch: int) -> int:
        """Additions, products, comparisons and roots. n terms take n - 1 additions, n x n terms go by rows, then by
        columns."""
        if step == "fwdbwd":
            return self.flops("fwd", batch) + self.flops("bwd", batch)
        terms = {"lrn": self.size - 1, "spatial": 2 * (self.size - 1), "none": 0}[self.norm]
        d = 3 + terms if terms else 0  # a^2, its sum, times alpha, plus k
        bias = 0 if self.norm == "spatial" else 2  # the sum with the bias, ReLU
        if step == "fwd":  # d^-3/4 takes two roots and a product; times a
            comparisons = self.pool**2 - 1 if self.pool else 0
            return batch * (self.inputs * (bias + d + (4 if terms else 0)) + self.outputs * comparisons)
        # bias, ReLU, d again; d^-3/4, d^-7/4, g d^-3/4, g a d^-7/4 and its sum, times 2 alpha beta a, the difference;
        # ReLU, dbias
        norm_flops = bias + d + 3 + 1 + 1 + 2 + terms + 2 + 1 if terms else 0
        return batch * (self.inputs * (norm_flops + bias) + (self.outputs if self.pool else 0))

    def saved_bytes(self, batch: int, dtype: DType) -> int:
        """What must be kept from forward to backward: x where it is read again, the bias, the argmax."""
        w = WIDTH[dtype]
        return batch * ((self.inputs * w if self.reads_x_again else 0) + self.argmax_bytes) + self.maps * w

    def traffic(self, step: Pass, batch: int, dtype: DType, way: Literal["eager", "inductor"]) -> int:
        """Bytes that plain PyTorch (way="eager") or torch.compile at its best ("inductor") moves for bias, ReLU, (LRN,)
        pool."""
        if step == "fwdbwd":
            return self.traffic("fwd", batch, dtype, way) + self.traffic("bwd", batch, dtype, way)
        if not self.pool or self.norm == "spatial":
            raise ValueError(f"the traffic of {' -> '.join(self.fused)} was not counted")
        table = TRAFFIC[way, step, self.norm]
        index = INDEX if way == "eager" else 1  # torch.compile keeps one byte for a position in a small window
        return batch * (self.inputs * WIDTH[dtype] * sum(table.values()) + self.outputs * (WIDTH[dtype] + index))


def map_ops(recipe: Recipe) -> list[MapOp]:
    """The recipe's fused operations, one tower's, in order: lrnpool1, lrnpool2 and maxpool5 in the paper's network."""
    return [op for number, size in enumerate(shapes.sizes(recipe), 1) for op in _map_ops_of(recipe, number, size)]


def _map_ops_of(recipe, number, size):
    """Those of the layer of this number, the first being 1."""
    ops, (maps, *sides) = [], size.computed
    for fused in plan(size.layer.then):
        out_sides = size.output[1:] if "max_pool" in fused or "avg_pool" in fused else sides
        if "lrn" in fused or "max_pool" in fused:
            prefix = "lrn" if "lrn" in fused else "spatial" if "spatial_norm" in fused else "max"
            kind = prefix + ("pool" if "max_pool" in fused else "")
            norm, window = (
                ("lrn", recipe.lrn_size)
                if "lrn" in fused
                else ("spatial", recipe.spatial_size)
                if "spatial_norm" in fused
                else ("none", 0)
            )
            ops.append(
                MapOp(
                    f"{kind}{number}",
                    fused,
                    maps,
                    *sides,
                    *out_sides,
                    norm,
                    window,
                    recipe.pool_size if "max_pool" in fused else 0,
                    recipe.pool_ties,
                )
            )
        sides = out_sides
    return ops


def products(recipe: Recipe, classes: int = 1000) -> list[tuple[shapes.Size, int, float, int]]:
    """[(size, towers that have the layer, MFLOP of one image forward on one tower, passes)] of the convolutions and
    products.

    A product of a x b and b x c counts 2 abc. Training takes three such passes, forward, gradient of the weights and of
    the input, and the first layer two."""
    rows = []
    for index, size in enumerate(shapes.sizes(recipe, classes)):
        rows.append(
            (size, recipe.towers if size.layer.towers == "each" else 1, 2e-6 * size.products, 2 if index == 0 else 3)
        )
    return rows


def seconds(bytes_: float, flops: float, dtype: DType, bandwidth: float = BANDWIDTH, tflops: float = TFLOPS) -> float:
    """The limit: the larger of the two times. bandwidth in GB/s; tflops: TFLOP/s of a bf16 product, float32 taken as
    half."""
    return _limit(bytes_, flops, bandwidth, _peak(tflops, dtype))


def _limit(bytes_, flops, bandwidth, tflops):
    return max(bytes_ / (bandwidth * 1e9), flops / (tflops * 1e12))


def _peak(tflops, dtype):
    return tflops * (0.5 if dtype == "fp32" else 1)


def layer_limits(
    recipe: Recipe, batch: float, dtype: DType, bandwidth: float, tflops: float, classes: int = 1000
) -> dict[str, dict[str, tuple[float, float]]]:
    """{"conv1": {"product": (forward, backward), "relu": ..., "maps": ...}, ...}: seconds that a layer needs at least
    on one tower.

    "relu" is one that is computed by itself, "maps" are `map_ops`. bandwidth: GB/s; tflops: TFLOP/s of a product in
    this dtype. Dropout, tanh, average pools and a norm of positions without a pool are not counted."""
    w, limits = WIDTH[dtype], {}
    for number, (size, _, forward, passes) in enumerate(products(recipe, classes), 1):
        values = batch * (_count(size.reads) + _count(size.computed)) + size.parameters
        bound = _limit(values * w, forward * 1e6 * batch, bandwidth, tflops)
        # Forward, ReLU rides on the product; backward it reads dy and y and writes dx.
        relu = (
            _limit(3 * batch * _count(size.computed) * w, 0, bandwidth, tflops)
            if ALONE & set(plan(size.layer.then))
            else 0.0
        )
        maps = tuple(
            sum(_limit(op.bytes(way, batch, dtype), 0, bandwidth, tflops) for op in _map_ops_of(recipe, number, size))
            for way in ("fwd", "bwd")
        )
        limits[size.layer.name] = {"product": (bound, (passes - 1) * bound), "relu": (0.0, relu), "maps": maps}
    return limits


def step(
    recipe: Recipe, batch: int, dtype: DType, bandwidth: float = BANDWIDTH, tflops: float = TFLOPS
) -> dict[str, float]:
    """Milliseconds that one training step needs at least with all towers on one device, by part."""
    parts = {"conv": 0.0, "fc": 0.0, "maps": 0.0, "relu backward": 0.0, "sgd": 0.0}
    limits = layer_limits(recipe, batch, dtype, bandwidth, _peak(tflops, dtype))
    for size, towers, _, _ in products(recipe):
        layer = limits[size.layer.name]
        parts["fc" if size.layer.kind == "fc" else "conv"] += towers * sum(layer["product"])
        parts["relu backward"] += towers * sum(layer["relu"])
        parts["maps"] += towers * sum(layer["maps"])
    parts["sgd"] = seconds(sgd_bytes(recipe), 0, dtype, bandwidth)
    return {name: 1e3 * value for name, value in parts.items()} | {"step": 1e3 * sum(parts.values())}


def sgd_bytes(recipe: Recipe) -> int:
    """Bytes of one update of every parameter of all towers."""
    return SGD_BYTES * sum(shapes.parameter_counts(recipe))


def _count(shape):
    channels, height, width = shape
    return channels * height * width
