"""The recipes that `--recipe` knows, by name. What `variants.py` derives from them is run by `claims`."""
from .cifar_recipes import (
    cifar11_local, cifar13_local, cifar18, cifar18_lrn, cifar18_no_norm, cifar_relu, cifar_sigmoid, cifar_tanh)
from .pretraining_recipes import net146_2009, net146_2011, net146_2012
from .recipe import mini, paper, source2012

PRESETS = {preset.__name__: preset for preset in (
    paper, source2012, mini, cifar18, cifar18_lrn, cifar18_no_norm, cifar13_local, cifar11_local, cifar_relu,
    cifar_tanh, cifar_sigmoid,
    net146_2009, net146_2011, net146_2012)}
