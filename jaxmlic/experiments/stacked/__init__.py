"""`jaxmlic sweep --vmap`: runs on stored features whose configs differ in numbers alone, trained in one program.

    lanes    one run of a group: its folder, trainer, readers and checkpoints
    numbers  which runs can share a program, and the step with traced numbers in place of the config's
    arrays   states of several runs stacked, stored features on the device
    program  the jitted step and prediction of all runs
    fit      the loop: trains, logs, validates, saves and evaluates a group

The state of every run and its numbers have a leading axis of runs; `jax.vmap` over it turns the step of one run into
the step of all. Each run keeps its own data order, keys, folder and checkpoints, so that it can be continued and
evaluated alone.
"""
