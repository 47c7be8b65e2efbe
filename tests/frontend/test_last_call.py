"""What is kept of the last call is given to equal calls alone."""

import torch

from tvm_flash.frontend.last_call import LastCall

SIZES = (30, (40, 2))


def kept(*tensors):
    last = LastCall()
    last.keep(tensors, SIZES, "answer")
    return lambda *asked, sizes=SIZES: last.answer(asked, sizes)


def numbers():
    return torch.tensor([0, 3, 9], dtype=torch.int32)


def test_the_same_tensors_with_the_same_numbers():
    a, b = numbers(), numbers()
    ask = kept(a, None, b)
    assert ask(a, None, b) == "answer" and LastCall().answer((a,), SIZES) is None
    assert ask(a, None, b, sizes=(31, (40, 2))) is None
    assert ask(a, None, a) is None and ask(b, None, a) is None and ask(a, b, None) is None
    assert ask(a, None) is None and ask(a, None, numbers()) is None


def test_numbers_that_an_array_changed():
    a = numbers()
    ask, array = kept(a), a.numpy()
    array[1] = 4
    assert ask(a) is None
    array[1] = 3
    assert ask(a) == "answer"


def test_tensors_that_lie_elsewhere_since():
    for change in (
        lambda x: setattr(x, "data", x.clone()),
        lambda x: setattr(x, "data", x[:-1]),
        lambda x: x.unsqueeze_(0),
        lambda x: x.as_strided_((3,), (0,)),
    ):
        a = numbers()
        ask = kept(a)
        change(a)
        assert ask(a) is None


def test_inference_mode_keeps_to_itself():
    a = numbers()
    with torch.inference_mode():
        ask = kept(a)
        assert ask(a) == "answer"
    assert ask(a) is None
