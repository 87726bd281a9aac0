"""Many pairs of towers on one minibatch (data parallel), or the scheme of 2014 (convolutions data parallel, fully
connected layers model parallel): who computes which images, and how their gradients are added."""
