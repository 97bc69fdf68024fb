"""Results that other tools recorded, as runs of ours: `python -m analysis.ingest SOURCE --results DIR`.

A kind of file is one module and one entry in `source.KINDS`. What it reads becomes a `Part` of a trial; `assembly` joins
the parts that lie together, `run_folder` publishes the run.
"""
