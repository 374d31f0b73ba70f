"""Checkpoints: whole models in and out, as runs, in the released format, as PEFT folders, merged and compact copies."""
