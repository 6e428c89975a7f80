"""The loop in plain torch, its checkpoints and RUN directory, and Ray Train around it.

Contents, low to high:

=========== ==========================================================================
optim       optimiser, learning rate of every step, gradient clipping
loss        what is minimised: class weights, label smoothing, mixup
distributed what the ranks of a run do together, and batch normalisation over all of them
metrics     validation metrics, exact over ranks with unequal counts
ema         moving average of the weights
loop        ``fit``: epochs of training and validation; needs neither Ray nor a process group
checkpoint  one directory an epoch, manifest last, verified on load
run         the RUN directory
elastic     how many processes train: one number, or from the least to the most
lease       one driver at a time in a RUN
progress    history.jsonl, TensorBoard, and how epochs reach the terminal
tracking    epochs told to MLflow and Weights & Biases
worker      what one worker does, Ray left out
trainer     ``train``: Ray Train around the worker
crossval    ``cross_validate``: a run a fold, pooled out-of-fold predictions
=========== ==========================================================================
"""
