"""The operators: each with its public function, its registration with torch, and its kernels."""
