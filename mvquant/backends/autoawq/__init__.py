"""AutoAWQ (archived): AWQ at 4 bits with zero points. `adapter` is for the parent process, `quantize` for the child."""
