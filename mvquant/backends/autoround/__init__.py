"""AutoRound: learnt rounding. `adapter` is for the parent process, `quantize` for the child."""
