"""How alike the two towers see the same pictures, layer by layer: linear CKA, unbiased, with its uncertainty.

X, (N, p), has what a tower's layer says of N pictures, K = X X' their products, L = Y Y' those of the other tower. With
K~ and L~, which are K and L with zeros on the diagonal, and 1 a vector of ones,

    HSIC_1(K, L) = [tr(K~ L~) + 1'K~1 1'L~1 / ((N-1)(N-2)) - 2/(N-2) 1'K~L~1] / (N(N-3))
    CKA(X, Y) = HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L))

(Song et al. 2012, J. Mach. Learn. Res. 13: 1393; Nguyen, Raghu & Kornblith 2021, ICLR, who average it over
minibatches; here all N pictures are one). HSIC_1 has the expectation 0 where the two say unrelated things, whatever N
and p are; the usual estimate grows with p / N. CKA is 1 where Y is X turned and scaled, and can be below 0 by chance.

HSIC_1 is the inner product of K and L after `u_centred`, over N(N-3) (Szekely & Rizzo 2014, Ann. Stat. 42: 2382), which
is how it is computed; so what two sets of maps have together is the sum of what each two of their maps have."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch

from ..data.pipeline import Pipeline
from ..evaluation.layer_features import outputs_of
from ..evaluation.protocol import centre_view
from ..network.network import TwoTowerAlexNet
from ..recipes import shapes
from ..recipes.recipe import Recipe
from .hypothesis_tests import holm
from .random_deals import MOST_NETWORKS, as_far_p, pairings, random_orders

MOST_PICTURES = 400
MOST_BYTES = 1 << 30  # of what all layers say of all pictures; with larger layers there are fewer pictures
FEWEST = 30  # pictures; of fewer nothing is said
GROUPS = 20  # of pictures, left out one by one
DEALT_PICTURES = 200  # of which each map by itself is compared with each


@dataclass(frozen=True)
class Representation:
    """What a network's towers say of the same N pictures."""

    layers: tuple[str, ...]  # that every tower has
    pictures: int  # N
    # {layer: of each tower (N, N) float64, after `u_centred`}
    products: Mapping[str, tuple[np.ndarray, ...]]
    # {layer: (maps of both towers, maps of both towers) float32, HSIC_1 of each two maps}, of layers whose towers read
    # the same
    maps: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty: other pictures would give another one."""

    value: float
    interval: tuple[float, float]  # 95 %
    p: float  # of "it is 0", by the same standard error


@dataclass(frozen=True)
class Alike:
    """The two towers at one layer. None where a tower says the same of all pictures."""

    layer: str
    cka: Estimate | None
    p: float | None  # of "the pictures were dealt to tower b at random"
    holm_p: float | None  # corrected for the layers


@dataclass(frozen=True)
class Dealt:
    """The towers' CKA at a layer against that of random halves of the maps of both."""

    layer: str
    own: float
    halves: tuple[float, float, float]  # 5 %, median and 95 % of the random halves
    p: float  # the share of random halves that are as little alike
    holm_p: float  # corrected for the layers


@dataclass(frozen=True)
class Crossing:
    """The towers before and after a layer that reads both."""

    before: str
    after: str
    change: Estimate
    holm_p: float  # corrected for the crossings


@dataclass(frozen=True)
class Across:
    """Towers of one network against towers of different ones, at one layer."""

    layer: str
    own: float  # mean CKA of the two towers of a network
    others: float  # mean CKA of two towers of different networks
    p: float | None  # of "any two of the towers could be those of a network"; None of more than `MOST_NETWORKS`
    holm_p: float | None  # corrected for the layers


# --- what the towers say


def compared_layers(recipe: Recipe) -> list[str]:
    """The names of the layers that each tower has."""
    return [layer.name for layer in recipe.layers if layer.towers == "each"]


def most_pictures(recipe: Recipe) -> int:
    """How many pictures are compared at most."""
    a_picture = sum(
        recipe.towers * shapes.BYTES_FP32 * math.prod(size.output)
        for size in shapes.sizes(recipe, 2)
        if size.layer.towers == "each"
    )
    return max(FEWEST, min(MOST_PICTURES, MOST_BYTES // a_picture))


@torch.inference_mode()
def represent(
    network: TwoTowerAlexNet, pipeline: Pipeline, split: str, batch_size: int, with_maps: bool = False
) -> Representation:
    """What a network, which is in test mode, says of the centre view of all pictures of a split; at least four of them.

    with_maps: whether `maps` are compared, too. Raises ValueError where a layer says something that is not finite."""
    recipe, names, count = network.recipe, compared_layers(network.recipe), len(pipeline.dataset.splits[split])
    whole = network.merge() if recipe.lrn_crosses else network  # there layers of both towers are computed at once
    features, start = {}, 0
    with ExitStack() as hooks, closing(pipeline.views(split, batch_size, centre_view(recipe))) as batches:
        outputs = {name: hooks.enter_context(outputs_of(whole, name)) for name in names}
        for (images,), labels in batches:
            whole(*(images if whole is network else images[:1]))
            for name in names:
                tensor = torch.cat([output.float().cpu() for output in outputs[name]], 1)
                tensor = tensor.reshape(*tensor.shape[:2], -1)  # (n, maps of all towers, positions)
                features.setdefault(name, torch.empty(count, *tensor.shape[1:]))[start : start + len(labels)] = tensor
            start += len(labels)
    products, maps = {}, {}
    for layer in recipe.layers:
        if layer.name in names:
            values = features.pop(layer.name)
            if not torch.isfinite(values).all():
                raise ValueError(f"{layer.name} gives NaN or infinity")
            products[layer.name] = tuple(u_centred(part.flatten(1)) for part in values.chunk(recipe.towers, 1))
            if with_maps and recipe.towers == 2 and layer.reads != "own":
                maps[layer.name] = between_maps(values[_sample(count)])
    return Representation(tuple(names), count, products, maps)


def u_centred(features: torch.Tensor) -> np.ndarray:
    """K = X X' of features X (N, p), with its rows' and columns' means taken away so that inner products are HSIC_1
    times N(N-3): (N, N) float64, zeros on the diagonal. N: four at least."""
    deviations = features - features.double().mean(0).float()  # changes nothing but the rounding
    return _centred((deviations @ deviations.T).double().numpy())


def _centred(products):
    n = len(products)
    products = products.copy()
    np.fill_diagonal(products, 0)
    rows = products.sum(1) / (n - 2)
    products += rows.sum() / (n - 1) - rows[:, None] - rows
    np.fill_diagonal(products, 0)
    return products


def cka(a: np.ndarray, b: np.ndarray) -> float | None:
    """CKA of two matrices of `u_centred`, (N, N) each; None where one of them is 0: all pictures are the same to it."""
    size = math.sqrt((a * a).sum()) * math.sqrt((b * b).sum())
    return float((a * b).sum() / size) if size > 0 else None


# --- one network


def own_cka(network: Representation) -> dict[str, Estimate]:
    """{layer: CKA of the two towers} with its interval, without a layer of which a tower says the same of all
    pictures."""
    groups, estimates = _groups(network.pictures), {}
    for layer in network.layers:
        a, b = network.products[layer]
        if (value := cka(a, b)) is not None:
            estimates[layer] = _estimate(value, _replicates(a, b, groups))
    return estimates


def alike(network: Representation, draws: int = 1000, seed: int = 0) -> list[Alike]:
    """The `Alike` of the two towers at each layer.

    p: the share of `draws` orders of tower b's pictures with a CKA as large, the right order counted among them; of
    `DEALT_PICTURES` at most."""
    rows, estimates, sample = [], own_cka(network), np.arange(network.pictures)[_sample(network.pictures)]
    orders = random_orders(len(sample), draws, seed)
    for layer in network.layers:
        if layer not in estimates:
            rows.append((layer, None, None))
            continue
        a, b = (_centred(products[np.ix_(sample, sample)]).astype(np.float32) for products in network.products[layer])
        inner_products = [np.vdot(a, b[order[:, None], order]) for order in orders]
        rows.append((layer, estimates[layer], as_far_p(np.array(inner_products))))
    corrected_p = holm([p for *_, p in rows])
    return [Alike(*row, p) for row, p in zip(rows, corrected_p)]


def changes_at_crossings(network: Representation, recipe: Recipe) -> list[Crossing]:
    """The `Crossing` of each layer that reads both towers and is there on both: CKA of its outputs minus that of its
    inputs, over the same pictures."""
    rows, groups, names = [], _groups(network.pictures), list(network.layers)
    for before, after in zip(names, names[1:]):
        reads_both = next(layer.reads == "both" for layer in recipe.layers if layer.name == after)
        values = [cka(*network.products[name]) for name in (before, after)]
        if reads_both and None not in values:
            replicates = [_replicates(*network.products[name], groups) for name in (before, after)]
            rows.append((before, after, _estimate(values[1] - values[0], replicates[1] - replicates[0])))
    corrected_p = holm([change.p for *_, change in rows])
    return [Crossing(*row, p) for row, p in zip(rows, corrected_p)]


def dealt(network: Representation, draws: int = 1000, seed: int = 0) -> list[Dealt]:
    """The `Dealt` of each layer whose towers read the same: the images, or both towers.

    There the maps of both towers are drawn alike and see the same, so that any half of them could be a tower's unless
    the towers have come to differ. At a layer that reads its own tower this is no question: its towers read other
    things. The pictures are `DEALT_PICTURES` at most."""
    rows = []
    for layer, between in network.maps.items():
        orders, half = random_orders(len(between), draws, seed), len(between) // 2
        in_a = np.zeros(orders.shape, np.float32)
        np.put_along_axis(in_a, orders[:, :half], 1, axis=1)
        of_a, of_b = in_a @ between, (1 - in_a) @ between
        within = (of_a * in_a).sum(1, dtype=np.float64) * (of_b * (1 - in_a)).sum(1, dtype=np.float64)
        values = (of_a * (1 - in_a)).sum(1, dtype=np.float64) / np.sqrt(np.maximum(within, 1e-300))
        if within.min() > 0:
            p = float((values <= values[0] + 1e-6).mean())
            rows.append((layer, float(values[0]), tuple(map(float, np.quantile(values[1:], (0.05, 0.5, 0.95)))), p))
    corrected_p = holm([p for *_, p in rows])
    return [Dealt(*row, p) for row, p in zip(rows, corrected_p)]


def between_maps(values: torch.Tensor) -> np.ndarray:
    """HSIC_1, times n(n-3), of each two maps of a layer: (maps, maps) float32, scaled to a mean diagonal of 1.

    values: (n, maps, positions), n of at least four."""
    values = values - values.double().mean(0).float()
    n, maps, positions = values.shape
    if positions == 1:  # a map's products are those of one number a picture: all sums over them are known
        x = values[:, :, 0].double()
        squares = x**2
        sums = squares.sum(0)
        hsic = (
            (x.T @ x) ** 2 - (1 + 2 / (n - 2)) * (squares.T @ squares) + torch.outer(sums, sums) / ((n - 1) * (n - 2))
        )
    else:
        by_map = values.transpose(0, 1)  # (maps, n, positions)
        triangle = torch.triu_indices(n, n, 1)
        vectors = torch.stack(
            [torch.from_numpy(_centred((x @ x.T).double().numpy()))[triangle[0], triangle[1]].float() for x in by_map]
        )
        hsic = 2 * (vectors @ vectors.T).double()
    return (hsic / max(float(hsic.diagonal().mean()), 1e-300)).float().numpy()


# --- several networks


def across(networks: Sequence[Representation]) -> list[Across]:
    """The `Across` of each layer that all networks have, of two at least, which saw the same pictures."""
    by_layer = {layer: across_of(values) for layer, values in between_towers(networks).items()}
    corrected_p = holm([p for *_, p in by_layer.values()])
    return [Across(layer, *values, p) for (layer, values), p in zip(by_layer.items(), corrected_p)]


def between_towers(networks: Sequence[Representation]) -> dict[str, dict[tuple[int, int], float]]:
    """{layer: {(tower, larger tower): CKA of the two}} of networks that saw the same pictures; towers 2i and 2i + 1 are
    those of network i. Without a layer that a network lacks, or of which a tower says the same of all pictures."""
    by_layer = {}
    for layer in networks[0].layers:
        if not all(layer in network.products for network in networks):
            continue
        towers = [tower for network in networks for tower in network.products[layer]]
        values = {(a, b): cka(towers[a], towers[b]) for a in range(len(towers)) for b in range(a + 1, len(towers))}
        if None not in values.values():
            by_layer[layer] = values
    return by_layer


def across_of(values: Mapping[tuple[int, int], float]) -> tuple[float, float, float | None]:
    """(mean over networks of what their two towers have, mean over towers of different networks, p) of a layer of
    `between_towers`.

    p: the share of all ways to put the towers of all networks into pairs whose mean CKA is as far from that of all ways
    as the networks' own is, as in `matching`; at best 1/3 of two networks, 1/945 of five. None of more than
    `MOST_NETWORKS`."""
    own = [value for (a, b), value in values.items() if a // 2 == b // 2]
    others = [value for (a, b), value in values.items() if a // 2 != b // 2]
    p = None
    if len(own) <= MOST_NETWORKS:
        sums = np.array(list(pairings(values, tuple(range(2 * len(own))))))
        far = np.abs(sums - sums.mean())
        p = float((far >= abs(sum(own) - sums.mean()) * (1 - 1e-9)).mean())
    return float(np.mean(own)), float(np.mean(others)), p


# --- uncertainty over the pictures


def _sample(count):
    """`DEALT_PICTURES` of so many pictures, at most, as a slice."""
    return slice(None, None, -(-count // DEALT_PICTURES))


def _groups(count):
    """The numbers of all pictures but one of `GROUPS` groups, for each; every group is spread over all of them."""
    number = np.arange(count)
    return [number[number % GROUPS != group] for group in range(GROUPS)]


def _replicates(a, b, groups):
    """CKA without each group of pictures, (groups,)."""
    return np.array(
        [cka(*(_centred(products[np.ix_(numbers, numbers)]) for products in (a, b))) or 0.0 for numbers in groups]
    )


def _estimate(value, replicates):
    """The `Estimate` by the jackknife over groups (Efron & Stein 1981, Ann. Stat. 9: 586), with Student's t."""
    from scipy import stats  # imported late: it takes half a second

    count = len(replicates)
    error = math.sqrt((count - 1) / count * ((replicates - replicates.mean()) ** 2).sum())
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    p = float(2 * stats.t.sf(abs(value) / error, count - 1)) if error > 0 else float(value == 0)
    return Estimate(value, (value - reach, value + reach), p)
