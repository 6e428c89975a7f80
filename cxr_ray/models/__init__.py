"""The network: backbone -> sequence -> RNN -> head.

Contents, low to high (import from the file itself; this page imports no torch):

========== =========================================================================================
networks   the convolutional networks, each cut into named stages
weights    weights from a file or the publisher, matched key by key to a backbone
backbones  the registry: name -> network, its stages and needs; freezing
sequence   feature map -> sequence of its pixels (horizontal, vertical, snake, spiral), and back
recurrent  sequence -> features: LSTM, GRU or none, and how the outcome is read
classifier the whole: uint8 images -> logits
parameters parameter groups for the optimiser, counts for people
inference  probabilities for many images: the one forward pass of evaluation, predict and serving
recipes/   built-in experiments, one YAML each
========== =========================================================================================
"""
