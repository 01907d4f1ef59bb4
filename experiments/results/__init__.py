"""What the runs say together: tables, statistics, sweeps, the figures of the paper."""
