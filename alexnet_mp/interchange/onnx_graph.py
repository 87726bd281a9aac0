"""A network as an ONNX graph of opset 20, from pictures to logits, and what ONNX Runtime makes of it."""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..recipes.recipe import Recipe
from ..system.errors import UserError
from .plain_steps import Step

OPSET, IR_VERSION = 20, 9
PRODUCER = "alexnet_mp"
MOST_BYTES = (1 << 31) - (1 << 20)  # of a protobuf message, and some for what is no tensor
EXTRA = "pip install 'alexnet_mp[export]'"


def need_packages() -> None:
    """Raise UserError, with what to install, where `onnx` or `onnxruntime` are not there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to onnx needs the packages onnx and onnxruntime ({error}); {EXTRA}") from None


def graph(
    recipe: Recipe, steps: Sequence[Step], classes: int, mean: np.ndarray, version: str, metadata: Mapping[str, object]
) -> bytes:
    """The bytes of an .onnx file: pictures (N, stored, stored, 3) uint8 RGB -> logits (N, classes) float32, any N.

    mean: (stored, stored, 3), grey levels. version: of this package. metadata: of the file, as JSON.
    Raises UserError for what ONNX can't hold: an even lrn_size, and 2 GB."""
    import onnx
    from onnx import TensorProto, helper

    builder = _Graph()
    top, crop = (recipe.stored_size - recipe.crop_size) // 2, recipe.crop_size
    window = {"top_left": [top, top], "bottom_right": [top + crop, top + crop], "rows_columns": [1, 2]}
    window = [builder.constant(name, np.array(value, np.int64)) for name, value in window.items()]
    x = builder.add("Slice", ["pictures", *window], "crop")
    x = builder.add("Cast", [x], "grey_levels", to=TensorProto.FLOAT)
    centre = mean[top : top + crop, top : top + crop].astype(np.float32)
    x = builder.add("Sub", [x, builder.constant("mean", centre)], "minus_mean")
    x, shape = builder.add("Transpose", [x], "image", perm=[0, 3, 1, 2]), (3, crop, crop)
    value_infos = []  # which viewers write at the edges
    for number, step in enumerate(steps, start=1):
        value_infos.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", *shape]))
        x = _add(builder, step, x, shape, f"{step.layer}_{number}_{step.kind}")
        shape = step.shape
    builder.nodes[-1].output[0] = "logits"
    size = sum(math.prod(tensor.dims) * 4 for tensor in builder.constants)
    if size > MOST_BYTES:
        raise UserError(f"its tensors are of {size:,} bytes, and an ONNX file holds {MOST_BYTES:,} at most")
    model = helper.make_model(
        helper.make_graph(
            builder.nodes,
            recipe.name,
            [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", *[recipe.stored_size] * 2, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
            builder.constants,
            value_info=value_infos,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
        producer_version=version,
    )
    helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """Nodes and constants of a graph as they come."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name, array):
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind, inputs, name, **attributes):
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name


def _add(builder, step, x, shape, name):
    """Add a step that reads x; the name of what it gives."""
    settings = step.settings
    match step.kind:
        case "conv":
            return builder.add(
                "Conv", [x, *_parameters(builder, step)], name, group=settings["groups"], **_windows(settings, "kernel")
            )
        case "local":
            return _local(builder, step, x, shape, name)
        case "linear":
            x = builder.add("Flatten", [x], f"{name}_flat") if len(shape) == 3 else x
            return builder.add("Gemm", [x, *_parameters(builder, step)], name, transB=1)
        case "lrn":
            return _lrn(builder, step, x, name)
        case "spatial_norm":
            return _spatial_norm(builder, step, x, name)
        case "max_pool":
            return builder.add("MaxPool", [x], name, **_windows(settings, "window"))
        case "avg_pool":  # an overhanging window is divided by the area inside
            return builder.add("AveragePool", [x], name, count_include_pad=0, **_windows(settings, "window"))
        case "scale":
            return builder.add("Mul", [x, builder.constant(f"{name}_factor", np.float32(settings["factor"]))], name)
    return builder.add({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}[step.kind], [x], name)


def _parameters(builder, step):
    return [builder.constant(f"{step.layer}.{what}", getattr(step, what)) for what in ("weight", "bias")]


def _windows(settings, size):
    pad, end = settings.get("pad", 0), settings.get("pad", 0) + settings["more"]
    return dict(kernel_shape=[settings[size]] * 2, strides=[settings["stride"]] * 2, pads=[pad, pad, end, end])


def _lrn(builder, step, x, name):
    """ONNX's alpha is size times ours; its window of an even size lies otherwise, and ONNX Runtime takes none."""
    size, parts, (maps, height, width) = step.settings["size"], step.settings["parts"], step.shape
    if size % 2 == 0:
        raise UserError(f"recipe field lrn_size is {size}: ONNX normalises over an odd number of maps")
    alpha, beta, k = (float(step.settings[field]) for field in ("alpha", "beta", "k"))
    if parts > 1:  # each tower as a picture of its own: no window reaches across the border
        tower_shape = builder.constant(f"{name}_apart", np.array([-1, maps // parts, height, width], np.int64))
        full_shape = builder.constant(f"{name}_together", np.array([-1, maps, height, width], np.int64))
        x = builder.add("Reshape", [x, tower_shape], f"{name}_towers")
    lrn_name = f"{name}_of_tower" if parts > 1 else name
    x = builder.add("LRN", [x], lrn_name, alpha=alpha * size, beta=beta, bias=k, size=size)
    return builder.add("Reshape", [x, full_shape], name) if parts > 1 else x


def _spatial_norm(builder, step, x, name):
    size, alpha, beta, k = (step.settings[field] for field in ("size", "alpha", "beta", "k"))
    before, after = size // 2, size - 1 - size // 2
    squares = builder.add("Mul", [x, x], f"{name}_squares")
    means = builder.add(
        "AveragePool",
        [squares],
        f"{name}_means",
        kernel_shape=[size] * 2,
        strides=[1, 1],
        pads=[before, before, after, after],
        count_include_pad=1,
    )
    term = builder.add(
        "Mul", [means, builder.constant(f"{name}_alpha", np.float32(alpha * size * size))], f"{name}_scaled"
    )
    base = builder.add("Add", [term, builder.constant(f"{name}_k", np.float32(k))], f"{name}_added")
    power = builder.add("Pow", [base, builder.constant(f"{name}_beta", np.float32(beta))], f"{name}_power")
    return builder.add("Div", [x, power], name)


def _local(builder, step, x, shape, name):
    """Kernels of each position: a convolution that gathers the windows, and a product for each position."""
    channels, kernel, maps = shape[0], step.settings["kernel"], step.shape[0]
    inputs = channels * kernel * kernel
    gather = builder.constant(
        f"{name}_gather", np.eye(inputs, dtype=np.float32).reshape(inputs, channels, kernel, kernel)
    )
    windows = builder.add("Conv", [x, gather], f"{name}_windows", **_windows(step.settings, "kernel"))
    windows = builder.add("Transpose", [windows], f"{name}_positions", perm=[2, 3, 0, 1])  # (H, W, N, inputs)
    kernels = step.weight.reshape(maps, *step.shape[1:], inputs).transpose(1, 2, 3, 0)
    y = builder.add("MatMul", [windows, builder.constant(f"{step.layer}.weight", kernels)], f"{name}_products")
    y = builder.add("Transpose", [y], f"{name}_maps", perm=[2, 3, 0, 1])
    return builder.add("Add", [y, builder.constant(f"{step.layer}.bias", step.bias)], name)


def answers(content: bytes, pictures: torch.Tensor) -> torch.Tensor:
    """The logits (N, classes) that ONNX Runtime gives of a file's bytes, on the CPU, of pictures (N, stored, stored, 3)
    uint8. Raises UserError where it can't take the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"pictures": pictures.numpy()})
    except Exception as error:  # its exceptions have no base class of their own
        raise UserError(f"ONNX Runtime can't take it: {' '.join(str(error).split()):.300}") from None
    return torch.from_numpy(logits)
