"""The numbers that `same_numbers.py` compares: a digest of each, made by the code that is imported here.

    python -m same_numbers_probe FILE [PROBE ...]     in an empty directory, which it fills

It writes {name: digest} as JSON into FILE.

Only public names and commands are used, so that it runs with older and newer code alike. The order of `PROBES` counts:
later ones read what earlier ones left. Pictures are made here. If a probe fails, standard error says why, its values
are missing, and the status is 1.
"""
