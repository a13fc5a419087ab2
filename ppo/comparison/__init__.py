"""Runs compared over their seeds: learning curves, interquartile means and performance profiles, after training.

    <asset_dir>/<name>/
        comparison.png, .svg    curves by steps, episodes and minutes, and the profile of the final returns
        comparison.md           the same as a table, with the command

Runs that differ in their seeds only, by the names of their folders (`X`, `X-seed1`, `X-seed2`), are one group.
"""
