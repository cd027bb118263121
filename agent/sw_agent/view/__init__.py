"""What people look at: one trace as a waterfall, and the list of traces, in a terminal or through a pipe."""
