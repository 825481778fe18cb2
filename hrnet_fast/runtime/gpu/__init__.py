"""The GPU program: a network as grouped launches, one for each level of independent convolutions and sums."""
