"""What stands between the scores of a row and its output, by the names that specs have for it."""

from .sigmoid import Sigmoid
from .sink import Sink
from .softmax import Softmax
from .softmax1 import Softmax1

KINDS = {"softmax": Softmax, "sink": Sink, "softmax1": Softmax1, "sigmoid": Sigmoid}
