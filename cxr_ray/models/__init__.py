"""The network: backbone -> sequence -> RNN -> head.

Contents, low to high (import from the file itself; this page imports no torch):

========== =========================================================================================
networks   the convolutional networks, each cut into named stages; other_networks: any of torchvision and timm
weights    weights from a file or the publisher, matched key by key to a backbone
backbones  the registry: name -> network, its stages and needs; freezing
sequence   feature map -> sequence of its pixels (horizontal, vertical, snake, spiral, or whole), and back
cells      LSTM and GRU as a loop over steps, for activations that torch's own do not have
recurrent  sequence -> features: LSTM, GRU or none, and how the outcome is read
classifier the whole: uint8 images -> logits
parameters parameter groups for the optimiser; counts of parameters and operations for people
ensemble   several networks that answer as one
record     what is recorded of a model that leaves its RUN
inference  probabilities for many images: the one forward pass of evaluation, predict and serving
forward    who computes that pass: torch, torch compiled, or ONNX Runtime
onnx_graph a network as an ONNX graph, and what runs it
recipes/   built-in experiments, one YAML each
========== =========================================================================================
"""
