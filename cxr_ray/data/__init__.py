"""Images in, batches out: everything between a folder of X-rays and a training step.

Contents, in the order of the line:

======== ==============================================================================
sources  one adapter a public layout -> rows: file, label, patient, view, sex, age
phantoms synthetic radiographs: the embedded default data
grouping near copies and patients -> groups that must stay together
likeness how near copies are found: perceptual hashes, confirmed on pixels
split    groups -> train, val, test or folds: disjoint by group, stratified by label
stratify the placement under it: groups -> partitions with even shares of every label
ingest   the Ray Data pipeline: rows -> decoded, preprocessed, split DATASET
staging  its first pass: files -> staged parts of pixels and facts (progress: how far it is)
assemble its second: facts -> groups, split, and what the manifest says
gather   its third: rows of staged parts -> shards
shards   the DATASET format: Parquet shards of uint8 pixels
manifest dataset.json, columns: what shards and index hold
augment  random changes of a batch that follow from (seed, epoch, row) alone
order    which rows stand in which batch of which rank
batches  what a training step receives, and the feeds that need no Ray
spans    which rows of which shards a rank reads in an epoch (pages: pixels as views of the file)
stream   DATASET -> batches of each worker, through Ray Data
======== ==============================================================================

Importing this package imports none of them.
"""
