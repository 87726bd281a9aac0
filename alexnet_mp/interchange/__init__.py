"""Networks that were made elsewhere, and ours for elsewhere: Caffe and cuda-convnet in; torch, ONNX and the hub out."""
