"""The baselines: a step's networks as a good engineer would write them in plain PyTorch; which of them can run here."""

import os
import shutil

import torch
import torch.nn.functional as F
from alexnet_mp.kernels import dispatch
from torch import nn


def absence(variant, device):
    """Why a variant can't be here, or None: "ours-NAME" needs the kernels of that name, "compile" a compiler."""
    compiler = os.environ.get("CXX", "c++")
    if variant == "compile" and device.type == "cpu" and shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler}"
    if variant.startswith("ours-"):
        try:
            dispatch.resolve(variant.removeprefix("ours-"), device)
        except ValueError as error:
            return str(error)
    return None


class EagerTowers(nn.Module):
    """The paper's two towers on one device: nn.Conv2d, in-place ReLU, F.local_response_norm, F.max_pool2d, F.dropout.

    forward(images): (N, 3, 224, 224) -> logits (N, classes). `take(network)` copies a `TwoTowerAlexNet`'s weights.
    """

    def __init__(self, recipe, classes=1000):
        super().__init__()
        self.recipe = recipe
        self.towers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv1": nn.Conv2d(3, 48, 11, 4),
                    "conv2": nn.Conv2d(48, 128, 5, padding=2),
                    "conv3": nn.Conv2d(256, 192, 3, padding=1),
                    "conv4": nn.Conv2d(192, 192, 3, padding=1),
                    "conv5": nn.Conv2d(192, 128, 3, padding=1),
                    "fc6": nn.Linear(9216, 2048),
                    "fc7": nn.Linear(4096, 2048),
                }
            )
            for _ in "ab"
        )
        self.fc8 = nn.Linear(4096, classes)

    def take(self, network):
        for name, parts in network.layer_parameters().items():
            layer, what = name.split(".")
            owners = [self.fc8] if layer == "fc8" else [tower[layer] for tower in self.towers]
            with torch.no_grad():
                for owner, part in zip(owners, parts, strict=True):
                    getattr(owner, what).copy_(part)
        return self

    def forward(self, images):
        images = F.pad(images, (0, 3, 0, 3))  # 224 -> 55, as in 2012
        a, b = (
            self._norm_and_pool(tower["conv2"](self._norm_and_pool(tower["conv1"](images)))) for tower in self.towers
        )
        features, halves = torch.cat((a, b), 1), []
        for tower in self.towers:
            x = F.relu(tower["conv3"](features), inplace=True)
            x = F.relu(tower["conv4"](x), inplace=True)
            halves.append(F.max_pool2d(F.relu(tower["conv5"](x), inplace=True), 3, 2).flatten(1))
        for layer in ("fc6", "fc7"):
            features = torch.cat(halves, 1)
            halves = [
                F.dropout(F.relu(tower[layer](features), inplace=True), self.recipe.dropout, self.training)
                for tower in self.towers
            ]
        return self.fc8(torch.cat(halves, 1))

    def _norm_and_pool(self, x):
        r = self.recipe
        x = F.local_response_norm(F.relu(x, inplace=True), r.lrn_size, r.lrn_size * r.lrn_alpha, r.lrn_beta, r.lrn_k)
        return F.max_pool2d(x, r.pool_size, r.pool_stride)


def without_norms_and_towers(classes=1000):
    """What most people call AlexNet today, as in torchvision: the network of arXiv:1404.5997, another one than the
    paper's."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(9216, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, classes),
    )
