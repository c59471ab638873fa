"""Third-party quantizers: the only place that imports llmcompressor, gptqmodel, optimum, autoawq or auto-round.

Each adapter takes a plan and calibration data and gives integers, scales and zero points back, so that saving, loading
and evaluating do not depend on who computed them. `layer` is for those that work layer by layer, `folder` for packages
that take a whole model.
"""
