"""Small HRNets in the style of each implementation that people run, written for the tests: same structure, own text."""
