"""The eager step in a process of its own, as PyTorch is out of the box: its allocator gives freed memory back.

python benchmarks/default_allocator.py BATCH      one step for every line that comes; it answers each with a line
"""

import sys

import torch
import torch.nn.functional as F
from baselines import EagerTowers

from alexnet_mp import paper


def main():
    batch = int(sys.argv[1])
    network = EagerTowers(paper()).to(memory_format=torch.channels_last)
    images = 60 * torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 1000
    print("ready", flush=True)
    for _ in sys.stdin:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        print("done", flush=True)


if __name__ == "__main__":
    main()
