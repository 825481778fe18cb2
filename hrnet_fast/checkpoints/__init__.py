"""Files of weights: read, recognized, their keys translated, written with a header."""
