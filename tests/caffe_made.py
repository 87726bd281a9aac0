"""Caffe's networks made by hand: bytes of its messages, without protobuf, and the network in plain torch functions."""

import struct

import numpy as np
import torch
import torch.nn.functional as F

# A network of Caffe's graph with few maps: 8 and 12 in conv1 and conv2, so that a window of 5 crosses the border.
SMALL = (
    "stored_size=104",
    "crop_size=99",
    "crop_positions=6",
    *(f"{name}.maps={maps}" for name, maps in zip(("conv1", "conv2", "conv3", "conv4", "conv5"), (4, 6, 8, 8, 6))),
    "fc6.maps=16",
    "fc7.maps=16",
)
SHAPES = {
    "conv1": (8, 3, 11, 11),
    "conv2": (12, 4, 5, 5),
    "conv3": (16, 12, 3, 3),
    "conv4": (16, 8, 3, 3),
    "conv5": (12, 8, 3, 3),
    "fc6": (32, 12 * 2 * 2),
    "fc7": (32, 32),
}
GROUPS = {"conv2": 2, "conv4": 2, "conv5": 2}


def made_blobs(classes=10, shapes=SHAPES, seed=0):
    """{layer: (weights, biases)} float32 of Caffe's shapes; sums of some hundred, so that normalisation bites."""
    random = np.random.default_rng(seed)
    shapes = {**shapes, "fc8": (classes, shapes["fc7"][0])}
    blobs = {}
    for name, shape in shapes.items():
        scale = 0.3 if name == "conv1" else np.sqrt(2 / np.prod(shape[1:]))
        weights = random.standard_normal(shape, np.float32) * np.float32(scale)
        blobs[name] = weights, random.standard_normal(shape[:1], np.float32) * np.float32(0.1)
    return blobs


# --- the bytes


def varint(value):
    """An int64, negative ones among them."""
    value, content = value % 2**64, b""
    while value > 127:
        content, value = content + bytes([value & 127 | 128]), value >> 7
    return content + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def inner(field, content):
    """A message, a text, or packed numbers."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def old_blob(array):
    """num, channels, height, width, data, diff."""
    sides = (1,) * (4 - array.ndim) + array.shape
    return (
        b"".join(number(field, side) for field, side in enumerate(sides, start=1))
        + inner(5, array.astype("<f4").tobytes())
        + inner(6, b"")
    )


def new_blob(array):
    return inner(7, inner(1, b"".join(map(varint, array.shape)))) + inner(5, array.astype("<f4").tobytes())


def layers_of(pools_first):
    """The names of the layers, in the order of Caffe's files."""
    names = ["data"]
    for stage in "12":
        names += [f"conv{stage}", f"relu{stage}"]
        names += [f"pool{stage}", f"norm{stage}"] if pools_first else [f"norm{stage}", f"pool{stage}"]
    names += ["conv3", "relu3", "conv4", "relu4", "conv5", "relu5", "pool5"]
    return [*names, "fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8", "loss"]


def caffemodel(blobs, pools_first=False, old=False, name=None):
    """The bytes of a .caffemodel. Fields that nobody reads are among them: a layer's type, its rates, its phase."""
    content = inner(1, (name or ("CaffeNet" if pools_first else "AlexNet")).encode())
    for layer in layers_of(pools_first):
        if old:
            body = inner(2, b"below") + inner(3, b"above") + inner(4, layer.encode()) + number(5, 4)
            body += b"".join(inner(6, old_blob(each)) for each in blobs.get(layer, ()))
            body += varint(7 << 3 | 5) + struct.pack("<f", 1.0) + varint(8 << 3 | 5) + struct.pack("<f", 2.0)
            content += inner(2, body)
        else:
            body = inner(1, layer.encode()) + inner(2, b"Convolution") + inner(3, b"below") + number(10, 0)
            body += b"".join(inner(7, new_blob(each)) for each in blobs.get(layer, ()))
            content += inner(100, body)
    return content


def binaryproto(mean):
    """Of a mean image (height, width, 3), RGB."""
    return old_blob(np.ascontiguousarray(mean.transpose(2, 0, 1)[::-1])[None])


# --- the network


def caffe_logits(blobs, images, pools_first, dtype):
    """Logits (N, classes) that Caffe's layers give in a test, of (N, 3, crop, crop) BGR images without their mean."""

    def of(name):
        return [torch.from_numpy(array).to(dtype) for array in blobs[name]]

    def normalised(x):
        return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def pooled(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    x = images.to(dtype)
    for name, stride, pad in (("conv1", 4, 0), ("conv2", 1, 2), ("conv3", 1, 1), ("conv4", 1, 1), ("conv5", 1, 1)):
        x = F.relu(F.conv2d(x, *of(name), stride=stride, padding=pad, groups=GROUPS.get(name, 1)))
        if name in ("conv1", "conv2"):
            x = normalised(pooled(x)) if pools_first else pooled(normalised(x))
    x = pooled(x).flatten(1)
    for name in ("fc6", "fc7"):
        # inverted dropout: nothing in a test
        x = F.dropout(F.relu(F.linear(x, *of(name))), 0.5, training=False)
    return F.linear(x, *of("fc8"))
