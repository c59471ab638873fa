"""Warnings of other packages that no user of this command line can act on."""

import logging

_NOISY = (
    "torchao",  # GPU kernels that do not load where there is no GPU
    "torch.utils._pytree",  # torchao's enums
)


def quiet_foreign_logs() -> None:
    """Leave only errors of the packages that transformers imports unasked, wherever they are installed."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
