"""Crop, flip, minus mean, colour shift and scale: the reference pixel by pixel, every implementation to the bit."""

import functools
import math

import numpy as np
import pytest
import torch
from alexnet_mp.kernels import augment, augmentation, dispatch, reference
from cases import FORMATS, both_formats
from inner_cases import every

pytestmark = pytest.mark.usefixtures("one_thread")
both_means = every("mean_follows_crop", [True, False])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("pictures", "top", "left", "flip", "mean", "shift")


def inputs(count=5, side=40, crop=33, seed=1):
    """Pictures and where their crops lie: in the corners too, and at least one of them flipped."""
    draws, end = torch.Generator().manual_seed(seed), side - crop
    pictures = torch.randint(0, 256, (count, side, side, 3), generator=draws, dtype=torch.uint8)
    top, left = (torch.randint(0, end + 1, (count,), generator=draws) for _ in range(2))
    top[:3], left[:3] = torch.tensor([0, end, 0])[:count], torch.tensor([end, 0, 0])[:count]
    mean = 255 * torch.rand(side, side, 3, generator=draws)
    shift = 20 * torch.randn(count, 3, generator=draws)
    return pictures, top, left, torch.arange(count) % 2 == 0, mean, shift


def on(device, pictures, top, left, flip, mean, shift):
    return pictures.to(device), top, left, flip, mean.to(device), shift


def pixel_by_pixel(pictures, top, left, flip, mean, shift, scale, crop, mean_follows_crop):
    """(N, 3, crop, crop) float32: the definition, one value at a time, in numpy's float32."""
    pictures, mean, shift = pictures.numpy(), mean.numpy(), shift.numpy()
    y, offset = np.empty((len(pictures), 3, crop, crop), np.float32), (len(mean) - crop) // 2
    for n, channel, row, column in np.ndindex(y.shape):
        across = int(left[n]) + (crop - 1 - column if flip[n] else column)
        down = int(top[n]) + row
        under = mean[down, across] if mean_follows_crop else mean[offset + row, offset + column]
        pixel = np.float32(pictures[n, down, across, channel])
        y[n, channel, row, column] = np.float32(np.float32(pixel - under[channel]) + shift[n, channel]) * np.float32(
            scale
        )
    return torch.from_numpy(y)


@both_means
@every("scale", [1.0, 1 / 1.1])
def test_the_reference_is_the_definition(mean_follows_crop, scale):
    """Side and crop differ by an odd number: the centre window is rounded down."""
    arguments, crop = inputs(3, 12, 7), 7
    y = reference.augment(*arguments, scale, crop=crop, mean_follows_crop=mean_follows_crop)
    expected = pixel_by_pixel(*arguments, scale, crop, mean_follows_crop)
    assert torch.equal(y, expected) and y.is_contiguous(memory_format=torch.channels_last)
    for dtype in DTYPES[1:]:
        narrow_y = reference.augment(
            *arguments,
            scale,
            crop=crop,
            mean_follows_crop=mean_follows_crop,
            dtype=dtype,
            memory_format=torch.contiguous_format,
        )
        assert torch.equal(narrow_y, expected.to(dtype)) and narrow_y.is_contiguous()


@pytest.mark.run
@both_means
@both_formats
@every("side, crop", [(40, 32), (40, 33), (40, 31), (41, 20), (19, 16), (12, 12), (9, 7), (6, 3), (4, 1), (256, 224)])
def test_every_implementation_gives_the_references_bits(implementation, side, crop, memory_format, mean_follows_crop):
    """Rows of whole blocks (written past the caches), with a rest, shorter than a block; one picture in two flipped."""
    kernels, device = implementation
    arguments, memory_format = inputs(4, side, crop), FORMATS[memory_format]
    for dtype in DTYPES:
        for scale in (1.0, 1 / 1.1):
            call = dict(crop=crop, mean_follows_crop=mean_follows_crop, dtype=dtype, memory_format=memory_format)
            y = augment(*on(device, *arguments), scale, **call, kernels=kernels)
            assert y.dtype == dtype and y.device.type == device and y.is_contiguous(memory_format=memory_format)
            assert torch.equal(y.cpu(), reference.augment(*arguments, scale, **call))


@both_means
def test_values_that_lie_between_two_numbers(implementation, mean_follows_crop):
    """Halves and ties of bfloat16 and float16; sums that cancel; a mean beyond the range of float16, one that is no
    number."""
    kernels, device = implementation
    pictures, top, left, flip, mean, shift = inputs(3, 16, 16)
    mean[:4] = torch.randint(-512, 512, (4, 16, 3), generator=torch.Generator().manual_seed(5)) / 512
    mean[4:6], mean[6], mean[7] = pictures[0, 4:6].float(), 1e-6, 70_000
    mean[8, 3, 1], mean[9, 5], mean[10, 7] = math.nan, math.inf, -math.inf
    shift[0] = 0
    for dtype in DTYPES:
        call = dict(crop=16, mean_follows_crop=mean_follows_crop, dtype=dtype)
        y = augment(*on(device, pictures, top, left, flip, mean, shift), **call, kernels=kernels).cpu()
        expected = reference.augment(pictures, top, left, flip, mean, shift, **call)
        assert torch.equal(y.nan_to_num(nan=3e4), expected.nan_to_num(nan=3e4)) and torch.equal(
            y.isnan(), expected.isnan()
        )


@every("threads", [1, 2, 3])
def test_pictures_one_by_one_and_any_number_of_threads(implementation, threads):
    """A list of views, as a memory map gives them, at odd addresses."""
    kernels, device = implementation
    if device != "cpu":
        pytest.skip("a list is for pictures on the host")
    pictures, *others = inputs(7, 40, 32)
    memory, size = torch.zeros(7, pictures[0].numel() + 13, dtype=torch.uint8), pictures[0].numel()
    views = [row[5 : 5 + size].view_as(picture).copy_(picture) for row, picture in zip(memory, pictures, strict=True)]
    torch.set_num_threads(threads)
    try:
        y = augment(views, *others, crop=32, mean_follows_crop=True, kernels=kernels)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(y, reference.augment(pictures, *others, crop=32, mean_follows_crop=True))
    assert torch.equal(augment(views, *others, crop=32, mean_follows_crop=True, kernels="reference"), y)


def test_nothing_outside_the_output_is_written(implementation):
    kernels, device = implementation
    if kernels != "cpu":
        pytest.skip("the operator of the library writes into a given output")
    pictures, *others = inputs(3, 20, 18)
    for crop, offset in ((18, 16), (16, 16), (16, 1), (3, 16)):
        for dtype in DTYPES:
            size = 3 * 3 * crop * crop
            memory = torch.full((size + 64,), 777.0, dtype=dtype)
            y = memory[offset : offset + size].view(3, crop, crop, 3).permute(0, 3, 1, 2)
            inside = [t.clamp(max=20 - crop) if t.dtype == torch.int64 else t for t in others]
            dispatch.compiled().augment([pictures], *inside, 1.0, True, y)
            assert (y != 777).all() and (memory[:offset] == 777).all() and (memory[offset + size :] == 777).all()


def test_no_picture_and_one(implementation):
    kernels, device = implementation
    arguments = inputs(1, 20, 16)
    y = augment(*on(device, *arguments), crop=16, mean_follows_crop=True, kernels=kernels)
    assert torch.equal(y.cpu(), reference.augment(*arguments, crop=16, mean_follows_crop=True))
    if device == "cpu":
        alone = augment([arguments[0][0]], *arguments[1:], crop=16, mean_follows_crop=True, kernels=kernels)
        assert torch.equal(alone, y)
    none = [t[:0] if name != "mean" else t for name, t in zip(NAMES, arguments)]
    assert augment(*on(device, *none), crop=16, mean_follows_crop=True, kernels=kernels).shape == (0, 3, 16, 16)


@every("kernels", ["auto", "reference"])
@every(
    "change, named",
    [
        (dict(top=torch.tensor([0, 9, 0])), "top is 9; crops of 12x12.*20x20 from 0 to 8"),
        (dict(top=torch.tensor([0, 0, -1])), "top is -1"),
        (dict(left=torch.tensor([2**40, 0, 0])), "left is 1099511627776"),
        (dict(left=torch.tensor([-1, 0, 0])), "left is -1"),
        (dict(left=torch.tensor([0, 0])), r"left is torch.int64 \(2,\)"),
        (dict(top=torch.tensor([0, 0, 0.0])), "top is torch.float32"),
        (dict(top=torch.zeros(3, dtype=torch.int64, device="meta")), "top is .* on meta.*on the host"),
        (dict(flip=torch.tensor([0, 1, 0])), "flip is torch.int64"),
        (dict(shift=torch.zeros(3, 1)), r"shift is .*\(3, 1\)"),
        (dict(shift=torch.zeros(3, 3, dtype=torch.float64)), "shift is torch.float64"),
        (dict(pictures=torch.zeros(3, 20, 20, 3)), "pictures are torch.float32"),
        (dict(pictures=torch.zeros(2, 20, 20, 3, dtype=torch.uint8)), r"pictures are .*\(2, 20, 20, 3\)"),
        (dict(pictures=torch.zeros(3, 3, 20, 20, dtype=torch.uint8).permute(0, 2, 3, 1)), "contiguous"),
        (dict(pictures=[torch.zeros(20, 20, 3, dtype=torch.uint8)] * 2), "2 pictures for 3 places"),
        (
            dict(pictures=[*torch.zeros(2, 20, 20, 3, dtype=torch.uint8), torch.zeros(20, 19, 3, dtype=torch.uint8)]),
            r"\(20, 19, 3\)",
        ),
        (dict(pictures=torch.zeros(3, 20, 20, 3, dtype=torch.uint8, device="meta")), "on meta.*on cpu"),
        (dict(mean=torch.zeros(20, 20, 3, dtype=torch.float64)), "mean is torch.float64"),
        (dict(mean=torch.zeros(20, 19, 3)), r"mean is .*\(20, 19, 3\)"),
        (dict(mean=torch.zeros(3)), r"mean is .*\(3,\)"),
        (dict(mean=torch.zeros(3, 20, 20).permute(1, 2, 0)), "contiguous"),
        (dict(mean=torch.zeros(21, 21, 3)), r"pictures are .*\(3, 20, 20, 3\).*\(21, 21, 3\)"),
        (dict(crop=21), "crop is 21.*20x20"),
        (dict(crop=0), "crop is 0"),
        (dict(crop=12.0), "crop is 12.0"),
        (dict(dtype=torch.float64), "dtype is torch.float64"),
        (dict(memory_format=torch.preserve_format), "memory_format"),
        (dict(kernels="fortran"), "fortran"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, named, kernels):
    pictures, _, _, flip, mean, shift = inputs(3, 20, 12)
    arguments = dict(
        pictures=pictures,
        top=torch.tensor([0, 8, 4]),
        left=torch.tensor([8, 0, 4]),
        flip=flip,
        mean=mean,
        shift=shift,
        crop=12,
        mean_follows_crop=True,
        kernels=kernels,
    )
    augment(**arguments)
    with pytest.raises(ValueError, match=named):
        augment(**arguments | change)


def test_the_library_refuses_what_would_read_out_of_bounds():
    if dispatch.compiled() is None:
        pytest.skip("there was no compiler to build the CPU kernels")
    pictures, _, _, flip, mean, shift = inputs(3, 20, 12)
    arguments = dict(
        pictures=[pictures],
        top=torch.tensor([0, 8, 4]),
        left=torch.tensor([8, 0, 4]),
        flip=flip,
        mean=mean,
        shift=shift,
        scale=1.0,
        mean_follows_crop=True,
        y=torch.empty(3, 3, 12, 12),
    )
    dispatch.compiled().augment(*arguments.values())
    for change in (
        dict(top=torch.tensor([0, 9, 0])),
        dict(left=torch.tensor([0, -1, 0])),
        dict(top=torch.zeros(2).long()),
        dict(pictures=[pictures[:2]]),
        dict(pictures=[pictures[0]] * 2),
        dict(pictures=[pictures[:, :19]]),
        dict(pictures=[]),
        dict(pictures=[pictures.float()]),
        dict(flip=flip[:1]),
        dict(mean=mean[:19]),
        dict(shift=shift[:2]),
        dict(left=torch.zeros(6).long()[::2]),
        dict(y=torch.empty(3, 3, 21, 21)),
        dict(y=torch.empty(3, 3, 12, 12).double()),
        dict(y=torch.empty(3, 3, 12, 11)),
        dict(y=torch.empty(3, 3, 12, 24)[..., ::2]),
    ):
        with pytest.raises(RuntimeError, match="augment|dense|one picture|leaves its picture|must be"):
            dispatch.compiled().augment(*(arguments | change).values())


@pytest.mark.run
def test_opcheck(implementation):
    kernels, device = implementation
    arguments = on(device, *inputs(3, 20, 16))
    for channels_last in (True, False):
        torch.library.opcheck(
            torch.ops.alexnet_mp.augment.default,
            ([arguments[0]], *arguments[1:], 0.5, 16, True, torch.bfloat16, channels_last, kernels),
        )


@pytest.mark.compile
def test_compile(implementation):
    """One graph; what comes out is what a network after it is told to expect."""
    kernels, device = implementation
    arguments = on(device, *inputs(3, 20, 16))
    eager = functools.partial(augment, crop=16, mean_follows_crop=True, kernels=kernels)

    def double(*arguments):
        return eager(*arguments) * 2

    assert torch.equal(torch.compile(double, fullgraph=True, backend="aot_eager")(*arguments), eager(*arguments) * 2)


@every("scale", [1.0, 1 / 1.1])
@every("mean_follows_crop", [True, False])
def test_crops_in_one_table_give_the_same_bits(mean_follows_crop, scale):
    pictures, top, left, flip, mean, shift = inputs(5, 24, 19)
    options = dict(crop=19, mean_follows_crop=mean_follows_crop)
    crops = augmentation.crops_of(top, left, flip, shift, scale, crop=19, side=24)
    for dtype, order in ((torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)):
        options |= dict(dtype=dtype, memory_format=order)
        y = augmentation.augment_crops(pictures, crops, mean, **options)
        assert torch.equal(y, augment(pictures, top, left, flip, mean, shift, scale, **options))
        assert y.is_contiguous(memory_format=order)
        assert len(augmentation.augment_crops(pictures[:0], crops[:0], mean, **options)) == 0


@every(
    "change, named",
    [
        (dict(top=torch.tensor([0, 6, 0])), "top is 6; crops of 19x19 lie in pictures of 24x24 from 0 to 5"),
        (dict(left=torch.tensor([0, -1, 0])), "left is -1"),
        (dict(flip=torch.zeros(3)), "flip is .*float32"),
        (dict(shift=torch.zeros(2, 3)), r"shift is .*\(2, 3\)"),
        (dict(left=torch.zeros(2, dtype=torch.int64)), r"left is .*\(2,\)"),
    ],
)
def test_a_table_of_crops_that_do_not_fit_is_refused_by_name(change, named):
    _, top, left, flip, _, shift = inputs(3, 24, 19)
    with pytest.raises(ValueError, match=named):
        augmentation.crops_of(**dict(top=top, left=left, flip=flip, shift=shift, scale=1.0) | change, crop=19, side=24)


@every(
    "change, named",
    [
        (dict(crops=torch.zeros(3, 6)), r"crops are .*\(3, 6\).*must be .*\(3, 7\)"),
        (dict(crops=torch.zeros(3, 7).double()), "crops are .*float64"),
        (dict(pictures=torch.zeros(3, 23, 24, 3, dtype=torch.uint8)), r"pictures are .*\(3, 23, 24, 3\)"),
        (dict(pictures=torch.zeros(3, 24, 24, 3)), "pictures are .*float32"),
    ],
)
def test_pictures_that_do_not_fit_their_table_are_refused_by_name(change, named):
    pictures, top, left, flip, mean, shift = inputs(3, 24, 19)
    call = dict(pictures=pictures, crops=augmentation.crops_of(top, left, flip, shift, 1.0, crop=19, side=24)) | change
    with pytest.raises(ValueError, match=named):
        augmentation.augment_crops(
            **call, mean=mean, crop=19, mean_follows_crop=True, dtype=torch.float32, memory_format=torch.channels_last
        )


needs_gpu = pytest.mark.gpu(reason="needs a GPU")


@needs_gpu
def test_a_side_stream_is_obeyed():
    arguments = inputs(64, 256, 224)
    expected, here = reference.augment(*arguments, crop=224, mean_follows_crop=True), on("cuda", *arguments)
    host_pictures, pictures = arguments[0].pin_memory(), torch.zeros_like(here[0])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # what is launched on another stream would see zeros
        pictures.copy_(host_pictures, non_blocking=True)
        y = augment(pictures, *here[1:], crop=224, mean_follows_crop=True)
    stream.synchronize()
    assert torch.equal(y.cpu(), expected)


@pytest.mark.gpu(2, reason="needs two GPUs")
def test_the_second_device_while_the_first_is_current():
    arguments = inputs(3, 40, 32)
    with torch.cuda.device(0):
        y = augment(*on("cuda:1", *arguments), crop=32, mean_follows_crop=True)
    assert y.device.index == 1 and torch.equal(y.cpu(), reference.augment(*arguments, crop=32, mean_follows_crop=True))


@needs_gpu
def test_a_list_is_refused_on_a_gpu():
    pictures, *others = on("cuda", *inputs(3, 20, 16))
    with pytest.raises(ValueError, match="3 pictures for 3 places"):
        augment(list(pictures), *others, crop=16, mean_follows_crop=True)
