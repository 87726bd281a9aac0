"""Many pairs of towers on one minibatch: who computes which images, and how their gradients are added."""
