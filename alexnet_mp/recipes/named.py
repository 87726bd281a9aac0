"""The recipes that `--recipe` knows, by name. What `ablations.py` derives from them is run by `claims`."""

from .architectures import mini, paper, source2012
from .caffe import caffe_alexnet, caffenet
from .cifar import (
    cifar11_local,
    cifar13_local,
    cifar18,
    cifar18_lrn,
    cifar18_no_norm,
    cifar_relu,
    cifar_sigmoid,
    cifar_tanh,
)
from .desk_study import desk
from .one_weird_trick import owt2014
from .pretraining import net146_2009, net146_2011, net146_2012

PRESETS = {
    preset.__name__: preset
    for preset in (
        paper,
        source2012,
        mini,
        desk,
        cifar18,
        cifar18_lrn,
        cifar18_no_norm,
        cifar13_local,
        cifar11_local,
        cifar_relu,
        cifar_tanh,
        cifar_sigmoid,
        net146_2009,
        net146_2011,
        net146_2012,
        caffe_alexnet,
        caffenet,
        owt2014,
    )
}
