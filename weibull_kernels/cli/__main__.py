"""`python -m weibull_kernels.cli`."""

from . import main

if __name__ == "__main__":
    main()
