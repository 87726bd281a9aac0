"""From JPEG files or stored pictures to batches on each tower's device, by NVIDIA DALI: decode, crop, flip, relight,
minus mean.

DALI draws nothing itself: it is fed with the draws of `augmentation.py`, and on a CPU it computes what
`pipeline_torch.py` computes, to the last bit. Each distinct device has a DALI pipeline of its own that is fed from the
host. On a GPU the JPEG decoder may differ by some grey levels, and everything after it runs there too; a thread feeds
DALI and takes what it has made, as in `batches_ahead.py`. Importing this module does not import DALI."""

import importlib.util
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from ..parallel.pieces import WHOLE
from ..recipes.recipe import Recipe
from ..system.errors import UserError
from .augmentation import colour_shift, of_view
from .batches import Batch, EpochKeys, StoredPictures, in_order, with_draws
from .batches_ahead import ahead
from .dali_on_device import DaliOnDevice, Lent, close_all, current, last_line, refuses
from .dataset import DataSet
from .pixel_statistics import Statistics
from .workers import load

INSTALL = "pip install nvidia-dali-cuda130 (Linux, x86-64)"
# batches that DALI has been given when the oldest is asked for: while the network works on it, two more are made
AHEAD = 3


def available() -> bool:
    """Whether DALI is installed; it isn't imported."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except Exception:  # there is not even a package `nvidia`, or it is broken, and may raise anything
        return False


def problem() -> str | None:
    """Why DALI can't be loaded, in a line; None where it is now."""
    try:
        import nvidia.dali.fn  # noqa: F401
    except (Exception, SystemExit) as error:  # of what is broken inside, a shared library that is not there among it
        return last_line(error)
    return None


class DaliPipeline:
    """The images of a data set for a network whose towers are on `devices`; the interface of `TorchPipeline`.

    workers: threads of each DALI pipeline, and processes that read where a split's storage is "files"; None = one a
    core. dtype: float32, bfloat16 or float16; memory_format: channels_last or contiguous (NCHW). Raises UserError if
    DALI or a device is missing.
    """

    name = "dali"

    def __init__(
        self,
        dataset: DataSet,
        recipe: Recipe,
        devices: Sequence[torch.device | str],
        workers: int | None = None,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
    ):
        self.dataset, self.recipe, self.dtype, self.memory_format = dataset, recipe, dtype, memory_format
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers
        self.devices = [torch.device(device) for device in devices]
        self.pieces = WHOLE  # of each batch, what this pair of towers reads
        self.on_gpu = any(device.type == "cuda" for device in self.devices)
        self.statistics = self.mean = None
        if not available():
            raise UserError(
                f"--pipeline dali: DALI is not installed; {INSTALL} installs it, and --pipeline torch works everywhere"
            )
        if reason := problem():
            raise UserError(f"--pipeline dali: DALI can't be loaded ({reason}); --pipeline torch works everywhere")
        for device in self.devices:
            if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
                raise UserError(f"--pipeline dali: there is no CUDA device {device}; --gpus cpu works everywhere")

    def use(self, statistics: Statistics) -> None:
        """Set the mean image and colour components that all batches are made with."""
        self.statistics, self.mean = statistics, np.ascontiguousarray(statistics.mean, np.float32)

    def train(self, step: int, epochs: int, colour_noise: Callable[[int], float]) -> Generator[Batch, None, None]:
        """Training batches from after `step` steps to the end of the last epoch; every image once an epoch.

        colour_noise(epoch) -> the colour deviation of that epoch; asked for some batches early, on a GPU in a thread.
        """
        split = self.dataset.splits["train"]
        batches = self._training(split, EpochKeys(self.recipe, len(split), step, epochs, self.pieces), colour_noise)
        # Processes that read are started and watched by the thread that trains, since that one is told of signals.
        if self.on_gpu and split.storage != "files":
            batches = ahead(batches, [device for device in dict.fromkeys(self.devices) if device.type == "cuda"])
        yield from batches

    def _training(self, split, keys, colour_noise):
        loans = self._nothing_lent()
        with (
            closing(self._to_train(split, keys, colour_noise)) as items,
            closing(self._run(split, items, min(self.recipe.batch_size, len(split)), self._finished, loans)) as batches,
        ):
            for item, outputs in batches:
                yield Batch(
                    item.epoch, self._on_each_tower(outputs, loans), self._labels(split, item.images), item.images
                )

    def views(
        self, split: str, batch_size: int, which: Sequence[tuple[int, int, bool]]
    ) -> Generator[tuple[Iterator[list], torch.Tensor], None, None]:
        """Each image of a split once, in order, under fixed views: yields (iterator of the views' `Batch.images`,
        labels).

        which: the (top, left, flip) of each view, as `centre_view` and `ten_views` give them. A picture is decoded once
        and stays on its device as uint8; a view of it is made when it is asked for."""
        source, finishers, loans = self.dataset.splits[split], {}, self._nothing_lent()
        batch_size = min(batch_size, len(source))
        with (
            closing(self._to_test(source, in_order(len(source), batch_size, self.pieces))) as items,
            closing(self._run(source, items, batch_size, self._decoded, loans)) as batches,
        ):
            try:
                for item, pictures in batches:
                    for device in pictures.keys() - finishers.keys():  # late: an error in the first batch comes before
                        finishers[device] = DaliOnDevice(
                            device, batch_size, self.workers, lambda dali: self._finished(dali, "decoded", 1.0)
                        )
                    views = self._views_of(pictures, len(item.images), finishers, which, loans)
                    yield views, self._labels(source, item.images)
            finally:
                close_all(finishers)

    def _views_of(self, pictures, count, finishers, which, loans):
        for view in which:
            draw = of_view(view, count)
            inputs = self._draw_inputs(draw.top, draw.left, draw.flip, np.zeros((count, 3), np.float32))
            for device, dali in finishers.items():
                dali.feed({"pictures": pictures[device]} | inputs)
            yield self._on_each_tower({device: dali.take() for device, dali in finishers.items()}, loans)

    def _to_train(self, split, keys, colour_noise):
        with closing(self._read(split, (images for _, _, images in keys))) as batches:
            for inputs, (epoch, images, draw) in zip(batches, with_draws(self.recipe, keys)):
                shift, scale = colour_shift(self.recipe, self.statistics, draw.colour, colour_noise(epoch))
                yield _Item(epoch, images, inputs | self._draw_inputs(draw.top, draw.left, draw.flip, shift), scale)

    def _to_test(self, split, keys):
        with closing(self._read(split, keys)) as batches:
            for inputs, images in zip(batches, keys):
                yield _Item(0, images, inputs, 1.0)

    def _read(self, split, keys):
        """The JPEG files, or the pictures, of each batch: {input: N arrays}. keys: the numbers of its images."""
        if split.storage == "files":
            with closing(load(StoredPictures(split), keys, self.workers, self.on_gpu)) as batches:
                for pictures, _ in batches:
                    yield {"pictures": pictures.numpy()}
        else:  # pixels are views of a memory map, on whose pages DALI's threads wait; JPEG files are read by this one
            name, read = ("jpeg", split.jpeg) if split.storage == "jpeg" else ("pictures", split.read)
            for images in keys:
                yield {name: [read(image) for image in images]}

    def _draw_inputs(self, top, left, flip, shift):
        """The inputs that say how N pictures are cropped, flipped and relit."""
        margin = max(1, self.recipe.stored_size - self.recipe.crop_size)
        inputs = {
            "top": (top / margin).astype(np.float32),
            "left": (left / margin).astype(np.float32),
            "flip": flip.astype(np.int32),
            "minus_shift": -shift,
        }
        on_cpu = any(device.type == "cpu" for device in self.devices)  # a GPU has the mean already
        return inputs | {"mean": self._mean_under(top, left, flip)} if on_cpu else inputs

    def _mean_under(self, top, left, flip):
        """For each of N pictures the mean image that is subtracted before it is cropped and flipped: N arrays, most of
        them one.

        Where the mean doesn't follow the crop, that is its centre window moved under the crop, flipped where the flip
        undoes it."""
        if self.recipe.mean_follows_crop:
            return [self.mean] * len(top)
        crop, centre, means = self.recipe.crop_size, self._centre_of_mean(), {}
        # few: many images share a draw (2012 source)
        for y, x, mirrored in set(zip(top.tolist(), left.tolist(), flip.tolist())):
            means[y, x, mirrored] = image = np.zeros_like(self.mean)
            image[y : y + crop, x : x + crop] = centre[:, ::-1] if mirrored else centre
        return [means[place] for place in zip(top.tolist(), left.tolist(), flip.tolist())]

    def _nothing_lent(self):
        """{device: `Lent`} of one iteration: several may be under way, and not all in the same thread."""
        return {device: Lent(device) for device in self.devices}

    def _run(self, split, items, batch_size, graph, loans):
        """Work on items as they come, AHEAD of them at a time: yields (item, {device: DALI's TensorList}) in their
        order.

        What is wrong with an image is raised when its batch's turn has come. graph(dali, storage, scale) -> the
        pipelines' output. loans: {device: `Lent`}, of what the caller lends; waited for before DALI ends.
        """
        # the scale is fixed in a DALI pipeline; few epochs change it
        for scale, group in groupby(items, lambda item: item.scale):
            pipelines, queue, failure, more = {}, deque(), None, True
            try:
                for device in dict.fromkeys(self.devices):
                    pipelines[device] = DaliOnDevice(
                        device, batch_size, self.workers, lambda dali: graph(dali, split.storage, scale)
                    )
                while more or queue:
                    while more and len(queue) < AHEAD:
                        try:
                            queue.append(next(group))
                        except StopIteration:
                            more = False
                        except UserError as error:
                            failure, more = error, False
                        else:
                            for dali in pipelines.values():
                                dali.feed(queue[-1].inputs)
                    if queue:
                        item = queue.popleft()
                        yield item, self._take(pipelines, split, item.images)
                if failure:
                    raise failure
            finally:
                for loan in loans.values():
                    loan.wait()
                close_all(pipelines)

    def _take(self, pipelines, split, images):
        try:
            return {device: dali.take() for device, dali in pipelines.items()}
        except RuntimeError as error:
            failure = error.with_traceback(None)  # which would keep the pipeline and its threads
        close_all(pipelines)
        if split.storage == "jpeg":
            for image in images:
                split.read(image)  # Pillow says what is wrong with it
                if any(refuses(device, split.jpeg(image), self._decoded) for device in dict.fromkeys(self.devices)):
                    raise UserError(f"cannot read image {split.names[image]}: DALI's decoder refuses it")
        raise failure

    def _on_each_tower(self, outputs, loans):
        images = {}
        for device, tensors in outputs.items():
            with current(device):
                x = torch.from_dlpack(tensors.as_tensor())  # DALI's memory, which lives as long as the tensor does
            if self.memory_format == torch.channels_last:
                x = x.permute(0, 3, 1, 2)
            # DALI has no bfloat16, and on a CPU its float16 rounds ties away from zero. On a GPU a copy in torch's
            # memory in any case: DALI's is used for another batch in the order of DALI's own stream, as soon as the
            # host has let go of it.
            images[device] = x.to(self.dtype, copy=device.type == "cuda")
            if device.type == "cuda":
                loans[device].keep(tensors)
        return [images[device] for device in self.devices]

    def _labels(self, split, images):
        return torch.from_numpy(split.labels[images]).to(self.devices[0], non_blocking=True)

    def _decoded(self, dali, storage, scale=1.0):
        """From the host's files or pictures to pictures on the device: (stored, stored, 3) uint8."""
        from nvidia.dali import fn, types

        if storage == "jpeg":
            gpu_options = {
                "device": "mixed",
                "jpeg_fancy_upsampling": True,  # as libjpeg does
                # The GPU's JPEG engine may round otherwise, and would get some places of every batch.
                "hw_decoder_load": 0.0,
                # Else the threads of two pipelines would be tied to the same cores.
                "affine": False,
            }
            return fn.decoders.image(
                dali.input("jpeg", types.UINT8, 1),
                output_type=types.RGB,
                adjust_orientation=False,  # as in `stored_picture`
                **gpu_options if dali.on_gpu else {},
            )
        if storage == "decoded":
            return dali.input("pictures", types.UINT8, 3, layout="HWC", device="gpu" if dali.on_gpu else "cpu")
        pictures = dali.input("pictures", types.UINT8, 3, layout="HWC")
        return pictures.gpu() if dali.on_gpu else pictures

    def _finished(self, dali, storage, scale):
        """From files or pictures to what the network sees: ((pixel - mean) + shift) * scale, (crop, crop, 3) or (3,
        crop, crop)."""
        from nvidia.dali import types

        side = self.recipe.crop_size
        window = {
            "crop": (side, side),
            "mirror": dali.input("flip", types.INT32, 0),
            "crop_pos_y": dali.input("top", types.FLOAT, 0),
            "crop_pos_x": dali.input("left", types.FLOAT, 0),
        }
        colour = {
            "mean": dali.input("minus_shift", types.FLOAT, 1),
            "std": [1.0, 1.0, 1.0],
            "scale": scale,
            "dtype": types.FLOAT16 if self.dtype == torch.float16 and dali.on_gpu else types.FLOAT,
            "output_layout": "HWC" if self.memory_format == torch.channels_last else "CHW",
        }
        subtract_mean = self._less_mean_on_gpu if dali.on_gpu else self._less_mean_on_cpu
        return subtract_mean(dali, self._decoded(dali, storage), window, colour)

    def _less_mean_on_cpu(self, dali, pictures, window, colour):
        """The mean of the whole picture first: one pass fewer than after the crop, and 128 references to one array cost
        nothing."""
        from nvidia.dali import fn, types

        x = fn.normalize(pictures, mean=dali.input("mean", types.FLOAT, 3), stddev=1.0)  # (stored, stored, 3) float32
        return fn.crop_mirror_normalize(x, **window, **colour)

    def _less_mean_on_gpu(self, dali, pictures, window, colour):
        """The same with constants that stay on the device: an input a picture would be copied there every time."""
        from nvidia.dali import fn, types

        if self.recipe.mean_follows_crop:
            x = pictures - types.Constant(self.mean, device=pictures.device)
            return fn.crop_mirror_normalize(x, **window, **colour)
        x = fn.crop_mirror_normalize(pictures, dtype=types.UINT8, output_layout="HWC", **window)
        return fn.crop_mirror_normalize(x - types.Constant(self._centre_of_mean(), device=pictures.device), **colour)

    def _centre_of_mean(self):
        crop, offset = self.recipe.crop_size, (self.recipe.stored_size - self.recipe.crop_size) // 2
        return np.ascontiguousarray(self.mean[offset : offset + crop, offset : offset + crop])


@dataclass(frozen=True)
class _Item:
    """A batch before DALI works on it."""

    epoch: int
    images: np.ndarray  # (N,) int64, their numbers in the split
    inputs: dict  # DALI input -> N values
    scale: float  # of the result
