"""Probes of what is called: every operation, and the networks."""

import dataclasses
import inspect

import torch

from alexnet_mp import TwoTowerAlexNet, kernels, mini, paper, source2012

from .digests import digest

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")  # more than five, or no top-5 error is above 0
STORED, CROP = 88, 79  # pixels
WIDTHS = {"conv1": 6, "conv2": 10, "conv3": 12, "conv4": 8, "conv5": 6, "fc6": 24, "fc7": 20}


def operations():
    """Every public operation, forward and backward, with the compiled and the reference kernels."""
    digests = {}
    for way in ("cpu", "reference"):
        for dtype in (torch.float32, torch.bfloat16):
            values = _augmentation(way, dtype) | _linear(way, dtype) | _update(way, dtype)
            for order in (torch.contiguous_format, torch.channels_last):
                for name, (function, shape, bias, options) in _maps().items():
                    values |= {
                        f"{name}, {str(order)[6:]}, {part}": value
                        for part, value in _gradients(function, shape, bias, options, way, dtype, order).items()
                    }
            digests |= {f"{way}, {str(dtype)[6:]}: {name}": digest(value) for name, value in values.items()}
    return digests


def _gradients(function, shape, bias, options, way, dtype, order):
    random = torch.Generator().manual_seed(7)
    x = (20 * torch.randn(shape, generator=random)).round().div(4).to(dtype)  # with ties
    leaves = [x.contiguous(memory_format=order) if len(shape) == 4 else x]
    leaves += [torch.randn(shape[1], generator=random).to(dtype)] if bias else []
    if "kernels" in inspect.signature(function).parameters:
        options = options | {"kernels": way}
    y = function(*(leaf.requires_grad_() for leaf in leaves), **options)
    y.backward(torch.randn(y.shape, generator=random).to(dtype))
    return {"y": y, **dict(zip(("dx", "dbias"), (leaf.grad for leaf in leaves)))}


def _maps():
    """{name: (operation, shape of x, whether it has a bias, options)}."""
    maps, cells = (3, 7, 13, 11), {"probability": 0.4, "seed": 3, "step": 5, "layer": 2, "tower": 1}
    norm, all_ties = {"alpha": 0.02}, {"ties": "all"}
    return {
        "lrn": (kernels.lrn, maps, True, norm),
        "lrn, even size": (kernels.lrn, maps, False, norm | {"size": 4, "beta": 0.6, "k": 1.5, "relu": "none"}),
        "lrn_max_pool": (kernels.lrn_max_pool, maps, True, norm),
        "lrn_max_pool, all ties": (kernels.lrn_max_pool, maps, True, norm | all_ties | {"relu": "after"}),
        "max_pool": (kernels.max_pool, maps, True, {}),
        "max_pool, all ties": (kernels.max_pool, maps, False, all_ties | {"relu": False, "pool": 2}),
        "avg_pool": (kernels.avg_pool, maps, False, {}),
        "spatial_norm": (kernels.spatial_norm, maps, False, norm),
        "spatial_norm_max_pool": (kernels.spatial_norm_max_pool, maps, False, norm | {"size": 3}),
        "spatial_norm_max_pool, all ties": (kernels.spatial_norm_max_pool, maps, False, norm | all_ties),
        "dropout": (kernels.dropout, maps, False, cells),
        "relu_dropout": (kernels.relu_dropout, (5, 33), False, cells),
        "relu_dropout of maps": (kernels.relu_dropout, maps, True, cells),
        "relu_dropout of nothing": (kernels.relu_dropout, maps, True, {}),
    }


def _augmentation(way, dtype):
    random = torch.Generator().manual_seed(8)
    pictures = torch.randint(0, 256, (5, 19, 19, 3), generator=random, dtype=torch.uint8)
    top, left = (torch.randint(0, 9, (5,), generator=random) for _ in range(2))
    flip, mean = torch.tensor([True, False, True, False, True]), 255 * torch.rand((19, 19, 3), generator=random)
    shift = torch.randn((5, 3), generator=random)
    return {
        f"augment, mean_follows_crop={follows}": kernels.augment(
            pictures, top, left, flip, mean, shift, 0.9, crop=11, mean_follows_crop=follows, dtype=dtype, kernels=way
        )
        for follows in (True, False)
    }


def _linear(way, dtype):
    tensors = {}
    for rows, inputs, units in ((5, 33, 17), (5, 1031, 1033)):  # the second is large enough for oneDNN's product
        random = torch.Generator().manual_seed(9)
        leaves = [
            torch.randn(shape, generator=random).to(dtype).requires_grad_()
            for shape in ((rows, inputs), (units, inputs), (units,))
        ]
        y = kernels.linear(*leaves, kernels=way)
        y.backward(torch.randn(y.shape, generator=random).to(dtype))
        values = zip(("y", "dx", "dweight", "dbias"), (y, *(leaf.grad for leaf in leaves)))
        tensors |= {f"linear of {inputs}, {part}": value for part, value in values}
    return tensors


def _update(way, dtype):
    random, shapes = torch.Generator().manual_seed(10), ((7, 5, 3, 3), (33,), (11, 13))
    w, g, v = ([torch.randn(shape, generator=random).to(dtype) for shape in shapes] for _ in range(3))
    copies, sums = [torch.zeros_like(tensor, dtype=torch.bfloat16) for tensor in w], torch.zeros(3)
    kernels.paper_sgd_(
        w,
        g,
        v,
        learning_rates=[0.01, 0.02, 0.0],
        momentum=0.9,
        weight_decays=[5e-4, 0.0, 1e-3],
        copies=copies,
        sums=sums,
        kernels=way,
    )
    groups = {"w": w, "v": v, "copy": copies, "sums": [sums]}
    return {
        f"paper_sgd_, {name} {number}": tensor for name, group in groups.items() for number, tensor in enumerate(group)
    }


def network():
    """The two towers called directly: initial weights, logits in training and in a test, every gradient."""
    digests = {}
    for preset in (paper, source2012, mini):
        recipe = preset()
        layers = tuple(dataclasses.replace(layer, maps=WIDTHS.get(layer.name), init_std=0.1) for layer in recipe.layers)
        recipe = dataclasses.replace(
            recipe, layers=layers, stored_size=STORED, crop_size=CROP, crop_positions=8, seed=4
        )
        for dtype in (torch.float32, torch.bfloat16):
            net = TwoTowerAlexNet(recipe, ("cpu", "cpu"), len(CLASSES), "cpu").to(dtype)
            images = 60 * torch.randn((5, 3, CROP, CROP), generator=torch.Generator().manual_seed(11))
            logits = net.train()(images.to(dtype), images.to(dtype))
            logits.square().sum().backward()
            values = {"trained": logits, "tested": net.eval()(images.to(dtype), images.to(dtype))}
            values |= {f"gradient of {name}": parameter.grad for name, parameter in net.named_parameters()}
            values |= {f"initial {name}": parameter for name, parameter in net.named_parameters()}
            digests |= {f"{recipe.name}, {str(dtype)[6:]}: {name}": digest(value) for name, value in values.items()}
    return digests
