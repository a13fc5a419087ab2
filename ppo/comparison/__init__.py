"""Comparison of runs over their seeds, after training: learning curves, interquartile means, performance profiles.

    <asset_dir>/<name>/
        comparison.png, .svg    curves over steps, episodes and minutes, and the profile of the final returns
        comparison.html         the same, with the interquartile means, as a page for a browser, in one file
        comparison.md           the final returns as a table, with the command

Runs whose folder names differ only in their seeds (`X`, `X-seed1`, `X-seed2`) are one group.
"""
