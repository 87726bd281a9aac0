"""Networks that were made elsewhere, and ours for elsewhere: Caffe in; torch, ONNX and the hub out."""
