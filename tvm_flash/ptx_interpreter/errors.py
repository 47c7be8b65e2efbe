"""What can be wrong with a kernel, one exception per kind of mistake."""


class InterpreterError(RuntimeError, ValueError):
    """The kernel, or the way it was launched, is wrong; the message says where and what to do."""


class OutOfBounds(InterpreterError):
    """An access outside every buffer, or a write to a read-only one."""


class Misaligned(InterpreterError):
    """An address that is not a multiple of the access size."""


class Uninitialised(InterpreterError):
    """A read of bytes that nobody wrote."""


class SharedRace(InterpreterError):
    """Two threads of a block touch the same shared bytes, one writes, nothing orders them."""


class GlobalRace(InterpreterError):
    """Two blocks of a launch touch the same global bytes, one writes, without atomics."""


class AsyncHazard(InterpreterError):
    """Data of an asynchronous operation used, or overwritten, before its wait or fence."""


class Deadlock(InterpreterError):
    """No lane can run, or lanes that must run together do not."""


class UnsupportedInstruction(InterpreterError):
    """PTX that the interpreter does not know."""


class LaunchError(InterpreterError):
    """Arguments, grid or shared memory that do not fit the kernel."""


def fault(kind, ins, c, lane, what, hint=""):
    """An error of class `kind` for `lane`, an index into the lanes of context `c`."""
    block, thread = c.run.place(int(c.index[lane]))
    message = f"{ins.where()}: {what}, block {block}, thread {thread}"
    return kind(f"{message}. {hint}" if hint else message)
