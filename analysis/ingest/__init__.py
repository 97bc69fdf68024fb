"""Results that other tools recorded, as runs of ours: `python -m analysis.ingest SOURCE --results DIR`.

A kind of file is one module and one entry in `kinds`. What it reads becomes a `Part` of a trial; `tree` says which
files belong together, `assembly` joins their parts, `run_folder` publishes the run.
"""
