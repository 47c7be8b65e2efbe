"""Block masks without a function, of random blocks."""

import torch

from tvm_flash.problem.block_mask import mask_of_lists, visits_of


def random_mask(seqlen_q, seqlen_k, shape, block, seed=0):
    """Lists of random states; half of the blocks are hidden."""
    generator = torch.Generator().manual_seed(seed)
    rows, keys = -(-seqlen_q // block[0]), -(-seqlen_k // block[1])
    states = torch.randint(-1, 3, (shape[0] * shape[1] * rows, keys), generator=generator)
    counts, visited = visits_of([states.clamp(min=0)])
    return mask_of_lists(seqlen_q, seqlen_k, block, counts.view(*shape, rows), visited)
