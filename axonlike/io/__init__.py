"""Files: params, whole models, StableHLO, ONNX, and the weights of others."""
