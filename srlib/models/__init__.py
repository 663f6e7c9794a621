"""The networks and the prior: the chain of the paper, one arrow a file."""
