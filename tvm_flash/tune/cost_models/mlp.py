"""A small neural network as a cost model, in plain torch."""

from __future__ import annotations

import numpy as np

from .base import Regression, one_thread, standardisation


class Mlp(Regression):
    """Two hidden layers, trained anew on all measurements with Adam.

    Unlike TVM's own, which sums over the stores of a program, it takes a fixed row of features.
    """

    WIDTH, STEPS, RATE, DECAY = 48, 100, 0.01, 0.1

    def __init__(self, seed: int):
        self._seed, self._weights = seed, None

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        import torch

        self._center, self._scale = standardisation(features)
        self._mean, self._deviation = labels.mean(), labels.std() or 1.0
        y = torch.tensor((labels - self._mean) / self._deviation, dtype=torch.float32)
        with one_thread():
            self._weights = self._trained(self._inputs(features), y)

    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._weights is None:
            return np.zeros(len(features))
        with one_thread():
            scores = self._outputs(self._weights, self._inputs(features)).double().numpy()
        return self._mean + self._deviation * scores

    def _inputs(self, features: np.ndarray):
        import torch

        return torch.tensor((features - self._center) / self._scale, dtype=torch.float32)

    def _trained(self, x, y):
        """All weights in one row, after Adam (Kingma and Ba, 2015) on (n, f) and (n,).

        By hand: torch.optim imports torch's compiler, which takes longer than the fit.
        """
        import torch

        weights = self._initial(x.shape[1]).requires_grad_()
        mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
        for step in range(1, self.STEPS + 1):
            loss = ((self._outputs(weights, x) - y) ** 2).mean()
            (slope,) = torch.autograd.grad(loss, weights)
            rate = self.RATE * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
            with torch.no_grad():
                mean.lerp_(slope, 0.1)
                square.mul_(0.999).addcmul_(slope, slope, value=0.001)
                weights.mul_(1 - self.RATE * self.DECAY)
                weights.addcdiv_(mean, square.sqrt().add_(1e-8), value=-rate)
        return weights.detach()

    def _initial(self, inputs: int):
        """Uniform within one over the root of each layer's inputs, as torch's own layers."""
        import torch

        generator = torch.Generator().manual_seed(self._seed)
        layers = [
            (torch.rand(count, generator=generator) * 2 - 1) / width**0.5
            for width, count in zip(
                (inputs, self.WIDTH, self.WIDTH), self._counts(inputs), strict=True
            )
        ]
        return torch.cat(layers)

    def _counts(self, inputs: int) -> tuple[int, int, int]:
        """Weights of each layer, with the constants as one more input."""
        return (inputs + 1) * self.WIDTH, (self.WIDTH + 1) * self.WIDTH, self.WIDTH + 1

    def _outputs(self, weights, x):
        from torch.nn.functional import gelu

        first, second, last = weights.split(self._counts(x.shape[1]))
        first, second = first.view(-1, self.WIDTH), second.view(-1, self.WIDTH)
        x = gelu(x @ first[:-1] + first[-1])
        x = gelu(x @ second[:-1] + second[-1])
        return x @ last[:-1] + last[-1]
