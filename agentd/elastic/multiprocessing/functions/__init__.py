"""Functions as workers, on the standard library's `multiprocessing`.

In the order of a worker's life: `work` says what to do, and how that travels; `start` makes the process;
`begin` is the first code that runs in it, `worker` the rest; `channel` brings the value back; `child` is the
process as a crew wants its leaders. What can go wrong is in `errors`.
"""
