"""The deconvnet of Zeiler & Fergus, section 2.1, as slowly and as literally as it can be written.

numpy, float64, one image at a time, a loop for every window. Each layer has a `forward`, which returns its
output and what it has to remember of its input, and a `back`, which is given what came back to its output
and returns what goes back to its input. The tests hold `zfkit.project` to `deconvnet` below.

Maps are (channels, rows, columns).
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import nn


def as_pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


@dataclass
class Conv:
    """y[o, i, j] = bias[o] + the sum of weight[o] times the window that begins at (i, j) * stride - padding."""

    weight: np.ndarray  # (outputs, inputs, kernel rows, kernel columns)
    bias: np.ndarray | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def output_size(self, size):
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight.shape[2:], strict=True)]
        return [
            (n + 2 * p - span) // s + 1
            for n, p, span, s in zip(size, self.padding, spans, self.stride, strict=True)
        ]

    def places(self, i, j, shape):
        """What output (i, j) looks at: (filter row, filter column, input row, input column)."""
        for a in range(self.weight.shape[2]):
            for b in range(self.weight.shape[3]):
                row = i * self.stride[0] - self.padding[0] + a * self.dilation[0]
                column = j * self.stride[1] - self.padding[1] + b * self.dilation[1]
                if 0 <= row < shape[1] and 0 <= column < shape[2]:  # else it is padding, which is 0
                    yield a, b, row, column

    def forward(self, x):
        y = np.zeros((len(self.weight), *self.output_size(x.shape[1:])))
        if self.bias is not None:
            y += self.bias[:, None, None]
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for a, b, row, column in self.places(i, j, x.shape):
                    y[:, i, j] += self.weight[:, :, a, b] @ x[:, row, column]
        return y, x.shape

    def back(self, R, shape):
        """Every value goes back through the filter to the places it was computed from; without the bias."""
        back = np.zeros(shape)
        for i in range(R.shape[1]):
            for j in range(R.shape[2]):
                if R[:, i, j].any():
                    for a, b, row, column in self.places(i, j, shape):
                        back[:, row, column] += self.weight[:, :, a, b].T @ R[:, i, j]
        return back


@dataclass
class ReLU:
    def forward(self, x):
        return np.maximum(x, 0), None

    def back(self, R, remembered):
        """Rectify what comes back, whatever the forward pass cut off."""
        return np.maximum(R, 0)


@dataclass
class MaxPool:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    def output_size(self, size):
        sizes = []
        for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True):
            steps = (n + 2 * p - d * (k - 1) - 1) / s
            count = int(np.ceil(steps) if self.ceil_mode else np.floor(steps)) + 1
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1  # the last window has to begin inside the input or the padding before it
            sizes.append(count)
        return sizes

    def places(self, i, j, shape):
        """The places of the input that window (i, j) pools, in the order in which the first of equals wins."""
        for a in range(self.kernel[0]):
            for b in range(self.kernel[1]):
                row = i * self.stride[0] - self.padding[0] + a * self.dilation[0]
                column = j * self.stride[1] - self.padding[1] + b * self.dilation[1]
                if 0 <= row < shape[1] and 0 <= column < shape[2]:  # padding never wins
                    yield row, column

    def forward(self, x):
        y = np.zeros((len(x), *self.output_size(x.shape[1:])))
        switches = {}
        for channel, i, j in np.ndindex(*y.shape):
            switch = max(self.places(i, j, x.shape), key=lambda place, c=channel: x[(c, *place)])
            switches[channel, i, j] = switch
            y[channel, i, j] = x[(channel, *switch)]
        return y, (x.shape, switches)

    def back(self, R, remembered):
        """Put each value where its switch points; where the switches of two windows meet, the values add."""
        shape, switches = remembered
        back = np.zeros(shape)
        for (channel, i, j), switch in switches.items():
            back[(channel, *switch)] += R[channel, i, j]
        return back


@dataclass
class ContrastNorm:
    """x / (k + alpha / size * the sum of squares over neighbouring maps) ** beta, as torch has it."""

    size: int
    alpha: float
    beta: float
    k: float

    def forward(self, x):
        y = np.zeros_like(x)
        for channel in range(len(x)):
            first = max(0, channel - self.size // 2)
            last = min(len(x) - 1, channel + (self.size - 1) // 2)
            squares = (x[first : last + 1] ** 2).sum(0)
            y[channel] = x[channel] / (self.k + self.alpha / self.size * squares) ** self.beta
        return y, None

    def back(self, R, remembered):
        """Left out on the way back."""
        return R


@dataclass
class Flatten:
    def forward(self, x):
        return x.reshape(-1), x.shape

    def back(self, R, shape):
        return R.reshape(shape)


@dataclass
class Linear:
    weight: np.ndarray  # (outputs, inputs)
    bias: np.ndarray

    def forward(self, x):
        return self.weight @ x + self.bias, None

    def back(self, R, remembered):
        return self.weight.T @ R


def layers_of(net):
    """The layers of an `nn.Sequential` in the form above."""
    return [_literal(module) for module in net]


def _literal(m):
    if isinstance(m, nn.Conv2d):
        bias = None if m.bias is None else m.bias.detach().numpy()
        return Conv(
            m.weight.detach().numpy(), bias, as_pair(m.stride), as_pair(m.padding), as_pair(m.dilation)
        )
    if isinstance(m, nn.ReLU):
        return ReLU()
    if isinstance(m, nn.MaxPool2d):
        sizes = map(as_pair, (m.kernel_size, m.stride, m.padding, m.dilation))
        return MaxPool(*sizes, m.ceil_mode)
    if isinstance(m, nn.LocalResponseNorm):
        return ContrastNorm(m.size, m.alpha, m.beta, m.k)
    if isinstance(m, nn.Flatten):
        return Flatten()
    if isinstance(m, nn.Linear):
        return Linear(m.weight.detach().numpy(), m.bias.detach().numpy())
    raise TypeError(f"no literal form of {m}")


def deconvnet(layers, image, unit):
    """What excites one unit of the last of `layers`: (channels, rows, columns), signed.

    unit: (channel, row, column), or (channel,) of a fully connected layer.
    """
    x, remembered = image, []
    for layer in layers:
        x, memory = layer.forward(x)
        remembered.append(memory)
    R = np.zeros_like(x)
    R[unit] = 1  # every other activation of the layer is set to zero
    for layer, memory in zip(reversed(layers), reversed(remembered), strict=True):
        R = layer.back(R, memory)
    return R


def gram_cka(x, y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC(K, L) = tr(K H L H) / (n - 1)^2, in loops and float64."""
    n = len(x)
    H = np.eye(n) - np.ones((n, n)) / n
    K = np.array([[float(np.dot(a, b)) for b in x] for a in x])
    L = np.array([[float(np.dot(a, b)) for b in y] for a in y])

    def hsic(A, B):
        return np.trace(A @ H @ B @ H) / (n - 1) ** 2

    return hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))
