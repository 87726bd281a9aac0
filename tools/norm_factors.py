"""How much response normalisation changes what a trained network computes: by which factor each normalised output is
multiplied.

  python tools/norm_factors.py RUN [--data DIR]

Without the constant k^-beta that it multiplies everything by, so that a factor of 1 is no normalisation at all. A batch
of validation images, centre view, tower a. For the reason why an ablation of the norms (claims `lrn`, `cifar-lrn`)
shows what it shows."""

import argparse
from contextlib import closing

import torch

from alexnet_mp.evaluation.ensembles import open_runs
from alexnet_mp.evaluation.protocol import centre_view
from alexnet_mp.evaluation.trained import load_run
from alexnet_mp.system.errors import UserError, run_command

NORMS = {"lrn", "spatial_norm"}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--data", metavar="DIR", help="default: what the run was trained on")
    options = parser.parse_args(arguments)
    for layer, factors in norm_factors(options.run, options.data).items():
        spread = ", ".join(
            f"{100 * share:g} % below {factors.quantile(share).item():.3f}" for share in (0.01, 0.1, 0.5)
        )
        print(f"{layer}: outputs are multiplied by {factors.mean():.3f} on average; {spread}")
    return 0


@torch.inference_mode()
def norm_factors(run, data=None, most=1_000_000):
    """{"conv1 lrn": factors of at most `most` outputs that are not 0, (n,) float32} of the run's first tower."""
    (opened_run,) = open_runs([run], data, gpus="cpu", kernels="reference", pipeline="torch", workers=0)
    network, _ = load_run(run, "cpu", "reference")
    factors = {}
    for name, module in network.towers[0].named_children():
        if NORMS & set(module.layer.then):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: factors.update(_of_layer(name, module, inputs[0], most))
            )
    with closing(opened_run.pipeline.views("val", 256, centre_view(network.recipe))) as batches:
        (towers,), _ = next(iter(batches))
        network(*towers)
    if not factors:
        raise UserError(f"{run}: no layer of its network is normalised")
    return factors


def _of_layer(name, module, x, most):
    recipe, x, factors = module.recipe, module._convolve(x, module.weight, module.bias), {}
    for operation in module.layer.then:
        inputs, x = x, module._compute((operation,), x, None)
        if operation in NORMS:
            constant = recipe.lrn_k**recipe.lrn_beta if operation == "lrn" else recipe.spatial_k**recipe.spatial_beta
            nonzero = inputs != 0
            ratios = constant * x[nonzero] / inputs[nonzero]
            factors[f"{name} {operation}"] = ratios[:: -(-len(ratios) // most)] if len(ratios) else ratios.new_ones(1)
    return factors


if __name__ == "__main__":
    run_command(main)
