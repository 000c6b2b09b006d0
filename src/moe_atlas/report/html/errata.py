"""What the product corrects in the published definitions, for the reader of a report."""

ERRATA = (
    ("Eq. 27", "As printed it is not 0 for equal checkpoints; taken per token, as a ratio to both."),
    ("Eq. 18–19", "As printed biased by ln n/β; log-mean-exp is used, still optimistic by up to that."),
    ("Eq. 21", "Its limit picks the closest-scored pair of all experts; the exact overlap stays co-active."),
    ("Prop. 3", "The smooth quantities do not tend to the exact ones as stated; no limit is claimed."),
    ("Eq. 14", "With a selection bias no gate weight is shared at the boundary; the exact swap is reported."),
    ("Eq. 31–32", "A rising minimum occupancy could pay for a rewrite; the occupancy terms are clipped."),
    ("§5", "Drift of the post-gain state moves with a compensated gain; the gate uses the pre-gain state z."),
    ("Thm. 1", "Needs positive homogeneity and rows of W1 ≥ d; layers without are measured and named."),
)
