# %% [markdown]
# # Mask gallery
#
# A mask is a function of a query's and a key's position. This page draws what masks hide, which
# blocks a kernel visits for them, and the weights that a kernel gives under them.

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

from tvm_flash import attention, block_mask, masks

SEQLEN, BLOCK = 192, 16
NAMED = {name: example(SEQLEN) for name, example in masks.EXAMPLES.items()}

# %% [markdown]
# ## Which keys a query sees, and which blocks are visited
#
# A row is a query, a column a key. `block_mask` looks at each pair once and lists the blocks in
# which a pair is visible; kernels visit no other. Dark blocks are seen whole, in light ones the
# kernel asks the mask for each pair (drawn: the visible ones), white ones cost nothing.


# %%
def draw(axes, mask_mod):
    """Pairs of a mask and the state of their blocks; returns the shares of both."""
    seen = masks.visible_pairs(mask_mod, SEQLEN)
    blocks = block_mask(mask_mod, 1, 1, SEQLEN, SEQLEN, (BLOCK, BLOCK))
    states = blocks.states().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    shade = torch.where(states == 2, 1 + seen.int(), 3 * (states == 1).int())
    colours = ListedColormap(["white", "#d4e6f5", "#56B4E9", "#0072B2"])
    axes.imshow(shade, cmap=colours, vmin=0, vmax=3, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    return seen.float().mean(), blocks.density


figure, places = plt.subplots(3, 4, num="Eleven masks and their blocks", figsize=(9, 7.6))
for axes, (name, mask_mod) in zip(places.flat, NAMED.items(), strict=False):
    pairs, visited = draw(axes, mask_mod)
    axes.set_title(f"{name}\n{pairs:.0%} of pairs, {visited:.0%} of blocks", fontsize=9)
places.flat[-1].set_axis_off()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Masks compose
#
# `all_of`, `any_of` and `not_mask` make one mask of others. A mask of your own is a function too:
# here chapters of 48 positions, read causally, whose first four positions everybody sees later on.


# %%
def first_of_chapter(b, h, q_idx, k_idx):
    return k_idx % 48 < 4


chapters = masks.document(torch.arange(SEQLEN) // 48)
own = masks.all_of(masks.causal(), masks.any_of(chapters, first_of_chapter))
print(own.__name__)

figure, places = plt.subplots(1, 4, num="Three masks and what they compose", figsize=(9, 2.8))
parts = {"causal": masks.causal(), "document": chapters, "first of chapter": first_of_chapter}
for axes, (name, mask_mod) in zip(places, {**parts, "composed": own}.items(), strict=True):
    pairs, visited = draw(axes, mask_mod)
    axes.set_title(f"{name}\n{pairs:.0%} of pairs, {visited:.0%} of blocks", fontsize=9)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The weights of a kernel
#
# A kernel never writes its weights. But where the values are the rows of a unit matrix, the output
# is the weights: with 192 keys and values of 192 columns the picture below is what it computed.

# %%
torch.manual_seed(0)
q, k = (torch.randn(1, SEQLEN, 1, 64) for _ in range(2))
unit = torch.eye(SEQLEN)[None, :, None]
shown = {"sink_window": NAMED["sink_window"], "composed": own}

figure, places = plt.subplots(1, 2, num="Weights that a kernel computed", figsize=(9, 4.8))
for axes, (name, mask_mod) in zip(places, shown.items(), strict=True):
    weights = attention(q, k, unit, mask_mod=mask_mod)[0, :, 0]
    axes.imshow(weights.sqrt(), cmap="Blues", vmin=0, vmax=0.7)
    axes.set(xticks=[], yticks=[], title=name)
    assert torch.equal(weights > 0, masks.visible_pairs(mask_mod, SEQLEN))
    torch.testing.assert_close(weights.sum(1), torch.ones(SEQLEN))
figure.tight_layout()
plt.show()

# %% [markdown]
# Weights are 0 exactly where the mask hides a pair, and sum to 1 in each row: the cell above checks
# both. What blocks save in time: [block masks](../docs/block_masks.md). All masks and where they
# come from: [masks](../docs/masks.md).
