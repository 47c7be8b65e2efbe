"""What is computed: the spec of an attention and the lengths that its kernels are for."""
