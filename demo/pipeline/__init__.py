"""The code of the demo's steps: ordinary programs that know nothing of Animus.

A step runs in a folder of its own and finds there

    parameters.json     the run's parameters, {name: value as text}
    inputs/<name>       a file for an artifact, a folder for a dataset
    outputs/            where it writes each of its artifacts, under the name that the pipeline gives it
    metrics.json        where it may write its metrics, {name: decimal as text}

Everything that a step writes is a function of what it reads: the same inputs give the same bytes.
"""
