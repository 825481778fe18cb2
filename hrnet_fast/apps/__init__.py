"""Uses of a network: segmentation of pictures and poses; what they share is in pictures, networks and pipeline."""
