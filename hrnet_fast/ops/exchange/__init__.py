"""The exchange operator: api validates, call is what backends get, register and autograd are for torch."""
