"""Ahead-of-time compilation: what a run needs on an accelerator, read off compiled programs without one."""
