"""From a scheduled function to a loadable library: LLVM objects, linking, manifests, the cache."""
