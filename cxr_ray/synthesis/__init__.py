"""Enlarge a rare class with GAN images (paper 000 does so with 108 X-rays of croup). Only the training part is seen, and only it grows.

Contents, in the order of the line:

============ ==============================================================================
config       the settings of a GAN
rare         the real training images of the class; to and from the square the GAN works on
networks     generator and discriminator (DCGAN)
changes      differentiable augmentation, for few images
gan          epochs of both networks in plain torch, over any number of ranks
state        checkpoints of both, and the run directory
trainer      Ray Train around it
sample       images of the finished generator
extractor    the network whose features KID and the nearest neighbours are measured in
quality      KID with its floor and its ceilings, and FID where there are enough images
memorisation is an image a copy of a training image?
enlarge      DATASET -> DATASET with the images in its training part
report       pictures, report.html and report.json
synthesize   all of it, as the command does
============ ==============================================================================

Importing this package imports none of them.
"""
