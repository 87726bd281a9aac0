"""Short binary codes by an auto-encoder, which the paper suggests for its 4096 numbers a picture (end of 6.1).

    (N, units) -> standardised -> hidden, ReLU -> bits, logistic, rounded to 0 or 1 -> hidden, ReLU -> (N, units)

No label is used. The loss is the mean squared error of what comes back, in units of each input's own deviation (for
binary codes of pictures: Krizhevsky and Hinton, "Using very deep autoencoders for content-based image retrieval", ESANN
2011; for documents, with a cross-entropy over word counts: Salakhutdinov and Hinton, "Semantic hashing", 2009). Two
ways to make a code layer binary are known:

* noise of deviation 4 added to its inputs, which drives the logistic units to 0 and 1, to be rounded afterwards (2009);
* rounding in the forward pass, and the gradient of the logistic function as if there were no rounding (2011;
  "straight-through", Bengio, Leonard and Courville, arXiv:1308.3432).

Here it is the second: on the features of the network `mini` (512 units, 5,000 training pictures of Imagenette, 128
bits) the codes lost 13 % of the variance of the validation pictures, with the noise 15 %. Their pre-training by stacked
RBMs is not here, nor are their five and more layers: ReLUs and Adam (Kingma and Ba, arXiv:1412.6980) do without, and
what comes in is not pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

HIDDEN = 512  # units between input and code, at most
BATCH = 128
# at most so many passes, and none after so many pictures: 15 s for 4,096 units and 128 bits on two cores
EPOCHS, PICTURES = 200, 40_000
RATE = 1e-3  # of Adam, at its highest; falls to 0 along a cosine
STARTS, SHUFFLES = 0x636F6465, 0x73687566  # added to the seed: initial weights and orders are draws of their own


@dataclass(frozen=True)
class Encoder:
    """Features -> codes; float32: `centre`, `scale` (units,), `weight1` (hidden, units), `bias1`, `weight2` (bits,
    hidden), `bias2`."""

    centre: np.ndarray
    scale: np.ndarray
    weight1: np.ndarray
    bias1: np.ndarray
    weight2: np.ndarray
    bias2: np.ndarray

    @property
    def bits(self) -> int:
        return len(self.bias2)

    def codes(self, features: np.ndarray) -> np.ndarray:
        """(N, units) float32 -> (N, bits / 8) uint8, eight bits a byte, the first the highest (`numpy.packbits`)."""
        bits = [
            _logits(torch.from_numpy((part - self.centre) / self.scale), self._tensors()).numpy() > 0
            for part in np.array_split(features, max(1, -(-len(features) // 4096)))
        ]
        return np.packbits(np.concatenate(bits), axis=1)

    def _tensors(self):
        return {name: torch.from_numpy(getattr(self, name)) for name in ("weight1", "bias1", "weight2", "bias2")}


@dataclass(frozen=True)
class Trained:
    """What `train` found out beside the encoder."""

    encoder: Encoder
    epochs: int
    loss: float  # of the training pictures' rounded codes: the share of the inputs' variance that is lost
    ones: np.ndarray  # (bits,) the share of training pictures in which each bit is 1; 0.5 says most


def train(
    features: np.ndarray, bits: int, seed: int = 0, advance: Callable[[int], None] = lambda count: None
) -> Trained:
    """Fit an auto-encoder with `bits` bits, a multiple of 8, to features, (N, units) float32, on the CPU.

    The same features, seed, version of torch and number of threads give the same bits. advance(n) is called for every n
    pictures, `passes` times N in all."""
    centre, scale = standard(features)
    inputs = torch.from_numpy((features - centre) / scale)
    weights = _initial_weights(inputs.shape[1], bits, seed)
    optimizer = torch.optim.Adam(weights.values(), RATE)
    epochs, batches = passes(len(inputs)), -(-len(inputs) // BATCH)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    shuffles = torch.Generator().manual_seed(seed + SHUFFLES)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=shuffles).split(BATCH):
            batch = inputs[rows]
            optimizer.zero_grad()
            F.mse_loss(_reconstruction(_straight_through(_logits(batch, weights)), weights), batch).backward()
            optimizer.step()
            rates.step()
            advance(len(batch))
    arrays = {name: tensor.detach().numpy() for name, tensor in weights.items()}
    encoder = Encoder(centre, scale, *(arrays[name] for name in ("weight1", "bias1", "weight2", "bias2")))
    with torch.inference_mode():
        losses, ones = [], torch.zeros(bits, dtype=torch.float64)
        for batch in inputs.split(1024):
            code = (_logits(batch, weights) > 0).float()
            losses.append(F.mse_loss(_reconstruction(code, weights), batch).item() * len(batch))
            ones += code.sum(0)
    return Trained(encoder, epochs, sum(losses) / len(inputs), (ones / len(inputs)).numpy())


def passes(count: int) -> int:
    """How often `train` goes through `count` pictures."""
    return max(1, min(EPOCHS, PICTURES // count))


def standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) of each unit, (units,) float32 each. The deviation of a unit that hardly ever moves counts as
    1."""
    centre, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    return centre.astype(np.float32), np.where(scale > 1e-3 * scale.mean(), scale, 1).astype(np.float32)


def random_codes(features: np.ndarray, bits: int, fitted_to: np.ndarray, seed: int = 0) -> np.ndarray:
    """The control: signs of projections on random directions, nothing learned. (N, units) -> (N, bits / 8) uint8.

    Centred on the mean of `fitted_to`, (M, units). The share of bits that differ estimates the angle between two
    vectors (Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002)."""
    directions = np.random.Generator(np.random.Philox(key=seed)).standard_normal((features.shape[1], bits), np.float32)
    return np.packbits((features - fitted_to.mean(0)) @ directions > 0, axis=1)


def _initial_weights(units, bits, seed):
    """Weights of variance 2 / fan-in before a ReLU, 1 / fan-in else (He et al., arXiv:1502.01852); biases 0."""
    generator, width = torch.Generator().manual_seed(seed + STARTS), max(bits, min(HIDDEN, units // 2))
    weights = {}
    layers = [(units, width, 2), (width, bits, 1), (bits, width, 2), (width, units, 1)]
    for number, (fan_in, fan_out, gain) in enumerate(layers, 1):
        weights[f"weight{number}"] = torch.randn(fan_out, fan_in, generator=generator) * (gain / fan_in) ** 0.5
        weights[f"bias{number}"] = torch.zeros(fan_out)
    return {name: tensor.requires_grad_() for name, tensor in weights.items()}


def _logits(inputs, weights):
    """(N, units) standardised -> (N, bits); a bit is 1 where its logit is above 0."""
    return F.linear(F.linear(inputs, weights["weight1"], weights["bias1"]).relu(), weights["weight2"], weights["bias2"])


def _straight_through(logits):
    """0 or 1 forward, the logistic function's gradient backward."""
    probability = logits.sigmoid()
    return probability + ((logits > 0).float() - probability).detach()


def _reconstruction(code, weights):
    """(N, bits) of 0 and 1 -> (N, units)."""
    signs = 2 * code - 1
    return F.linear(F.linear(signs, weights["weight3"], weights["bias3"]).relu(), weights["weight4"], weights["bias4"])
