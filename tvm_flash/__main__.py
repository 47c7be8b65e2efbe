"""``python -m tvm_flash``: the same command line as ``tvm-flash``."""

from tvm_flash.cli import main

if __name__ == "__main__":
    main()
