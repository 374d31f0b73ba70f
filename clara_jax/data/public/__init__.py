"""The folder of real data that ``configs/smollm2.py`` reads, made from public downloads (docs/datasets.md).

`sources` says what is downloaded and where from, `downloads` brings it here, `questions` and `passages` make the files,
and `command` is the command.
"""
