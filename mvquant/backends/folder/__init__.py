"""Packages that take a whole model folder: in a child process of their own, or in a worker that has nothing else to do.

`run` is what the pipeline calls; `backend` what an adapter says of its package; `source` the folder that a package
reads; `job` what the package is told; `programs` what runs it; `child` what all of those share; `here` runs one in this
process; `packed` reads the classic GPTQ and AWQ layouts; `results` gives modules back one by one.
"""
