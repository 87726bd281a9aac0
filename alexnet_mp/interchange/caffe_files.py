"""What Caffe writes: a network's weights (.caffemodel) and a mean image (.binaryproto), read by the protobuf library.

The messages are described here as far as they are needed (`src/caffe/proto/caffe.proto`). Messages and packed numbers
in a message are described as the bytes that they are on the wire, and opened one by one. The fields of a message are
counted first, since the library would take 16 bytes for an empty one of two: so what a file makes it allocate is a
small multiple of the file's size, whatever it holds. Nothing in a file names code. Of what is wrong a function
here raises ValueError, without the file's name; `protobuf` raises `DecodeError`, which is none (`DAMAGE`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from ..runs.safetensors_file import finite
from ..system.errors import need
from ..system.terminal import printable

DAMAGE = (ValueError, DecodeError)
MOST_BYTES = 1 << 30  # of a file: both of Caffe's networks are of 0.24 GB
MOST_LAYERS, MOST_BLOBS, MOST_PIECES = 1000, 8, 64  # in a network, in a layer, of a blob's numbers
MOST_FIELDS = 10_000  # in a message
MOST_SHAPE, MOST_NAME = 256, 1000  # bytes
_BYTES, _INT = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES, descriptor_pb2.FieldDescriptorProto.TYPE_INT64
_ONE, _MANY = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL, descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
# message: {field: (number, type, label)}
_MESSAGES = {
    "Net": {"name": (1, _BYTES, _ONE), "old": (2, _BYTES, _MANY), "layer": (100, _BYTES, _MANY)},
    "OldLayer": {"name": (4, _BYTES, _ONE), "blobs": (6, _BYTES, _MANY)},
    "Layer": {"name": (1, _BYTES, _ONE), "blobs": (7, _BYTES, _MANY)},
    "Blob": {
        "num": (1, _INT, _ONE),
        "channels": (2, _INT, _ONE),
        "height": (3, _INT, _ONE),
        "width": (4, _INT, _ONE),
        "data": (5, _BYTES, _MANY),  # packed float
        "shape": (7, _BYTES, _ONE),
        "double_data": (8, _BYTES, _MANY),  # packed double
    },
    "Shape": {"dim": (1, _INT, _MANY)},
}


def _message_classes():
    """{name: message class}"""
    package = "alexnet_mp.caffe"
    file = descriptor_pb2.FileDescriptorProto(name="alexnet_mp/caffe.proto", package=package, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, label) in fields.items():
            message.field.add(name=field, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in _MESSAGES
    }


_CLASSES = _message_classes()


@dataclass(frozen=True)
class Net:
    """Of a .caffemodel."""

    name: str
    layers: tuple[str, ...]  # the names of all, in the order of the file
    blobs: Mapping[str, tuple[np.ndarray, ...]]  # of the layers that have any: float32 or float64


def read_net(content: bytes) -> Net:
    """The `Net` of a .caffemodel's bytes, in the layers' format of 2014 (field 100) or the one before (field 2)."""
    net = _message("Net", content)
    need(not (len(net.layer) and len(net.old)), "it has layers in two formats, of which one is meant")
    layers, kind = (net.layer, "Layer") if len(net.layer) else (net.old, "OldLayer")
    need(len(layers), "it is no network of Caffe: it has no layers")
    need(len(layers) <= MOST_LAYERS, f"it has {len(layers):,} layers, {MOST_LAYERS:,} at most are read")
    names, blobs = [], {}
    for number, layer_bytes in enumerate(layers):
        layer = _message(kind, layer_bytes)
        name = _text(layer.name, f"layer {number + 1}")
        names.append(name)
        if not len(layer.blobs):
            continue
        need(name not in blobs, f"two layers with weights are named {name}")
        need(len(layer.blobs) <= MOST_BLOBS, f"{name} has {len(layer.blobs):,} blobs")
        blobs[name] = tuple(_blob(blob, name) for blob in layer.blobs)
    return Net(_text(net.name, "the network"), tuple(names), blobs)


def read_mean(content: bytes) -> np.ndarray:
    """The mean image of a .binaryproto's bytes: (height, width, 3) float64, RGB. Caffe has it as (1, 3, height, width),
    BGR."""
    blob = _blob(content, "the mean image")
    need(blob.ndim == 4 and blob.shape[:2] == (1, 3), f"it is {blob.shape}, and a mean image (1, 3, height, width)")
    need(finite(blob), "it has values that are not finite")
    return np.ascontiguousarray(blob[0, ::-1].transpose(1, 2, 0)).astype(np.float64)


def _blob(content, whose):
    """The array of a blob, of the shape that it has in the file."""
    blob = _message("Blob", content)
    if blob.HasField("shape"):
        need(len(blob.shape) <= MOST_SHAPE, f"the shape of {whose} takes {len(blob.shape):,} bytes")
        shape = tuple(_message("Shape", blob.shape).dim)
    else:
        shape = (blob.num, blob.channels, blob.height, blob.width)
    need(len(shape) <= 8 and all(side >= 0 for side in shape), f"the shape of {whose} is {str(shape):.100}")
    pieces, dtype = (blob.data, "<f4") if len(blob.data) else (blob.double_data, "<f8")
    need(len(pieces), f"{whose} has a blob without data")
    need(len(pieces) <= MOST_PIECES, f"the data of {whose} are in {len(pieces):,} pieces")
    data = b"".join(pieces)
    need(
        len(data) == math.prod(shape) * int(dtype[2]),
        f"{whose} has {len(data):,} bytes of data, which its shape {str(shape):.100} doesn't fit",
    )
    return np.frombuffer(data, dtype).reshape(shape)


def _message(kind, content):
    """The message in these bytes, its fields counted before."""
    place, fields = 0, 0
    while place < len(content):
        need(fields < MOST_FIELDS, f"a message has more than {MOST_FIELDS:,} fields")
        tag, place = _varint(content, place)
        if tag & 7 == 0:
            _, place = _varint(content, place)
        elif tag & 7 == 2:
            length, place = _varint(content, place)
            place += length
        else:
            need(tag & 7 in (1, 5), "a message has a field of a kind that Caffe doesn't write")
            place += 8 if tag & 7 == 1 else 4
        fields += 1
    need(place == len(content), "a message ends early")
    return _CLASSES[kind].FromString(content)


def _varint(content, place):
    """(number, where it ends)"""
    value = shift = 0
    while True:
        need(place < len(content) and shift < 70, "a message ends early")
        byte, place = content[place], place + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


def _text(name, what):
    need(len(name) <= MOST_NAME, f"the name of {what} takes {len(name):,} bytes")
    return printable(name.decode(errors="backslashreplace"))
