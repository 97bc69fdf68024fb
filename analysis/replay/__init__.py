"""A trial's requests for other tools: a fio job that replays them, CSV, a block trace as SNIA's repository has them.

python -m analysis.replay results/fig6 "fs=xfs,rep=1" --phase decode
"""
