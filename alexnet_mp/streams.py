"""CUDA streams that are not used by two at once.

torch has 32 streams a device and gives them out in turn: the 33rd that a process asks for is the first again (pytorch,
`c10/cuda/CUDAStream.h`). A process may train time and again (`claims`), and each training captures on streams of its
own. Were one of them the stream of a thread that makes batches, a capture would take in what that thread launches.
"""
import torch

_kept = set()


def kept_stream(device):
    """A stream for as long as the process lives."""
    stream = fresh_stream(device)
    _kept.add(stream)
    return stream


def fresh_stream(device):
    """A stream for a while: none of those that are kept, and not soon given out again."""
    while (stream := torch.cuda.Stream(device)) in _kept:
        pass
    return stream
