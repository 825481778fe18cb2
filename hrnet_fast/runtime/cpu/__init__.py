"""The CPU program: a network as steps of C++ kernels on images in planned memory."""
